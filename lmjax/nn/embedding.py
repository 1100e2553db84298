"""Token tables and the logits that come from them."""

import jax.numpy as jnp

from lmjax.kernels import linear_cross_entropy
from lmjax.nn import lookup
from lmjax.nn import params
from lmjax.parallel import shard
from lmjax.parallel import vocabulary
from lmjax.parallel.facts import Fact


def table(module, name: str, vocab: int, width: int, role: str, scheme, dtype=None):
  """A (vocab, width) matrix, gathered in `dtype`. The unembedding contracts `embed`, the embedding
  `vocab`.
  """
  fact = Fact(('vocab', 'embed'), ('vocab',) if role == 'embed' else ('embed',), role)
  matrix = params.param(module, name, (vocab, width), fact, scheme)
  return shard.gather(matrix if dtype is None else matrix.astype(dtype), fact.names)


def look_up(table_VD, tokens_BT, dtype):
  """Rows of the table: (B, T, D)."""
  table_VD = table_VD.astype(dtype)
  if shard.is_explicit():
    return table_VD.at[tokens_BT].get(out_sharding=shard.spec(('batch', 'time', 'width')))
  if vocabulary.divides(table_VD.shape, tokens_BT.shape):
    return lookup.rows(table_VD, tokens_BT)
  return shard.shard(table_VD[tokens_BT], 'batch', 'time', 'width')


def round_up(vocab: int, multiple: int) -> int:
  return -(-vocab // multiple) * multiple


def never(vocab: int, rows: int):
  """A bias that forbids the rows added to round the vocabulary up, or None where there are none."""
  return None if rows == vocab else jnp.where(jnp.arange(rows) < vocab, 0.0, -1e30)


def logits(outputs):
  """(B, T, V) float32: cap(scale * hidden . unembed) + bias."""
  o = outputs
  return linear_cross_entropy.logits(o.hidden_BTD, o.unembed_VD, o.bias_V, o.scale, o.cap)


def cross_entropy(outputs, targets_BT, weights_BT, **how):
  """The losses of these outputs; `how` as `kernels.linear_cross_entropy` takes it."""
  o = outputs
  how |= dict(bias_V=o.bias_V, scale=o.scale, cap=o.cap)
  return linear_cross_entropy.linear_cross_entropy(
    o.hidden_BTD, o.unembed_VD, targets_BT, weights_BT, **how
  )

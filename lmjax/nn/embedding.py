"""Token tables and the logits that come from them."""

import jax.numpy as jnp

from lmjax.nn import params
from lmjax.parallel import shard
from lmjax.parallel.facts import Fact


def table(module, name: str, vocab: int, width: int, role: str, scheme):
  """A (vocab, width) matrix. The unembedding contracts `embed`, the embedding `vocab`."""
  fact = Fact(('vocab', 'embed'), ('vocab',) if role == 'embed' else ('embed',), role)
  return shard.gather(params.param(module, name, (vocab, width), fact, scheme), fact.names)


def look_up(table_VD, tokens_BT, dtype):
  """Rows of the table: (B, T, D)."""
  table_VD = table_VD.astype(dtype)
  if shard.is_explicit():
    return table_VD.at[tokens_BT].get(out_sharding=shard.spec(('batch', 'time', 'width')))
  return shard.shard(table_VD[tokens_BT], 'batch', 'time', 'width')


def round_up(vocab: int, multiple: int) -> int:
  return -(-vocab // multiple) * multiple


def never(vocab: int, rows: int):
  """A bias that forbids the rows added to round the vocabulary up, or None where there are none."""
  return None if rows == vocab else jnp.where(jnp.arange(rows) < vocab, 0.0, -1e30)


def logits(outputs):
  """(B, T, V) float32: cap(scale * hidden . unembed + bias)."""
  hidden, matrix = outputs.hidden_BTD, outputs.unembed_VD
  y = params.contract(hidden, matrix.T, 1, ('vocab',)).astype(jnp.float32)
  if outputs.scale != 1:
    y = y * outputs.scale
  if outputs.cap is not None:
    y = outputs.cap * jnp.tanh(y / outputs.cap)
  return y if outputs.bias_V is None else y + outputs.bias_V

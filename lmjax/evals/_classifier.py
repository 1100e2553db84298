"""A model with a new head on the state of one token: what a fine-tuning optimizes.

  s = the last layer's state of the first token (after the final norm, if there is one), or of the
      last token where a mixer looks only back, since the first one sees nothing there
  z = W2 f(dropout(s)) + b2,   f(s) = tanh(W1 s + b1), or s with head='linear'
  loss = mean over rows of -log softmax(z)[label], or of (z - label)^2 where labels are numbers

Devlin et al., 2018 (arXiv:1810.04805), section 4.1; W ~ N(0, 0.02^2), b = 0, float32. A row is one
segment: its sentences see each other. The models have no token types, so that only [SEP] says which
sentence a token is of. Losses of the model's own parts are added.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax import kinds
from lmjax.nn import params as params_lib
from lmjax.nn.dropout import dropout
from lmjax.parallel import facts as facts_lib
from lmjax.parallel import shard

HEADS = ('tanh', 'linear')


class Head(nn.Module):
  """(B, 1, D) -> (B, 1, outputs), float32."""

  outputs: int
  dense: bool
  dropout: float
  scheme: Any

  @nn.compact
  def __call__(self, s_B1D, ctx):
    s_B1D = dropout(self, s_B1D.astype(jnp.float32), self.dropout, ctx)
    if self.dense:
      s_B1D = jnp.tanh(self._linear('dense', s_B1D, s_B1D.shape[-1]))
    return self._linear('out', s_B1D, self.outputs)

  def _linear(self, name: str, x, outs: int):
    matrix, vector = (
      facts_lib.Fact(('width', None), ('width',)),
      facts_lib.Fact((None,), (), 'bias'),
    )
    how = dict(scheme=dataclasses.replace(self.scheme, param_dtype=jnp.float32))
    normal, shape = nn.initializers.normal(0.02), (x.shape[-1], outs)
    kernel = params_lib.param(self, f'{name}_kernel', shape, matrix, init=normal, **how)
    zeros = nn.initializers.zeros
    bias = params_lib.param(self, f'{name}_bias', (outs,), vector, init=zeros, **how)
    return params_lib.contract(x, kernel, 1, (None,)) + bias


def looks_back(model) -> bool:
  """Whether a mixer sees no later tokens, so that the last token's state is used."""
  return any(mixer.fact('causal') for _, mixer in model.mixers())


def check(model):
  """Raises kinds.Unsupported for a model that cannot be fine-tuned on rows with padding."""
  if model.encoders:
    raise kinds.Unsupported(
      'config.model.architecture reads a source and writes behind it: fine-tuning a classifier '
      'takes a model of one stack'
    )
  for name, mixer in model.mixers():
    where = f'config.model.blocks.{name}.mixer={mixer}'
    if mixer.fact('cross'):
      raise kinds.Unsupported(f'{where} reads another text: a model of one stack is expected')
    if not mixer.fact('causal') and not mixer.fact('segments'):
      raise kinds.Unsupported(f'{where} cannot leave out padding, which fine-tuning needs')


@dataclasses.dataclass(frozen=True)
class Classifier:
  """An objective (`kinds.Objective`) over batches of `tokens`, `segments`, `positions` (B, T),
  `last` (B,), the index of each row's last token, `labels` and `weights` (B,).

  numbers: whether labels are numbers and not classes.
  """

  architecture: Any
  head: Head
  numbers: bool

  def init_head(self, rng, rows: int):
    """The head's parameters, boxed; `rows` is any number that the mesh divides."""
    model = self.architecture.model
    s_B1D = jnp.zeros((rows, 1, model.width), jnp.float32)
    ctx = kinds.Ctx(positions_BT=jnp.zeros((rows, 1), jnp.int32))
    return self.head.init(rng, s_B1D, ctx)['params']

  def apply(self, params, vars, batch, rng, train: bool):
    """(z (B, outputs), the model's own losses, vars after the pass)."""
    body, top = jax.random.split(rng) if train else (None, None)
    ctx = kinds.Ctx(batch['positions'], batch['segments'], train=train)
    outputs, new = self.architecture.apply(
      {'params': params['body'], **vars},
      batch['tokens'],
      ctx,
      mutable=[k for k in vars if k != 'backward'],
      rngs={'dropout': body} if train else {},
    )
    s_B1D = self.state(outputs.hidden_BTD, batch['last'])
    rngs = {'dropout': top} if train else {}
    z_B1C = self.head.apply({'params': params['head']}, s_B1D, ctx, rngs=rngs)
    own = sum(v for k, v in outputs.aux.items() if k.startswith('loss/'))
    return jnp.squeeze(z_B1C, 1), own, {**vars, **new}

  def state(self, hidden_BTD, last_B):
    """The state that is judged, (B, 1, D)."""
    if not looks_back(self.architecture.model):
      return hidden_BTD[:, :1]
    steps = jax.lax.broadcasted_iota(jnp.int32, hidden_BTD.shape[:2], 1)
    is_last_BT = shard.shard(steps, 'batch', 'time') == last_B[:, None]
    return jnp.sum(jnp.where(is_last_BT[..., None], hidden_BTD, 0), axis=1, keepdims=True)

  def loss(self, params, vars, batch, rng, train: bool = True) -> kinds.Loss:
    z_BC, own, vars = self.apply(params, vars, batch, rng, train)
    labels_B, w_B = batch['labels'], batch['weights']
    if self.numbers:
      loss_B = jnp.square(jnp.squeeze(z_BC, 1) - labels_B)
    else:
      hot_BC = jax.lax.broadcasted_iota(jnp.int32, z_BC.shape, 1) == labels_B[:, None]
      loss_B = -jnp.sum(jnp.where(hot_BC, jax.nn.log_softmax(z_BC), 0.0), axis=-1)
    weight = jnp.sum(w_B)
    total = jnp.sum(jnp.where(w_B > 0, loss_B, 0.0)) + own * weight
    return kinds.Loss(total, weight, {}, vars)


def lr_factors(model, facts, shapes, decay: float):
  """Factors of the learning rate, a tree like `facts`, over the model's parameters.

  decay^(N + 1 - l) for layer l = 1 ... N, decay^(N + 1) below the layers, 1 above them, times the
  parameterization's own factor. Weights that layers share have the rate of the last of them. Raises
  kinds.Unsupported where decay is not 1 and the layers are not found.
  """
  tops, offset = {}, 0  # exponent of each segment's layers, by name and place in its pattern
  for n, s in enumerate(model.segments):
    rounds = jnp.arange(s.repeats) if not s.shared else s.repeats - 1
    for i, name in enumerate(s.pattern):
      depth = offset + rounds * len(s.pattern) + i  # from 0
      tops[f'segment_{n}', f'{i}_{name}'] = model.depth - depth
    offset += s.repeats * len(s.pattern)

  def one(path, fact, leaf):
    keys = tuple(k.key for k in path)
    own = model.scheme.init.lr(fact, leaf.shape)
    if decay == 1 or keys[0] == 'final_norm':
      return own
    exponent = tops.get(keys[:2], model.depth + 1)
    if 'layers' in fact.names:
      lengths = [-1 if n == 'layers' else 1 for n in fact.names]
      exponent = jnp.reshape(exponent, lengths)
    return own * decay**exponent

  found = jax.tree_util.tree_leaves_with_path(facts, is_leaf=facts_lib.is_fact)
  missing = set(tops) - {tuple(k.key for k in path[:2]) for path, _ in found}
  if decay != 1 and missing:
    raise kinds.Unsupported(
      f'layer_decay={decay}: this architecture keeps its layers elsewhere than in '
      f'{"/".join(min(missing))}; 1 is expected'
    )
  return jax.tree_util.tree_map_with_path(one, facts, shapes, is_leaf=facts_lib.is_fact)

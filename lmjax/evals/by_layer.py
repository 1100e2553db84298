"""What each layer does to the stream, and what the model loses without it.

With x_{l-1} the input of layer l = 1 ... depth and x_l its output, over the tokens of a text:

  variance/l   mean over tokens of the variance of x_l over the width; variance/0 is that of x_0
  largest/l    the largest |x_l|
  angle/l      mean over tokens of arccos(<x_{l-1}, x_l> / (|x_{l-1}| |x_l|)) / pi
  removal/l    by how many nats a token the loss rises where layer l is left out, x_l = x_{l-1}, and
               all others stay what they are; its standard error is that of rows, paired
  gradient/l   the norm of the gradient of the mean loss for the layer's parameters; not given where
               layers share theirs

Li et al., 2024 (Mix-LN, arXiv:2412.13795) and Sun et al., 2025 (LayerNorm Scaling,
arXiv:2502.05795) judge placements of norms by these; the angle is that of Gromov et al., 2024
(arXiv:2403.17887). Rows are as long as those the model was trained on, disjoint, and their first
token is not scored.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lmjax import kinds
from lmjax.evals import _finetune
from lmjax.evals import _paths
from lmjax.evals import _scores
from lmjax.nn import embedding
from lmjax.parallel import shard
from lmjax.registry import register

BATCH_TOKENS = 1024  # whose logits exist at a time, and one row at least
MEASURES = ('variance', 'largest', 'angle', 'removal', 'gradient')


@register('eval')
@dataclasses.dataclass(frozen=True)
class ByLayer:
  """Five numbers of every layer, on the first `tokens` tokens of the text file `path`."""

  path: str
  tokens: int = 8192

  @staticmethod
  def check(path, tokens):
    if tokens < 1:
      raise ValueError(f'tokens={tokens}: a positive number of tokens is expected')

  def __post_init__(self):
    _paths.find(self.path)  # a missing file is told before any work

  def suits(self, lm: kinds.LM):
    _scores.likelihoods(lm)
    if not all(hasattr(lm, k) for k in ('architecture', 'variables', 'length')):
      raise kinds.Unsupported('by_layer looks into the model, and this one gives no parameters')
    if lm.architecture.model.stacks:
      names = ', '.join(n for n, _ in lm.architecture.model.stacks)
      raise kinds.Unsupported(
        f'by_layer: a model of one stack is expected, this one also has {names}'
      )

  def run(self, lm: kinds.LM) -> list[kinds.Score]:
    """Scores by measure and layer. Raises ValueError naming a text that is too short."""
    self.suits(lm)
    path = _paths.find(self.path)
    ids = np.asarray(lm.tokenizer.encode(_paths.text(path)), np.int32)[: self.tokens + 1]
    rows_RT = rows(ids, lm.length, path)
    found = Probe(lm.architecture, lm.variables).measure(rows_RT)
    how = dict(file=_paths.stem(path), tokens=rows_RT.shape[0] * (rows_RT.shape[1] - 1))
    digits = len(str(lm.architecture.model.depth))
    return [
      kinds.Score(_scores.label(f'{name}/{layer:0{digits}d}', lm, **how), *value)
      for name in MEASURES
      for layer, value in sorted(found[name].items())
    ]


def rows(ids: np.ndarray, length: int, path) -> np.ndarray:
  """(R, T + 1): disjoint rows of T predicted tokens, T = length or what there is; the rest is left
  out.
  """
  steps = min(length, len(ids) - 1)
  if steps < 1:
    raise ValueError(f'{path} has {len(ids)} tokens, at least 2 are expected')
  starts = range(0, len(ids) - steps, steps)
  return np.stack([ids[i : i + steps + 1] for i in starts])


@dataclasses.dataclass(frozen=True)
class Probe:
  """Runs a model with one layer watched and left out, one program for all layers."""

  architecture: object
  variables: dict

  def measure(self, rows_RT: np.ndarray) -> dict[str, dict[int, tuple[float, float | None]]]:
    """(value, standard error) by measure and layer, layers counted from 1."""
    model = self.architecture.model
    whole, without, seen, slope = [], [[] for _ in range(model.depth)], [], None
    forward, backward = jax.jit(self._forward), jax.jit(jax.grad(self._loss))
    for batch, n in self._batches(rows_RT):
      whole.append(np.asarray(forward(batch, -1)[0], np.float64)[:n])
      for i in range(model.depth):
        nats_R, stats = jax.device_get(forward(batch, i))
        self._once(i, stats)
        without[i].append(np.float64(nats_R)[:n])
        seen.append((i, n, stats))
      new = backward(self.variables['params'], batch)
      slope = new if slope is None else jax.tree.map(jnp.add, slope, new)
    steps = rows_RT.shape[1] - 1
    out = {name: {} for name in MEASURES}
    for i in range(model.depth):
      sizes, stats = zip(*[(n, s) for j, n, s in seen if j == i])
      mean = {k: np.average([s[k] for s in stats], weights=sizes) for k in stats[0]}
      if i == 0:
        out['variance'][0] = float(mean['entered']), None
      out['variance'][i + 1] = float(mean['variance']), None
      out['largest'][i + 1] = float(max(s['largest'] for s in stats)), None
      out['angle'][i + 1] = float(mean['angle']), None
      rise_R = (np.concatenate(without[i]) - np.concatenate(whole)) / steps
      out['removal'][i + 1] = _scores.mean(rise_R)
    norms = gradients(model, jax.device_get(slope), rows_RT.shape[0] * steps)
    out['gradient'] = {layer: (norm, None) for layer, norm in norms.items()}
    return out

  def _batches(self, rows_RT):
    """(batch, its rows): the last one is filled up with rows of padding."""
    size = _finetune.rounded(min(max(1, BATCH_TOKENS // rows_RT.shape[1]), len(rows_RT)))
    for start in range(0, len(rows_RT), size):
      tokens = np.zeros((size, rows_RT.shape[1]), np.int32)
      n = len(rows_RT[start : start + size])
      tokens[:n] = rows_RT[start : start + size]
      segments = np.zeros_like(tokens)
      segments[:n] = 1
      places = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
      yield _finetune.placed(dict(tokens=tokens, segments=segments, positions=places)), n

  def _forward(self, batch, which):
    """(nats of each row, what `watched` saw of layer `which`) with that layer left out."""
    layers = {type(part(parent=None)) for _, part in self.architecture.model.blocks}
    with nn.intercept_methods(functools.partial(watched, layers, which)):
      out, nats_R = self._run(self.variables['params'], batch)
    keys = ('entered', 'variance', 'largest', 'angle', 'times')
    return nats_R, {k: out.aux.get(f'loss/layers/{k}', jnp.zeros(())) for k in keys}

  def _loss(self, params, batch):
    return jnp.sum(self._run(params, batch)[1])

  def _run(self, params, batch):
    ctx = kinds.Ctx(batch['positions'][:, :-1], batch['segments'][:, :-1])
    out = self.architecture.apply(
      {**self.variables, 'params': params}, batch['tokens'][:, :-1], ctx
    )
    logp_BTV = jax.nn.log_softmax(embedding.logits(out))
    names = jax.lax.broadcasted_iota(jnp.int32, logp_BTV.shape, 2)
    hot_BTV = shard.shard(names, 'batch', 'time', 'vocab') == batch['tokens'][:, 1:, None]
    nats_BT = -jnp.sum(jnp.where(hot_BTV, logp_BTV, 0), axis=-1)
    return out, jnp.sum(jnp.where(batch['segments'][:, 1:] > 0, nats_BT, 0), axis=1)

  def _once(self, i: int, stats):
    if stats['times'] != 1:
      raise kinds.Unsupported(
        f'by_layer: {type(self.architecture).__name__} runs layer {i + 1} {stats["times"]:g} times '
        'in a pass; an architecture that runs each once is expected'
      )


def watched(layers: set[type], which, call, args, kwargs, context):
  """An interceptor (`flax.linen.intercept_methods`): layer `which`, counted from 0, reports what it
  does and then has no effect. Its numbers go where the layers' own losses go, since those are
  summed over the stack, to which the other layers add 0.
  """
  if context.method_name != '__call__' or type(context.module) not in layers:
    return call(*args, **kwargs)
  before, ctx = args[0], args[1]
  after, cache, aux = call(*args, **kwargs)
  here = ctx.depth == which
  x, y = (context.module.leave(c).astype(jnp.float32) for c in (before, after))
  found = {
    f'loss/layers/{k}': jnp.where(here, v, 0.0) for k, v in compared(x, y, ctx.segments_BT).items()
  }
  kept = jax.tree.map(lambda a, b: jnp.where(here, a, b), before, after)
  return kept, cache, {**aux, **found}


def compared(x_BTD, y_BTD, segments_BT) -> dict:
  """What changed between the input and the output of a layer."""
  real_BT = segments_BT > 0
  mean = lambda v_BT: jnp.sum(jnp.where(real_BT, v_BT, 0)) / jnp.sum(real_BT)
  norm = lambda v: jnp.sqrt(jnp.sum(jnp.square(v), axis=-1, keepdims=True))
  u_BTD, v_BTD = (a / jnp.maximum(norm(a), 1e-30) for a in (x_BTD, y_BTD))
  # arccos of a cosine near 1 would lose half of the digits.
  angle_BT1 = 2 * jnp.arctan2(norm(u_BTD - v_BTD), norm(u_BTD + v_BTD))
  return dict(
    entered=mean(jnp.var(x_BTD, axis=-1)),
    variance=mean(jnp.var(y_BTD, axis=-1)),
    largest=jnp.max(jnp.where(real_BT[..., None], jnp.abs(y_BTD), 0)),
    angle=mean(angle_BT1[..., 0] / math.pi),
    times=jnp.ones(()),
  )


def gradients(model, slope, tokens: int) -> dict[int, float]:
  """The norm of the gradient of each layer with weights of its own, from that of the sum over
  `tokens`.
  """
  out, offset = {}, 0
  for n, s in enumerate(model.segments):
    for i, name in enumerate(s.pattern):
      leaves = jax.tree.leaves(slope[f'segment_{n}'][f'{i}_{name}'])
      for r in range(0 if s.shared else s.repeats):
        square = sum(float(np.sum(np.square(np.float64(x[r])))) for x in leaves)
        out[offset + r * len(s.pattern) + i + 1] = math.sqrt(square) / tokens
    offset += s.repeats * len(s.pattern)
  return out

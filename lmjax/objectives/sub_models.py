"""Training by sub-models: each micro-batch trains the top of the model's first layers.

  k uniform among 1 ... L / every;   the loss is the inner objective's of the first k * every layers
  under the model's own head (final norm and unembedding)

Of these layers the last `every` get gradients, and the head; the layers below, the embedding and
positions are constants, and the backward pass ends where they do. A tied table is trained as the
head, not as the embedding. Where nothing is trained (validation, evals) the model is whole, all L
layers of it.

The first stage of bert2BERT (Chen et al., 2021, arXiv:2110.07143, section 3.3: 5 epochs with every
= 3 of 12 layers), for a model that has been grown; the second is a run of its own with the inner
objective, that begins from the first one's directory.

A gradient of 0 is not the same as no update: momentum goes on for a few steps and decay for all,
also in what the draw leaves out; the paper's optimizer passes over them. Each of the L / every
programs is compiled, and one is run. k is drawn for each micro-batch: their number is a setting of
the method. FLOPs are counted as if all layers ran.

Needs `transformer` with one segment of layers whose weights are their own.
"""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lmjax import kinds
from lmjax import registry
from lmjax import specs
from lmjax.registry import Part, register

SEGMENT = 'segment_{}'


@register(
  'objective',
  couples=lambda args: 'global' if args['inner'].fact('couples') == 'global' else 'micro',
  lookahead=lambda args: args['inner'].fact('lookahead'),
  causal=lambda args: args['inner'].fact('causal'),
  reads=lambda args: args['inner'].fact('reads'),
)
@dataclasses.dataclass(frozen=True)
class SubModels:
  """The inner objective of the first layers, as many as the draw says."""

  model: Any
  tokenizer: Any
  inner: Annotated[Part, 'objective'] = 'clm()'
  every: int = 3

  @staticmethod
  def check(inner, every):
    if every < 1:
      raise ValueError(f'every={every}: a positive number of layers is expected')
    if hasattr(inner.obj, 'variables'):
      raise ValueError(f'inner={inner}: an objective of one network is expected, such as clm()')

  def __post_init__(self):
    m = self.model.model
    if type(self.model) is not registry.get('architecture', 'transformer').obj:
      raise kinds.Unsupported(
        'objective sub_models runs the first layers of one stack: '
        'config.model.architecture=transformer() is expected'
      )
    if len(m.segments) != 1 or m.segments[0].shared:
      raise kinds.Unsupported(
        'objective sub_models: config.model.stack has several segments or shared weights; one '
        'segment of layers with weights of their own is expected'
      )
    (pattern, repeats, _) = dataclasses.astuple(m.segments[0])
    if m.depth % self.every or self.every % len(pattern):
      raise ValueError(
        f'every={self.every} does not divide the {m.depth} layers of the model'
        + (f' in groups of {len(pattern)}' if len(pattern) > 1 else '')
      )
    step = self.every // len(pattern)
    object.__setattr__(self, 'within', self.inner())
    found = [self._sub(pattern, n, step) for n in range(0, repeats, step)]
    object.__setattr__(self, 'subs', found)

  def _sub(self, pattern, below: int, step: int):
    """(the inner objective of `below` and `step` more groups of layers, below, step)."""
    m = self.model.model
    sizes = [n for n in (below, step) if n]
    sub = dataclasses.replace(
      m,
      segments=tuple(specs.Segment(pattern, n) for n in sizes),
      position=dataclasses.replace(m.position, obj=Constant(m.position.obj)),
    )
    context = {**dict(self.inner.context), 'model': self.model.clone(model=sub)}
    inner = dataclasses.replace(self.inner, context=tuple(context.items()))
    return inner(), below, step

  def init(self, rng, batch):
    variables = self.within.init(rng, batch)
    others = sorted(k for k, v in variables.items() if k != 'params' and jax.tree.leaves(v))
    if others:
      raise kinds.Unsupported(
        f'objective sub_models: the model has variables beside its parameters ({others[0]}); parts '
        'without masks and running statistics are expected'
      )
    return variables

  def loss(self, params, vars, batch, rng, train: bool = True) -> kinds.Loss:
    choose, run = jax.random.split(rng)
    if not train:
      return self.within.loss(params, vars, batch, run, train)

    def branch(sub):
      objective, below, step = sub
      return lambda params: objective.loss(cut(params, below, step), vars, batch, run, train)

    k = jax.random.randint(choose, (), 0, len(self.subs))
    out = jax.lax.switch(k, [branch(sub) for sub in self.subs], params)
    layers = ((k + 1) * self.every).astype(jnp.float32)
    return out._replace(metrics={**out.metrics, 'layers': (layers * out.weight, out.weight)})


@dataclasses.dataclass(frozen=True)
class Constant:
  """Builds a position part behind which the embedding is a constant."""

  make: Any

  def __call__(self, **how):
    position = self.make(**how)
    return lambda x_BTD, ctx: jax.lax.stop_gradient(position(x_BTD, ctx))


def cut(params: dict, below: int, step: int) -> dict:
  """The parameters of a sub-model: `below` groups of layers and the norm of the embedding as
  constants, then `step` groups that are trained.
  """
  out = {**params}
  stack = out.pop(SEGMENT.format(0))
  if below:
    out[SEGMENT.format(0)] = jax.lax.stop_gradient(jax.tree.map(lambda a: a[:below], stack))
  top = jax.tree.map(lambda a: a[below : below + step], stack)
  out[SEGMENT.format(1 if below else 0)] = top
  if 'embed_norm' in out:
    out['embed_norm'] = jax.lax.stop_gradient(out['embed_norm'])
  return out

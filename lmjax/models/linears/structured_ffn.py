"""Matrices of feed-forward as products of structured factors; all others are full.

  low_rank       y = (x V) U                           V (in, rank), U (rank, out)
  block_dense    y = (x V_b) U                         V_b: `blocks` blocks (in/b, rank/b)
  block_shuffle  y = f^-1(f(x V_b) U_b) (Monarch)      both of blocks; f deals numbers out to blocks

and + b; `_structured_ffn.py` has the shapes. A matrix is one of feed-forward where an axis of its
inputs or outputs is named `mlp`, as the parts in `lmjax/models/ffn` name the hidden axis. There is
no nonlinearity between the factors. The surgery `merge_structured` begins a run with `dense()` from
the matrices that they stand for (inference by one product), or one with guided=0 without guides.

Share of a full d -> 4d -> d: low_rank of rank d/2, block_dense of rank 2d/3 with 2 blocks and
block_shuffle with 2 blocks keep 62.5%; rank d/4, rank d/3 with 2 blocks, and 4 blocks keep 31.25%.
With in/b or out/b below b, block_shuffle does not reach every output from every input.

Wei et al., 2024 (arXiv:2406.16450). low_rank starts from the truncated singular value decomposition
of a Gaussian matrix (std 0.02), its singular values shared evenly; blocks, and U beside them, from
the nearest orthogonal matrices of Gaussian draws, whatever `model.init` says. Biases start at 0.

Self-guided training, `guided` > 0 (the paper's 0.5): a full matrix W, `guide`, starts as the
product of the factors and is trained with them,
  y = a x W + (1 - a) y_factors,   a = (1 + cos(pi t / (guided steps))) / 2 until it is 0,
so that the first step computes what the plain part does. `stochastic` saves FLOPs: a training pass
takes the mixture with probability a, else the factors alone (not scaled), drawn for each matrix and
layer. Once a is 0 nothing is multiplied with W; its parameters, gradients (0) and moments remain
until a run with guided=0 begins without them. Evaluations see the mixture.

t counts the updates made: `passes`, in the collection `vars`, counts training passes, of which
`micro_batches` make an update. A linear map is told neither the step nor whether it trains: it
knows a training pass by its stream of random numbers (`dropout`), and `steps` and `micro_batches`
must be those of the config. Refused steps do not count, nor do passes of an optimizer's own.

On a mesh, factors lie as in `low_rank`; blocks are whole where their inputs are contracted but for
the axes that a full matrix shards, and activations are gathered before they are cut into blocks.

Traps: a guided run costs more than its factors. W doubles parameters and moments. FLOPs are counted
on average over the run: with guided=0.5 half of the passes (stochastic: a quarter) multiply with W.
Compare at equal FLOPs, or say so. With a = 1 the factors
get no gradient. Matrix optimizers see blocks side by side, not each by itself.
"""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax import registry
from lmjax.models.linears import _structured_ffn
from lmjax.nn import params
from lmjax.parallel import facts
from lmjax.parallel import shard
from lmjax.parallel.facts import Fact
from lmjax.registry import register

HIDDEN = 'mlp'


@register('linear', agrees=lambda args: ('steps', 'micro_batches') if args['guided'] else ())
class StructuredFfn(nn.Module):
  """y = x through two structured factors (+ b), guided by a full matrix for a while."""

  ins: tuple
  outs: tuple
  role: str
  scheme: Any
  bias: bool
  kind: Literal['low_rank', 'block_dense', 'block_shuffle'] = 'low_rank'
  rank: int | None = None
  blocks: int | None = None
  guided: float = 0.0
  stochastic: bool = False
  steps: int = 0
  micro_batches: int = 1

  @staticmethod
  def check(kind, rank, blocks, guided, stochastic, steps, micro_batches):
    _sizes(kind, rank, blocks)
    if not 0 <= guided <= 1:
      raise ValueError(f'guided={guided}: a share of the steps, from 0 to 1, is expected')
    if guided and steps < 1:
      raise ValueError(f'steps={steps}: guided={guided} needs config.steps here')
    if not guided and (stochastic or steps):
      raise ValueError(f'stochastic={stochastic}, steps={steps}: they need guided above 0')
    if micro_batches < 1:
      raise ValueError(f'micro_batches={micro_batches}: a positive number is expected')

  @nn.compact
  def __call__(self, x):
    (in_names, in_sizes), (out_names, _) = zip(*self.ins), zip(*self.outs)
    assert x.shape[-len(in_sizes) :] == in_sizes, (x.shape, self.ins)
    if HIDDEN not in in_names + out_names:
      return self.full(x)
    form = self.form()
    values = First(form, name='first')()
    down, up = (self.factor(name, *how, values) for name, how in form.factors().items())
    plain = functools.partial(_structured_ffn.product, form, x, down, up)
    y = self.mixture(x, plain, values) if self.guided else plain()
    return params.biased(self, y)

  def full(self, x):
    """The full matrix, its parameters in this module."""
    linear = registry.make('linear', 'dense()')(
      ins=self.ins, outs=self.outs, role=self.role, scheme=self.scheme, bias=self.bias, name='full'
    )
    nn.share_scope(self, linear)
    return linear(x)

  def form(self) -> _structured_ffn.Form:
    """The structure of this matrix. Raises ValueError naming it."""
    where = '/'.join(self.path) or 'this one'
    if len(self.ins) != 1 or len(self.outs) != 1:
      raise ValueError(
        f'config.model.linear: structured_ffn takes matrices with one axis on each side, and '
        f'{where} has {len(self.ins)} and {len(self.outs)}'
      )
    form = _structured_ffn.Form(
      self.kind, self.ins[0], self.outs[0], self.role, self.rank, self.blocks
    )
    form.check(where)
    return form

  def factor(self, name: str, fact: Fact, shape: tuple, values: dict):
    """One factor as its use needs it on a mesh."""
    init = lambda _, shape, dtype: values.get(name, jnp.zeros(shape)).astype(dtype)
    value = self.param(name, facts.boxed(init, fact), shape, self.scheme.param_dtype)
    return shard.gather(value, fact.names)

  def mixture(self, x, plain, values: dict):
    """a x W + (1 - a) plain(), and one more pass counted where this is one of training."""
    names, shape = zip(*self.ins, *self.outs)
    fact = Fact(names, names[:1], self.role, self.guided / (2 if self.stochastic else 1))
    made = _structured_ffn.matrix(**values) if values else jnp.zeros(shape)
    start = facts.boxed(lambda _, shape, dtype: made.astype(dtype), fact)
    guide = self.param('guide', start, shape, self.scheme.param_dtype)
    passes = self.variable('vars', 'passes', lambda: jnp.zeros((), jnp.int32))
    a = share(passes.value // self.micro_batches, self.guided * self.steps)
    taken = a > 0
    if self.has_rng('dropout') and not self.is_initializing():
      if self.stochastic:
        taken &= jax.random.bernoulli(self.make_rng('dropout'), a)
      if self.is_mutable_collection('vars'):
        passes.value = passes.value + 1

    def both():
      wide = params.contract(x, shard.gather(guide, names), 1, params.act(names[1:]))
      return a.astype(x.dtype) * wide + (1 - a).astype(x.dtype) * plain()

    return jax.lax.cond(taken, both, plain)


class First(nn.Module):
  """First values of the factors; a module of its own, so that they are the same with a guide."""

  form: _structured_ffn.Form

  @nn.compact
  def __call__(self):
    made = lambda: _structured_ffn.first(self.form, self.make_rng('params'))
    return made() if self.is_initializing() else {}


def share(updates, until: float):
  """a, float32: a cosine from 1 before the first update to 0 from the `until`-th on."""
  falling = 0.5 * (1 + jnp.cos(jnp.pi * updates / until))
  return jnp.where(updates < until, falling, 0.0).astype(jnp.float32)


def merge(linear: registry.Part, variables: dict, facts: dict) -> dict:
  """The variables of the same model with `dense()`: each pair of factors, with its guide where that
  still counts, becomes the `kernel` it stands for, so that the function stays the same.

  Args:
    linear: the model's (`run.model.scheme.linear`). variables: collections, `params` among them.
    facts: of the parameters (`run.facts['params']`).
  """
  a = _guidance(linear, variables)

  def merged(own, fact):
    kernel = _structured_ffn.matrix
    for _ in fact['up'].axes()[0]:
      kernel = jax.vmap(kernel)
    made = kernel(own['down'], own['up'])
    if 'guide' in own:
      made = a * own['guide'] + (1 - a) * made
    return {k: v for k, v in own.items() if k not in ('down', 'up', 'guide')} | {'kernel': made}

  out = {**variables, 'params': _modules(variables['params'], facts, merged)}
  return _without(out, 'passes')


def drop(linear: registry.Part, variables: dict) -> dict:
  """The variables of a run with guided=0, as merge() takes them. Raises ValueError while the guide
  counts.
  """
  a = _guidance(linear, variables)
  if a > 0:
    raise ValueError(f'{linear}: the guide still has the weight {a:.3g}; 0 is expected')
  return _without(_without(variables, 'guide'), 'passes')


# What surgeries reach through the registry.
StructuredFfn.merge, StructuredFfn.drop = staticmethod(merge), staticmethod(drop)


def _guidance(linear: registry.Part, variables: dict) -> float:
  """a at the next pass: every matrix has counted the same passes."""
  args = dict(linear.args)
  if not args['guided']:
    return 0.0
  found = jax.tree_util.tree_leaves_with_path(variables['vars'])
  passes = [x for path, x in found if path[-1].key == 'passes']
  done = jnp.ravel(passes[0])[0] // args['micro_batches']
  return float(share(done, args['guided'] * args['steps']))


def _modules(tree: dict, facts: dict, change):
  """The tree with change(module, its facts) in the place of each module of two factors."""
  if not isinstance(tree, dict):
    return tree
  if {'down', 'up'} <= set(tree) and not isinstance(tree['down'], dict):
    return change(tree, facts)
  return {k: _modules(v, facts[k], change) for k, v in tree.items()}


def _without(tree: dict, name: str) -> dict:
  """The tree without the leaves of that name, and without what is empty then."""
  kept = {k: _without(v, name) if isinstance(v, dict) else v for k, v in tree.items() if k != name}
  return {k: v for k, v in kept.items() if not (isinstance(v, dict) and not v)}


def _sizes(kind: str, rank: int | None, blocks: int | None):
  """Raises ValueError where a kind lacks a size, is given one it has no use for, or one it cannot
  have.
  """
  for key, value, wanted in (
    ('rank', rank, kind != 'block_shuffle'),
    ('blocks', blocks, kind != 'low_rank'),
  ):
    if wanted and (value is None or value < 1):
      raise ValueError(f'{key}={value}: kind={kind!r} expects a positive number')
    if not wanted and value is not None:
      raise ValueError(f'{key}={value}: kind={kind!r} has no use for it; None is expected')
  if kind == 'block_dense' and rank % blocks:
    raise ValueError(f'rank={rank} does not divide by blocks={blocks}')

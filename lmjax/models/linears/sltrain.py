"""A matrix kept as two thin factors and a few entries: y = x W (+ b), W = (alpha / rank) A B + S.

`down` is A with the axes ins + (rank,), `up` is B with (rank,) + outs. S is 0 but for floor(delta
in out) entries: `values`, trained, at the places `support`, flat indices into ins + outs (rows
first), sorted, int32. The support is drawn uniformly without replacement for each matrix and layer
when the model is initialized and never changes. It lies in the collection `vars`: in the state and
its checkpoints, seen by no optimizer, and the same on every host, since it is part of the one
initialization that all of them run. All rounds of a shared segment have the same support.

W is made for each product, in the dtype of x, and never kept: the backward pass makes it again.
With G = x^T dy,
  dA = (alpha / rank) G B^T,  dB = (alpha / rank) A^T G,  dvalues = G[support],  dx = dy W^T.
So the parameters and all that optimizers keep of them shrink to rank (in + out) + delta in out for
a matrix, and 4 bytes an entry of S come on top for the support. A product still costs what a full
matrix costs, and W and G exist, one matrix at a time, while it is computed.

Han et al., 2024 (SLTrain, arXiv:2406.02214), there for every matrix of attention and feed-forward:
delta 0.03; alpha 32, 16, 16, 8 and rank 128, 256, 256, 512 for 60M, 130M, 350M, 1B parameters;
Adam at 3e-3 without decay. A and the values start from U(-1/sqrt(in), 1/sqrt(in)) and B at 0,
whatever `model.init` says: the first map is the sparse matrix alone.

On a mesh the axis `rank` is whole and the factors lie as those of `low_rank`; values and support
are whole on every device. There S is made whole and then cut, and G is summed over the devices
before its entries are read, so that traffic is that of a full matrix.

Traps: `values` have the role `other`, since no matrix view of them exists: they do not decay with
matrices, are no matrix to `split`, and have the full rate under muP. W is made in every pass, so
that FLOPs are those of a full matrix, as `lmjax/flops.py` counts them. Both refactorings of A B
(`refactor`) and decay of factors are as in `low_rank`; `refactor` needs B to have left 0 in all
directions.
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.models.linears import _factors
from lmjax.nn import params
from lmjax.parallel import facts
from lmjax.parallel import shard
from lmjax.parallel.facts import Fact
from lmjax.registry import LARGEST, register

ZEROS = jax.nn.initializers.zeros
SORTED = dict(indices_are_sorted=True, unique_indices=True)


@register('linear')
class Sltrain(nn.Module):
  """y = x ((alpha / rank) A B + S) (+ b)."""

  ins: tuple
  outs: tuple
  role: str
  scheme: Any
  bias: bool
  rank: int
  delta: float = 0.03
  alpha: float = 32.0

  @staticmethod
  def check(rank, delta, alpha):
    if rank < 1:
      raise ValueError(f'rank={rank}: a positive number is expected')
    if not 0 < delta <= 1:
      raise ValueError(f'delta={delta}: a share above 0 and at most 1 is expected')
    if not 0 < alpha < math.inf:
      raise ValueError(f'alpha={alpha}: a positive number is expected')

  @nn.compact
  def __call__(self, x):
    in_names, in_sizes = zip(*self.ins)
    out_names, out_sizes = zip(*self.outs)
    assert x.shape[-len(in_sizes) :] == in_sizes, (x.shape, self.ins)
    fan_in, fan_out = math.prod(in_sizes), math.prod(out_sizes)
    count = self.entries(fan_in, fan_out)
    start = _factors.uniform(fan_in)
    names = (*in_names, 'rank'), ('rank', *out_names)
    made = fan_out / self.rank  # the whole matrix meets each token, its factors do not
    thin = Fact(names[0], in_names, self.role, made), Fact(names[1], ('rank',), self.role, 0.0)
    down = self.trained('down', (*in_sizes, self.rank), thin[0], start)
    up = self.trained('up', (self.rank, *out_sizes), thin[1], ZEROS)
    values = self.trained('values', (count,), Fact((None,), (), 'other'), start)
    draw = lambda: drawn(self.make_rng('params'), fan_in * fan_out, count)
    places = self.variable('vars', 'support', draw).value
    form = Form(in_names, out_names, self.alpha / self.rank)
    y = product(form, x, down, up, values, places)
    return params.biased(self, y)

  def trained(self, name: str, shape: tuple, fact: Fact, init):
    """A parameter as its use needs it on a mesh."""
    value = self.param(name, facts.boxed(init, fact), shape, self.scheme.param_dtype)
    return shard.gather(value, fact.names)

  def entries(self, fan_in: int, fan_out: int) -> int:
    """Entries of S. Raises ValueError, naming the matrix, where factors or S are no use."""
    where, size = '/'.join(self.path) or 'this one', fan_in * fan_out
    _factors.refuse_whole(self.path, 'sltrain', self.rank, fan_in, fan_out)
    if size > LARGEST[int]:
      raise ValueError(
        f'config.model.linear: sltrain counts entries in 32 bits, and {where} has {size}'
      )
    count = math.floor(self.delta * size)
    if not count:
      raise ValueError(
        f'config.model.linear: sltrain.delta={self.delta} is not accepted: a share that leaves '
        f'every matrix an entry is expected, and {where} is {fan_in} x {fan_out}'
      )
    return count


class Form(NamedTuple):
  """What is static of a product: axis names of W, and the factor of A B."""

  ins: tuple
  outs: tuple
  scale: float


def drawn(key, size: int, count: int):
  """`count` different places out of `size`, sorted, each set of them as likely as any other."""
  return jnp.sort(jax.random.permutation(key, size)[:count]).astype(jnp.int32)


def matrix(form: Form, dtype, down, up, values, support):
  """W, made in `dtype`."""
  down, up, values = (a.astype(dtype) for a in (down, up, values))
  low = form.scale * jnp.tensordot(down, up, axes=1)
  if shard.mesh().empty:
    return low.reshape(-1).at[support].add(values, **SORTED).reshape(low.shape)
  whole = jnp.zeros(low.size, dtype).at[support].set(values, **SORTED)
  names = form.ins + form.outs
  return shard.gather(low, names) + shard.gather(whole.reshape(low.shape), names)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(form: Form, x, down, up, values, support):
  """x W, without W among what the backward pass keeps."""

  def run(x, *parts):
    w = matrix(form, x.dtype, *parts)
    return params.contract(x, w, len(form.ins), params.act(form.outs))

  return shard.automatic(run, _place(form, x))(x, down, up, values, support)


def _forward(form, *args):
  return product(form, *args), args


def _backward(form, args, dy):
  *floats, support = args

  def run(x, down, up, values, support, dy):
    n, w = len(form.ins), matrix(form, x.dtype, down, up, values, support)
    multiply = lambda x, w: params.contract(x, w, n, params.act(form.outs))
    dx, g = jax.vjp(multiply, x, w)[1](dy)
    outs = tuple(range(n, g.ndim)), tuple(range(1, up.ndim))
    to_down = form.scale * jnp.tensordot(g, up.astype(g.dtype), outs)
    to_up = form.scale * jnp.tensordot(down.astype(g.dtype), g, (tuple(range(n)),) * 2)
    entries = shard.shard(g, *[None] * g.ndim).reshape(-1)[support]
    found = zip((to_down, to_up, entries), (down, up, values))
    return dx, *(a.astype(b.dtype) for a, b in found)

  places = [jax.typeof(a).sharding.spec for a in floats] if shard.is_explicit() else ()
  return *shard.automatic(run, tuple(places))(*floats, support, dy), None


product.defvjp(_forward, _backward)


def _place(form: Form, x):
  """How x W lies on an explicit mesh: as other products do."""
  if not shard.is_explicit():
    return None
  return shard.spec(
    shard.product_axes(x.ndim - len(form.ins), params.act(form.outs)), gathered=True
  )

"""8-bit states: what the inner optimizer remembers of each parameter is kept in bytes.

  each step:  state = decode(codes, scales)      inner's step in float32
              scales, codes = encode(new state)  nearest of 256 numbers, block by block
  encode: per block of `block` elements, scale = max |x|; code = the nearest to x / scale
  numbers: dynamic (tree) type, signed where the block holds negative values, else unsigned

Dettmers et al., 2021 (arXiv:2110.02861): `eight_bit(inner=adam())`, `eight_bit(inner=lion())`,
`eight_bit(inner=sgd(momentum=0.9))`, with the rates of 32 bits. block = 2048 is the paper's; the
library that came of it uses 256 now: an outlier coarsens an eighth as many neighbours, for 0.027
bytes a parameter. The numbers, and how stacks and axes fall into blocks: `_blocks.py`.

Kept in 32 bits, as in the paper: tensors below `min_size` elements (of one layer, a stack is no
tensor) and embeddings, here tables of tokens and of positions; so is all that has not the shape of
its parameter. Unlike the paper, the map follows the signs in a block, so that no optimizer need be
known: Adam's v is always unsigned, its m practically always signed. And in an unsigned block what
is above 0 stays above 0: else a small v became 0 while m did not, and the update m / eps.

State: a byte an element of a moment and 4 bytes a block: 2.004 bytes a parameter for Adam instead
of 8. Between steps no copy in float32 exists. Codes lie like their parameter on a mesh; scales are
whole everywhere. Traps: -1 is no number of the signed map: a block whose largest size is negative
gives it back with 0.7 % less; linear 8-bit numbers look better by mean absolute error and fail,
since Adam divides by small ones.
"""

import math
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec as P
import jax.numpy as jnp
import optax

from lmjax.kernels.blockwise_update import blockwise_update
from lmjax.optim import _base, _blocks, _groups, _nest, _place, _tensors
from lmjax.registry import register


class State(NamedTuple):
  """codes: inner's state, uint8 where it is quantized. scales: float32 there, else None."""

  codes: Any
  scales: Any


def _needs(args: dict):
  return _groups.needs(args['inner'])


@register('optim', needs=_needs)
def eight_bit(
  inner: _nest.Inner = 'adam()', block: int = 2048, min_size: int = 4096, *, facts
) -> optax.GradientTransformationExtraArgs:
  """`inner` with its state in 8 bits; ValueError for block or min_size below 1, an inner part that
  owns its learning rate and, when parameters come, one that keeps nothing shaped like them.
  """
  _base.require(block >= 1, 'eight_bit.block', block, 'a number of at least 1')
  _base.require(min_size >= 1, 'eight_bit.min_size', min_size, 'a number of at least 1')
  _nest.check('eight_bit.inner', inner)
  for part in _groups.flat(inner):
    wanted = f'a part that keeps moments alone; {part.name}(inner=eight_bit(...)) may do'
    _base.require(part.fact('moments'), 'eight_bit.inner', f'{part.name}()', wanted)
  tx = _groups.build(inner)

  def blocks(params):
    """Paths of the parameters whose state is quantized -> (fact, blocks)."""
    out = {}

    def one(path, x, fact):
      if fact.role not in ('embed', 'position') and math.prod(fact.fans(x.shape)) >= min_size:
        out[path] = fact, _blocks.Blocks(fact, x.shape, block)

    facts_of = _tensors.each(lambda fact, p: fact, facts, params)
    jax.tree_util.tree_map_with_path(one, params, facts_of)
    return out

  def init(params):
    state = pack(tx.init(params), known := blocks(params))
    if known and not jax.tree.leaves(state.scales):
      wanted = 'an optimizer that keeps something of the shape of the parameters'
      _base.require(False, 'eight_bit.inner', str(inner), wanted)
    return state

  def update(updates, state, params=None, **extra):
    known = blocks(updates)
    step = lambda updates, state: tx.update(updates, state, params, **extra)

    def whole():
      out, new = step(updates, unpack(state, known))
      return out, pack(new, known)

    laid_out = {path: b for path, (_, b) in known.items()}
    out, new = blockwise_update(whole, step, updates, *state, laid_out, _blocks)
    return out, State(*new)

  return _base.in_float32(optax.GradientTransformationExtraArgs(init, update))


def pack(state, known) -> State:
  """The state, what has its parameter's shape and is float32 in bytes."""

  def one(path, x):
    owner = _nest.owner(path, known)
    if owner is None or x.shape != owner[1].shape or x.dtype != jnp.float32:
      return x, None
    fact, blocks = owner
    scales = blocks.scales(x)
    codes = _blocks.encode(x, blocks.spread(scales))
    return _place.as_parameter(codes, fact), _place.everywhere(scales)

  def both(state):
    pairs = jax.tree_util.tree_map_with_path(one, state)
    return State(_nest.pick(state, pairs, 0), _nest.pick(state, pairs, 1))

  return _place.call(both, (state,), lambda specs: State(specs, P()))


def unpack(state: State, known):
  """Inner's state in float32."""

  def one(path, codes, scales):
    if scales is None:
      return codes
    fact, blocks = _nest.owner(path, known)
    return _place.as_parameter(_blocks.decode(codes, blocks.spread(scales)), fact)

  def both(codes, scales):
    return jax.tree_util.tree_map_with_path(one, codes, scales)

  return _place.call(both, state, lambda codes, _: codes)

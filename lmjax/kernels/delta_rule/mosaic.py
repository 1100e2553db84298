"""Pallas kernels for TPUs (Mosaic): a chunk of some heads comes to the TPU's own memory, where the
memory S stays from a row's first chunk to its last, and what is read leaves.

  A = stril(b K K^T),   D = (I + A)^-1 b (V - K S0),   O = Q S0 + tril(Q K^T) D,   S1 = S0 + K^T D

This is `chunked` with W S0 not taken apart, so that one product by the inverse is made and not two.
The inverse is made of blocks, in products alone: with M that of the diagonal blocks of n tokens and
A' what is left of A in blocks of 2 n, that of these is M - M A' M. Unlike products of powers of A
this is substitution by blocks, and loses no digits where keys are alike; it is made in float32.

Backward nothing but the inputs is kept, see `mosaic_backward`.
"""

import jax
import jax.numpy as jnp

from lmjax.kernels.attention import pieces
from lmjax.kernels.delta_rule import chunked
from lmjax.parallel import shard

CHUNK = 64  # a power of 2
HEADS = (16, 8)  # of a block, where they divide those there are
MOST = 16  # heads of a block, where none of these does
LARGEST = 256  # size of a head


def refuses(*, platform, q, v, twice) -> str:
  if platform != 'tpu':
    return f'mosaic runs on TPUs, this is for a {platform}'
  if twice:
    return 'mosaic has no second derivative'
  if q.dtype not in (jnp.bfloat16, jnp.float32):
    return f'mosaic takes bfloat16 or float32, not {q.dtype}'
  if q.shape[1] < CHUNK:
    return f'mosaic takes rows of at least {CHUNK} tokens, these have {q.shape[1]}'
  sizes = q.shape[3], v.shape[3]
  if any(n % 8 or n > LARGEST for n in sizes):
    return f'mosaic takes heads of a multiple of 8 up to {LARGEST}, these have {sizes}'
  if why := pieces.refuses(q, q):
    return why
  if heads_of_a_block(heads := pieces.held(q, q)[0].shape[2]) is None:
    return f'mosaic takes up to {MOST} heads or a multiple of {HEADS[-1]}, a device has {heads}'
  return ''


def _cut() -> bool:
  """Whether the partitioner has charge of anything here."""
  return any(t != jax.sharding.AxisType.Manual for t in shard.mesh().axis_types)


def heads_of_a_block(heads: int) -> int | None:
  return next((n for n in HEADS if heads % n == 0), heads if heads <= MOST else None)


# of q, k, v, beta, starts and state
PLACES = *[chunked.STEPS] * 3, chunked.STEPS[:3], ('batch', None), chunked.MEMORY


@jax.custom_vjp
def delta_rule(q, k, v, beta, starts, state):
  """See the package."""
  from lmjax.kernels.delta_rule import mosaic_kernel  # half a second of imports

  f = _by_hand(mosaic_kernel.delta_rule, PLACES, (chunked.STEPS, chunked.MEMORY))
  return f(q, k, v, beta, starts, state)


def _by_hand(f, *places):
  """f of the rows and heads of each device; places: of its arguments, and of its results."""
  if not _cut():
    return f
  return shard.by_hand(f, *(tuple(map(shard.spec, names)) for names in places))


def _backward(given, slopes):
  from lmjax.kernels.delta_rule import mosaic_backward

  wide, memory = chunked.STEPS, chunked.MEMORY
  found = wide, wide, wide, wide[:3], memory
  f = _by_hand(mosaic_backward.slopes, (*PLACES, wide, memory), found)
  *sequences, ds = f(*given, *slopes)
  return *sequences, None, ds


delta_rule.defvjp(lambda *given: (delta_rule(*given), given), _backward)

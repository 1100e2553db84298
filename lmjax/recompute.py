"""Finding silent data corruption: a step computed twice must give the same bits.

Both runs are of one compiled program on the same values, so that a difference means a fault of the
machine, or a program that is not deterministic (on GPUs see `--deterministic`). Where the two
differ a third run decides. Memory: two more states. Time: that of the steps done again.

Digest of an array: sum over its elements of (2 i + 1) b_i modulo 2^32, b_i the bits of element i.
A flip of one bit always changes it, since no odd number times 2^k, k < 32, is 0 modulo 2^32.
"""

import time
from typing import Any, Callable

import jax
import jax.numpy as jnp

from lmjax import exits
from lmjax.parallel import offload


class Recompute:
  """Wraps a compiled step that donates its state. Counts `checked`, `found` and its `seconds`."""

  def __init__(self, step_fn: Callable):
    self._step_fn = step_fn
    self.checked, self.found, self.seconds = 0, 0, 0.0

  def __call__(self, state, batch, key) -> tuple[Any, dict, list[str]]:
    """(state, metrics, names of the arrays in which a run differed; empty where none did).

    Raises exits.Ended when no two of three runs agree.
    """
    spare = _copy(state)
    runs = [self._run(state, batch, key)]
    jax.block_until_ready(runs[0][2])
    began = time.monotonic()
    runs.append(self._run(_copy(spare), batch, key))
    self.checked += 1
    wrong = _different(runs[0], runs[1])
    if wrong:
      self.found += 1
      runs.append(self._run(spare, batch, key))
      good = next((r for r in runs[:2] if not _different(r, runs[2])), None)
      if good is None:
        raise exits.Ended(
          exits.BROKEN,
          'a step computed three times gave three results, so none can be trusted; they differ in '
          f'{", ".join(wrong[:5])}. Change the machine, or where its programs are not '
          'deterministic start with --deterministic or config.recompute_every=0',
        )
      runs[0] = good
    self.seconds += time.monotonic() - began
    return *runs[0][:2], wrong

  def _run(self, state, batch, key):
    state, metrics = self._step_fn(state, batch, key)
    return state, metrics, _digests((state, metrics))


def _copy(tree):
  return jax.tree.map(lambda x: jax.device_put(x, x.sharding, may_alias=False), tree)


@jax.jit
def _digests(tree) -> list[jax.Array]:
  near = offload.put(tree, jax.memory.Space.Device)  # some of it may lie on the host
  return [digest(x) for x in jax.tree.leaves(near)]


def digest(x) -> jax.Array:
  """uint32, see above. Exact whatever the order of the sum, hence on any mesh."""
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  bits = x.dtype.itemsize * 8
  words = jax.lax.bitcast_convert_type(x, jnp.uint32 if bits > 32 else f'uint{bits}')
  place = jnp.zeros(words.shape, jnp.uint32)
  for axis in range(words.ndim):
    place = place * words.shape[axis] + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
  return jnp.sum((2 * place + 1) * words.astype(jnp.uint32), dtype=jnp.uint32)


def _different(a, b) -> list[str]:
  same = [int(x) == int(y) for x, y in zip(*map(jax.device_get, (a[2], b[2])), strict=True)]
  return [name for name, ok in zip(_names(a[:2]), same, strict=True) if not ok]


def _names(tree) -> list[str]:
  keys = lambda path: [
    str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path
  ]
  return ['/'.join(keys(p)[1:]) for p, _ in jax.tree_util.tree_leaves_with_path(tree)]

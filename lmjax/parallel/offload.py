"""What waits in the host's pinned memory between steps, `config.offload`:

  ''           nothing
  'optimizer'  the optimizer's state, but for its scalars

It is a placement and nothing else: the state is sharded as before, each piece in the memory of its
device's host, and the update brings it in and sends it back. Losses, checkpoints and the
fingerprint do not change. On the CPU backend device and host are one memory, and nothing is saved.
"""

from typing import Any, Callable

import jax
import jax.numpy as jnp
import optax

from lmjax.registry import nearest
from lmjax.specs import brief

CHOICES = ('', 'optimizer')
HOST = 'pinned_host'


def check(text: str):
  """Raises ValueError for what is no choice."""
  if text not in CHOICES:
    raise ValueError(
      f"config.offload={brief(text)}: '' (nothing) or 'optimizer' is expected"
      f'{nearest(text, CHOICES)}'
    )


def leaves(shape: tuple[int, ...]) -> bool:
  """Whether an array leaves the device; scalars (counts, what is reported) are read there."""
  return len(shape) > 0


def placed(shardings: Any, shapes: Any) -> Any:
  """The shardings of an optimizer's state, in the host's memory."""
  host = lambda s, a: s.with_memory_kind(HOST) if leaves(a.shape) else s
  return jax.tree.map(host, shardings, shapes)


def put(tree: Any, space) -> Any:
  """Moves what is offloaded to a memory space, inside a traced function."""
  return jax.tree.map(lambda a: jax.device_put(a, space) if leaves(a.shape) else a, tree)


def update(advance: Callable, opt: Any, ok: Any) -> tuple[Any, Any]:
  """`advance(opt) -> (updates, opt)` with a state that comes from the host and goes back there;
  nothing moves where `ok` is false, nor where the updates are not finite.

  The state is brought in by a branch that waits for `ok`, and with it for the gradients. Without
  one, XLA fetches it at the start of the step, beside all activations, and nothing is saved.
  """
  opt = put(opt, jax.memory.Space.Host)  # where only shapes are asked for, it is not there yet
  near = lambda opt: put(opt, jax.memory.Space.Device)

  def kept(opt):
    shapes, _ = jax.eval_shape(lambda opt: advance(near(opt)), opt)
    return jax.tree.map(jnp.zeros_like, shapes), opt

  def moved(opt):
    old = near(opt)
    updates, new = advance(old)
    fine = jnp.isfinite(optax.tree.norm(jax.tree.map(lambda u: u.astype(jnp.float32), updates)))
    new = jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, old)
    return updates, put(new, jax.memory.Space.Host)

  return jax.lax.cond(ok, moved, kept, opt)

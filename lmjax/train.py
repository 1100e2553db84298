"""The training step: a pure function of (state, batch, key).

Micro-batches accumulate sums (loss, weight, gradients) and are divided once by the weight of all of
them, so the number of micro-batches does not change the result. A step whose loss, gradients or
updates are not finite, or that the guard refuses, changes nothing but the counters and the guard's
memory. No logging, hooks or method names belong here; what happens every N steps is a function of
its own, called by the loop.
"""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax


@struct.dataclass
class State:
  """Everything on the device that affects the future.

  step: int32, batches seen. skipped: int32, steps whose update was refused; streak: int32, how many
    of them are the last ones.
  params: trained; vars: collections that are not. opt: the optimizer's state, a dictionary by the
    names in its chain. guard: what the guard remembers.
  """

  step: jax.Array
  skipped: jax.Array
  streak: jax.Array
  params: Any
  vars: Any
  opt: Any
  guard: Any


def init_state(variables, tx, guard=None) -> State:
  """The first state from unboxed variables."""
  rest = {k: v for k, v in variables.items() if k != 'params'}
  zero = lambda: jnp.zeros((), jnp.int32)  # arrays of their own: the step donates each
  opt = tx.init(variables['params'])
  return State(
    zero(), zero(), zero(), variables['params'], rest, opt, {} if guard is None else guard.init()
  )


def accumulate(objective, params, vars, batch, rng, micro: int):
  """(loss sum, weight, metrics, vars, gradient of the loss sum) over `micro` equal slices of the
  batch.
  """

  def one(vars, batch, rng):
    def total(p):
      out = objective.loss(p, vars, batch, rng)
      return out.sum, out

    (_, out), grads = jax.value_and_grad(total, has_aux=True)(params)
    return out.sum, out.weight, out.metrics, out.vars, grads

  if micro == 1:
    return one(vars, batch, rng)
  # Every micro-th row makes a slice: so each device takes its part of it from the rows that it
  # holds.
  slices = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(-1, micro, *a.shape[1:]), 1, 0), batch)
  rngs = jax.random.split(rng, micro)
  first = jax.tree.map(lambda a: a[0], slices)
  shapes = jax.eval_shape(one, vars, first, rngs[0])
  sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], shapes[1], shapes[2]))
  zeros = (*sums, vars, jax.tree.map(jnp.zeros_like, params))

  def add(carry, xs):
    loss, weight, metrics, vars, grads = one(carry[3], *xs)
    summed = jax.tree.map(jnp.add, (*carry[:3], carry[4]), (loss, weight, metrics, grads))
    return (*summed[:3], vars, summed[3]), None

  return jax.lax.scan(add, zeros, (slices, rngs))[0]


def group_norms(grads, groups) -> dict[str, jax.Array]:
  """{'grad_norm/<group>': norm}, in float32; nothing without groups."""
  squares: dict[str, list] = {}
  for name, g in zip(jax.tree.leaves(groups), jax.tree.leaves(grads)):
    squares.setdefault(name, []).append(jnp.sum(jnp.square(g.astype(jnp.float32))))
  return {f'grad_norm/{k}': jnp.sqrt(sum(v)) for k, v in squares.items()}


def make_step(
  objective,
  tx,
  schedule,
  *,
  peak_lr: float,
  lr_factors,
  groups=None,
  micro: int = 1,
  sample_fn=None,
  guard=None,
):
  """Builds step(state, batch, key) -> (state, metrics).

  Args:
    objective: see `kinds.Objective`. tx: an Optax transformation whose updates are subtracted after
      scaling.
    schedule: step -> factor of peak_lr. lr_factors: tree like params, the parameterization's factor
      of each rate.
    groups: tree like params, the name under which a leaf's gradient norm is reported, or None.
    micro: micro-batches, each a slice of the batch's rows. sample_fn: see `kinds.Optim`. guard: see
      `kinds.Guard`.

  Metrics are (sum, weight) pairs; `lr`, norms and counters are scalars with weight 1.
  """

  def step(state: State, batch, key):
    rng = jax.random.fold_in(key, state.step)
    loss_rng, opt_rng = jax.random.split(rng)
    total, weight, metrics, vars, grads = accumulate(
      objective, state.params, state.vars, batch, loss_rng, micro
    )
    by = 1 / jnp.maximum(weight, 1.0)
    grads = jax.tree.map(lambda g: g * by.astype(g.dtype), grads)
    loss = total * by

    def obj_fn(params):
      return objective.loss(params, state.vars, batch, loss_rng).sum * by

    updates, opt = tx.update(
      grads, state.opt, state.params, value=loss, obj_fn=obj_fn, sample_fn=sample_fn, rng=opt_rng
    )
    lr = peak_lr * schedule(state.step)
    updates = jax.tree.map(lambda u, f: (-lr * f * u).astype(u.dtype), updates, lr_factors)
    params = optax.apply_updates(state.params, updates)

    grad_norm, update_norm = optax.tree.norm(grads), optax.tree.norm(updates)
    ok = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(update_norm) & (weight > 0)
    memory = state.guard
    if guard is not None:
      accepted, memory = guard.judge(memory, loss, grad_norm)
      ok &= accepted
    keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, old)
    new = State(
      state.step + 1,
      state.skipped + jnp.where(ok, 0, 1),
      jnp.where(ok, 0, state.streak + 1),
      keep(params, state.params),
      keep(vars, state.vars),
      keep(opt, state.opt),
      memory,
    )
    one = jnp.ones(())
    scalars = dict(
      lr=lr,
      grad_norm=grad_norm,
      update_norm=update_norm,
      applied=ok.astype(jnp.float32),
      skipped=new.skipped.astype(jnp.float32),
      streak=new.streak.astype(jnp.float32),
      param_norm=optax.tree.norm(state.params),
      **group_norms(grads, groups),
    )
    return new, dict(loss=(total, weight), **metrics, **{k: (v, one) for k, v in scalars.items()})

  return step

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

from lmjax.kernels import choice


# What profiles tell apart.
OPTIMIZER, NORMS = jax.named_scope('optimizer'), jax.named_scope('norms')


@struct.dataclass
class State:
  """Everything on the device that affects the future.

  step: int32, batches seen. skipped: int32, steps whose update was refused; streak: int32, how many
    of them are the last ones.
  params: trained; vars: collections that are not, see `kinds.Objective`. opt: the optimizer's
    state, a dictionary by the names in its chain. guard: what the guard remembers.
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
  batch. Variables pass from one slice to the next.
  """

  def one(vars, batch, rng):
    kept = {k: v for k, v in vars.items() if k == 'backward'}  # the backward pass renews it

    def total(p, kept):
      out = objective.loss(p, {**vars, **kept}, batch, rng)
      return out.sum, out

    (_, out), (grads, renewed) = jax.value_and_grad(total, (0, 1), has_aux=True)(params, kept)
    return out.sum, out.weight, out.metrics, {**out.vars, **renewed}, grads

  if micro == 1:
    return one(vars, batch, rng)
  pieces, rngs = slices(batch, micro), jax.random.split(rng, micro)
  first = jax.tree.map(lambda a: a[0], pieces)
  shapes = jax.eval_shape(one, vars, first, rngs[0])
  sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], shapes[1], shapes[2]))
  zeros = (*sums, vars, jax.tree.map(jnp.zeros_like, params))

  def add(carry, xs):
    loss, weight, metrics, vars, grads = one(carry[3], *xs)
    summed = jax.tree.map(jnp.add, (*carry[:3], carry[4]), (loss, weight, metrics, grads))
    return (*summed[:3], vars, summed[3]), None

  return jax.lax.scan(add, zeros, (pieces, rngs))[0]


def slices(batch, n: int):
  """The batch in n slices, stacked. Every n-th row makes a slice: so each device takes its part of
  it from the rows that it holds.
  """
  return jax.tree.map(lambda a: jnp.moveaxis(a.reshape(-1, n, *a.shape[1:]), 1, 0), batch)


def again(loss, batch, micro: int):
  """What optimizer parts may differentiate: fn(params, rng, one_in=1) -> (sum, weight) of
  `loss(params, rows, rng)` over one in `one_in` rows of the batch.

  No more rows than a micro-batch has are held at once: behind the first pass a piece is computed
  again when it is differentiated.
  """

  def fn(params, rng, one_in: int = 1):
    rows = jax.tree.leaves(batch)[0].shape[0]
    if rows % one_in:
      raise ValueError(f'config.optim: one_in={one_in} does not divide the {rows} rows of a batch')
    part = batch if one_in == 1 else jax.tree.map(lambda a: a[0], slices(batch, one_in))
    pieces = next(n for n in range(-(-micro // one_in), rows + 1) if rows // one_in % n == 0)
    if pieces == 1:
      return total(params, part, rng)
    body = jax.checkpoint(total)
    add = lambda sums, xs: (jax.tree.map(jnp.add, sums, body(params, *xs)), None)
    xs = slices(part, pieces), jax.random.split(rng, pieces)
    return jax.lax.scan(add, (jnp.zeros(()), jnp.zeros(())), xs)[0]

  def total(params, rows, rng):
    out = loss(params, rows, rng)
    return out.sum, out.weight

  return fn


def functions(objective, vars, batch, rng, micro: int) -> dict[str, Any]:
  """obj_fn and sample_fn of a batch, see `kinds.Optim`; None where no labels can be drawn."""
  real = again(lambda p, rows, rng: objective.loss(p, vars, rows, rng), batch, micro)

  def obj_fn(params, one_in: int = 1):
    with choice.using(twice=True):  # what asks for the loss itself may want its Hessian
      total, weight = real(params, rng, one_in)
    return total / jnp.maximum(weight, 1.0)

  sampled = lambda p, rows, rng: objective.sample(p, vars, rows, rng)
  draws = hasattr(objective, 'sample')
  return dict(obj_fn=obj_fn, sample_fn=again(sampled, batch, micro) if draws else None)


def reported(opt) -> dict[str, jax.Array]:
  """{'optim/<part>/<name>': value} of what optimizer parts keep in fields `metrics`."""
  has = lambda x: isinstance(getattr(x, 'metrics', None), dict)
  out = {}
  for path, node in jax.tree_util.tree_leaves_with_path(opt, is_leaf=has):
    if has(node):
      keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
      out |= {'/'.join(['optim', *keys, name]): v for name, v in node.metrics.items()}
  return out


@NORMS
def norm(tree) -> jax.Array:
  """The norm of all leaves together, in float32: squares leave float16 from 256 on."""
  return optax.tree.norm(jax.tree.map(lambda x: x.astype(jnp.float32), tree))


@NORMS
def group_norms(grads, groups) -> dict[str, jax.Array]:
  """{'grad_norm/<group>': norm}, in float32; nothing without groups."""
  squares: dict[str, list] = {}
  for name, g in zip(jax.tree.leaves(groups), jax.tree.leaves(grads)):
    squares.setdefault(name, []).append(jnp.sum(jnp.square(g.astype(jnp.float32))))
  return {f'grad_norm/{k}': jnp.sqrt(sum(v)) for k, v in squares.items()}


def judged(guard, memory, loss, grad_norm, weight, update_norm=None) -> tuple[Any, Any]:
  """(whether the step is finite and the guard accepts it, the guard's memory)."""
  ok = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
  ok = (ok if update_norm is None else ok & jnp.isfinite(update_norm)) & (weight > 0)
  if guard is None:
    return ok, memory
  accepted, memory = guard.judge(memory, loss, grad_norm)
  return ok & accepted, memory


def make_step(
  objective,
  tx,
  schedule,
  *,
  peak_lr: float,
  lr_factors,
  groups=None,
  micro: int = 1,
  gradient_at=None,
  retract=None,
  guard=None,
  far=None,
):
  """Builds step(state, batch, key) -> (state, metrics).

  Args:
    objective: see `kinds.Objective`. tx: an Optax transformation; updates are scaled, subtracted.
    schedule: step -> factor of peak_lr. lr_factors: tree like params, the parameterization's factor
      of each rate.
    groups: tree like params, the name under which a leaf's gradient norm is reported, or None.
    micro: micro-batches, each a slice of the batch's rows. gradient_at, retract: see
      `kinds.Optim`; functions of the whole optimizer's state, or None. guard: see `kinds.Guard`.
    far: runs the optimizer where its state is not on the device, see `parallel.offload`, or None.

  Metrics are (sum, weight) pairs; `lr`, norms and counters are scalars with weight 1.
  """

  def step(state: State, batch, key):
    rng = jax.random.fold_in(key, state.step)
    loss_rng, opt_rng = jax.random.split(rng)
    lr = peak_lr * schedule(state.step)

    @OPTIMIZER
    def moved(params, updates):
      updates = jax.tree.map(lambda u, f: (-lr * f * u).astype(u.dtype), updates, lr_factors)
      return optax.apply_updates(params, updates), updates

    at = state.params
    if gradient_at is not None:
      at, _ = moved(at, gradient_at(state.opt))
    total, weight, metrics, vars, grads = accumulate(
      objective, at, state.vars, batch, loss_rng, micro
    )
    by = 1 / jnp.maximum(weight, 1.0)
    grads = jax.tree.map(lambda g: g * by.astype(g.dtype), grads)
    loss = total * by

    fns = functions(objective, state.vars, batch, loss_rng, micro)
    advance = OPTIMIZER(lambda opt: tx.update(grads, opt, at, value=loss, rng=opt_rng, **fns))
    if far is None:
      updates, opt = advance(state.opt)
    else:  # a state that is not here is moved only where it is known to be kept
      updates, opt = far(
        advance, state.opt, judged(guard, state.guard, loss, norm(grads), weight)[0]
      )
    params, updates = moved(state.params, updates)
    if retract is not None:
      params = retract(opt, params)

    grad_norm, update_norm = norm(grads), norm(updates)
    ok, memory = judged(guard, state.guard, loss, grad_norm, weight, update_norm)
    keep = OPTIMIZER(lambda new, old: jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, old))
    new = State(
      state.step + 1,
      state.skipped + jnp.where(ok, 0, 1),
      jnp.where(ok, 0, state.streak + 1),
      keep(params, state.params),
      keep(vars, state.vars),
      keep(opt, state.opt) if far is None else opt,
      memory,
    )
    scalars = dict(lr=lr, grad_norm=grad_norm, update_norm=update_norm, applied=ok)
    scalars |= dict(skipped=new.skipped, streak=new.streak, param_norm=norm(state.params))
    scalars |= group_norms(grads, groups) | reported(new.opt)
    one = jnp.ones(())
    scalars = {k: (jnp.asarray(v, jnp.float32), one) for k, v in scalars.items()}
    return new, dict(loss=(total, weight), **metrics, **scalars)

  return step

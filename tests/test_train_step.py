"""The training step: micro-batches do not change it, a bad batch changes nothing but counters, the
rate is traced, noise follows the step.
"""

import functools

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import _table
from lmjax import build
from lmjax import kinds
from lmjax import registry
from lmjax import train
from lmjax.parallel import facts as facts_lib

T = 8
ROWS = np.array(
  [[1] * 9, [1] * 3 + [0] * 6, [1, 1, 2, 2, 2, 3, 3, 0, 0], [1] * 5 + [0] * 4]
)  # 8, 2, 4, 4 targets
KEY = jax.random.key(3)


@functools.cache
def objective(**how):
  model = _table.model(length=T, depth=1, **how)
  return registry.make('objective', 'clm(z_loss=0.01)', model=model, tokenizer=_table.Tokenizer())()


@functools.cache
def step_of(micro, dropout=0.0, tx='sgd'):
  made = TX[tx]
  factors = jax.tree.map(lambda _: 1.0, params())
  return jax.jit(
    train.make_step(
      objective(dropout=dropout),
      made,
      lambda s: 1.0 + s,
      peak_lr=0.1,
      lr_factors=factors,
      micro=micro,
    )
  )


TX = dict(
  sgd=optax.with_extra_args_support(optax.identity()),
  adam=optax.named_chain(
    ('clip', optax.with_extra_args_support(optax.clip_by_global_norm(1.0))),
    ('adam', optax.with_extra_args_support(optax.scale_by_adam(eps=1e-3))),
  ),
)


def params():
  return _table.model_params(length=T, depth=1)['params']


def state(tx='sgd'):
  return train.init_state({'params': params()}, TX[tx])


def rows(order=(0, 1, 2, 3)):
  return jax.tree.map(lambda a: a[np.array(order)], _table.batch(ROWS))


@pytest.mark.parametrize('tx', TX)
def test_micro_batches_do_not_change_the_step(tx):
  want, metrics = step_of(1, tx=tx)(state(tx), rows(), KEY)
  for micro in (2, 4) if tx == 'sgd' else (4,):
    got, m = step_of(micro, tx=tx)(state(tx), rows(), KEY)
    _table.trees_close(got.params, want.params, 1e-6)
    _table.trees_close(got.opt, want.opt, 2e-5)
    for name in ('loss', 'nll', 'accuracy', 'grad_norm'):
      np.testing.assert_allclose(m[name], metrics[name], rtol=1e-6, err_msg=name)


def test_a_mean_of_means_would_differ():
  """The guard of the test above: with these rows the usual mistake is far outside its tolerance."""
  loss = jax.jit(lambda b: objective().loss(params(), {}, b, KEY)[:2])
  whole, weight = loss(rows())
  means = [
    np.divide(*map(float, loss(jax.tree.map(lambda a, i=i: a[2 * i : 2 * i + 2], rows()))))
    for i in range(2)
  ]
  assert abs(np.mean(means) / float(whole / weight) - 1) > 1e-3
  assert float(weight) == 18


def test_the_step_is_gradient_descent_by_hand():
  b = rows()

  def mean(p):
    out = objective().loss(p, {}, b, KEY)
    return out.sum / out.weight

  value, grads = jax.jit(jax.value_and_grad(mean))(params())
  new, metrics = step_of(2)(state().replace(step=jnp.int32(4)), b, KEY)
  _table.trees_close(
    new.params, jax.tree.map(lambda p, g: p - 0.1 * 5.0 * g, params(), grads), 1e-6
  )
  assert int(new.step) == 5 and int(new.skipped) == 0
  assert float(metrics['loss'][0] / metrics['loss'][1]) == pytest.approx(float(value), rel=1e-6)
  for name, want in dict(
    lr=0.5,
    applied=1.0,
    grad_norm=optax.tree.norm(grads),
    param_norm=optax.tree.norm(params()),
    update_norm=0.5 * optax.tree.norm(grads),
  ).items():
    assert float(metrics[name][0]) == pytest.approx(float(want), rel=1e-5), name
    assert float(metrics[name][1]) == 1.0


def test_the_rate_is_traced_and_one_program_serves_all_steps():
  step = jax.jit(
    train.make_step(Toy(), TX['sgd'], lambda s: 1 / (1 + s), peak_lr=0.3, lr_factors={'w': 1.0}),
    donate_argnums=0,
  )
  now, rates = toy_state(), []
  for _ in range(4):
    old = now
    now, metrics = step(now, toy_batch(), KEY)
    rates.append(float(metrics['lr'][0]))
    assert all(a.is_deleted() for a in (old.params['w'], old.vars['stats']['mean']))
  np.testing.assert_allclose(rates, 0.3 / np.arange(1, 5), rtol=1e-6)
  assert step._cache_size() == 1 and int(now.step) == 4


def test_dropout_follows_the_step_and_the_key():
  step = step_of(2, dropout=0.5)

  def loss(at=0, key=KEY):
    return float(step(state().replace(step=jnp.int32(at)), rows(), key)[1]['loss'][0])

  assert loss() == loss()
  assert len({loss(0), loss(1), loss(2), loss(0, jax.random.key(4))}) == 4


def test_micro_batches_draw_their_own_dropout():
  """Two equal halves give the same loss twice only if both use one mask."""
  pair = jax.tree.map(lambda a: jnp.concatenate([a, a]), rows((0,)))
  one = jax.jit(lambda b, key: train.accumulate(objective(dropout=0.5), params(), {}, b, key, 2)[0])
  half = jax.jit(
    lambda b, key: train.accumulate(objective(dropout=0.5), params(), {}, b, key, 1)[0]
  )
  keys = jax.random.split(KEY, 2)
  assert float(one(pair, KEY)) == pytest.approx(
    sum(float(half(rows((0,)), k)) for k in keys), rel=1e-6
  )


# ---- a toy with variables, whose loss, gradient and update can be made not finite


@struct.dataclass
class Toy:
  """loss = sum_i w_i (x_i - w)^2 / ... with a running mean in vars; sqrt gives an infinite slope at
  0 with a finite loss.
  """

  def loss(self, params, vars, batch, rng, train=True):
    gap = batch['x'] - params['w']
    value = jnp.sum(batch['weight'] * (gap**2 + jnp.sqrt(batch['root'] * params['w'])))
    seen = vars['stats']['mean'] + batch['x'].mean()
    return kinds.Loss(value, batch['weight'].sum(), {}, {'stats': {'mean': seen}})


def toy_batch(x=2.0, weight=1.0, root=1.0):
  return dict(x=jnp.array([1.0, x]), weight=jnp.full(2, weight), root=jnp.full(2, root))


def momentum():
  """Keeps a trace, and turns its update into NaN where asked by the size of the gradient."""

  def init(params):
    return jax.tree.map(jnp.zeros_like, params)

  def update(g, state, params=None, **extra):
    state = jax.tree.map(lambda s, g: 0.9 * s + g, state, g)
    return jax.tree.map(lambda s: jnp.where(jnp.abs(s) > 1e3, jnp.nan, s), state), state

  return optax.named_chain(('trace', optax.GradientTransformationExtraArgs(init, update)))


def toy_state(w=1.0, tx=None):
  return train.init_state(
    {'params': {'w': jnp.float32(w)}, 'stats': {'mean': jnp.float32(0.5)}}, tx or TX['sgd']
  )


BAD = {
  'loss is NaN': (toy_batch(x=np.nan), 1.0),
  'loss is infinite': (toy_batch(x=np.inf), 1.0),
  'gradient is infinite': (toy_batch(root=1.0), 0.0),
  'update is NaN': (toy_batch(x=1e4), 1.0),
  'nothing to learn from': (toy_batch(weight=0.0), 1.0),
}


@pytest.mark.parametrize('micro', [1, 2])
@pytest.mark.parametrize('case', BAD)
def test_a_bad_batch_changes_only_the_counters(case, micro):
  tx = momentum()
  step = jax.jit(
    train.make_step(Toy(), tx, lambda s: 1.0, peak_lr=0.01, lr_factors={'w': 1.0}, micro=micro)
  )
  batch, w = BAD[case]
  before, _ = step(toy_state(1.0, tx), toy_batch(), KEY)
  assert int(before.skipped) == 0 and float(before.vars['stats']['mean']) > 0.5
  before = before.replace(params={'w': jnp.float32(w) if w == 0 else before.params['w']})
  after, metrics = step(before, batch, KEY)
  for part in ('params', 'opt', 'vars'):
    jax.tree.map(_table.same, getattr(after, part), getattr(before, part))
  assert (int(after.step), int(after.skipped)) == (2, 1) and float(metrics['applied'][0]) == 0
  again, metrics = step(after.replace(params={'w': jnp.float32(1.0)}), toy_batch(), KEY)
  assert (
    float(metrics['applied'][0]) == 1 and int(again.skipped) == 1 and float(again.params['w']) != 1
  )


def test_variables_pass_from_one_micro_batch_to_the_next():
  def after(micro):
    return train.accumulate(
      Toy(),
      {'w': jnp.float32(1.0)},
      {'stats': {'mean': jnp.float32(0.5)}},
      toy_batch(x=3.0),
      KEY,
      micro,
    )[3]

  assert float(after(1)['stats']['mean']) == 2.5 and float(after(2)['stats']['mean']) == 4.5


# ---- state of a backward pass


@jax.custom_vjp
def observed(w, slopes):
  """w. Backward: slopes <- slopes / 2 + dw."""
  return w


observed.defvjp(lambda w, slopes: (w, slopes), lambda slopes, dw: (dw, slopes / 2 + dw))


@struct.dataclass
class Observing(Toy):
  """Toy, whose backward pass keeps its own slopes."""

  def loss(self, params, vars, batch, rng, train=True):
    kept = vars['backward']
    out = super().loss({'w': observed(params['w'], kept['slopes'])}, vars, batch, rng, train)
    return out._replace(vars={**out.vars, 'backward': kept})


def observing_state(tx=None):
  state = toy_state(tx=tx)
  return state.replace(vars=state.vars | {'backward': {'slopes': jnp.float32(8.0)}})


def test_the_backward_pass_renews_its_own_state_in_every_micro_batch():
  params, batch = {'w': jnp.float32(1.0)}, toy_batch(x=3.0)
  slope = lambda x: -2 * (x - 1) + 0.5  # of (x - w)^2 + sqrt(w) at w = 1
  want = {1: 4 + slope(1.0) + slope(3.0), 2: (4 + slope(1.0)) / 2 + slope(3.0)}
  for micro in (1, 2):
    *_, vars, grads = train.accumulate(
      Observing(), params, observing_state().vars, batch, KEY, micro
    )
    assert float(vars['backward']['slopes']) == pytest.approx(want[micro])
    assert float(grads['w']) == pytest.approx(slope(1.0) + slope(3.0))
    plain = train.accumulate(Toy(), params, toy_state().vars, batch, KEY, micro)[3]
    _table.same(vars['stats']['mean'], plain['stats']['mean'])


@pytest.mark.parametrize('micro', [1, 2])
def test_a_refused_step_keeps_the_state_of_the_backward_pass(micro):
  how = dict(peak_lr=0.01, lr_factors={'w': 1.0}, micro=micro)
  step = jax.jit(train.make_step(Observing(), momentum(), lambda s: 1.0, **how))
  before, _ = step(observing_state(momentum()), toy_batch(), KEY)
  assert float(before.vars['backward']['slopes']) != 8
  after, metrics = step(before, toy_batch(x=1e4), KEY)  # slopes are finite, the update is not
  assert metrics['applied'][0] == 0
  jax.tree.map(_table.same, after.vars, before.vars)


def test_what_the_optimizer_differentiates_moves_no_variables():
  def update(g, s, params=None, *, obj_fn, **extra):
    return jax.tree.map(lambda a, b: a + 1e-3 * b, g, jax.grad(obj_fn)(params)), s

  tx = optax.GradientTransformationExtraArgs(lambda p: {}, update)
  how = dict(peak_lr=0.01, lr_factors={'w': 1.0})
  steps = [jax.jit(train.make_step(Observing(), t, lambda s: 1.0, **how)) for t in (tx, TX['sgd'])]
  (new, _), (plain, _) = (s(observing_state(), toy_batch(), KEY) for s in steps)
  assert float(new.params['w']) != float(plain.params['w'])
  jax.tree.map(_table.same, new.vars, plain.vars)


@pytest.mark.parametrize('micro', [1, 2])
def test_the_optimizer_is_given_what_kinds_promises(micro):
  seen = {}

  def update(g, s, params=None, *, value, obj_fn, sample_fn, rng, **extra):
    seen.update(extra=extra)
    sums = {f'rows/{n}': sample_fn(params, rng, one_in=n)[1] for n in (1, 2)}
    sums |= {'value': value, 'again': obj_fn(params), 'half': obj_fn(params, one_in=2)}
    return jax.tree.map(lambda g: g + jax.random.normal(rng), g), sums

  zero = {k: jnp.zeros(()) for k in ('value', 'again', 'half', 'rows/1', 'rows/2')}
  tx = optax.named_chain(('spy', optax.GradientTransformationExtraArgs(lambda p: zero, update)))
  factors = jax.tree.map(lambda _: 1.0, params())
  step = jax.jit(
    train.make_step(objective(), tx, lambda s: 1.0, peak_lr=0.0, lr_factors=factors, micro=micro)
  )
  new, metrics = step(train.init_state({'params': params()}, tx), rows(), KEY)
  loss = float(metrics['loss'][0] / metrics['loss'][1])
  got = {k: float(v) for k, v in new.opt['spy'].items()}
  assert got['value'] == pytest.approx(loss) and got['again'] == pytest.approx(loss, rel=1e-6)
  every_other = jax.tree.map(lambda a: a[::2], rows())
  half = objective().loss(params(), {}, every_other, KEY)
  assert got['half'] == pytest.approx(float(half.sum / half.weight), rel=1e-5)
  assert got['rows/1'] == metrics['loss'][1] and got['rows/2'] == float(half.weight)
  assert not seen['extra']


def test_rows_of_an_estimate_must_divide():
  tx = optax.named_chain(('h', registry.make('optim', 'sophia_g(one_in=3)')()))
  factors = jax.tree.map(lambda _: 1.0, params())
  step = train.make_step(objective(), tx, lambda s: 1.0, peak_lr=0.1, lr_factors=factors)
  with pytest.raises(ValueError, match='config.optim: one_in=3 does not divide the 4 rows'):
    jax.eval_shape(step, train.init_state({'params': params()}, tx), rows(), KEY)


def test_the_gradient_is_taken_where_the_optimizer_says():
  ahead = optax.GradientTransformationExtraArgs(
    lambda p: jax.tree.map(jnp.ones_like, p), lambda g, s, params=None, **_: (g, s)
  )
  tx = optax.named_chain(('ahead', ahead))
  factors = jax.tree.map(lambda _: 0.5, params())
  how = dict(peak_lr=0.1, lr_factors=factors, gradient_at=lambda opt: opt['ahead'])
  step = jax.jit(train.make_step(objective(), tx, lambda s: 1.0, **how))
  new, metrics = step(train.init_state({'params': params()}, tx), rows(), KEY)
  there = jax.tree.map(lambda p: p - 0.05, params())
  rng = jax.random.split(jax.random.fold_in(KEY, 0))[0]
  value, grads = jax.jit(
    jax.value_and_grad(lambda p: objective().loss(p, {}, rows(), rng).sum / 18)
  )(there)
  want = jax.tree.map(lambda p, g: p - 0.05 * g, params(), grads)
  _table.trees_close(new.params, want, 1e-6)
  assert float(metrics['loss'][0]) / 18 == pytest.approx(float(value), rel=1e-6)


@pytest.mark.parametrize(
  'spec, text',
  [
    ('schedule_free() | refactor()', 'refactor moves the parameters behind the step, and schedule'),
    ('schedule_free() | schedule_free()', 'schedule_free and schedule_free_2 each take the gradi'),
  ],
)
def test_parts_that_move_the_parameters_by_themselves_do_not_mix(spec, text):
  parts = registry.make_chain('optim', spec, facts={})
  with pytest.raises(build.ConfigError, match=f'config.optim: {text}'):
    build.gradient_at(parts), build.retract(parts, {})


@pytest.mark.parametrize('inner', ['refactor()', 'adam() | refactor()', 'schedule_free()'])
@pytest.mark.parametrize(
  'holder', ['split(matrix', 'galore(inner', 'eight_bit(inner', 'reset(inner']
)
def test_parts_within_parts_leave_the_parameters_to_the_step(holder, inner):
  with pytest.raises(ValueError, match='leaves the parameters to the step'):
    registry.make('optim', f'{holder}={inner})', facts={})()


def test_metrics_of_optimizer_parts_are_reported():
  spec = 'clip_value(bound=1e-9) | split(matrix=clip_tensor() | sgd(), rest=clip_tensor(norm=1e9))'
  batch = jax.eval_shape(rows)
  boxed = jax.eval_shape(lambda b: objective().init(KEY, b), batch)
  parts = registry.make_chain('optim', spec, facts=facts_lib.facts(boxed)['params'])
  tx = optax.named_chain(*((name, part()) for name, part in parts.items()))
  factors = jax.tree.map(lambda _: 1.0, params())
  step = train.make_step(objective(), tx, lambda s: 1.0, peak_lr=0.1, lr_factors=factors)
  _, metrics = jax.jit(step)(train.init_state({'params': params()}, tx), rows(), KEY)
  got = {k: float(v) for k, (v, _) in metrics.items() if k.startswith('optim/')}
  assert got.pop('optim/clip_value/clip_rate') > 0.5
  assert got == {
    'optim/split/matrix/clip_tensor/clip_rate': 0.0,
    'optim/split/rest/clip_rate': 0.0,
  }


def test_factors_scale_each_parameters_rate():
  factors = jax.tree_util.tree_map_with_path(
    lambda path, _: 0.0 if 'embed' in str(path[0]) else 2.0, params()
  )
  step = jax.jit(
    train.make_step(objective(), TX['sgd'], lambda s: 1.0, peak_lr=0.1, lr_factors=factors)
  )
  new, _ = step(state(), rows(), KEY)
  plain, _ = step_of(1)(state(), rows(), KEY)
  jax.tree.map(_table.same, new.params['embed'], params()['embed'])
  double = jax.tree.map(
    lambda a, b: a + 2 * (b - a), params()['final_norm'], plain.params['final_norm']
  )
  _table.trees_close(new.params['final_norm'], double, 1e-6)


def test_low_precision_parameters_stay_in_it():
  low = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params())
  step = jax.jit(
    train.make_step(
      objective(),
      TX['sgd'],
      lambda s: 1.0,
      peak_lr=0.1,
      lr_factors=jax.tree.map(lambda _: 1.0, low),
      micro=2,
    )
  )
  new, _ = step(train.init_state({'params': low}, TX['sgd']), rows(), KEY)
  assert {a.dtype for a in jax.tree.leaves(new.params)} == {jnp.dtype('bfloat16')}


def test_norms_of_parameters_in_low_precision_are_taken_in_float32():
  tree = {'w': jnp.full(1000, 300.0, jnp.float16)}
  np.testing.assert_allclose(train.norm(tree), 300 * 1000**0.5, rtol=1e-3)

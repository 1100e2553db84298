"""Power norm: every step of forward, backward and state against float64 numpy; in whole models
through scan, recomputation, micro-batches, meshes and a checkpoint; inference by psi2 alone.
"""

import functools

import jax
from jax.sharding import NamedSharding
import jax.numpy as jnp
import numpy as np
import pytest

import _meshes
import _table
from lmjax import build
from lmjax import config
from lmjax import registry
from lmjax import restore
from lmjax import train
from lmjax.checkpoint import Checkpointer
from lmjax.parallel import facts as facts_lib
from lmjax.parallel import mesh as mesh_lib
from lmjax.parallel import shard

pytestmark = pytest.mark.slow  # minutes of compiling

B, T, D = 3, 5, 8
PADDED = np.array([[1, 1, 1, 2, 2], [1, 1, 0, 0, 0], [1, 2, 2, 2, 0]])


class Reference:
  """PN on the real tokens alone, as a matrix of (tokens, features); nu in the paper's form."""

  def __init__(self, a=0.9, warmup=0, groups=1, denominator='batch', eps=1e-5, **_):
    self.a, self.warmup, self.groups, self.eps = a, warmup, groups, eps
    self.denominator = denominator
    self.psi2, self.nu_p, self.updates = np.ones(D), np.zeros(D), 0

  def step(self, x_ND, g, b, dy_ND):
    """(y, dx, dg, db) of one training pass."""
    self.updates += 1
    split = x_ND.reshape(len(x_ND), self.groups or D, -1)
    r = 1 / np.sqrt(np.mean(split**2, -1, keepdims=True) + self.eps)
    h = (split * r).reshape(x_ND.shape) if self.groups else x_ND
    s, psi2 = np.mean(h**2, 0), self.psi2
    by = s if self.updates <= self.warmup else psi2
    z = h / np.sqrt(by + self.eps)
    if self.updates < self.warmup:  # two updates, one after the other, as published
      psi2 = psi2 * (self.updates - 1) / self.updates + s / self.updates
    self.psi2 = self.a * psi2 + (1 - self.a) * s
    u = g * dy_ND
    back = s if self.denominator == 'batch' else by
    dh = (u - self.nu_p * z) / np.sqrt(back + self.eps)
    self.nu_p = self.nu_p * (1 - (1 - self.a) * np.mean(z**2, 0)) + (1 - self.a) * np.mean(u * z, 0)
    dx = dh
    if self.groups:
      h, dh = h.reshape(split.shape), dh.reshape(split.shape)
      dx = (r * (dh - h * np.mean(h * dh, -1, keepdims=True))).reshape(x_ND.shape)
    return g * z + b, dx, (dy_ND * z).sum(0), dy_ND.sum(0)


def context(segments=None, train=True):
  return _table.ctx(B, T, train=train).replace(segments_BT=segments)


@functools.cache
def passes(spec):
  """(first variables, with gains and biases of their own; step(variables, x, dy, segments) -> (y,
  dx, dparams, variables after), compiled).
  """
  module = registry.make('norm', spec)(parent=None)
  first = facts_lib.unbox(module.init(jax.random.key(0), jnp.ones((B, T, D)), context()))

  @jax.jit
  def step(variables, x, dy, segments=None):
    kept = {k: v for k, v in variables.items() if k == 'backward'}

    def f(params, x, kept):
      given = {**variables, **kept, 'params': params}
      return module.apply(given, x, context(segments), mutable=['vars'])

    y, pull, new = jax.vjp(f, variables['params'], x, kept, has_aux=True)
    dparams, dx, kept = pull(dy)
    return y, dx, dparams, {**variables, **new, **kept}

  return {**first, 'params': _table.stir(first['params'])}, step


def infer(spec, variables, x, segments=None):
  module = registry.make('norm', spec)(parent=None)
  return module.apply(variables, x, context(segments, train=False))


def inputs(seed=0):
  """x, whose features have scales of their own, and dy."""
  x = _table.normal(B, T, D, seed=seed) * jnp.linspace(0.3, 3.0, D)
  return x, _table.normal(B, T, D, seed=seed + 100) + 0.5


def primed(variables, **values):
  """The variables with other statistics, by name."""
  put = lambda path, v: jnp.broadcast_to(values.get(path[-1].key, v), v.shape).astype(v.dtype)
  return jax.tree_util.tree_map_with_path(put, variables)


# ---- one norm


@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize(
  'spec',
  [
    'power_norm(warmup=0)',
    'power_norm(warmup=3, groups=2)',
    'power_norm(warmup=2, groups=0, denominator="running")',
    'power_norm(a=0.3, warmup=100, groups=0, eps=0.1)',
  ],
)
def test_every_step_equals_a_float64_reference(spec, padded):
  """Output, gradients, psi2 and nu, through the warm-up and behind it; the reference has nu in the
  paper's form, and sees no padding at all.
  """
  variables, step = passes(spec)
  ref = Reference(**_table.arguments('norm', spec))
  g, b = (np.asarray(variables['params'][k], np.float64) for k in ('scale', 'bias'))
  segments = jnp.asarray(PADDED if padded else np.ones((B, T), int), jnp.int32)
  real = np.asarray(segments > 0)
  for i in range(5):
    x, dy = inputs(i)
    dy = dy * real[..., None]  # no loss looks at padding
    y, dx, dparams, variables = step(variables, x, dy, segments)
    want_y, want_dx, dg, db = ref.step(np.float64(x)[real], g, b, np.float64(dy)[real])
    _table.close(y[real], want_y, 1e-5)
    _table.close(dx[real], want_dx, 1e-5)
    _table.close(dparams['scale'], dg, 1e-5)
    _table.close(dparams['bias'], db, 1e-5)
    _table.close(variables['vars']['psi2'], ref.psi2, 1e-5)
    _table.close(variables['backward']['nu'], ref.nu_p / (1 - ref.a), 1e-5)
    assert variables['vars']['updates'] == ref.updates == i + 1
    assert not np.any(dx[~real])


def test_padding_changes_nothing():
  for spec in ('power_norm(warmup=0)', 'power_norm(variant="batch", groups=0)'):
    variables, step = passes(spec)
    segments, (x, dy) = jnp.asarray(PADDED, jnp.int32), inputs()
    psi2 = _table.normal(D, seed=5) ** 2
    variables = primed(variables, nu=jnp.linspace(-1.0, 1.0, D), psi2=psi2)
    real = PADDED > 0
    dy = dy * real[..., None]
    want = step(variables, x, dy, segments)
    got = step(variables, jnp.where(real[..., None], x, 1e4), dy, segments)
    for a, b in zip(got[:2], want[:2]):
      _table.same(a[real], b[real])
    jax.tree.map(_table.same, got[2:], want[2:])
    everywhere = step(variables, x, dy, jnp.ones((B, T), jnp.int32))
    assert not np.allclose(everywhere[3]['vars']['psi2'], want[3]['vars']['psi2'], rtol=1e-2)
    y, _, _, after = step(variables, x, dy, none := jnp.zeros((B, T), jnp.int32))
    jax.tree.map(_table.same, after, variables)
    _table.close(y, infer(spec, variables, x, none), 1e-6)


def test_a_of_0_and_psi2_of_the_batch_is_the_rms_over_the_batch():
  """And with nu = 0 dx is plain scaling: nothing is differentiated through the statistics."""
  x, dy = inputs()
  variables, step = passes('power_norm(a=0.0, warmup=0, groups=0)')
  s = jnp.mean(x**2, (0, 1))
  y, dx, _, after = step(primed(variables, psi2=s), x, dy)
  p = variables['params']
  _table.close((y - p['bias']) / p['scale'], x / np.sqrt(s + 1e-5), 1e-5)
  _table.close(dx, p['scale'] * dy / np.sqrt(s + 1e-5), 1e-5)
  _table.close(after['vars']['psi2'], s, 1e-6)
  _, again, _, _ = step(primed(variables, psi2=s, nu=1.0), x, dy)
  assert np.abs(again - dx).max() > 0.1


def test_the_two_denominators_differ_behind_the_warmup_alone():
  x, dy = inputs()
  for warmup, equal in ((1, True), (0, False)):
    found = []
    for d in ('batch', 'running'):
      variables, step = passes(f'power_norm(warmup={warmup}, denominator="{d}")')
      found.append(step(primed(variables, nu=0.5), x, dy)[1])
    assert np.allclose(*found, rtol=1e-6) == equal


def test_batch_statistics_have_their_true_gradient():
  spec = 'power_norm(variant="batch", groups=2, eps=0.1)'
  variables, step = passes(spec)
  x, dy = inputs()
  p, c = _table.numpy64(variables['params']), np.asarray(dy, np.float64)

  def total(x):
    split = x.reshape(B, T, 2, -1)
    h = (split / np.sqrt(np.mean(split**2, -1, keepdims=True) + 0.1)).reshape(x.shape)
    z = h / np.sqrt(np.mean(h**2, (0, 1)) + 0.1)
    return np.sum((z * p['scale'] + p['bias']) * c)

  y, dx, _, after = step(variables, x, dy)
  assert float(jnp.sum(y * dy)) == pytest.approx(total(np.asarray(x, np.float64)), rel=1e-5)
  _table.close(dx, _table.slope(total, np.asarray(x, np.float64)), 1e-4)
  assert set(after) == {'params', 'vars'} and not np.allclose(after['vars']['psi2'], 1)


@pytest.mark.parametrize(
  'spec, train, leaks',
  [
    ('power_norm(warmup=1)', True, True),
    ('power_norm(variant="batch")', True, True),
    ('power_norm(warmup=0)', True, False),
    ('power_norm(warmup=1)', False, False),
    ('power_norm(variant="batch")', False, False),
  ],
)
def test_tokens_see_others_through_batch_statistics_alone(spec, train, leaks):
  variables, step = passes(spec)
  out = lambda x: step(variables, x, x)[0] if train else infer(spec, variables, x)
  x, _ = inputs()
  before, after = out(x), out(x.at[0, 2].set(5.0))
  others = np.ones((B, T), bool)
  others[0, 2] = False
  assert np.abs(after[0, 2] - before[0, 2]).max() > 0.1
  assert np.array_equal(after[others], before[others]) != leaks


@pytest.mark.parametrize(
  'arguments, text',
  [
    ('a=1.0', 'a=1.0: at least 0 and below 1'),
    ('a=-0.1', 'a=-0.1: at least 0'),
    ('warmup=-1', 'warmup=-1: a number of updates'),
    ('groups=-1', 'groups=-1: a number of groups'),
    ('eps=-1e-5', 'eps=-1e-05: at least 0'),
    ('variant="running", denominator="all"', "'batch' or 'running' is expected"),
    ('variant="batch", denominator="running"', 'true gradient'),
  ],
)
def test_bad_arguments_are_refused(arguments, text):
  with pytest.raises(ValueError, match=text):
    registry.make('norm', f'power_norm({arguments})')


@pytest.mark.parametrize(
  'change, text',
  [
    (('model.norm', 'power_norm(groups=3)'), 'groups=3 does not divide the width 32'),
    (('model.residual', 'mix_ln()'), 'statistics of one input, and a layer applies it to two'),
  ],
)
def test_models_that_it_cannot_serve_are_refused(change, text):
  with pytest.raises(build.ConfigError, match=f'config.model: norm power_norm.* ?{text}'):
    build.build(config.resolve(config.load('quickstart', [*SMALL, change])))


# ---- whole models

NORM = 'power_norm(warmup=2, groups=2)'
SMALL = [
  ('model.width', '32'),
  ('model.depth', '2'),
  ('model.unroll', '1'),
  ('model.mixer', 'gqa(head_dim=8)'),
  ('model.embed', 'untied(multiple_of=8)'),
  ('model.init', 'fan_in(embed=1.0)'),
  ('model.norm', NORM),
  ('model.final_norm', NORM),
  ('data.length', '16'),
  ('batch_tokens', '128'),
  ('optim', 'sgd()'),
  ('peak_lr', '0.1'),
]


@functools.cache
def trainer(*more):
  """(run, its compiled step, its first state)."""
  run = build.build(config.resolve(config.load('quickstart', [*SMALL, *more])))
  return run, jax.jit(run.step), jax.tree.map(np.asarray, run.init(jax.random.key(0)))


def batch(seed=0):
  rng, segments = np.random.default_rng(seed), np.ones((8, 17), np.int32)
  segments[::2, 9:] = 2
  segments[5, 3:] = 0
  tokens = rng.integers(0, 256, segments.shape).astype(np.int32)
  return dict(tokens=tokens, segments=segments, positions=_table.positions_of(segments))


def trained(*more, steps=3, state=None, begin=0, mesh=None):
  """The state behind some steps, the last of them beyond the warm-up."""
  run, step, first = trainer(*more)
  state = first if state is None else state
  if mesh is not None:
    state, step = jax.device_put(first, run.shardings()), jax.jit(run.step)
  for i in range(begin, steps):
    rows = batch(i)
    if mesh is not None:
      rows = jax.device_put(rows, NamedSharding(mesh, shard.spec(('batch', None))))
    state, metrics = step(state, rows, jax.random.key(1))
    assert metrics['applied'][0] == 1
  return state


@functools.cache
def alone():
  return jax.tree.map(np.asarray, trained())


def test_every_layer_has_statistics_of_its_own():
  state = alone()
  layers = state.vars['vars']['segment_0']['0_block']['norm_ffn']
  assert layers['psi2'].shape == (2, 32) and list(layers['updates']) == [3, 3]
  nu = state.vars['backward']['segment_0']['0_block']['norm_ffn']['nu']
  for x in (layers['psi2'], nu):
    assert np.abs(x[0] - x[1]).max() > 1e-3
  assert np.abs(state.vars['backward']['final_norm']['nu']).min() > 0


def test_unrolled_and_recomputed_layers_give_the_same():
  got = trained(('model.unroll', '2'), ('model.remat', 'full'))
  _table.trees_close((got.params, got.vars), (alone().params, alone().vars), 2e-5)


@pytest.mark.parametrize('how', [pytest.param('auto', marks=pytest.mark.slow), 'explicit'])
def test_statistics_on_a_mesh_are_those_of_the_whole_batch(how):
  mesh = mesh_lib.make(_meshes.MESHES[how])
  with jax.set_mesh(mesh):
    got = jax.tree.map(np.asarray, trained(mesh=mesh))
  _table.trees_close((got.params, got.vars), (alone().params, alone().vars), 2e-5)


def test_micro_batches_have_statistics_in_turn():
  """psi2 and nu go from one to the next, gradients are summed; the number of them matters."""
  run, _, first = trainer()
  params = jax.tree.map(jnp.asarray, first.params)
  sums = lambda micro: jax.jit(
    lambda vars, rows: train.accumulate(
      run.objective, params, vars, rows, jax.random.key(0), micro
    )[3:]
  )
  rows = jax.tree.map(jnp.asarray, batch(0))
  vars, grads = sums(2)(first.vars, rows)
  half = sums(1)
  between, one = half(first.vars, jax.tree.map(lambda a: a[::2], rows))
  after, two = half(between, jax.tree.map(lambda a: a[1::2], rows))
  _table.trees_close(vars, after, 1e-5)
  _table.trees_close(grads, jax.tree.map(jnp.add, one, two), 1e-5)
  whole = trained(steps=1).vars
  for found, updates in ((after, 2), (whole, 1)):
    assert found['vars']['final_norm']['updates'] == updates
  nu = [v['backward']['final_norm']['nu'] for v in (after, whole)]
  assert not np.allclose(*nu, rtol=0.1)


def test_a_restored_run_goes_on_to_the_bit_and_another_can_begin_there(tmp_path):
  run, _, _ = trainer()
  with Checkpointer(tmp_path / 'checkpoints') as checkpoints:
    checkpoints.save(1, trained(steps=1), {})
    checkpoints.wait()
    found, _ = checkpoints.restore(1, run.state_shapes)
  other, _, first = trainer(('init_from', str(tmp_path)), ('seed', '1'))
  begun = restore.begin(other, first)
  jax.tree.map(_table.same, (begun.params, begun.vars), (found.params, found.vars))
  jax.tree.map(_table.same, trained(state=found, begin=1), alone())


def test_evaluation_uses_psi2_and_leaves_the_state_alone():
  run, _, first = trainer()
  evaluate = jax.jit(
    lambda vars, rows: run.objective.loss(
      jax.tree.map(jnp.asarray, alone().params), vars, rows, jax.random.key(0), train=False
    )
  )
  rows = batch(7)
  out = evaluate(alone().vars, rows)
  jax.tree.map(_table.same, out.vars, alone().vars)
  other = {**rows, 'tokens': np.where(np.arange(8)[:, None] == 0, rows['tokens'], 3)}
  _table.same(evaluate(alone().vars, other).rows[0][0], out.rows[0][0])
  assert abs(float(evaluate(first.vars, rows).sum / out.sum) - 1) > 1e-4
  without = {'vars': alone().vars['vars']}  # what an inference copy may leave out
  _table.same(evaluate(without, rows).sum, out.sum)


def test_decoding_with_a_cache_gives_what_the_whole_row_gives():
  run, _, _ = trainer()
  net, variables = run.architecture, {'params': alone().params, **alone().vars}
  tokens = jnp.asarray(batch(5)['tokens'][:2, :9])
  positions = jnp.broadcast_to(jnp.arange(9, dtype=jnp.int32), (2, 9))

  @jax.jit
  def apply(variables, tokens, positions, cache=None):
    ctx = _table.ctx(train=False).replace(
      positions_BT=positions, segments_BT=jnp.ones_like(positions)
    )
    return net.apply(variables, tokens, ctx, cache)

  want, got = apply(variables, tokens, positions).hidden_BTD, []
  cache = net.init_cache(registry.make('cache', 'full()'), 2, 9)
  for i in range(0, 9, 3):
    out = apply(variables, tokens[:, i : i + 3], positions[:, i : i + 3], cache)
    cache, got = out.cache, [*got, out.hidden_BTD]
  _table.close(jnp.concatenate(got, axis=1), want, 1e-5)

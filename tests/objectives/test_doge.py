"""DoGE against closed forms on a linear regression and against jax.grad by hand on a model; what
moves its weights, what must not leak, and its run.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _meshes
import _runs
import _table
from lmjax import build
from lmjax import config
from lmjax import kinds
from lmjax import registry
from lmjax.objectives import doge

NAMES = ('a', 'b')
LR = 0.01


@registry.register('objective', lookahead=1)
class Regression:
  """(x.w - y)^2 / 2 a row: x the first three ids over ten, y the fourth."""

  def __init__(self, model):
    del model

  def init(self, rng, batch):
    return dict(params=dict(w=jnp.zeros(3)))

  def loss(self, params, vars, batch, rng, train=True):
    x, y, real = xs(batch['tokens'])[0], xs(batch['tokens'])[1], batch['segments'][:, 0] > 0
    rows = jnp.where(real, 0.5 * (x @ params['w'] - y) ** 2, 0.0)
    weight = jnp.sum(real.astype(jnp.float32))
    return kinds.Loss(rows.sum(), weight, dict(nll=(rows.sum(), weight)), vars, None)


def xs(tokens):
  return tokens[:, :3] / 10.0, tokens[:, 3] / 10.0


def make(spec, sources=NAMES, model=None):
  context = dict(
    model=model, tokenizer=_table.Tokenizer(), sources=sources, learning_rate=lambda step: LR
  )
  return registry.make('objective', spec, **context)()


def linear(seed=0, source=(0, 1, 1, 0, 0, 1, 1, 0, -1)):
  rng, n = np.random.default_rng(seed), len(source)
  b = dict(
    tokens=rng.integers(-20, 20, (n, 4)), segments=np.ones((n, 4)), positions=np.zeros((n, 4))
  )
  b['source'] = np.array(source)
  b['segments'][b['source'] < 0] = 0
  return {k: jnp.asarray(v, jnp.int32) for k, v in b.items()}


def memory(m, alpha=None):
  alpha = jnp.full(m, 1 / m) if alpha is None else jnp.asarray(alpha, jnp.float32)
  return dict(domains=dict(alpha=alpha, mean=jnp.zeros(m), count=jnp.zeros((), jnp.int32)))


SPEC = 'doge(inner=test_doge:Regression(){})'


def spec(**arguments):
  return SPEC.format(''.join(f', {k}={v!r}' for k, v in arguments.items()))


@functools.cache
def compiled(objective_spec):
  objective = make(objective_spec)

  def total(params, vars, b):
    out = objective.loss(params, vars, b, jax.random.key(0))
    return out.sum / out.weight, out

  return jax.jit(jax.value_and_grad(total, has_aux=True))


def gradients(w, b, rows):
  x, y = (np.asarray(v, np.float64)[rows] for v in xs(b['tokens']))
  return np.mean((x @ w - y)[:, None] * x, axis=0), np.mean(0.5 * (x @ w - y) ** 2)


LEARN, HELD = ([0, 4], [1, 5]), ([3, 7], [2, 6])  # the second of each two of a source is held out


@pytest.mark.parametrize('clip', [1.0, 0.05, 1e3])
def test_scores_weights_and_gradient_in_closed_form(clip):
  b, w = linear(), np.array([0.3, -0.2, 0.5])
  (value, out), grads = compiled(spec(clip=clip, mu=0.3, most=100.0))(
    dict(w=jnp.asarray(w, jnp.float32)), memory(2, [0.4, 0.6]), b
  )
  g, losses = zip(*(gradients(w, b, rows) for rows in LEARN))
  h = [gradients(w, b, rows)[0] for rows in HELD]
  cut = lambda v: v * min(1.0, clip / np.linalg.norm(v))
  law = np.array([[cut(hi) @ cut(gj) for gj in g] for hi in h])
  found = np.array([[out.metrics[f'A/{i}/{j}'][0] for j in NAMES] for i in NAMES])
  np.testing.assert_allclose(found, law, rtol=2e-6, atol=1e-6 * np.abs(law).max())
  scores = law.mean(0)
  np.testing.assert_allclose(
    [out.metrics[f'score/{n}'][0] for n in NAMES], scores, rtol=1e-5, atol=1e-7
  )
  size = np.mean([np.linalg.norm(cut(v)) for v in g])
  step = np.clip(LR * scores / (size + 1e-6), 0, 100 * LR) / 0.3
  alpha = np.array([0.4, 0.6]) * np.exp(step)
  alpha /= alpha.sum()
  np.testing.assert_allclose(out.vars['domains']['alpha'], alpha, rtol=1e-5)
  np.testing.assert_allclose(grads['w'], alpha[0] * g[0] + alpha[1] * g[1], rtol=1e-5)
  assert float(value) == pytest.approx(alpha @ losses, rel=1e-5), 'the true loss'
  assert float(out.weight) == 4 and float(out.metrics['nll'][1]) == 4


def test_scores_are_bounded():
  """Scores below 0 count as 0, and a step of log a is at most 5 lr / mu."""
  alpha = jnp.array([0.5, 0.25, 0.25])
  got = np.asarray(doge.reweighed(alpha, jnp.array([-3.0, 100.0, 2.0]), LR, 0.1, 5.0))
  want = np.array([0.5, 0.25 * np.exp(5 * LR / 0.1), 0.25 * np.exp(2 * LR / 0.1)])
  np.testing.assert_allclose(got, want / want.sum(), rtol=1e-6)
  none = doge.reweighed(jnp.array([0.5, 0.5, 0.0]), jnp.array([1.0, 2.0, 9.0]), LR, 0.1, 5.0)
  assert float(none[2]) == 0 and float(none.sum()) == pytest.approx(1)


def opposed(seed):
  """Two sources whose best weights are of opposite sign."""
  b = linear(seed, [0, 1] * 8)
  tokens = np.asarray(b['tokens']).copy()
  tokens[:, 3] = np.where(np.arange(16) % 2, -1, 1) * tokens[:, :3].sum(1)
  return b | dict(tokens=jnp.asarray(tokens))


@pytest.mark.slow
@pytest.mark.parametrize('target', NAMES)
def test_weights_move_to_the_target_and_flip_with_it(target):
  run, vars, params = compiled(spec(target=target)), memory(2), dict(w=jnp.zeros(3))
  for i in range(20):
    (_, out), grads = run(params, vars, opposed(i))
    vars, params = out.vars, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    alpha = np.asarray(vars['domains']['alpha'])
    assert np.all(alpha >= 0) and abs(alpha.sum() - 1) < 1e-5
  own = NAMES.index(target)
  assert vars['domains']['mean'][own] > 0.6 > 0.4 > vars['domains']['mean'][1 - own]
  assert np.all(np.sign(params['w']) == (1, -1)[own])


def test_a_target_out_of_domain_is_not_learnt_from():
  objective = make(spec(target='b', out_of_domain=True))
  run = compiled(spec(target='b', out_of_domain=True))
  start = objective.init(None, None)['domains']
  np.testing.assert_array_equal(start['alpha'], [1, 0])
  b, w = linear(), dict(w=jnp.array([0.3, -0.2, 0.5]))
  (_, out), grads = run(w, dict(domains=start), b)
  np.testing.assert_array_equal(out.vars['domains']['alpha'], [1, 0])
  np.testing.assert_allclose(grads['w'], gradients(np.asarray(w['w']), b, LEARN[0])[0], rtol=1e-5)
  law = [gradients(np.asarray(w['w']), b, rows)[0] for rows in ([1, 2, 5, 6], LEARN[0])]
  cut = [v / max(1, np.linalg.norm(v)) for v in law]
  assert float(out.metrics['A/b/a'][0]) == pytest.approx(cut[0] @ cut[1], rel=1e-5)


def test_a_source_that_the_batch_lacks_scores_zero():
  """No row of b at all; then one, which is learnt from and leaves no target."""
  for source, scored in (([0] * 9, ('a',)), ([0] * 8 + [1], ('a', 'b'))):
    (value, out), grads = compiled(spec())(dict(w=jnp.ones(3)), memory(2), linear(0, source))
    for i in NAMES:
      for j in NAMES:
        a = float(out.metrics[f'A/{i}/{j}'][0])
        assert (a == 0) == (i == 'b' or j not in scored), (source, i, j, a)
    assert np.isfinite(float(value)) and np.all(np.isfinite(grads['w']))


def test_held_out_rows_do_not_leak():
  """With the weights held still, what the model learns depends on no held-out row."""
  b, w = linear(), dict(w=jnp.array([0.3, -0.2, 0.5]))
  other = b | dict(tokens=b['tokens'].at[jnp.array([2, 3, 6, 7])].add(3))
  run = compiled(spec(mu=1e9))
  (one, out), before = run(w, memory(2), b)
  (two, moved), after = run(w, memory(2), other)
  np.testing.assert_array_equal(before['w'], after['w'])
  assert float(one) == float(two)
  assert float(out.metrics['score/a'][0]) != float(moved.metrics['score/a'][0])


MORE = [pytest.param(s, marks=pytest.mark.slow) for s in range(3, 20)]


@pytest.mark.parametrize('seed', [0, 1, 2, *MORE])
def test_pieces_hold_every_row_once_and_one_group_each(seed):
  rng = np.random.default_rng(seed)
  n, b = int(rng.integers(1, 9)), int(rng.integers(1, 40))
  groups = rng.integers(0, n + 1, b) if seed else np.zeros(b, int)
  rows, of = (np.asarray(x) for x in doge.cut_up(jnp.asarray(groups), n))
  assert sorted(rows[rows >= 0]) == sorted(np.flatnonzero(groups < n))
  for piece, group in zip(rows, of):
    assert np.all(groups[piece[piece >= 0]] == group)


def test_groups():
  source = jnp.array([0, 1, 0, 0, -1, 1, 0, 1])
  learnt = jnp.array([True, True])
  assert doge.grouped(source, 2, 2, learnt).tolist() == [0, 1, 2, 0, 4, 3, 2, 1]
  assert doge.grouped(source, 2, 3, learnt).tolist() == [0, 1, 0, 2, 4, 1, 0, 3]
  assert doge.grouped(source, 2, 2, learnt.at[1].set(False)).tolist() == [0, 3, 2, 0, 4, 3, 2, 3]


# ---- on a model

T = 8
SOURCE = (0, 1, 1, 0, 1, 0)


def rows_of(rng):
  return _table.batch(rng.choice([1, 1, 1, 2], (6, T + 1)).cumsum(1) // 9 + 1) | dict(
    source=jnp.array(SOURCE)
  )


def on_a_model(b, p, mesh=None):
  objective = make('doge(clip=1e6)', model=_table.model(length=T, depth=1))
  run = jax.jit(
    lambda p, b: jax.value_and_grad(
      lambda p: (lambda o: (o.sum / o.weight, o.vars['domains']['alpha']))(
        objective.loss(p, memory(2), b, jax.random.key(0))
      ),
      has_aux=True,
    )(p)
  )
  return objective, run(p, b)


@pytest.mark.slow
def test_every_parameter_counts_and_nothing_is_differentiated_twice():
  b, p = rows_of(np.random.default_rng(0)), _table.model_params(length=T, depth=1)['params']
  objective, ((value, alpha), grads) = on_a_model(b, p)

  def mean(p, rows):
    out = objective.within.loss(
      p, {}, {k: v[np.array(rows)] for k, v in b.items()}, jax.random.key(0)
    )
    return out.sum / out.weight

  of = jax.jit(jax.value_and_grad(mean), static_argnums=1)
  (la, ga), (lb, gb) = of(p, (0, 5)), of(p, (1, 4))
  ha, hb = of(p, (3,))[1], of(p, (2,))[1]
  dot = lambda x, y: sum(float(jnp.vdot(u, v)) for u, v in zip(*map(jax.tree.leaves, (x, y))))
  scores = np.array([dot(ha, g) + dot(hb, g) for g in (ga, gb)]) / 2
  size = np.mean([dot(g, g) ** 0.5 for g in (ga, gb)])
  want = np.exp(np.clip(LR * scores / (size + 1e-6), 0, 5 * LR) / 0.1)
  np.testing.assert_allclose(alpha, want / want.sum(), rtol=1e-4)
  assert float(value) == pytest.approx(float(alpha[0] * la + alpha[1] * lb), rel=1e-5)
  _table.trees_close(grads, jax.tree.map(lambda x, y: alpha[0] * x + alpha[1] * y, ga, gb), 1e-4)


# ---- in a run

TINY = [
  ('model.width', '16'),
  ('model.depth', '1'),
  ('model.mixer.head_dim', '8'),
  ('data.length', '16'),
  ('batch_tokens', '128'),
  ('data.train', 'text(path="x") + text(path="y")'),
  ('objective', 'doge()'),
]


def built(*changes):
  return build.build(config.resolve(config.load('quickstart', [*TINY, *changes])))


@pytest.mark.slow
def test_a_step_on_a_mesh_equals_one_device():
  run = built(('optim', 'sgd()'))
  rng = np.random.default_rng(0)
  b = dict(
    tokens=rng.integers(0, 255, (8, 17)),
    segments=np.ones((8, 17)),
    positions=np.tile(np.arange(17), (8, 1)),
    source=rng.integers(0, 2, 8),
  )
  b = {k: np.asarray(v, np.int32) for k, v in b.items()}
  key = jax.random.key(0)
  plain, _ = jax.jit(run.step)(run.init(key), b, key)
  with jax.set_mesh(_meshes.make(data=-1)):
    state = run.init(key)
    got, _ = jax.jit(run.step)(state, b, key)
  _table.trees_close(
    jax.device_get((got.params, got.vars)), jax.device_get((plain.params, plain.vars)), 2e-5
  )


@pytest.mark.parametrize(
  'changes, words',
  [
    ([('optim', 'sophia_h()')], 'sophia_h needs second derivatives, which objective'),
    ([('data.train', 'text(path="x")')], 'at least two are expected'),
    ([('objective', 'doge(target="txt")')], "target='txt' is no source .* did you mean 'text'"),
    ([('objective', 'doge(out_of_domain=True)')], 'target="<a source>" is expected with it'),
    ([('objective', 'doge(mu=0)')], 'mu=0.0: a positive number'),
    ([('objective', 'doge(one_in=1)')], 'one_in=1: at least 2'),
    ([('objective', 'doge(inner=headless_cwt())')], 'whose rows stand alone'),
    ([('micro_batches', '2')], 'config.micro_batches=2'),
  ],
)
def test_what_is_refused(changes, words):
  with pytest.raises(ValueError, match=words):
    built(*changes)


@pytest.mark.slow
def test_a_run_resumes_exactly(tmp_path, capsys):
  data = _runs.texts(tmp_path)
  how = dict(objective='doge()', micro_batches=1, steps=8, checkpoint_every=4)
  for name in 'ab':
    assert _runs.run(tmp_path / name, data, **how) == 0
  (tmp_path / 'b/checkpoints/8').rename(tmp_path / 'b/8')
  assert _runs.run(tmp_path / 'b', data, **how) == 0
  assert 'resumed at step 4' in capsys.readouterr().err
  arrays = [_runs.arrays(tmp_path / name, 8) for name in 'ab']
  assert not _runs.same_arrays(*arrays)
  assert _runs.lines(tmp_path / 'a') == _runs.lines(tmp_path / 'b')
  mean = arrays[0]['/vars/domains/mean']
  last = _runs.lines(tmp_path / 'a')[-1]
  assert [last[f'mean_weight/{n}'] for n in ('jsonl', 'jsonl_2', 'jsonl_3')] == mean.tolist()
  assert abs(mean.sum() - 1) < 1e-5 and np.ptp(mean) > 1e-6

"""DoReMi's update and loss by hand, what it does to noise, and its run: the reference loaded once
and kept, weights that survive a resume, bad references refused.
"""

import functools
import json
import math
import shutil

import jax
from jax.sharding import NamedSharding, PartitionSpec
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import _meshes
import _runs
import _table
from lmjax import build
from lmjax import config
from lmjax import kinds
from lmjax import registry
from lmjax.checkpoint import Checkpointer
from lmjax.nn import embedding
from lmjax.objectives import _common
from lmjax.objectives import doremi

M, T, V = 3, 8, _table.VOCAB
NAMES = ('a', 'b', 'c')
SEGMENTS = [[1] * 9, [1, 1, 1, 1, 2, 2, 2, 0, 0], [1] * 5 + [0] * 4, [1] * 9, [1] * 9, [0] * 9]
SOURCE = np.array([0, 1, 1, 2, 0, -1])


def make(spec, sources=NAMES, **how):
  model = _table.model(length=T, depth=1, **how)
  context = dict(model=model, tokenizer=_table.Tokenizer(), sources=sources)
  return registry.make('objective', spec, **context)()


def params(seed=0):
  return _table.model_params(seed=seed, length=T, depth=1)['params']


def variables(objective, reference):
  shapes = jax.eval_shape(objective.init, jax.random.key(0), batch())
  assert set(shapes) == {'params', 'domains', 'reference'}
  m = len(objective.sources)
  memory = dict(
    alpha=jnp.full(m, 1 / m), mean=jnp.zeros(m), excess=jnp.zeros(m), count=jnp.zeros((), jnp.int32)
  )
  return dict(domains=memory, reference=dict(params=reference))


def batch(segments=SEGMENTS, source=SOURCE, seed=0, **more):
  return _table.batch(segments, seed=seed) | dict(source=jnp.asarray(source, jnp.int32)) | more


def test_the_update_of_the_paper():
  """Excess (0.2, 0, 0) at eta 1: (e^0.2, 1, 1) normalised; smoothing mixes with uniform."""
  alpha, excess = jnp.full(3, 1 / 3), jnp.array([0.2, 0.0, 0.0])
  got = np.asarray(doremi.reweighed(alpha, excess, 1.0, 0.0))
  np.testing.assert_allclose(got, [0.379153, 0.310424, 0.310424], atol=1e-6)
  mixed = np.asarray(doremi.reweighed(alpha, excess, 1.0, 0.1))
  np.testing.assert_allclose(mixed, 0.9 * got + 0.1 / 3, rtol=1e-6)
  np.testing.assert_allclose(doremi.reweighed(alpha, excess, 0.0, 0.0), alpha, rtol=1e-6)
  huge = np.asarray(doremi.reweighed(alpha, 1e4 * excess, 1.0, 0.0))
  assert np.all(huge >= 0) and abs(huge.sum() - 1) < 1e-6


def by_hand(p, b):
  """nll (B, T) and which places count, from the logits."""
  ctx = kinds.Ctx(b['positions'][:, :-1], b['segments'][:, :-1])
  outputs = _table.model(length=T, depth=1).apply({'params': p}, b['tokens'][:, :-1], ctx)
  logp = jax.nn.log_softmax(embedding.logits(outputs))
  nll = -jnp.take_along_axis(logp, b['tokens'][:, 1:, None], -1)[..., 0]
  s = b['segments']
  return nll, (s[:, 1:] == s[:, :-1]) & (s[:, 1:] > 0)


@pytest.mark.slow
@pytest.mark.parametrize('inner', ['clm()', 'clm(z_loss=0.1, label_smoothing=0.3)'])
def test_the_loss_of_each_token_is_its_slope(inner):
  """Plain likelihood whatever is added to it; weights of the batch's own count."""
  b, p = batch(), params()
  objective = make(f'doremi(reference="r", inner={inner})').within
  w = jnp.asarray(np.random.default_rng(0).choice([0.0, 0.5, 2.0], b['tokens'].shape), jnp.float32)
  for given in ({}, dict(weights=w)):
    run = jax.jit(lambda p, b: doremi.tokens(objective, p, {}, b, jax.random.key(0), True))
    out, nll_BL = run(p, b | given)
    want, real = by_hand(p, b)
    scale = given['weights'][:, 1:] if given else 1.0
    _table.close(nll_BL[:, 1:], want * real * scale)
    assert not np.any(nll_BL[:, 0])
    _table.close(jnp.sum(nll_BL, axis=1), out.rows[0])


def domains(x, w):
  """Sums of (B, T) arrays over the rows of each source."""
  rows = np.asarray(x).sum(1), np.asarray(w).sum(1)
  return [np.array([r[SOURCE == i].sum() for i in range(M)]) for r in rows]


@pytest.mark.slow
@pytest.mark.parametrize('clip', ['token', 'domain'])
def test_a_step_by_hand(clip):
  """Excess, weights, loss and its gradient; rows have 8, 5, 4, 8, 8 and 0 targets."""
  spec = f'doremi(reference="r", eta=0.7, smoothing=0.01, clip="{clip}", inner=clm(z_loss=0.05))'
  objective, b, p, ref = make(spec), batch(), params(0), params(1)
  vars = variables(objective, ref)

  def total(p):
    out = objective.loss(p, vars, b, jax.random.key(0))
    return out.sum / out.weight, out

  (value, out), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(p)
  (nll, real), (held, _) = by_hand(p, b), by_hand(ref, b)
  gap = (nll - held) * real
  if clip == 'token':
    gap = jnp.maximum(gap, 0)
  gaps, weights = domains(gap, real)
  excess = np.maximum(gaps / weights, 0)
  assert np.ptp(excess) > 0.01
  alpha = np.exp(0.7 * excess) / np.exp(0.7 * excess).sum() * 0.99 + 0.01 / 3
  memory = out.vars['domains']
  np.testing.assert_allclose(memory['excess'], excess, rtol=1e-4)
  np.testing.assert_allclose(memory['alpha'], alpha, rtol=1e-5)
  np.testing.assert_allclose(memory['mean'], alpha, rtol=1e-5)
  assert float(out.metrics['weight/b'][0]) == pytest.approx(alpha[1], rel=1e-5)
  assert float(out.metrics['excess/c'][0]) == pytest.approx(excess[2], rel=1e-4)

  def want(p):
    nll, real = by_hand(p, b)
    own = [
      jnp.sum((nll * real)[SOURCE == i]) / np.asarray(real)[SOURCE == i].sum() for i in range(M)
    ]
    inputs = _common.inputs(b, 1)
    outputs, _ = _common.run(objective.model, p, {}, inputs, None, False)
    lse = jax.nn.logsumexp(embedding.logits(outputs), axis=-1)
    return sum(a * l for a, l in zip(alpha, own)) + 0.05 * jnp.sum(lse**2 * real) / real.sum()

  expected, slopes = jax.value_and_grad(want)(p)
  assert float(value) == pytest.approx(float(expected), rel=1e-5)
  _table.trees_close(grads, slopes, 1e-4)
  assert float(out.metrics['nll'][0]) == pytest.approx(float(jnp.sum(nll * real)), rel=1e-5)
  _table.trees_close(out.vars['reference'], vars['reference'], 0)


@pytest.mark.slow
def test_a_source_that_the_batch_lacks_keeps_its_excess():
  objective, p, ref = make('doremi(reference="r")'), params(0), params(1)
  vars, run = variables(objective, ref), jax.jit(objective.loss, static_argnames='train')
  b = batch(source=[0, 1, 1, 0, 0, -1])
  vars['domains'] = vars['domains'] | dict(excess=jnp.array([9.0, 9.0, 0.3]))
  out = run(p, vars, b, jax.random.key(0))
  excess = np.asarray(out.vars['domains']['excess'])
  assert excess[2] == np.float32(0.3) and np.all(excess[:2] != 9)
  assert np.isfinite(float(out.sum))
  nll, real = by_hand(p, b)
  alpha = np.asarray(out.vars['domains']['alpha'])
  own = [float(jnp.sum((nll * real)[b['source'] == i])) for i in (0, 1)]
  size = [np.asarray(real)[np.asarray(b['source']) == i].sum() for i in (0, 1)]
  want = sum(alpha[i] * own[i] / size[i] for i in (0, 1))
  assert float(out.sum / out.weight) == pytest.approx(want, rel=1e-5)


@pytest.mark.slow
def test_evaluation_is_the_inner_objective():
  objective, p = make('doremi(reference="r")'), params(0)
  b = batch()
  out = objective.loss(p, variables(objective, params(1)), b, jax.random.key(0), False)
  plain = objective.within.loss(p, {}, b, jax.random.key(0), False)
  assert float(out.sum) == float(plain.sum) and out.metrics.keys() == plain.metrics.keys()


def rows(kind: str, rng, n: int) -> np.ndarray:
  """Rows of a source: noise, or an alphabet said forwards in steps of 1 or 2."""
  if kind == 'noise':
    return rng.integers(0, V, (n, T + 1))
  return (rng.integers(0, V, (n, 1)) + np.arange(T + 1) * (1 if kind == 'one' else 2)) % V


@functools.cache
def trained(objective_spec: str, steps: int):
  """Losses by source and variables after steps on 'one', 'two' and 'noise' in equal shares."""
  objective, rng = make(objective_spec), np.random.default_rng(0)
  p = params(5)
  vars = {}
  if hasattr(objective, 'reference'):
    vars = variables(objective, trained('clm()', 150)[0])
  tx = optax.adam(1e-2)

  @jax.jit
  def step(p, vars, opt, b, key):
    def total(p):
      out = objective.loss(p, vars, b, key)
      return out.sum / out.weight, out

    (_, out), g = jax.value_and_grad(total, has_aux=True)(p)
    updates, opt = tx.update(g, opt)
    return optax.apply_updates(p, updates), out.vars, opt, out.metrics

  opt = tx.init(p)
  source = np.repeat(np.arange(3), 6)
  for i in range(steps):
    tokens = np.concatenate([rows(k, rng, 6) for k in ('one', 'two', 'noise')])
    b = batch(np.ones((18, T + 1), int), source) | dict(tokens=jnp.asarray(tokens, jnp.int32))
    p, vars, opt, metrics = step(p, vars, opt, b, jax.random.key(i))
  return p, vars, metrics


@pytest.mark.slow
def test_noise_gains_no_weight_though_its_loss_is_the_highest():
  spec = 'doremi(reference="r", eta=1.0, clip="domain")'
  p, vars, metrics = trained(spec, 60)
  memory = {k: np.asarray(v) for k, v in vars['domains'].items()}
  assert int(memory['count']) == 60 and abs(memory['mean'].sum() - 1) < 1e-5
  assert memory['mean'][2] < 1 / 3 < memory['mean'][:2].max(), memory
  b = batch(np.ones((18, T + 1), int), np.repeat(np.arange(3), 6))
  tokens = np.concatenate([rows(k, np.random.default_rng(7), 6) for k in ('one', 'two', 'noise')])
  nll, _ = by_hand(p, b | dict(tokens=jnp.asarray(tokens, jnp.int32)))
  losses = np.asarray(nll).reshape(3, -1).mean(1)
  assert losses[2] == losses.max() > math.log(V) - 0.3, losses


# ---- in a run


LEARN = 'doremi(reference="{}", eta=5.0)'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return _runs.texts(tmp_path_factory.mktemp('texts'))


@pytest.fixture(scope='module')
def reference(data, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('reference') / 'w'
  assert _runs.run(workdir, data, micro_batches=1, steps=8) == 0
  return workdir


def run(workdir, data, objective, **how):
  return _runs.run(workdir, data, objective=objective, micro_batches=1, **how)


@pytest.mark.slow
def test_a_run_holds_the_reference_and_a_resume_goes_on_alike(data, reference, tmp_path, capsys):
  spec, copy = LEARN.format(tmp_path / 'ref'), tmp_path / 'ref'
  shutil.copytree(reference, copy)
  how = dict(steps=8, checkpoint_every=4)
  assert run(tmp_path / 'a', data, spec, **how) == 0
  assert run(tmp_path / 'b', data, spec, **how) == 0
  straight = _runs.arrays(tmp_path / 'a', 8)
  theirs = Checkpointer(copy / 'checkpoints').restore_params(8, only=('params',))['params']
  held = Checkpointer(tmp_path / 'a/checkpoints').restore_params(8, only=('vars',))['vars']
  _table.trees_close(held['reference']['params'], theirs, 0)
  shutil.rmtree(copy)
  (tmp_path / 'b/checkpoints/8').rename(tmp_path / 'b/8')
  assert run(tmp_path / 'b', data, spec, **how) == 0, 'the reference is not needed any more'
  assert 'resumed at step 4' in capsys.readouterr().err
  assert not _runs.same_arrays(straight, _runs.arrays(tmp_path / 'b', 8))
  assert _runs.lines(tmp_path / 'a') == _runs.lines(tmp_path / 'b')
  last, memory = _runs.lines(tmp_path / 'a')[-1], held['domains']
  names = ('jsonl', 'jsonl_2', 'jsonl_3')
  found = [last[f'mean_weight/{n}'] for n in names]
  np.testing.assert_allclose(found, memory['mean'], rtol=1e-6)
  alphas = [[line[f'weight/{n}'] for n in names] for line in _runs.lines(tmp_path / 'a')]
  np.testing.assert_allclose(np.mean(alphas, axis=0), memory['mean'], rtol=1e-5)
  np.testing.assert_allclose(np.sum(alphas, axis=1), 1, rtol=1e-5)
  assert np.ptp(memory['alpha']) > 1e-4 and int(memory['count']) == 8


def edited(reference, folder, key, value):
  """A copy of the reference whose config says something else."""
  shutil.copytree(reference, folder)
  config = json.loads((folder / 'config.json').read_text())
  node = config
  *path, last = key.split('.')
  for k in path:
    node = node[k]
  node[last] = value
  (folder / 'config.json').write_text(json.dumps(config))
  return folder


@pytest.mark.slow
@pytest.mark.parametrize(
  'change, words',
  [
    (None, 'nowhere: no such directory'),
    (('model.width', 32), 'its config.model.width is 32, this one is 16'),
    (('model.blocks.block.ffn', 'swiglu()'), 'config.model.blocks.block.ffn is'),
    (('data.tokenizer', 'bytes(specials=False)'), "specials=False)' is another one than"),
  ],
)
def test_references_that_do_not_fit(data, reference, tmp_path, capsys, change, words):
  folder = tmp_path / 'nowhere'
  if change is not None:
    folder = edited(reference, tmp_path / 'edited', *change)
  assert run(tmp_path / 'w', data, LEARN.format(folder), steps=8) == 2
  said = capsys.readouterr().err.strip().splitlines()[-1]
  assert said.startswith('lmjax: ') and (words in said), said
  assert not (tmp_path / 'w').exists()  # it claims no directory


@pytest.mark.parametrize(
  'spec, words',
  [
    ('doremi()', "needs the argument 'reference'"),
    ('doremi(reference="")', 'the directory of a run is expected'),
    ('doremi(reference="r", eta=-1.0)', 'eta=-1.0'),
    ('doremi(reference="r", smoothing=1.5)', 'smoothing=1.5'),
    ('doremi(reference="r", clip="row")', "'token' or 'domain' is expected"),
    ('doremi(reference="r", inner=headless_cwt())', 'whose rows stand alone'),
    ('doremi(reference="r", inner=doremi(reference="s"))', 'whose rows stand alone'),
  ],
)
def test_bad_arguments(spec, words):
  with pytest.raises(ValueError, match=words):
    registry.make('objective', spec)


@pytest.mark.slow
def test_one_source_and_micro_batches_are_refused(data, reference, tmp_path, capsys):
  one = data.split(' + ')[0]
  assert run(tmp_path / 'w', one, LEARN.format(reference)) == 2
  assert 'at least two are expected' in capsys.readouterr().err
  assert _runs.run(tmp_path / 'w', data, objective=LEARN.format(reference)) == 2
  assert 'config.micro_batches=2' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['auto', 'explicit'])
def test_a_step_on_a_mesh_equals_one_device(mode):
  words = dict(_runs.SETTINGS, micro_batches=1, objective='doremi(reference="r")', optim='sgd()')
  words |= {'data.train': 'text(path="x") + text(path="y")', 'model.dropout': 0.0}
  words |= {'model.residual': 'pre()', 'model.depth': 1}
  given = [(k, str(v)) for k, v in words.items()]
  run, key = build.build(config.resolve(config.load('quickstart', given))), jax.random.key(0)
  rng = np.random.default_rng(0)
  b = batch(np.ones((8, 17), int), rng.integers(0, 2, 8))
  b = jax.tree.map(np.asarray, b)

  def one():
    state = run.init(key)
    held = {'params': jax.tree.map(lambda x: x * 1.1, state.params)}
    state = state.replace(vars={**state.vars, 'reference': held})
    return jax.device_get(jax.jit(run.step)(state, b, key)[0])

  plain = one()
  with jax.set_mesh(_meshes.make(mode, data=-1)):
    place = NamedSharding(jax.sharding.get_mesh(), PartitionSpec('data'))
    b = jax.device_put(b, place)
    got = one()
  _table.trees_close((got.params, got.vars), (plain.params, plain.vars), 2e-5)
  assert np.ptp(got.vars['domains']['alpha']) > 1e-4

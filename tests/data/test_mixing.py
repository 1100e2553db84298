"""Mixtures that follow validation losses: their figures by hand, and runs of them: what is drawn
when, looks that survive a stop wherever it falls, and bad input.
"""

import dataclasses
import json
import pathlib
import re
import shutil
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import _runs
from lmjax import config
from lmjax import mixing
from lmjax import registry
from lmjax import specs
from lmjax.data import plan as plan_lib
from lmjax.data.mixtures import _graph
from lmjax.data.mixtures import aioli as aioli_lib
from lmjax.objectives import clm
from lmjax.tracking import read_metrics

NAMES, SLOW = ('jsonl', 'jsonl_2', 'jsonl_3'), pytest.mark.slow
A2 = np.array([[0.01, 0.002], [0.001, 0.008]])


def part(spec, names=('a', 'b', 'c'), **context):
  context = dict(seed=0, sources={n: f'text(path={n!r})' for n in names}) | context
  made = registry.make('mixture', spec, **context)()
  return made, made.init(names, (None,) * len(names), (100,) * len(names))


# ---- aioli


def test_the_law_is_solved_from_what_was_measured():
  P = aioli_lib.design(2, 0.75)
  np.testing.assert_allclose(P, [[0.75, 0.25], [0.25, 0.75]])
  G = np.array([[0.008, 0.004], [0.00275, 0.00625]])
  np.testing.assert_allclose(A2 @ P.T, G, atol=1e-15)
  np.testing.assert_allclose(aioli_lib.law(G, P), A2, atol=1e-15)
  np.testing.assert_allclose(aioli_lib.law(G, aioli_lib.design(2, 1.0)), G)


def test_normalised():
  want = [[0.47619, 0.095238], [0.047619, 0.380952]]
  np.testing.assert_allclose(aioli_lib.normal(A2), want, atol=1e-6)
  lowered = aioli_lib.normal(np.array([[-1.0, 0.0], [1.0, 2.0]]))
  np.testing.assert_allclose(lowered, [[0, 1 / 6], [2 / 6, 3 / 6]])
  for same in (0.0, -3.0):
    np.testing.assert_allclose(aioli_lib.normal(np.full((2, 2), same)), 0.25)


def rounds(spec, law, times=1, names=('a', 'b')):
  """A policy on a world in which a stretch on p changes the losses by -law(t) p: the states behind
  each round, and (step, weights) of every look.
  """
  policy, state = part(spec, names)
  losses, seen, out = np.full(len(names), 5.0), [], []
  drawn = policy.weights(state)
  while len(out) < times:
    due, before = policy.due(state), int(state['round'])
    if seen:
      losses = losses - law(before) @ drawn
    state = policy.update(state, dict(valid_losses=losses))
    drawn = policy.weights(state)
    seen.append((due, drawn))
    if int(state['round']) > before:
      out.append(state)
  return policy, out, seen


def test_a_round_finds_the_law_and_the_weights_of_the_entry():
  """Whatever the order of the sweeps, each mixture is trained on once in each."""
  spec = 'aioli(one_hot_factor=0.75, lp_rounds=3, lp_steps=2, update_steps=20)'
  policy, (state,), seen = rounds(spec, lambda t: A2)
  np.testing.assert_allclose(state['A'], A2, atol=1e-12)
  np.testing.assert_allclose(state['p'], [0.502381, 0.497619], atol=1e-6)
  np.testing.assert_array_equal(policy.weights(state), state['p'])
  assert [s for s, _ in seen] == [0, 2, 4, 6, 8, 10, 12]
  assert policy.due(state) == 20
  lp = np.array([w for _, w in seen[:-1]]).reshape(3, 2, 2)
  assert all(sorted(map(tuple, sweep)) == [(0.25, 0.75), (0.75, 0.25)] for sweep in lp)


def test_sweeps_take_a_fresh_order_each_time():
  spec = 'aioli(one_hot_factor=0.5, lp_rounds=8, lp_steps=1, update_steps=24)'
  orders = set()
  for seed in (0, 1):
    policy, state = part(spec, seed=seed)
    rows = []
    for at in range(24):
      rows.append(policy.row({**state, 'at': np.array(at)}))
    sweeps = [tuple(rows[i : i + 3]) for i in range(0, 24, 3)]
    assert all(sorted(s) == [0, 1, 2] for s in sweeps) and len(set(sweeps)) > 2
    orders.add(tuple(rows))
  assert len(orders) == 2


def test_columns_make_the_weights():
  """Learning from a lowers the loss of b alone: a gains, by column sums."""
  law = np.array([[0.0, 0.0], [0.01, 0.0]])
  _, (state,), _ = rounds('aioli(lp_rounds=1, lp_steps=1, update_steps=9)', lambda t: law)
  assert state['p'][0] > 0.5 > state['p'][1]


def test_the_past_is_in_the_average_or_in_the_weights():
  laws = [np.array([[3.0, 1.0], [1.0, 1.0]]), np.array([[0.0, 1.0], [1.0, 6.0]])]
  near = [aioli_lib.normal(x).sum(0) for x in laws]
  how = 'one_hot_factor=0.75, lp_rounds=1, lp_steps=1, update_steps=9, eta=0.7'
  soft = lambda x: np.exp(x) / np.exp(x).sum()
  _, states, _ = rounds(f'aioli({how}, ema=0.25)', lambda t: laws[t], 2)
  np.testing.assert_allclose(states[0]['p'], soft(0.7 * near[0]), rtol=1e-9)
  np.testing.assert_allclose(states[1]['p'], soft(0.7 * (0.75 * near[1] + 0.25 * near[0])))
  _, states, _ = rounds(f'aioli({how}, ema=None)', lambda t: laws[t], 2)
  np.testing.assert_allclose(states[1]['p'], soft(0.7 * (near[0] + near[1])))


def test_eta_zero_is_stratified():
  _, states, _ = rounds('aioli(eta=0, lp_rounds=1, lp_steps=1, update_steps=9)', lambda t: A2, 3)
  for state in states:
    np.testing.assert_array_equal(state['p'], [0.5, 0.5])


def test_a_round_of_measuring_alone_goes_over_into_the_next():
  """update_steps = lp_rounds x lp_steps x m: the last look of a round is the first of the next."""
  spec = 'aioli(lp_rounds=2, lp_steps=3, update_steps=12)'
  policy, states, seen = rounds(spec, lambda t: A2, 2)
  assert [s for s, _ in seen] == [0, 3, 6, 9, 12, 15, 18, 21, 24]
  np.testing.assert_allclose(states[1]['A'], A2, atol=1e-12)


def test_a_prior_comes_first():
  made = registry.make('mixture', 'aioli(prior_steps=7, update_steps=32)', seed=0)()
  state = made.init(('a', 'b'), (3.0, 1.0), (9, 9))
  np.testing.assert_array_equal(made.weights(state), [0.75, 0.25])
  assert made.due(state) == 7 and made.due(made.update(state, dict(valid_losses=[1.0, 1.0]))) == 11
  with pytest.raises(ValueError, match='finds the weights itself, but source a has one'):
    registry.make('mixture', 'aioli()', seed=0)().init(('a', 'b'), (3.0, 1.0), (9, 9))
  with pytest.raises(ValueError, match='train on the weights of config.data.train'):
    made.init(('a', 'b'), (None, None), (9, 9))


@pytest.mark.parametrize(
  'spec, words',
  [
    ('aioli(update_steps=47)', 'has no room for lp_rounds x lp_steps x 3 sources = 48'),
    ('aioli(one_hot_factor=0.333)', 'more than 0.3333 is expected'),
    ('aioli(lp_steps=0)', 'lp_steps=0: a positive number'),
    ('aioli(eta=-1)', 'eta=-1.0: at least 0'),
    ('aioli(ema=1.0)', 'ema=1.0: at least 0 and below 1'),
    ('aioli(one_hot_factor=1.5)', 'one_hot_factor=1.5: above 0 and at most 1'),
    ('skill_it(graph="")', 'a file is expected, which python -m lmjax.data.mixtures._graph makes'),
    ('skill_it()', "needs the argument 'graph'"),
    ('skill_it(graph="g", window=0)', 'window=0: a positive number'),
    ('single(source="d")', "source='d'.*has a, b, c"),
    ('learned(run="nowhere")', 'nowhere.* is not a run directory'),
    ('learned(run="")', "run='': the directory of a finished proxy run is expected"),
  ],
)
def test_bad_arguments(spec, words):
  with pytest.raises(ValueError, match=words):
    part(spec)


@pytest.mark.parametrize('spec', ['aioli()', 'single(source="a")', 'skill_it(graph="g")'])
def test_one_source_is_refused(spec):
  with pytest.raises(ValueError, match='has only a; at least two are expected'):
    part(spec, ('a',))


# ---- skill_it


def graph_file(folder, graph, sources=None):
  path = folder / 'graph.json'
  names = ('a', 'b', 'c')[: len(graph)]
  sources = sources or {n: f'text(path={n!r})' for n in names}
  path.write_text(json.dumps(dict(sources=sources, graph=graph, steps=1, tokens=1)))
  return path


def test_skill_it_by_hand(tmp_path):
  """Row i of the graph, the source learnt from, makes the weight of i; three rounds are summed."""
  graph = np.array([[0.2, 0.9, 0.1], [0.0, 0.3, 0.0], [0.5, 0.0, 0.2]])
  path = graph_file(tmp_path, graph.tolist())
  policy, state = part(f'skill_it(graph="{path}", eta=0.4, update_steps=10)')
  soft = lambda x: np.exp(x) / np.exp(x).sum()
  np.testing.assert_allclose(policy.weights(state), soft(0.4 * graph.sum(1)))
  assert policy.due(state) == 10
  history = np.random.default_rng(0).random((5, 3)) + 1
  for t, losses in enumerate(history):
    state = policy.update(state, dict(valid_losses=losses))
    recent = history[max(0, t - 2) : t + 1].sum(0)
    np.testing.assert_allclose(policy.weights(state), soft(0.4 * graph @ recent))
    assert policy.due(state) == 10 * (t + 2)


def test_skill_it_on_the_identity_and_without_eta(tmp_path):
  even = lambda state, policy: np.testing.assert_array_equal(
    policy.weights(state), np.full(3, 1 / 3)
  )
  path = graph_file(tmp_path, np.eye(3).tolist())
  policy, state = part(f'skill_it(graph="{path}")')
  even(state, policy)
  even(policy.update(state, dict(valid_losses=np.full(3, 2.7))), policy)
  policy, state = part(f'skill_it(graph="{graph_file(tmp_path, [[1, 2, 3]] * 3)}", eta=0)')
  even(policy.update(state, dict(valid_losses=np.array([1.0, 2.0, 3.0]))), policy)


def test_a_graph_is_matched_by_what_sources_read(tmp_path):
  graph = [[0.1, 0.2], [0.3, 0.4]]
  path = graph_file(tmp_path, graph, dict(text="text(path='b')", text_2="text(path='a')"))
  _, state = part(f'skill_it(graph="{path}")', ('a', 'b'))
  np.testing.assert_array_equal(state['graph'], [[0.4, 0.3], [0.2, 0.1]])
  with pytest.raises(ValueError, match=r"knows nothing of the source c=text\(path='c'\)"):
    part(f'skill_it(graph="{path}")', ('a', 'b', 'c'))


@pytest.mark.parametrize(
  'text',
  ['[]', '{}', '{"sources": {"a": "x"}, "graph": [[1, 2]]}', '{"sources": 3}']
  + ['{"sources": {"a": "x"}, "graph": [["1"]]}', '{"sources": {"a": "x"}, "graph": [[NaN]]}'],
)
def test_what_is_no_graph(tmp_path, text):
  (tmp_path / 'g').write_text(text)
  with pytest.raises(ValueError, match='is no graph of sources'):
    _graph.read(str(tmp_path / 'g'))


# ---- the plan behind it


class Policy:
  """Looks after 3, 5 and 9 steps; weighs by the losses themselves."""

  rows = 0

  def due(self, state):
    return {0: 3, 1: 5, 2: 9}.get(int(state['n']))

  def update(self, state, observed):
    losses = observed['valid_losses']
    return dict(n=state['n'] + 1, w=losses / losses.sum())

  def weights(self, state):
    return state['w']


def mixed():
  import _stores

  stores = [_stores.documents([40] * 200), _stores.documents([30] * 200)]
  p = plan_lib.Plan(
    stores,
    pack=registry.make('pack', 'concat()')(),
    row_tokens=16,
    lookahead=1,
    rows_per_step=4,
    seed=3,
    weights=(1, 1),
    names=('a', 'b'),
  )
  return mixing.Mixing(Policy(), dict(n=np.zeros((), np.int64), w=np.full(2, 0.5)), p)


def test_taken_up_from_a_cursor_it_goes_on_alike(monkeypatch):
  monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent))
  one = mixed()
  found = [[1.0, 3.0], [0.1, 0.7], [5.0, 1e-13]]
  for i, losses in enumerate(found):
    due, two = one.due, mixed()
    two.take_up(json.loads(json.dumps(one.cursor())))
    before = range((due - 1) * 4, due * 4)
    assert [one.plan.place(r) for r in before] == [two.plan.place(r) for r in before], i
    one.look(due * 4, losses)
    two.look(due * 4, losses)
    assert two.cursor() == one.cursor()
    rows = range(due * 4, due * 4 + 500)
    assert [one.plan.place(r) for r in rows] == [two.plan.place(r) for r in rows], i
    share = np.mean([one.plan.place(r)[0] for r in rows])
    assert abs(share - losses[1] / sum(losses)) < 0.08
  assert one.due is None
  one.begin()
  assert one.due == 3 and [one.plan.place(r) for r in range(9)] == [
    mixed().plan.place(r) for r in range(9)
  ]
  with pytest.raises(ValueError, match='loss of source b is nan'):
    one.look(12, [1.0, float('nan')])


def test_weights_that_stay_leave_the_plan_as_it_is(monkeypatch):
  monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent))
  one, plain = mixed(), mixed().plan
  one.look(12, [2.0, 2.0])
  assert [one.plan.place(r) for r in range(99)] == [plain.place(r) for r in range(99)]


def test_a_look_takes_the_first_rows_of_each_source(monkeypatch):
  monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent))
  import _stores

  stores = [_stores.documents([n] * 9) for n in (40, 5, 30)]
  made = lambda most: plan_lib.Sequential(
    stores, row_tokens=16, lookahead=1, rows_per_step=4, most=most
  )
  whole, some = made(0), made(4)
  key = lambda row: (row.source, row.spans.tolist())
  by = [
    [key(r) for r in map(whole.row, range(whole.total_rows)) if r.source == s] for s in range(3)
  ]
  assert len(by[1]) == 3 and some.total_rows == 4 + 3 + 4
  got = [key(some.row(r)) for r in range(some.total_rows)]
  assert got == by[0][:4] + by[1] + by[2][:4]
  assert some.row(11).source == -1 and len(some) == 3
  assert len({whole.fingerprint(), some.fingerprint(), made(5).fingerprint()}) == 3


# ---- runs

AIOLI = 'aioli(eta=3.0, update_steps=8, lp_rounds=1, lp_steps=2, one_hot_factor=0.8, rows=8)'
HOW = dict(micro_batches=1, steps=18, data__mixture=AIOLI, model__depth=1, keep_last=20)


def unweighted(sum_of):
  return ' + '.join(term.split('*')[1] for term in sum_of.split(' + '))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return unweighted(_runs.texts(tmp_path_factory.mktemp('texts')))


def run(workdir, data, *flags, **how):
  return _runs.run(workdir, data, *flags, **(HOW | dict(data__valid=data) | how))


@pytest.fixture(scope='module')
def straight(data, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('straight') / 'w'
  assert run(workdir, data, checkpoint_every=1) == 0
  return workdir


def looks(workdir):
  return {m['step']: m for m in read_metrics(workdir) if m['kind'] == 'mixture'}


@SLOW
def test_looks_are_taken_when_they_are_due(straight):
  found = looks(straight)
  assert list(found) == [0, 2, 4, 6, 8, 10, 12, 14, 16]
  for step, line in found.items():
    w = [line[f'weight/{n}'] for n in NAMES]
    assert min(w) >= 0 and sum(w) == pytest.approx(1)
    if step % 8 != 6:
      assert sorted(w) == pytest.approx([0.1, 0.1, 0.8]), 'LearnParams'
    assert all(line[f'nll/{n}'] > 0 for n in NAMES)
  third = found[6]
  drops = lambda a, b: [found[a][f'nll/{n}'] - found[b][f'nll/{n}'] for n in NAMES]
  G = np.zeros((3, 3))
  for a in (0, 2, 4):
    G[:, np.argmax([found[a][f'weight/{n}'] for n in NAMES])] += drops(a, a + 2)
  A = aioli_lib.law(G, aioli_lib.design(3, 0.8))
  np.testing.assert_allclose([third[f'A/{n}'] for n in NAMES], A, rtol=1e-6)
  want = np.exp(3 * aioli_lib.normal(A).sum(0))
  np.testing.assert_allclose([third[f'weight/{n}'] for n in NAMES], want / want.sum(), rtol=1e-9)


@SLOW
def test_the_evaluation_tells_sources_apart(straight):
  last = [m for m in read_metrics(straight) if m['kind'] == 'eval'][-1]
  each = [last[f'nll/{n}'] for n in NAMES]
  assert min(each) < last['loss'] < max(each)


def same(straight, workdir, steps=18):
  assert not _runs.same_arrays(_runs.arrays(straight, steps), _runs.arrays(workdir, steps))
  reader = lambda w: _runs.Checkpointer(w / 'checkpoints')
  assert reader(straight).cursor(steps) == reader(workdir).cursor(steps)
  for kind in ('train', 'mixture', 'eval'):
    mine, theirs = _runs.lines(workdir, kind), _runs.lines(straight, kind)
    assert mine == theirs != [], kind


@SLOW
@pytest.mark.parametrize('step', [3, 6, 8])
def test_stopped_and_resumed_equals_straight(straight, data, tmp_path, capsys, step):
  """At 6 and 8 a look is due: the checkpoint is from before it, its line from behind it."""
  workdir = tmp_path / 'w'
  shutil.copytree(straight, workdir)
  for folder in (workdir / 'checkpoints').iterdir():
    if folder.name.isdigit() and int(folder.name) > step:
      shutil.rmtree(folder)
  assert run(workdir, data, checkpoint_every=1) == 0
  assert f'resumed at step {step}' in capsys.readouterr().err
  same(straight, workdir)


@SLOW
def test_batches_left_out_go_with_it(straight, data, tmp_path, capsys):
  """Skipping ahead of a look, stopped behind it: as if never stopped."""
  flag, how = '--skip_batches=5, 7:9', dict(checkpoint_every=6)
  one, two = tmp_path / 'one', tmp_path / 'two'
  assert run(one, data, flag, **how) == 0
  assert run(two, data, flag, **how) == 0
  for step in (12, 18):
    shutil.rmtree(two / f'checkpoints/{step}')
  assert run(two, data, **how) == 0
  assert 'resumed at step 6' in capsys.readouterr().err
  same(one, two)
  assert _runs.same_arrays(_runs.arrays(one, 18), _runs.arrays(straight, 18)), 'they were left out'
  cursors = [_runs.Checkpointer(w / 'checkpoints').cursor(18) for w in (straight, one)]
  begins = [c['mixture']['piece']['first_row'] for c in cursors]
  assert begins == [16 * 8, (16 + 3) * 8], (
    'weights hold from the batch on that is next, 8 rows each'
  )


@SLOW
def test_other_held_out_data_are_refused(straight, data, tmp_path, capsys):
  """data.valid may change where nothing hangs on it; here the weights do."""
  workdir = tmp_path / 'w'
  shutil.copytree(straight, workdir)
  shutil.rmtree(workdir / 'checkpoints/18')
  a, b, c = data.split(' + ')
  assert run(workdir, data, data__valid=f'{b} + {a} + {c}', checkpoint_every=1) == 2
  assert 'was trained on other data' in capsys.readouterr().err


@SLOW
def test_without_eta_a_policy_is_the_static_run(data, tmp_path):
  """The rows of skill_it(eta=0) are those of equal weights, looks or not."""
  terms = data.split(' + ')
  path = graph_file(
    tmp_path, np.eye(3).tolist(), dict(zip('abc', map(str, sources(data).values())))
  )
  policy = f'skill_it(graph="{path}", eta=0, update_steps=3, rows=4)'
  how = dict(steps=8, data__valid=data, micro_batches=1, model__depth=1)
  assert _runs.run(tmp_path / 'a', data, data__mixture=policy, **how) == 0
  even = ' + '.join(f'1.0*{t}' for t in terms)
  assert _runs.run(tmp_path / 'b', even, **how) == 0
  assert list(looks(tmp_path / 'a')) == [3, 6]
  assert not _runs.same_arrays(_runs.arrays(tmp_path / 'a', 8), _runs.arrays(tmp_path / 'b', 8))


def sources(data):
  resolved = config.resolve(config.load('quickstart', [('data.train', data)]))['data']['train']
  return {n: call for n, (_, call) in specs.weighted(resolved).items()}


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'model.width': 32}, 'its config.model.width is 32, that of .*/a is 16'),
    ({'seed': 3}, 'its config.seed is 3'),
    ({'data.valid': 'text(path="b")'}, 'its config.data.valid is'),
    ({'eval.batches': 2}, 'config.eval.batches=2: all held-out rows'),
    ({'log_every': 7}, 'lacks the held-out loss of source text before its first step'),
  ],
)
def test_runs_of_a_graph_differ_in_their_mixture_alone(tmp_path, changes, words):
  """What changes no number may differ: those runs are only not finished."""
  both = {'data.train': 'text(path="a") + text(path="b")', 'model.width': 16}
  for name, mixture, more in (('a', 'text', {}), ('b', 'text_2', changes)):
    given = both | {'data.valid': both['data.train']} | more
    given |= {'data.mixture': f'single(source="{mixture}")'}
    resolved = config.resolve(config.load('quickstart', [(k, str(v)) for k, v in given.items()]))
    (tmp_path / name).mkdir()
    (tmp_path / name / 'config.json').write_text(json.dumps(resolved))
  with pytest.raises(ValueError, match=words) as e:
    _graph.make([str(tmp_path / 'a'), str(tmp_path / 'b')])
  assert '\n' not in str(e.value)


@SLOW
def test_the_graph_of_three_runs_and_a_run_on_it(data, tmp_path, capsys):
  runs = [tmp_path / n for n in NAMES]
  how = dict(steps=4, model__depth=1, micro_batches=1, data__valid=data)
  for workdir in runs:
    assert _runs.run(workdir, data, data__mixture=f'single(source="{workdir.name}")', **how) == 0
  out = tmp_path / 'graph.json'
  assert _graph.main([f'--out={out}', *map(str, runs[:2])]) == 2
  assert 'no run is on the source jsonl_3' in capsys.readouterr().err and not out.exists()
  assert _graph.main([f'--out={out}', *map(str, reversed(runs))]) == 0
  found = json.loads(out.read_text())
  assert found['tokens'] == 3 * 4 * 128 and found['steps'] == 4
  for i, workdir in enumerate(runs):
    first, last = looks(workdir)[0], _runs.lines(workdir, 'eval')[-1]
    want = [(first[f'nll/{n}'] - last[f'nll/{n}']) / first[f'nll/{n}'] for n in NAMES]
    np.testing.assert_allclose(found['graph'][i], want, rtol=1e-9)
    assert min(want) > 0
  policy = f'skill_it(graph="{out}", eta=9.0, update_steps=2)'
  assert _runs.run(tmp_path / 'w', data, data__mixture=policy, **how) == 0
  w = [looks(tmp_path / 'w')[2][f'weight/{n}'] for n in NAMES]
  assert sum(w) == pytest.approx(1) and np.ptp(w) > 1e-3


@pytest.mark.parametrize(
  'changes, words',
  [
    (dict(data__valid=''), 'config.data.valid has none for jsonl: jsonl, jsonl_2, jsonl_3 are'),
    (dict(data__valid=0), 'config.data.valid has none for jsonl_2'),
    (dict(data__mixture='aioli(update_steps=5)'), 'config.data.mixture=.*has no room'),
    (dict(data__mixture='skill_it(graph="nowhere.json")'), 'nowhere.json'),
    (dict(data__mixture='learned(run="nowhere")'), 'nowhere.*is not a run directory'),
  ],
)
def test_what_is_refused_in_one_sentence(data, tmp_path, capsys, changes, words):
  if changes.get('data__valid') == 0:
    changes = dict(data__valid=data.split(' + ')[0])
  assert run(tmp_path / 'w', data, **changes) == 2
  said = capsys.readouterr().err.strip().splitlines()
  assert said[-1].startswith('lmjax: ') and re.search(words, said[-1]), said
  assert not (tmp_path / 'w/config.json').exists(), 'nothing was claimed'


@SLOW
def test_an_objective_without_likelihoods_is_refused(data, tmp_path, capsys):
  assert run(tmp_path / 'w', data, objective='headless_cwt()') == 2
  assert "config.objective='headless_cwt(" in capsys.readouterr().err


# ---- learned


@pytest.fixture(scope='module')
def proxy(data, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('proxy') / 'w'
  how = dict(steps=4, micro_batches=1, model__depth=1, data__mixture='temperature(alpha=0)')
  assert _runs.run(workdir, data, objective='doge(most=50.0)', peak_lr=0.05, **how) == 0
  return workdir


@SLOW
def test_a_target_trains_with_what_a_proxy_learnt(data, proxy, tmp_path):
  last = _runs.lines(proxy)[-1]
  theirs = [last[f'mean_weight/{n}'] for n in NAMES]
  assert np.ptp(theirs) > 1e-3
  named = {n: str(c) for n, c in sources(data).items()}
  made = registry.make('mixture', f'learned(run="{proxy}")', sources=named)
  state = made().init(NAMES, (None,) * 3, (1, 1, 1))
  np.testing.assert_allclose(made().weights(state), np.array(theirs) / sum(theirs))
  turned = dict(zip(NAMES, list(named.values())[::-1]))
  made = registry.make('mixture', f'learned(run="{proxy}")', sources=turned)()
  flipped = made.weights(made.init(NAMES, (None,) * 3, (1, 1, 1)))
  np.testing.assert_allclose(flipped, made.weights(state)[::-1], err_msg='by what they read')
  how = dict(steps=2, micro_batches=1, model__depth=1)
  assert _runs.run(tmp_path / 'w', data, data__mixture=f'learned(run="{proxy}")', **how) == 0


@SLOW
def test_what_learned_refuses(data, proxy, straight, tmp_path, capsys):
  named = {n: str(c) for n, c in sources(data).items()}

  def refused(words, run=proxy, given=named):
    part = registry.make('mixture', f'learned(run="{run}")', sources=given)()
    with pytest.raises(ValueError, match=words):
      part.init(tuple(given), (None,) * len(given), (1,) * len(given))

  refused('it learnt no weights', run=straight)
  refused('knows nothing of the source x=', given={**named, 'x': "text(path='x')"})
  refused('is not in config.data.train; all that', given=dict(list(named.items())[:2]))
  refused('stands twice', given={**named, 'x': list(named.values())[0]})
  cut = tmp_path / 'cut'
  shutil.copytree(proxy, cut)
  lines = (cut / 'metrics.jsonl').read_text().splitlines()
  (cut / 'metrics.jsonl').write_text('\n'.join(x for x in lines if '"step": 4' not in x) + '\n')
  refused('it has 3 of its 4 steps', run=cut)


# ---- going back


@registry.register('objective', lookahead=1, causal=True)
@dataclasses.dataclass(frozen=True)
class Poisoned(clm.Clm):
  """Its loss is no number where a row holds the poison."""

  model: Any

  def loss(self, params, vars, batch, rng, train=True):
    out = super().loss(params, vars, batch, rng, train)
    bad = jnp.any(batch['tokens'] == ord('~')) & train
    return out._replace(sum=out.sum + jnp.where(bad, jnp.nan, 0.0))


SKILLS = 'skill_it(graph="{}", eta=1.0, update_steps=1, rows=8)'


@SLOW
@pytest.mark.parametrize(
  'poison, seed, skip, first, policy',
  [
    ('~ a cat', 5, 40, 10, AIOLI),
    ('~ ' * 8, 0, 6, 0, AIOLI),
    ('~ ' * 8, 0, 6, 0, SKILLS),
  ],
)
def test_a_rewind_goes_back_to_the_weights_of_then(
  tmp_path, capsys, poison, seed, skip, first, policy
):
  """Behind looks that are undone, or to the first step, where losses are looked at or not; the same
  as leaving those batches out from the start.
  """
  data = unweighted(_runs.texts(tmp_path, poison=poison))
  named = {n: str(call) for n, call in sources(data).items()}
  graph = graph_file(tmp_path, [[0.0, 0.2, 0.0], [0.0, 0.3, 0.0], [0.0, 0.0, 0.0]], named)
  how = dict(objective='test_mixing:Poisoned()', checkpoint_every=1, bad_steps__limit=1, steps=20)
  how |= dict(data__mixture=policy.format(graph))
  back = dict(bad_steps__rewind=3, bad_steps__skip=skip)
  assert run(tmp_path / 'one', data, seed=seed, **how, **back) == 0
  said = capsys.readouterr().err
  assert f'rewind to step {first} after' in said, 'the poison was met'
  refused = (tmp_path / 'one/bad_steps.jsonl').read_text().splitlines()
  assert json.loads(refused[0])['step'] > 1, 'weights had changed by then, where they follow steps'
  made = json.loads((tmp_path / 'one/skips.json').read_text())
  flag = '--skip_batches=' + ', '.join(f'{e["start"]}:{e["stop"]}' for e in made)
  assert run(tmp_path / 'two', data, flag, seed=seed, **how) == 0
  same(tmp_path / 'two', tmp_path / 'one', 20)

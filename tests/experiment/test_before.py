"""Arms that begin from earlier runs: what is run, from where, at what cost, and what is refused."""

import json

import pytest

import _fake
from lmjax.experiment import Arm
from lmjax.experiment import checks
from lmjax.experiment import code
from lmjax.experiment import execute
from lmjax.experiment import jobset
from lmjax.experiment import local
from lmjax.experiment import measures
from lmjax.experiment import remote
from lmjax.experiment import results
from lmjax.experiment import runner
from lmjax.experiment import Scale
from lmjax.experiment import tables
from lmjax.experiment import trials
from lmjax.experiment.declare import ExperimentError

SMALL = _fake.TINY | {'log_every': 1}
FIRST, SECOND = {'optim': 'adam()', 'steps': 4}, {'optim': 'sgd()', 'steps': 3}
GRID = {'peak_lr': (1e-3, 1e-2)}


def experiment(before=(FIRST,), **changes):
  given = dict(
    baseline=Arm('plain', {'optim': 'adam()'}, GRID, before=(FIRST,)),
    treatments=(Arm('lion', {'optim': 'lion()'}, GRID, before=before),),
    changes=SMALL,
    seeds=(1, 2),
    scales={'cpu': Scale((6,))},
  )
  return _fake.experiment(**(given | changes))


def trial(e, arm=1, seed=1, lr=1e-2):
  return trials.trial(e, 'cpu', e.arms[arm], {'peak_lr': lr}, seed, 6)


def test_each_run_begins_from_the_one_before():
  t = trial(experiment((FIRST, SECOND), fields=('optim', 'peak_lr', 'before')))
  first, second, last = t.chain()
  assert last is t and (first.steps, second.steps, t.steps) == (4, 3, 6)
  assert {x.seed for x in t.chain()} == {1}
  assert '--config.init_from=' not in ' '.join(first.words('w'))
  assert '--config.init_from=/x/run' in second.words('w', '/x/run')
  assert '--config.init_from=/y/run' in t.words('w', '/y/run')
  assert dict(first.changes)['optim'] == 'adam()'
  assert 'peak_lr' not in dict(first.changes)  # the grid is the last run's
  given = Arm('a', {'init_from': 'add_head(run="{before}")'}, GRID, before=(FIRST,))
  words = trial(experiment(treatments=(given,), fields=('*',))).words('w', '/z')
  assert '--config.init_from=add_head(run="/z")' in words


def test_a_trial_is_another_one_where_a_run_before_is():
  keys = lambda t: (t.identity, t.code)
  same, other = trial(experiment()), trial(experiment(({**FIRST, 'steps': 5},)))
  assert keys(same) == keys(trial(experiment()))
  assert same.identity != other.identity and same.code == other.code
  alone = trials.trial(experiment(), 'cpu', Arm('lion', {'optim': 'lion()'}), {}, 1, 6)
  assert alone.before is None and alone.identity != same.identity
  assert remote._differs(same) == ''


def test_code_of_a_run_before_counts(monkeypatch):
  t = trial(experiment())
  real = code.fingerprint
  old = lambda resolved, **how: 'old' if 'lion' not in resolved['optim'] else real(resolved, **how)
  trials.forget()
  monkeypatch.setattr(code, 'fingerprint', old)
  try:
    assert trial(experiment()).code != t.code and 'another code' in remote._differs(t)
  finally:
    trials.forget()


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  """(experiment, folder, runs, what was said) behind a real run."""
  folder, runs = tmp_path_factory.mktemp('experiment'), tmp_path_factory.mktemp('runs')
  said, e = [], experiment(seeds=(1,))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(checks, 'load', lambda where: e)
    assert runner.run(folder, 'cpu', runs, local.Local(), said.append) == 0
    page = tables.page(folder)
  return e, folder, runs, said, page


@pytest.mark.slow
def test_arms_share_what_they_rest_on_and_begin_from_it(done):
  e, folder, runs, said, _ = done
  assert sum('run before' in line for line in said) == 2  # the seed to tune on, and another
  t = trial(e)
  records = results.known(results.read(folder), 'cpu', e.measured)
  assert {len(r['before']) for r in records.values()} == {1}
  below = results.below(records.values())
  assert len(below) == 2 and len(records) == 6
  paths = [execute.folder(runs, x) / 'run' for x in t.chain()]
  config = json.loads((paths[1] / 'config.json').read_text())
  assert config['init_from'] == str(paths[0])
  spent = sum(r['cpu_seconds'] for r in [*records.values(), *below.values()]) / 3600
  assert runner.past(e.scales['cpu'], records) == pytest.approx(spent)


@pytest.mark.slow
def test_the_page_tells_of_it_and_counts_it(done):
  e, folder, _, _, page = done
  assert 'lion begins from an earlier run of its seed: 4 steps.' in page
  records = results.read(folder)['scales']['cpu']['records']
  paid = [*records, *results.below(records).values()]
  assert f'{sum(r["cpu_seconds"] for r in paid) / 3600:.2f} core-hours' in page


@pytest.mark.slow
def test_what_ended_is_not_run_again(done, monkeypatch):
  e, folder, runs, *_ = done
  monkeypatch.setattr(checks, 'load', lambda where: e)
  monkeypatch.setattr(execute, '_attempt', lambda *args: pytest.fail('it ran'))
  said = []
  assert runner.run(folder, 'cpu', runs, local.Local(), said.append) == 0
  assert any('0 to run' in line and 'about 0.00' in line for line in said)


def test_a_run_that_did_not_end_is_named(tmp_path):
  t = trial(experiment())
  outcome = remote.guarded(t, tmp_path, measures.final_loss, None, execute.Stopping())
  assert outcome['status'] == 'failed'
  assert 'begins from lion, run 1 before, 4 steps, seed 1: it has not ended' in outcome['message']
  path = execute.folder(tmp_path, t.before)
  path.mkdir()
  bad = dict.fromkeys((*execute.COST, 'loss', 'tokens', 'step_time', 'state_bytes', 'versions'))
  (path / 'outcome.json').write_text(json.dumps(bad | dict(status='diverged', message='nan at 3')))
  outcome = remote.guarded(t, tmp_path, measures.final_loss, None, execute.Stopping())
  assert outcome['message'].endswith('seed 1: diverged nan at 3')


def test_estimates_count_each_run_before_once(monkeypatch):
  monkeypatch.setattr(runner, '_seconds', lambda s, t, known: t.steps)
  hours = lambda e: runner.estimate(e, 'cpu', {})[2] * 3600
  # 2 arms x (2 points + 2 seeds) x 6 steps, and 3 seeds x 4 steps
  assert hours(experiment()) == pytest.approx(48 + 12)
  assert hours(experiment(({**FIRST, 'optim': 'sgd()'},))) == pytest.approx(48 + 24)


@pytest.mark.parametrize(
  'before, fields, text',
  [
    (({'optim': 'adam()'},), None, r'before\[0\]: steps=None: a number of steps is expected'),
    (({'steps': True},), None, r'before\[0\]: steps=True: a number'),
    (({'steps': 2, 'seed': 3},), None, r"before\[0\]: 'seed' is the trial's"),
    ('later', None, "before='later': a tuple of dictionaries"),
    ((3,), None, 'a tuple of dictionaries'),
    (({**FIRST, 'init_from': '{before}'},), None, "init_from='{before}': no run is before"),
    ((FIRST, SECOND), None, "has 2 runs and the baseline 1; declare 'before' in fields="),
    ((), None, 'has 0 runs and the baseline 1'),
    (({**FIRST, 'model.width': 32},), None, 'arm lion changes config.model.width'),
    (({**FIRST, 'model.widht': 32},), None, 'arm lion: .*widht'),
  ],
)
def test_refused_by_name(before, fields, text):
  with pytest.raises(ExperimentError, match=text):
    e = experiment(before)
    checks.check(e, 'here')
    trials.tuning(e, 'cpu')


def test_unequal_numbers_of_runs_may_be_declared():
  e = experiment((), fields=('optim', 'peak_lr', 'before', 'init_from'))
  assert {t.before is None for t in trials.tuning(e, 'cpu')} == {True, False}


def test_manifests_are_refused():
  with pytest.raises(ExperimentError, match='lion, 6 steps.* begins from another run'):
    jobset.manifest(trial(experiment()), 'x', 'cpu', '/runs', None)

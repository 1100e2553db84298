"""The runner with an engine that costs nothing: tuning, seeds, resuming, failures, staleness."""

import json
import math

import pytest

import _fake
from lmjax.experiment import __main__ as command
from lmjax.experiment import Arm
from lmjax.experiment import declare
from lmjax.experiment import results
from lmjax.experiment import runner
from lmjax.experiment import Scale
from lmjax.experiment import summary
from lmjax.experiment import tables


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A folder whose experiment is `_fake.experiment(**folder.changes)`."""

  class Folder(type(tmp_path)):
    changes: dict = {}

  monkeypatch.setattr(declare, 'load', lambda where: _fake.experiment(**Folder.changes))
  monkeypatch.setattr(runner, '_listen', lambda engine, say: [])
  found = Folder(tmp_path / 'mine')
  found.mkdir()
  (found / 'experiment.py').write_text('')
  yield found


def run(folder, engine=None, **how):
  said = []
  engine = engine or _fake.Engine()
  status = runner.run(folder, 'cpu', folder / 'runs', engine, said.append, **how)
  return status, '\n'.join(said), engine


def summarized(folder):
  return summary.summarize(declare.load(folder), 'cpu', results.read(folder))


def test_every_arm_is_tuned_and_its_best_point_is_run_on_other_seeds(folder):
  status, said, engine = run(folder)
  assert status == 0 and '24 of' not in said
  tuning, seeds = engine.ran[:24], engine.ran[24:]
  assert {t.seed for t in tuning} == {0} and {t.seed for t in seeds} == {1, 2, 3}
  assert {t.point['peak_lr'] for t in seeds} == {1e-2}
  assert len(seeds) == 3 * (4 + 2 + 2)
  s = summarized(folder)
  assert not s.missing and all(c.tuned == 3 for c in s.cells)
  assert all(len(c.sample.values) == 3 for c in s.cells)
  want = sum(_fake.loss('adam', 1e-2, 50, i) for i in (1, 2, 3)) / 3
  assert s.cell('adam', 50).sample.mean == pytest.approx(want)


def test_verdicts_and_speedups_follow(folder):
  run(folder)
  s = summarized(folder)
  assert s.verdicts == {'lion': 'reproduced', 'sgd': 'contradicted'}
  lion = next(c for c in s.comparisons if (c.cell.arm.name, c.cell.steps) == ('lion', 50))
  assert lion.speedup.value == pytest.approx(3, rel=1e-3) and not lion.beyond
  assert lion.steps_equivalent == pytest.approx(150, rel=1e-3)
  at_100 = next(c for c in s.comparisons if (c.cell.arm.name, c.cell.steps) == ('lion', 100))
  assert at_100.beyond, 'the curve ends at 200 steps'


def test_what_is_finished_is_not_run_again(folder):
  _, _, first = run(folder)
  status, said, again = run(folder)
  assert status == 0 and again.ran == [] and '48 trials, 0 to run' in said


def test_results_travel_without_run_directories(folder):
  """A runner killed after some trials goes on elsewhere from results.json alone."""

  class Killed(Exception):
    pass

  class Short(_fake.Engine):
    def run(self, trials, runs, measure):
      for i, pair in enumerate(super().run(trials, runs, measure)):
        if i == 5:
          raise Killed
        yield pair

  with pytest.raises(Killed):
    run(folder, Short())
  assert len(results.read(folder)['scales']['cpu']['records']) == 5
  _, _, engine = run(folder)
  assert len(engine.ran) == 48 - 5
  assert not summarized(folder).missing


def test_a_failed_arm_does_not_lose_the_others(folder):
  fail = lambda t: _fake.record(t, status='failed', message='status 2: no', value=None)
  bad = lambda t: fail(t) if t.arm == 'sgd' else None
  status, said, _ = run(folder, _fake.Engine(bad))
  assert status == 1 and 'sgd, 50 steps, seed 0, peak_lr=0.001: failed status 2: no' in said
  s = summarized(folder)
  assert s.verdicts == {'lion': 'reproduced', 'sgd': 'incomplete'}
  assert any('sgd' in m and 'failed: status 2: no' in m for m in s.missing)
  status, _, engine = run(folder)  # what failed is tried again
  assert status == 0 and {t.arm for t in engine.ran} == {'sgd'}
  assert summarized(folder).verdicts['sgd'] == 'contradicted'


def test_a_point_that_diverges_is_never_the_best(folder):
  gone = lambda t: _fake.record(t, status='diverged', message='broke', value=None, loss=None)
  bad = lambda t: gone(t) if t.point['peak_lr'] == 1e-2 and t.arm == 'lion' else None
  run(folder, _fake.Engine(bad))
  s = summarized(folder)
  assert s.cell('lion', 100).best['peak_lr'] in (1e-3, 1e-1) and not s.missing
  assert s.cell('lion', 100).edge == ['peak_lr']


@pytest.mark.parametrize('seeds', [(0,), (2,)])
def test_an_arm_that_diverges_is_a_verdict(folder, seeds):
  gone = lambda t: _fake.record(t, status='diverged', message='broke', value=None, loss=None)
  bad = lambda t: gone(t) if t.arm == 'lion' and t.seed in seeds else None
  status, _, _ = run(folder, _fake.Engine(bad))
  s = summarized(folder)
  assert status == 0 and s.verdicts['lion'] == 'diverged' and s.verdicts['sgd'] == 'contradicted'
  text = tables.table(declare.load(folder), 'cpu', results.read(folder))
  assert 'Diverged: lion' in text


def test_a_best_value_on_the_edge_is_flagged(folder):
  folder.changes.update(
    baseline=Arm('adam', {'optim': 'adam()'}, {'peak_lr': (1e-2, 3e-2, 1e-1)}),
  )
  run(folder)
  s = summarized(folder)
  assert s.cell('adam', 100).edge == ['peak_lr'] and s.cell('lion', 100).edge == []
  text = tables.table(declare.load(folder), 'cpu', results.read(folder))
  assert 'peak_lr=0.01 (edge)' in text and 'edge of its grid: adam at 25 steps' in text
  assert 'on the edge of a grid' in tables.index(folder.parent)


def test_results_of_another_config_are_stale(folder):
  run(folder)
  folder.changes.update(changes=_fake.TINY | {'model.width': 32})
  s = summarized(folder)
  assert s.stale == 48 and s.verdicts == {'lion': 'incomplete', 'sgd': 'incomplete'}
  text = tables.table(declare.load(folder), 'cpu', results.read(folder))
  assert 'Stale and left out: 48 records' in text
  _, said, engine = run(folder)
  assert len(engine.ran) == 48 and summarized(folder).stale == 0
  assert summarized(folder).verdicts['lion'] == 'reproduced'


def test_results_of_other_code_are_stale(folder, monkeypatch):
  from lmjax.experiment import code

  run(folder)
  old = code.fingerprint
  changed = lambda c: old(c)[::-1] if c['optim'].startswith('lion') else old(c)
  monkeypatch.setattr(code, 'fingerprint', changed)
  s = summarized(folder)
  assert s.stale == 12 and s.verdicts == {'lion': 'incomplete', 'sgd': 'contradicted'}


def test_one_run_serves_arms_of_one_config(folder):
  folder.changes.update(treatments=(Arm('twin', {'optim': 'adam()'}, _fake.GRID),))
  _, _, engine = run(folder)
  assert len(engine.ran) == 4 * 6 and not summarized(folder).missing
  assert summarized(folder).cell('twin', 100).sample.mean == pytest.approx(
    summarized(folder).cell('adam', 100).sample.mean
  )


def test_hours_beyond_the_declared_are_refused(folder):
  folder.changes.update(scales={'cpu': Scale((50, 10**8), hours=2)})
  with pytest.raises(
    declare.ExperimentError, match=r"in all are more than scales\['cpu'\].hours=2"
  ):
    run(folder)
  assert not (folder / 'runs').exists()


def test_a_dry_run_runs_nothing(folder):
  status, said, engine = run(folder, dry=True)
  assert status == 0 and engine.ran == [] and 'core-hours' in said
  assert 'each tuned over 3 points at each budget (50, 100 steps) on seed 0' in said


def test_hours_are_estimated_from_what_was_measured(folder):
  run(folder, _fake.Engine(lambda t: _fake.record(t, cpu_seconds=12 + t.steps)))
  records = results.read(folder)
  known = results.known(records, 'cpu')
  kept = {k: r for k, r in known.items() if r['seed'] == 0}
  n, left, hours = runner.estimate(declare.load(folder), 'cpu', kept)
  steps = 3 * (25 + 50 + 100 + 200) + 2 * 3 * (50 + 100)
  assert (n, left) == (48, 24) and hours == pytest.approx((24 * 12 + steps) / 3600)


@pytest.mark.parametrize(
  'text', ['{', '[]', '{"scales": 3}', '{"scales": {"cpu": {"records": [{"arm": "x"}]}}}']
)
def test_results_that_cannot_be_read_are_refused_and_kept(folder, text):
  (folder / 'results.json').write_text(text)
  with pytest.raises(declare.ExperimentError, match='results.json is not what `run` writes'):
    run(folder)
  assert (folder / 'results.json').read_text() == text


def test_results_are_valid_json_and_stable(folder):
  run(folder)
  text = (folder / 'results.json').read_text()
  json.loads(text, parse_constant=lambda x: pytest.fail(x))
  results.write(folder, results.read(folder))
  assert (folder / 'results.json').read_text() == text


def test_the_index_has_a_line_for_each_treatment(folder):
  assert tables.index(folder.parent).count('\n') == 1
  run(folder)
  lines = tables.index(folder.parent).split('\n')[2:]
  assert [x.split(' | ')[0] for x in lines] == ['| lion', '| sgd']
  assert '| reproduced |' in lines[0] and '[mine](experiments/mine/results.md)' in lines[0]
  readme = f'before\n{tables.BEGIN}\nold\n{tables.END}\nbehind\n'
  new = tables.with_index(readme, 'new')
  assert new == f'before\n{tables.BEGIN}\nnew\n{tables.END}\nbehind\n'
  with pytest.raises(declare.ExperimentError, match='README.md: <!-- index of methods'):
    tables.with_index('nothing', 'x')


def test_commands(folder, capsys, monkeypatch, tmp_path):
  assert command.main(['report', str(folder)]) == 2
  assert 'no results.json yet' in capsys.readouterr().err
  run(folder)
  pytest.importorskip('matplotlib')
  assert command.main(['report', str(folder)]) == 0
  first = (folder / 'results-cpu.svg').read_bytes()
  page = (folder / 'results.md').read_text()
  assert '## Scale cpu' in page and 'lion' in page and b'<svg' in first
  assert command.main(['report', str(folder)]) == 0
  assert (folder / 'results-cpu.svg').read_bytes() == first, 'the figure is a function of results'
  assert command.main(['list', f'--root={tmp_path}']) == 0
  assert 'reproduced' in capsys.readouterr().out
  assert command.main(['run', str(folder), '--engine=cloud']) == 2
  assert '--engine=cloud: local, ray, slurm are known' in capsys.readouterr().err


def test_numbers_in_tables():
  assert tables.number(math.nan) == '-' and tables.number(math.inf) == 'inf'
  assert tables.row('a|b', 1) == '| a\\|b | 1 |'

"""The runner with an engine that costs nothing: tuning, seeds, resuming, failures, staleness."""

import json
import math
import pathlib
import sys

import pytest

import _fake
from lmjax.experiment import __main__ as command
from lmjax.experiment import Arm
from lmjax.experiment import checks
from lmjax.experiment import declare
from lmjax.experiment import Faster
from lmjax.experiment import results
from lmjax.experiment import runner
from lmjax.experiment import Scale
from lmjax.experiment import summary
from lmjax.experiment import tables
from lmjax.experiment import trials


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A folder whose experiment is `_fake.experiment(**folder.changes)`."""

  class Folder(type(tmp_path)):
    changes: dict = {}

  monkeypatch.setattr(checks, 'load', lambda where: _fake.experiment(**Folder.changes))
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
  return summary.summarize(checks.load(folder), 'cpu', results.read(folder))


def test_every_arm_is_tuned_and_its_best_point_is_run_on_other_seeds(folder):
  status, said, engine = run(folder)
  assert status == 0 and '24 of' not in said
  tuning, seeds = engine.ran[:24], engine.ran[24:]
  assert {t.seed for t in tuning} == {0} and {t.seed for t in seeds} == {1, 2, 3}
  assert {t.point['peak_lr'] for t in seeds} == {1e-2}
  assert len(seeds) == 3 * (4 + 2 + 2)
  s = summarized(folder)
  assert not s.missing and all(len(c.tuning) == 3 for c in s.cells)
  assert all(len(c.sample.values) == 3 for c in s.cells)
  want = sum(_fake.loss('adam', 1e-2, 50, i) for i in (1, 2, 3)) / 3
  assert s.cell('adam', 50).sample.mean == pytest.approx(want)


def test_what_is_compared_may_pick_the_best_point(folder, monkeypatch):
  """The lowest loss is at 0.01, the lowest value at 0.001."""
  e = _fake.experiment(tuned_on='measure')
  monkeypatch.setattr(checks, 'load', lambda where: e)
  engine = _fake.Engine(lambda t: _fake.record(t, value=t.point['peak_lr'] * (1 + t.seed)))
  runner.run(folder, 'cpu', folder / 'runs', engine, lambda text: None)
  assert {t.point['peak_lr'] for t in engine.ran if t.seed} == {1e-3}
  assert summarized(folder).cell('lion', 100).best == {'peak_lr': 1e-3}
  assert 'the best by what is compared' in tables.page(folder)


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
  text = tables.table(checks.load(folder), 'cpu', results.read(folder))
  assert 'Diverged: lion' in text and ('every point diverged' in text) == (seeds == (0,))
  _, said, again = run(folder)
  assert again.ran == [] and ', 0 to run' in said


def test_a_best_value_on_the_edge_is_flagged(folder):
  folder.changes.update(
    baseline=Arm('adam', {'optim': 'adam()'}, {'peak_lr': (1e-2, 3e-2, 1e-1)}),
  )
  run(folder)
  s = summarized(folder)
  assert s.cell('adam', 100).edge == ['peak_lr'] and s.cell('lion', 100).edge == []
  text = tables.table(checks.load(folder), 'cpu', results.read(folder))
  assert 'peak_lr=0.01 (edge)' in text and 'edge of its grid: adam at 25 steps' in text
  assert 'on the edge of a grid' in tables.index(folder.parent)


def test_results_of_another_config_are_stale(folder):
  run(folder)
  folder.changes.update(changes=_fake.TINY | {'model.width': 32})
  s = summarized(folder)
  assert s.stale == 48 and s.verdicts == {'lion': 'incomplete', 'sgd': 'incomplete'}
  text = tables.table(checks.load(folder), 'cpu', results.read(folder))
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
  trials.forget()
  s = summarized(folder)
  trials.forget()
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
  known = results.known(records, 'cpu', _fake.experiment().measured)
  kept = {k: r for k, r in known.items() if r['seed'] == 0}
  n, left, hours = runner.estimate(checks.load(folder), 'cpu', kept)
  steps = 3 * (25 + 50 + 100 + 200) + 2 * 3 * (50 + 100)
  assert (n, left) == (48, 24) and hours == pytest.approx((24 * 12 + steps) / 3600)


@pytest.mark.parametrize(
  'text, why',
  [
    ('{', 'Expecting'),
    ('[]', 'it has no scales'),
    ('{"scales": 3}', 'it has no scales'),
    ('{"scales": {}, "version": 99}', 'version 99 instead of 1'),
    ('{"scales": {"cpu": []}}', "scale 'cpu' has no records"),
    ('{"scales": {"cpu": {"records": [3]}}}', 'record 0: no record'),
    ('{"scales": {"cpu": {"records": [{"arm": "x"}]}}}', 'record 0: point is None'),
  ],
)
def test_results_that_cannot_be_read_are_refused_and_kept(folder, text, why):
  (folder / 'results.json').write_text(text)
  with pytest.raises(
    declare.ExperimentError, match=rf'results.json is not what `run` writes \(.*{why}'
  ):
    run(folder)
  assert (folder / 'results.json').read_text() == text


@pytest.mark.parametrize(
  'key, value',
  [('value', '3.0'), ('loss', True), ('cpu_seconds', None), ('point', 3), ('versions', 'x')]
  + [('identity', []), ('tokens', 'many')],
)
def test_an_edited_record_is_named(folder, key, value):
  run(folder)
  found = results.read(folder)
  found['scales']['cpu']['records'][5][key] = value
  results.write(folder, found)
  with pytest.raises(declare.ExperimentError, match=f'record 5: {key} is '):
    run(folder)


def test_numbers_of_two_measures_are_never_mixed(folder):
  folder.changes.update(measure=_fake.within(3))
  _, _, first = run(folder)
  assert len(first.ran) == 48 and not summarized(folder).stale
  folder.changes.update(measure=_fake.within(4), seeds=(1, 2, 3, 4))
  s = summarized(folder)
  assert s.stale == 48 and not any(c.sample.values for c in s.cells)
  _, _, again = run(folder)
  assert len(again.ran) == 56 and all(len(c.sample.values) == 4 for c in summarized(folder).cells)


def test_two_runners_of_a_folder_lose_nothing(folder):
  """The second one runs whole while the first is between two trials."""
  scales = {'cpu': Scale((50, 100), baseline_budgets=(25, 200)), 'gpu': Scale((60, 70))}
  folder.changes.update(scales=scales)

  class Interrupted(_fake.Engine):
    def run(self, trials, runs, measure):
      for i, pair in enumerate(super().run(trials, runs, measure)):
        if i == 3 and trials[0].seed == 0:
          runner.run(folder, 'gpu', folder / 'runs', _fake.Engine(), lambda text: None)
        yield pair

  run(folder, Interrupted())
  found = results.read(folder)['scales']
  assert len(found['cpu']['records']) == 48 and len(found['gpu']['records']) == 36


def test_a_longer_grid_keeps_what_it_has(folder):
  """Records know their own points, of fewer keys than the grid's of today."""
  run(folder)
  longer = {'peak_lr': (1e-3, 1e-2, 1e-1), 'bad_steps.limit': (50, 60)}
  arms = dict(
    baseline=Arm('adam', {'optim': 'adam()'}, longer),
    treatments=(Arm('lion', {'optim': 'lion()'}, longer),),
  )
  folder.changes.update(arms, fields=('optim', 'peak_lr', 'bad_steps.*'))
  s = summarized(folder)
  assert all(len(c.tuning) == 3 and c.best is None for c in s.cells)
  _, _, engine = run(folder)
  assert {t.point['bad_steps.limit'] for t in engine.ran if t.seed == 0} == {60}
  s = summarized(folder)
  assert all(set(c.best) == set(longer) for c in s.cells) and not s.missing


def test_survivors_of_the_baseline_are_no_baseline(folder):
  gone = lambda t: _fake.record(t, status='diverged', message='broke', value=None, loss=None)
  bad = lambda t: gone(t) if t.arm == 'adam' and t.seed == 1 and t.steps == 25 else None
  run(folder, _fake.Engine(bad))
  # `sgd` is compared at 100 steps alone; the speed-up of `lion` needs the whole curve.
  assert summarized(folder).verdicts == {'lion': 'the baseline diverged', 'sgd': 'contradicted'}


def test_a_measure_without_a_number_is_missing_not_diverged(folder):
  bad = lambda t: _fake.record(t, value=None) if (t.arm, t.seed) == ('lion', 2) else None
  run(folder, _fake.Engine(bad))
  s = summarized(folder)
  assert s.verdicts['lion'] == 'incomplete' and not s.diverged
  assert s.missing[0] == 'lion, 50 steps, seed 2 (its measure gives no number)'


def test_seeds_that_are_no_longer_asked_for_are_told(folder):
  run(folder)
  folder.changes.update(seeds=(1, 2))
  s = summarized(folder)
  assert (s.stale, s.unused) == (0, 8)
  assert 'Left out: 8 records of seeds' in tables.table(
    checks.load(folder), 'cpu', results.read(folder)
  )
  folder.changes.update(seeds=(1,))
  assert 'One seed: no spread, hence no verdict.' in summarized(folder).notes


def test_a_twin_that_is_gone_leaves_what_the_other_uses(folder):
  folder.changes.update(treatments=(Arm('twin', {'optim': 'adam()'}, _fake.GRID),))
  run(folder)
  folder.changes.update(treatments=(Arm('lion', {'optim': 'lion()'}, _fake.GRID),))
  assert summarized(folder).stale == 0


def test_arms_on_unlike_devices_are_told(folder):
  other = lambda t: _fake.record(t, versions=dict(device='H100')) if t.arm == 'lion' else None
  run(folder, _fake.Engine(other))
  assert 'lion, 50 steps: ran on H100, the baseline on cpu.' in summarized(folder).notes


def test_extrapolated_speedups_are_not_counted_as_measured(folder):
  """At 100 steps the curve ends at twice that; 3 times are said, and more than 2 not claimed."""
  lion = lambda times: (Arm('lion', {'optim': 'lion()'}, _fake.GRID, Faster(times)),)
  folder.changes.update(treatments=lion(2.5))
  run(folder)
  assert summarized(folder).verdicts == {'lion': 'direction only'}
  assert '3.00 beyond the curve' in tables.index(folder.parent)
  folder.changes.update(treatments=lion(1.9))
  assert summarized(folder).verdicts == {'lion': 'reproduced'}


def test_steps_equivalent_with_unlike_batches(folder):
  """Twice the batch and 3 times the speed: of 50 steps, 128 tokens each, 300."""
  folder.changes.update(
    treatments=(Arm('lion', {'optim': 'lion()', 'batch_tokens': 256}, _fake.GRID, Faster(1.5)),),
    fields=('optim', 'peak_lr', 'batch_tokens'),
  )
  double = lambda t: _fake.record(t, tokens=256 * t.steps) if t.arm == 'lion' else None
  run(folder, _fake.Engine(double))
  c = summarized(folder).comparisons[0]
  assert c.steps_equivalent == pytest.approx(150, rel=1e-3)
  assert c.speedup.value == pytest.approx(1.5, rel=1e-3)


@pytest.mark.parametrize('change', [dict(cpu_seconds=3.0), dict(memory=0), dict(step_time=0.0)])
def test_costs_that_say_nothing_are_not_shown(folder, change):
  run(folder, _fake.Engine(lambda t: _fake.record(t, **change, versions=dict(backend='cpu'))))
  lines = tables.table(checks.load(folder), 'cpu', results.read(folder)).split('\n')
  lion = next(x for x in lines if x.startswith('| lion | 100'))
  assert lion.split(' | ')[-2] == '-' and '-1' not in lion


def test_hours_are_looked_at_between_the_stages(folder):
  """Accelerators that were never timed are let through once, no further."""
  folder.changes.update(
    scales={'cpu': Scale((50, 100), hours=0.01, gpus=1)},
    treatments=(Arm('lion', {'optim': 'lion()'}, _fake.GRID),),
  )
  slow = _fake.Engine(lambda t: _fake.record(t, seconds=3600.0))
  with pytest.raises(declare.ExperimentError, match='accelerator-hours in all are more than'):
    run(folder, slow)
  assert {t.seed for t in slow.ran} == {0} and len(results.read(folder)['scales']['cpu']['records'])


def test_a_folder_that_cannot_be_written_is_known_before_anything_runs(folder, monkeypatch):
  def full(path, text):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(results.files, 'write', full)
  engine = _fake.Engine()
  with pytest.raises(declare.ExperimentError, match='results.json cannot be written: No space'):
    run(folder, engine)
  assert engine.ran == []


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
  assert command.main(['index', f'--root={tmp_path}/typo']) == 2
  assert 'typo: no experiments there' in capsys.readouterr().err
  assert command.main(['run', str(folder), '--jobs=-1']) == 2
  assert '--jobs=-1: trials at a time' in capsys.readouterr().err
  assert command.main(['run', str(folder), '--option=x=1']) == 2
  assert '--engine=local takes no --option=x' in capsys.readouterr().err
  with pytest.raises(SystemExit):
    command.main(['run', str(folder), '--scal=cpu'])
  assert command.main(['run', str(folder), '--engine=cloud']) == 2
  assert '--engine=cloud: local, ray, slurm are known' in capsys.readouterr().err


def test_numbers_in_tables():
  assert tables.number(math.nan) == '-' and tables.number(math.inf) == 'inf'
  assert tables.row('a|b', 1) == '| a\\|b | 1 |'


def test_one_broken_experiment_hides_no_other(tmp_path, capsys):
  for name, text in (('a', 'def get_experiment(:'), ('b', GOOD), ('c', GOOD)):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'experiment.py').write_text(text)
  results.write(tmp_path / 'c', {'scales': {'gone': {'records': []}}})
  assert command.main(['list', f'--root={tmp_path}']) == 2
  said = capsys.readouterr().out
  assert f'{tmp_path}/a: {tmp_path}/a/experiment.py: SyntaxError' in said
  assert f'{tmp_path}/b: not run yet' in said
  assert f"{tmp_path}/c: has results of scale 'gone', which it declares no more" in said


GOOD = f"""
from __future__ import annotations
import dataclasses
import sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
import _fake

@dataclasses.dataclass
class Own:
  x: int = 3

def get_experiment():
  return _fake.experiment()
"""


def test_a_reader_that_leaves_does_not_end_the_run(monkeypatch):
  class Closed:
    def write(self, text):
      raise BrokenPipeError

    flush = write

  monkeypatch.setattr('sys.stdout', Closed())
  command.say('one')
  command.say('two')


def test_without_matplotlib_what_ran_is_kept(folder, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  monkeypatch.setattr(command.engines, 'make', lambda *_: _fake.Engine())
  words = ['run', str(folder), f'--runs={folder}/runs']
  assert command.main(words) == 0
  assert "pip install 'lmjax[experiment]'" in capsys.readouterr().err
  assert (folder / 'results.md').exists()
  fail = lambda t: _fake.record(t, status='failed', message='no', value=None)
  folder.changes.update(seeds=(7, 8))
  monkeypatch.setattr(command.engines, 'make', lambda *_: _fake.Engine(fail))
  assert command.main(words) == 1


def test_a_second_interrupt_is_told_in_a_line(folder, capsys, monkeypatch):
  def interrupted(*_, **__):
    raise KeyboardInterrupt

  monkeypatch.setattr(runner, 'run', interrupted)
  assert command.main(['run', str(folder)]) == 130
  assert 'interrupted; what had finished is kept' in capsys.readouterr().err


def test_a_speedup_that_cannot_be_read_is_told(folder):
  flat = lambda t: 3.0 + 0.001 * t.seed if t.arm == 'adam' else _fake.loss(t.arm, 1e-2, 50, t.seed)
  run(folder, _fake.Engine(lambda t: _fake.record(t, value=flat(t), loss=flat(t))))
  s = summarized(folder)
  assert s.verdicts == {'lion': 'incomplete', 'sgd': 'contradicted'}
  told = [x for x in s.notes if 'no speed-up' in x]
  assert told == [
    f"lion, {n} steps: no speed-up, since the baseline's curve does not fall there."
    for n in (50, 100)
  ]

"""Steps that must change nothing: they are recorded with their documents, a run of them rewinds or
ends, and what is skipped stays skipped over a restart.
"""

import json
import pathlib
import subprocess
import sys

import _runs
import pytest

from lmjax.checkpoint import tool
from lmjax.data import skips

MARK = '\x01'
OUTSIDE = 'tests.outside.poison'


@pytest.fixture(scope='module')
def poisoned(tmp_path_factory):
  return _runs.texts(tmp_path_factory.mktemp('texts'), poison=MARK)


@pytest.fixture(scope='module')
def sound(tmp_path_factory):
  return _runs.texts(tmp_path_factory.mktemp('texts'))


def records(workdir):
  path = pathlib.Path(workdir) / 'bad_steps.jsonl'
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope='module')
def met(poisoned, tmp_path_factory):
  """A run that meets the poisoned document: (directory, its refused steps)."""
  workdir = tmp_path_factory.mktemp('met') / 'w'
  status = _runs.run(workdir, poisoned, steps=60, objective=f'{OUTSIDE}:Poisoned()', log_every=7)
  assert status == 0
  return workdir, records(workdir)


def test_a_poisoned_batch_is_recorded_and_not_met_for_ever(met):
  """Also on steps between those that are logged."""
  workdir, found = met
  assert found and all(r['loss'] == 'NaN' for r in found)
  assert [r['step'] for r in found] == [r['batch'] + 1 for r in found]
  assert all(r['streak'] == 1 for r in found)
  assert not all(r['step'] % 7 == 0 for r in found)
  for r in found:
    spans = [(d['source'], s[0]) for d in r['documents'] for s in d['spans']]
    assert ('jsonl_2', 30) in spans, 'the poisoned document is named'
    assert len(r['documents']) == 8
    assert {'grad_norm', 'grad_norm/embed', 'grad_norm/segment_0/0_block/ffn'} <= set(r)
  last = _runs.lines(workdir)[-1]
  assert last['step'] == 60 and last['skipped'] == len(found) and last['loss'] < 5
  clean = [r for r in range(60) if r not in [f['batch'] for f in found]]
  assert len(clean) > 50


def test_no_update_is_applied(met, sound, tmp_path):
  """The state after a refused step is the one before it, but for the counters."""
  workdir, found = met
  bad = found[0]['step']
  settings = dict(objective=f'{OUTSIDE}:Poisoned()', keep_last=100, checkpoint_every=1)
  train = json.loads((workdir / 'config.json').read_text())['data']['train']
  assert _runs.run(tmp_path / 'w', train, steps=bad, **settings) == 0
  before, after = (_runs.arrays(tmp_path / 'w', s) for s in (bad - 1, bad))
  assert set(_runs.same_arrays(before, after)) == {'/step', '/skipped', '/streak'}


@pytest.mark.parametrize(
  'kind, guard', [('Infinite', ''), ('Spiking', 'spikes(window=8,sigmas=6)')]
)
def test_inf_and_spikes(poisoned, met, tmp_path, kind, guard):
  settings = dict(objective=f'{OUTSIDE}:{kind}()', guard=guard, steps=met[1][0]['step'] + 1)
  assert _runs.run(tmp_path / 'w', poisoned, **settings) == 0
  assert [r['batch'] for r in records(tmp_path / 'w')] == [met[1][0]['batch']]


def test_skipped_batches_are_left_out_and_survive_a_resume(met, poisoned, tmp_path, capsys):
  """Skipping the poisoned batch, stopping in between: equal to the straight run, and never bad."""
  bad = met[1][0]['batch']
  how = dict(objective=f'{OUTSIDE}:Poisoned()')
  flag = f'--skip_batches={bad}, {bad + 2}:{bad + 4}'
  straight, parts = tmp_path / 'straight', tmp_path / 'parts'
  assert _runs.run(straight, poisoned, flag, steps=bad + 8, **how) == 0
  assert not records(straight)
  # `steps` may not grow under this schedule; a stop in between is a kill after a save.
  first = max(1, bad - 1)
  assert _runs.run(parts, poisoned, flag, steps=bad + 8, checkpoint_every=first, **how) == 0
  newer = [s for s in (parts / 'checkpoints').iterdir() if s.name.isdigit() and int(s.name) > first]
  for folder in newer:
    folder.rename(parts / folder.name)
  capsys.readouterr()
  assert _runs.run(parts, poisoned, steps=bad + 8, checkpoint_every=first, **how) == 0
  assert f'resumed at step {first}' in capsys.readouterr().err
  assert not _runs.same_arrays(_runs.arrays(straight, bad + 8), _runs.arrays(parts, bad + 8))
  assert skips.read(parts).ranges == ((bad, bad + 1), (bad + 2, bad + 4))


@pytest.mark.slow
def test_skips_in_the_past_are_refused(sound, tmp_path, capsys):
  assert _runs.run(tmp_path / 'w', sound, steps=8) == 0
  assert _runs.run(tmp_path / 'w', sound, '--skip_batches=3', steps=8) == 2
  assert 'batch 3 was trained on before step 8' in capsys.readouterr().err
  assert not (tmp_path / 'w/skips.json').exists()
  go_back = lambda step: tool.main(['rewind', str(tmp_path / 'w'), f'--step={step}'])
  assert go_back(5) == 2
  assert 'has no such step; it has 4, 8' in capsys.readouterr().err
  assert go_back(4) == 0
  for _ in range(2):  # a scheduler repeats the command, and it stays at what it reached
    assert _runs.run(tmp_path / 'w', sound, '--skip_batches=6', steps=8) == 0
  said = capsys.readouterr().err
  assert said.count('resumed at step 4') == 1 and 'this run is complete' in said
  assert _runs.lines(tmp_path / 'w')[-1]['step'] == 8
  assert [p.name for p in (tmp_path / 'w/checkpoints').glob('*-8-0')] == ['rewound-8-0']


def test_a_run_in_use_is_not_rewound(sound, tmp_path, capsys):
  assert _runs.run(tmp_path / 'w', sound, steps=8) == 0
  code = 'import sys, time; from lmjax import rundir\nwith rundir.held(sys.argv[1]): '
  code += 'print(flush=True); time.sleep(60)'
  with subprocess.Popen(
    [sys.executable, '-c', code, str(tmp_path / 'w')], stdout=subprocess.PIPE
  ) as holder:
    holder.stdout.readline()
    assert tool.main(['rewind', str(tmp_path / 'w'), '--step=4']) == 2
    holder.kill()
  assert f'in use by process {holder.pid}' in capsys.readouterr().err
  assert (tmp_path / 'w/checkpoints/8').is_dir()


def test_too_many_in_a_row_end_the_run(sound, tmp_path, capsys):
  """From a learning rate that destroys the model: the last checkpoints before it stay whole."""
  how = dict(steps=40, peak_lr=1e30, bad_steps__limit=5, optim='sgd()', schedule='constant()')
  assert _runs.run(tmp_path / 'w', sound, **how) == 65
  said = capsys.readouterr().err
  assert 'the last 5 updates were refused' in said and 'Traceback' not in said
  found = records(tmp_path / 'w')
  assert [r['streak'] for r in found][-5:] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_a_rewind_goes_back_and_leaves_the_batches_out(met, poisoned, tmp_path, capsys):
  """limit=1: the first bad batch sends the run back three steps; then it never meets it again."""
  bad = met[1][0]['batch']
  how = dict(
    objective=f'{OUTSIDE}:Poisoned()',
    steps=bad + 12,
    checkpoint_every=2,
    keep_last=8,
    bad_steps__limit=1,
    bad_steps__rewind=3,
    bad_steps__skip=6,
    log_every=5,
  )
  assert _runs.run(tmp_path / 'a', poisoned, **how) == 0
  said = capsys.readouterr().err
  back = bad - 3
  assert f'rewind to step {back} after 1 refused updates up to step {bad + 1}' in said
  assert f'resumed at step {back // 2 * 2}' in said
  assert skips.read(tmp_path / 'a').ranges[0] == (back, back + 6)
  lines = _runs.lines(tmp_path / 'a')
  assert lines[-1]['step'] == bad + 12 and lines[-1]['skipped'] == 0
  # Whatever is logged, and wherever it was killed, the same batches are left out.
  assert _runs.run(tmp_path / 'b', poisoned, **how | dict(log_every=1)) == 0
  assert not _runs.same_arrays(
    _runs.arrays(tmp_path / 'a', bad + 12), _runs.arrays(tmp_path / 'b', bad + 12)
  )


@pytest.mark.slow
def test_a_rewind_that_was_killed_is_taken_up(met, poisoned, tmp_path, capsys):
  """skips.json is written before anything else: a checkpoint that saw those batches is not used."""
  bad = met[1][0]['batch']
  assert bad >= 4
  how = dict(objective=f'{OUTSIDE}:Poisoned()', steps=bad + 4, checkpoint_every=1, keep_last=50)
  assert _runs.run(tmp_path / 'w', poisoned, **how) == 0
  for s in (bad + 4, bad + 3):
    (tmp_path / f'w/checkpoints/{s}').rename(tmp_path / f'w/{s}')  # killed there
  skips.add(tmp_path / 'w', [(bad - 2, bad + 3)], 'rewind to somewhere')
  capsys.readouterr()
  assert _runs.run(tmp_path / 'w', poisoned, **how) == 0
  assert f'resumed at step {bad - 2}' in capsys.readouterr().err
  steps = _runs.Checkpointer(tmp_path / 'w/checkpoints').steps()
  assert steps == list(range(1, bad + 5)), 'what saw the batches was put aside, not counted'


@pytest.mark.slow
def test_checkpoints_and_skips_that_do_not_belong_together_are_refused(sound, tmp_path, capsys):
  """A skips.json that was lost, or edited: another stream, or a start from nothing, in silence."""
  workdir, file = tmp_path / 'w', tmp_path / 'w/skips.json'
  assert _runs.run(workdir, sound, '--skip_batches=2:4', steps=8) == 0
  (workdir / 'checkpoints/8').rename(workdir / '8')  # killed there
  kept = file.read_text()
  for content, now in (
    (None, 'none'),
    ('[{"start": 0, "stop": 2}]', '0:2'),
    ('[{"start": 0, "stop": 4, "why": "mine"}]', '0:4'),
    ('[{"start": 2, "stop": 4, "why": ""}, {"start": 0, "stop": 1, "why": "mine"}]', '0:1, 2:4'),
  ):
    file.unlink()
    if content:
      file.write_text(content)
    for flags in ([], ['--allow_older_checkpoint']):
      assert _runs.run(workdir, sound, *flags, steps=8) == 2
      said = capsys.readouterr().err
      assert f'{file} does not belong to the checkpoint of step 4' in said
      assert f'the file leaves out {now}, but the checkpoint 2:4' in said
    file.write_text(kept)
  assert _runs.run(workdir, sound, steps=8) == 0
  assert 'resumed at step 4' in capsys.readouterr().err


def test_old_damage_does_not_stop_a_resume(sound, tmp_path, capsys):
  """Only the checkpoint that the run goes on from is read, with skips as without."""
  workdir = tmp_path / 'w'
  assert _runs.run(workdir, sound, '--skip_batches=2:4', steps=12) == 0
  (workdir / 'checkpoints/12').rename(workdir / '12')
  for file in (workdir / 'checkpoints/4/cursor').rglob('*'):
    if file.is_file():
      file.write_text('damaged')
  assert _runs.run(workdir, sound, steps=12) == 0
  assert 'resumed at step 8' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize('there', ['a directory', 'a full disk'])
def test_a_record_that_cannot_be_written_ends_the_run(poisoned, met, tmp_path, capsys, there):
  workdir = tmp_path / 'w'
  how = dict(objective=f'{OUTSIDE}:Poisoned()', steps=met[1][0]['step'], checkpoint_every=1)
  assert _runs.run(workdir, poisoned, **how) == 0
  (workdir / f'checkpoints/{how["steps"]}').rename(workdir / 'last')
  file = workdir / 'bad_steps.jsonl'
  file.unlink()
  file.mkdir() if there == 'a directory' else file.symlink_to('/dev/full')
  assert _runs.run(workdir, poisoned, **how) == 74
  assert f'{file} cannot be written' in capsys.readouterr().err


def test_settings_that_could_not_work_are_refused(sound, tmp_path, capsys):
  assert _runs.run(tmp_path / 'w', sound, bad_steps__rewind=100, bad_steps__skip=90) == 2
  assert 'config.bad_steps.skip=90' in capsys.readouterr().err
  assert _runs.run(tmp_path / 'w', sound, bad_steps__rewind=100, checkpoint_every=0) == 2
  assert 'config.checkpoint_every=0' in capsys.readouterr().err
  assert _runs.run(tmp_path / 'w', sound, bad_steps__rewind=100, checkpoint_every=5) == 2
  assert 'config.keep_last' in capsys.readouterr().err
  assert not (tmp_path / 'w').exists()

"""A run that is killed and started again equals the run that was not, bit for bit."""

import pathlib
import random
import signal
import time

import _processes
import _runs
import pytest

STEPS, EVERY = 120, 6
HOW = dict(steps=STEPS, checkpoint_every=EVERY, log_every=1, eval__every=40, eval__batches=2)


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  folder = tmp_path_factory.mktemp('straight')
  train = _runs.texts(folder)
  HOW['data__valid'] = f'jsonl(path="{folder}/0.jsonl")'
  with _processes.Process(_runs.words(folder / 'w', train, **HOW), folder / 'w') as p:
    assert p.wait() == 0, p.said
  return folder / 'w', train


def kill(p, when: str, chance: random.Random) -> tuple[int, int]:
  """SIGKILL at a moment of its choice: (the last step logged, the newest complete checkpoint)."""
  began = max(_processes.last_step(p.workdir), 0)
  p.until(lambda: 'resumed at' in p.said or _processes.last_step(p.workdir) > began)
  target = began + EVERY + chance.randint(1, 3 * EVERY)
  p.until_step(target)
  if when == 'save':
    p.until(lambda: _processes.saving(p.workdir))
    time.sleep(chance.choice([0.0, 0.003, 0.01]))
  else:
    time.sleep(chance.random() * 0.03)
  p.process.send_signal(signal.SIGKILL)
  assert p.wait() == -signal.SIGKILL
  folders = [f.parent.name for f in (p.workdir / 'checkpoints').glob('*/manifest.json')]
  return _processes.last_step(p.workdir), max(int(n) for n in folders if n.isdigit())


def check_equal(straight, workdir):
  names = _runs.same_arrays(_runs.arrays(straight, STEPS), _runs.arrays(workdir, STEPS))
  assert not names, f'arrays differ: {names}'
  reader = lambda w: _runs.Checkpointer(pathlib.Path(w) / 'checkpoints')
  assert reader(straight).cursor(STEPS) == reader(workdir).cursor(STEPS)
  assert _runs.lines(workdir) == _runs.lines(straight)
  assert [m['step'] for m in _runs.lines(workdir)] == list(range(1, STEPS + 1))
  assert _runs.lines(workdir, 'eval') == _runs.lines(straight, 'eval') != []


def resumed(said: str) -> list[int]:
  return [int(s.split('resumed at step ')[1]) for s in said.splitlines() if 'resumed at step' in s]


@pytest.mark.parametrize(
  'moments',
  [
    pytest.param(('save',), id='once'),
    pytest.param(('any', 'save', 'any', 'save', 'any'), id='five times', marks=pytest.mark.slow),
  ],
)
def test_killed_and_resumed_equals_straight(straight, tmp_path, moments):
  chance, expected = random.Random(f'{moments}'), []
  workdir, train = tmp_path / 'w', straight[1]
  for when in moments:
    with _processes.Process(_runs.words(workdir, train, **HOW), workdir) as p:
      step, saved = kill(p, when, chance)
    assert 0 < saved <= step < STEPS, 'killed before the first checkpoint, or after the last step'
    expected.append(saved)
  with _processes.Process(_runs.words(workdir, train, **HOW), workdir) as p:
    assert p.wait() == 0, p.said
  assert resumed(p.said) == expected
  check_equal(straight[0], workdir)

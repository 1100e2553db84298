"""A process that is killed, frozen or ends for a reason of its own ends the others in bounded time
with one sentence that names it; started again on any number of processes, all goes on exactly.
"""

import random
import re
import signal
import time

import _processes
import _runs
import pytest
from test_hosts import agree
from test_hosts import HOW
from test_hosts import straight  # noqa: F401  (a fixture)
from test_hosts import train  # noqa: F401  (a fixture)

TIMEOUT = 10.0  # --lost_timeout
ENDLESS = HOW | dict(checkpoint_every=0, steps=100_000)
DUMP = ('Check failure stack trace', 'Fatal Python error', 'Traceback', 'terminate called')


def flags(timeout: float = TIMEOUT):
  return [f'--lost_timeout={timeout}', '--join_timeout=120']


def sentences(process) -> list[str]:
  return [line for line in process.said.splitlines() if line.startswith('lmjax: ')]


def clean(process):
  """One sentence of ours, and no dump of any library."""
  assert len(sentences(process)) == 1, process.said
  assert not any(word in process.said for word in DUMP), process.said


def ends(processes, victim: int, seconds: float) -> str:
  """All but the victim end in time with the status for 'again', and name it."""
  start = time.monotonic()
  said = ''
  for i, p in enumerate(processes):
    if i != victim:
      assert p.wait(max(1.0, seconds - (time.monotonic() - start))) == 75, p.said
      clean(p)
      said = sentences(p)[0]
      assert re.search(rf'process {victim}\b', said), said
      assert 'start all of them again' in said
  return said


@pytest.mark.slow
@pytest.mark.parametrize('sent', [signal.SIGKILL, signal.SIGSTOP], ids=lambda s: s.name)
@pytest.mark.parametrize('victim', [0, 1])
def test_a_lost_process_ends_the_other(train, tmp_path, victim, sent):  # noqa: F811
  with _processes.several(2, tmp_path / 'w', train, *flags(), **ENDLESS) as processes:
    processes[0].until_step(5)
    processes[victim].process.send_signal(sent)
    ends(processes, victim, seconds=2 * TIMEOUT + 15)
    processes[victim].process.kill()  # SIGSTOP does not keep that off


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(2))
def test_killed_at_random_and_started_again(train, straight, tmp_path, seed):  # noqa: F811
  """Any victim, any step, either signal, then another number of processes: the same tokens and
  losses as without.
  """
  rng, workdir = random.Random(seed), tmp_path / 'w'
  how = HOW | dict(checkpoint_every=3, steps=36)
  for count in rng.sample([2, 4], 2):
    victim, sent = rng.randrange(count), rng.choice([signal.SIGKILL, signal.SIGSTOP])
    step = max(1, _processes.last_step(workdir)) + rng.randint(4, 9)
    with _processes.several(count, workdir, train, *flags(), **how) as processes:
      processes[0].until_step(step)
      time.sleep(rng.random() * 0.3)
      processes[victim].process.send_signal(sent)
      ends(processes, victim, seconds=2 * TIMEOUT + 30)
      processes[victim].process.kill()
  assert 0 < _processes.last_step(workdir) < 36, 'the kills came too late'
  with _processes.several(rng.choice([1, 2]), workdir, train, *flags(), **how) as processes:
    assert [p.wait() for p in processes] == [0] * len(processes), processes[0].said
  agree(_runs.lines(workdir), straight)


AT_STEP = """
from lmjax import exits, loop
plain = loop.Trainer._due
def due(self, done):
  if done == {step}:
    {what}
  return plain(self, done)
loop.Trainer._due = due
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  'victim, what, status',
  [(0, "raise exits.Ended(exits.DISK, 'the disk is full')", 74), (1, "raise KeyError('full')", 1)],
)
def test_who_ends_for_a_reason_of_its_own_says_it(train, tmp_path, victim, what, status):  # noqa: F811
  first = {victim: AT_STEP.format(step=6, what=what)}
  how = dict(**ENDLESS, first=first)
  with _processes.several(2, tmp_path / 'w', train, *flags(300), **how) as processes:
    start = time.monotonic()
    assert [p.wait() for p in processes] == [status] * 2, processes[0].said
    assert time.monotonic() - start < 100  # start-up and compilation, but no time-out
  clean(processes[1 - victim])
  assert re.search(rf'process {victim} \(.+\) ended: .*full', sentences(processes[1 - victim])[0])


@pytest.mark.slow
def test_who_is_busy_or_early_is_not_lost(train, tmp_path):  # noqa: F811
  """One holds the interpreter for most of the time-out, one takes longer than that to end."""
  hold = 'import ctypes; ctypes.PyDLL(None).sleep(7)'
  late = 'import time\nfrom lmjax import report\nreport.write_report = lambda p: time.sleep(14)'
  first = {
    0: AT_STEP.format(step=4, what=hold) + late,
    1: AT_STEP.format(step=6, what=hold),
  }
  how = HOW | dict(steps=8, report='true', first=first)
  with _processes.several(2, tmp_path / 'w', train, *flags(), **how) as processes:
    assert [p.wait() for p in processes] == [0, 0], processes[0].said + processes[1].said
  assert not any(sentences(p) for p in processes)


@pytest.mark.slow
def test_a_process_that_differs_is_named_by_all(train, tmp_path):  # noqa: F811
  """In the config, in what is outside of its fingerprint, or in being refused."""
  cases = {
    '--config.peak_lr=0.5': 'config.peak_lr is 0.5 there, and 0.',
    '--config.eval.every=7': 'config.eval.every is 7 there, and 0 on process 0',
    '--config.model.width=x': 'config.model.width=x',
  }
  for i, (flag, said) in enumerate(cases.items()):
    how = dict(**ENDLESS, each={1: [flag]})
    with _processes.several(2, tmp_path / str(i), train, *flags(), **how) as processes:
      assert [p.wait() for p in processes] == [2, 2], processes[0].said
    for p in processes:
      clean(p)
      assert said in p.said
    assert 'process 1 (' in processes[0].said
    assert not (tmp_path / str(i)).exists()


@pytest.mark.slow
def test_a_run_directory_on_a_disk_of_its_own_is_refused(train, tmp_path):  # noqa: F811
  """The same path, another disk on each host; JAX would save pieces on both."""
  other = (
    'import sys\nfrom lmjax import run\nrun.SEEN = 0.5\n'
    'sys.argv = [a.replace("/w", "/elsewhere") if "--workdir" in a else a for a in sys.argv]\n'
  )
  with _processes.several(2, tmp_path / 'w', train, *flags(), **ENDLESS, first={1: other}) as both:
    assert [p.wait() for p in both] == [2, 2], both[0].said
  for p in both:
    clean(p)
    assert 'process 1 (' in p.said and '--workdir holds what process 0 has written is "no' in p.said
  assert not list(tmp_path.glob('*/.seen*')) and not (tmp_path / 'w' / 'fingerprint.txt').exists()


@pytest.mark.slow
def test_other_data_on_one_host_are_refused(train, tmp_path):  # noqa: F811
  """The same path, other bytes."""
  other = "from lmjax import feed\nfeed.Feed.plan_fingerprint = 'f' * 16\n"
  with _processes.several(2, tmp_path / 'w', train, *flags(), **ENDLESS, first={0: other}) as both:
    assert [p.wait() for p in both] == [2, 2], both[0].said
  for p in both:
    clean(p)
    assert 'process 1 (' in p.said and 'the plan of config.data.train is "' in p.said


@pytest.mark.slow
def test_a_coordinator_that_waits_in_vain_says_so(train, tmp_path):  # noqa: F811
  words = _runs.words(tmp_path / 'w', train)
  join = [f'--coordinator=127.0.0.1:{_processes.port()}', '--processes=2', '--process=0']
  with _processes.Process([*words, *join, '--join_timeout=5'], tmp_path / 'w') as p:
    assert p.wait() == 75
  clean(p)
  assert 'could not join (--join_timeout=5): the others did not come' in p.said


@pytest.mark.slow
def test_a_step_of_slurm_needs_no_flags(train, straight, tmp_path):  # noqa: F811
  words = _runs.words(tmp_path / 'w', train, **HOW, steps=6, mesh__data=-1)
  step = dict(
    SLURM_JOB_ID='1',
    SLURM_STEP_NODELIST='localhost',
    SLURM_NTASKS='2',
    SLURM_STEP_NUM_TASKS='2',
    SLURM_STEP_TASKS_PER_NODE='2',
    JAX_COORDINATOR_PORT=str(_processes.port()),
  )
  tasks = [step | dict(SLURM_PROCID=str(i), SLURM_LOCALID=str(i)) for i in range(2)]
  make = lambda i: _processes.Process(words, tmp_path / 'w', name=str(i), env=tasks[i])
  with make(0) as a, make(1) as b:
    assert (a.wait(), b.wait()) == (0, 0), a.said
  agree(_runs.lines(tmp_path / 'w'), straight)

"""Real processes of the command: started, watched, signalled."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import _runs

ROOT = pathlib.Path(__file__).resolve().parents[2]
WAIT = 120.0


class Process:
  """One process of `python -m lmjax.main`; what it says goes to a file beside its directory.

  `first`: code to be run before the command. `env`: more of the environment.
  """

  def __init__(self, arguments, workdir, *, devices: int = 1, name: str = '', first='', env=()):
    workdir = pathlib.Path(workdir)
    self.workdir, self.log = workdir, workdir.with_name(f'{workdir.name}{name}.log')
    flags = f'--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0'
    env = {
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': flags,
      'PYTHONPATH': str(ROOT),
      **dict(env),
    }
    self._file = open(self.log, 'a')
    code = f'{first}\nimport sys\nfrom lmjax import main\nsys.exit(main.command())'
    command = [sys.executable, *(['-c', code] if first else ['-m', 'lmjax.main']), *arguments]
    self.process = subprocess.Popen(
      command, cwd=ROOT, env=env, stdout=self._file, stderr=self._file
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self.process.poll() is None:
      self.process.kill()
      self.process.wait()
    self._file.close()

  @property
  def said(self) -> str:
    return self.log.read_text()

  def wait(self, seconds: float = WAIT) -> int:
    """The exit status."""
    return self.process.wait(seconds)

  def until(self, holds, seconds: float = WAIT):
    """Waits for holds(); fails where the process ends before."""
    end = time.monotonic() + seconds
    while not (found := holds()):
      assert self.process.poll() is None, (
        f'ended with {self.process.returncode}: {self.said[-2000:]}'
      )
      assert time.monotonic() < end, f'waited {seconds} s: {self.said[-2000:]}'
      time.sleep(0.002)
    return found

  def until_step(self, step: int):
    """Waits until the metrics of a step, or a later one, are written."""
    return self.until(lambda: last_step(self.workdir) >= step)


def last_step(workdir) -> int:
  """The last step in the metrics file, -1 without one."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  with contextlib.suppress(OSError, ValueError, IndexError):
    with open(path, 'rb') as f:
      f.seek(max(0, path.stat().st_size - 2000))
      return json.loads(f.read().splitlines()[-1])['step']
  return -1


def saving(workdir) -> bool:
  """Whether a save is under way: a step without its manifest."""
  folder = pathlib.Path(workdir) / 'checkpoints'
  entries = list(folder.iterdir()) if folder.is_dir() else []
  return any('tmp' in e.name or not (e / 'manifest.json').exists() for e in entries if e.is_dir())


def port() -> int:
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


@contextlib.contextmanager
def several(
  count: int, workdir, train: str, *flags, devices: int = 1, each=None, first=None, **settings
):
  """`count` processes of one run on a mesh over all their devices.

  Args:
    each: further flags of single processes, by index; first: code that they run first.
  """
  words = [*_runs.words(workdir, train, mesh__data=-1, **settings), *flags]
  join = [f'--coordinator=127.0.0.1:{port()}', f'--processes={count}'] if count > 1 else []
  each, first = each or {}, first or {}
  with contextlib.ExitStack() as stack:
    yield [
      stack.enter_context(
        Process(
          words + (join + [f'--process={i}'] if count > 1 else []) + each.get(i, []),
          workdir,
          devices=devices,
          name=f'-{count}-{i}',
          first=first.get(i, ''),
        )
      )
      for i in range(count)
    ]

"""Trackers of `config.trackers`, kept away from the loop: whatever one does, training goes on.

Each is opened, fed and closed in a thread of its own. One that raises, does not answer, or is
slower than training is told once and left out; metrics.jsonl has every line anyway. Which run of a
tracker belongs to a run directory is in `trackers.json`, so that a resume goes on in the same one.
"""

import importlib.util
import json
import logging
import queue
import threading
import time
from typing import Any, Callable, Mapping, Sequence

from lmjax import files
from lmjax import groups
from lmjax import registry
from lmjax.groups import ConfigError

FILE = 'trackers.json'
LINES = 10_000  # that may wait
SILENT = 120.0  # seconds without an answer after which a tracker is left out
CLOSING = 60.0  # seconds that all of them have at the end
_LOG = logging.getLogger(__name__)
_LOCK = threading.Lock()  # of the file
_STUCK: list[str] = []  # trackers whose threads were left behind


def parts(spec: str, workdir: Any) -> dict[str, Any]:
  """The trackers of `config.trackers` by name. Raises ConfigError where one cannot be used, so that
  a missing package is known before training begins.
  """
  chain = registry.make_chain('tracker', spec).items() if spec else ()
  return {name: _made(name, part, spec, workdir) for name, part in chain}


def usable(spec: str, workdir: Any) -> dict[str, Any]:
  """As `parts`, without those that cannot be used, each of which is told: what a run that has been
  trained still has to say must not need a package that training had.
  """
  out = {}
  for name, part in registry.make_chain('tracker', spec).items() if spec else ():
    try:
      out[name] = _made(name, part, spec, workdir)
    except ConfigError as e:
      _LOG.warning('tracker %s is left out (%s); metrics.jsonl has every line', name, e)
  return out


def _made(name: str, part: registry.Part, spec: str, workdir: Any) -> Any:
  package = part.fact('package')
  found = importlib.util.find_spec(package) if package else None
  # A folder of records in the working directory passes for a package, without an origin.
  if package and (found is None or found.origin is None):
    raise ConfigError(
      f'config.trackers={spec!r}: {name} needs the package {package}, which is not installed: '
      f"pip install 'lmjax[{package}]'"
    )
  made = part()
  try:
    getattr(made, 'suits', lambda workdir: None)(workdir)
  except ValueError as e:
    raise ConfigError(f'config.trackers: {name}: {e}') from None
  return made


def begin(workdir: Any, trackers: Mapping[str, Any], config: Mapping[str, Any]) -> list['Channel']:
  """Opens trackers, each in its thread."""
  flat = groups.flat(config)
  return [
    Channel(name, lambda n=name, t=t: _open(workdir, n, t, flat)) for name, t in trackers.items()
  ]


def _open(workdir: Any, name: str, tracker: Any, config: dict[str, Any]) -> Any:
  """A session in which the run goes on, or begins. Another run is never gone on with: an id that
  cannot be read, or kept, is an error.
  """
  path = workdir / FILE
  read = lambda: files.read_json(path) if path.exists() else {}
  with _LOCK:
    run = read().get(name)
  session = tracker.open(workdir, config, run)
  if session.id != run:
    with _LOCK:
      files.write(path, json.dumps(read() | {name: session.id}, indent=2) + '\n')
  return session


def close(channels: Sequence['Channel']) -> None:
  """Lets trackers end, all at a time, for a bounded time."""
  for c in channels:
    c.finish()
  until = time.monotonic() + CLOSING
  for c in channels:
    c.wait(max(0.0, until - time.monotonic()))


def stuck() -> list[str]:
  """Names of trackers that never came back; what they began could keep the process from ending."""
  return _STUCK


class Channel:
  """Feeds one tracker. Nothing here blocks or raises, but `wait`, which blocks for a given time.

  Args:
    begin: opens the session; called in the channel's thread, as everything of a tracker is.
  """

  def __init__(self, name: str, begin: Callable[[], Any]):
    self._name, self._lost = name, False
    self._lines: queue.Queue = queue.Queue(LINES)
    self._since: float | None = time.monotonic()  # when the call under way began
    self._thread = threading.Thread(target=self._work, args=(begin,), daemon=True, name=name)
    self._thread.start()

  def put(self, *line: Any) -> None:
    """Hands a line (step, time, numbers, texts) on."""
    since = self._since
    if self._lost:
      return
    if since is not None and time.monotonic() - since > SILENT:
      self._leave(f'no answer for {SILENT:.0f} s')
      return
    try:
      self._lines.put_nowait(line)
    except queue.Full:
      self._leave(f'{LINES:,} lines behind')

  def finish(self) -> None:
    """No more lines come."""
    if not self._lost:
      self.put()

  def wait(self, seconds: float) -> None:
    """Until the tracker has ended, or for so long."""
    self._thread.join(min(seconds, 1.0) if self._lost else seconds)
    if self._thread.is_alive():
      _STUCK.append(self._name)
      self._leave(f'it did not end within {CLOSING:.0f} s')

  def _work(self, begin: Callable[[], Any]) -> None:
    try:
      session = begin()
      while not self._lost:
        self._since = None
        line = self._lines.get()
        self._since = time.monotonic()
        if not line:
          session.close()
          return
        session.log(*line)
    except BaseException as e:  # libraries exit, too; the run goes on
      self._leave(f'{type(e).__name__}: {e}')

  def _leave(self, why: str) -> None:
    if not self._lost:
      self._lost = True
      _LOG.warning(
        'tracker %s is left out from here on (%s); metrics.jsonl has every line', self._name, why
      )

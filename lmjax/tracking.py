"""Where the numbers of a run go: `metrics.jsonl` always, TensorBoard events when possible, and the
trackers of `config.trackers`.

One JSON object a line: kind ('train', 'eval', 'sample', ...), step, time (seconds since the epoch),
then the values. Numbers are written in full; NaN and infinities as the strings NaN, Infinity,
-Infinity, so that every line is valid JSON. Nothing is ever removed from the file: a resume writes
a line {"kind": "resume", "step": k}, and the reader leaves out what an earlier, killed run had
logged after step k.

In an object store, which appends nothing, lines are collected and the file is written again by
`flush`: now and then, before every save, and at the end.
"""

import contextlib
import json
import logging
import math
import os
import pathlib
import threading
import time
from types import MappingProxyType
from typing import Any, Mapping, NamedTuple

import numpy as np

from lmjax import bucket
from lmjax import channels
from lmjax import events
from lmjax import exits
from lmjax import files

FILE = 'metrics.jsonl'
_IDENTITY = ('kind', 'step', 'name', 'prompt', 'index')
_TRAIN = b'{"kind": "train"'  # how `log` begins such a line
_TEXT = ('text', 'prompt', 'name', 'kind')
_FLUSH_SECONDS = 60.0
_ODD = {'NaN': math.nan, 'Infinity': math.inf, '-Infinity': -math.inf}
_LOG = logging.getLogger(__name__)


class TrackingError(exits.DiskError):
  """A line of metrics could not be written (disk); the message names the file."""


class Tracker:
  """Writes the metrics of one run.

  Args:
    workdir: an existing directory.
    resume_step: the step that the state was restored from, or None for a fresh start.
    tensorboard: also write events to `tb/`; a failure there warns once and never stops training.
    trackers: more places by name, as of `channels.parts`; each is fed by a thread of its own.
    config: what they show of the run's settings.
    active: False on all processes but the first: nothing is written.
  """

  def __init__(
    self,
    workdir: Any,
    *,
    resume_step: int | None = None,
    tensorboard: bool = True,
    trackers: Mapping[str, Any] = MappingProxyType({}),
    config: Mapping[str, Any] = MappingProxyType({}),
    active: bool = True,
  ):
    self.path = files.path_of(workdir) / FILE
    self._file = self._tb = self._open_tb = None
    self._channels: list[channels.Channel] = []
    if not active:
      return
    with _written(self.path):
      self._file = (_Collected if bucket.is_remote(self.path) else _Appended)(self.path)
    # Opened at the first line: the import takes seconds where tensorboardX finds torch.
    self._open_tb = (
      (lambda: events.Events(self.path.parent / 'tb', resume_step)) if tensorboard else None
    )
    self._channels = channels.begin(self.path.parent, trackers, config)
    if resume_step is not None:
      self.log('resume', resume_step, {})

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    try:
      self.close()
    except TrackingError:
      if kind is None:  # else the run ends for another reason, which is to be told
        raise

  def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
    """Appends one line; values are numbers (Python, NumPy or JAX scalars), booleans, strings, None
    or lists of them. Raises TrackingError.
    """
    if self._file is None:
      return
    line = {'kind': kind, 'step': int(step), 'time': time.time()} | {
      k: _plain(v) for k, v in values.items()
    }
    text = json.dumps(jsonable(line), allow_nan=False) + '\n'
    with _written(self.path):
      self._file.write(text)
    if kind == 'resume':
      return
    shown = line['step'], line['time'], events.numbers(line), events.texts(line)
    for channel in self._channels:
      channel.put(*shown)
    if self._open_tb is not None:
      self._tb, self._open_tb = _guarded(self._open_tb), None
    if self._tb is not None and not _guarded(lambda: self._tb.log(*shown)):
      self._tb = None

  def resumed(self, step: int) -> None:
    """From here on the run goes on from `step`: what was logged after it no longer counts."""
    self.log('resume', step, {})
    if self._tb is not None and not _guarded(lambda: self._tb.purge(step + 1)):
      self._tb = None

  def flush(self) -> None:
    """Returns once every line is where it is kept. Raises TrackingError."""
    if self._file is not None:
      with _written(self.path):
        self._file.flush()
    if self._tb is not None and not _guarded(self._tb.flush):
      self._tb = None

  def close(self) -> None:
    file, self._file = self._file, None
    try:
      if file is not None:
        with _written(self.path):
          file.close()
    finally:
      if self._tb is not None:
        _guarded(self._tb.close)
        self._tb = None
      channels.close(self._channels)
      self._channels = []


class _Appended:
  """A file that lines are added to, each at once and whole."""

  def __init__(self, path: pathlib.Path):
    self._torn = _torn(path)
    # Not buffered: what could not be written is not tried again later, in a wrong place.
    self._file = open(path, 'ab', buffering=0)

  def write(self, text: str) -> None:
    data = memoryview((b'\n' if self._torn else b'') + text.encode())
    self._torn = True
    while data:
      data = data[self._file.write(data) :]
    self._torn = False

  def flush(self) -> None:
    pass

  def close(self) -> None:
    with contextlib.suppress(OSError):  # every line was written, or its failure was raised
      self._file.close()


class _Collected:
  """Lines for an object. What `flush` could not write is kept, and tried again by the next one;
  beside those that are asked for there is one now and then, so that a run can be watched.
  """

  def __init__(self, path: Any):
    self._path, self._lines = path, ''
    self._lock, self._writing = threading.Lock(), threading.Lock()
    self._last, self._thread = time.monotonic(), None

  def write(self, text: str) -> None:
    with self._lock:
      self._lines += text
    if time.monotonic() - self._last > _FLUSH_SECONDS:
      self._last = time.monotonic()
      self._thread = threading.Thread(target=self._try, daemon=True)
      self._thread.start()

  def _try(self) -> None:
    try:
      self.flush()
    except OSError as e:  # a save raises what does not pass
      _LOG.warning('%s is not up to date: %s', self._path, e)

  def flush(self) -> None:
    with self._writing:
      with self._lock:
        lines = self._lines
      if lines:
        bucket.append(self._path, lines)
      with self._lock:
        self._lines = self._lines[len(lines) :]
    self._last = time.monotonic()

  def close(self) -> None:
    self.flush()


def read_metrics(path: Any) -> list[dict[str, Any]]:
  """The lines that count, in the order written; a missing file gives an empty list.

  Left out: lines that are not whole (a kill while writing), lines after step k from before a resume
  at k, and all but the last line of the same kind and step (and name, prompt, index, where given).
  Lines whose kind is no text or whose step is no number are not ours.
  Strings for odd numbers become floats again.
  """
  return read(path).lines


class Found(NamedTuple):
  """What `read` found. lines: those that count. unread: how many were not whole or not ours.
  passed: lines of training that were passed over because there were too many.
  """

  lines: list[dict[str, Any]]
  unread: int
  passed: int


def read(path: Any, most: int | None = None) -> Found:
  """As `read_metrics`, with what it left out. Of more than `most` lines of training it reads so
  many, evenly spread over the file, the first and the last among them. Raises OSError.
  """
  path = files.path_of(path)
  path = path / FILE if path.is_dir() else path
  if not path.exists():
    return Found([], 0, 0)
  texts = path.read_bytes().splitlines()
  before = len(texts)
  texts = texts if most is None else _spread(texts, most)
  out: dict[tuple, dict] = {}
  unread = 0
  for text in texts:
    found = _line(text)
    if found is None:
      unread += bool(text.strip())
      continue
    key, line = found
    step = line['step']
    if line['kind'] == 'resume':
      out = {k: v for k, v in out.items() if v['step'] <= step}
      continue
    out.pop(key, None)  # the last line wins and stands last
    out[key] = {k: v if k in _TEXT else _number(v) for k, v in line.items()}
  return Found(list(out.values()), unread, before - len(texts))


def _line(text: bytes) -> tuple[tuple, dict[str, Any]] | None:
  """(what tells it from others, a line), or None for what is not one of ours."""
  try:
    line = json.loads(text)
    step = line['step']
    if type(step) is not int or not 0 <= step < 1 << 53 or not isinstance(line['kind'], str):
      return None
    key = tuple(line.get(k) for k in _IDENTITY)
    hash(key)
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
    return None
  return key, line


def _spread(texts: list[bytes], most: int) -> list[bytes]:
  """All lines but those of training, and `most` of these."""
  train = [i for i, t in enumerate(texts) if t.startswith(_TRAIN)]
  if len(train) <= most:
    return texts
  kept = {train[i] for i in np.linspace(0, len(train) - 1, most).round().astype(int)}
  dropped = set(train) - kept
  return [t for i, t in enumerate(texts) if i not in dropped]


@contextlib.contextmanager
def _written(path: pathlib.Path):
  try:
    with bucket.told():
      yield
  except OSError as e:
    raise TrackingError(f'{path} cannot be written: {e.strerror or e}') from e


def _torn(path: pathlib.Path) -> bool:
  """Whether half a line is at the end, as a kill leaves it: the next one begins with a line break,
  and the reader skips the half.
  """
  if not path.exists() or not path.stat().st_size:
    return False
  with open(path, 'rb') as f:
    f.seek(-1, os.SEEK_END)
    return f.read(1) != b'\n'


def _plain(value: Any) -> Any:
  if value is None or isinstance(value, (bool, int, float, str)):
    return value
  if isinstance(value, (list, tuple)):
    return [_plain(v) for v in value]
  array = np.asarray(value)
  if array.dtype == object or array.ndim and array.size > 10**4:
    raise ValueError(f'a metric is a number, a string or a short list of them, not {value!r:.80}')
  # bfloat16 and the like have no Python type of their own
  return (array.astype(np.float64) if array.dtype.kind not in 'biufU' else array).tolist()


def jsonable(value: Any) -> Any:
  """Numbers, strings, None, lists and dictionaries of them, with odd numbers as strings."""
  if isinstance(value, Mapping):
    return {k: jsonable(v) for k, v in value.items()}
  if isinstance(value, list):
    return [jsonable(v) for v in value]
  if isinstance(value, float) and not math.isfinite(value):
    return 'NaN' if math.isnan(value) else 'Infinity' if value > 0 else '-Infinity'
  return value


def _number(value: Any) -> Any:
  if isinstance(value, list):
    return [_number(v) for v in value]
  return _ODD.get(value, value) if isinstance(value, str) else value


def _guarded(fn: Any) -> Any:
  try:
    return fn()
  except Exception as e:  # a side channel: whatever goes wrong there, the run goes on
    _LOG.warning(
      'TensorBoard events are not written from here on (%s: %s); metrics.jsonl is',
      type(e).__name__,
      e,
    )
    return None

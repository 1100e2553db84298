"""Where the numbers of a run go: `metrics.jsonl` always, TensorBoard events when possible.

One JSON object a line: kind ('train', 'eval', 'sample', ...), step, time (seconds since the epoch),
then the values. Numbers are written in full; NaN and infinities as the strings NaN, Infinity,
-Infinity, so that every line is valid JSON. Nothing is ever removed from the file: a resume writes
a line {"kind": "resume", "step": k}, and the reader leaves out what an earlier, killed run had
logged after step k.
"""

import contextlib
import json
import logging
import math
import os
import pathlib
import time
from typing import Any, Mapping

import numpy as np

from lmjax import exits

FILE = 'metrics.jsonl'
_IDENTITY = ('kind', 'step', 'name', 'prompt', 'index')
_TEXT = ('text', 'prompt', 'name', 'kind')
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
    active: False on all processes but the first: nothing is written.
  """

  def __init__(
    self,
    workdir: Any,
    *,
    resume_step: int | None = None,
    tensorboard: bool = True,
    active: bool = True,
  ):
    self.path = pathlib.Path(workdir) / FILE
    self._file = self._tb = self._open_tb = None
    if not active:
      return
    # Not buffered: what could not be written is not tried again later, in a wrong place.
    with _written(self.path):
      self._torn = _torn(self.path)
      self._file = open(self.path, 'ab', buffering=0)
    # Opened at the first line: the import takes seconds where tensorboardX finds torch.
    self._open_tb = (lambda: _Events(self.path.parent / 'tb', resume_step)) if tensorboard else None
    if resume_step is not None:
      self.log('resume', resume_step, {})

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

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
      self._write(text)
    if kind == 'resume':
      return
    if self._open_tb is not None:
      self._tb, self._open_tb = _guarded(self._open_tb), None
    if self._tb is not None and not _guarded(lambda: self._tb.log(line)):
      self._tb = None

  def _write(self, text: str) -> None:
    data = memoryview((b'\n' if self._torn else b'') + text.encode())
    self._torn = True
    while data:
      data = data[self._file.write(data) :]
    self._torn = False

  def resumed(self, step: int) -> None:
    """From here on the run goes on from `step`: what was logged after it no longer counts."""
    self.log('resume', step, {})
    if self._tb is not None and not _guarded(lambda: self._tb.purge(step + 1)):
      self._tb = None

  def close(self) -> None:
    file, self._file = self._file, None
    if file is not None:
      with contextlib.suppress(OSError):  # every line was written, or its failure was raised
        file.close()
    if self._tb is not None:
      _guarded(self._tb.close)
      self._tb = None


class _Events:
  """TensorBoard events: each number as `<kind>/<name>`, samples as text."""

  def __init__(self, path: pathlib.Path, resume_step: int | None):
    # Not its SummaryWriter, whose thread hides failures of the disk and then blocks.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX import summary

    self._summary = summary
    path.mkdir(exist_ok=True)
    # The writer names files by the second and opens them afresh: the suffix keeps a quick restart
    # from erasing one.
    self._writer = EventsWriter(str(path / 'events'), f'.{len(list(path.iterdir())):04d}')
    if resume_step is not None:
      self.purge(resume_step + 1)

  def purge(self, step: int) -> bool:
    """Tells TensorBoard to hide what a killed run had logged from `step` on."""
    from tensorboardX.proto import event_pb2

    event = event_pb2.Event(wall_time=time.time(), step=step)
    event.session_log.status = event_pb2.SessionLog.START
    self._writer.write_event(event)
    return True

  def log(self, line: Mapping[str, Any]) -> bool:
    from tensorboardX.proto import event_pb2

    kind, parts = line['kind'], []
    for k, v in line.items():
      tag = '/'.join(str(p) for p in (kind, line.get('name'), k) if p is not None)
      if k == 'text':
        parts.append(self._summary.text(tag, v))
      elif k not in ('step', 'time') and isinstance(v, (int, float)) and not isinstance(v, bool):
        parts.append(self._summary.scalar(tag, v))
    for s in parts:
      self._writer.write_event(
        event_pb2.Event(wall_time=line['time'], step=line['step'], summary=s)
      )
    self._writer.flush()
    return True

  def close(self) -> bool:
    self._writer.close()
    return True


def read_metrics(path: Any) -> list[dict[str, Any]]:
  """The lines that count, in the order written; a missing file gives an empty list.

  Left out: lines that are not whole (a kill while writing), lines after step k from before a resume
  at k, and all but the last line of the same kind and step (and name, prompt, index, where given).
  Lines whose kind is no text or whose step is no number are not ours.
  Strings for odd numbers become floats again.
  """
  path = pathlib.Path(path)
  path = path / FILE if path.is_dir() else path
  if not path.exists():
    return []
  out: dict[tuple, dict] = {}
  for text in path.read_bytes().splitlines():
    try:
      line = json.loads(text)
      step = line['step']
      if type(step) is not int or not 0 <= step < 1 << 53 or not isinstance(line['kind'], str):
        continue
      key = tuple(line.get(k) for k in _IDENTITY)
      hash(key)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
      continue
    if line.get('kind') == 'resume':
      out = {k: v for k, v in out.items() if v['step'] <= step}
      continue
    out.pop(key, None)  # the last line wins and stands last
    out[key] = {k: v if k in _TEXT else _number(v) for k, v in line.items()}
  return list(out.values())


@contextlib.contextmanager
def _written(path: pathlib.Path):
  try:
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

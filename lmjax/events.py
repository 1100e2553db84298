"""TensorBoard events, and a line of metrics as numbers and texts by tag."""

import pathlib
import shutil
import tempfile
import time as time_lib
from typing import Any, Mapping

from lmjax import bucket


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
  """The numbers of a line as `<kind>/<name>`, with the line's own name between, if it has one."""
  return {
    _tag(line, k): v
    for k, v in line.items()
    if k not in ('step', 'time') and isinstance(v, (int, float)) and not isinstance(v, bool)
  }


def texts(line: Mapping[str, Any]) -> dict[str, str]:
  """What a model wrote, likewise."""
  return {_tag(line, k): v for k, v in line.items() if k == 'text'}


def _tag(line: Mapping[str, Any], key: str) -> str:
  return '/'.join(str(p) for p in (line['kind'], line.get('name'), key) if p is not None)


class Events:
  """Writes each number as `<kind>/<name>`, samples as text."""

  def __init__(self, path: Any, resume_step: int | None):
    # Not its SummaryWriter, whose thread hides failures of the disk and then blocks.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX import summary

    self._summary, self._path = summary, path
    self._remote = bucket.is_remote(path)
    there = len(list(path.iterdir())) if path.is_dir() else 0
    # What goes into a store is written here first.
    self._local = pathlib.Path(tempfile.mkdtemp(prefix='lmjax-tb-')) if self._remote else path
    self._local.mkdir(exist_ok=True)
    # The writer names files by the second and opens them afresh: the suffix keeps a quick restart
    # from erasing one.
    self._writer = EventsWriter(str(self._local / 'events'), f'.{there:04d}')
    if resume_step is not None:
      self.purge(resume_step + 1)

  def purge(self, step: int) -> bool:
    """Tells TensorBoard to hide what a killed run had logged from `step` on."""
    from tensorboardX.proto import event_pb2

    event = event_pb2.Event(wall_time=time_lib.time(), step=step)
    event.session_log.status = event_pb2.SessionLog.START
    self._writer.write_event(event)
    return True

  def log(self, step: int, time: float, numbers: Mapping, texts: Mapping) -> bool:
    from tensorboardX.proto import event_pb2

    parts = [self._summary.text(tag, v) for tag, v in texts.items()]
    parts += [self._summary.scalar(tag, v) for tag, v in numbers.items()]
    for s in parts:
      self._writer.write_event(event_pb2.Event(wall_time=time, step=step, summary=s))
    self._writer.flush()
    return True

  def flush(self) -> bool:
    if self._remote:
      for file in self._local.iterdir():
        bucket.upload(file, self._path / file.name)
    return True

  def close(self) -> bool:
    self._writer.close()
    self.flush()
    if self._remote:
      shutil.rmtree(self._local, ignore_errors=True)
    return True

"""What ran when, from the trace that `jax.profiler` writes: the `.xplane.pb` file, which holds all
events (the `.trace.json.gz` beside it, for Perfetto, holds at most a million).

  CPU  threads of `/host:CPU`; an operation's event bears `hlo_op`, and lasts until the event
       `end: ...` of the same context: what it left to other threads is done then. `run_id` is one
       step
  TPU  `/device:TPU:n`, line `XLA Ops`; the steps are in `XLA Modules`
  GPU  `/device:GPU:n`, lines `Stream ...`: kernels, which bear `hlo_op` where XLA knows it

Of TPUs and GPUs no real trace was at hand: the tests make some up.
"""

import collections
import dataclasses
import pathlib
import re
from typing import Any, Mapping, NamedTuple

from jax.profiler import ProfileData

DEVICE = re.compile(r'/device:(?:TPU|GPU):(\d+)$')
NAME = re.compile(r'%?([^\s=]+)')


class Event(NamedTuple):
  """One run of an operation; times in nanoseconds. name: of the instruction, with the module's name
  in front where it is of another program than the step.
  """

  start: float
  end: float
  name: str


@dataclasses.dataclass
class Device:
  """What one device did. windows: from the first to the last operation of each step."""

  events: list[Event]
  windows: list[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Spent:
  """Of one device and one step. seconds, calls: by instruction; idle: seconds of the step in which
  no operation ran; total: seconds of the step.
  """

  seconds: dict[str, float]
  calls: dict[str, float]
  idle: float
  total: float
  steps: int


def find(folder: Any) -> set[pathlib.Path]:
  """The traces in a folder."""
  return set(pathlib.Path(folder).glob('plugins/profile/*/*.xplane.pb'))


def read(data: ProfileData, module: str) -> dict[int, Device]:
  """Devices by number, of a trace in which the program `module` ran."""
  out: dict[int, Device] = {}
  for plane in data.planes:
    if plane.name == '/host:CPU':
      out |= _host(plane, module)
    elif found := DEVICE.search(plane.name):
      device = _device(plane, module)
      if device.events:
        out[int(found[1])] = device
  return out


def _host(plane, module: str) -> dict[int, Device]:
  begun, ends = [], {}
  for line in plane.lines:
    for e in line.events:
      if e.name.startswith('end: '):
        ends[dict(e.stats).get('_c')] = e.start_ns
      elif 'hlo_op' in (stats := dict(e.stats)):
        begun.append((e.start_ns, e.start_ns + e.duration_ns, stats))
  events, runs = collections.defaultdict(list), collections.defaultdict(list)
  for start, end, stats in begun:
    end = max(end, ends.get(stats.get('_p'), end))
    device = stats.get('device_ordinal', 0)
    event = Event(start, end, _of(module, stats.get('hlo_module'), stats['hlo_op']))
    events[device].append(event)
    if stats.get('hlo_module', module) == module:
      runs[device, stats.get('run_id')].append(event)
  windows = collections.defaultdict(list)
  for (device, _), run in runs.items():
    windows[device].append((min(e.start for e in run), max(e.end for e in run)))
  return {d: Device(found, sorted(windows[d])) for d, found in events.items()}


def _device(plane, module: str) -> Device:
  lines = {line.name: list(line.events) for line in plane.lines}
  ops = lines.get('XLA Ops')
  if ops is None:
    ops = [e for name, found in lines.items() if name.startswith('Stream') for e in found]
  events = []
  for e in ops:
    stats = dict(e.stats)
    name = NAME.match(str(stats.get('hlo_op') or e.name).rpartition('::')[2])  # a::b is b in a
    end = e.start_ns + e.duration_ns
    events.append(Event(e.start_ns, end, _of(module, stats.get('hlo_module'), name[1])))
  windows = [
    (e.start_ns, e.start_ns + e.duration_ns)
    for e in lines.get('XLA Modules', ())
    if e.name.partition('(')[0] == module
  ]
  return Device(events, sorted(windows))


def _of(module: str, found: Any, name: str) -> str:
  return name if found in (None, '', module) else f'{found}/{name}'


def spent(device: Device, steps: int, above: Mapping[str, frozenset[str]]) -> Spent:
  """Shares out a device's time: at each moment in equal parts to the operations that are under way,
  to those that run others (loops, calls) only where none of these is.

  Args:
    steps: how many were traced; used where the trace does not tell one from the other.
    above: instruction -> those that run it; what is no instruction is taken to be in all of them.
  """
  seconds, calls = _shared(device.events, above)
  windows = device.windows
  if not windows and device.events:
    windows = [(min(e.start for e in device.events), max(e.end for e in device.events))]
  n = len(device.windows) or steps
  busy, total = sum(seconds.values()), _covered(windows) / 1e9
  per_step = lambda found: {name: value / n for name, value in found.items()}
  idle = max(0.0, total - busy)
  return Spent(per_step(seconds), per_step(calls), idle / n, (busy + idle) / n, n)


def _covered(windows: list[tuple[float, float]]) -> float:
  """How much time they cover together; a step may begin before the last one ends."""
  total, reached = 0.0, float('-inf')
  for start, end in sorted(windows):
    total += max(0.0, end - max(start, reached))
    reached = max(reached, end)
  return total


def _shared(events: list[Event], above: Mapping[str, frozenset[str]]):
  """({name: seconds}, {name: calls})."""
  seconds: dict[str, float] = collections.defaultdict(float)
  everything = frozenset().union(*above.values())
  marks = []
  for n, e in enumerate(events):
    marks += [(e.start, 1, n), (e.end, 0, n)]
  active: dict[int, str] = {}
  before = 0.0
  for at, begins, n in sorted(marks):
    if at > before and active:
      outer = frozenset().union(*(above.get(name, everything) for name in active.values()))
      inner = [name for name in active.values() if name not in outer]
      running = inner or list(active.values())
      for name in running:
        seconds[name] += (at - before) / len(running) / 1e9
    before = at
    if begins:
      active[n] = events[n].name
    else:
      active.pop(n, None)
  return seconds, collections.Counter(e.name for e in events)

"""Compiles the training step of a run, gives it batches, times it, and traces it."""

import contextlib
import dataclasses
import math
import re
import statistics
import time
from typing import Any

import jax
from jax import monitoring
import jax.numpy as jnp
from jax.profiler import ProfileData
from jax.sharding import NamedSharding
import numpy as np

from lmjax import build as build_lib
from lmjax import loop
from lmjax import plan
from lmjax import restore
from lmjax.parallel import shard
from lmjax.planning import chips
from lmjax.planning import hlo
from lmjax.profiling import events as events_lib
from lmjax.profiling import table

HIT = '/jax/compilation_cache/cache_hits'
BATCHES = 2
OUT_OF_MEMORY = 'RESOURCE_EXHAUSTED'
ALIAS = re.compile(r'\{[\d, ]*\}: \((\d+), ')


@dataclasses.dataclass
class Step:
  """A compiled step with its arguments. tracing, compiling: seconds; cached: whether the program
  was in the compilation cache. memory: bytes on one device, by what they are for.
  """

  run: build_lib.Run
  fn: Any
  batches: list[Any]
  key: Any
  program: hlo.Program
  module: str
  donated: tuple[int, int]
  tracing: float
  compiling: float
  cached: bool
  memory: dict[str, int]

  @property
  def peak(self) -> int:
    m = self.memory
    return m['argument'] + m['output'] - m['alias'] + m['temp'] + m['generated_code']


def batches(run: build_lib.Run, mesh) -> list[Any]:
  """Random tokens in the shapes of the config, one document a row, placed as training places."""
  rng = np.random.default_rng(run.config['seed'])

  def field(name, like):
    if name.endswith('tokens'):
      return rng.integers(0, run.tokenizer.vocab_size, like.shape, dtype=like.dtype)
    if name.endswith('positions'):
      return np.broadcast_to(np.arange(like.shape[-1], dtype=like.dtype), like.shape).copy()
    return np.full(like.shape, name.endswith('segments') or name == 'weights', like.dtype)

  def placed(a):
    if mesh is None:
      return jax.device_put(a)
    return jax.device_put(a, NamedSharding(mesh, shard.spec(('batch', *[None] * (a.ndim - 1)))))

  shapes = run.batch_shapes()
  return [{k: placed(field(k, s)) for k, s in shapes.items()} for _ in range(BATCHES)]


def prepare(run: build_lib.Run, mesh) -> Step:
  """Compiles the step that `loop.Trainer` runs. Raises ValueError where it does not fit."""
  fits(state_bytes(run, mesh), 'the state alone needs')
  found, key = batches(run, mesh), jax.random.fold_in(jax.random.key(run.config['seed']), 1)
  hits: list[str] = []
  listen = lambda event, **_: hits.append(event) if event == HIT else None
  with enough():
    before = time.monotonic()
    lowered = loop.step_fn(run).lower(restore.abstract_state(run), found[0], key)
    between = time.monotonic()
    monitoring.register_event_listener(listen)
    # The cache may hold the program as other code has made it, with other names for its operations.
    named = 'jax_compilation_cache_include_metadata_in_key'
    old = getattr(jax.config, named)
    jax.config.update(named, True)
    try:
      fn = lowered.compile()
    finally:
      jax.config.update(named, old)
      monitoring.unregister_event_listener(listen)
    after = time.monotonic()
  text = fn.as_text()
  m = fn.memory_analysis()
  step = Step(
    run,
    fn,
    found,
    key,
    hlo.parse(text),
    re.match(r'HloModule ([^\s,]+)', text)[1],
    donated(text, run),
    between - before,
    after - between,
    bool(hits),
    {
      k: getattr(m, f'{k}_size_in_bytes')
      for k in ('argument', 'output', 'alias', 'temp', 'generated_code')
    },
  )
  fits(step.peak, 'the step needs')
  return step


def state_bytes(run: build_lib.Run, mesh) -> int:
  return plan.piece_bytes(run, None if mesh is None else run.placements(mesh), lambda s: s)


def fits(need: float, what: str):
  """Raises ValueError where a device has less memory than this."""
  have = room()
  if have is not None and need > have:
    raise ValueError(
      f'{what} {plan.size(need)} on each device, which has {plan.size(have)}; smaller batches, '
      'more config.micro_batches, config.model.remat or more devices need less (--plan tells more)'
    )


def room() -> int | None:
  """Bytes that a device has for programs; of a CPU, those that are free; None where unknown."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'bytes_limit' in stats:
    return stats['bytes_limit']
  try:
    with open('/proc/meminfo') as f:
      free = re.search(r'MemAvailable:\s+(\d+) kB', f.read())
  except OSError:
    return None
  return int(free[1]) * 1024 // jax.local_device_count() if free else None


@contextlib.contextmanager
def enough():
  """Says in one sentence that a device has too little memory."""
  try:
    yield
  except jax.errors.JaxRuntimeError as e:
    if OUT_OF_MEMORY not in str(e):
      raise
    first = str(e).partition(OUT_OF_MEMORY)[2].strip(': ').splitlines()[0]
    raise ValueError(
      f'the step does not fit into the memory of a device ({first[:200]}); smaller batches, more '
      'config.micro_batches, config.model.remat or more devices need less'
    ) from None


def donated(text: str, run: build_lib.Run) -> tuple[int, int]:
  """(arrays of the state whose memory the program takes for its results, arrays of the state)."""
  head = text.partition('\n')[0]
  aliases = head.partition('input_output_alias={')[2].partition('entry_computation_layout')[0]
  n = len(jax.tree.leaves(run.state_shapes))
  return len({int(i) for i in ALIAS.findall(aliases) if int(i) < n}), n


def first_state(run: build_lib.Run) -> Any:
  with enough():
    state = run.init(jax.random.fold_in(jax.random.key(run.config['seed']), 0))
    return jax.block_until_ready(restore.with_held(run, state))


def steps(step: Step, state: Any, n: int) -> tuple[Any, list[float]]:
  """(state, seconds of each of n steps). As in training, each is dispatched before the one in front
  of it is done.
  """
  marks, before = [time.perf_counter()], None
  with enough():
    for i in range(n):
      with jax.profiler.StepTraceAnnotation('train', step_num=i):
        state, metrics = step.fn(state, step.batches[i % BATCHES], step.key)
      if before is not None:
        jax.block_until_ready(before)
        marks.append(time.perf_counter())
      before = metrics
    jax.block_until_ready((before, state))
    marks.append(time.perf_counter())
  return state, list(np.diff(marks))


def traced(step: Step, state: Any, n: int, folder: Any):
  """(state, seconds of each step, [what each device did], the trace's file)."""
  old = events_lib.find(folder)
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  with jax.profiler.trace(str(folder), profiler_options=options):
    state, seconds = steps(step, state, n)
  file = max(events_lib.find(folder) - old)
  devices = events_lib.read(ProfileData.from_file(str(file)), step.module)
  return state, seconds, [devices[d] for d in sorted(devices)], file


def rates(dtype: Any) -> table.Rates:
  """The published figures of the device, or what a matrix product and a copy reach here."""
  kind = jax.devices()[0].device_kind
  chip = chips.of_kind(kind)
  if chip is not None:
    return table.Rates(chip.bf16, chip.bandwidth, f'the peaks of a {kind}, dense bfloat16')
  cpu = jax.default_backend() == 'cpu'
  n, entries = (1024, 2**24) if cpu else (8192, 2**28)
  a, x = jnp.ones((n, n), dtype), jnp.ones(entries, jnp.float32)
  flops = 2 * n**3 / _best(jax.jit(lambda a: a @ a / n), a)
  moved = 8 * entries / _best(jax.jit(lambda x: x + 1, donate_argnums=0), x)
  size = f'{n} x {n} {jnp.dtype(dtype).name}, and a pass over {plan.size(4 * entries)}'
  shared = max(1, jax.sharding.get_mesh().size) if cpu else 1  # simulated devices are one machine
  size += f', shared by {shared} simulated devices' if shared > 1 else ''
  source = f'measured in this run: a matrix product of {size}'
  return table.Rates(flops / shared, moved / shared, source)


def _best(fn, x, times: int = 7) -> float:
  """The shortest of some calls of fn(x), whose result takes the place of x: memory that is new
  would cost more than its use.
  """
  x, found = jax.block_until_ready(fn(x)), []
  for _ in range(times):
    before = time.perf_counter()
    x = jax.block_until_ready(fn(x))
    found.append(time.perf_counter() - before)
  return min(found)


def spread(seconds: list[float]) -> dict[str, float]:
  """The median with the smallest and the largest."""
  median = statistics.median(seconds)
  return dict(median=median, least=min(seconds), most=max(seconds))


def used() -> int | None:
  """The most bytes that a device has held, where it says so."""
  stats = [d.memory_stats() or {} for d in jax.local_devices()]
  found = [s.get('peak_bytes_in_use', math.nan) for s in stats]
  return None if any(map(math.isnan, found)) else int(max(found))

"""The training step compiled ahead of time for TPUs that are not here, by libtpu's compiler alone.

A process of its own compiles: it is given a limit of time, its memory is free again afterwards, and
what the compiler prints (or a crash of it) stays there. The program is the one that trains: the
same step, the same donated state, the same placements.

  python -m lmjax.planning.compile IN.json OUT    what `compiled` starts
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from lmjax.planning import topologies

UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
MEMORY = ('argument', 'output', 'alias', 'temp', 'generated_code', 'host_temp', 'host_argument')
MISSING = (
  "libtpu is not installed, which compiles for TPUs without one: pip install 'lmjax[tpu]'; what is "
  'printed above is estimated'
)


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A compiled step.

  seconds: of tracing, lowering and compiling. memory: bytes on one chip by XLA's names (argument,
  output, alias, temp, generated_code, ...). text: the program. needed: None, or the bytes that the
  compiler says a chip would need where the step does not fit; then there is no program.
  """

  seconds: float
  memory: dict[str, int]
  text: str
  needed: float | None = None

  @property
  def peak(self) -> float:
    """Bytes of a chip's memory that the step takes at its largest, as the compiler lays it out."""
    if self.needed is not None:
      return self.needed
    m = self.memory
    return m['argument'] + m['output'] - m['alias'] + m['temp'] + m['generated_code']


def available() -> bool:
  return importlib.util.find_spec('libtpu') is not None


def compiled(
  resolved: dict, topology: topologies.Topology, arguments: float, limit: float
) -> Compiled:
  """Compiles the step of a config within `limit` seconds; its arguments take so many bytes a chip.

  Raises ValueError where libtpu is missing, the time is up, or the compiler fails for another
  reason than memory.
  """
  if not available():
    raise ValueError(MISSING)
  with tempfile.TemporaryDirectory(prefix='lmjax_plan') as folder:
    out = pathlib.Path(folder)
    given = out / 'in.json'
    given.write_text(json.dumps(dict(config=resolved, topology=str(topology))))
    quiet = dict(JAX_PLATFORMS='cpu', TPU_SKIP_MDS_QUERY='1', ALLOW_MULTIPLE_LIBTPU_LOAD='1')
    try:
      done = subprocess.run(
        [sys.executable, '-m', 'lmjax.planning.compile', str(given), folder],
        env=os.environ | quiet,
        capture_output=True,
        text=True,
        timeout=limit,
      )
    except subprocess.TimeoutExpired:
      raise ValueError(
        f'compiling for {topology} was not done within {limit:.0f} s (--plan_seconds); fewer '
        'unrolled layers (config.model.unroll=1) compile faster'
      ) from None
    return _read(out, done, topology, arguments)


def _read(out: pathlib.Path, done, topology, arguments: float) -> Compiled:
  if done.returncode:
    last = [line for line in done.stderr.strip().splitlines() if line.strip()][-1:]
    raise ValueError(f'the compiler for {topology} failed: {"".join(last)[:500]}')
  found = json.loads((out / 'out.json').read_text())
  if 'error' in found:
    needed = exceeded(found['error'], arguments)
    if needed is None:
      raise ValueError(f'the compiler for {topology} refused the step: {found["error"][:500]}')
    return Compiled(found['seconds'], {}, '', needed)
  return Compiled(found['seconds'], found['memory'], (out / 'program.txt').read_text())


def exceeded(message: str, arguments: float) -> float | None:
  """The bytes that a step would need, from the compiler's message; None for another message.

  It says either 'Used 17.3G of 15.75G hbm' (all of it) or that 'the total memory required for HLO
  temporaries (30.04G) exceeds available HBM', which leaves out the `arguments`.
  """
  size = r'([\d.]+)([KMGT]?)'
  all_of_it, temporaries = rf'Used {size} of [\d.]+[KMGT]? hbm', rf'temporaries \({size}\) exceeds'
  for pattern, more in ((all_of_it, 0.0), (temporaries, arguments)):
    match = re.search(pattern, message)
    if match:
      return float(match[1]) * UNITS[match[2]] + more
  return None


def devices(topology: topologies.Topology):
  """The chips of a topology as libtpu knows them."""
  from jax.experimental import topologies as aot

  how: dict[str, Any] = {}
  if topology.chip.cores > 1 and topology.name == 'v4':
    how['chip_config_name'] = 'megacore'  # else each core is a device
  if set(topology.shape) == {1}:
    how['chips_per_host_bounds'] = (1, 1, 1)
  if topology.slices > 1:
    how['num_slices'] = topology.slices
  name = f'{topology.name}:{"x".join(map(str, topology.shape))}'
  return aot.get_topology_desc(name, platform='tpu', **how).devices


def arguments(run, mesh, device):
  """(the step's abstract arguments, placed; the shardings of its results; what sets the mesh)."""
  import jax
  from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

  from lmjax.parallel import offload
  from lmjax.parallel import shard

  key = jax.eval_shape(
    lambda: jax.random.key(0)
  )  # no eager operation under a mesh that is not here
  placed = lambda tree, at: jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, at
  )
  everywhere = lambda tree, s: placed(tree, jax.tree.map(lambda _: s, tree))
  if mesh is None:
    here = SingleDeviceSharding(device)
    state = jax.tree.map(lambda _: here, run.state_shapes)
    if run.config['offload']:
      state = state.replace(opt=offload.placed(state.opt, run.state_shapes.opt))
    given = placed(run.state_shapes, state), everywhere(run.batch_shapes(), here)
    return (*given, everywhere(key, here)), (state, None), contextlib.nullcontext()
  with jax.set_mesh(mesh):
    state = run.shardings()
    rows = NamedSharding(mesh, shard.spec(('batch',)))
  batch = everywhere(run.batch_shapes(), rows)
  key = everywhere(key, NamedSharding(mesh, PartitionSpec()))
  return (placed(run.state_shapes, state), batch, key), (state, None), jax.set_mesh(mesh)


def compile_here(resolved: dict, topology: topologies.Topology):
  """(compiled step, seconds), in this process. Raises what XLA raises."""
  import jax

  from lmjax import build as build_lib
  from lmjax.parallel import mesh as mesh_lib

  run = build_lib.build(resolved)
  places = devices(topology)
  mesh = mesh_lib.make(resolved['mesh'], places)
  given, results, entered = arguments(run, mesh, places[0])
  started = time.monotonic()
  with entered, run.choices('tpu'):
    step = jax.jit(run.step, donate_argnums=0, out_shardings=results)
    program = step.trace(*given).lower().compile()
  return program, time.monotonic() - started


def _end_with(parent: int) -> None:
  """Ends this process when the one that started it has: nobody waits for the program any more."""
  while os.getppid() == parent:
    time.sleep(1)
  os._exit(1)


def main(given: str, folder: str) -> int:
  import jax

  threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
  asked = json.loads(pathlib.Path(given).read_text())
  out, started = pathlib.Path(folder), time.monotonic()
  try:
    program, seconds = compile_here(asked['config'], topologies.parse(asked['topology']))
  except (jax.errors.JaxRuntimeError, NotImplementedError) as e:
    found = dict(error=str(e), seconds=time.monotonic() - started)
  else:
    m = program.memory_analysis()
    sizes = {k: getattr(m, f'{k}_size_in_bytes') for k in MEMORY}
    found = dict(seconds=seconds, memory=sizes)
    (out / 'program.txt').write_text(program.as_text())
  (out / 'out.json').write_text(json.dumps(found))
  return 0


if __name__ == '__main__':
  sys.exit(main(*sys.argv[1:]))

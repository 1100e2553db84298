"""Which process of how many this one is: from flags, or from what a launcher left in the
environment (Slurm, Open MPI, TPU slices on GCE and GKE; on request Kubernetes and mpi4py), read
through JAX's own detection.

Never guessed: `auto` joins others only where a launcher says that it started several. A shell
within an allocation, or a script that was not started by `srun`, is one process by itself.
"""

import dataclasses
import os
import re

from lmjax import progress

MODES = ('auto', 'on', 'off', 'slurm', 'openmpi', 'tpu', 'k8s', 'mpi4py')
_SURE = ('slurm', 'openmpi', 'tpu')
_GPUS = ('CUDA_VISIBLE_DEVICES', 'ROCR_VISIBLE_DEVICES', 'HIP_VISIBLE_DEVICES')


@dataclasses.dataclass(frozen=True)
class Place:
  """Process `index` of `count`; process 0 listens at `address`. devices: the local ones that it
  takes, None for all; how: who said so.
  """

  address: str
  count: int
  index: int
  devices: tuple[int, ...] | None
  how: str


def find(mode: str, coordinator: str | None, count: int, index: int, seconds: float):
  """The place of this process, or None where it runs by itself.

  Args:
    mode: one of MODES; a launcher's name, or 'on' for any of them, must be found.
    coordinator, count, index: the explicit flags, which win.
    seconds: in which the name of the coordinator's host must become known.

  Raises ValueError where the flags do not fit together, or nothing was found that must be.
  """
  if mode not in MODES:
    raise ValueError(f'--distributed={mode}: one of {", ".join(MODES)} is expected')
  if coordinator:
    return _explicit(coordinator, count, index)
  if mode == 'off':
    return None
  known = _launchers()
  asked = {'auto': _SURE, 'on': tuple(known)}.get(mode, (mode,))
  for name in asked:
    for env in known[name]:
      found = _named(name, lambda env=env, name=name: _detected(name, env, seconds))
      if found is not None and (found.count > 1 or mode != 'auto'):
        return found
  if mode != 'auto':
    raise ValueError(
      f'--distributed={mode}: nothing in the environment says which process of how many this is '
      f'(looked for {", ".join(asked)}); give --coordinator=HOST:PORT --processes=N --process=I'
    )
  tasks = os.environ.get('SLURM_NTASKS', '1')
  if tasks != '1' and 'SLURM_STEP_NUM_TASKS' not in os.environ:
    progress.say(
      f'SLURM_NTASKS={tasks}, but srun did not start this process: it runs by itself; start it '
      'with srun to use all tasks'
    )
  return None


def _explicit(address: str, count: int, index: int) -> Place:
  host, _, port = address.rpartition(':')
  if not host or not re.fullmatch('[0-9]{1,5}', port) or not 0 < int(port) < 1 << 16:
    raise ValueError(
      f'--coordinator={address!r}: an address is expected, as in 10.0.0.1:1234, with a port '
      'from 1 to 65535'
    )
  if count < 1 or not 0 <= index < count:
    raise ValueError(f'--process={index} of --processes={count}: 0 ... {count - 1} is expected')
  return Place(address, count, index, None, 'flags')


def _launchers():
  # Not public. `jax.distributed.initialize()` finds the same, but tells nothing before it waits.
  from jax._src import clusters as c

  return {
    'slurm': (c.SlurmCluster,),
    'openmpi': (c.OmpiCluster,),
    'tpu': (c.GkeTpuCluster, c.GceTpuCluster),
    'k8s': (c.K8sCluster,),
    'mpi4py': (c.Mpi4pyCluster,),
  }


def _named(name: str, read):
  try:
    return read()
  except Exception as e:  # of any library that asks a launcher
    raise ValueError(
      f'--distributed: {name} started this process, but does not say how ({type(e).__name__}: '
      f'{str(e)[:300]}); give --coordinator=HOST:PORT --processes=N --process=I, or '
      '--distributed=off'
    ) from e


def _detected(name: str, env, seconds: float) -> Place | None:
  hosts = os.environ.get('TPU_PROCESS_ADDRESSES') or os.environ.get('TPU_WORKER_HOSTNAMES')
  if name == 'tpu' and hosts and ',' not in hosts and 'MEGASCALE_NUM_SLICES' not in os.environ:
    return Place('127.0.0.1:1', 1, 0, None, name)  # JAX would ask a server that need not be there
  try:
    if not env.is_env_present():
      return None
  except OSError:  # nor this one
    return None
  # Of the allocation, SLURM_NTASKS may tell; of this step, only this.
  count = int(os.environ.get('SLURM_STEP_NUM_TASKS', 0)) if name == 'slurm' else 0
  count = count or env.get_process_count()
  if count == 1:
    return Place('127.0.0.1:1', 1, 0, None, name)
  address = os.environ.get('JAX_COORDINATOR_ADDRESS') or env.get_coordinator_address(
    timeout_secs=int(seconds), override_coordinator_port=os.environ.get('JAX_COORDINATOR_PORT')
  )
  return Place(address, count, env.get_process_id(), _devices(env), name)


def _devices(env) -> tuple[int, ...] | None:
  """Processes that share a machine share its GPUs, one each, unless each sees its own already."""
  here = os.environ.get('SLURM_STEP_TASKS_PER_NODE') or os.environ.get('OMPI_COMM_WORLD_LOCAL_SIZE')
  alone = here is not None and re.fullmatch(r'1(\(x\d+\))?', here)
  own = any(',' not in os.environ[k] for k in _GPUS if os.environ.get(k))
  local = env.get_local_process_id()
  return None if alone or own or local is None else (local,)

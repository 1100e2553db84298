"""What this machine may compute on, told without jax and before it is imported."""

import importlib.metadata
import importlib.util
import os
import pathlib

from lmjax import heap

GPU_SHARE = 0.92  # of the memory; jax alone takes 0.75
GOOGLE = '0x1ae0'  # the vendor of TPUs on the PCI bus


def settle(devices: str = '/sys/bus/pci/devices') -> None:
  """What a command does first. Where only the CPU can compute, jax is told so (libtpu, which plans
  need, else looks for a TPU for seconds and writes to the terminal) and keeps freed memory. A GPU
  gives programs the share of its memory that plans count on, where the variable says no other.
  """
  if cpu_only(devices):
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    heap.keep()
  else:
    os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', str(GPU_SHARE))


def cpu_only(devices: str = '/sys/bus/pci/devices') -> bool:
  """Whether that was asked for, or no accelerator's plugin is installed. libtpu by itself is none:
  there must be a TPU.
  """
  asked = os.environ.get('JAX_PLATFORMS')
  if asked:
    return asked == 'cpu'
  has = lambda package: importlib.util.find_spec(package) is not None
  if importlib.metadata.entry_points(group='jax_plugins') or has('jax_plugins'):
    return False
  return not (has('libtpu') and _has_tpu(pathlib.Path(devices)))


def _has_tpu(devices: pathlib.Path) -> bool:
  if not devices.is_dir():  # nobody can say
    return True
  try:
    return any(f.read_text().strip() == GOOGLE for f in devices.glob('*/vendor'))
  except OSError:
    return True

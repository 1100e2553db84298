"""What must be the same on all processes of a run: its facts, see `parallel.agree`."""

import fnmatch
import functools
import hashlib
import importlib.util
import pathlib
from typing import Any, Mapping

import jax

from lmjax import config as config_lib
from lmjax import groups
from lmjax import leaves
from lmjax import specs
from lmjax import versions

# What one process may have for itself.
PRIVATE = (
  'watchdog.*',
  'data.cache',
  'data.threads',
  'data.prefetch',
  'tensorboard',
  'trackers',
  'report',
)
# Settings of JAX that make another program, or other random numbers, of the same code.
_JAX = (
  'jax_enable_x64',
  'jax_default_matmul_precision',
  'jax_default_prng_impl',
  'jax_threefry_partitionable',
  'jax_numpy_dtype_promotion',
)


def facts(resolved: dict[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
  """What is known before anything is computed: versions, code, config, flags."""
  flat = groups.flat(resolved)
  out = {f'the version of {p}': versions.package(p) for p in versions.PACKAGES}
  out['the source of lmjax (digest)'] = source()
  out |= {f'the source of {m} (digest)': _module(m) for m in _outside(flat)}
  out |= {f'config.{k}': v for k, v in flat.items() if not _private(k)}
  out |= {f'--{k}': v for k, v in flags.items()}
  out |= {k: str(getattr(jax.config, k)) for k in _JAX}
  return out | {'the fingerprint of the config': config_lib.fingerprint(resolved)}


def _private(key: str) -> bool:
  return any(fnmatch.fnmatchcase(key, p) for p in PRIVATE)


@functools.cache
def source() -> str:
  """12 hex digits over the Python files of the package."""
  home = pathlib.Path(__file__).resolve().parents[1]
  out = hashlib.sha256()
  for path in sorted(home.rglob('*.py')):
    if '_configs' not in path.parts:
      out.update(f'{path.relative_to(home).as_posix()}\n'.encode() + path.read_bytes())
  return out.hexdigest()[:12]


def _outside(flat: Mapping[str, Any]) -> list[str]:
  """Modules besides lmjax whose parts the config uses."""
  found = set()
  for key, value in flat.items():
    if isinstance(value, str) and value.strip() and leaves.is_spec(key, value):
      found |= {name.partition(':')[0] for name in specs.outside(value)}
  return sorted(found)


def _module(name: str) -> str:
  spec = importlib.util.find_spec(name)
  if spec is None or spec.origin is None or not pathlib.Path(spec.origin).is_file():
    return 'nothing'
  return hashlib.sha256(pathlib.Path(spec.origin).read_bytes()).hexdigest()[:12]

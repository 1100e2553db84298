"""What a run was made with: packages, device, commit."""

import importlib.metadata
import os
import pathlib
import platform
import socket
import subprocess
from typing import Any

PACKAGES = ('lmjax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


def record() -> dict[str, Any]:
  """Software, device and commit, each None where unknown."""
  import jax

  out: dict[str, Any] = {'python': platform.python_version()}
  out |= {p: package(p) for p in PACKAGES}
  devices = jax.devices()
  return (
    out
    | {
      'platform': platform.platform(),
      'backend': devices[0].platform,
      'device': devices[0].device_kind,
      'devices': len(devices),
      'processes': jax.process_count(),
      'host': socket.gethostname(),
      'cpus': os.cpu_count(),
    }
    | _commit(pathlib.Path(__file__).parent)
  )


def package(package: str) -> str | None:
  """The installed version, or None."""
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _commit(folder: pathlib.Path) -> dict[str, Any]:
  """Commit of the checkout that holds this code, and whether tracked files of the package were
  changed (an experiment's results are no code); an installed copy has none.
  """

  def git(*args):
    return subprocess.run(
      ['git', '-C', str(folder), *args], capture_output=True, text=True, timeout=10, check=True
    ).stdout

  try:
    git(
      'ls-files', '--error-unmatch', '__init__.py'
    )  # another repository may surround an installed copy
    return {
      'commit': git('rev-parse', 'HEAD').strip(),
      'dirty': bool(git('status', '--porcelain', '--untracked-files=no', '--', '.').strip()),
    }
  except (OSError, subprocess.SubprocessError):
    return {'commit': None, 'dirty': None}

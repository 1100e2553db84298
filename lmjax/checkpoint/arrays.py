"""Reads one step of a checkpoint, a directory with a manifest, once its checksums hold.

Neither the config nor the classes of the run are needed, nor the devices that it was saved from.
"""

import contextlib
from typing import Any, Iterable, Iterator, Mapping

from etils import epath
import numpy as np
import orbax.checkpoint as ocp

from lmjax.checkpoint import manifest
from lmjax.checkpoint import tree as tree_lib

_SHOWN = 5


def checked(step_dir: Any) -> dict[str, Any]:
  """The manifest of a step whose files are all what was saved; raises ValueError naming those that
  are not.
  """
  refuse(f'checkpoint {step_dir} is damaged', manifest.verify(step_dir))
  return manifest.read(step_dir)


def refuse(what: str, problems: list[str]) -> None:
  """Raises ValueError with the first problems, if there are any."""
  if problems:
    raise refusal(what, problems)


def refusal(what: str, problems: list[str], hint: str = '') -> ValueError:
  more = f'; and {len(problems) - _SHOWN} more' if len(problems) > _SHOWN else ''
  return ValueError(f'{what}: {"; ".join(problems[:_SHOWN])}{more}{hint}')


def tops(body: Mapping[str, Any]) -> list[str]:
  """Top-level entries of the saved tree."""
  return sorted({k.split('/')[0] for k in [*body['leaves'], *body['empty']]})


def chosen(step_dir: Any, body: Mapping[str, Any], only: Iterable[str]) -> list[str]:
  """Names of the arrays below the top-level entries `only`, all without any.

  Raises ValueError where an entry does not exist.
  """
  only = set(only)
  if unknown := sorted(only - set(tops(body))):
    raise ValueError(
      f'{unknown[0]!r} is not in checkpoint {step_dir}; it has {", ".join(tops(body))}'
    )
  return [k for k in body['leaves'] if not only or k.split('/')[0] in only]


def read(step_dir: Any, body: Mapping[str, Any], names: Iterable[str]) -> dict[str, np.ndarray]:
  """Arrays on the host by name, bit for bit; a typed PRNG key is its data."""
  names = list(names)
  if not names:
    return {}
  args = tree_lib.nest({k: ocp.RestoreArgs(restore_type=np.ndarray) for k in names})
  found = load(step_dir, args, partial=len(names) < len(body['leaves'])).state
  out = {}
  for name in names:
    out[name], entry = np.asarray(tree_lib.find(found, name)), body['leaves'][name]
    have = tree_lib.describe(out[name])
    if 'impl' not in entry and have != entry:
      raise ValueError(
        f'checkpoint {step_dir}: {name} is {tree_lib.show(have)}, its manifest says '
        f'{tree_lib.show(entry)}'
      )
  return out


def groups(body: Mapping[str, Any], names: Iterable[str], size: int = 1 << 28) -> Iterator[list]:
  """Names in groups of about `size` bytes, to be read one after the other."""
  group, total = [], 0
  for name in names:
    if group and total + tree_lib.nbytes(body['leaves'][name]) > size:
      yield group
      group, total = [], 0
    group.append(name)
    total += tree_lib.nbytes(body['leaves'][name])
  if group:
    yield group


def cursor(step_dir: Any) -> dict[str, Any]:
  """The cursor, whose own checksum holds."""
  refuse(f'checkpoint {step_dir} is damaged', manifest.verify(step_dir, below='cursor/'))
  # Its handler alone: a whole checkpointer waits for all processes, and this is read on one.
  with _reading(step_dir):
    found = ocp.JsonCheckpointHandler().restore(epath.Path(step_dir) / 'cursor')
    return dict(found)


def load(step_dir: Any, restore_args: Any, *, partial: bool, **more: Any) -> Any:
  """What orbax makes of a step; `restore_args` is a tree like the saved one, or a part of it."""
  args = ocp.args.PyTreeRestore(
    item=restore_args, restore_args=restore_args, partial_restore=partial
  )
  with _reading(step_dir), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
    return reader.restore(epath.Path(step_dir), args=ocp.args.Composite(state=args, **more))


@contextlib.contextmanager
def _reading(step_dir: Any):
  """Orbax raises errors of many kinds for what it cannot read."""
  try:
    yield
  except Exception as e:
    text = (str(e).splitlines() or [''])[0]
    raise ValueError(f'checkpoint {step_dir} cannot be read ({type(e).__name__}: {text})') from e

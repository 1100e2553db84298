"""Files that a run's config names and that lie in its own directory: found again wherever that is.

  own_files.json    {"folder": where the run was made, "files": {name: sha256},
                     "beside": [names of what else belongs to them]}

config.json keeps the paths that it was made with, and the run its identity. Who reads the config of
a directory sees the directory's own files in their place, so that it may be moved or copied; a file
that is not the recorded one is refused, and so is never taken for it. A run that is made of it gets
files of its own (`give`).
"""

import hashlib
import json
import os
import pathlib
from typing import Any, Iterable, NamedTuple

from lmjax import bucket
from lmjax import files
from lmjax import rundir
from lmjax import specs

FILE = 'own_files.json'


def record(folder: pathlib.Path, names: Iterable[str], beside: Iterable[str] = ()) -> None:
  """Writes down which files of a run directory its config names, and what lies beside them."""
  found = {n: _digest(folder / n) for n in names}
  text = json.dumps(dict(folder=str(folder), files=found, beside=[*beside]), indent=2)
  with files.kept(folder / FILE):
    files.write(folder / FILE, text + '\n')


def give(source: Any, target: pathlib.Path, config: dict[str, Any]) -> dict[str, Any]:
  """Copies a run's own files to another run directory, on a disk too; the config of the other with
  those in their place. Raises ValueError naming one that cannot be read.
  """
  here = rundir.local(source)
  if bucket.is_remote(here) or bucket.is_remote(target) or not (here / FILE).is_file():
    return config
  made = _recorded(here / FILE)
  for name in (*made.digests, *made.beside):
    if (here / name).is_file():
      (target / name).parent.mkdir(exist_ok=True)
      files.copy(here / name, target / name)
  record(target, made.digests, made.beside)
  at = {p: str(target) for p in (made.folder, str(here))}
  return _with(config, at, made.digests)


def config(workdir: Any) -> dict[str, Any]:
  """`rundir.read_config`, in which its own files are those of this directory. Raises ValueError
  naming a file that is another one than the run was made with; of one that is missing, its reader
  speaks.
  """
  out, here = rundir.read_config(workdir), rundir.local(workdir)
  if bucket.is_remote(here) or not (here / FILE).is_file():
    return out
  made = _recorded(here / FILE)
  for name, digest in made.digests.items():
    if (here / name).is_file() and _digest(here / name) != digest:
      raise ValueError(
        f'{here / name} is not the file that this run was made with (by its sha256 in {FILE}); put '
        'that file back'
      )
  return out if _same(made.folder, here) else _with(out, {made.folder: str(here)}, made.digests)


class _Recorded(NamedTuple):
  folder: str
  digests: dict[str, str]
  beside: list[str]


def _recorded(path: pathlib.Path) -> _Recorded:
  found = files.read_json(path)
  found = found if isinstance(found, dict) else {}
  folder, digests, beside = found.get('folder'), found.get('files'), found.get('beside', [])
  fits = isinstance(folder, str) and isinstance(digests, dict) and isinstance(beside, list)
  if not fits or not all(map(_plain, digests)) or not all(map(_within, beside)):
    raise ValueError(f'{path} is damaged: a folder, and files of this one by name, are expected')
  return _Recorded(folder, digests, beside)


def _plain(name: Any) -> bool:
  return isinstance(name, str) and pathlib.PurePath(name).name == name and '\0' not in name


def _within(name: Any) -> bool:
  """A file of the folder, or of a folder in it."""
  return (
    isinstance(name, str)
    and len(p := name.split('/')) < 3
    and '..' not in p
    and all(map(_plain, p))
  )


def _same(made: str, here: pathlib.Path) -> bool:
  try:
    return os.path.samefile(made, here)
  except (OSError, ValueError):  # it is there no more
    return False


def _with(config: dict[str, Any], at: dict[str, str], names: Iterable[str]) -> dict[str, Any]:
  """The config with a folder, and its files, elsewhere."""
  data = config.get('data')
  if not isinstance(data, dict) or 'tokenizer' not in data:
    return config
  moved = at | {os.path.join(a, n): os.path.join(b, n) for a, b in at.items() for n in names}
  return config | dict(data=data | dict(tokenizer=_moved(data['tokenizer'], moved)))


def _moved(spec: Any, moved: dict[str, str]) -> Any:
  """A spec with other paths; one that cannot be read stays, for `config.resolve` to refuse."""

  def new(value: Any) -> Any:
    if isinstance(value, specs.Call):
      return specs.Call(value.name, tuple((k, new(v)) for k, v in value.args))
    return moved.get(value, value) if isinstance(value, str) else value

  try:
    return str(new(specs.call(spec)))
  except specs.SpecError:
    return spec


def _digest(path: pathlib.Path) -> str:
  try:
    return hashlib.sha256(path.read_bytes()).hexdigest()
  except OSError as e:
    raise ValueError(f'{path} cannot be read ({e.strerror or e})') from None

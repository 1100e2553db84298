"""Files that a run's config names and that lie in its own directory: found again wherever that is.

  own_files.json    {"folder": where the run was made, "files": {name: sha256}}

config.json keeps the paths that it was made with, and the run its identity. Who reads the config of
a directory sees the directory's own files in their place, so that it may be moved or copied; a file
that is not the recorded one is refused, and so is never taken for it.
"""

import hashlib
import json
import os
import pathlib
from typing import Any, Iterable

from lmjax import bucket
from lmjax import files
from lmjax import rundir
from lmjax import specs

FILE = 'own_files.json'


def record(folder: pathlib.Path, names: Iterable[str]) -> None:
  """Writes down which files of a run directory its config names."""
  found = {n: _digest(folder / n) for n in names}
  text = json.dumps(dict(folder=str(folder), files=found), indent=2)
  with files.kept(folder / FILE):
    files.write(folder / FILE, text + '\n')


def config(workdir: Any) -> dict[str, Any]:
  """`rundir.read_config`, in which its own files are those of this directory. Raises ValueError
  naming a file that is another one than the run was made with; of one that is missing, its reader
  speaks.
  """
  out, here = rundir.read_config(workdir), rundir.local(workdir)
  if bucket.is_remote(here) or not (here / FILE).is_file():
    return out
  made, digests = _recorded(here / FILE)
  for name, digest in digests.items():
    if (here / name).is_file() and _digest(here / name) != digest:
      raise ValueError(
        f'{here / name} is not the file that this run was made with (by its sha256 in {FILE}); put '
        'that file back'
      )
  data = out.get('data')
  if _same(made, here) or not isinstance(data, dict) or 'tokenizer' not in data:
    return out
  moved = {made: str(here)} | {os.path.join(made, n): str(here / n) for n in digests}
  out['data'] = data | dict(tokenizer=_moved(data['tokenizer'], moved))
  return out


def _recorded(path: pathlib.Path) -> tuple[str, dict[str, str]]:
  found = files.read_json(path)
  found = found if isinstance(found, dict) else {}
  folder, digests = found.get('folder'), found.get('files')
  plain = lambda n: pathlib.PurePath(n).name == n and '\0' not in n
  if not isinstance(folder, str) or not isinstance(digests, dict) or not all(map(plain, digests)):
    raise ValueError(f'{path} is damaged: a folder, and files of this one by name, are expected')
  return folder, digests


def _same(made: str, here: pathlib.Path) -> bool:
  try:
    return os.path.samefile(made, here)
  except (OSError, ValueError):  # it is there no more
    return False


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

"""A model's folder: config.json and tensors in safetensors, in one file or in shards.

  model.safetensors                       all tensors, or
  model.safetensors.index.json            {"weight_map": {tensor: file}}, with
  model-00001-of-00003.safetensors, ...   the shards

Tensors are views of mapped files, so that only what is used is read. A folder may come from
anywhere: files are named in it by plain names, and pickles are never opened.
"""

import json
import pathlib
from typing import Any, Callable, Iterable

import numpy as np

from lmjax import files
from lmjax.interop import safetensors
from lmjax.interop.hf import _tokenizer

CONFIG, WEIGHTS = 'config.json', 'model.safetensors'
INDEX = f'{WEIGHTS}.index.json'
FLOATS = ('float32', 'bfloat16', 'float16')
# Formats of weights that hold programs, or are read by libraries that may run some.
UNSAFE = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.pickle', '.h5', '.msgpack', '.ot')


class Folder:
  """A folder whose headers are checked.

  config: the object of config.json; shapes: of tensors by name. Raises ValueError naming the file.
  """

  def __init__(self, path: Any):
    self.path = pathlib.Path(files.expanded(path))
    if not self.path.is_dir():
      refuse_pickle([self.path])
      raise ValueError(f'{self.path}: there is no such folder; one with {CONFIG} is expected')
    self.config = _object(self.path / CONFIG)
    self._files = self._found()
    self._arrays: dict[str, dict[str, np.ndarray]] = {}
    self.shapes: dict[str, tuple[int, ...]] = {}
    for name, file in self._files.items():
      self.shapes[name] = self._of(file)[name].shape

  def read(self, name: str) -> np.ndarray:
    """A tensor, as it lies in its file. Raises ValueError where its type is none of FLOATS."""
    out = self._of(self._files[name])[name]
    if str(out.dtype) not in FLOATS:
      raise ValueError(
        f'{self.path / self._files[name]}: {name} is {out.dtype}; {", ".join(FLOATS)} are accepted'
      )
    return out

  def tokenizer(self) -> _tokenizer.Found:
    """See `_tokenizer.find`."""
    return _tokenizer.find(self.path, self.config)

  def _of(self, file: str) -> dict[str, np.ndarray]:
    if file not in self._arrays:
      self._arrays[file] = safetensors.read(self.path / file)
    return self._arrays[file]

  def _found(self) -> dict[str, str]:
    """The file of each tensor."""
    if (self.path / WEIGHTS).exists():
      return dict.fromkeys(safetensors.header(self.path / WEIGHTS).entries, WEIGHTS)
    index = self.path / INDEX
    if not index.exists():
      refuse_pickle(sorted(self.path.iterdir()))
      raise ValueError(f'{self.path}: neither {WEIGHTS} nor {INDEX} is there')
    where = _object(index).get('weight_map')
    if not isinstance(where, dict) or not where:
      raise ValueError(f'{index}: weight_map is {_short(where)}; files by tensor are expected')
    for name, file in where.items():
      plain = isinstance(file, str) and pathlib.PurePath(file).name == file
      if not plain or set(file) & {'\\', '\0'} or not file.endswith('.safetensors'):
        raise ValueError(
          f'{index}: {_short(name)} is in {_short(file)}; a .safetensors file of the folder is '
          'expected'
        )
    for file in sorted(set(where.values())):
      self._same(index, file, where)
    return where

  def _same(self, index: pathlib.Path, file: str, where: dict[str, str]):
    """Raises ValueError where a shard holds other tensors than the index says."""
    have = set(safetensors.header(self.path / file).entries)
    said = {n for n, f in where.items() if f == file}
    for names, what in ((said - have, 'lacks'), (have - said, 'has, though the index says not,')):
      if names:
        raise ValueError(f'{self.path / file}: it {what} {some(names)} (see {index.name})')


def refuse_pickle(paths: Iterable[pathlib.Path]):
  """Raises ValueError where one of the paths is a file of weights that is no safetensors."""
  for path in paths:
    if path.suffix in UNSAFE:
      raise ValueError(
        f'{path} is no safetensors file, and such files are never opened, since they may run code; '
        f'save the model again as {WEIGHTS} where you trust it'
      )


def some(names: Iterable[str], most: int = 8) -> str:
  """Names for a message, not more than a few."""
  names = sorted(names)
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + more


def _object(path: pathlib.Path) -> dict[str, Any]:
  found = files.read_json(path)
  if not isinstance(found, dict):
    raise ValueError(f'{path} holds {_short(found)}; a JSON object is expected')
  return found


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 80 else f'{text[:77]}...'


# ------------------------------------------------------------------ writing


def write(
  path: pathlib.Path,
  config: dict[str, Any],
  sizes: dict[str, int],
  read: Callable[[str], np.ndarray],
  shard_size: int,
) -> list[str]:
  """Writes config.json and the tensors; returns the names of the files of tensors.

  sizes: bytes of each tensor; read: makes a tensor, called once for each, so that no more than a
    shard is in memory. A tensor that is larger than `shard_size` has a shard of its own.
  """
  shards: list[list[str]] = [[]]
  room = shard_size
  for name, size in sizes.items():
    if shards[-1] and size > room:
      shards.append([])
      room = shard_size
    shards[-1].append(name)
    room -= size
  n = len(shards)
  names = [WEIGHTS] if n == 1 else [f'model-{i + 1:05}-of-{n:05}.safetensors' for i in range(n)]
  for file, members in zip(names, shards):
    # The library that will read it asks for this.
    safetensors.write(path / file, {m: read(m) for m in members}, {'format': 'pt'})
  if n > 1:
    where = {m: file for file, members in zip(names, shards) for m in members}
    write_json(path / INDEX, dict(metadata=dict(total_size=sum(sizes.values())), weight_map=where))
  write_json(path / CONFIG, config)
  return names


def write_json(path: pathlib.Path, value: dict[str, Any]):
  with files.kept(path):
    files.write(path, json.dumps(value, indent=2) + '\n')

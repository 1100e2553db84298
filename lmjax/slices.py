"""Settings of a recipe for a named slice of accelerators: `--config=llama:70B@v5p:8x8x8`.

A recipe holds a table {size: {slice: Settings}} and reads its argument with `split`. A slice is
`GENERATION:TOPOLOGY`, as for `--topology` (of GPUs, those of a host x hosts), or
`N*GENERATION:TOPOLOGY` for N of them joined by a slower network. Settings change neither tokens nor
mathematics: batch and length are the recipe's.
"""

import dataclasses
from typing import Mapping

from lmjax.parallel import mesh as mesh_lib
from lmjax.registry import nearest


@dataclasses.dataclass(frozen=True)
class Settings:
  """What one slice wants.

  mesh: axes of `config.mesh`, whose product is the number of chips, and whatever else is set there.
  remat, offload: as `config.model.remat` and `config.offload`. micro_batches: as in the config.
  """

  mesh: Mapping[str, int]
  remat: str
  micro_batches: int = 1
  offload: str = ''


Table = Mapping[str, Mapping[str, Settings]]


def split(arg: str, sizes: Mapping, table: Table | None = None) -> tuple[str, Settings | None]:
  """(size, settings or None) of a recipe's argument SIZE or SIZE@SLICE. Raises KeyError listing the
  sizes, or the slices that the recipe has settings for.
  """
  size, at, name = arg.partition('@')
  if size not in sizes:
    near = nearest(size, sizes, '.')
    raise KeyError(f'no such size{near} There are {", ".join(sizes)}')
  have = (table or {}).get(size, {})
  if at and name not in have:
    known = f'{nearest(name, have, ".")} There are {", ".join(have)}' if have else '; it has none'
    raise KeyError(f'no settings of {size} for the slice {name!r}{known}')
  return size, have[name] if at else None


def apply(config, settings: Settings | None):
  """Writes the settings into a config."""
  if settings is None:
    return
  for key in settings.mesh:
    if key not in config.mesh:
      raise KeyError(f'config.mesh has no {key!r}; there are {", ".join(config.mesh)}')
  config.mesh.update(dict.fromkeys(mesh_lib.AXES, 1) | dict(settings.mesh))
  config.model.remat, config.offload = settings.remat, settings.offload
  config.micro_batches = settings.micro_batches

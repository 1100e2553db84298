"""Device meshes from a config: `config.mesh.data=8`, `config.mesh.tensor=2`,
`config.mesh.mode='auto'`.

The batch is cut over `replica`, `data` and `expert`, rows over `sequence` (context parallel).
Parameters are cut over `data` and `sequence` (ZeRO-3) and over `tensor`; layers lie apart over
`stage` (a pipeline), experts over `expert`, and tokens travel to them. `replica` is the axis for
slow networks: only gradients cross it, and where devices are of several slices it lies over these.
"""

import dataclasses
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh
import numpy as np

from lmjax.registry import nearest
from lmjax.specs import brief

AXES = (
  'replica',
  'stage',
  'data',
  'expert',
  'sequence',
  'tensor',
)  # the last over the nearest devices
MODES = {'auto': AxisType.Auto, 'explicit': AxisType.Explicit}
PARTITIONED = ('stage', 'sequence')  # the partitioner must be in charge of all other axes
CONTEXTS = ('ring', 'all_gather')
GATHERS = ('once', 'each')
COMBINATIONS = (
  *((a,) for a in AXES),
  ('replica', 'data'),
  ('replica', 'tensor'),
  ('stage', 'data'),
  ('stage', 'tensor'),
  ('data', 'expert'),
  ('data', 'sequence'),
  ('data', 'tensor'),
  ('expert', 'tensor'),
  ('sequence', 'tensor'),
  ('replica', 'stage', 'data'),
  ('replica', 'data', 'expert'),
  ('replica', 'data', 'sequence'),
  ('replica', 'data', 'tensor'),
  ('replica', 'expert', 'tensor'),
  ('stage', 'data', 'tensor'),
  ('data', 'expert', 'tensor'),
  ('data', 'sequence', 'tensor'),
  ('replica', 'stage', 'data', 'tensor'),
  ('replica', 'data', 'sequence', 'tensor'),
  ('stage', 'data', 'sequence', 'tensor'),
)


@dataclasses.dataclass(frozen=True)
class How:
  """How axes are used, where there is a choice.

  context: keys travel around a ring over `sequence`, or are gathered. micro: micro-batches of the
    pipeline over `stage`, 0 for as many as it has stages; rounds: of a micro-batch through them;
    remat: whether stages compute their layers again; gather: what ZeRO-3 cuts is gathered `once` a
    pass, or `each` layer each time.
  """

  context: str = 'ring'
  micro: int = 0
  rounds: int = 1
  remat: bool = False
  gather: str = 'once'


AS_IT_IS = How()


def how(settings: dict[str, Any]) -> How:
  """Raises ValueError naming the key."""
  _one_of(settings, 'context', CONTEXTS)
  _one_of(settings, 'stage_gather', GATHERS)
  stage = (settings[f'stage_{k}'] for k in ('micro_batches', 'rounds', 'remat', 'gather'))
  return How(settings['context'], *stage)


def sizes(settings: dict[str, Any], devices: int) -> dict[str, int]:
  """Axis sizes; at most one may be -1, which takes the devices that are left.

  Raises ValueError where the product is not the number of devices, and where the axes are no
  tested combination.
  """
  out, free = _asked(settings)
  fixed = math.prod(n for n in out.values() if n != -1)
  if free:
    if devices % fixed:
      raise ValueError(f'config.mesh.{free[0]}=-1: {devices} devices do not divide by {fixed}')
    out[free[0]] = devices // fixed
  elif fixed != devices and fixed != 1:
    raise ValueError(
      f'config.mesh asks for {fixed} devices ({_shown(out)}), there are {devices}; an axis of -1 '
      'takes all that are left'
    )
  _combined(out, settings)
  return out


def abstract(settings: dict[str, Any]) -> AbstractMesh | None:
  """The mesh that a config asks for without any device, or None for one; an axis of -1 counts as 1,
  since nobody knows.
  """
  shape = {a: n for a, n in _asked(settings)[0].items() if n > 1}
  _combined(shape, settings)
  mode = MODES[_mode(settings)]
  return (
    AbstractMesh(tuple(shape.values()), tuple(shape), axis_types=(mode,) * len(shape))
    if shape
    else None
  )


def _asked(settings: dict[str, Any]) -> tuple[dict[str, int], list[str]]:
  """(sizes as written, the axes of -1). Raises ValueError for a size that is none."""
  out = {a: settings[a] for a in AXES}
  for a, n in out.items():
    if n < 1 and n != -1:
      raise ValueError(
        f'config.mesh.{a}={n}: a positive number of devices or -1 (all that are left) is expected'
      )
  free = [a for a, n in out.items() if n == -1]
  if len(free) > 1:
    raise ValueError(
      f'config.mesh.{free[1]}=-1: only one axis may be -1, and config.mesh.{free[0]} is already'
    )
  return out, free


def _mode(settings: dict[str, Any]) -> str:
  return _one_of(settings, 'mode', MODES)


def _one_of(settings: dict[str, Any], key: str, known) -> str:
  """Raises ValueError naming the key."""
  value = settings[key]
  if value not in known:
    raise ValueError(
      f'config.mesh.{key}={brief(value)}: one of {", ".join(known)} is expected'
      f'{nearest(value, known)}'
    )
  return value


def _combined(shape: dict[str, int], settings: dict[str, Any]):
  """Raises ValueError for axes that no test has seen together."""
  kept = tuple(a for a in AXES if shape.get(a, 1) > 1)
  if kept and kept not in COMBINATIONS:
    raise ValueError(
      f'config.mesh: {_shown(shape)} is no tested combination of axes; there are '
      + ', '.join(' x '.join(c) for c in COMBINATIONS)
    )
  alone = [a for a in PARTITIONED if a in kept]
  if alone and _mode(settings) == 'explicit':
    raise ValueError(
      f"config.mesh.mode='explicit': config.mesh.{alone[0]}={shape[alone[0]]} needs mode='auto'"
    )


def _shown(shape: dict[str, int]) -> str:
  return ' x '.join(f'{a} {n}' for a, n in shape.items() if n > 1)


def make(settings: dict[str, Any], devices=None) -> Mesh | None:
  """The mesh that a config asks for, or None where it is a single device.

  devices: all that there are, unless given: those of a topology that is not here, say.
  """
  found = jax.devices() if devices is None else list(devices)
  shape = sizes(settings, len(found))
  if math.prod(shape.values()) == 1:
    if jax.process_count() > 1 and devices is None:
      raise ValueError(
        f'config.mesh asks for one device, but {jax.process_count()} processes of '
        f'{len(found)} devices run together; set config.mesh.data=-1, say'
      )
    return None
  kept = {a: n for a, n in shape.items() if n > 1}
  types = (MODES[_mode(settings)],) * len(kept)
  return Mesh(_arranged(kept, found), tuple(kept), axis_types=types)


def _arranged(shape: dict[str, int], devices) -> np.ndarray:
  """Devices in the shape of the mesh, neighbours beside each other.

  Raises ValueError where several slices of TPUs have no replicas of their own.
  """
  slices = sorted({getattr(d, 'slice_index', 0) for d in devices})
  how = dict(devices=devices, allow_split_physical_axes=True)
  if len(slices) == 1 or devices[0].platform != 'tpu':
    return mesh_utils.create_device_mesh(tuple(shape.values()), **how)
  if shape.get('replica', 1) % len(slices):
    raise ValueError(
      f'config.mesh.replica={shape.get("replica", 1)}: the devices are of {len(slices)} slices '
      'that a slow network joins, so that a multiple of that is expected'
    )
  across = tuple(len(slices) if a == 'replica' else 1 for a in shape)
  within = tuple(n // m for n, m in zip(shape.values(), across))
  return mesh_utils.create_hybrid_device_mesh(within, across, **how)

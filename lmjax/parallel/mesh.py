"""Device meshes from a config: `config.mesh.data=8`, `config.mesh.tensor=2`,
`config.mesh.mode='auto'`.

The batch is cut over `replica`, `data` and `expert`. Parameters are cut over `data` (ZeRO-3) and
`tensor`; experts besides lie apart over `expert`, and tokens travel to them.
"""

import math

import jax
from jax.sharding import AbstractMesh, AxisType

from lmjax.specs import brief

AXES = ('replica', 'data', 'expert', 'tensor')
MODES = {'auto': AxisType.Auto, 'explicit': AxisType.Explicit}


def sizes(settings: dict, devices: int) -> dict[str, int]:
  """Axis sizes; at most one may be -1, which takes the devices that are left.

  Raises ValueError where the product is not the number of devices.
  """
  out, free = _asked(settings)
  fixed = math.prod(n for n in out.values() if n != -1)
  if free:
    if devices % fixed:
      raise ValueError(f'config.mesh.{free[0]}=-1: {devices} devices do not divide by {fixed}')
    out[free[0]] = devices // fixed
  elif fixed != devices and fixed != 1:
    raise ValueError(f'config.mesh asks for {fixed} devices ({out}), this process sees {devices}')
  return out


def abstract(settings: dict):
  """The mesh that a config asks for without any device, or None for one; an axis of -1 counts as 1,
  since nobody knows.
  """
  shape = {a: n for a, n in _asked(settings)[0].items() if n > 1}
  mode = MODES[_mode(settings)]
  return (
    AbstractMesh(tuple(shape.values()), tuple(shape), axis_types=(mode,) * len(shape))
    if shape
    else None
  )


def _asked(settings: dict) -> tuple[dict[str, int], list[str]]:
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


def _mode(settings: dict) -> str:
  if settings['mode'] not in MODES:
    raise ValueError(
      f'config.mesh.mode={brief(settings["mode"])}: one of {", ".join(MODES)} is expected'
    )
  return settings['mode']


def make(settings: dict):
  """The mesh that a config asks for, or None where it is a single device."""
  mode = MODES[_mode(settings)]
  shape = sizes(settings, jax.device_count())
  if math.prod(shape.values()) == 1:
    if jax.process_count() > 1:
      raise ValueError(
        f'config.mesh asks for one device, but {jax.process_count()} processes of '
        f'{jax.device_count()} devices run together; set config.mesh.data=-1, say'
      )
    return None
  kept = {a: n for a, n in shape.items() if n > 1}
  return jax.make_mesh(tuple(kept.values()), tuple(kept), axis_types=(mode,) * len(kept))

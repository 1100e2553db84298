"""Slices of accelerators by the names that people type.

  v5e:16x16  v5litepod-256  v5e-256  v6e-8  v5p:8x8x16  v5p-512  v4-128  2*v5e:16x16  h100:8x2

A number behind v4- and v5p- counts cores, two to a chip, as Google Cloud does; everything that is
computed from it is per chip. A GPU's shape is GPUs of a host x hosts; h100-16 is two hosts of 8.
`2*` (or `*2` behind) is two slices, which the data-centre network joins. Shapes are those that
Cloud TPU's documentation offers: v5e and v6e from its tables (https://cloud.google.com/tpu/docs/v5e,
.../v6e); v4 and v5p up to 64 chips from theirs, beyond that any A x B x C of multiples of 4, in any
order (.../v4, .../v5p), up to the largest slice of one job. v4 and v5p wrap around in all three
directions from 4x4x4 on, v5e and v6e in a direction of 16 chips.
"""

import dataclasses
import itertools
import math
import re

from lmjax.planning import chips
from lmjax.registry import nearest

FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
SMALL = ((1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
LARGEST = {'v4': 4096, 'v5p': 6144}  # chips of one slice
ALIASES = {'v5litepod': 'v5e', 'v5lite': 'v5e', 'v5': 'v5p', 'v6': 'v6e', 'trillium': 'v6e'}
EXAMPLES = {
  'v4': '1x1x1, 2x2x1, 2x2x2, 2x2x4, 2x4x4 and A x B x C of multiples of 4 up to 4096 chips; '
  'v4-8 ... v4-8192 count cores',
  'v5p': '1x1x1, 2x2x1, 2x2x2, 2x2x4, 2x4x4 and A x B x C of multiples of 4 up to 6144 chips; '
  'v5p-8 ... v5p-12288 count cores',
  'v5e': ', '.join('x'.join(map(str, s)) for s in FLAT) + '; v5e-N or v5litepod-N of as many chips',
  'v6e': ', '.join('x'.join(map(str, s)) for s in FLAT) + '; v6e-N of as many chips',
}
GPU = 'N GPUs of one host as {0}:N, N up to 8, whole hosts as {0}:8xHOSTS or {0}-N'


@dataclasses.dataclass(frozen=True)
class Place:
  """A chip that is not here, as `jax.experimental.mesh_utils` wants to know it."""

  id: int
  coords: tuple[int, ...]
  slice_index: int
  process_index: int
  platform: str
  device_kind: str
  core_on_chip: int = 0


@dataclasses.dataclass(frozen=True)
class Topology:
  """Slices of one shape.

  name: of the chip. shape: of a slice; of GPUs (in a host, hosts). slices: that a slow network
  joins; GPUs have one.
  """

  name: str
  shape: tuple[int, ...]
  slices: int = 1

  @property
  def chip(self) -> chips.Chip:
    return chips.CHIPS[self.name]

  @property
  def chips(self) -> int:
    """Of all slices."""
    return math.prod(self.shape) * self.slices

  @property
  def hosts(self) -> int:
    """Of all slices; a slice smaller than a host counts as one."""
    if not self.chip.tpu:
      return self.shape[1]
    return self.slices * (math.prod(self.shape) // self._per_host)

  @property
  def _per_host(self) -> int:
    """Chips of a host: slices of several hosts of TPUs have four each."""
    n = math.prod(self.shape)
    return n if n <= self.chip.per_host else 4

  @property
  def wraps(self) -> tuple[bool, ...]:
    """Which directions of a slice are rings."""
    if len(self.shape) == 2:
      return tuple(n == 16 for n in self.shape)
    return (all(n % 4 == 0 for n in self.shape),) * 3

  def __str__(self) -> str:
    text = f'{self.name}:{"x".join(map(str, self.shape))}'
    return text if self.slices == 1 else f'{self.slices}*{text}'

  def places(self) -> list[Place]:
    """Its chips, for laying out meshes without the compiler."""
    kind, out = self.chip.kinds[0], []
    if not self.chip.tpu:
      per_host = self.shape[0]
      return [Place(i, (i,), 0, i // per_host, 'gpu', kind) for i in range(self.chips)]
    for s in range(self.slices):
      every = itertools.product(*(range(n) for n in reversed(self.shape)))
      for place, xyz in enumerate(every):
        coords = (*reversed(xyz), *(0,) * (3 - len(xyz)))
        # As libtpu numbers them.
        number = place if self.slices == 1 else 100_000 * (s + 1) + place
        out.append(Place(number, coords, s, len(out) // self._per_host, 'tpu', kind))
    return out


def parse(text: str) -> Topology:
  """The topology of a name. Raises ValueError that lists what is accepted."""
  match = re.fullmatch(
    r'(?:(\d{1,6})\s*\*)?\s*([a-z][a-z0-9]*?)(?::([\dx]+)|-(\d{1,6}))?\s*(?:\*\s*(\d{1,6}))?',
    text.strip().lower(),
  )
  if not match or (match[1] and match[5]):
    raise ValueError(
      f'--topology={text!r}: a name such as v5e:16x16, v5p-512, 2*v5e:16x16 or h100:8x2 is expected'
    )
  name = ALIASES.get(match[2], match[2])
  if name not in chips.PLANNED:
    raise ValueError(
      f'--topology={text!r}: no accelerator {match[2]!r} is known'
      f'{nearest(match[2], (*chips.PLANNED, *ALIASES), ".")} There are ' + ', '.join(chips.PLANNED)
    )
  slices = int(match[1] or match[5] or 1)
  if slices < 1:
    raise ValueError(f'--topology={text!r}: at least 1 slice is expected')
  chip = chips.CHIPS[name]
  if not chip.tpu:
    return _gpus(text, name, match[3], match[4], slices)
  shape = _shape(match[3]) if match[3] else _of_count(name, int(match[4] or 0))
  found = None if shape is None else _offered(name, shape)
  if found is None:
    raise ValueError(f'--topology={text!r}: there is no such slice of {name}; {EXAMPLES[name]}')
  return Topology(name, found, slices)


def _shape(text: str) -> tuple[int, ...] | None:
  if not re.fullmatch(r'\d{1,6}(x\d{1,6})*', text):
    return None
  return tuple(int(n) for n in text.split('x'))


def _gpus(text: str, name: str, shape: str | None, count: str | None, slices: int) -> Topology:
  per_host = chips.CHIPS[name].per_host
  found = None
  if shape is not None:
    found = _shape(shape)
    found = found if found is None or len(found) > 1 else (*found, 1)
  elif count is not None:
    n = int(count)
    whole = n > per_host and n % per_host == 0
    found = (per_host, n // per_host) if whole else (n, 1)
  good = found is not None and len(found) == 2 and 1 <= found[0] <= per_host and found[1] >= 1
  if not good or slices > 1 or (found[1] > 1 and found[0] != per_host):
    raise ValueError(f'--topology={text!r}: there is no such {name}; {GPU.format(name)}')
  return Topology(name, found)


def _offered(name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
  """The shape in the order of the documentation, or None where it is not offered."""
  if name not in LARGEST:
    ordered = tuple(sorted(shape))
    return ordered if ordered in FLAT else None
  for small in SMALL:
    if sorted(small) == sorted(shape):
      return small
  cubes = len(shape) == 3 and all(n and n % 4 == 0 for n in shape)
  return tuple(sorted(shape)) if cubes and math.prod(shape) <= LARGEST[name] else None


def _of_count(name: str, count: int) -> tuple[int, ...] | None:
  """The most even slice of so many chips (cores, where the maker counts these)."""
  cores = chips.CHIPS[name].cores
  if count < 1 or (cores > 1 and count % cores):
    return None
  n = count // cores
  if name not in LARGEST:
    return next((s for s in FLAT if math.prod(s) == n), None)
  small = next((s for s in SMALL if math.prod(s) == n), None)
  if small or n % 64 or n > LARGEST[name]:
    return small
  # The sides are as even as they come: few hops, much bandwidth across the middle.
  found = [
    (4 * a, 4 * b, n // (16 * a * b))
    for a in range(1, round((n // 64) ** (1 / 3)) + 2)
    for b in range(a, n // 64 // a + 1)
    if n // 64 % (a * b) == 0 and n // 64 // (a * b) >= b
  ]
  return min(found, key=lambda s: (s[2], s[2] - s[0]), default=None)

"""What lies between the chips of a mesh axis, and how fast it is.

A device sends, around a ring of its axis:

  TPU, one direction of the slice   2 links where the axis goes all the way round a torus, else 1;
                                    divided by the stride where several rings share the links
  TPU, several directions           their sum
  TPU, several slices               the chip's share of its host's network (DCN)
  GPU, one host                     the link to the switch (NVLink)
  GPU, several hosts                the network cards of the GPUs of the axis in a host, at most
                                    that link

All-to-alls cross a ring of n chips n/4 times as slowly as an all-gather of the same bytes on the
wire where n > 4 (half the ring's bytes cross its middle); a permute uses one direction.
Austin et al., 2025, How to Scale Your Model (https://jax-ml.github.io/scaling-book/sharding).
"""

import dataclasses
from typing import Any, Iterable

import numpy as np

from lmjax.planning import topologies


@dataclasses.dataclass(frozen=True)
class Link:
  """network: 'ICI', 'DCN', 'NVLink' or 'network'. ring, hop: bytes a second that a device sends
  around the axis, and to one neighbour. side: chips of the longest ring of it.
  """

  network: str
  ring: float
  hop: float
  side: int

  def seconds(self, kind: str, wire: float) -> float:
    """Of a collective that sends so many bytes a device."""
    if kind in ('collective-permute', 'send'):
      return wire / self.hop
    across = kind.endswith('all-to-all') and self.network == 'ICI'
    return wire / self.ring * (max(1.0, self.side / 4) if across else 1.0)


def of(mesh: Any, axes: Iterable[str], topology: topologies.Topology) -> Link:
  """The link of one or more axes of a mesh laid out over a topology's chips."""
  chip, names = topology.chip, list(mesh.shape)
  index = tuple(slice(None) if a in axes else 0 for a in names)
  members = np.atleast_1d(mesh.devices[index]).ravel()
  if not chip.tpu:
    hosts = {d.process_index for d in members}
    inside = len(members) / len(hosts)
    if len(hosts) == 1:
      return Link('NVLink', chip.link, chip.link, len(members))
    rate = min(chip.link, inside * chip.network)
    return Link('network', rate, min(chip.link, chip.network), len(members))
  if len({getattr(d, 'slice_index', 0) for d in members}) > 1:
    return Link('DCN', chip.network, chip.network, len(members))
  coords = np.array([d.coords for d in members])
  ring, hop, side = 0.0, 0.0, 1
  for d, (size, wraps) in enumerate(zip(topology.shape, topology.wraps)):
    there = np.unique(coords[:, d])
    if len(there) < 2:
      continue
    stride = int(np.diff(there).min())
    whole = wraps and len(there) * stride == size
    ring += chip.link * (2 if whole else 1) / stride
    hop = max(hop, chip.link / stride)
    side = max(side, len(there))
  return Link('ICI', ring or chip.link, hop or chip.link, side)

"""Figures of the accelerators that plans and MFU know, each of one chip.

Sources. TPUs: the pages of Cloud TPU's documentation on v4, v5e, v5p and v6e
(https://cloud.google.com/tpu/docs/v5p and so on): peaks, memory, interconnect, shapes; v4's links
from Jouppi et al., 2023 (arXiv:2304.01433, table 4). `usable` is the memory that libtpu 0.0.42
gives to programs, as its message about a program that is too large says. The data-centre network is
the host's network cards divided by its chips. GPUs: NVIDIA's data sheets of A100, H100 and H200
(SXM, 8 in a host, one network card each) and of those that only MFU asks about; what `nvidia-smi`
shows of the memory, times the share that `hardware.settle` asks for. Peaks are dense ones.
"""

import dataclasses

from lmjax.hardware import GPU_SHARE

GiB, GB = 2**30, 1e9


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of accelerator.

  kinds: how its `device_kind` begins. bf16, int8: peak operations a second. hbm: bytes; usable: of
  them, for programs; bandwidth: bytes a second of the memory. vmem: bytes of on-chip memory, 0
  where programs do not place arrays there.
  link: bytes a second in one direction of one link to a neighbour, of which there are `links`; a
  GPU has one, to the switch of its host. network: bytes a second in one direction of its share of
  its host's network. per_host: chips of the largest host. cores: that the maker's names count, a
  chip.
  """

  kinds: tuple[str, ...]
  bf16: float
  int8: float
  hbm: float
  usable: float
  bandwidth: float
  vmem: float = 0.0
  link: float = 0.0
  links: int = 0
  network: float = 0.0
  per_host: int = 1
  cores: int = 1
  tpu: bool = False


def _tpu(**figures) -> Chip:
  return Chip(tpu=True, **figures)


def _alone(*kinds: str, hbm: float, **figures) -> Chip:
  """A GPU with nothing between it and others."""
  return Chip(kinds=kinds, hbm=hbm, usable=GPU_SHARE * hbm, **figures)


CHIPS: dict[str, Chip] = {
  'v4': _tpu(
    kinds=('TPU v4',),
    bf16=275e12,
    int8=275e12,
    hbm=32 * GiB,
    usable=30.75 * GiB,
    bandwidth=1200 * GB,
    vmem=32 * 2**20,
    link=50 * GB,
    links=6,
    network=6.25 * GB,
    per_host=4,
    cores=2,
  ),
  'v5e': _tpu(
    kinds=('TPU v5 lite', 'TPU v5e'),
    bf16=197e12,
    int8=393e12,
    hbm=16 * GiB,
    usable=15.75 * GiB,
    bandwidth=819 * GB,
    vmem=128 * 2**20,
    link=50 * GB,
    links=4,
    network=3.125 * GB,
    per_host=8,
  ),
  'v5p': _tpu(
    kinds=('TPU v5', 'TPU v5p'),
    bf16=459e12,
    int8=918e12,
    hbm=96 * GiB,
    usable=95.74 * GiB,
    bandwidth=2765 * GB,
    vmem=64 * 2**20,
    link=100 * GB,
    links=6,
    network=6.25 * GB,
    per_host=4,
    cores=2,
  ),
  'v6e': _tpu(
    kinds=('TPU v6 lite', 'TPU v6e'),
    bf16=918e12,
    int8=1836e12,
    hbm=32 * GiB,
    usable=31.25 * GiB,
    bandwidth=1638 * GB,
    vmem=128 * 2**20,
    link=100 * GB,
    links=4,
    network=12.5 * GB,
    per_host=8,
  ),
  'a100': Chip(
    kinds=('NVIDIA A100',),
    bf16=312e12,
    int8=624e12,
    hbm=80 * GiB,
    usable=GPU_SHARE * 80 * GiB,
    bandwidth=2039 * GB,
    link=300 * GB,
    links=1,
    network=25 * GB,
    per_host=8,
  ),
  'h100': Chip(
    kinds=('NVIDIA H100',),
    bf16=989e12,
    int8=1979e12,
    hbm=79.6 * GiB,
    usable=GPU_SHARE * 79.6 * GiB,
    bandwidth=3350 * GB,
    link=450 * GB,
    links=1,
    network=50 * GB,
    per_host=8,
  ),
  'h200': Chip(
    kinds=('NVIDIA H200',),
    bf16=989e12,
    int8=1979e12,
    hbm=140.4 * GiB,
    usable=GPU_SHARE * 140.4 * GiB,
    bandwidth=4800 * GB,
    link=450 * GB,
    links=1,
    network=50 * GB,
    per_host=8,
  ),
  # Not for plans: there is nothing between them.
  't4': _alone('Tesla T4', bf16=65e12, int8=130e12, hbm=16e9, bandwidth=320 * GB),
  'l4': _alone('NVIDIA L4', bf16=121e12, int8=242e12, hbm=24e9, bandwidth=300 * GB),
  'l40': _alone('NVIDIA L40', bf16=181e12, int8=362e12, hbm=48e9, bandwidth=864 * GB),
  'l40s': _alone('NVIDIA L40S', bf16=362e12, int8=733e12, hbm=48e9, bandwidth=864 * GB),
  'a100-40g': _alone(
    *('NVIDIA A100-SXM4-40GB', 'NVIDIA A100-PCIE-40GB'),
    bf16=312e12,
    int8=624e12,
    hbm=40e9,
    bandwidth=1555 * GB,
  ),
  'h100-pcie': _alone('NVIDIA H100 PCIe', bf16=756e12, int8=1513e12, hbm=80e9, bandwidth=2000 * GB),
  'h100-nvl': _alone('NVIDIA H100 NVL', bf16=835e12, int8=1671e12, hbm=94e9, bandwidth=3900 * GB),
}
PLANNED = tuple(name for name, c in CHIPS.items() if c.links)


def of_kind(device_kind: str) -> Chip | None:
  """The chip that JAX calls so, by the longest beginning of whole words; None where unknown."""
  begins = lambda k: device_kind.startswith(k) and device_kind[len(k) :][:1] in ('', ' ', '-')
  found = [(k, c) for c in CHIPS.values() for k in c.kinds if begins(k)]
  return max(found, key=lambda item: len(item[0]))[1] if found else None

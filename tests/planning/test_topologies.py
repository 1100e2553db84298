import json
import os
import subprocess
import sys

import pytest

from lmjax.planning import chips
from lmjax.planning import compile as compile_lib
from lmjax.planning import topologies

NAMES = [  # name, what it means, chips, hosts
  ('v5e:16x16', 'v5e:16x16', 256, 64),
  ('v5litepod-256', 'v5e:16x16', 256, 64),
  ('V5E-256', 'v5e:16x16', 256, 64),
  ('v5e:8x4', 'v5e:4x8', 32, 8),
  ('v5e-1', 'v5e:1x1', 1, 1),
  ('v6e-8', 'v6e:2x4', 8, 1),
  ('v5p-512', 'v5p:4x8x8', 256, 64),  # cores, two a chip
  ('v5p-8', 'v5p:2x2x1', 4, 1),
  ('v5p:16x8x8', 'v5p:8x8x16', 1024, 256),
  ('v5p-12288', 'v5p:16x16x24', 6144, 1536),
  ('v4-128', 'v4:4x4x4', 64, 16),
  ('v4:1x1x1', 'v4:1x1x1', 1, 1),
  ('2*v5e:16x16', '2*v5e:16x16', 512, 128),
  ('v5e-256*2', '2*v5e:16x16', 512, 128),
  ('2 * v4:12x16x16', '2*v4:12x16x16', 6144, 1536),
  ('h100:8x2', 'h100:8x2', 16, 2),
  ('h100-16', 'h100:8x2', 16, 2),
  ('a100-4', 'a100:4x1', 4, 1),
  ('h200:8', 'h200:8x1', 8, 1),
]


@pytest.mark.parametrize('text, means, n, hosts', NAMES)
def test_names(text, means, n, hosts):
  found = topologies.parse(text)
  assert (str(found), found.chips, found.hosts) == (means, n, hosts)
  assert topologies.parse(str(found)) == found
  assert len(found.places()) == n
  assert len({(p.slice_index, p.coords) for p in found.places()}) == n


@pytest.mark.parametrize(
  'text, says',
  [
    ('v7:2x2', 'There are v4, v5e, v5p, v6e, a100, h100, h200'),
    ('v5e-12', '1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16'),
    ('v5e:32x32', '16x16'),
    ('v5e', 'no such slice'),
    ('v4-7', 'v4-8'),
    ('v4:2x2x3', 'multiples of 4'),
    ('v5p:16x16x32', '6144 chips'),
    ('h100:4x2', 'h100:8xHOSTS'),
    ('h100-9', 'h100-N'),
    ('t4-1', 'no accelerator'),
    ('2*v5e-4*3', 'is expected'),
    ('0*v5e-4', 'at least 1 slice'),
    ('v5e:4x', 'no such slice'),
    ('', 'is expected'),
  ],
)
def test_what_there_is_not_is_refused_with_what_there_is(text, says):
  with pytest.raises(ValueError) as e:
    topologies.parse(text)
  assert f'--topology={text!r}' in str(e.value) and says in str(e.value)
  assert '\n' not in str(e.value)


def test_rings():
  assert topologies.parse('v5e:8x16').wraps == (False, True)
  assert topologies.parse('v5p:4x4x4').wraps == (True, True, True)
  assert topologies.parse('v5p:2x4x4').wraps == (False, False, False)


def test_chips_are_found_by_the_longest_beginning():
  assert chips.of_kind('TPU v5 lite') is chips.CHIPS['v5e']
  assert chips.of_kind('TPU v5') is chips.CHIPS['v5p']
  assert chips.of_kind('NVIDIA H100 80GB HBM3') is chips.CHIPS['h100']
  assert chips.of_kind('cpu') is None


@pytest.mark.parametrize(
  'kind, name',
  [
    ('NVIDIA L4', 'l4'),
    ('NVIDIA L40', 'l40'),
    ('NVIDIA L40S', 'l40s'),
    ('NVIDIA H100 PCIe', 'h100-pcie'),
    ('NVIDIA H100 NVL', 'h100-nvl'),
    ('NVIDIA A100-SXM4-40GB', 'a100-40g'),
    ('NVIDIA A100-SXM4-80GB', 'a100'),
  ],
)
def test_kinds_of_a_name_have_figures_of_their_own(kind, name):
  assert chips.of_kind(kind) is chips.CHIPS[name]


def test_a_longer_word_is_another_chip():
  assert chips.of_kind('NVIDIA L4000') is None and chips.of_kind('TPU v4i') is None


def test_chips_of_slices_are_numbered_as_libtpu_does():
  numbers = lambda name: [p.id for p in topologies.parse(name).places()]
  assert numbers('v5e-4') == [0, 1, 2, 3]
  assert numbers('2*v5e-4') == [100_000, 100_001, 100_002, 100_003, *range(200_000, 200_004)]


def test_figures_are_of_one_chip():
  """Published totals of pods (Cloud TPU's documentation) over their chips."""
  v5e = chips.CHIPS['v5e']
  assert 256 * v5e.int8 == pytest.approx(100e15, rel=0.01)
  assert 256 * v5e.network * 8 == pytest.approx(6.4e12)
  assert chips.CHIPS['v5p'].link * chips.CHIPS['v5p'].links * 2 == pytest.approx(1200e9)
  assert 4096 * chips.CHIPS['v4'].bf16 == pytest.approx(1.1e18, rel=0.05)
  for name in chips.PLANNED:
    assert chips.CHIPS[name].usable <= chips.CHIPS[name].hbm, name


CODE = """
import json, sys
from lmjax.planning import compile, topologies
out = {}
for text in sys.argv[1:]:
  found = compile.devices(topologies.parse(text))
  out[text] = [len(found), found[0].device_kind, len({getattr(d, 'slice_index', 0) for d in found})]
print('found', json.dumps(out))
"""


@pytest.mark.slow
@pytest.mark.skipif(not compile_lib.available(), reason='needs libtpu')
def test_the_compiler_knows_them():
  offered = [f'{n}:{"x".join(map(str, s))}' for n in ('v5e', 'v6e') for s in topologies.FLAT]
  offered += [f'{n}:{"x".join(map(str, s))}' for n in ('v4', 'v5p') for s in topologies.SMALL]
  offered += ['v5p:16x16x24', '2*v4:12x16x16', '2*v5e:4x4']
  env = {'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1'}
  done = subprocess.run(
    [sys.executable, '-c', CODE, *offered],
    env=os.environ | env,
    capture_output=True,
    text=True,
    timeout=120,
  )
  line = next(x for x in done.stdout.splitlines() if x.startswith('found '))
  for text, (n, kind, slices) in json.loads(line[6:]).items():
    asked = topologies.parse(text)
    assert n == asked.chips and slices == asked.slices, text
    assert chips.of_kind(kind) is asked.chip, text

"""The scripts know the slices that `lmjax/planning/topologies.py` knows, and refuse all others."""

import pathlib
import re
import subprocess

import pytest

from lmjax.planning import topologies

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / 'launch'
GKE = {
  'tpu-v4-podslice': 'v4',
  'tpu-v5-lite-podslice': 'v5e',
  'tpu-v5p-slice': 'v5p',
  'tpu-v6e-slice': 'v6e',
}
FLAT = [1, 2, 3, 4, 8, 12, 15, 16, 32]
SHAPES = [(a, b) for a in FLAT for b in FLAT] + [
  (a, b, c) for a in (1, 2, 3, 4, 8, 16) for b in (1, 2, 4, 8, 12) for c in (1, 2, 4, 12, 32, 64)
]


def accepted(calls: list[str]) -> list[bool]:
  """Of functions of the scripts, each called by itself, which do not refuse."""
  script = f'source {LAUNCH}/_common.sh\nsource {LAUNCH}/_slices.sh\n'
  script += '\n'.join(f'({c}) 2> /dev/null && echo 1 || echo 0' for c in calls)
  out = subprocess.run(['bash', '-s'], input=script, capture_output=True, text=True, check=True)
  return [line == '1' for line in out.stdout.splitlines()]


def offered(name: str) -> topologies.Topology | None:
  try:
    return topologies.parse(name)
  except ValueError:
    return None


@pytest.mark.parametrize('generation', ['v4', 'v5p', 'v5litepod', 'v6e'])
def test_types_are_those_that_can_be_planned(generation):
  out = subprocess.run(
    ['bash', '-c', f'source {LAUNCH}/_common.sh; source {LAUNCH}/_slices.sh; sizes {generation}'],
    capture_output=True,
    text=True,
    check=True,
  )
  # A type of one chip with two cores is never offered; as a topology of GKE it is.
  first = 8 if generation in ('v4', 'v5p') else 1
  assert list(map(int, out.stdout.split())) == [
    n for n in range(first, 20_000) if offered(f'{generation}-{n}')
  ]


@pytest.mark.parametrize('tpu', GKE)
def test_topologies_are_those_that_can_be_planned(tpu):
  names = ['x'.join(map(str, s)) for s in SHAPES] + ['16x16x24', '16x16x16', '16x16x28']
  found = accepted([f'tpu={tpu} topology={n}; check_topology' for n in names])
  plans = [offered(f'{GKE[tpu]}:{n}') for n in names]
  # In the order of the documentation alone, since the nodes are labelled so.
  wanted = [str(p) == f'{GKE[tpu]}:{n}' for n, p in zip(names, plans, strict=True)]
  assert [n for n, a, b in zip(names, found, wanted, strict=True) if a != b] == []
  assert 8 <= sum(found) < len(found) / 2


@pytest.mark.parametrize('tpu', GKE)
def test_the_pods_of_a_job_have_all_chips(tpu):
  words = [LAUNCH / 'gke.sh', 'print', '--name=a', '--image=i', f'--tpu={tpu}']
  for shape in ('1x1', '2x4', '4x4', '16x16', '1x1x1', '2x2x1', '4x4x8'):
    if (plan := offered(f'{GKE[tpu]}:{shape}')) is None:
      continue
    more = [f'--topology={shape}', '--', '--config=a', '--workdir=gs://b/r']
    text = subprocess.run([*words, *more], capture_output=True, text=True, check=True).stdout
    hosts = int(re.search(r'completions: (\d+)', text)[1])
    chips = int(re.search(r'limits: {google.com/tpu: (\d+)}', text)[1])
    assert hosts * chips == plan.chips and chips == min(4, plan.chips)
    if plan.chip.per_host == 4:
      assert hosts == plan.hosts


TPU_VM = ['tpu_vm.sh', 'create', '--name=a', '--zone=us-west4-a', '--version=v']
QUEUED = ['queued.sh', *TPU_VM[1:]]
TRAIN = ['--', '--config=a', '--workdir=gs://b/r']
XPK = ['xpk.sh', 'start', '--cluster=c', '--name=a', '--zone=us-west4-a', '--image=i', TRAIN]
POD = ['gke.sh', 'print', '--name=a', '--image=i', TRAIN]
BAD = [
  (TPU_VM, ['--type=v5litepod-17'], 'the nearest: v5litepod-16 and v5litepod-32'),
  (TPU_VM, ['--type=v5p-100'], 'the nearest: v5p-64 and v5p-128'),
  (TPU_VM, ['--type=v5e-16'], 'v5litepod (which is v5e)'),
  (TPU_VM, ['--type=v5litepod-016'], 'as in v5litepod-16'),
  (QUEUED, ['--type=v5litepod-512'], 'the nearest: v5litepod-256'),
  (QUEUED, ['--type=v4-2'], 'the nearest: v4-8'),
  (QUEUED, ['--type=v3-16'], 'the nearest: v3-8 and v3-32'),
  (XPK, ['--type=v6e-2'], 'the nearest: v6e-1 and v6e-4'),
  (POD, ['--tpu=tpu-v5-lite-podslice', '--topology=15x16'], '8x16, 16x16'),
  (POD, ['--tpu=tpu-v5-lite-podslice', '--topology=4x2'], '2x2, 2x4, 4x4'),
  (POD, ['--tpu=tpu-v5-lite-podslice', '--topology=4x4x4'], '8x16, 16x16'),
  (POD, ['--tpu=tpu-v5p-slice', '--topology=4x4x6'], 'multiples of 4'),
  (POD, ['--tpu=tpu-v5p-slice', '--topology=8x4x4'], 'the smallest first'),
  (POD, ['--tpu=tpu-v4-podslice', '--topology=16x16x20'], 'up to 4096 chips'),
  (POD, ['--tpu=tpu-v5e-slice', '--topology=4x4'], 'tpu-v5-lite-podslice (v5e)'),
  (
    POD,
    ['--tpu=tpu-v5-lite-podslice', '--topology=4x4', '--chips=8'],
    'has 4 chip(s), or 8 of 2x4',
  ),
  (POD, ['--tpu=tpu-v6e-slice', '--topology=1x1', '--chips=4'], 'has 1 chip(s)'),
]


@pytest.mark.parametrize('words, options, said', BAD, ids=[o[-1] for _, o, _ in BAD])
@pytest.mark.parametrize('dry', [[], ['--dry-run']], ids=['', 'dry'])
def test_a_slice_that_is_not_offered_is_refused(words, options, said, dry):
  behind = words[-1] if isinstance(words[-1], list) else []
  before = [w for w in words if isinstance(w, str)]
  command = [LAUNCH / before[0], *before[1:], *options, *dry, *behind]
  out = subprocess.run(command, capture_output=True, text=True, timeout=10)
  lines = out.stderr.splitlines()
  assert out.returncode == 2 and not out.stdout
  assert len(lines) == 1 and said in lines[0], lines

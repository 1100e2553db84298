"""Recipes at scale: published parameter counts, and settings for slices that fit together."""

import importlib.util
import math

import pytest

from lmjax import build
from lmjax import checks
from lmjax import config
from lmjax.planning import planned
from lmjax.planning import topologies
from lmjax.parallel import mesh as mesh_lib


def recipe(name: str):
  spec = importlib.util.spec_from_file_location(name, config.folder() / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def palm(width, depth, heads) -> int:
  """Norm, q and out, the one k and v, SwiGLU; the table and the last norm."""
  layer = width + 2 * width * heads * 256 + 2 * width * 256 + 3 * width * 4 * width
  return depth * layer + 256_000 * width + width


def gpt3(width, depth) -> int:
  """12 D^2 + 13 D a layer; words, positions and the last norm."""
  return depth * (12 * width**2 + 13 * width) + (50_257 + 2048 + 2) * width


slow = lambda *args: pytest.param(*args, marks=pytest.mark.slow)


@pytest.mark.parametrize(
  'name, count, published',
  [
    slow('llama:8B', 8_030_261_248, 8.03),
    slow('llama:70B', 70_553_706_496, 70.55),
    ('llama:405B', 405_853_388_800, 405.85),
    slow('palm:8B', palm(4096, 32, 16), 8.63),
    slow('palm:62B', palm(8192, 64, 32), 62.50),
    ('palm:540B', palm(18432, 118, 48), 540.35),
    ('gpt3:175B', gpt3(12288, 96), 174.6),
  ],
)
def test_the_published_number_of_parameters(name, count, published):
  run = build.build(config.resolve(config.load(name)))
  assert build.counts(run)['total'] == count
  assert count / 1e9 == pytest.approx(published, abs=0.01)


SLICES = [
  (name, size, slice_)
  for name in ('llama', 'palm', 'gpt3')
  for size, table in recipe(name).SLICES.items()
  for slice_ in table
]


@pytest.mark.parametrize('name, size, slice_', SLICES)
def test_settings_use_every_chip_and_divide(name, size, slice_):
  c = config.resolve(config.load(f'{name}:{size}@{slice_}'))
  axes = {a: c['mesh'][a] for a in mesh_lib.AXES}
  assert math.prod(axes.values()) == topologies.parse(slice_).chips, axes
  rows = checks.batch_rows(c) // c['micro_batches']
  assert rows % math.prod(n for a, n in axes.items() if a in ('replica', 'data', 'expert')) == 0
  plain = config.resolve(config.load(f'{name}:{size}'))
  c['micro_batches'] = plain['micro_batches']  # the one of them that the fingerprint sees
  assert config.fingerprint(c) == config.fingerprint(plain)


@pytest.mark.slow
@pytest.mark.parametrize('name, size, slice_', SLICES)
def test_every_setting_is_planned_to_fit(name, size, slice_):
  """With room: compiled steps took up to a third more than estimated (experiments/plans)."""
  run = build.build(config.resolve(config.load(f'{name}:{size}@{slice_}')))
  plan = planned.estimated(run, topologies.parse(slice_))
  assert plan.peak < 0.85 * plan.topology.chip.usable


@pytest.mark.parametrize(
  'arg, words',
  [
    ('llama:80B', 'did you mean.*There are tiny'),
    ('llama:70B@v5p:4x4x4', "no settings of 70B for the slice 'v5p:4x4x4'.*v5e:16x16"),
    ('gpt3:13B@', "for the slice ''.*There are v5e:16x16"),
    ('llama:tiny@v5e:16x16', 'it has none'),
  ],
)
def test_refusals(arg, words):
  with pytest.raises(config.ConfigError, match=words):
    config.load(arg)

"""The second stage of `electra`: the model begins as the generator, which stays as it is."""

import jax
import numpy as np
import pytest

from lmjax import build
from lmjax import config
from lmjax import kinds
from lmjax import main as main_lib
from lmjax.checkpoint import Checkpointer
from lmjax.surgery import two_stage

TINY = [
  '--config=quickstart',
  '--config.model.width=16',
  '--config.model.depth=1',
  '--config.model.mixer=gqa(head_dim=8, causal=False)',
  '--config.model.embed_norm=layer_norm()',
  '--config.data.length=16',
  '--config.batch_tokens=64',
  '--config.data.valid=',
  '--config.steps=2',
  '--config.peak_lr=0.01',
  '--config.sample.tokens=0',
  '--config.tensorboard=false',
  '--config.report=false',
]
ALONE = 'electra(generator=1, share="none", weight=0)'
AGAINST = 'electra(generator=1, share="none")'
ENTRANCE = ('embed', 'embed_norm')
NARROW = ('model.embed', 'factorized(size=8, norm=layer_norm())'), ('model.embed_norm', '')


def run(workdir, *more):
  return main_lib.main([*TINY, f'--workdir={workdir}', *more])


def params(workdir):
  return Checkpointer(workdir / 'checkpoints').restore_params(2, only=('params',))['params']


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_the_model_learns_from_a_frozen_copy_of_itself(tmp_path):
  assert run(tmp_path / 'first', f'--config.objective={ALONE}') == 0
  begin = f'--config.init_from=two_stage(run="{tmp_path / "first"}")'
  names = 'embed/*, embed_norm/*, discriminator/*, judge/*'
  optim = f'train_only(names="{names}") | adam() | decay(rate=0.1) | train_only(names="{names}")'
  second = [f'--config.objective={AGAINST}', begin, f'--config.optim={optim}']
  assert run(tmp_path / 'begun', *second, '--config.peak_lr=0.0') == 0
  old, new = params(tmp_path / 'first'), params(tmp_path / 'begun')
  same(new['discriminator'], old['generator'])
  for k in ENTRANCE:
    same(new[k], old['generator_in'][k])
  for k in ('generator', 'generator_in', 'head'):
    same(new[k], old[k])
  moved = lambda a, b: max(np.abs(x - y).max() for x, y in zip(*map(jax.tree.leaves, (a, b))))
  assert run(tmp_path / 'second', *second) == 0
  after = params(tmp_path / 'second')
  for k in ('generator', 'generator_in', 'head'):
    same(after[k], old[k])
  for k in ('discriminator', 'judge', *ENTRANCE):
    assert moved(after[k], new[k]) > 1e-4, k


def stage(objective, *changes, seed=0):
  """A run that has just begun, as surgery sees it."""
  plain = [a.removeprefix('--config.').split('=', 1) for a in TINY[1:]]
  found = [*plain, ('objective', objective), *changes]
  made = build.build(config.resolve(config.load('quickstart', found)))
  draw = np.random.default_rng(seed)
  values = jax.tree.map(lambda a: draw.normal(size=a.shape), made.shapes)
  return kinds.Stage(made.config, made.model, made.network, values, made.facts)


@pytest.mark.parametrize('first', ['electra(generator=1, weight=0)', ALONE])
@pytest.mark.parametrize('changes', [(), NARROW], ids=['wide', 'narrow'])
def test_every_way_to_the_second_stage(first, changes):
  old, new = stage(first, *changes), stage(AGAINST, *changes, seed=1)
  made = two_stage.TwoStage('runs/first')(old, new, None)
  shapes = lambda tree: {k: np.shape(v) for k, v in config.flat(tree).items()}
  assert shapes(made) == shapes(new.variables)
  a, b = old.variables['params'], made['params']
  entrance = a.get('generator_in', a)
  same(b['discriminator'], a['generator'])
  same(b['generator_in']['embed']['table'], entrance['embed']['table'])
  same(b['embed']['table'], entrance['embed']['table'])
  same(b['judge'], new.variables['params']['judge'])
  if changes:
    same(b['embed']['project'], a['project']['in']['kernel'])
    same(b['project'], a['project'])
    same(b['embed']['norm'], entrance['embed']['norm'])


@pytest.mark.parametrize(
  'first, second, words',
  [
    ('mlm()', AGAINST, r'electra\(generator=1, share=\"none\"\) here are expected'),
    (ALONE, 'electra(generator=1)', 'here are expected'),
    ('electra(generator=0.5, weight=0)', AGAINST, 'a projection of the generator that the model'),
  ],
)
def test_what_is_refused(first, second, words):
  with pytest.raises(ValueError, match=words):
    two_stage.TwoStage('runs/first')(stage(first), stage(second), None)

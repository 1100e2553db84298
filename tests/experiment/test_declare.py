"""What is wrong with an experiment is said before anything runs."""

import dataclasses

import numpy as np
import pytest

import _fake
from lmjax.experiment import Arm
from lmjax.experiment import Better
from lmjax.experiment import checks
from lmjax.experiment import declare
from lmjax.experiment import Scale
from lmjax.experiment import trials

GRID = _fake.GRID


@pytest.mark.parametrize(
  'changes, text',
  [
    (dict(baseline=None), 'baseline= must be an Arm'),
    (dict(treatments=()), 'treatments=.. is empty'),
    (dict(treatments=(Arm('adam', {}, GRID),)), "two arms are named 'adam'"),
    (dict(baseline=Arm('adam', {}, {'peak_lr': ()})), "arm adam: grid.'peak_lr'.=.. is empty"),
    (dict(baseline=Arm('adam', {}, {'peak_lr': '0.1'})), "grid.'peak_lr'.='0.1' is empty"),
    (dict(baseline=Arm('adam', {'seed': 3}, GRID)), "arm adam: 'seed' is not an arm's to change"),
    (dict(treatments=(Arm('x', {}, {'steps': (1, 2, 3)}),)), "'steps' is not an arm's to change"),
    (
      dict(baseline=Arm('adam', {}, {'peak_lr': (0.1,)})),
      'unequal numbers of points .adam 1, lion 3, sgd 3.',
    ),
    (dict(seeds=()), 'seeds=.. is empty'),
    (dict(tuned_on='value'), "tuned_on='value': 'loss' or 'measure' is expected"),
    (dict(seeds=(1, 1)), 'seeds=.1, 1. and tuning_seed=0: different ones'),
    (dict(seeds=(0, 1)), 'seeds=.0, 1. and tuning_seed=0: different ones'),
    (dict(scales={}), 'scales={} is empty'),
    (dict(scales={'cpu': Scale(())}), "scales.'cpu'..budgets=..: numbers of steps"),
    (dict(scales={'cpu': Scale((0,))}), "scales.'cpu'..budgets=.0,.: numbers of steps"),
    (dict(scales={'cpu': Scale('50')}), "scales.'cpu'..budgets='50': numbers of steps"),
    (dict(scales={'cpu': Scale(('50',))}), 'numbers of steps are expected'),
    (dict(scales={'cpu': Scale(50)}), "scales.'cpu'..budgets=50: numbers of steps"),
    (dict(scales={'cpu': (50,)}), 'a dictionary of Scales is expected'),
    (dict(scales=[Scale((50,))]), 'a dictionary of Scales is expected'),
    (dict(scales={'a/b': Scale((50, 60))}), 'a name of letters, digits'),
    (dict(scales={'cpu': Scale((50, 60), hours=float('nan'))}), 'hours=nan: a positive number'),
    (dict(scales={'cpu': Scale((50, 60), cores=0)}), 'cores=0: a positive number'),
    (dict(scales={'cpu': Scale((50, 60), cores='2')}), "cores='2': a positive number"),
    (dict(scales={'cpu': Scale((50,))}), 'arm lion claims a speed-up, .* at least two budgets'),
    (dict(seeds=3), 'seeds=3 and tuning_seed=0: whole numbers'),
    (dict(seeds=('0', '1')), 'whole numbers are expected'),
    (dict(treatments=Arm('x', {}, GRID)), 'a tuple of Arms is expected'),
    (dict(treatments=('lion',)), 'a tuple of Arms is expected'),
    (dict(baseline=Arm('adam', {}, {'peak_lr': 1e-3})), 'values to try are expected'),
    (dict(baseline=Arm('adam', {}, [1])), 'grid=.1.: a dictionary is expected'),
    (dict(baseline=Arm('adam', {}, {'peak_lr': (np.float32(1), 2, 3)})), 'a plain value'),
    (dict(treatments=(Arm('x', {}, GRID, Better),)), 'claim=<class .*: a claim is expected'),
    (dict(treatments=(Arm('x', {}, GRID, 'better'),)), "claim='better': a claim is expected"),
    (dict(measure=None), 'measure=None: a function'),
    (dict(measure=print), 'measure=<built-in function print>: a function made by `def`'),
    (dict(fields='optim'), "fields='optim': a tuple of config keys"),
    (dict(fields=('*',)), 'a tuple of config keys is expected'),
    (dict(base=None), 'base=None: the name of a recipe'),
    (dict(changes=[1]), 'changes=.1.: a dictionary is expected'),
  ],
)
def test_refused_by_name(changes, text):
  with pytest.raises(declare.ExperimentError, match=f'here: .*{text}'):
    checks.check(_fake.experiment(**changes), 'here')


def test_a_treatment_changes_declared_fields_only():
  more = Arm('wide', {'optim': 'sgd()', 'model.width': 32}, GRID)
  e = _fake.experiment(treatments=(more,))
  text = (
    "arm wide changes config.model.width .16 -> 32., which is not in fields=.'optim', 'peak_lr'"
  )
  with pytest.raises(declare.ExperimentError, match=text):
    trials.tuning(e, 'cpu')
  assert trials.tuning(dataclasses.replace(e, fields=('optim', 'peak_lr', 'model.*')), 'cpu')


def test_a_grid_is_a_change_too():
  e = _fake.experiment(treatments=(Arm('x', {}, {'batch_tokens': (128, 256, 512)}),))
  with pytest.raises(declare.ExperimentError, match='arm x changes config.batch_tokens'):
    trials.tuning(e, 'cpu')


@pytest.mark.parametrize(
  'schedule',
  [
    'constant()',
    'constant(warmup=0.1)',
    'inverse_sqrt(warmup=5)',
    'inverse_sqrt(warmup=0.1)',
    'cosine(end=0.5)',
    'linear(end=0.9)',
    'wsd(end=1.0)',
  ],
)
def test_schedules_end_with_their_budget(schedule):
  e = _fake.experiment(changes=_fake.TINY | {'schedule': schedule})
  with pytest.raises(declare.ExperimentError, match='arm adam: config.schedule=.*does not decay'):
    trials.tuning(e, 'cpu')


def test_points_of_a_grid_are_different_configs():
  twice = {'peak_lr': (1e-1, 1e-2, 0.1)}
  e = _fake.experiment(treatments=(Arm('lion', {'optim': 'lion()'}, twice),))
  with pytest.raises(declare.ExperimentError, match='arm lion: the points .* are one config'):
    trials.tuning(e, 'cpu')


def test_there_is_held_out_text_to_tune_by():
  e = _fake.experiment(changes=_fake.TINY | {'data.valid': ''})
  with pytest.raises(declare.ExperimentError, match="arm adam: config.data.valid='': held-out"):
    trials.tuning(e, 'cpu')


def test_an_optimizer_that_owns_its_rate_needs_no_decay():
  free = Arm('free', {'optim': 'schedule_free()'}, GRID)
  changes = _fake.TINY | {'schedule': 'linear(warmup=0.1)'}
  assert trials.tuning(_fake.experiment(treatments=(free,), changes=changes), 'cpu')


def test_a_typo_names_the_arm():
  e = _fake.experiment(treatments=(Arm('typo', {'optim': 'adamm()'}, GRID),))
  with pytest.raises(declare.ExperimentError, match="arm typo: .*optim.*did you mean 'adam'"):
    trials.tuning(e, 'cpu')


def test_trials_are_arms_by_budgets_by_points():
  made = trials.tuning(_fake.experiment(), 'cpu')
  assert len(made) == 3 * (4 + 2 + 2) and {t.seed for t in made} == {0}
  assert len({t.identity for t in made}) == len(made)
  assert {t.steps for t in made if t.arm == 'adam'} == {25, 50, 100, 200}
  words = made[0].words('w')
  assert words[:2] == ['--config=quickstart', '--workdir=w']
  assert {'--config.optim=adam()', '--config.peak_lr=0.001', '--config.report=false'} <= set(words)


@pytest.mark.parametrize(
  'change, same',
  [
    ({'tensorboard': True}, True),
    ({'checkpoint_every': 7}, True),
    ({'eval.batches': 3}, False),
    ({'data.valid': 'shakespeare(split="train")'}, False),
    ({'log_every': 3}, False),
    ({'optim': 'adam(b1=0.8)'}, False),
  ],
)
def test_identity_is_of_what_results_depend_on(change, same):
  of = lambda c: (
    trials.trial(
      _fake.experiment(changes=_fake.TINY | c, baseline=Arm('adam', {}, GRID)),
      'cpu',
      Arm('adam', {}, GRID),
      {'peak_lr': 0.1},
      1,
      50,
    ).identity
  )
  assert (of(change) == of({})) == same


@pytest.mark.parametrize(
  'text, message',
  [
    (None, 'no experiment.py there'),
    ('x = 1', 'AttributeError: .*get_experiment'),
    ('def get_experiment(): return 1', 'gives a int, no Experiment'),
    ('def get_experiment(): raise KeyError("k")', "KeyError: 'k'"),
    ('def get_experiment(:', 'SyntaxError'),
    ('import sys\nsys.exit(3)', 'SystemExit: 3'),
  ],
)
def test_files_that_declare_nothing(tmp_path, text, message):
  if text is not None:
    (tmp_path / 'experiment.py').write_text(text)
  with pytest.raises(declare.ExperimentError, match=message):
    checks.load(tmp_path)


def test_an_unknown_scale_names_those_there_are():
  with pytest.raises(declare.ExperimentError, match='--scale=pod: this experiment has cpu'):
    checks.scale_of(_fake.experiment(), 'pod')

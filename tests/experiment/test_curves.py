"""The page of an experiment's runs: those that are still there, by the names of their trials."""

import types

from lmjax import tracking
from lmjax.experiment import curves
from lmjax.experiment import execute


def test_runs_that_are_there_are_on_one_page(tmp_path):
  e, runs = types.SimpleNamespace(base='tiny'), tmp_path / 'runs'
  record = lambda arm, seed, identity: dict(
    arm=arm, steps=5, seed=seed, point={'peak_lr': 0.1}, identity=identity, code='c' * 16
  )
  records = [record('adam', 0, 'a'), record('lion', 0, 'a'), record('sgd', 1, 'b')]
  assert curves.write(e, tmp_path / 'mine', 'cpu', records, runs) is None
  for identity in 'ab':
    path = execute.place(runs, 'tiny', identity, 'c' * 16) / 'run'
    path.mkdir(parents=True)
    with tracking.Tracker(path, tensorboard=False) as t:
      t.log('train', 1, {'loss': 1.0})
  out = curves.write(e, tmp_path / 'mine', 'cpu', [*records, record('gone', 0, 'g')], runs)
  text = out.read_text()
  assert out == runs / 'mine-cpu.html' and '2 runs compared' in text and 'gone' not in text
  for name in ('adam, 5 steps, seed 0 peak_lr=0.1 = lion, 5 steps', 'sgd, 5 steps, seed 1'):
    assert name in text

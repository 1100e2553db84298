"""Plain `config.init_from`: what a run takes over from another one, what begins anew, and what is
refused.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import _table
from lmjax import build
from lmjax import config
from lmjax import restore
from lmjax.checkpoint import Checkpointer

TINY = {
  'model.width': 16,
  'model.depth': 1,
  'model.mixer': 'gqa(head_dim=8)',
  'data.length': 16,
  'batch_tokens': 64,
  'data.train': 'text(path="x") + text(path="y")',
  'data.valid': '',
}


@functools.cache
def run(*changes):
  given = [(k, str(v)) for k, v in (TINY | dict(changes)).items()]
  return build.build(config.resolve(config.load('quickstart', given)))


def filled(made, seed):
  """A state of random whole numbers."""
  draw = np.random.default_rng(seed)
  return jax.tree.map(lambda s: draw.integers(0, 3, s.shape).astype(s.dtype), made.state_shapes)


def written(folder, *changes):
  """A run directory with a checkpoint; (folder, the state in it)."""
  made = run(*changes)
  state = filled(made, 1)
  opened = restore.rundir.open_rundir(folder, made.config, config.fingerprint(made.config))
  with Checkpointer(opened.checkpoints) as saver:
    saver.save(3, state, {})
    saver.wait()
  opened.close()
  return folder, state


def begun(folder, *changes):
  """(the first state of a run from that one, its own first state)."""
  made = run(*changes)
  made = dataclasses.replace(made, config=made.config | dict(init_from=str(folder)))
  first = filled(made, 2)
  return restore.begin(made, first), first


PROXIES = 'doge()', 'doremi(reference="r")'


@pytest.mark.parametrize('old', ['clm()', *PROXIES])
@pytest.mark.parametrize('new', ['clm()', *PROXIES])
def test_weights_of_sources_begin_anew_whatever_the_other_run_learnt(tmp_path, old, new):
  folder, theirs = written(tmp_path / 'old', ('objective', old))
  state, first = begun(folder, ('objective', new))
  jax.tree.map(_table.same, state.params, theirs.params)
  jax.tree.map(_table.same, state.vars, first.vars)
  assert set(state.vars) == {'clm': set(), 'doge': {'domains'}}.get(
    new.split('(')[0], {'domains', 'reference'}
  )


@pytest.mark.parametrize('linear', ['spdf(sparsity=0.5)', 'sltrain(rank=2, delta=0.1)'])
def test_what_the_model_draws_once_is_carried(tmp_path, linear):
  folder, theirs = written(tmp_path / 'old', ('model.linear', linear), ('objective', 'doge()'))
  state, _ = begun(folder, ('model.linear', linear))
  jax.tree.map(_table.same, state.vars['vars'], theirs.vars['vars'])
  jax.tree.map(_table.same, state.params, theirs.params)
  assert set(state.vars) == {'vars'}


@pytest.mark.parametrize('checkpoint', ['', 'checkpoints', 'checkpoints/3'])
def test_a_mask_of_another_sparsity_is_refused(tmp_path, checkpoint):
  """Its shape is the same, so that it would be taken for this run's."""
  folder, _ = written(tmp_path / 'old', ('model.linear', 'spdf(sparsity=0.5)'))
  with pytest.raises(ValueError) as e:
    begun(folder / checkpoint, ('model.linear', 'spdf(sparsity=0.75)'))
  said = str(e.value)
  assert said.startswith(f'config.init_from={folder}') and '\n' not in said
  assert 'config.model.linear.spdf.sparsity=0.5, this config says 0.75' in said
  begun(folder / checkpoint, ('model.linear', 'spdf(sparsity=0.5, dense=True)'))


@pytest.mark.parametrize(
  'old, new, words',
  [
    ('spdf(sparsity=0.5)', 'dense()', "it has a collection 'vars' of variables and this config"),
    ('dense()', 'spdf(sparsity=0.5)', "it has no collection 'vars' of variables and this config"),
  ],
)
def test_a_collection_that_one_of_both_lacks_is_named(tmp_path, old, new, words):
  folder, _ = written(tmp_path / 'old', ('model.linear', old))
  with pytest.raises(ValueError, match=words):
    begun(folder, ('model.linear', new))

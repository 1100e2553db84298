"""Optimizers in the whole step: with accumulation, a scanned stack and dropout, through a
checkpoint, to the bit.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import build
from lmjax import config
from lmjax.checkpoint import Checkpointer

SMALL = [
  ('model.width', '16'),
  ('model.depth', '2'),
  ('model.unroll', '1'),
  ('model.mixer.head_dim', '8'),
  ('model.embed', 'untied()'),
  ('model.dropout', '0.1'),
  ('data.length', '8'),
  ('batch_tokens', '64'),
  ('micro_batches', '2'),
  ('steps', '8'),
]
# One whose state is of another kind than moments of the parameters' shape; the others are slow.
USUAL = ('galore(rank=4, gap=2)',)
OTHERS = (
  'clip() | sophia_g(every=2, one_in=2)',
  'eight_bit(min_size=64)',
  'schedule_free()',
  'adagc(start=2) | clip_tensor() | clip_value() | stable_adamw() | clip_update()',
  'apollo(rank=4, gap=2)',
  'disturb(start=1) | stable_spam(every=2)',
  'fira(rank=4, gap=2)',
  'reset(inner=rmsprop(), every=2)',
  'scale()',
  'soap(every=2)',
  'sophia_h(every=2)',
  'split(matrix=adamp(), rest=sgdp())',
  'split(matrix=muon(), rest=eight_bit(inner=lion(), min_size=64))',
)
each = pytest.mark.parametrize(
  'optim', [*USUAL, *(pytest.param(o, marks=pytest.mark.slow) for o in OTHERS)]
)


def batch(run, i):
  rng = np.random.default_rng(i)
  shape = run.batch_shapes()['tokens'].shape
  tokens = rng.integers(0, 200, shape, dtype=np.int32)
  positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
  return dict(tokens=jnp.asarray(tokens), segments=jnp.ones(shape, jnp.int32), positions=positions)


@each
def test_a_restored_state_goes_on_to_the_bit(tmp_path, optim):
  run = build.build(config.resolve(config.load('quickstart', [*SMALL, ('optim', optim)])))
  step, key = jax.jit(run.step), jax.random.key(1)
  states, losses = [run.init(jax.random.key(0))], []
  for i in range(5):
    state, metrics = step(states[-1], batch(run, i), key)
    states.append(state)
    losses.append(float(metrics['loss'][0] / metrics['loss'][1]))
    assert metrics['applied'][0] == 1
  assert np.all(np.isfinite(losses))
  moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), states[0].params, states[-1].params)
  assert all(jax.tree.leaves(moved)), moved
  with Checkpointer(tmp_path / 'c') as checkpoints:
    checkpoints.save(3, states[3], {})
    checkpoints.wait()
    found, _ = checkpoints.restore(3, run.state_shapes)
  for i in (3, 4):
    found, _ = step(found, batch(run, i), key)
  jax.tree.map(np.testing.assert_array_equal, found, states[-1])

"""Corruption is found by computing a step twice, named, and replaced by what two runs agree on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import exits
from lmjax import recompute


class Faulty:
  """A compiled, donating step; the calls listed in `bad` return one flipped bit."""

  def __init__(self, bad=(), bit=0):
    self.calls, self.bad, self.bit = 0, bad, bit
    step = lambda s, b, k: (jax.tree.map(lambda x: x * 2 + b, s), {'loss': (s['w'].sum(), 1.0)})
    self.step = jax.jit(step, donate_argnums=0)

  def __call__(self, state, batch, key):
    state, metrics = self.step(state, batch, key)
    if self.calls in self.bad:
      words = np.array(state['w']).view(np.uint32)
      words[1, 2] ^= np.uint32(1 << self.bit + self.calls)
      state = {**state, 'w': jnp.asarray(words.view(np.float32))}
    self.calls += 1
    return state, metrics


def state():
  return {'n': jnp.int32(3), 'w': jnp.arange(12.0).reshape(3, 4)}


def run(bad=(), bit=0):
  step = Faulty(bad, bit)
  check = recompute.Recompute(step)
  out = check(state(), jnp.float32(0.5), None)
  return out, check, step


def same(a, b):
  return all(
    np.array_equal(x, y) for x, y in zip(map(np.asarray, jax.tree.leaves(a)), jax.tree.leaves(b))
  )


WANT = jax.tree.map(lambda x: x * 2 + 0.5, {'n': 3.0, 'w': np.arange(12.0).reshape(3, 4)})


def test_a_sound_step_is_left_alone():
  (new, metrics, wrong), check, step = run()
  assert not wrong and same(new, WANT) and float(metrics['loss'][0]) == 66
  assert (check.checked, check.found, step.calls) == (1, 0, 2) and check.seconds > 0


@pytest.mark.parametrize('call', [0, 1])
@pytest.mark.parametrize('bit', [0, 13, 30])
def test_a_flipped_bit_is_found_and_the_step_replayed(call, bit):
  (new, _, wrong), check, step = run(bad=(call,), bit=bit)
  assert wrong == ['w'] and same(new, WANT)
  assert (check.checked, check.found, step.calls) == (1, 1, 3)


def test_three_different_results_end_the_run():
  with pytest.raises(exits.Ended, match='three results') as e:
    run(bad=(0, 1, 2))
  assert e.value.status == exits.BROKEN


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16', 'int32', 'uint8', 'int8'])
def test_the_digest_sees_every_bit(dtype):
  x = jnp.asarray(np.random.default_rng(0).integers(-100, 100, (3, 5)), dtype)
  whole = int(recompute.digest(x))
  raw = np.asarray(x)
  for i in range(raw.nbytes * 8):
    data = bytearray(raw.tobytes())
    data[i // 8] ^= 1 << i % 8
    flipped = np.frombuffer(bytes(data), raw.dtype).reshape(raw.shape)
    assert int(recompute.digest(jnp.asarray(flipped))) != whole, i
  assert int(recompute.digest(x.T)) != whole  # places count
  assert int(recompute.digest(jnp.asarray([True, False]))) != int(
    recompute.digest(jnp.asarray([False, True]))
  )

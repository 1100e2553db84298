"""Temperatures: no number of them makes a distribution that is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.decoding import _base

LOGITS = jnp.float32([[3.0, 2.5, -1e30, -jnp.inf], [-7.0, -7.0, -8.0, -9.0]])


@pytest.mark.parametrize('t', [1e-45, 1e-39, 1e-38, 1e-30, 1e30])
def test_the_largest_logit_becomes_0_whatever_the_temperature(t):
  """Below 1.2e-38 devices may take t for 0."""
  got = np.asarray(jax.jit(_base.tempered, static_argnums=1)(LOGITS, t))
  assert got[0, 0] == 0 and got[1, :2].tolist() == [0, 0] and np.all(got <= 0)
  p = np.asarray(jax.nn.softmax(got, axis=-1))
  assert np.all(p >= 0) and p[0, 3] == 0
  if t < 1:
    assert p.tolist() == [[1, 0, 0, 0], [0.5, 0.5, 0, 0]]


def test_a_logit_that_is_no_number_is_not_hidden():
  assert np.isnan(_base.tempered(jnp.float32([[1.0, jnp.nan]]), 0.5)).all()


@pytest.mark.parametrize(
  'spec, words',
  [
    ('temperature(t=1e-39)', 't=1e-39: a finite temperature of at least 1e-38 is expected'),
    ('temperature(t=-1.0)', 't=-1.0: a finite temperature of at least 1e-38'),
    ('temperature(t=0.0)', r'greedy\(\) is the limit 0'),
    ('contrastive_decoding(amateur_temperature=1e-39)', 'amateur_temperature=1e-39: a finite'),
    ('superposed_decoding(alpha=0, temperature=1e-39)', 'temperature=1e-39: a finite'),
  ],
)
def test_temperatures_that_are_refused(spec, words):
  with pytest.raises(ValueError, match=words) as e:
    _base.rule(spec)
  assert '\n' not in str(e.value)


def test_scores_of_the_coldest_amateur_are_finite():
  rule = _base.rule('contrastive_decoding(amateur_temperature=1e-30)')
  likely = jax.nn.log_softmax(jnp.float32([[1.0, 0.9, -5.0]]))
  got = np.asarray(rule.score(likely, jnp.float32([[2.0, -3.0, 50.0]])))
  assert np.isfinite(got[0, :2]).all() and got[0, 2] == -np.inf

"""The contract of guards, run over every registered part.

ROWS has the specs that are tried and the arguments that are refused. A part without an entry fails.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import registry
from lmjax.specs import SpecError

ROWS = {
  'spikes': dict(
    specs=('spikes()', 'spikes(window=32, sigmas=5)'),
    refused=('spikes(window=1)', 'spikes(sigmas=0)', 'spikes(sigmas=-1)', 'spikes(window=2.5)'),
  )
}
SPECS = [s for row in ROWS.values() for s in row['specs']]


def run(guard, losses, norms):
  """Verdicts over a sequence, compiled once."""
  judge, state, out = jax.jit(guard.judge), guard.init(), []
  for pair in zip(losses, norms):
    ok, state = judge(state, *map(jnp.float32, pair))
    out.append(bool(ok))
  assert judge._cache_size() == 1
  return out, state


def calm(n, seed=0, at=2.0):
  return at + 0.1 * np.random.default_rng(seed).standard_normal(n)


def test_every_guard_has_an_entry():
  assert set(registry.names('guard')) == set(ROWS)


@pytest.mark.parametrize('spec', [s for row in ROWS.values() for s in row['refused']])
def test_bad_arguments_are_refused(spec):
  with pytest.raises(SpecError, match=spec.partition('(')[0]):
    registry.make('guard', spec)


@pytest.mark.parametrize('spec', SPECS)
def test_calm_steps_pass_and_a_spike_does_not(spec):
  guard = registry.make('guard', spec)()
  losses, norms = calm(300), calm(300, 1, at=0.5)
  verdicts, _ = run(guard, losses, norms)
  assert np.mean(verdicts) > 0.97
  for which in (losses, norms):
    old, which[250] = which[250], which[250] + 100
    verdicts, _ = run(guard, losses, norms)
    assert not verdicts[250] and np.mean(verdicts[251:]) > 0.97
    which[250] = old


@pytest.mark.parametrize('spec', SPECS)
def test_a_lasting_change_becomes_normal(spec):
  guard = registry.make('guard', spec)()
  losses = np.concatenate([calm(200), calm(200, 1, at=5.0)])
  verdicts, _ = run(guard, losses, calm(400, 2))
  assert not verdicts[200] and all(verdicts[-50:])


@pytest.mark.parametrize('spec', SPECS)
def test_what_is_not_finite_does_not_blind_it(spec):
  guard = registry.make('guard', spec)()
  losses = calm(300)
  losses[200:210] = [np.nan, np.inf] * 5
  losses[220] = 50.0
  verdicts, state = run(guard, losses, calm(300, 1))
  assert not verdicts[220]
  assert verdicts[0] and all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))


def test_spikes_equal_the_formula():
  window, sigmas = 8, 2.0
  losses, norms = calm(60), calm(60, 3)
  losses[[20, 33]] += 0.5
  want = []
  for i in range(60):
    ok = True
    for x in (losses, norms):
      past = x[max(0, i - window) : i].astype(np.float32)
      if len(past) >= window // 2:
        ok &= x[i] <= past.mean() + sigmas * past.std(ddof=1)
    want.append(bool(ok))
  verdicts, _ = run(
    registry.make('guard', f'spikes(window={window}, sigmas={sigmas})')(), losses, norms
  )
  assert verdicts == want and 2 <= want.count(False) <= 20

"""The contract of schedules, run over every registered part.

ROWS has the specs that are tried with their equation in Python floats, and the arguments that are
refused. A part without an entry fails the suite.
"""

import dataclasses
import math
import re
import typing

from hypothesis import given, settings, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _rows
from lmjax import registry

STEPS = 100


def warm(s, w):
  return min(1.0, (s + 1) / w) if w else 1.0


def decaying(shape, w, start, end, steps):
  def factor(s):
    u = min(1.0, max(0.0, (s - start) / (steps - start)))
    return warm(s, w) * (end + (1 - end) * shape(u))

  return factor


def cosine(w, end, steps=STEPS):
  return decaying(lambda u: (1 + math.cos(math.pi * u)) / 2, w, w, end, steps)


def rewarm(start, w, end, steps=STEPS):
  after = cosine(0, end, steps - w)
  return lambda s: start + (1 - start) * warm(s, w) if s < w else after(s - w)


def linear(w, end, steps=STEPS):
  return decaying(lambda u: 1 - u, w, w, end, steps)


def noam(w, flat=False):
  return lambda s: (1.0 if flat else warm(s, w)) * math.sqrt(w / max(s, w))


@dataclasses.dataclass(frozen=True)
class Case:
  """factor: the equation. warmup: its steps. peak_until: last step at 1. end: factor at `steps`.
  start: where the line of the warm-up is at update -1.
  """

  factor: typing.Callable
  warmup: int
  peak_until: int
  end: float
  extendable: bool = False
  start: float = 0.0


ROWS = {
  'cosine': (
    {
      'cosine()': Case(cosine(1, 0.1), 1, 1, 0.1),
      'cosine(warmup=7, end=0.0)': Case(cosine(7, 0.0), 7, 7, 0.0),
      'cosine(warmup=0.29, end=0.3)': Case(cosine(29, 0.3), 29, 29, 0.3),
      'cosine(warmup=99)': Case(cosine(99, 0.1), 99, 99, 0.1),
      'cosine(warmup=0, end=1.0)': Case(cosine(0, 1.0), 0, STEPS, 1.0),
    },
    {
      'cosine(warmup=100)': 'warmup',
      'cosine(warmup=-0.1)': 'warmup',
      'cosine(warmup=2.5)': 'warmup',
      'cosine(warmup=1e999)': 'warmup',
      'cosine(end=1.1)': 'end',
      'cosine(end=-0.1)': 'end',
    },
  ),
  'rewarm': (
    {
      'rewarm()': Case(rewarm(0.1, 1, 0.1), 1, 1, 0.1, start=0.1),
      'rewarm(start=0.05, warmup=7, end=0.0)': Case(rewarm(0.05, 7, 0), 7, 7, 0.0, start=0.05),
      'rewarm(start=0.0, warmup=0.29)': Case(cosine(29, 0.1), 29, 29, 0.1),
      'rewarm(start=0.5, warmup=0)': Case(cosine(0, 0.1), 0, 0, 0.1, start=0.5),
    },
    {
      'rewarm(start=1.5)': 'start',
      'rewarm(start=-0.1)': 'start',
      'rewarm(warmup=100)': 'warmup',
      'rewarm(end=1.1)': 'end',
    },
  ),
  'linear': (
    {
      'linear(warmup=0.1)': Case(linear(10, 0.0), 10, 10, 0.0),
      'linear(warmup=0, end=0.25)': Case(linear(0, 0.25), 0, 0, 0.25),
      'linear(warmup=33, end=0.1)': Case(linear(33, 0.1), 33, 33, 0.1),
    },
    {'linear(warmup=1e3)': 'warmup', 'linear(warmup=-1)': 'warmup', 'linear(end=2)': 'end'},
  ),
  'wsd': (
    {
      'wsd()': Case(decaying(lambda u: 1 - u, 1, 80, 0.0, STEPS), 1, 80, 0.0),
      'wsd(warmup=6, decay=30, shape="sqrt", end=0.1)': Case(
        decaying(lambda u: 1 - math.sqrt(u), 6, 70, 0.1, STEPS), 6, 70, 0.1
      ),
      'wsd(warmup=0.3, decay=0.7)': Case(
        decaying(lambda u: 1 - u, 30, 30, 0.0, STEPS), 30, 30, 0.0
      ),
      'wsd(warmup=0.0, decay=1)': Case(decaying(lambda u: 1 - u, 0, 99, 0.0, STEPS), 0, 99, 0.0),
      'wsd(decay=0.001)': Case(decaying(lambda u: 1 - u, 1, 99, 0.0, STEPS), 1, 99, 0.0),
    },
    {
      'wsd(decay=0.995)': 'decay',
      'wsd(warmup=0.6, decay=0.5)': 'decay',
      'wsd(warmup=0.804, decay=0.2)': 'decay',
      'wsd(warmup=60, decay=41)': 'decay',
      'wsd(decay=0)': 'decay',
      'wsd(decay=-0.2)': 'decay',
      'wsd(decay=101)': 'decay',
      'wsd(decay=1.5)': 'decay',
      'wsd(warmup=100)': 'warmup',
      'wsd(end=1.5)': 'end',
      'wsd(shape="square")': 'shape',
    },
  ),
  'inverse_sqrt': (
    {
      'inverse_sqrt()': Case(noam(1), 1, 1, 0.1),
      'inverse_sqrt(warmup=4)': Case(noam(4), 4, 4, 0.2, True),
      'inverse_sqrt(warmup=0)': Case(noam(1), 0, 1, 0.1, True),
      'inverse_sqrt(warmup=0.25, ramp="flat")': Case(noam(25, flat=True), 0, 25, 0.5),
    },
    {
      'inverse_sqrt(warmup=200)': 'warmup',
      'inverse_sqrt(warmup=-3)': 'warmup',
      'inverse_sqrt(ramp="none")': 'ramp',
    },
  ),
  'constant': (
    {
      'constant()': Case(lambda s: 1.0, 0, STEPS, 1.0, True),
      'constant(warmup=0.2)': Case(lambda s: warm(s, 20), 20, STEPS, 1.0),
      'constant(warmup=49)': Case(lambda s: warm(s, 49), 49, STEPS, 1.0, True),
    },
    {'constant(warmup=1000)': 'warmup', 'constant(warmup=-0.5)': 'warmup'},
  ),
}
for name, cases in _rows.values('schedule', 'SPECS').items():
  refused = _rows.values('schedule', 'REFUSED')[name]
  ROWS[name] = ({spec: Case(**case) for spec, case in cases.items()}, refused)
SPECS = [(spec, case) for specs, _ in ROWS.values() for spec, case in specs.items()]
BAD = [(spec, argument) for _, bad in ROWS.values() for spec, argument in bad.items()]
each = pytest.mark.parametrize('spec, case', SPECS, ids=[s for s, _ in SPECS])


def make(spec, steps=STEPS):
  return registry.make('schedule', spec, steps=steps)()


def test_every_part_has_a_row_and_every_argument_is_tried():
  assert _rows.names('schedule') == set(ROWS)
  for name, (specs, bad) in ROWS.items():
    tried = ' '.join([*specs, *bad])
    for argument in registry.signature(registry.get('schedule', name)):
      assert f'{argument}=' in tried, f'{name}.{argument} is in no row'


@each
def test_equals_its_equation_traced_and_in_python_with_one_compilation(spec, case):
  f, steps = make(spec), [*range(STEPS + 1), STEPS + 1, 10 * STEPS]
  g = jax.jit(f)
  traced = [g(jnp.int32(s)) for s in steps]
  assert g._cache_size() == 1
  assert all(x.shape == () and x.dtype == jnp.float32 for x in traced)
  np.testing.assert_allclose(traced, [case.factor(s) for s in steps], rtol=1e-5, atol=3e-7)
  np.testing.assert_allclose(traced, f(np.array(steps)), rtol=1e-6, atol=2e-7)  # arrays too
  some = [0, 1, case.warmup, case.peak_until, STEPS - 1, STEPS]
  plain = [f(s) for s in some]
  assert all(jnp.asarray(x).dtype == jnp.float32 for x in plain)
  np.testing.assert_allclose(plain, [traced[s] for s in some], rtol=1e-6, atol=2e-7)


@each
def test_boundaries_are_exact(spec, case):
  f = jax.jit(make(spec))
  at = lambda s: f(jnp.int32(s))
  first = case.start + (1 - case.start) / case.warmup if case.warmup else 1
  np.testing.assert_allclose(at(0), np.float32(first), rtol=1e-6 if case.start else 0)
  assert all(at(s) == 1 for s in range(max(0, case.warmup - 1), case.peak_until + 1))
  assert at(STEPS) == np.float32(case.end)
  if case.end < 1 and case.peak_until < STEPS - 1:
    assert at(case.peak_until + 1) < 1
    assert at(STEPS - 1) > np.float32(case.end)  # the last update is not wasted


def test_boundaries_are_exact_at_awkward_numbers():
  """XLA divides arrays by a constant through its reciprocal; 1 - (1 - end) is not always end."""
  s = np.arange(130)
  for w in range(1, 129, 5):
    assert np.all(make(f'constant(warmup={w})', 130)(s)[w - 1 :] == 1), w
  for end in np.linspace(0.01, 0.99, 25):
    f = make(f'linear(warmup=0, end={end})', 130)
    assert f(0) == 1 and f(130) == np.float32(end), end


@each
def test_finite_within_0_and_1_and_monotone_on_both_sides(spec, case):
  y = np.asarray(jax.vmap(make(spec))(jnp.arange(3 * STEPS)))
  assert np.all(np.isfinite(y)) and np.all(y >= 0) and np.all(y <= 1)
  assert np.all(np.diff(y[: case.warmup]) > 0)
  assert np.all(np.diff(y[case.warmup :]) <= 1e-7)
  if case.warmup > 2:  # a straight line
    rise = (1 - case.start) / case.warmup
    np.testing.assert_allclose(np.diff(y[: case.warmup]), rise, rtol=1e-4)


@each
def test_extendable_exactly_where_a_longer_run_begins_alike(spec, case):
  """The fact lets a finished run go on, so it must not promise what the factors do not keep."""
  short, long = make(spec), make(spec, 2 * STEPS)
  s = jnp.arange(STEPS + 1)  # resumed, the longer run goes on at update STEPS
  assert bool(np.all(short(s) == long(s))) == case.extendable or case.end == 1
  assert registry.make('schedule', spec).fact('extendable') is case.extendable


@pytest.mark.parametrize('name', ROWS)
@settings(max_examples=25, deadline=None)
@given(steps=st.integers(1, 10**9), warmup=st.floats(0, 0.99))
def test_any_length_of_run_starts_above_0_and_ends_at_its_end(name, steps, warmup):
  f = make(f'{name}(warmup={warmup}{f", decay={1 - warmup}" if name == "wsd" else ""})', steps)
  w = int(warmup * steps + 1e-6)
  first, peak, last, end = f(np.array([0, w, steps - 1, steps]))
  assert 0 < first <= 1 and peak == 1 and end <= last
  ends = dict(
    cosine=0.1, rewarm=0.1, linear=0, wsd=0, constant=1, inverse_sqrt=math.sqrt(max(1, w) / steps)
  )
  ends |= _rows.values('schedule', 'END')
  np.testing.assert_allclose(end, ends[name], rtol=1e-6)


def test_rewarming_goes_on_where_the_old_run_ended():
  """The line of the warm-up meets the old rate at the old run's last update."""
  old, new = make('cosine(warmup=10, end=0.1)'), make('rewarm(start=0.05, warmup=20)', 200)
  assert new(-1) == np.float32(0.05)
  gap = 2 * new(0) - old(STEPS - 1)  # the new peak is twice the old
  assert 0 < gap < 2 * 0.95 / 20 + 1e-3
  s = np.arange(300)
  np.testing.assert_array_equal(new(s)[20:], make('cosine(warmup=20)', 200)(s)[20:])
  again = make('rewarm(start=0.0, warmup=20)', 200)(s)
  np.testing.assert_array_equal(again, make('cosine(warmup=20)', 200)(s))


@pytest.mark.parametrize('spec, argument', BAD, ids=[s for s, _ in BAD])
def test_bad_values_are_refused_in_one_sentence(spec, argument):
  name, number = spec.split('(')[0], re.search(rf'{argument}=([^,)]+)', spec)[1]
  with pytest.raises(ValueError) as caught:
    make(spec)
  text = str(caught.value)
  assert re.search(rf'{name}\.{argument}=.* expected', text) and '\n' not in text, text
  shown = re.search(rf'{argument}=(\S+)', text)[1].strip(':')
  assert shown == number.replace('"', "'") or float(shown) == float(number), text

"""The contract of optimizer parts, run over every registered part.

ROWS has one entry a part: the specs that are tried, a float64 NumPy reference, and what is expected
of it. A part without an entry fails the suite.
"""

import dataclasses
import functools
import re
import typing
import warnings

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import _optim
import _optim_matrices
import _rows
from _optim import FACTS, HIDDEN, MATRICES, SHAPES, STACKED, pieces
from lmjax import build
from lmjax import registry
from lmjax.parallel.facts import Fact


# ------------------------------------------------------- float64 references
# Each takes the part's arguments and returns step(t, g, p, s) -> update, dictionaries of float64
# arrays; t = 1, 2, ...; s is a dictionary that the reference keeps between steps.


def ref_adam(a):
  def step(t, g, p, s):
    out = {}
    for k, x in g.items():
      m, v = s.get(k, (np.zeros_like(x), np.zeros_like(x)))
      m, v = a['b1'] * m + (1 - a['b1']) * x, a['b2'] * v + (1 - a['b2']) * x * x
      top = m / (1 - a['b1'] ** t)
      if a['nesterov']:
        top = a['b1'] * m / (1 - a['b1'] ** (t + 1)) + (1 - a['b1']) * x / (1 - a['b1'] ** t)
      out[k], s[k] = top / (np.sqrt(v / (1 - a['b2'] ** t)) + a['eps']), (m, v)
    return out

  return step


def ref_lion(a):
  def step(t, g, p, s):
    out = {}
    for k, x in g.items():
      m = s.get(k, np.zeros_like(x))
      out[k], s[k] = np.sign(a['b1'] * m + (1 - a['b1']) * x), a['b2'] * m + (1 - a['b2']) * x
    return out

  return step


def ref_sgd(a):
  def step(t, g, p, s):
    for k, x in g.items():
      s[k] = a['momentum'] * s.get(k, 0) + x
    return {k: x + a['momentum'] * s[k] if a['nesterov'] else s[k] for k, x in g.items()}

  return step


def ref_decay(a):
  return lambda t, g, p, s: {
    k: x + a['rate'] * p[k] if a['only'] == 'all' or k in HIDDEN else x for k, x in g.items()
  }


def ref_disturb(a):
  def step(t, g, p, s):
    since = t - 1 - a['start']
    due = since >= 0 and since % a['every'] == 0 if a['every'] else since == 0
    return {k: x * (a['times'] if due else 1.0) for k, x in g.items()}

  return step


def ref_clip(a):
  def step(t, g, p, s):
    norm = np.sqrt(sum(np.sum(x * x) for x in g.values()))
    return {k: x * min(1.0, a['norm'] / norm) for k, x in g.items()}

  return step


def ref_clip_update(a):
  def one(x):
    return x / max(1.0, np.sqrt(np.mean(x * x)) / a['rms'])

  def step(t, g, p, s):
    out = {}
    for k, x in g.items():
      out[k] = np.empty_like(x)
      for where, piece in pieces(k, x):
        out[k][where] = one(piece)
    return out

  return step


def nested(part):
  """The reference of a part within a part; of a name, what makes it of arguments."""
  if isinstance(part, str):
    return ROWS[part].reference
  return ROWS[part.name].reference(dict(part.args))


def ref_split(a):
  def rest(t, g, p, s):
    return {k: a['rest_lr'] * u for k, u in nested(a['rest'])(t, g, p, s).items()}

  return _optim.ref_groups(
    dict(matrix=nested(a['matrix']), rest=rest), lambda k: 'matrix' if k in HIDDEN else 'rest'
  )


def ref_reset(a):
  def step(t, g, p, s):
    age = (t - 1) % a['every']
    if age == 0:
      s.clear()
    return nested(a['inner'])(age + 1, g, p, s)

  return step


@dataclasses.dataclass(frozen=True)
class Row:
  """specs -> bytes of state a parameter. bad: spec -> the argument at fault.

  toy: (chain with {} for the spec, peak_lr). moves: arguments -> whether a zero gradient moves.
  numbers: float32 numbers that are kept for each tensor. only: the parameters that it takes.
  rounding: how much more it magnifies rounding than a sum does. scalars: most that the state holds.
  full: parameters below float32 are refused.
  """

  specs: dict[str, float]
  reference: typing.Callable
  bad: dict[str, str]
  toy: tuple[str, float] = ('{}', 0.1)
  moves: typing.Callable = lambda args: False
  numbers: int = 0
  rounding: float = 1.0
  scalars: int = 1
  full: bool = False
  only: tuple[str, ...] = tuple(FACTS)


ROWS = {
  'adam': Row(
    {
      'adam()': 8,
      'adam(b1=0.0, b2=0.5, eps=0.1)': 8,
      'adam(nesterov=True)': 8,
      'adam(mu_dtype="bfloat16")': 6,
      'adam(mu_dtype="float32")': 8,
    },
    ref_adam,
    {
      'adam(b1=1.0)': 'b1',
      'adam(b1=-0.1)': 'b1',
      'adam(b2=1)': 'b2',
      'adam(eps=0.0)': 'eps',
      'adam(eps=1e999)': 'eps',
      'adam(mu_dtype="float16")': 'mu_dtype',
      'adam(nesterov=1)': 'nesterov',
    },
  ),
  'lion': Row(
    {'lion()': 4, 'lion(b1=0.95, b2=0.5)': 4},
    ref_lion,
    {'lion(b1=1.5)': 'b1', 'lion(b2=-1.0)': 'b2'},
  ),
  'sgd': Row(
    {'sgd()': 0, 'sgd(momentum=0.9)': 4, 'sgd(momentum=0.9, nesterov=True)': 4},
    ref_sgd,
    {
      'sgd(momentum=1.0)': 'momentum',
      'sgd(momentum=-0.5)': 'momentum',
      'sgd(nesterov=True)': 'nesterov',
    },
  ),
  'decay': Row(
    {'decay(rate=0.01)': 0, 'decay(rate=0.01, only="all")': 0, 'decay(rate=0.0)': 0},
    ref_decay,
    {'decay(rate=-0.1)': 'rate', 'decay(rate=1e999)': 'rate', 'decay(only="norms")': 'only'},
    toy=('sgd() | {}', 0.1),
    moves=lambda a: a['rate'] > 0,
  ),
  'disturb': Row(
    {'disturb()': 0, 'disturb(start=1, times=-3.0)': 0, 'disturb(start=0, every=2, times=7)': 0},
    ref_disturb,
    {
      'disturb(start=-1)': 'start',
      'disturb(every=-2)': 'every',
      'disturb(times=1e999)': 'times',
    },
    toy=('{} | adam()', 0.1),
  ),
  'clip': Row(
    {'clip()': 0, 'clip(norm=12.5)': 0},
    ref_clip,
    {'clip(norm=0)': 'norm', 'clip(norm=-1.0)': 'norm', 'clip(norm=1e999)': 'norm'},
    toy=('{} | sgd()', 0.2),
  ),
  'clip_update': Row(
    {'clip_update()': 0, 'clip_update(rms=0.3)': 0},
    ref_clip_update,
    {'clip_update(rms=0.0)': 'rms', 'clip_update(rms=-2)': 'rms'},
    toy=('sgd() | {}', 0.2),
  ),
  'clip_value': Row(
    {'clip_value()': 0, 'clip_value(bound=0.3)': 0},
    _optim.ref_clip_value,
    {'clip_value(bound=0.0)': 'bound', 'clip_value(bound=1e999)': 'bound'},
    toy=('{} | sgd()', 0.2),
  ),
  'clip_tensor': Row(
    {'clip_tensor()': 0, 'clip_tensor(norm=12.5)': 0},
    _optim.ref_clip_tensor,
    {'clip_tensor(norm=-1.0)': 'norm', 'clip_tensor(norm=1e999)': 'norm'},
    toy=('{} | sgd()', 0.2),
  ),
  'adagc': Row(
    {
      'adagc()': 0,
      'adagc(start=2, relative=1.5, absolute=3.0, beta=0.5)': 0,
      'adagc(start=0)': 0,
    },
    _optim.ref_adagc,
    {
      'adagc(relative=0.9)': 'relative',
      'adagc(absolute=0.0)': 'absolute',
      'adagc(beta=1.0)': 'beta',
      'adagc(start=-1)': 'start',
    },
    toy=('{} | sgd()', 0.2),
    numbers=1,
  ),
  'stable_adamw': Row(
    {'stable_adamw()': 8, 'stable_adamw(b1=0.0, b2=0.5, eps=0.1)': 8},
    _optim.ref_stable_adamw,
    {
      'stable_adamw(b1=1.0)': 'b1',
      'stable_adamw(b2=-0.5)': 'b2',
      'stable_adamw(eps=0.0)': 'eps',
    },
  ),
  'stable_spam': Row(
    {
      'stable_spam()': 8,
      'stable_spam(b1=0.5, b2=0.9, eps=1e-3, gamma1=0.5, gamma2=0.4, gamma3=0.3, every=2)': 8,
      'stable_spam(every=0)': 8,
      'stable_spam(every=1)': 8,
    },
    _optim.ref_stable_spam,
    {
      'stable_spam(b1=1.0)': 'b1',
      'stable_spam(b2=1.0)': 'b2',
      'stable_spam(eps=0.0)': 'eps',
      'stable_spam(gamma1=1.0)': 'gamma1',
      'stable_spam(gamma2=-1.0)': 'gamma2',
      'stable_spam(gamma3=1.5)': 'gamma3',
      'stable_spam(every=-1)': 'every',
    },
    numbers=3,
  ),
  'sophia_g': Row(
    {
      'sophia_g()': 8,
      'sophia_g(b1=0.5, b2=0.5, rho=9.0, eps=1e-3, every=2)': 8,
      'sophia_g(every=1)': 8,
    },
    _optim.ref_sophia(lambda p: p**2 / WEIGHT),
    {
      'sophia_g(b1=1.0)': 'b1',
      'sophia_g(b2=1.0)': 'b2',
      'sophia_g(rho=0.0)': 'rho',
      'sophia_g(eps=0.0)': 'eps',
      'sophia_g(every=0)': 'every',
      'sophia_g(one_in=0)': 'one_in',
    },
  ),
  'sophia_h': Row(
    {
      'sophia_h(probe="rademacher")': 8,
      'sophia_h(b1=0.5, b2=0.5, rho=2.0, eps=1e-3, every=2, probe="rademacher")': 8,
    },
    _optim.ref_sophia(lambda p: p**2),
    {
      'sophia_h(b1=-0.1)': 'b1',
      'sophia_h(b2=1.0)': 'b2',
      'sophia_h(rho=-1.0)': 'rho',
      'sophia_h(eps=0.0)': 'eps',
      'sophia_h(every=0)': 'every',
      'sophia_h(one_in=0)': 'one_in',
      'sophia_h(probe="signs")': 'probe',
    },
  ),
  'muon': Row(
    {
      'muon()': 4,
      'muon(momentum=0.5, nesterov=False, steps=3, scale="spectral")': 4,
      'muon(momentum=0.0)': 4,
    },
    _optim.ref_muon,
    {
      'muon(momentum=1.0)': 'momentum',
      'muon(steps=0)': 'steps',
      'muon(scale="adam")': 'scale',
    },
    toy=('split(matrix={}, rest=adam())', 0.1),
    only=MATRICES,
    rounding=100,  # five steps raise small singular values up to 480 times
  ),
  'scale': Row(
    {
      'scale()': 8 * _optim.share('gains'),
      'scale(eps=0.5, momentum=0.5, vectors=sgd(momentum=0.9))': 4 * _optim.share('gains'),
    },
    lambda a: _optim.ref_scale(a, nested(a['vectors'])),
    {'scale(momentum=1.0)': 'momentum', 'scale(eps=0.0)': 'eps'},
  ),
  'split': Row(
    {
      'split(matrix=muon(), rest_lr=0.5)': 4 * _optim.share(*HIDDEN)
      + 8 * _optim.share('place', 'gains'),
      'split(matrix=sgd(momentum=0.5), rest=lion())': 4,
    },
    lambda a: ref_split(a),
    {'split(matrix=sgd(), rest_lr=0.0)': 'rest_lr'},
    rounding=100,
  ),
  'reset': Row(
    {
      'reset()': 8,
      'reset(every=2)': 8,
      'reset(inner=sgd(momentum=0.9), every=1)': 4,
    },
    ref_reset,
    {
      'reset(every=0)': 'every',
      'reset(inner=schedule_free())': 'inner',
      'reset(inner=refactor())': 'inner',
    },
    scalars=2,
  ),
}
ROWS |= {k: Row(**row) for k, row in _optim_matrices.rows(nested).items()}
ROWS |= {k: Row(**row) for k, row in _rows.values('optim', 'ROW').items()}
# Parts that leave every update as it is and move the parameters behind the step; such a part has a
# file of its own in tests/optim. bad: as in Row.
RETRACTIONS = {'refactor': {'refactor(every=0)': 'every'}}
APART = {'train_only'}  # which updates it leaves depends on paths: tests/optim/test_train_only.py
SPECS = [(name, spec) for name, row in ROWS.items() for spec in row.specs]
each = pytest.mark.parametrize('name, spec', SPECS, ids=[s for _, s in SPECS])
FIRST = [(name, next(iter(row.specs))) for name, row in ROWS.items()]
# Tried with the first spec, and with all of them in the slow tests.
first_or_slow = pytest.mark.parametrize(
  'name, spec',
  [pytest.param(*s, id=s[1], marks=() if s in FIRST else pytest.mark.slow) for s in SPECS],
)


def test_every_part_has_a_row():
  assert _rows.names('optim') == {*ROWS, *RETRACTIONS, *APART}
  for name in RETRACTIONS:
    assert registry.make('optim', f'{name}()').fact('retract') is not None


def test_every_argument_is_tried():
  tries = {name: [*row.specs, *row.bad] for name, row in ROWS.items()} | RETRACTIONS
  for name, specs in tries.items():
    tried = ' '.join(specs)
    for argument in registry.signature(registry.get('optim', name)):
      assert f'{argument}=' in tried, f'{name}.{argument} is in no row'


def taken(spec: str, tree):
  """What of a tree the part takes."""
  return {k: tree[k] for k in ROWS[spec.split('(')[0]].only}


def chain(spec: str, facts=None):
  """The optimizer as lmjax builds it: a named chain of the parts."""
  parts = registry.make_chain('optim', spec, facts=taken(spec, FACTS) if facts is None else facts)
  return optax.named_chain(*((k, optax.with_extra_args_support(p())) for k, p in parts.items()))


WEIGHT = 7.0  # tokens of a batch


def extras(params):
  """What the training step hands to every part, for a loss with the Hessian diag(p^2) and sampled
  labels whose summed gradient is p.
  """
  total = lambda p, n: sum(jnp.sum(x**n) / n for x in jax.tree.leaves(p))
  return dict(
    value=jnp.float32(1.0),
    obj_fn=lambda p, one_in=1: total(p, 4) / 3,
    sample_fn=lambda p, rng, one_in=1: (total(p, 2), jnp.float32(WEIGHT)),
    rng=jax.random.key(0),
  )


def draw(seed: int, dtype='float32', scale: float = 1.0):
  """One array per fact; layers of a stack differ in size, so that a norm over the stack shows."""
  rng = np.random.default_rng(seed)
  out = {}
  for k, shape in SHAPES.items():
    x = rng.standard_normal(shape)
    for n, (where, _) in enumerate(pieces(k, x)):
      x[where] *= scale * 4.0 ** (n - 1)
    out[k] = jnp.asarray(x, dtype)
  return out


GRADS = [functools.partial(draw, s, scale=c) for s, c in ((1, 1.0), (2, 30.0), (3, 0.01))]


def reported(state):
  """(leaves of fields named `metrics`, all other leaves)."""
  found = jax.tree_util.tree_leaves_with_path(state)
  inside = lambda path: any(getattr(k, 'name', None) == 'metrics' for k in path)
  return [x for p, x in found if inside(p)], [x for p, x in found if not inside(p)]


def updates_of(tx, params, grads):
  """Updates of successive steps and the last state, donated; parameters move by a tenth of each."""
  update = jax.jit(lambda g, s, p: tx.update(g, s, p, **extras(p)), donate_argnums=1)
  state, out = tx.init(params), []
  for g in grads:
    _, before = reported(state)  # what is only reported is not read again
    u, state = update(g, state, params)
    assert all(x.is_deleted() for x in before), 'the state was not donated'
    out.append(u)
    params = jax.tree.map(lambda p, d: p - 0.1 * d, params, u)
  assert update._cache_size() == 1
  return out, state


def first(spec, dtype='float32'):
  return taken(spec, draw(0, dtype))


def grads_of(spec, **how):
  return [taken(spec, g(**how)) for g in GRADS]


@functools.cache
def plain(spec):
  """Updates on the whole tree, one device."""
  with warnings.catch_warnings():
    warnings.simplefilter('error')  # jax warns of a donated buffer that it cannot use
    return updates_of(chain(spec), first(spec), grads_of(spec))[0]


def wide(tree):
  return {k: np.asarray(x, np.float64) for k, x in tree.items()}


@first_or_slow
def test_equals_a_float64_step(name, spec):
  args = dict(registry.make('optim', spec).args)
  tol = 2e-2 if args.get('mu_dtype') == 'bfloat16' else 2e-5
  step, memory, p = ROWS[name].reference(args), {}, wide(first(spec))
  for t, (g, u) in enumerate(zip(grads_of(spec), plain(spec)), 1):
    want = step(t, wide(g), p, memory)
    for k in want:
      np.testing.assert_allclose(
        wide(u)[k], want[k], rtol=tol, atol=tol * np.abs(want[k]).max(), err_msg=f'step {t} {k}'
      )
    p = {k: p[k] - 0.1 * want[k] for k in p}


@first_or_slow
def test_stacked_layers_equal_single_layers(name, spec):
  def split(tree):
    return {k: {str(n): x for n, (_, x) in enumerate(pieces(k, v))} for k, v in tree.items()}

  def alone(k):
    fact = FACTS[k]
    kept = tuple(n for i, n in enumerate(fact.names) if i not in STACKED.get(k, ()))
    return dataclasses.replace(fact, names=kept)

  params, grads = first(spec), grads_of(spec)
  facts = {k: {n: alone(k) for n in v} for k, v in split(params).items()}
  single, _ = updates_of(chain(spec, facts), split(params), [split(g) for g in grads])
  atol = 1e-7 * ROWS[name].rounding
  for a, b in zip(plain(spec), single):
    close = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=atol)
    jax.tree.map(close, split(a), b)


def toy():
  """(losses, sample_fn, first parameters, facts): an ill-conditioned quadratic, and a linear
  regression; samples are labels of unit variance about the predictions, 32 for each loss.
  """
  rng = np.random.default_rng(0)
  target, curvature = rng.standard_normal(8), np.geomspace(0.1, 2.0, 8)
  x = rng.standard_normal((32, 8))
  y = x @ rng.standard_normal((8, 4)) + 0.5

  def losses(p):
    miss = x @ p['matrix'] + p['bias'] - y
    quadratic = jnp.sum(curvature * (p['point'] - target) ** 2)
    return jnp.stack([quadratic, jnp.sum(miss**2) / len(x)]) / 2

  def sample_fn(p, rng, one_in=1):
    predicted = [
      jnp.tile(jnp.sqrt(curvature) * p['point'], (len(x), 1)),
      x @ p['matrix'] + p['bias'],
    ]
    keys = jax.random.split(rng)
    labels = [
      jax.lax.stop_gradient(y) + jax.random.normal(k, y.shape) for y, k in zip(predicted, keys)
    ]
    total = sum(jnp.sum((y - z) ** 2) / 2 for y, z in zip(predicted, labels))
    return total, jnp.float32(len(x))

  first = dict(point=jnp.zeros(8), matrix=jnp.zeros((8, 4)), bias=jnp.zeros(4))
  facts = dict(
    point=Fact(('embed',), (), 'norm'), matrix=FACTS['matrix'], bias=Fact(('mlp',), (), 'bias')
  )
  return losses, sample_fn, first, facts


@first_or_slow
def test_converges(name, spec):
  losses, sample_fn, params, facts = toy()
  form, peak = ROWS[name].toy
  tx, steps = chain(form.format(spec), facts), 400
  total = lambda p, one_in=1: losses(p).sum()
  where = build.gradient_at(registry.make_chain('optim', form.format(spec), facts=facts))

  def body(carry, i):
    p, s = carry
    lr = peak * (1 - i / steps)
    at = p if where is None else jax.tree.map(lambda a, b: a - lr * b, p, where(s))
    value, g = jax.value_and_grad(total)(at)
    rng = jax.random.fold_in(jax.random.key(0), i)
    u, s = tx.update(g, s, p, value=value, obj_fn=total, sample_fn=sample_fn, rng=rng)
    return (jax.tree.map(lambda a, b: a - lr * b, p, u), s), losses(p)

  train = jax.jit(lambda p: jax.lax.scan(body, (p, tx.init(p)), jnp.arange(steps)))
  (last, _), values = train(params)
  assert np.all(np.isfinite(values))
  assert np.all(losses(last) < 1e-2 * values[0]), (losses(last), values[0])


@first_or_slow
def test_zero_gradient_moves_nothing(name, spec):
  params = {k: x for k, x in first(spec).items() if k in ('matrix', 'gains')}
  zero = jax.tree.map(jnp.zeros_like, params)
  got, _ = updates_of(chain(spec, {k: FACTS[k] for k in params}), params, [zero] * 3)
  still = all(np.all(np.asarray(u) == 0) for step in got for u in step.values())
  assert all(np.all(np.isfinite(u)) for step in got for u in step.values())
  assert still != ROWS[name].moves(dict(registry.make('optim', spec).args))


@each
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_dtypes_and_bytes_of_state(name, spec, dtype):
  params = first(spec, dtype)
  n = sum(p.size for p in params.values())
  tx = chain(spec)
  if ROWS[name].full and dtype != 'float32':
    with pytest.raises(ValueError, match=f'config.optim: {name} .*not {dtype}'):
      jax.eval_shape(tx.init, params)
    return
  state = jax.eval_shape(tx.init, params)
  update = lambda g, s, p: tx.update(g, s, p, **extras(p))
  updates, after = jax.eval_shape(update, params, state, params)
  kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert kinds(updates) == kinds(params)
  assert kinds(after) == kinds(state)  # or the step could not be scanned, donated or restored
  reports, kept = reported(state)
  assert all(x.shape == () and x.dtype == jnp.float32 for x in reports)
  leaves, size = kept, lambda x: x.size * x.dtype.itemsize
  scalars = [x for x in leaves if x.ndim == 0]
  stored = sum(size(x) for x in leaves if x.ndim)
  print(
    f'{spec} with {dtype} parameters: {stored / n:g} bytes a parameter, '
    f'{sum(map(size, scalars))} more; {sorted({str(x.dtype) for x in leaves})}'
  )
  stored -= 4 * ROWS[name].numbers * _optim.TENSORS
  assert stored / n == ROWS[name].specs[spec]  # of bfloat16 parameters too: moments are float32
  assert len(scalars) <= ROWS[name].scalars


@first_or_slow
def test_low_precision_gradients_cost_one_rounding(name, spec):
  few = lambda tree: {k: tree[k] for k in ('matrix', 'inner_layers')}
  grads = [few(g(dtype='bfloat16')) for g in GRADS]
  tx, params = chain(spec, few(FACTS)), few(draw(0, 'bfloat16'))
  raise_to = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
  if ROWS[name].full:
    pytest.skip('it refuses parameters below float32')
  states = [tx.init(params), tx.init(raise_to(params))]
  update = jax.jit(lambda g, s, p: tx.update(g, s, p, **extras(p)))
  for g in grads:
    low, states[0] = update(g, states[0], params)
    full, states[1] = update(raise_to(g), states[1], raise_to(params))
    for k in low:
      assert low[k].dtype == jnp.bfloat16
      np.testing.assert_allclose(wide(low)[k], wide(full)[k], rtol=2.0**-8, atol=1e-30)


@first_or_slow
def test_extra_arguments_are_accepted_and_ignored_unless_needed(name, spec):
  part = registry.make('optim', spec, facts=taken(spec, FACTS))
  tx, params, g = part(), first(spec), grads_of(spec)[0]
  assert isinstance(tx, optax.GradientTransformationExtraArgs)
  if not part.fact('needs'):  # eager: also without jit
    with_extras, _ = tx.update(g, tx.init(params), params, **extras(params), later_argument=3)
    without, _ = tx.update(g, tx.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, with_extras, without)


@first_or_slow
def test_passes_over_what_is_masked_out(name, spec):
  """A part may be nested in one that gives it some parameters; the facts are those of all."""
  params, g = draw(0), GRADS[0]()
  tx = optax.masked(chain(spec, FACTS), {k: k in ('matrix', 'inner_layers') for k in params})
  got, _ = tx.update(g, tx.init(params), params, **extras(params))
  np.testing.assert_array_equal(got['gains'], g['gains'])
  few = {k: params[k] for k in ('matrix', 'inner_layers')}
  alone = chain(spec, {k: FACTS[k] for k in few})
  want, _ = alone.update({k: g[k] for k in few}, alone.init(few), few, **extras(few))
  for k in few:
    np.testing.assert_allclose(got[k], want[k], rtol=1e-6)


@pytest.mark.parametrize(
  'name, spec, mode',
  [(*s, m) for s in FIRST for m in ('auto', 'explicit')]
  + [pytest.param(*s, 'explicit', marks=pytest.mark.slow) for s in SPECS if s not in FIRST],
)
def test_sharded_equals_unsharded(name, spec, mode):
  assert jax.device_count() == 8, 'tests/conftest.py asks for eight simulated devices'
  kind = {'auto': AxisType.Auto, 'explicit': AxisType.Explicit}[mode]
  mesh = jax.make_mesh((4, 2), ('data', 'tensor'), axis_types=(kind, kind))
  over = {'embed': 'data', 'mlp': 'tensor', 'vocab': 'tensor', 'head_dim': 'tensor'}
  to = {k: NamedSharding(mesh, P(*(over.get(n) for n in f.names))) for k, f in FACTS.items()}
  place = lambda tree: {k: jax.device_put(x, to[k]) for k, x in tree.items()}
  params, grads = first(spec), grads_of(spec)
  want = plain(spec)
  with jax.set_mesh(mesh):
    got, state = updates_of(chain(spec), place(params), [place(g) for g in grads])
  for a, b in zip(got, want):
    for k in a:
      atol = 1e-7 * ROWS[name].rounding * np.abs(b[k]).max()
      np.testing.assert_allclose(a[k], b[k], rtol=2e-6, atol=atol)
      assert a[k].sharding.is_equivalent_to(to[k], a[k].ndim)
  matrices = [x for x in jax.tree.leaves(state) if x.shape == SHAPES['matrix']]
  assert all(x.addressable_shards[0].data.shape == (2, 2) for x in matrices)  # moments too


BAD = [item for row in ROWS.values() for item in row.bad.items()]
BAD += [item for bad in RETRACTIONS.values() for item in bad.items()]


@pytest.mark.parametrize('spec, argument', BAD, ids=[s for s, _ in BAD])
def test_bad_values_are_refused_in_one_sentence(spec, argument):
  name, given = spec.split('(')[0], re.search(rf'\b{argument}=([^,)]+)', spec)[1]
  with pytest.raises(ValueError) as caught:
    registry.make('optim', spec, facts=FACTS)()
  text = str(caught.value)
  # What no float holds is refused where specs are read.
  sentence = rf'{name}\.{argument}=\S+( is not accepted:|:) .+ expected'
  assert re.fullmatch(rf'(?:optim {name}: )?{sentence}', text), text  # one line: . is no newline
  assert given.strip('"').replace('1e999', '1e309') in text, text

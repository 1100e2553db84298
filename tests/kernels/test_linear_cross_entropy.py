"""The loss layer: what runs anywhere against float64 NumPy, gradients against the slope of it and
against each other, on one device and on meshes; what it takes.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _meshes
import _table
from lmjax.kernels import choice
from lmjax.kernels import linear_cross_entropy as op
from lmjax.kernels.linear_cross_entropy import chunked
from lmjax.parallel import shard

B, T, D, V, REAL = 3, 7, 6, 24, 21
HERE = 'chunked', 'whole'  # the others: test_linear_cross_entropy_kernels.py
HOWS = [
  dict(),
  dict(z_loss=0.3),
  dict(label_smoothing=0.2),
  dict(cap=2.0, scale=0.7),
  dict(z_loss=0.1, label_smoothing=0.1, cap=3.0, scale=1.5),
]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  """Chunks of 4 tokens, 21 = 5 x 4 + 1 of them."""
  monkeypatch.setattr(chunked, 'LEAST', 1)
  monkeypatch.setattr(chunked, 'LOGITS', 4 * V)


def inputs(rows=B, steps=T, width=D, words=V, real=REAL, bias=True, dtype=jnp.float32):
  r = np.random.default_rng(0)
  b = np.where(np.arange(words) < real, r.normal(size=words), -1e30)
  return (
    jnp.asarray(r.normal(size=(rows, steps, width)), dtype),
    jnp.asarray(r.normal(size=(words, width)), jnp.float32),
    jnp.asarray(b, jnp.float32) if bias else None,
    jnp.asarray(r.integers(0, 3, (rows, steps)) / 2, jnp.float32),
  ), jnp.asarray(r.integers(0, real, (rows, steps)), jnp.int32)


def numpy64(x, w, b, weights, y, scale=1.0, cap=None, z_loss=0.0, label_smoothing=0.0):
  """One token at a time: (sum, nll, hits)."""
  x, w, weights = (np.asarray(a, np.float64) for a in (x, w, weights))
  b = np.zeros(len(w)) if b is None else np.asarray(b, np.float64)
  total, nll, hits = 0.0, np.zeros(y.shape), np.zeros(y.shape)
  for at in itertools.product(*map(range, y.shape)):
    z = scale * (w @ x[at])
    z = (z if cap is None else cap * np.tanh(z / cap)) + b
    lse = z.max() + math.log(np.exp(z - z.max()).sum())
    nll[at], hits[at] = lse - z[y[at]], z[y[at]] == z.max()
    smooth = (lse - z[b > -1e29]).mean()
    loss = (1 - label_smoothing) * nll[at] + label_smoothing * smooth + z_loss * lse**2
    total += weights[at] * loss
  return total, nll, hits


@pytest.mark.parametrize('name', HERE)
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('how', HOWS, ids=str)
def test_it_equals_float64(name, bias, how):
  (x, w, b, weights), y = inputs(bias=bias)
  want = numpy64(x, w, b, weights, y, **how)
  got = op.linear_cross_entropy(x, w, y, weights, bias_V=b, implementation=name, **how)
  for g, e in zip(got, want):
    np.testing.assert_allclose(g, e, rtol=2e-6, atol=2e-6)


def slope(name, arrays, y, nll=0.0, total=1.0, **how):
  """Gradients into x, W, w and b of total x sum + nll x something of single tokens."""

  def f(x, w, weights, b):
    found = op.linear_cross_entropy(x, w, y, weights, bias_V=b, implementation=name, **how)
    out = total * found.total if total else 0.0
    return out + nll * jnp.sum(jnp.sin(found.nll_BT)) if nll else out

  x, w, b, weights = arrays
  wanted = (0, 1, 2) if b is None else (0, 1, 2, 3)
  return jax.jit(jax.grad(f, wanted))(x, w, weights, b)


@pytest.mark.parametrize('name', HERE)
def test_the_gradient_is_the_slope(name):
  (x, w, b, weights), y = inputs()
  how = HOWS[-1]
  grads = slope(name, (x, w, b, weights), y, **how)
  r = np.random.default_rng(1)
  for i, (given, g) in enumerate(zip((x, w, weights, b), grads)):
    way = r.normal(size=given.shape) * (np.asarray(given) != 0) * (np.asarray(given) > -1e29)

    def at(eps, i=i, way=way):
      moved = [np.asarray(a, np.float64) for a in (x, w, weights, b)]
      moved[i] = moved[i] + eps * way
      return numpy64(moved[0], moved[1], moved[3], moved[2], y, **how)[0]

    assert float(np.sum(np.asarray(g) * way)) == pytest.approx(
      (at(1e-5) - at(-1e-5)) / 2e-5, rel=1e-4
    )


@pytest.mark.parametrize('nll, total', [(0.0, 2.5), (1.0, 0.0), (0.7, -1.5)])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('how', HOWS, ids=str)
def test_gradients_of_chunks_equal_those_of_the_whole(how, bias, nll, total):
  """Also where they come from the nll of single tokens: with that, DoReMi weighs its sources."""
  arrays, y = inputs(bias=bias)
  want, got = (slope(name, arrays, y, nll, total, **how) for name in ('whole', 'chunked'))
  _table.trees_close(got, want, 2e-6)


@pytest.mark.parametrize('rows, steps', [(1, 1), (1, 3), (2, 2), (5, 5)])
def test_numbers_of_tokens_that_chunks_do_not_divide(rows, steps):
  arrays, y = inputs(rows, steps)
  _table.trees_close(slope('chunked', arrays, y), slope('whole', arrays, y), 2e-6)


def test_tokens_without_weight_say_nothing():
  (x, w, b, _), y = inputs()
  weights = jnp.ones((B, T)).at[:, ::2].set(0.0)
  outside = y.at[:, ::2].set(10**6)
  for name in HERE:
    got = slope(name, (x, w, b, weights), outside)[:2]
    assert not np.any(got[0][:, ::2])
    _table.trees_close(got, slope(name, (x, w, b, weights), y)[:2], 1e-7)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize('name', HERE)
def test_low_precision(name, dtype):
  """Products are in the dtype of x, sums in float32; the gradient of float32 weights is float32."""
  (x, w, b, weights), y = inputs(dtype=dtype)
  w = w.astype(dtype).astype(jnp.float32)
  dx, dw, *_ = slope(name, (x, w, b, weights), y)
  assert dx.dtype == dtype and dw.dtype == jnp.float32
  full = slope('whole', (x.astype(jnp.float32), w, b, weights), y)
  _table.close(dx, full[0], 2e-2)
  _table.close(dw, full[1], 2e-2)


def test_hessian_vector_products():
  """Sophia-H differentiates the gradient, forward and backward."""
  (x, w, b, weights), y = inputs()
  way = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)

  def both(name):
    g = jax.grad(
      lambda x: op.linear_cross_entropy(x, w, y, weights, bias_V=b, implementation=name).total
    )
    over = jax.grad(lambda x: jnp.sum(g(x) * way))
    return jax.jit(lambda x: (jax.jvp(g, (x,), (way,))[1], over(x)))(x)

  want = both('whole')[0]
  for name in HERE:
    for got in both(name):
      _table.close(got, want, 1e-5)


@pytest.mark.parametrize(
  'axes',
  [
    dict(data=4, tensor=2),
    dict(replica=2, data=2, sequence=2),
    dict(stage=2, data=2, tensor=2),
    dict(expert=2, tensor=4),
  ],
  ids=str,
)
@pytest.mark.parametrize('nll', [0.0, 0.7])
@pytest.mark.skipif(jax.device_count() < 8, reason='eight devices are needed')
def test_meshes(axes, nll):
  arrays, y = inputs(rows=8, steps=4, width=8, words=V)
  want = slope('whole', arrays, y, nll, **HOWS[-1])
  x, w, b, weights = arrays
  with jax.set_mesh(_meshes.make(**axes)):
    place = lambda a, *names: jax.device_put(
      a, jax.NamedSharding(jax.sharding.get_mesh(), shard.spec(names))
    )
    placed = (
      place(x, 'batch', 'time', None),
      place(w, 'vocab', 'embed'),
      place(b, 'vocab'),
      place(weights, 'batch', 'time'),
    )
    got = slope('chunked', placed, place(y, 'batch', 'time'), nll, **HOWS[-1])
  _table.trees_close(jax.device_get(got), want, 5e-6)


@pytest.mark.skipif(jax.device_count() < 8, reason='eight devices are needed')
def test_a_device_makes_logits_of_its_own_tokens_and_words_only():
  """Chunks of (2 tokens of 4, 12 words of 24) and nothing larger, in the compiled program."""
  (x, w, b, weights), y = inputs(rows=8, steps=4, width=8)

  def f(x, w):
    return op.linear_cross_entropy(x, w, y, weights, bias_V=b, implementation='chunked').total

  with jax.set_mesh(_meshes.make(data=4, tensor=2)):
    text = jax.jit(jax.grad(f, (0, 1))).lower(x, w).compile().as_text()
  assert 'f32[8,12]' in text
  assert not any(f'[{n},{v}]' in text for n in (8, 16, 32) for v in (24,))
  assert '[8,4,24]' not in text and '[2,4,24]' not in text


def test_the_forward_pass_makes_the_gradient():
  """Three products of tokens and vocabulary, as many as where all logits are kept; one without a
  gradient.
  """
  (x, w, b, weights), y = inputs()

  def products(f):
    return str(jax.make_jaxpr(f)(x, w)).count('dot_general')

  f = lambda x, w: op.linear_cross_entropy(x, w, y, weights, implementation='chunked').total
  assert products(f) == 1
  assert products(jax.grad(f, (0, 1))) == 3


def test_memory_is_a_twentieth_of_the_naive_one(monkeypatch):
  """At 50k words and 32k tokens, counted in the compiled program."""
  monkeypatch.undo()
  x, w = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((32, 1024, 64), (50_304, 64)))
  y, weights = (jax.ShapeDtypeStruct((32, 1024), d) for d in (jnp.int32, jnp.float32))

  def temp(name):
    f = lambda x, w, y, weights: (
      op.linear_cross_entropy(x, w, y, weights, implementation=name).total
    )
    return (
      jax.jit(jax.grad(f, (0, 1)))
      .lower(x, w, y, weights)
      .compile()
      .memory_analysis()
      .temp_size_in_bytes
    )

  assert temp('whole') > 20 * temp('chunked')


def test_few_logits_are_made_at_once(monkeypatch):
  (x, w, _, weights), y = inputs()

  def program():
    return str(jax.make_jaxpr(lambda x: op.linear_cross_entropy(x, w, y, weights).total)(x))

  assert 'scan' in program()
  monkeypatch.setattr(chunked, 'LOGITS', B * T * V)
  assert 'scan' not in program()


@pytest.mark.parametrize('tokens, chunks', [(256, False), (288, True)])
def test_logits_as_few_as_the_matrix_are_made_at_once(tokens, chunks):
  """More than a chunk of them."""
  x, w = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, tokens // 2, 256), (150_000, 256)))
  y, weights = (jax.ShapeDtypeStruct((2, tokens // 2), d) for d in (jnp.int32, jnp.float32))
  assert tokens * 150_000 > 2**25
  f = lambda x, *rest: op.linear_cross_entropy(x, *rest).total
  assert ('scan' in str(jax.make_jaxpr(jax.grad(f))(x, w, y, weights))) == chunks


@pytest.mark.parametrize('spec', ['clm(z_loss=0.1, label_smoothing=0.1)', 'mlm()'])
def test_objectives_do_not_depend_on_it(spec):
  from test_objective import batch, make, params

  objective, found = make(spec), {}

  def loss(p):
    out = objective.loss(p, {}, batch(spec), jax.random.key(0), False)
    return out.sum, (out.metrics, out.rows)

  for name in HERE:
    with choice.using(linear_cross_entropy=name):
      found[name] = jax.jit(jax.value_and_grad(loss, has_aux=True))(params(spec))
  _table.trees_close(found['chunked'], found['whole'], 1e-5)

"""Contrastive weight tying against its formula, its identities, and what is never built."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _meshes
import _table
from lmjax import build
from lmjax import config
from lmjax import registry
from lmjax.objectives import headless_cwt

B, T, D, V = 3, 8, 5, 11


@functools.cache
def compiled(block):
  return jax.jit(lambda h, table, ids, w: headless_cwt.contrast(h, table[ids], ids, w, block))


def contrast(h, table, ids, w, block=1024):
  return compiled(block)(h, table, jnp.asarray(ids), jnp.asarray(w, jnp.float32))


def given(seed=0):
  rng = np.random.default_rng(seed)
  ids = rng.integers(0, V, (B, T))
  w = (rng.random((B, T)) < 0.7).astype(np.float32)
  return _table.normal(B, T, D, seed=seed), _table.normal(V, D, seed=seed + 1), ids, w


def formula(h, table, ids, w):
  """As written, over the places of positive weight, in float64."""
  real = np.asarray(w).reshape(-1) > 0
  h = np.asarray(h, np.float64).reshape(-1, D)[real]
  e = np.asarray(table, np.float64)[np.asarray(ids).reshape(-1)[real]]
  scores = h @ e.T
  lse = np.log(np.exp(scores).sum(1))
  return ((lse - np.diag(scores)) * np.asarray(w).reshape(-1)[real]).sum()


@pytest.mark.parametrize('block', [1, 4, 6, 12, 1024])
def test_the_formula_in_any_number_of_pieces(block):
  h, table, ids, w = given()
  total, hits = contrast(h, table, ids, w, block)
  assert float(total) == pytest.approx(formula(h, table, ids, w), rel=1e-5)
  assert 0 <= float(hits) <= w.sum()


def test_pieces():
  assert headless_cwt.pieces(3, 8, 24) == 1 and headless_cwt.pieces(3, 8, 23) == 2
  assert headless_cwt.pieces(3, 8, 6) == 4 and headless_cwt.pieces(3, 8, 1) == 8
  assert headless_cwt.pieces(3, 7, 4) == 7, 'only what divides the row'


def test_weights_count_targets_and_leave_columns_alone():
  """A weight of a half halves the place's own loss; its column stays whole."""
  h, table, ids, w = given()
  half = w.copy()
  half[0, 0], w[0, 0] = 0.5, 1.0
  a, b = (float(contrast(h, table, ids, x)[0]) for x in (w, half))
  alone = np.zeros_like(w)
  assert a != b and float(contrast(h, table, ids, alone)[0]) == 0
  assert b == pytest.approx(formula(h, table, ids, half), rel=1e-5)


def test_equal_targets_give_log_n_whatever_the_states():
  h, table, _, _ = given()
  total, hits = contrast(h, table, np.full((B, T), 4), np.ones((B, T)))
  assert float(total) / (B * T) == pytest.approx(math.log(B * T), rel=1e-6)
  assert float(hits) == B * T, 'the best is one of its own kind'


def test_the_identity_matrix():
  h = jnp.eye(2)[None]
  total, hits = headless_cwt.contrast(h, jnp.eye(2)[jnp.array([[0, 1]])], jnp.array([[0, 1]]),
                                      jnp.ones((1, 2)), 9)  # fmt: skip
  assert float(total) / 2 == pytest.approx(0.313262, abs=1e-6) and float(hits) == 2


def test_it_is_a_softmax_over_the_kinds_present_biased_by_their_counts():
  h, table, ids, w = given(3)
  w = np.ones_like(w)
  counts = np.bincount(ids.reshape(-1), minlength=V)
  kinds, flat = np.flatnonzero(counts), ids.reshape(-1)
  z = np.asarray(h).reshape(-1, D) @ np.asarray(table)[kinds].T + np.log(counts[kinds])
  own = z[np.arange(len(flat)), np.searchsorted(kinds, flat)]
  want = (np.log(np.exp(z).sum(1)) - own + np.log(counts[flat])).sum()
  assert float(contrast(h, table, ids, w)[0]) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize('block', [6, 1024])
def test_slopes_reach_states_and_both_sides_of_the_table(block):
  h, table, ids, w = given(1)
  f = lambda h, table: headless_cwt.contrast(
    h, table[ids], jnp.asarray(ids), jnp.asarray(w), block
  )[0]
  of_h, of_table = jax.jit(jax.grad(f, (0, 1)))(h, table)

  def plain(h, table):
    real = jnp.asarray(w.reshape(-1) > 0)
    s = h.reshape(-1, D) @ table[ids.reshape(-1)].T
    lse = jax.nn.logsumexp(jnp.where(real, s, -jnp.inf), axis=1)
    return jnp.sum(jnp.where(real, lse - jnp.diag(s), 0))

  want = jax.grad(plain, (0, 1))(h, table)
  _table.trees_close((of_h, of_table), want, 1e-5)
  used = np.unique(ids[w > 0])
  assert np.abs(np.asarray(of_table))[used].min() > 0, 'own rows and those of the others'
  assert not np.asarray(of_table)[np.setdiff1d(np.arange(V), used)].any()


def test_nothing_to_predict_has_no_slope_and_no_nan():
  h, table, ids, _ = given()
  f = lambda h: headless_cwt.contrast(h, table[ids], jnp.asarray(ids), jnp.zeros((B, T)), 6)[0]
  value, slope = jax.value_and_grad(f)(h)
  assert float(value) == 0 and not np.asarray(slope).any()


def test_large_scores_do_not_overflow():
  h, table, ids, w = given()
  h16, t16 = (1000 * h).astype(jnp.bfloat16), table.astype(jnp.bfloat16)
  assert np.isfinite(float(contrast(h16, t16, ids, w, 8)[0]))


# ---- in a run

SMALL = (
  ('model.width', '32'),
  ('model.depth', '1'),
  ('data.length', '16'),
  ('batch_tokens', '128'),
  ('model.mixer', 'gqa(head_dim=8)'),
  ('model.embed', 'tied(multiple_of=8)'),
  ('objective', 'headless_cwt(block=32)'),
)


def made(*changes):
  return build.build(config.resolve(config.load('quickstart', [*SMALL, *changes])))


@functools.cache
def run():
  return made()


def batch():
  rng, segments = np.random.default_rng(0), np.ones((8, 17), np.int32)
  segments[::2, 9:] = 2
  segments[5, 3:] = 0
  tokens = rng.integers(0, 256, segments.shape).astype(np.int32)
  return dict(tokens=tokens, segments=segments, positions=_table.positions_of(segments))


def test_nothing_of_the_size_of_the_vocabulary_is_made():
  """The largest array of forward and backward with V of 50,000 is the table itself."""
  r = made(('model.vocab', '50000'))
  params = r.state_shapes.params
  f = lambda p, b: r.objective.loss(p, {}, b, jax.random.key(0)).sum
  text = jax.jit(jax.grad(f)).lower(params, r.batch_shapes()).as_text()
  for places in ('128x50000', '8x16x50000', '32x50000', '50000x128', '50000x32xf32>, tensor<50000'):
    assert f'tensor<{places}' not in text or places.startswith('50000x32'), places
  assert 'x50000' not in text, 'no axis but the first of the table has the size of the vocabulary'


def test_micro_batches_are_part_of_the_method_and_allowed():
  assert made(('micro_batches', '2')).config['micro_batches'] == 2


@functools.cache
def start():
  return jax.tree.map(np.asarray, run().init(jax.random.key(0)).params)


@_meshes.each
def test_the_number_of_devices_does_not_matter(axes):
  given = run(), start(), {}, batch()
  _table.trees_close(_meshes.slope(*given, axes), _meshes.slope(*given), 2e-5)


def test_inner_objectives_say_which_places():
  part = registry.make('objective', 'headless_cwt(inner=mlm())')
  assert part.fact('lookahead') == 0 and part.fact('causal') is False
  assert registry.make('objective', 'headless_cwt()').fact('lookahead') == 1


@pytest.mark.parametrize(
  'change, words',
  [
    (('objective', 'headless_cwt(block=0)'), 'block=0: a positive number of places'),
    (('objective', 'headless_cwt(inner=headless_cwt())'), 'an objective that says which places'),
    (('objective', 'headless_cwt(inner=None)'), 'an? objective is expected'),
    (('objective', 'headless_cwt(inner=clm(z_loss=0.1))'), 'z_loss would do nothing'),
    (('model.embed', 'untied()'), 'config.model.embed=untied.*which nothing would train'),
    (('model.embed', 'tied(bias=True)'), 'a bias would not be trained'),
    (('model.embed', 'factorized(size=8)'), 'would be multiplied out'),
    (('model.cap', '30.0'), 'config.model.cap=0'),
    (('optim', 'sophia_g()'), 'needs sampled labels, which objective .* does not give'),
  ],
)
def test_what_is_refused(change, words):
  with pytest.raises(ValueError, match=words):
    made(change)

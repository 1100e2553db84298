"""The contract of objectives: a uniform model gives log V; sums add over rows; weights count the
real targets; targets do not leak.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax import kinds
from lmjax import registry
from lmjax.nn import embedding
from lmjax.objectives import _common

ROWS = _table.SPECS['objective']
each = pytest.mark.parametrize('spec', ROWS)
T, V = 8, _table.VOCAB
CLM = [s for s in ROWS if _table.name(s) == 'clm']
LIKELY = [s for s in ROWS if _table.name(s) in ('clm', 'mlm')]  # they predict tokens
SEGMENTS = np.array(
  [[1, 1, 1, 2, 2, 2, 2, 2, 2], [1, 1, 1, 1, 0, 0, 0, 0, 0], [1, 2, 3, 3, 3, 3, 4, 4, 0], [0] * 9]
)


def fact(spec, key):
  return registry.make('objective', spec).fact(key)


def net(spec, **how):
  mixer = (
    'gqa(head_dim=8)' if fact(spec, 'causal') is not False else 'gqa(head_dim=8, causal=False)'
  )
  return dict(length=T, depth=1, blocks__block__mixer=mixer, **how)


def make(spec, **how):
  return registry.make(
    'objective',
    spec,
    model=_table.model(**net(spec, **how)),
    tokenizer=_table.Tokenizer(),
    sources=('a', 'b'),
    learning_rate=lambda step: 0.1,
  )()


def params(spec, **how):
  return _table.model_params(**net(spec, **how))['params']


def batch(spec, segments=SEGMENTS, seed=0):
  return _table.batch(np.asarray(segments)[:, : T + fact(spec, 'lookahead')], seed=seed)


@functools.cache
def compiled(spec, **how):
  objective = make(spec, **how)
  return jax.jit(lambda p, b, key, train: objective.loss(p, {}, b, key, train), static_argnums=3)


def loss(spec, p, b, seed=0, train=False, **how) -> kinds.Loss:
  return compiled(spec, **how)(p, b, jax.random.key(seed), train)


def fixed_masks(monkeypatch):
  """Masked objectives draw their masks by the shape of the batch; for additivity every third token
  is masked.
  """
  from lmjax.objectives import mlm

  def corrupt(self, tokens, segments, rng):
    chosen = (tokens % 3 == 0) & (segments > 0)
    return jnp.where(chosen, self.tokenizer.mask, tokens), chosen.astype(jnp.float32)

  monkeypatch.setattr(mlm.Mlm, 'corrupt', corrupt)


def test_no_part_is_missing():
  assert not _table.uncovered('objective')


@pytest.mark.parametrize(
  'spec, embed', [(s, 'tied(multiple_of=8)') for s in LIKELY] + [('clm()', 'tied()')]
)
def test_a_uniform_model_gives_log_v(spec, embed):
  zero = jax.tree.map(jnp.zeros_like, params(spec, embed=embed))
  out, a = loss(spec, zero, batch(spec), embed=embed), _table.arguments('objective', spec)
  assert float(out.weight) > 0
  nll, weight = out.metrics['nll']
  assert float(weight) == float(out.weight)
  assert float(nll / weight) == pytest.approx(math.log(V), rel=1e-6)
  assert float(out.sum / out.weight) == pytest.approx(
    math.log(V) + a.get('z_loss', 0) * math.log(V) ** 2, rel=1e-6
  )


@each
def test_initial_variables_carry_facts(spec):
  _table.check_facts(jax.eval_shape(make(spec).init, jax.random.key(0), batch(spec)))


@pytest.mark.parametrize('spec', [s for s in ROWS if fact(s, 'couples') == 'none'])
def test_the_loss_of_a_batch_is_the_sum_over_its_rows(spec, monkeypatch):
  """Rows have 8, 3, 5 and 0 targets, so that a mean anywhere would show."""
  fixed_masks(monkeypatch)
  p, whole, objective = params(spec), batch(spec), make(spec)

  def of(p, b):
    out = objective.loss(p, {}, b, jax.random.key(0), False)
    return out.sum, (out.weight, out.metrics, out.rows)

  run = jax.jit(
    jax.value_and_grad(of, has_aux=True) if spec == ROWS[0] else of
  )  # one gradient stands for all
  want = run(p, whole)
  rows = [run(p, jax.tree.map(lambda a, i=i: a[i : i + 1], whole)) for i in range(len(SEGMENTS))]
  part = lambda out: out[0][1] if spec == ROWS[0] else out[1]
  assert len({float(part(r)[0]) for r in rows}) > 2
  for i, r in enumerate(rows):  # rows stand alone
    _table.trees_close([x[i : i + 1] for x in part(want)[2]], list(part(r)[2]), 1e-5)
  sums = lambda out: (
    jax.tree.map(jnp.sum, out) if spec != ROWS[0] else (jax.tree.map(jnp.sum, out[0]), out[1])
  )
  _table.trees_close(jax.tree.map(lambda *a: sum(a), *map(sums, rows)), sums(want), 1e-5)


@each
def test_nothing_to_predict_weighs_nothing(spec):
  out = loss(spec, params(spec), batch(spec, np.zeros((2, T + 1), int)))
  assert float(out.sum) == 0 and float(out.weight) == 0
  assert all(float(s) == 0 and float(w) == 0 for s, w in out.metrics.values())


@pytest.mark.parametrize('spec', [ROWS[0], ROWS[-1]])
def test_evaluation_uses_no_dropout(spec):
  how, b = dict(dropout=0.5), batch(spec)
  if _table.name(spec) == 'clm':
    _table.same(
      loss(spec, params(spec), b, 0, **how).sum, loss(spec, params(spec), b, 1, **how).sum
    )
  noisy = [float(loss(spec, params(spec), b, 0, train=t, **how).sum) for t in (False, True)]
  assert noisy[0] != noisy[1]
  _table.same(
    loss(spec, params(spec), b, 0, train=True, **how).sum,
    loss(spec, params(spec), b, 0, train=True, **how).sum,
  )


@pytest.mark.parametrize('spec', [ROWS[0], LIKELY[-1]])
def test_losses_of_parts_are_weighed_like_tokens(spec):
  # reports loss/depth = depth; here one layer at depth 0 and one at depth 1
  ffn = 'test_architecture:Depth()'
  how = dict(net(spec), depth=2, blocks__block__ffn=ffn)
  model = _table.model(**how)
  objective = registry.make('objective', spec, model=model, tokenizer=_table.Tokenizer())()
  plain = _table.values(jax.eval_shape(objective.init, jax.random.key(0), batch(spec)))
  out = jax.jit(lambda b: objective.loss(plain['params'], {}, b, jax.random.key(0), False))(
    batch(spec)
  )
  part, weight = out.metrics['loss/ffn/depth']
  assert float(part / weight) == 1.0
  assert float(out.sum) == pytest.approx(float(out.metrics['nll'][0] + out.weight), rel=1e-6)
  assert 'ffn/depth' not in out.metrics and 'block/ffn/depth' in out.metrics


# ---- clm


def real_targets(segments):
  """By a loop: the places whose next token belongs to the same document."""
  out = np.zeros((len(segments), len(segments[0]) - 1))
  for b, row in enumerate(segments):
    for t in range(len(row) - 1):
      out[b, t] = row[t] != 0 and row[t + 1] == row[t]
  return out


@pytest.mark.parametrize('spec', CLM)
def test_clm_equals_float64_from_the_logits(spec):
  p, b, a = params(spec), batch(spec), _table.arguments('objective', spec)
  ctx = kinds.Ctx(b['positions'][:, :-1], b['segments'][:, :-1])
  z = np.asarray(
    embedding.logits(make(spec).model.apply({'params': p}, b['tokens'][:, :-1], ctx)), np.float64
  )
  w, target = real_targets(SEGMENTS), np.asarray(b['tokens'])[:, 1:]
  lse = np.log(np.sum(np.exp(z), -1))
  nll = lse - np.take_along_axis(z, target[..., None], -1)[..., 0]
  s = a['label_smoothing']
  want = np.sum(w * ((1 - s) * nll + s * np.mean(lse[..., None] - z, -1) + a['z_loss'] * lse**2))
  out = loss(spec, p, b)
  assert float(out.weight) == w.sum() == 8 - 1 + 3 + 0 + 3 + 1
  assert float(out.sum) == pytest.approx(want, rel=1e-5)
  assert float(out.metrics['nll'][0]) == pytest.approx(np.sum(w * nll), rel=1e-5)
  np.testing.assert_allclose(out.rows[0], np.sum(w * nll, -1), rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(out.rows[1], w.sum(-1))
  assert float(out.metrics['accuracy'][0]) == np.sum(w * (z.argmax(-1) == target))


def test_label_smoothing_ignores_rows_that_round_the_vocabulary_up():
  spec = 'clm(label_smoothing=0.2)'
  wide, b = dict(params(spec, embed='tied(multiple_of=8)')), batch(spec)
  table = wide['embed']['table']
  narrow = {**wide, 'embed': {'table': table[:V]}}
  assert float(loss(spec, wide, b, embed='tied(multiple_of=8)').sum) == pytest.approx(
    float(loss(spec, narrow, b).sum), rel=1e-5
  )


@pytest.mark.parametrize('spec', CLM[:1])
def test_clm_predicts_the_next_token_and_sees_none_later(spec):
  """Changing a token changes the losses of its own prediction and of later ones only; the last
  token is only a target.
  """
  p, b = params(spec), batch(spec, np.ones((1, T + 1), int))
  objective = make(spec)

  def per_token(tokens):
    return np.array([float(run(tokens, jnp.arange(T + 1) >= t)) for t in range(T)])

  @jax.jit
  def run(tokens, tail):  # the summed loss from place t on
    inputs = _common.inputs({**b, 'tokens': tokens}, 1)
    out, _ = _common.run(objective.model, p, {}, inputs, None, False)
    logp = jax.nn.log_softmax(embedding.logits(out))[0]
    return -jnp.sum(
      jnp.where(tail[:-1], jnp.take_along_axis(logp, tokens[0, 1:, None], -1)[:, 0], 0)
    )

  before = per_token(b['tokens'])
  assert float(loss(spec, p, b).sum) == pytest.approx(before[0], rel=1e-6)
  after = per_token(b['tokens'].at[0, 5].set((b['tokens'][0, 5] + 1) % V))
  alone = lambda x: x - np.append(x[1:], 0)
  changed = np.abs(alone(before) - alone(after)) > 1e-4
  np.testing.assert_array_equal(changed, np.arange(T) >= 4)


@pytest.mark.parametrize(
  'spec, word',
  [
    ('clm(z_loss=-1.0)', 'z_loss=-1.0'),
    ('clm(label_smoothing=1.0)', 'label_smoothing=1.0'),
    ('mlm(rate=0.0)', 'rate=0.0'),
    ('mlm(mask=0.9, random=0.2)', 'random=0.2'),
  ],
)
def test_arguments_that_make_no_sense_are_refused(spec, word):
  with pytest.raises(ValueError, match=word):
    registry.make('objective', spec)


# ---- mlm


def mlm(spec='mlm()', **how):
  return registry.make('objective', spec, model=None, tokenizer=_table.Tokenizer())()


def corrupted(n=40_000, spec='mlm()'):
  rng = np.random.default_rng(0)
  tokens = jnp.asarray(rng.integers(0, V, (4, n // 4)), jnp.int32)
  segments = jnp.asarray(rng.integers(0, 3, (4, n // 4)), jnp.int32)
  new, w = jax.jit(mlm(spec).corrupt)(tokens, segments, jax.random.key(1))
  return np.asarray(tokens), np.asarray(segments), np.asarray(new), np.asarray(w) > 0


def test_mlm_masks_the_declared_shares():
  tokens, segments, new, chosen = corrupted()
  usable = (segments > 0) & ~np.isin(tokens, (7, 8, 9, 10))
  assert not np.any(chosen & ~usable), 'special tokens and padding are never masked'
  np.testing.assert_array_equal(new[~chosen], tokens[~chosen])
  n = chosen.sum()
  assert abs(n / usable.sum() - 0.15) < 0.01
  masked = np.mean(new[chosen] == 10)
  stays = np.mean(new[chosen] == tokens[chosen])
  assert abs(masked - (0.8 + 0.1 / V)) < 0.02 and abs(stays - (0.1 + 0.1 / V)) < 0.02


def test_mlm_masks_anew_with_each_key_and_everywhere_alike():
  tokens = jnp.zeros((4000, T), jnp.int32)
  draws = [np.asarray(mlm().corrupt(tokens, tokens + 1, jax.random.key(i))[1]) for i in range(2)]
  assert abs(np.corrcoef(draws[0].ravel(), draws[1].ravel())[0, 1]) < 0.05
  np.testing.assert_allclose(draws[0].mean(0), 0.15, atol=0.03)


def test_mlm_hides_the_target():
  """Where a token is masked or replaced, the corrupted row must not depend on it; the choice must
  not depend on tokens either.
  """
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 6, (8, 64)), jnp.int32)
  one, w1 = mlm('mlm(rate=0.5, mask=0.7, random=0.3)').corrupt(
    tokens, tokens * 0 + 1, jax.random.key(0)
  )
  two, w2 = mlm('mlm(rate=0.5, mask=0.7, random=0.3)').corrupt(
    (tokens + 1) % 6, tokens * 0 + 1, jax.random.key(0)
  )
  np.testing.assert_array_equal(w1, w2)
  at = np.asarray(w1) > 0
  np.testing.assert_array_equal(np.asarray(one)[at], np.asarray(two)[at])


def test_mlm_weighs_the_masked_places_and_predicts_the_original():
  spec = 'mlm(rate=0.4)'
  p, b, objective = params(spec), batch(spec), make(spec)
  hide, _ = jax.random.split(jax.random.key(0))
  tokens, w = objective.corrupt(b['tokens'], b['segments'], hide)
  ctx = kinds.Ctx(b['positions'], b['segments'])
  z = np.asarray(embedding.logits(objective.model.apply({'params': p}, tokens, ctx)), np.float64)
  logp = z - np.log(np.sum(np.exp(z), -1, keepdims=True))
  nll = -np.take_along_axis(logp, np.asarray(b['tokens'])[..., None], -1)[..., 0]
  out = loss(spec, p, b)
  assert float(out.weight) == float(w.sum()) > 0
  assert float(out.sum) == pytest.approx(np.sum(nll * np.asarray(w)), rel=1e-5)


def test_mlm_needs_a_mask_token():
  class Bare(_table.Tokenizer):
    mask = None

  with pytest.raises(kinds.Unsupported, match='mask token'):
    registry.make('objective', 'mlm()', model=None, tokenizer=Bare())()

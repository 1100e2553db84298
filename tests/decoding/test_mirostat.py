"""Mirostat: figures worked out by hand, the two truncations, the feedback, and the target held."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _steps
from lmjax import generate
from lmjax import specs
from lmjax.decoding import _base
from lmjax.decoding import mirostat
from lmjax.interop import llama2c

LOG2 = np.log(2)


def zipf(s, n):
  p = np.arange(1, n + 1, dtype=np.float64) ** -s
  return p / p.sum()


@pytest.mark.parametrize('m', [2, 100, 3000])
@pytest.mark.parametrize('s', [0.8, 1.1, 1.3])
def test_the_slope_of_an_exact_zipf_law(s, m):
  logits = jnp.asarray(np.log(zipf(s, 5000)), jnp.float32)
  assert abs(float(mirostat.slope(logits[None, :m])[0]) - s) < 1e-3


def test_tokens_that_do_not_exist_do_not_bend_the_slope():
  logits = jnp.concatenate([jnp.log(jnp.asarray(zipf(1.1, 20))), jnp.full(30, -1e30)])
  assert abs(float(mirostat.slope(logits[None])[0]) - 1.1) < 1e-3


@pytest.mark.parametrize(
  's, mu, n, k',
  [
    (1.1, 6.0, 50_000, 8),  # 7.8759
    (1.3, 6.0, 50_000, 10),  # 10.0097
    (1.1, 3.0, 50_000, 1),  # 1.1893
    (1.1, 500.0, 50_000, 50_000),  # 2^500 is beyond float32
    (0.0, 2.0, 50, 1),
    (1.1, -40.0, 50, 1),
  ],
)
def test_how_many_tokens_are_kept(s, mu, n, k):
  assert int(mirostat.best_k(jnp.float32([s]), jnp.float32([mu]), jnp.int32([n]))[0]) == k


def test_the_limit_at_s_of_one():
  """(2^mu / ln N)^(1/s), and no jump beside it."""
  at = lambda s: int(mirostat.best_k(jnp.float32([s]), jnp.float32([12]), jnp.int32([50_000]))[0])
  assert at(1.0) == round(2**12 / np.log(50_000)) == 379
  assert abs(at(1.001) - 379) < 4 and abs(at(0.999) - 379) < 4


def test_one_update():
  rule = _base.rule('mirostat(eta=0.1, tau=3.0)')
  np.testing.assert_allclose(rule.update(jnp.float32([6.0]), jnp.float32([5.0])), [5.8], rtol=1e-6)


P = np.array([0.4, 0.3, 0.16, 0.1, 0.04])  # 1.32, 1.74, 2.64, 3.32, 4.64 bits


@pytest.mark.parametrize('mu, n', [(np.inf, 5), (3.0, 3), (2.0, 2), (1.32, 1), (0.1, 1), (-5.0, 1)])
def test_version_2_keeps_what_surprises_less(mu, n):
  """All of it for mu = inf, the best token alone for mu below its surprise."""
  for shift in (0.0, 7.0):  # logits need no normalization
    kept = _base.rule('mirostat()').kept(jnp.log(jnp.asarray(P))[None] + shift, jnp.float32([mu]))
    assert np.isfinite(kept[0]).tolist() == [True] * n + [False] * (5 - n)


def test_version_1_keeps_the_k_best():
  rule = _base.rule('mirostat(version=1)')
  p = zipf(1.1, 400)[np.random.default_rng(0).permutation(400)]
  for mu in (2.0, 6.0, 8.0):
    kept = np.isfinite(rule.kept(jnp.log(jnp.asarray(p))[None], jnp.float32([mu]))[0])
    eps, n = 0.1, 400
    k = max(1, round((eps * 2**mu / (1 - n**-eps)) ** (1 / 1.1)))
    assert kept.sum() == k and set(np.flatnonzero(kept)) == set(np.argsort(-p)[:k])


def step(spec, p, mu, n, seed=0):
  """(tokens, mu after) of n rows with the distribution p."""
  rule, fn = (
    _base.rule(spec),
    lambda cache, tokens: (jnp.tile(jnp.log(jnp.asarray(p)), (n, 1)), cache),
  )
  state = _base.State((0,), jnp.zeros(n, jnp.int32), jnp.full(n, mu, jnp.float32))
  state, tokens = jax.jit(lambda s, k: rule.advance((fn,), s, k))(
    state, jax.random.split(jax.random.key(seed), n)
  )
  return np.asarray(tokens), np.asarray(state.own)


@pytest.mark.slow
def test_tokens_are_drawn_from_what_is_kept_renormalised():
  tokens, _ = step('mirostat()', P, 3.0, 20_000)
  want = np.where(np.arange(5) < 3, P, 0)
  assert _steps.chi_square(np.bincount(tokens, minlength=5), want / want.sum()) < 13.8


@pytest.mark.parametrize('renormalised', [False, True])
def test_the_surprise_is_that_of_the_whole_distribution(renormalised):
  """In bits; under what was kept only where asked for."""
  tokens, mu = step(f'mirostat(tau=2.0, eta=0.5, renormalised={renormalised})', P, 3.0, 50)
  q = P / P[:3].sum() if renormalised else P
  np.testing.assert_allclose(mu, 3.0 - 0.5 * (-np.log(q[tokens]) / LOG2 - 2.0), rtol=1e-5)
  assert len(set(tokens)) > 1


def test_mu_starts_at_twice_the_target_and_is_carried():
  """Five steps of three rows, each mu by hand from the tokens that were drawn."""
  table = _steps.table(6, scale=2.5)
  model, rule = _steps.Table(table), _base.rule('mirostat(tau=1.0, eta=0.9)')
  start = _base.Start(jnp.int32([[1], [3], [5]]), jnp.int32(-1), 8)
  state = rule.init((model,), (model.empty(3),), start, None)
  assert state.own.tolist() == [2.0] * 3
  advance = jax.jit(lambda state, keys: rule.advance((model,), state, keys))
  ids, mu = [[6, 1], [6, 3], [6, 5]], np.full(3, 2.0)
  for t in range(5):
    state, tokens = advance(state, jax.random.split(jax.random.key(t), 3))
    bits = [-np.log2(_steps.softmax(table[row[-2], row[-1]])) for row in ids]
    for row, (token, bits_V) in enumerate(zip(tokens.tolist(), bits)):
      assert bits_V[token] <= max(mu[row], bits_V.min()) + 1e-5
      mu[row] -= 0.9 * (bits_V[token] - 1.0)
      ids[row].append(token)
    np.testing.assert_allclose(state.own, mu, atol=1e-4)
  assert len(set(mu.round(3))) == 3


@pytest.mark.slow
def test_a_row_alone_is_the_row_in_a_batch():
  model, prompts = _steps.Table(_steps.table(6)), [[1, 2], [3, 0], [5, 5, 2]]
  together = _steps.run('mirostat(tau=1.5)', [model], prompts, 12, seed=3).texts_BKT
  for i, prompt in enumerate(prompts):
    alone = _steps.run('mirostat(tau=1.5)', [model], [prompt], 12, seed=3).texts_BKT
    assert alone[0].tolist() == together[i].tolist()


@pytest.mark.slow
@pytest.mark.parametrize('version', [1, 2])
@pytest.mark.parametrize('tau', [2.3, 3.3])
def test_the_mean_surprise_is_the_target(version, tau):
  """20 rows of 400 tokens, after 100; the best tokens of the table have 1.9 bits, all 3.8."""
  table = _steps.table(64, scale=2.0)
  spec = f'mirostat(version={version}, tau={tau}, eta=0.3)'
  prompts = [[i, i + 1] for i in range(20)]
  texts = _steps.run(spec, [_steps.Table(table, 410)], prompts, 400).texts_BKT[:, 0]
  logp = np.log2(_steps.softmax(table))
  bits = -logp[texts[:, 98:-2], texts[:, 99:-1], texts[:, 100:]]
  assert abs(bits.mean() - tau) < 0.05, bits.mean()


@pytest.mark.parametrize(
  'spec, words',
  [
    ('mirostat(tau=0.0)', 'tau=0.0'),
    ('mirostat(tau=-1.0)', 'tau=-1.0'),
    ('mirostat(eta=0.0)', 'eta=0.0'),
    ('mirostat(version=3)', 'version=3'),
    ('mirostat(m=1)', 'm=1'),
    ('mirostat() | top_k(k=3)', 'joined'),
  ],
)
def test_wrong_arguments_are_refused(spec, words):
  with pytest.raises(ValueError, match=words) as e:
    _base.rule(spec)
  assert '\n' not in str(e.value)
  assert isinstance(e.value, specs.SpecError) or 'joined' in words


@pytest.mark.slow
@pytest.mark.parametrize('version', [1, 2])
def test_a_real_model_holds_its_target(test_data, version):
  """stories15M, whose own samples have 1.6 bits: four rows at less, after 40 tokens, scored anew by
  whole forwards.
  """
  resolved, variables = llama2c.load(str(test_data / 'checkpoints' / 'stories15M'))
  net, prompts = llama2c.model(resolved, 32_000), [[1, 9038], [1, 3118], [1, 365], [1, 450]]
  from lmjax import lm as lm_lib

  class Ids:
    bos, eos = 1, 2

  tau = 1.0
  new = generate.generate(
    net,
    variables,
    prompts,
    max_tokens=200,
    rule=f'mirostat(tau={tau}, version={version}, eta=0.5)',
  )
  scored = lm_lib.LM(net, variables, Ids(), length=256).loglikelihood_tokens(
    list(zip(prompts, new))
  )
  bits = [-logp[40:].mean() / LOG2 for logp, _ in scored]
  assert abs(np.mean(bits) - tau) < 0.15, bits

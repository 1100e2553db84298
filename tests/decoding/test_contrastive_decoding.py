"""Contrastive decoding: the score by hand, its limits, ties, the beam against all texts, caches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _steps
import _table
from lmjax import generate
from lmjax.decoding import _base
from lmjax.decoding import contrastive_decoding as cd

EXPERT = np.array([[0.5, 0.3, 0.15, 0.04, 0.01], [0.2, 0.2, 0.2, 0.2, 0.2]])
AMATEUR = np.array([[0.7, 0.1, 0.05, 0.001, 0.149], [0.4, 0.3, 0.1, 0.1, 0.1]])


def scores(spec, expert=EXPERT, amateur=AMATEUR, shift=0.0):
  """Scores for given probabilities; logits need no normalization."""
  likely = jax.nn.log_softmax(jnp.log(jnp.asarray(expert)) + shift, axis=-1)
  return np.asarray(_base.rule(spec).score(likely, jnp.log(jnp.asarray(amateur)) - 3 * shift))


@pytest.mark.parametrize('alpha, t', [(0.1, 1.0), (0.1, 0.5), (0.5, 1.0), (0.05, 2.0)])
def test_the_score_is_expert_less_tempered_amateur_where_the_expert_is_plausible(alpha, t):
  """Log-probabilities, not logits: sums over a text may be compared. The amateur's fourth token is
  the least likely of all, and stays out where the expert finds it implausible.
  """
  got = scores(f'contrastive_decoding(alpha={alpha}, amateur_temperature={t})', shift=5.0)
  tempered = AMATEUR ** (1 / t) / (AMATEUR ** (1 / t)).sum(axis=-1, keepdims=True)
  head = EXPERT >= alpha * EXPERT.max(axis=-1, keepdims=True)
  assert head.sum() < head.size
  np.testing.assert_array_equal(np.isfinite(got), head)
  np.testing.assert_allclose(got[head], (np.log(EXPERT) - np.log(tempered))[head], atol=1e-5)


PROMPTS = [[1, 2], [3], [5, 5, 2], [0, 4]]
MODELS = [_steps.Table(_steps.table(6, seed)) for seed in (0, 1)]
GREEDY = 'contrastive_decoding(beam=1)'


def plain(prompts=PROMPTS, n=12):
  return _steps.run('greedy()', MODELS[:1], prompts, n).texts_BKT


@pytest.mark.slow
@pytest.mark.parametrize(
  'how', ['alpha=1.0, beam=1', 'alpha=1.0, beam=3', 'amateur_temperature=1e+20, beam=1']
)
def test_limits_are_the_experts_greedy_text(how):
  """One plausible token at alpha = 1; an amateur without an opinion."""
  found = _steps.run(f'contrastive_decoding({how})', MODELS, PROMPTS, 12)
  np.testing.assert_array_equal(found.texts_BKT, plain())


@pytest.mark.slow
def test_between_equal_scores_the_expert_decides():
  """Two equal models give 0 to all that is plausible."""
  found = _steps.run(GREEDY, MODELS[:1] * 2, PROMPTS, 12)
  np.testing.assert_array_equal(found.texts_BKT, plain())
  assert cd.ranked(jnp.float32([[1, 2, 2, 2]]), jnp.float32([[9, 1, 3, 2]]), 3)[1].tolist() == [
    [2, 3, 1]
  ]


def test_greedy_takes_the_best_score():
  found = _steps.run(GREEDY, MODELS, PROMPTS, 12).texts_BKT[:, 0]
  for prompt, text in zip(PROMPTS, found):
    ids = [6, *prompt]
    for token in text:
      p = [_steps.softmax(np.asarray(m.table, np.float64)[ids[-2], ids[-1]]) for m in MODELS]
      score = np.where(p[0] >= 0.1 * p[0].max(), np.log(p[0] / p[1]), -np.inf)
      assert token == np.argmax(score)
      ids.append(int(token))
  assert (found != plain()[:, 0]).any()


@pytest.mark.slow
def test_an_amateur_of_little_context_sees_the_last_tokens_alone():
  """With one token the table's row of no token before it holds."""
  found = _steps.run('contrastive_decoding(beam=1, context=1)', MODELS, PROMPTS, 12)
  first = np.broadcast_to(np.asarray(MODELS[1].table)[6], MODELS[1].table.shape)
  want = _steps.run(GREEDY, [MODELS[0], _steps.Table(first)], PROMPTS, 12)
  np.testing.assert_array_equal(found.texts_BKT, want.texts_BKT)
  two = _steps.run('contrastive_decoding(beam=3, context=2)', MODELS, PROMPTS, 12)
  whole = _steps.run('contrastive_decoding(beam=3)', MODELS, PROMPTS, 12)
  np.testing.assert_array_equal(two.texts_BKT, whole.texts_BKT)  # the table looks back by two
  assert (found.texts_BKT != _steps.run(GREEDY, MODELS, PROMPTS, 12).texts_BKT).any()


def best_text(tables, prompt, n, eos):
  """Of all texts of n tokens, or ended by eos before, the one of the best mean score."""
  vocab, found = tables[0].shape[-1], {}
  for text in itertools.product(range(vocab), repeat=n):
    text = text[: text.index(eos) + 1] if eos in text else text
    ids, total = [vocab, *prompt], 0.0
    for token in text:
      p = [_steps.softmax(t[ids[-2], ids[-1]]) for t in tables]
      plausible = p[0][token] >= 0.1 * p[0].max()
      total += np.log(p[0][token] / p[1][token]) if plausible else -np.inf
      ids.append(token)
    found[text] = total / len(text)
  return list(max(found, key=found.get))


@pytest.mark.slow
@pytest.mark.parametrize('eos', [-1, 1])
def test_a_wide_beam_finds_the_best_of_all_texts(eos):
  """4^4 texts, a beam of 64 that never drops one; ended texts compete by their mean."""
  tables = [_steps.table(4, seed, scale=1.0) for seed in (5, 6)]
  prompts = [[a, b] for a in range(4) for b in range(4)]
  models = [_steps.Table(t) for t in tables]
  found = _steps.run('contrastive_decoding(beam=64)', models, prompts, 4, eos=eos)
  assert found.texts_BKT.shape == (16, 1, 4) and found.scores_BK is None
  for text, prompt in zip(found.texts_BKT[:, 0], prompts):
    assert text[text >= 0].tolist() == best_text(tables, prompt, 4, eos)
  greedy = _steps.run(GREEDY, models, prompts, 4, eos=eos).texts_BKT
  assert 3 < (found.texts_BKT != greedy).any(axis=(1, 2)).sum()


def narrow_beam(tables, prompt, n, k, eos):
  """The best text of a beam of k as a plain program; ended texts are kept by their mean score."""
  live, ended = [(0.0, [])], []
  for _ in range(n):
    grown = []
    for score, text in live:
      ids = [len(tables[0]) - 1, *prompt, *text]
      p = [_steps.softmax(t[ids[-2], ids[-1]]) for t in tables]
      head = np.flatnonzero(p[0] >= 0.1 * p[0].max())
      grown += [(score + np.log(p[0][v] / p[1][v]), [*text, int(v)]) for v in head]
    best = sorted(grown, reverse=True)[: 2 * k]
    ended += [b for b in best if b[1][-1] == eos]
    ended = sorted(ended, key=lambda b: -b[0] / len(b[1]))[:k]
    live = [b for b in best if b[1][-1] != eos][:k]
  return max(live + ended, key=lambda b: b[0] / len(b[1]))[1]


@pytest.mark.slow
@pytest.mark.parametrize('k', [2, 3])
def test_a_narrow_beam_is_that_of_a_plain_program(k):
  tables = [_steps.table(5, seed, scale=1.0) for seed in (5, 6)]
  prompts = [[a, b] for a in range(5) for b in range(5)]
  models = [_steps.Table(t) for t in tables]
  found = _steps.run(f'contrastive_decoding(beam={k})', models, prompts, 8, eos=1).texts_BKT[:, 0]
  want = [narrow_beam(tables, p, 8, k, 1) for p in prompts]
  assert [t[t >= 0].tolist() for t in found] == want
  assert len({len(t) for t in want}) > 2


def test_a_beam_whose_every_text_ended_is_done():
  """Behind token 0 only eos is plausible."""
  table = np.zeros((4, 3, 3))
  table[..., 1] = 50.0
  models = [_steps.Table(table), _steps.Table(_steps.table(3))]
  found = _steps.run('contrastive_decoding(beam=2)', models, [[0, 0]], 8, eos=1)
  assert found.texts_BKT[0, 0].tolist() == [1] + [-1] * 7 and found.steps_B.tolist() == [1]


@pytest.mark.slow
def test_a_rule_draws_from_the_scores():
  """20,000 draws from softmax(score / 0.5): 4 degrees of freedom stay below 18.5 in all but one
  of a thousand tries.
  """
  n = 20_000
  models = [_steps.Table(_steps.independent(x[0])) for x in (EXPERT, AMATEUR)]
  spec = 'contrastive_decoding(beam=1, rule=temperature(t=0.5))'
  keys = jax.random.split(jax.random.key(1), n)
  found = _steps.run(spec, models, [[0, 1]] * n, 1, keys=keys)
  want = np.where(EXPERT[0] >= 0.05, (EXPERT[0] / AMATEUR[0]) ** 2, 0)
  counts = np.bincount(found.texts_BKT.ravel(), minlength=5)
  assert _steps.chi_square(counts, want / want.sum()) < 18.5


@pytest.mark.slow
@pytest.mark.parametrize('how', ['beam=3', 'beam=1, rule=temperature()'])
def test_a_row_alone_is_the_row_in_a_batch(how):
  spec = f'contrastive_decoding({how})'
  together = _steps.run(spec, MODELS, PROMPTS[:3], 12, seed=3).texts_BKT
  for i, prompt in enumerate(PROMPTS[:3]):
    alone = _steps.run(spec, MODELS, [prompt], 12, seed=3).texts_BKT
    assert alone[0].tolist() == together[i].tolist()


def instance(depth, seed=0):
  how = dict(length=64, depth=depth)
  return _table.model(**how), jax.tree.map(lambda a: 2 * a, _table.model_params(seed=seed, **how))


@pytest.mark.slow
def test_a_beam_with_caches_is_the_beam_of_whole_forwards():
  """Caches follow their texts: the beam again, in float64, with a forward of every text."""
  expert, amateur = instance(2), instance(1, seed=7)
  prompts, k, n = [[1, 2, 3], [4], [6, 6]], 3, 6
  found = generate.generate(
    *expert, prompts, max_tokens=n, rule=f'contrastive_decoding(beam={k})', others=[amateur]
  )
  assert len({t for text in found for t in text.tolist()}) > 3

  @jax.jit
  def forward(tokens):
    ctx = _table.ctx(k, 16)
    out = [net.apply(v, tokens, ctx) for net, v in (expert, amateur)]
    return [o.hidden_BTD @ o.unembed_VD.T for o in out]

  def last(texts):
    tokens = np.zeros((k, 16), np.int32)
    for i, text in enumerate(texts):
      tokens[i, : len(text)] = text
    rows = range(len(texts)), [len(t) - 1 for t in texts]
    return [np.log(_steps.softmax(np.asarray(z, np.float64)[rows])) for z in forward(tokens)]

  for prompt, text in zip(prompts, found):
    beam = [(0.0, list(prompt))]
    for _ in range(n):
      (e, a), grown = last([t for _, t in beam]), []
      for (score, ids), e_V, a_V in zip(beam, e, a):
        head = np.flatnonzero(e_V >= e_V.max() + np.log(0.1))
        grown += [(score + e_V[v] - a_V[v], [*ids, int(v)]) for v in head]
      beam = sorted(grown, reverse=True)[:k]
    assert text.tolist() == beam[0][1][len(prompt) :]


@pytest.mark.parametrize(
  'spec, words',
  [
    ('contrastive_decoding(alpha=0.0)', 'alpha=0.0'),
    ('contrastive_decoding(alpha=1.5)', 'alpha=1.5'),
    ('contrastive_decoding(amateur_temperature=0.0)', 'amateur_temperature=0.0'),
    ('contrastive_decoding(beam=0)', 'beam=0'),
    ('contrastive_decoding(context=-1)', 'context=-1'),
    ('contrastive_decoding(context=1001)', 'context=1001: 0 for all, or from 1 to 1000'),
    ('contrastive_decoding(rule=temperature())', 'beam=5 must be 1'),
    ('contrastive_decoding(beam=1, rule=mirostat())', 'filters'),
    ('contrastive_decoding() | top_k(k=3)', 'joined'),
  ],
)
def test_wrong_arguments_are_refused(spec, words):
  with pytest.raises(ValueError, match=words) as e:
    _base.rule(spec)
  assert '\n' not in str(e.value)


def test_one_model_is_refused():
  net, variables = instance(1)
  with pytest.raises(ValueError, match='takes 2 models, 1 was given'):
    generate.generate(net, variables, [[1]], max_tokens=2, rule='contrastive_decoding()')

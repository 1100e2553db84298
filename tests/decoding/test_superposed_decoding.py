"""Superposed decoding: mixtures, the whole rule against a plain program, and what is refused."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _counts
import _steps
import _table
from lmjax import decode_loop
from lmjax import generate
from lmjax import registry
from lmjax.decoding import _base
from lmjax.decoding import _ngrams
from lmjax.decoding import superposed_decoding as sd


@pytest.fixture(scope='module')
def path(tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp('ngrams') / 'n.npz'
  _ngrams.save(path, _ngrams.build(_counts.IDS, _counts.OFFSETS), 'abc')
  return path


# ---- mixtures


def test_weights_are_the_softmax_of_the_scores():
  got = np.asarray(
    sd.mixture(jnp.float32([[0.0, -jnp.inf, -1.0], [-jnp.inf] * 3, [-900, -901, 5]]))
  )
  np.testing.assert_allclose(got.sum(axis=-1), 1, rtol=1e-6)
  np.testing.assert_allclose(got[0], [1 / (1 + np.exp(-1)), 0, 1 / (1 + np.e)], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('embed', ['untied(scale=3.0)', 'stable(scale=2.0)'])
def test_the_input_is_the_mixture_of_embeddings(embed):
  """Before positions are added and before the first layer; equal tokens give that token's input."""
  how = dict(length=64, depth=1, embed=embed, position='learned()')
  net, variables = _table.model(**how), _table.model_params(**how)
  kind = registry.make('cache', 'full()')

  @jax.jit
  def both(tokens_RK, weights_RK, plain_R):
    model = decode_loop.Steps(net, variables)
    prompt = jnp.tile(jnp.int32([1, 2, 3]), (2, 1))
    slot = decode_loop.Slot(net.init_cache(kind, 2, 16), jnp.zeros(2, jnp.int32))
    _, slot = model.many(slot, prompt)
    mixed, (_, positions, _) = model.mixed(slot, tokens_RK, weights_RK)
    return mixed, model(slot, plain_R)[0], positions

  weights = jnp.float32([[0.3, 0.7], [1.0, 0.0]])
  mixed, plain, positions = both(jnp.int32([[5, 5], [4, 8]]), weights, jnp.int32([5, 4]))
  _table.close(mixed, plain)
  assert positions.tolist() == [4, 4]
  mixed, plain, _ = both(jnp.int32([[5, 6], [4, 8]]), weights[::-1] * 0 + 0.5, jnp.int32([5, 4]))
  assert np.abs(np.asarray(mixed - plain)).max() > 1e-2

  want = jax.jit(lambda: _by_hand(net, variables, jnp.int32([5, 6])))()
  _table.close(mixed[0], want)


def _by_hand(net, variables, tokens):
  """The last logits where row `V` of a larger table is the mean of two tokens' inputs."""
  table = variables['params']['embed']['table']
  if 'norm' in variables['params']['embed']:
    embed = net.model.embed(parent=None)
    x, *_ = embed.apply({'params': variables['params']['embed']}, tokens[None], _table.ctx(1, 2))
    seen, *_ = embed.apply(
      {'params': variables['params']['embed']}, jnp.int32([[1, 2, 3]]), _table.ctx(1, 3)
    )
  else:
    x, seen = 3.0 * table[tokens][None], 3.0 * table[jnp.int32([1, 2, 3])][None]
  inputs = jnp.concatenate([seen, x.mean(axis=1, keepdims=True)], axis=1)

  def whole(call, args, kwargs, context):
    if type(context.module) is not net.model.embed.obj:
      return call(*args, **kwargs)
    return inputs, *call(*args, **kwargs)[1:]

  import flax.linen as nn

  with nn.intercept_methods(whole):
    out = net.apply(variables, jnp.zeros((1, 4), jnp.int32), _table.ctx(1, 4))
  return (out.hidden_BTD @ out.unembed_VD.T)[0, -1]


# ---- the rule


def logits_of(table, before, x):
  return np.einsum('a,b,abv->v', before, x, table)


def reference(
  table,
  prompt,
  n,
  *,
  k,
  alpha,
  t,
  candidates,
  counts=None,
  eos=-1,
  reset=0,
  penalty=200.0,
  weights=_counts.WEIGHTS,
):
  """The rule as a plain program over dictionaries: [(text, score / length)], the best first."""
  vocab, one = table.shape[-1], np.eye(table.shape[-1])
  inputs = [np.append(one[i], 0) for i in prompt[:-1]] or []
  nothing = np.append(np.zeros(vocab), 1)
  live, ended = [(0.0, [])], []
  for step in range(n):
    scores = np.array([s for s, _ in live])
    gamma = _steps.softmax(scores)
    x = sum(g * one[(prompt + text)[-1]] for g, (_, text) in zip(gamma, live))
    z = logits_of(table, inputs[-1] if inputs else nothing, x)
    inputs.append(np.append(x, 0))
    top = sorted(range(vocab), key=lambda v: -z[v])[:candidates]
    logp = dict(zip(top, np.log(_steps.softmax(z[top] / t))))
    grown = []
    for score, text in live:
      seen = {v: _counts.expected(counts, prompt + text, v, weights) if counts else 0 for v in top}
      for v in top:
        if not alpha:
          f = logp[v]
        elif not any(seen.values()):
          f = (1 - alpha) * logp[v] - penalty
        else:
          f = (1 - alpha) * logp[v] + alpha * np.log(seen[v]) if seen[v] else -np.inf
        grown.append((score + f, [*text, v]))
    best = sorted((g for g in grown if g[0] > -np.inf), key=lambda g: -g[0])[: 2 * k]
    ended = sorted([*ended, *(b for b in best if b[1][-1] == eos)], key=lambda g: -g[0])[:k]
    live = [b for b in best if b[1][-1] != eos][:k]
    if not live:
      break
    if reset and step and step % reset == 0:  # step + 1 tokens, the last not yet read
      inputs[-reset:] = [np.append(one[i], 0) for i in live[0][1][-reset - 1 : -1]]
  return sorted(((text, s / len(text)) for s, text in live + ended), key=lambda g: -g[1])[:k]


CASES = {
  'beam': dict(k=3, alpha=0.0, t=1.0, candidates=4),
  'n-grams': dict(k=3, alpha=0.54, t=0.5, candidates=5),
  'eos': dict(k=3, alpha=0.54, t=1.0, candidates=5, eos=0),
  'reset': dict(k=3, alpha=0.3, t=2.0, candidates=6, reset=3),
  'rare': dict(k=2, alpha=0.5, t=1.0, candidates=3, penalty=3.0, weights=(0.0, 0.0, 0.5, 1.0)),
}


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES)
def test_drafts_are_those_of_the_plain_program(case, path):
  how = CASES[case]
  tables = _ngrams.load(path, 6) if how['alpha'] else None
  extra = f', ngrams="{path}"' if tables else ''
  spec = (
    f'superposed_decoding(k={how["k"]}, alpha={how["alpha"]}, temperature={how["t"]}, '
    f'candidates={how["candidates"]}, reset={how.get("reset", 0)}, '
    f'penalty={how.get("penalty", 200.0)}, weights={how.get("weights", _counts.WEIGHTS)}{extra})'
  )
  table = _steps.table(6, 5)
  prompts = [[1, 2], [3], [5, 5, 2, 0, 0, 4]]
  eos = how.get('eos', -1)
  found = _steps.run(spec, [_steps.Table(table)], prompts, 8, arrays=tables, eos=eos)
  lengths = set()
  for i, prompt in enumerate(prompts):
    want = reference(table, prompt, 8, counts=_counts.counted(6), **how)
    texts = [t[t >= 0].tolist() for t in found.texts_BKT[i]]
    assert texts[: len(want)] == [t for t, _ in want]
    np.testing.assert_allclose(found.scores_BK[i][: len(want)], [s for _, s in want], rtol=2e-4)
    assert len({tuple(t) for t in texts}) == len(texts)
    lengths |= set(map(len, texts))
  assert (len(lengths) > 1) == (case == 'eos')


@pytest.mark.slow
def test_one_draft_without_n_grams_is_greedy():
  model, prompts = _steps.Table(_steps.table(6)), [[1, 2], [3], [5, 5, 2]]
  found = _steps.run('superposed_decoding(k=1, alpha=0.0)', [model], prompts, 12)
  np.testing.assert_array_equal(
    found.texts_BKT, _steps.run('greedy()', [model], prompts, 12).texts_BKT
  )


@pytest.mark.slow
def test_a_row_alone_is_the_row_in_a_batch():
  model, prompts = _steps.Table(_steps.table(6)), [[1, 2], [3], [5, 5, 2]]
  spec = 'superposed_decoding(alpha=0.0, temperature=1.0, reset=2)'
  together = _steps.run(spec, [model], prompts, 9, eos=4)
  for i, prompt in enumerate(prompts):
    alone = _steps.run(spec, [model], [prompt], 9, eos=4)
    assert alone.texts_BKT[0].tolist() == together.texts_BKT[i].tolist()


@pytest.mark.slow
def test_drafts_of_a_real_model(path):
  """k texts with falling scores, alone as in a batch; greedy for k = 1 and alpha = 0."""
  net = _table.model(length=64)
  variables = jax.tree.map(lambda a: 2 * a, _table.model_params(length=64))
  ask = lambda prompts, rule: generate.generate(net, variables, prompts, max_tokens=10, rule=rule)
  prompts, rule = [[1, 2, 3], [4], [6, 6]], f'superposed_decoding(ngrams="{path}", temperature=1.0)'
  found = ask(prompts, rule)
  for drafts in found:
    assert isinstance(drafts, generate.Drafts)
    assert len({tuple(t) for t in drafts.texts}) == 3 and {len(t) for t in drafts.texts} == {10}
    assert drafts.perplexities == sorted(drafts.perplexities) and drafts.perplexities[0] >= 1
  alone = ask(prompts[1:2], rule)[0]
  assert [t.tolist() for t in alone.texts] == [t.tolist() for t in found[1].texts]
  greedy = ask(prompts, 'greedy()')
  for drafts, text in zip(ask(prompts, 'superposed_decoding(k=1, alpha=0.0)'), greedy):
    assert drafts.texts[0].tolist() == text.tolist()


@pytest.mark.parametrize(
  'spec, words',
  [
    ('superposed_decoding()', 'ngrams="PATH"'),
    ('superposed_decoding(k=0, alpha=0.0)', 'k=0'),
    ('superposed_decoding(alpha=1.0, ngrams="x")', 'alpha=1.0'),
    ('superposed_decoding(alpha=-0.1)', 'alpha=-0.1'),
    ('superposed_decoding(temperature=0.0, alpha=0.0)', 'temperature=0.0'),
    ('superposed_decoding(candidates=2, alpha=0.0)', 'candidates=2'),
    ('superposed_decoding(weights=(0, 0), alpha=0.0)', 'weights='),
    ('superposed_decoding(weights=(1, "a"), alpha=0.0)', 'weights='),
    ('superposed_decoding(penalty=-1.0, alpha=0.0)', 'penalty=-1.0'),
    ('superposed_decoding(reset=-1, alpha=0.0)', 'reset=-1'),
    ('superposed_decoding(reset=1001, alpha=0.0)', 'reset=1001: 0 for never, or from 1 to 1000'),
    ('superposed_decoding(alpha=0.0) | greedy()', 'joined'),
  ],
)
def test_wrong_arguments_are_refused(spec, words):
  with pytest.raises(ValueError, match=words) as e:
    _base.rule(spec)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('reset, refused', [(0, False), (2, True)])
def test_a_recurrent_model_is_refused_only_where_the_rule_goes_back(reset, refused):
  net = _table.model(
    length=64, blocks__block__mixer='deltanet(head_dim=8)', position='none()', depth=1
  )
  part = registry.make('decoding', f'superposed_decoding(alpha=0.0, reset={reset})')
  assert part.fact('rewinds') is refused
  if refused:
    with pytest.raises(ValueError, match='cannot go back'):
      generate.generate(net, {}, [[1]], max_tokens=3, rule=str(part))

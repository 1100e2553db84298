"""Speculative decoding: the worked figures, the target's distribution exactly, the target's greedy
text exactly, ragged rows, ends inside of an accepted run, and what is refused.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _steps
import _table
from lmjax import generate
from lmjax import kinds
from lmjax.decoding import _base
from lmjax.decoding import speculative_decoding as sd
from lmjax.interop import llama2c

P, Q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.5, 0.3])


def keys(n, seed=0):
  return jax.random.split(jax.random.key(seed), n)


@pytest.mark.parametrize('token, rate', [(0, 1.0), (1, 0.6), (2, 2 / 3)])
def test_a_token_is_accepted_at_the_rate_p_over_q(token, rate):
  n = 20_000
  p, q = jnp.tile(jnp.float32(P), (n, 2, 1)), jnp.tile(jnp.float32(Q), (n, 1, 1))
  got = sd.accept(p, q, jnp.full((n, 1), token), keys(n, token))
  assert abs(float(got.mean()) - rate) <= 4 * (rate * (1 - rate) / n) ** 0.5


def test_what_is_left_after_a_rejection():
  p, q = jnp.float32(P)[None, None].repeat(3, 1), jnp.float32(Q)[None, None].repeat(2, 1)
  rest = np.asarray(sd.left(p, q, jnp.int32([0]))[0])
  np.testing.assert_allclose(rest / rest.sum(), [1, 0, 0])
  np.testing.assert_allclose(rest.sum(), 1 - np.minimum(P, Q).sum(), rtol=1e-6)  # beta = 0.7
  np.testing.assert_allclose(sd.left(p, q, jnp.int32([2]))[0], P, rtol=1e-6)  # all accepted
  np.testing.assert_allclose(sd.left(p, p[:, :2], jnp.int32([1]))[0], P, rtol=1e-6)  # nothing left


def test_an_acceptance_stops_at_the_first_rejection():
  p = jnp.float32([[[1, 0], [0, 1], [1, 0], [1, 0]]])
  assert sd.accept(p, jnp.full((1, 3, 2), 0.5), jnp.int32([[0, 0, 0]]), keys(1)).tolist() == [1]


@pytest.mark.parametrize('alpha, gamma, tokens', [(0.7, 4, 2.7731), (1.0, 4, 5.0), (0.0, 3, 1.0)])
def test_the_formula(alpha, gamma, tokens):
  assert abs(sd.expected_tokens(alpha, gamma) - tokens) < 1e-4


@pytest.mark.slow
def test_tokens_of_a_pass_are_those_of_the_formula():
  """Where what came before does not matter, every position accepts with 0.7 = sum min(p, q)."""
  models = [_steps.Table(_steps.independent(x)) for x in (P, Q)]
  found = _steps.run(
    'speculative_decoding(gamma=4)', models, [[0, 1]] * 2000, 30, keys=keys(2000, 5)
  )
  assert (found.texts_BKT >= 0).all()
  # the last step of a row is cut off at 30 tokens, which takes at most 4 of them
  assert 30 / found.steps_B.mean() < 2.7731 < 34 / found.steps_B.mean()
  counts = np.bincount(found.texts_BKT[:, 0].ravel(), minlength=3)
  assert _steps.chi_square(counts, P) < 13.8


def joint(p, length, before):
  """{text: probability} by enumeration; p[a, b] is the distribution behind the tokens a, b."""
  out = {}
  for text in itertools.product(range(p.shape[-1]), repeat=length):
    ids, weight = list(before), 1.0
    for t in text:
      weight *= p[ids[-2], ids[-1], t]
      ids.append(t)
    out[text] = weight
  return out


@pytest.mark.slow
@pytest.mark.parametrize(
  'spec',
  [
    'speculative_decoding(gamma=1)',
    'speculative_decoding(gamma=3)',
    'speculative_decoding(gamma=2, rule=top_k(k=3) | temperature(t=0.7))',
  ],
)
def test_the_joint_distribution_is_the_targets(spec):
  """20,000 texts of three tokens of 4 against all 64: 63 degrees of freedom stay below 103.4 in all
  but one of a thousand tries. Both models see what `rule` leaves.
  """
  n, tables = 20_000, [_steps.table(4, seed, scale=1.2) for seed in (0, 1)]
  found = _steps.run(spec, map(_steps.Table, tables), [[2, 1]] * n, 3, keys=keys(n, 7))
  p = tables[0]
  if 'top_k' in spec:
    p = np.where(p >= np.sort(p, axis=-1)[..., -3:-2], p / 0.7, -np.inf)
  want = joint(_steps.softmax(p), 3, [2, 1])
  counts = np.zeros(64)
  np.add.at(counts, found.texts_BKT[:, 0] @ [16, 4, 1], 1)
  assert _steps.chi_square(counts, np.array(list(want.values()))) < 103.4
  assert found.steps_B.min() < found.steps_B.max()  # rows went on by different numbers of tokens


@pytest.mark.slow
def test_the_draft_itself_is_always_accepted():
  """One pass makes gamma + 1 tokens, also behind a prompt of one token."""
  model = _steps.Table(_steps.table(5))
  found = _steps.run('speculative_decoding(gamma=3)', [model] * 2, [[1, 2, 3], [4]], 20)
  assert found.steps_B.tolist() == [5, 5]


@pytest.mark.slow
@pytest.mark.parametrize('gamma', [1, 4])
@pytest.mark.parametrize('seed', [1, 2])
def test_greedy_text_is_the_targets(gamma, seed):
  """Two drafts of which the second agrees with the target more often; in as many passes as a plain
  program takes, so that the draft too goes on from what was accepted.
  """
  table = _steps.table(6)
  noise = _steps.table(6, seed) * (1.0 if seed == 1 else 0.4)
  prompts = [[1, 2], [3], [5, 5, 2], [0, 4]]
  target, draft = _steps.Table(table), _steps.Table(table + noise)
  plain = _steps.run('greedy()', [target], prompts, 25)
  spec = f'speculative_decoding(gamma={gamma}, rule=greedy())'
  found = _steps.run(spec, [target, draft], prompts, 25)
  np.testing.assert_array_equal(found.texts_BKT, plain.texts_BKT)
  assert found.steps_B.tolist() == [passes(table, table + noise, p, gamma, 25) for p in prompts]
  assert found.steps_B.min() < 25


def passes(target, draft, prompt, gamma, n):
  """Passes of the target for n greedy tokens."""
  ids, done, steps = [len(target) - 1, *prompt], 0, 0
  best = lambda table, ids: int(np.argmax(table[ids[-2], ids[-1]]))
  while done < n:
    ahead, accepted = list(ids), 0
    for _ in range(gamma):
      ahead.append(best(draft, ahead))
    while accepted < gamma and ahead[len(ids)] == best(target, ids):
      ids.append(ahead[len(ids)])
      accepted += 1
    ids.append(best(target, ids))
    done, steps = done + accepted + 1, steps + 1
  return steps


@pytest.mark.slow
def test_eos_inside_an_accepted_run_ends_the_text():
  model, prompts = _steps.Table(_steps.table(6)), [[1, 2], [3], [5, 5, 2], [0, 4]]
  spec = 'speculative_decoding(gamma=4, rule=greedy())'
  plain = _steps.run(spec, [model] * 2, prompts, 20).texts_BKT[:, 0]
  eos = int(plain[0, 1])  # not the last of a run of five
  ended = _steps.run(spec, [model] * 2, prompts, 20, eos=eos).texts_BKT[:, 0]
  for a, b in zip(plain.tolist(), ended.tolist()):
    stop = a.index(eos) + 1 if eos in a else 20
    assert b == a[:stop] + [-1] * (20 - stop)


@pytest.mark.slow
def test_a_row_alone_is_the_row_in_a_batch():
  models = [_steps.Table(_steps.table(6, seed)) for seed in (0, 1)]
  prompts, spec = [[1, 2], [3], [5, 5, 2]], 'speculative_decoding(gamma=3)'
  together = _steps.run(spec, models, prompts, 20, seed=3)
  for i, prompt in enumerate(prompts):
    alone = _steps.run(spec, models, [prompt], 20, seed=3)
    assert alone.texts_BKT[0].tolist() == together.texts_BKT[i].tolist()
    assert alone.steps_B[0] == together.steps_B[i]


# ---- with caches

PROMPTS = [[1, 2, 3], [4], list(range(11)) + [3, 1, 4, 1, 5, 9], [6, 6]]
VARIANTS = {
  'full': (dict(position='learned()'), 'full()'),
  'ring': (dict(blocks__block__mixer='gqa(head_dim=8, window=4)'), 'window(spare=3)'),
}


def instance(depth=2, **how):
  net = _table.model(length=64, depth=depth, **how)
  return net, jax.tree.map(lambda a: 2 * a, _table.model_params(length=64, depth=depth, **how))


@pytest.mark.slow
@pytest.mark.parametrize('variant', VARIANTS)
def test_greedy_text_of_real_models_is_the_targets(variant):
  """A draft with half of the layers; at 48 tokens the longest prompt uses every position, and eos
  ends rows within runs.
  """
  how, cache = VARIANTS[variant]
  target, draft = instance(**how), instance(depth=1, **how)
  ask = lambda **k: generate.generate(*target, PROMPTS, max_tokens=48, cache=cache, **k)
  spec = 'speculative_decoding(gamma=3, rule=greedy())'
  plain = [g.tolist() for g in ask()]
  assert [g.tolist() for g in ask(rule=spec, others=[draft])] == plain
  eos = plain[2][3]
  want = [g.tolist() for g in ask(eos=eos)]
  assert [g.tolist() for g in ask(rule=spec, others=[draft], eos=eos)] == want
  few = generate.generate(*target, PROMPTS, max_tokens=2, cache=cache, rule=spec, others=[draft])
  assert [g.tolist() for g in few] == [p[:2] for p in plain]


@pytest.mark.slow
def test_sampled_rows_of_real_models_do_not_depend_on_the_batch():
  target, draft = instance(), instance(depth=1)
  rule = 'speculative_decoding(gamma=2, rule=temperature(t=3.0))'
  ask = lambda p: generate.generate(*target, p, max_tokens=20, rule=rule, others=[draft], seed=3)
  together = [g.tolist() for g in ask(PROMPTS)]
  assert [g.tolist() for g in ask(PROMPTS[::-1])][::-1] == together
  assert ask(PROMPTS[:1])[0].tolist() == together[0]


SPEC = 'speculative_decoding(gamma=3)'
REFUSED = {
  'one model': (dict(), dict(others=[]), 'takes 2 models, 1 was given'),
  'three': (
    dict(),
    dict(others=[(_table.model(length=64), {})] * 2),
    'takes 2 models, 3 were given',
  ),
  'recurrent': (
    dict(blocks__block__mixer='deltanet(head_dim=8)', position='none()'),
    dict(),
    'blocks.block.mixer=deltanet.*cannot go back',
  ),
  'no cache': (
    dict(blocks__block__mixer='gqa(head_dim=8, causal=False)'),
    dict(),
    'token by token',
  ),
  'ring': (
    dict(blocks__block__mixer='gqa(head_dim=8, window=4)'),
    dict(cache='window(spare=2)'),
    'spare=2.*needs spare=3',
  ),
  'vocabulary': (dict(vocab=13), dict(), '13 and 11 tokens'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_cannot_be_done_is_refused_before_anything_is_compiled(case):
  how, given, words = REFUSED[case]
  net = _table.model(length=64, **how)
  before = generate.prefill._cache_size()
  given = dict(others=[(_table.model(length=64, **(how | dict(vocab=_table.VOCAB))), {})]) | given
  with pytest.raises(ValueError, match=words) as e:
    generate.generate(net, {}, [[1, 2]], max_tokens=4, rule=SPEC, **given)
  assert '\n' not in str(e.value) and generate.prefill._cache_size() == before


@pytest.mark.parametrize(
  'spec, words',
  [
    ('speculative_decoding(gamma=0)', 'gamma=0'),
    ('speculative_decoding(gamma=-1)', 'gamma=-1'),
    ('speculative_decoding(rule=None)', 'rule'),
    ('speculative_decoding(rule=mirostat())', 'filters'),
    ('speculative_decoding(rule=speculative_decoding())', 'filters'),
    ('speculative_decoding(rule=top_k(k=0))', 'k=0'),
    ('speculative_decoding() | top_k(k=3)', 'joined'),
  ],
)
def test_wrong_arguments_are_refused(spec, words):
  with pytest.raises(ValueError, match=words) as e:
    _base.rule(spec)
  assert '\n' not in str(e.value)


def test_a_plain_rule_refuses_a_second_model():
  net, variables = instance()
  with pytest.raises(kinds.Unsupported, match='greedy takes 1 model, 2 were given'):
    generate.generate(net, variables, [[1]], max_tokens=2, others=[(net, variables)])


@pytest.mark.slow
def test_a_trained_model_writes_its_greedy_text(test_data):
  """stories15M, the draft its own first layers: what plain decoding writes, in fewer passes."""
  resolved, variables = llama2c.load(str(test_data / 'checkpoints' / 'stories15M'))
  net = llama2c.model(resolved, 32_000)
  draft = first_layers(resolved, variables, 5)
  prompts = [[1, 9038, 2501], [1, 3118, 2462, 29892], [1, 365]]
  plain = generate.generate(net, variables, prompts, max_tokens=40, eos=2)
  texts, _, steps = generate.decoded(
    [(net, variables), draft],
    prompts,
    max_tokens=40,
    eos=2,
    rule='speculative_decoding(gamma=3, rule=greedy())',
  )
  for text, want, n in zip(texts[:, 0], plain, steps):
    assert text[text >= 0].tolist()[: len(want)] == want.tolist()
    assert n < len(want)


def first_layers(resolved, variables, n):
  """The model of the first n layers: parameters are stacked over them."""
  params = dict(variables['params'])
  cut = dict(resolved, model=dict(resolved['model'], depth=n))
  (name,) = [k for k in params if k.startswith('segment_')]
  params[name] = jax.tree.map(lambda a: a[:n], params[name])
  return llama2c.model(cut, 32_000), dict(variables, params=params)

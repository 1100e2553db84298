"""The contract of decoding rules: the distribution is exactly the declared one, greedy is the
limit, a row draws alone as in a batch.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _rows
from lmjax import kinds
from lmjax import registry
from lmjax import specs
from lmjax.decoding import _base

VOCAB = 7
NEVER = -1e30  # the logit of rows that round the vocabulary up
ROWS = (
  'greedy()',
  'temperature()',
  'temperature(t=0.6)',
  'temperature(t=3.0)',
  'top_k()',
  'top_k(k=1)',
  'top_k(k=3)',
  'top_p()',
  'top_p(p=0.5)',
  'top_p(p=1.0)',
  'min_p()',
  'min_p(p=0.4)',
  'min_p(p=0.0)',
  'min_p(p=1.0)',
  *_rows.specs('decoding'),
)
KEPT = _rows.values('decoding', 'kept')
RULES = {  # more than filters, as (spec, models, rewinds); their tests are in tests/decoding
  'mirostat': ('mirostat()', 1, False),
  'contrastive_decoding': ('contrastive_decoding()', 2, False),
  'speculative_decoding': ('speculative_decoding(rule=top_k(k=3) | temperature())', 2, True),
  'superposed_decoding': ('superposed_decoding(alpha=0.0)', 1, False),
}
CHAINS = (
  'top_k(k=4) | temperature(t=0.7)',
  'temperature(t=2.5) | top_p(p=0.6)',
  'top_p(p=0.6) | temperature(t=2.5)',
  'min_p(p=0.1) | top_k(k=3) | temperature(t=1.5) | top_p(p=0.9)',
)
LOGITS = np.array(
  [
    [2.0, 0.5, 1.0, -1.0, NEVER, 0.9, -3.0],
    [0.0] * 6 + [NEVER],
    [5.0, 5.0, -2.0, 1.0, 0.0, NEVER, NEVER],
    [-8.0, -9.0, -7.5, -7.0, -7.2, -30.0, NEVER],
  ]
)


def softmax(z):
  e = np.exp(z - z.max())
  return e / e.sum()


def reference(spec, z):
  """One row in float64, written from the papers: probabilities over the vocabulary."""
  order = sorted(range(len(z)), key=lambda v: (-z[v], v))  # the smaller id first among equals
  call = specs.call(spec)
  args = dict(registry.make('decoding', call).args)
  p = softmax(z)
  if call.name == 'greedy':
    kept = order[:1]
  elif call.name == 'temperature':
    return softmax(z / args['t'])
  elif call.name == 'top_k':
    kept = order[: args['k']]
  elif call.name == 'top_p':
    kept = []
    while len(kept) < len(z) and (args['p'] == 1 or p[kept].sum() < args['p'] - 1e-9):
      kept.append(order[len(kept)])
  elif call.name == 'min_p':
    kept = [v for v in order if p[v] >= args['p'] * p.max() * (1 - 1e-9)]
  elif call.name in KEPT:
    kept = KEPT[call.name](p, args)
  else:
    raise AssertionError(f'{spec}: write its reference')
  out = np.zeros(len(z))
  out[kept] = p[kept]
  return out / out.sum()


def chained_reference(chain, z):
  for call in specs.chain(chain).values():
    with np.errstate(divide='ignore'):
      z = np.log(reference(str(call), z))
  return softmax(z)


def step_fns(logits_BV):
  """A model of fixed logits; its cache counts the steps."""
  return (lambda cache, tokens_B: (logits_BV, cache + 1),)


@functools.cache
def compiled(spec):
  rule = _base.rule(spec)
  return jax.jit(lambda logits_BV, first, keys: rule.advance(step_fns(logits_BV), first, keys))


def advance(spec, logits_BV, keys):
  first = _base.State((jnp.zeros((), jnp.int32),), jnp.zeros(len(logits_BV), jnp.int32))
  return compiled(spec)(jnp.asarray(logits_BV, jnp.float32), first, keys)


def test_no_part_is_missing():
  assert {specs.call(r).name for r in ROWS} | set(RULES) == _rows.names('decoding')


@pytest.mark.parametrize('name', registry.names('decoding'))
def test_facts_and_kind_of_rule(name):
  """A spec written out builds the same rule; filters alone can be joined; one model by default."""
  spec, models, rewinds = RULES.get(name, (f'{name}()', 1, False))
  part = registry.make('decoding', spec)
  assert (part.fact('models'), part.fact('rewinds')) == (models, rewinds)
  assert str(registry.make('decoding', str(part))) == str(part)
  rule = _base.rule(str(part))
  assert _base.is_filter(rule) == (name not in RULES)
  assert (rule.ahead > 0) == rewinds and rule.tail >= 1


@pytest.mark.parametrize('spec', ROWS + CHAINS)
def test_the_distribution_is_the_declared_one(spec):
  found = np.asarray(
    jax.nn.softmax(_base.rule(spec).filter(jnp.asarray(LOGITS, jnp.float32)), axis=-1)
  )
  for row, z in zip(found, LOGITS):
    np.testing.assert_allclose(row, chained_reference(spec, z), atol=2e-6)
    assert ((row > 0) <= (chained_reference(spec, z) > 0)).all()


@pytest.mark.parametrize(
  'spec', ['temperature(t=3.0)', 'top_k(k=3)', 'top_p(p=0.5)', 'min_p(p=0.4)', CHAINS[0]]
)
def test_tokens_are_drawn_from_it(spec):
  """20,000 draws against the reference by chi-square: 6 degrees of freedom stay below 22.5 in all
  but one of a thousand tries.
  """
  n, z = 20_000, LOGITS[0]
  state, tokens = advance(spec, np.tile(z, (n, 1)), jax.random.split(jax.random.key(3), n))
  assert state.tokens_B is not None and int(state.caches[0]) == 1 and tokens.dtype == jnp.int32
  np.testing.assert_array_equal(state.tokens_B, tokens)
  counts, p = np.bincount(np.asarray(tokens), minlength=VOCAB), chained_reference(spec, z)
  assert counts[p == 0].sum() == 0
  want = n * p[p > 0]
  assert np.sum((counts[p > 0] - want) ** 2 / want) < 22.5


@pytest.mark.parametrize(
  'spec',
  [
    'greedy()',
    'temperature(t=1e-06)',
    'temperature(t=1e-38)',
    'top_k(k=1)',
    'top_p(p=1e-06)',
    'min_p(p=1.0)',
  ],
)
def test_the_greedy_limit(spec):
  clear = LOGITS[[0, 3]]
  keys = jax.random.split(jax.random.key(0), 2)
  np.testing.assert_array_equal(advance(spec, clear, keys)[1], clear.argmax(axis=-1))


def test_greedy_takes_the_first_of_equals():
  for seed in range(20):
    tokens = advance('greedy()', LOGITS[[1, 2]], jax.random.split(jax.random.key(seed), 2))[1]
    assert tokens.tolist() == [0, 0]


@pytest.mark.parametrize('spec', ROWS + CHAINS)
def test_a_row_alone_is_the_row_in_a_batch(spec):
  rng = np.random.default_rng(1)
  logits = rng.normal(size=(16, VOCAB)) * 2
  keys = jax.random.split(jax.random.key(5), 16)
  together = np.asarray(advance(spec, logits, keys)[1])
  alone = [int(advance(spec, logits[i : i + 1], keys[i : i + 1])[1][0]) for i in (0, 3, 15)]
  assert alone == together[[0, 3, 15]].tolist()


def test_order_in_a_chain_matters():
  first, second = (_base.rule(c).filter(jnp.asarray(LOGITS[:1], jnp.float32)) for c in CHAINS[1:3])
  assert (
    np.isfinite(first).sum() > np.isfinite(second).sum()
  )  # the nucleus of the flattened distribution is larger


def test_the_crossing_token_stays():
  z = jnp.log(jnp.asarray([[0.5, 0.25, 0.125, 0.125]]))
  sizes = [
    int(np.isfinite(_base.rule(f'top_p(p={p})').filter(z)).sum()) for p in (0.4, 0.6, 0.8, 0.9, 1.0)
  ]
  assert sizes == [1, 2, 3, 4, 4]


@pytest.mark.parametrize(
  'spec',
  [
    'temperature(t=0.0)',
    'temperature(t=-1.0)',
    'temperature(t=1e999)',
    'top_k(k=0)',
    'top_k(k=1.5)',
    'top_p(p=0.0)',
    'top_p(p=1.1)',
    'min_p(p=-0.1)',
    'min_p(p=1.01)',
    'top_q(p=0.9)',
    'top_p(q=0.9)',
    'greedy(k=1)',
    'top_k(k=3) | ',
  ],
)
def test_wrong_arguments_are_refused(spec):
  with pytest.raises(specs.SpecError) as e:
    _base.rule(spec)
  assert '\n' not in str(e.value)


class Contrast:
  """A rule that needs two models, hence is more than a filter."""

  def filter(self, logits_BV):
    return logits_BV

  def advance(self, step_fns, state, rng):
    raise NotImplementedError


def test_what_is_no_filter_cannot_be_chained():
  with pytest.raises(kinds.Unsupported, match='joined'):
    _base.rule(f'{__name__}:Contrast() | temperature()')


def test_two_models_are_refused():
  with pytest.raises(kinds.Unsupported, match='2 were given'):
    _base.rule('greedy()').advance(step_fns(LOGITS) * 2, _base.State((0, 0), None), None)

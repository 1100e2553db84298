"""The contract of init parts: measured spread equals the paper's formula; muP's factors, and a
coordinate check of what they are for.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import _table
from lmjax import registry
from lmjax import train
from lmjax.models import model as model_lib
from lmjax.nn import embedding
from lmjax.parallel.facts import Fact
from lmjax.parallel import facts as facts_lib

ROWS = _table.SPECS['init']
each = pytest.mark.parametrize('spec', ROWS)
N, WIDTH = 8, 64  # depth and width
SHAPES = {
  'hidden': (Fact(('embed', 'mlp'), ('embed',), 'hidden'), (64, 256), 64),
  'heads': (Fact(('embed', 'heads', 'head_dim'), ('embed',), 'hidden'), (64, 8, 16), 64),
  'keys': (Fact(('embed', 'kv_heads', 'head_dim'), ('embed',), 'hidden'), (64, 8, 16), 64),
  'residual': (Fact(('mlp', 'embed'), ('mlp',), 'residual'), (256, 64), 256),
  'residual of heads': (
    Fact(('heads', 'head_dim', 'embed'), ('heads', 'head_dim'), 'residual'),
    (8, 16, 64),
    128,
  ),
  'stacked': (Fact(('layers', 'embed', 'mlp'), ('embed',), 'hidden'), (4, 64, 64), 64),
  'embed': (Fact(('vocab', 'embed'), ('vocab',), 'embed'), (300, 64), 300),
  'position': (Fact(('position', 'embed'), ('position',), 'position'), (300, 64), 300),
  'unembed': (Fact(('vocab', 'embed'), ('embed',), 'unembed'), (300, 64), 64),
}


def gpt2(role, fan_in, a):
  return a['sigma'] / math.sqrt(2 * N) if role == 'residual' else a['sigma']


def fan_in(role, fan_in, a):
  if role in ('embed', 'position'):
    return a['embed']
  down = math.sqrt(2 * N) if role == 'residual' and a['scale_residual'] else 1
  return math.sqrt(a['gain'] / fan_in) / down


def mup(role, fan_in, a):
  m = WIDTH / a['base_width']
  return a['sigma'] / {'hidden': math.sqrt(m), 'residual': math.sqrt(2 * N * m)}.get(role, 1.0)


def palm(role, fan_in, a):
  return 1.0 if role in ('embed', 'position') else 1 / math.sqrt(fan_in)


def t5(role, fan_in, a):
  return {'embed': 1.0, 'position': 1 / math.sqrt(WIDTH)}.get(role, 1 / math.sqrt(fan_in))


DECLARED = dict(gpt2=gpt2, fan_in=fan_in, mup=mup, palm=palm, t5=t5)


def part(spec, width=WIDTH):
  return registry.make('init', spec, depth=N, width=width)()


def test_no_part_is_missing():
  assert not _table.uncovered('init')
  assert set(DECLARED) == set(registry.names('init'))


@each
@pytest.mark.parametrize('shape', SHAPES)
def test_measured_spread_is_the_declared_one(spec, shape):
  fact, size, fan = SHAPES[shape]
  values = np.asarray(part(spec).initializer(fact, size)(jax.random.key(3), size, jnp.float32))
  want = DECLARED[_table.name(spec)](fact.role, fan, _table.arguments('init', spec))
  if shape == 'heads' and _table.name(spec) == 't5':
    want /= math.sqrt(16)
  assert values.shape == size and values.dtype == np.float32
  assert abs(values.std() / want - 1) < 0.03 and abs(values.mean()) < 0.04 * want


@each
def test_norms_start_at_one_and_biases_at_zero(spec):
  for role, value in (('norm', 1.0), ('bias', 0.0)):
    fact = Fact(('embed',), (), role)
    np.testing.assert_array_equal(
      part(spec).initializer(fact, (5,))(jax.random.key(0), (5,), jnp.float32), value
    )


@each
def test_different_keys_give_different_values(spec):
  fact, size, _ = SHAPES['hidden']
  f = part(spec).initializer(fact, size)
  a, b = (np.asarray(f(jax.random.key(i), size, jnp.float32)) for i in range(2))
  assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.05


@each
def test_factors_are_one_unless_the_parameterization_says_otherwise(spec):
  p, a = part(spec), _table.arguments('init', spec)
  m = WIDTH / a['base_width'] if _table.name(spec) == 'mup' else 1
  for shape, (fact, size, _) in SHAPES.items():
    assert p.lr(fact, size) == pytest.approx(
      1 / m if fact.role in ('hidden', 'residual') else 1.0
    ), shape
  assert (
    p.lr(Fact((None,), (), 'norm'), (WIDTH,)) == 1
    and p.lr(Fact(('mlp',), (), 'bias'), (WIDTH,)) == 1
  )
  scaled = _table.name(spec) == 'palm' or a.get('scale_logits')
  scale = 1 / math.sqrt(WIDTH) if scaled else 1 / m
  assert p.logit_scale() == pytest.approx(scale)
  for k in (16, 64):
    want = math.sqrt(a['base_head_dim']) / k if _table.name(spec) == 'mup' else 1 / math.sqrt(k)
    want = 1.0 if _table.name(spec) == 't5' else want
    assert p.attention_scale(k) == pytest.approx(want)


def test_mup_at_its_base_is_gpt2():
  base = part('mup(base_width=64, base_head_dim=16)')
  plain = part('gpt2()')
  for fact, size, _ in SHAPES.values():
    assert base.std(fact, size) == pytest.approx(plain.std(fact, size)) and base.lr(fact, size) == 1
  assert base.logit_scale() == 1 and base.attention_scale(16) == 1 / 4


@pytest.mark.parametrize(
  'spec',
  [
    'gpt2(sigma=0.0)',
    'fan_in(gain=-1.0)',
    'fan_in(embed=0.0)',
    'mup(base_width=0)',
    'mup(sigma=0.0)',
  ],
)
def test_arguments_that_make_no_sense_are_refused(spec):
  with pytest.raises(ValueError, match='positive'):
    registry.make('init', spec)


def moved(init, width, embed, steps=3):
  """Root-mean-square change of (hidden, logits) after some Adam steps at one learning rate, as
  `train.make_step` makes them.
  """
  model = model_lib.resolve(
    _table.settings(width=width, depth=2, init=init, embed=embed), _table.VOCAB, 8
  )
  net = registry.make('architecture', 'transformer()', model=model)()
  objective = registry.make('objective', 'clm()', model=net, tokenizer=_table.Tokenizer())()
  batch = _table.batch(np.ones((8, 9), int))
  boxed = jax.eval_shape(objective.init, jax.random.key(0), batch)
  facts, shapes = facts_lib.facts(boxed)['params'], facts_lib.unbox(boxed)['params']
  is_fact = lambda x: isinstance(x, Fact)
  rng = np.random.default_rng(0)

  def first(
    f, s
  ):  # the initializers' own numbers are tested above; drawing them here would compile each shape
    mean = 1.0 if f.role == 'norm' else 0.0
    std = 0.0 if f.role in ('norm', 'bias') else model.scheme.init.std(f, s.shape)
    return jnp.asarray(mean + std * rng.normal(size=s.shape), jnp.float32)

  params = jax.tree.map(first, facts, shapes, is_leaf=is_fact)
  factors = jax.tree.map(
    lambda f, s: model.scheme.init.lr(f, s.shape), facts, shapes, is_leaf=is_fact
  )
  tx = optax.with_extra_args_support(optax.scale_by_adam())
  step = train.make_step(objective, tx, lambda s: 1.0, peak_lr=1e-4, lr_factors=factors)

  def look(params):
    out = net.apply({'params': params}, batch['tokens'][:, :-1], _table.ctx(8, 8))
    return out.hidden_BTD, embedding.logits(out)

  @jax.jit
  def change(params):
    state = jax.lax.fori_loop(
      0,
      steps,
      lambda _, s: step(s, batch, jax.random.key(0))[0],
      train.init_state({'params': params}, tx),
    )
    return [jnp.sqrt(jnp.mean((a - b) ** 2)) for a, b in zip(look(state.params), look(params))]

  return [float(x) for x in change(params)]


@pytest.mark.parametrize('embed', [pytest.param('tied()', marks=pytest.mark.slow), 'untied()'])
def test_coordinate_check(embed):
  """One learning rate moves logits equally at all widths under muP; under the standard
  parameterization wide models move more.
  """
  widths = (32, 256)
  mup = np.array([moved('mup(base_width=32, base_head_dim=8)', w, embed) for w in widths])
  assert np.all(mup > 1e-2)
  assert np.all(mup[-1] / mup[0] < 1.3) and np.all(mup[-1] / mup[0] > 0.7), mup
  if embed == 'tied()':
    plain = np.array([moved('gpt2()', w, embed) for w in widths])
    assert np.all(plain[-1] / plain[0] > 4), plain

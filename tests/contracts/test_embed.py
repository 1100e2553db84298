"""The contract of embeddings: tied = untied with equal matrices; rows that round the vocabulary up
are never predicted; no idle logits.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax import registry
from lmjax.nn import embedding

ROWS = _table.SPECS['embed']
each = pytest.mark.parametrize('spec', ROWS)
V, T, B = _table.VOCAB, _table.STEPS, _table.BATCH
PADDED = [s for s in ROWS if _table.arguments('embed', s)['multiple_of'] > 1]


@functools.cache
def instance(spec, dtype=jnp.float32):
  module = registry.make('embed', spec, vocab=V, width=8, dtype=dtype, length=T)(parent=None)
  boxed = _table.abstract(module, jnp.zeros((B, T), jnp.int32), _table.ctx())
  return module, boxed, _table.values(boxed)


def tokens():
  return _table.batch(np.ones((B, T), int))['tokens']


def outputs(params, cap=None, **how):
  net = _table.model(embed=params['spec'], depth=1, **({'cap': cap} if cap else {}), **how)
  numbers = {}  # scale and cap stay Python numbers, which do not pass through jit

  def run(p):
    out = net.apply({'params': p}, tokens(), _table.ctx())
    numbers.update(scale=out.scale, cap=out.cap)
    return out._replace(scale=None, cap=None)

  return jax.jit(run)(params['params'])._replace(**numbers)


def test_no_part_is_missing():
  assert not _table.uncovered('embed')


@each
def test_rows_are_looked_up_and_scaled(spec):
  module, _, variables = instance(spec)
  x, unembed, _ = module.apply(variables, tokens(), _table.ctx())
  table, a = np.asarray(variables['params']['table']), _table.arguments('embed', spec)
  rows = table[np.asarray(tokens())]
  if 'size' in a:
    want, table = narrow(module, variables['params'], a['scale'] * rows)
    np.testing.assert_allclose(x, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(unembed, table, rtol=1e-5, atol=1e-5)
  else:
    if 'norm' in a:  # looked up first
      norm = {'params': variables['params']['norm']}
      rows = a['norm'](parent=None).apply(norm, jnp.asarray(rows), _table.ctx())
    np.testing.assert_allclose(x, a['scale'] * rows, rtol=1e-5, atol=1e-6)
    assert np.array_equal(unembed, table) == registry.make('embed', spec).fact('tied')
  rows = -(-V // a['multiple_of']) * a['multiple_of']
  assert unembed.shape == (rows, 8)


def narrow(module, params, x):
  """(x, table) of the model's width, from vectors of the table's own: positions, norm, P."""
  for name in ('position', 'norm'):
    part = getattr(module, name)
    if part is not None:
      own = {'params': params[name]} if name in params else {}
      x = part(parent=None).apply(own, jnp.asarray(x, jnp.float32), _table.ctx())
  leads = np.asarray(params['project'], np.float64)
  return np.asarray(x, np.float64) @ leads, np.asarray(params['table'], np.float64) @ leads


@pytest.mark.parametrize('spec', [s for s in ROWS if registry.make('embed', s).fact('size')])
def test_vectors_of_the_size_of_the_table_are_there_for_other_networks(spec):
  part, (module, _, variables) = registry.make('embed', spec), instance(spec)
  x, table, bias = module.apply(variables, tokens(), _table.ctx(), whole=False)
  assert x.shape == (B, T, part.fact('size'))
  np.testing.assert_array_equal(table, variables['params']['table'])
  wide, _, again = module.apply(variables, tokens(), _table.ctx())
  np.testing.assert_allclose(wide, x @ variables['params']['project'], rtol=1e-5, atol=1e-5)
  assert (bias is None) == (again is None)


@each
def test_x_has_the_dtype_of_the_model(spec):
  module, _, variables = instance(spec, jnp.bfloat16)
  assert module.apply(variables, tokens(), _table.ctx())[0].dtype == jnp.bfloat16


@each
def test_facts_say_which_axis_is_contracted(spec):
  roles = {l.fact.role: l.fact for l in _table.check_facts(instance(spec)[1])}
  assert roles['embed'].inputs == ('vocab',)
  assert ('unembed' in roles) != registry.make('embed', spec).fact('tied')
  if 'unembed' in roles:
    assert roles['unembed'].inputs == ('embed',)


def net_params(spec, **how):
  return {
    'spec': spec,
    'params': jax.tree.map(
      lambda a: a, dict(_table.model_params(embed=spec, depth=1, **how)['params'])
    ),
  }


@pytest.mark.parametrize('extra', ['', 'multiple_of=8', 'scale=3.0'])
def test_tied_equals_untied_with_equal_matrices(extra):
  tied, untied = net_params(f'tied({extra})'), net_params(f'untied({extra})')
  table = tied['params']['embed']['table']
  untied['params'] = {**tied['params'], 'embed': {'table': table, 'unembed': table}}
  run = jax.jit(
    lambda params, spec: embedding.logits(outputs({'spec': spec, 'params': params})),
    static_argnums=1,
  )
  _table.close(run(untied['params'], untied['spec']), run(tied['params'], tied['spec']), 1e-6)


@pytest.mark.parametrize('spec, cap', [*((s, 5.0) for s in PADDED), (PADDED[0], None)])
def test_rows_that_round_the_vocabulary_up_are_never_predicted(spec, cap):
  p = net_params(spec)
  table = 'unembed' if 'unembed' in p['params']['embed'] else 'table'
  loud = p['params']['embed'][table].at[V:].set(100.0)
  p['params']['embed'] = {**p['params']['embed'], table: loud}

  def loss(e):
    z = embedding.logits(outputs({**p, 'params': {**p['params'], 'embed': e}}, cap=cap))
    return jnp.mean(jax.nn.log_softmax(z)[..., 0]), z

  (_, z), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(p['params']['embed'])
  assert z.shape == (B, T, 16) and z.dtype == jnp.float32
  chance = np.asarray(jax.nn.softmax(z))
  assert np.all(chance[..., V:] == 0) and np.all(chance[..., :V] > 0)
  grad = np.asarray(grad[table])
  assert np.all(grad[V:] == 0) and np.all(np.any(grad[:V] != 0, axis=-1))


@each
def test_logits_are_a_pure_function_of_the_outputs(spec):
  p = net_params(spec)
  out = outputs(p, cap=2.0)
  z = np.asarray(out.hidden_BTD, np.float64) @ np.asarray(out.unembed_VD, np.float64).T
  want = 2.0 * np.tanh(z * out.scale / 2.0) + (
    0 if out.bias_V is None else np.asarray(out.bias_V, np.float64)
  )
  np.testing.assert_allclose(np.asarray(embedding.logits(out))[..., :V], want[..., :V], atol=1e-5)


def test_the_logit_scale_comes_from_the_init_part():
  p = net_params('tied()')
  plain, mup = outputs(p), outputs(p, init='mup(base_width=8)')
  assert (plain.scale, mup.scale) == (1.0, 8 / _table.WIDTH)
  half = embedding.logits(plain._replace(scale=0.5))
  _table.close(half, 0.5 * embedding.logits(plain), 1e-6)


def sizes(jaxpr):
  """Shapes of all results inside a jaxpr."""
  for eqn in jaxpr.eqns:
    yield from (v.aval.shape for v in eqn.outvars if hasattr(v.aval, 'shape'))
    for sub in _inner(eqn.params):
      yield from sizes(sub)


def _inner(params):
  for value in jax.tree.leaves(params, is_leaf=lambda v: hasattr(v, 'eqns') or hasattr(v, 'jaxpr')):
    if hasattr(value, 'jaxpr'):
      yield value.jaxpr
    elif hasattr(value, 'eqns'):
      yield value


@each
def test_logits_are_never_built_where_only_hidden_states_are_used(spec):
  p, rows = net_params(spec), -(-V // _table.arguments('embed', spec)['multiple_of'])
  rows = rows * _table.arguments('embed', spec)['multiple_of']

  def built(use):
    jaxpr = jax.make_jaxpr(jax.grad(lambda q: use(outputs({**p, 'params': q}))))(p['params'])
    return any(rows in s and np.prod(s) == B * T * rows for s in sizes(jaxpr.jaxpr))

  assert built(lambda out: jnp.sum(embedding.logits(out)))
  assert not built(lambda out: jnp.sum(out.hidden_BTD))


@pytest.mark.parametrize(
  'spec',
  [
    'tied(multiple_of=0)',
    'untied(multiple_of=-8)',
    'stable(multiple_of=0)',
    'factorized(multiple_of=0)',
  ],
)
def test_refusals(spec):
  with pytest.raises(ValueError, match='multiple_of'):
    registry.make('embed', spec)

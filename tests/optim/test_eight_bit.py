"""8-bit states: the two maps, blocks, what is exempt, and what bytes do to Adam."""

import functools
import math
import re

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import registry
from lmjax.optim import _blocks
from lmjax.parallel.facts import Fact

MATRIX = Fact(('embed', 'mlp'), ('embed',))
STACKED = Fact(('embed', 'layers', 'mlp'), ('embed',))
TABLE = Fact(('vocab', 'embed'), ('vocab',), 'embed')


def make(spec: str, **facts):
  return registry.make('optim', spec, facts=facts)()


@functools.partial(jax.jit, static_argnames=('fact', 'block'))
def both_ways(x, fact=MATRIX, block=2048):
  """(codes, scales, the decoded array)."""
  blocks = _blocks.Blocks(fact, x.shape, block)
  scales = blocks.scales(x)
  codes = _blocks.encode(x, blocks.spread(scales))
  return codes, scales, _blocks.decode(codes, blocks.spread(scales))


# ------------------------------------------------------- the maps


def test_the_maps_are_those_of_the_paper():
  signed, unsigned = _blocks.dynamic_map(True), _blocks.dynamic_map(False)
  assert len(set(signed)) == len(set(unsigned)) == 256
  assert [np.sum(signed > 0), np.sum(signed < 0), np.sum(signed == 0)] == [128, 127, 1]
  assert [np.sum(unsigned > 0), np.sum(unsigned == 0)] == [255, 1]
  np.testing.assert_allclose(
    [signed[128], signed[-2], signed[0]], [5.5e-7, 0.99296875, -0.99296875]
  )
  np.testing.assert_allclose([unsigned[1], unsigned[-2]], [3.25e-7, 0.99648438], rtol=1e-8)
  assert signed[-1] == unsigned[-1] == 1


@pytest.mark.parametrize('signed', [True, False])
def test_codes_stand_for_the_numbers_of_the_map(signed):
  scale = jnp.full(256, -3.0 if signed else 3.0)
  got = _blocks.decode(jnp.arange(256, dtype=jnp.uint8), scale)
  np.testing.assert_allclose(got, 3 * _blocks.dynamic_map(signed), rtol=3e-7)


@pytest.mark.parametrize('signed', [True, False])
def test_each_value_gets_the_nearest_number(signed):
  rng, table = np.random.default_rng(0), _blocks.dynamic_map(signed)
  x = 10.0 ** rng.uniform(-6.5, 0, 100_000) * (rng.choice([-1, 1], 100_000) if signed else 1)
  x = np.concatenate([x, table, [0.0]]).astype(np.float32)
  codes = _blocks.encode(jnp.asarray(x), jnp.full(x.shape, -1.0 if signed else 1.0))
  x = x.astype(np.float64)
  nearest = np.abs(x[:, None] - table).min(axis=1)
  assert np.all(np.abs(x - table[np.asarray(codes)]) <= nearest + 1e-6 * np.abs(x))


def test_errors_of_gaussian_blocks():
  """The catalogue's numbers; linear 8-bit numbers give 3.6 % and 18 %."""
  x = np.random.default_rng(0).standard_normal((100, 2048)).astype(np.float32)
  for y, want in ((x, 0.0167), (x * x, 0.0190)):
    back = np.asarray(both_ways(jnp.asarray(y))[2])
    off = np.minimum(np.abs(back - y) / np.abs(y), 1)  # what is below the map's smallest counts 1
    np.testing.assert_allclose(np.mean(off), want, rtol=0.03)


def test_minus_one_is_no_number():
  _, _, back = both_ways(jnp.array([[0.5, -2.0, 1.0], [0.5, 2.0, -1.0]]), block=3)
  np.testing.assert_allclose(back[:, 1], [-2 * 0.99296875, 2.0], rtol=1e-6)


def test_coding_again_changes_nothing_where_the_largest_is_positive():
  x = np.random.default_rng(0).standard_normal((50, 128)).astype(np.float32)
  x[:, 5] = 10.0
  codes, scales, back = both_ways(jnp.asarray(x), block=128)
  again, same, _ = both_ways(back, block=128)
  np.testing.assert_array_equal(codes, again)
  np.testing.assert_array_equal(scales, same)


# ------------------------------------------------------- blocks


@pytest.mark.parametrize('block', [1, 7, 12, 32, 100, 2048])
@pytest.mark.parametrize('fact', [MATRIX, STACKED], ids=['matrix', 'stacked'])
def test_a_block_is_a_run_of_the_flattened_layer(fact, block):
  shape = (10, 24) if fact is MATRIX else (10, 3, 24)
  x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
  layers = [x] if fact is MATRIX else list(x.transpose(1, 0, 2))
  want = []
  for layer in layers:
    flat = layer.reshape(-1)
    cuts = [flat[i : i + block] for i in range(0, flat.size, block)]
    want.append([-np.abs(c).max() if (c < 0).any() else c.max() for c in cuts])
  blocks = _blocks.Blocks(fact, shape, block)
  scales = blocks.scales(jnp.asarray(x))
  np.testing.assert_array_equal(scales, want if fact is STACKED else want[0])
  spread = blocks.spread(scales)
  for n, layer in enumerate(layers):
    own = spread[:, n] if fact is STACKED else spread
    np.testing.assert_array_equal(np.repeat(want[n], block)[: layer.size], own.reshape(-1))


def test_a_loud_block_does_not_coarsen_the_others_and_zeros_stay():
  x = jnp.array([[1e-3, -2e-3, 0.0, 0.0], [1e3, 5.0, 0.0, 0.0]])
  _, _, back = both_ways(x, block=2)
  np.testing.assert_allclose(back, x, rtol=0.05)
  np.testing.assert_array_equal(back[:, 2:], 0)


# ------------------------------------------------------- the optimizer


def dtypes(tree):
  return {
    jax.tree_util.keystr(k): str(x.dtype) for k, x in jax.tree_util.tree_leaves_with_path(tree)
  }


def test_what_stays_in_32_bits():
  facts = dict(
    table=TABLE,
    place=Fact(('position', 'embed'), ('position',), 'position'),
    head=Fact(('vocab', 'embed'), ('embed',), 'unembed'),
    gains=Fact(('layers', 'embed'), (), 'norm'),
    deep=Fact(('layers', 'embed', 'mlp'), ('embed',)),
  )
  shapes = dict(table=(80, 64), place=(80, 64), head=(80, 64), gains=(80, 64), deep=(2, 64, 64))
  params = {k: jnp.zeros(s) for k, s in shapes.items()}
  found = dtypes(jax.eval_shape(make('eight_bit()', **facts).init, params).codes.mu)
  assert {k[2:-2] for k, d in found.items() if d == 'uint8'} == {'head', 'deep'}


def test_bytes_of_a_large_matrix():
  params = dict(w=jax.ShapeDtypeStruct((1024, 4096), jnp.bfloat16))
  state = jax.eval_shape(make('eight_bit()', w=MATRIX).init, params)
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state) if x.ndim)
  assert size / (1024 * 4096) == 2 + 2 * 4 / 2048
  assert {x.dtype for x in jax.tree.leaves(state.codes) if x.ndim} == {jnp.dtype('uint8')}


def test_nothing_but_codes_survives_a_step():
  """What Adam gets is what the bytes say: no copy in float32 is kept aside."""
  rng = np.random.default_rng(0)
  tx, plain = make('eight_bit(min_size=1, block=16)', w=MATRIX), make('adam()')
  params = dict(w=jnp.zeros((16, 16)))
  state, step = tx.init(params), jax.jit(tx.update)
  blocks = _blocks.Blocks(MATRIX, (16, 16), 16)
  wide = jax.jit(lambda c, s: dict(w=_blocks.decode(c['w'], blocks.spread(s['w']))))
  for _ in range(3):
    g = dict(w=jnp.asarray(rng.standard_normal((16, 16)), jnp.float32))
    told = state.codes
    told = told._replace(mu=wide(told.mu, state.scales.mu), nu=wide(told.nu, state.scales.nu))
    want, _ = plain.update(g, told)
    u, state = step(g, state, params)
    np.testing.assert_allclose(u['w'], want['w'], rtol=1e-5)  # rounding; codes are 1e-2 apart


def test_a_small_second_moment_does_not_vanish_before_the_first():
  """One loud element; a quiet one whose gradient then stops: m of 4e-4 of the largest has a code, v
  of 1e-7 of the largest rounds to zero, and m / eps would be a leap of thousands of rates.
  """
  first = jnp.full((1, 64), 3e-4).at[0, 0].set(1.0)
  grads = [dict(w=first), dict(w=first.at[0, 1:].set(0.0))]
  tx, plain = make('eight_bit(min_size=1)', w=MATRIX), make('adam()')
  a, b, step = tx.init(grads[0]), plain.init(grads[0]), jax.jit(tx.update)
  for g in grads:
    (u, a), (v, b) = step(g, a, g), plain.update(g, b)
  assert np.abs(v['w']).max() < 1.01 and np.abs(u['w']).max() < 1.01
  assert np.all(np.asarray(u['w']) > 0)


def test_stays_near_32_bits():
  rng = np.random.default_rng(0)
  tx, plain = make('eight_bit()', w=MATRIX), make('adam()')
  params = dict(w=jnp.zeros((64, 256)))
  a, b, step = tx.init(params), plain.init(params), jax.jit(tx.update)
  drift = rng.standard_normal((64, 256))
  for _ in range(30):
    g = dict(w=jnp.asarray(drift + rng.standard_normal((64, 256)), jnp.float32))
    (u, a), (v, b) = step(g, a, params), plain.update(g, b)
  off = np.linalg.norm(u['w'] - v['w']) / np.linalg.norm(v['w'])
  assert 1e-3 < off < 0.05, off


@pytest.mark.parametrize('inner', ['sgd()', 'clip() | decay()'])
def test_refuses_an_optimizer_without_moments(inner):
  tx = make(f'eight_bit(inner={inner})', w=MATRIX)
  with pytest.raises(ValueError, match='eight_bit.inner=.* of the shape of the parameters'):
    tx.init(dict(w=jnp.zeros((64, 64))))


@pytest.mark.parametrize('inner', ['galore()', 'fira()', 'soap()', 'clip() | galore()'])
def test_refuses_what_keeps_a_basis(inner):
  """Of a square matrix a basis has the parameter's shape, and would be coded as a moment."""
  with pytest.raises(ValueError, match='keeps moments alone'):
    registry.make('optim', f'eight_bit(inner={inner})', facts={})()


def test_small_models_are_left_alone():
  make('eight_bit(inner=sgd())', w=MATRIX).init(dict(w=jnp.zeros((8, 8))))


@pytest.mark.parametrize(
  'shape, block', [((256, 1024), 2048), ((256, 768), 2048), ((256, 64), 256)]
)
def test_a_sharded_state_is_coded_where_it_lies(shape, block):
  """No device sees more than its part, but for the maxima of chunks."""
  mesh = jax.make_mesh((4, 2), ('data', 'tensor'), axis_types=(AxisType.Auto,) * 2)
  place = NamedSharding(mesh, P('data', 'tensor'))
  with jax.set_mesh(mesh):
    tx = make(f'eight_bit(block={block})', w=MATRIX)
    g = dict(w=jax.device_put(jnp.ones(shape), place))
    state = tx.init(g)
    text = jax.jit(tx.update).lower(g, state, g).compile().as_text()
    assert state.codes.mu['w'].addressable_shards[0].data.size * 8 == g['w'].size
  assert max(moved(text), default=0) <= g['w'].size / 64, moved(text)


def moved(text: str) -> list[int]:
  """Sizes of what a compiled program gathers or exchanges between devices."""
  how = '(?:all-gather|all-to-all|collective-permute)'
  shapes = re.findall(rf' = \(?\w+\[([\d,]*)\][^=]* {how}(?:-start)?\(', text)
  return [math.prod(int(n) for n in dims.split(',') if n) for dims in shapes]

"""Linear parts that hold codes: bytes, the product, meshes, a stack of layers, and that they are
not trained.
"""

import functools
import math
import zlib

import jax
from jax.sharding import NamedSharding
import jax.numpy as jnp
import numpy as np
import pytest

import _meshes
import _table
from lmjax import build
from lmjax import config
from lmjax import registry
from lmjax.models.linears import _codes
from lmjax.parallel import mesh as mesh_lib
from lmjax.parallel import shard

SIDES = {
  'up': ((('embed', 24),), (('mlp', 10),)),
  'heads': ((('embed', 24),), (('heads', 2), ('head_dim', 5))),
  'out': ((('heads', 4), ('head_dim', 6)), (('embed', 10),)),
}


def linear(spec, sides='up', bias=False):
  ins, outs = SIDES[sides]
  return registry.make('linear', spec)(
    ins=ins, outs=outs, role='hidden', bias=bias, scheme=_table.scheme(), parent=None
  )


@pytest.mark.parametrize('bits', range(2, 9))
@pytest.mark.parametrize('shape, axis', [((7, 3), 0), ((4, 5, 6), 1), ((8, 2), -1), ((9,), 0)])
def test_codes_survive_packing(bits, shape, axis):
  codes = jnp.asarray(np.random.default_rng(bits).integers(0, 2**bits, shape), jnp.uint8)
  data = _codes.pack(codes, bits, axis)
  each = {2: 4, 3: 2, 4: 2}.get(bits, 1)
  assert data.shape[axis] == math.ceil(shape[axis] / each) and data.dtype == jnp.uint8
  _table.same(_codes.unpack(data, bits, axis, shape[axis]), codes)


def test_the_first_code_is_the_lowest_bits():
  assert _codes.pack(jnp.asarray([1, 2, 15, 0, 7]), 4, 0).tolist() == [0x21, 0x0F, 0x07]
  assert _codes.pack(jnp.asarray([1, 2, 3, 0, 2]), 2, 0).tolist() == [0b00111001, 0b10]


@pytest.mark.parametrize(
  'sides', ['up', *(pytest.param(s, marks=pytest.mark.slow) for s in ('heads', 'out'))]
)
@pytest.mark.parametrize(
  'spec', ['rtn(bits=4, group=8)', 'rtn(bits=3)', 'rtn(bits=8, per="tensor")']
)
def test_the_matrix_is_scale_times_code_less_zero(sides, spec):
  """Codes are packed along another axis than groups run over; neither may be turned."""
  ins, outs = SIDES[sides]
  w = _table.normal(24, 10, seed=1)
  quantizer = registry.make('quantizer', spec)()
  module, found = linear(quantizer.linear, sides), quantizer.quantize(w)
  c, s, z = (np.asarray(found[k], np.float64) for k in ('codes', 'scale', 'zero'))
  spread = lambda a: np.repeat(a, 24 // len(a), axis=0)
  sizes = tuple(n for _, n in ins + outs)
  want = (spread(s) * (c - spread(z))).reshape(sizes)
  stored = module.stored(found)
  _table.close(module.matrix(stored), want, 1e-6)
  x = _table.normal(2, 3, *(n for _, n in ins), seed=2)
  flat = np.asarray(x, np.float64).reshape(6, 24) @ want.reshape(24, 10)
  got = module.apply({'vars': stored}, x)
  _table.close(got, flat.reshape(2, 3, *(n for _, n in outs)), 1e-5)


@pytest.mark.parametrize(
  'spec, want',
  [
    ('quantized(bits=4, group=128)', 4 + 16 / 128 + 4 / 128),
    ('quantized(bits=8, group=128)', 8 + 16 / 128 + 8 / 128),
    ('quantized(bits=2, group=128, symmetric=True)', 2 + 16 / 128),
    ('quantized(bits=4, symmetric=True)', 4 + 16 / 256),
    ('int8()', 8 + 32 / 256),
  ],
)
def test_bits_of_a_number_as_stored(spec, want):
  module = registry.make('linear', spec)(
    ins=(('embed', 256),), outs=(('mlp', 64),), role='hidden', bias=False, parent=None,
    scheme=_table.scheme(),
  )  # fmt: skip
  size = sum(math.prod(s) * jnp.dtype(d).itemsize for s, d, _ in module.layout().values())
  assert 8 * size / (256 * 64) == want


# ------------------------------------------------------------------ in a model

SMALL = (
  ('model.width', '32'),
  ('model.depth', '3'),
  ('model.mixer', 'gqa(head_dim=8, kv_heads=2)'),
  ('model.ffn', 'swiglu(hidden=48, bias=True)'),
  ('model.embed', 'untied(multiple_of=8)'),
  ('data.length', '16'),
  ('batch_tokens', '128'),
)
PARTS = ('quantized(bits=4, group=8)', 'quantized(bits=3, per="tensor")', 'int8(tau=0.5)')


@functools.cache
def run(spec, *changes):
  overrides = [*SMALL, ('model.linear', spec), *changes]
  return build.build(config.resolve(config.load('quickstart', overrides)))


@functools.cache
def variables(spec):
  """Random codes, small scales; everything else about as it starts."""

  def one(path, a):
    rng = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
    if jnp.issubdtype(a.dtype, jnp.integer):
      info = jnp.iinfo(a.dtype)
      return rng.integers(info.min, info.max + 1, a.shape).astype(a.dtype)
    small = 0.02 if a.dtype == jnp.float16 else 0.002 if path[-1].key == 'scale' else 0.3
    gain = 'norm' in jax.tree_util.keystr(path)
    return (gain + small * rng.normal(size=a.shape)).astype(a.dtype)

  return jax.tree_util.tree_map_with_path(one, run(spec).shapes)


def loss(spec, mesh=None, *changes):
  rng, segments = np.random.default_rng(0), np.ones((8, 17), np.int32)
  segments[::2, 9:] = 2
  batch = dict(
    tokens=rng.integers(0, 256, segments.shape).astype(np.int32),
    segments=segments,
    positions=_table.positions_of(segments),
  )
  r, values = run(spec, *changes), variables(spec)
  params, vars = values['params'], {'vars': values['vars']}
  if mesh is not None:
    placed = r.shardings()
    params, vars = jax.device_put((params, vars), (placed.params, placed.vars))
    batch = jax.device_put(batch, NamedSharding(mesh, shard.spec(('batch', None))))
  f = lambda p, v: r.objective.loss(p, v, batch, jax.random.key(1), train=False).sum
  return float(jax.jit(f)(params, vars))


@functools.cache
def alone(spec):
  return loss(spec)


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() < 8, reason='eight devices are needed')
@pytest.mark.parametrize('mode', ['auto', 'explicit'])
@pytest.mark.parametrize('spec', PARTS)
def test_a_mesh_does_not_change_the_loss(spec, mode):
  want = alone(spec)  # this builds the model too, which is done without a mesh
  mesh = _meshes.make(mode, replica=2, data=2, tensor=2)
  with jax.set_mesh(mesh):
    assert loss(spec, mesh) == pytest.approx(want, rel=2e-5)


def test_codes_are_stacked_over_layers_and_lie_on_a_mesh_like_the_matrix():
  r = run('quantized(bits=4, group=8)')
  q = r.shapes['vars']['segment_0']['0_block']['mixer']['q']
  assert {k: (v.shape, str(v.dtype)) for k, v in q.items()} == dict(
    codes=((3, 16, 4, 8), 'uint8'), scale=((3, 4, 4, 8), 'float16'), zero=((3, 4, 4, 4), 'uint8')
  )
  placed = r.placements(mesh_lib.abstract(_meshes.settings(data=2, tensor=2)))
  spec = placed.vars['vars']['segment_0']['0_block']['mixer']['q']['codes'].spec
  assert tuple(spec) == (None, 'data', 'tensor', None)
  assert 'mixer' not in r.shapes['params']['segment_0']['0_block']
  ffn = r.shapes['params']['segment_0']['0_block']['ffn']
  assert set(ffn['up']) == {'bias'}


@pytest.mark.slow
def test_unrolled_is_scanned():
  assert loss(PARTS[0], None, ('model.unroll', '3')) == pytest.approx(alone(PARTS[0]), rel=1e-5)


# ------------------------------------------------------------------ what is refused


@pytest.mark.slow
@pytest.mark.parametrize('spec', PARTS)
def test_it_is_not_trained(spec):
  """The model is built, for use; only a first state is refused."""
  said = 'config.model.linear: .* made by python -m lmjax.quantize; it cannot be trained'
  with pytest.raises(ValueError, match=said) as e:
    run(spec).init(jax.random.key(0))
  assert '\n' not in str(e.value)


def test_groups_that_do_not_divide_are_refused_by_the_name_of_the_matrix():
  said = r'quantized\.group=10 does not divide the 32 inputs of .*mixer/q'
  with pytest.raises(ValueError, match=said):
    run('quantized(bits=4, group=10)')


@pytest.mark.parametrize(
  'spec, said',
  [
    ('quantized(bits=1)', 'bits=1: from 2 to 8'),
    ('quantized(bits=4, group=-1)', 'group=-1: a positive number'),
    ('quantized(bits=4, group=4, per="tensor")', 'group=4: None is expected'),
    ('int8(tau=-1.0)', 'tau=-1.0: at least 0'),
    ('int8(keep=-1)', 'keep=-1: at least 0'),
    ('int8(keep=1, tau=None)', 'keep=1: 0 is expected'),
  ],
)
def test_arguments_out_of_range_are_refused(spec, said):
  with pytest.raises(ValueError, match=said):
    registry.make('linear', spec)

"""Products with codes of few bits: the TPU's kernel is interpreted, lowered and compiled without
one, and equals the product with the whole matrix, forward and backward.
"""

import functools
import math

import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

import _meshes
import _table
from lmjax import registry
from lmjax.kernels import choice
from lmjax.kernels.quant_matmul import mosaic
from lmjax.planning import hlo
from lmjax.planning import work

SIDES = {
  'up': ((('embed', 512),), (('mlp', 640),)),
  'heads': ((('embed', 512),), (('heads', 4), ('head_dim', 64))),
  'out': ((('heads', 4), ('head_dim', 128)), (('embed', 1024),)),
  'inner': ((('heads', 4), ('head_dim', 128)), (('mlp', 256),)),  # nothing is gathered
}


def linear(sides='up', **how):
  ins, outs = SIDES[sides] if isinstance(sides, str) else sides
  more = dict(ins=ins, outs=outs, role='hidden', bias=False, scheme=_table.scheme(), parent=None)
  text = ', '.join(f'{k}={v!r}' for k, v in how.items())
  return registry.make('linear', f'quantized({text})')(**more)


def codes(module, seed=0):
  """Variables of random bytes, with scales of unlike sizes."""
  rng = np.random.default_rng(seed)
  return {
    k: jnp.asarray(
      rng.integers(0, 256, shape, np.uint8) if dtype == jnp.uint8 else rng.uniform(0.5, 2, shape),
      dtype,
    )
    for k, (shape, dtype, _) in module.layout().items()
  }


def applied(module, x, v):
  return module.apply({'vars': v}, x)


def shapes(module, rows, dtype, **more):
  like = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, **more)
  v = {k: like(shape, dtype) for k, (shape, dtype, _) in module.layout().items()}
  return like((rows, 1, *(n for _, n in module.ins)), dtype), v


def on_a_tpu(module, rows=8, dtype=jnp.bfloat16, name='mosaic', **more):
  with choice.using(platform='tpu', quant_matmul=name):
    return jax.jit(lambda x, v: module.apply({'vars': v}, x)).trace(
      *shapes(module, rows, dtype, **more)
    )


CASES = [
  ('up', dict(bits=4, group=64)),
  ('up', dict(bits=4, group=128, symmetric=True)),
  ('up', dict(bits=3)),
  ('up', dict(bits=2, symmetric=True, per='tensor')),
  ('up', dict(bits=8, group=128)),
  ('heads', dict(bits=4, group=256)),
  ('out', dict(bits=4, group=64)),
  ('out', dict(bits=2, group=512)),
  ('inner', dict(bits=4, group=64)),
]


@pytest.mark.parametrize('sides, how', CASES, ids=str)
def test_one_pass_equals_the_whole_matrix_and_its_gradients(sides, how):
  module = linear(sides, **how)
  v = codes(module)
  x = _table.normal(3, 5, *(n for _, n in module.ins), seed=1)

  def both(name):
    def total(x, scale):
      y = module.apply({'vars': v | dict(scale=scale)}, x)
      return jnp.sum(jnp.sin(y / 50)), y

    with choice.using(platform='tpu', quant_matmul=name), pltpu.force_tpu_interpret_mode(True):
      return jax.jit(jax.grad(total, (0, 1), has_aux=True))(x, v['scale'])

  got, want = both('mosaic'), both('xla')
  _table.trees_close(got[1], want[1], 1e-5)
  _table.trees_close(got[0], want[0], 1e-3)  # scales are float16, and so are their gradients


def test_blocks_of_inputs_and_outputs_are_summed(monkeypatch):
  """Several blocks each way, groups larger than a block among them."""
  monkeypatch.setattr(mosaic, 'DEEP', (128,))
  monkeypatch.setattr(mosaic, 'WIDE', (128,))
  x = _table.normal(2, 1, 1024, seed=1)
  for how in (dict(bits=4, group=512), dict(bits=4, group=32), dict(bits=2)):
    module = linear(((('embed', 1024),), (('mlp', 384),)), **how)
    v, apply = codes(module), functools.partial(applied, module)
    with choice.using(platform='tpu', quant_matmul='mosaic'), pltpu.force_tpu_interpret_mode(True):
      got = jax.jit(apply)(x, v)
    _table.close(got, apply(x, v), 1e-5)


def test_the_cpu_has_the_program_of_before():
  """The one operation that is new is none in the program."""
  module = linear(bits=4, group=64)
  x, v = shapes(module, 4, jnp.float32)
  new = jax.jit(lambda x, v: module.apply({'vars': v}, x)).lower(x, v).as_text()
  old = jax.jit(lambda x, v: (x.reshape(4, -1) @ module.matrix(v, x.dtype)).reshape(4, 1, -1))
  count = lambda text, name: text.count(f'stablehlo.{name}')
  for name in ('dot_general', 'shift_right_logical', 'multiply', 'custom_call'):
    assert count(new, name) == count(old.lower(x, v).as_text(), name)


REFUSED = {
  'runs on TPUs, this is for a cpu': dict(platform='cpu'),
  'not float16': dict(dtype=jnp.float16),
  'at most 512 rows, these are 513': dict(rows=513),
  'xla reads others once': dict(how=dict(bits=8)),
  'whole bytes of 4 codes': dict(sides=((('embed', 512),), (('heads', 128), ('head_dim', 6)))),
  'these are 132 x 640': dict(sides=((('embed', 528),), (('mlp', 640),))),
  'these are 128 x 192': dict(sides=((('embed', 512),), (('mlp', 192),))),
  'multiple of 8 rows of bytes': dict(how=dict(bits=2, group=16)),
  'last input or the last output axis': dict(
    sides=((('embed', 512), ('head_dim', 2)), (('mlp', 128),))
  ),
}


@pytest.mark.parametrize('why', REFUSED)
def test_refused(why):
  case = dict(platform='tpu', rows=8, dtype=jnp.bfloat16, sides='up', how=dict(bits=2))
  case |= REFUSED[why]
  module = linear(case['sides'], **case['how'])
  x, v = shapes(module, case['rows'], case['dtype'])
  apply = lambda x, v: module.apply({'vars': v}, x)
  with choice.using(platform=case['platform']):
    assert 'pallas_call' not in str(jax.make_jaxpr(apply)(x, v))
    with choice.using(quant_matmul='mosaic'), pytest.raises(ValueError, match=why):
      jax.eval_shape(apply, x, v)


def test_a_mesh_is_refused_and_auto_takes_the_kernel():
  module = linear(bits=4, group=64)
  x, v = shapes(module, 8, jnp.bfloat16)
  text = lambda: str(jax.make_jaxpr(lambda x, v: module.apply({'vars': v}, x))(x, v))
  with choice.using(platform='tpu'):
    assert 'pallas_call' in text()
    with jax.set_mesh(_meshes.make(data=8)):
      assert 'pallas_call' not in text()


@pytest.mark.parametrize('sides, how', CASES, ids=str)
def test_lowered_for_a_tpu(sides, how):
  text = on_a_tpu(linear(sides, **how)).lower(lowering_platforms=('tpu',)).as_text()
  assert text.count('tpu_custom_call') == 1


@pytest.mark.slow
@pytest.mark.parametrize(
  'dtype, one_tpu',
  [('bfloat16', 'v5e-1'), ('float32', 'v5p:1x1x1'), ('float32', 'v6e-1')],
  indirect=['one_tpu'],
)
def test_compiles_for_tpus_and_reads_the_codes_once(dtype, one_tpu):
  dtype = getattr(jnp, dtype)
  v5p = next(iter(one_tpu.device_set)).device_kind == 'TPU v5'

  def traffic(module, rows, name):
    program = on_a_tpu(module, rows, dtype, name, sharding=one_tpu).lower().compile()
    counted = hlo.parse(program.as_text())
    assert work.opaque(counted) == []
    wide = [s for s in work.shapes(counted) if math.prod(s[1]) >= 4096 * 14336]
    assert bool(wide) == (name == 'xla')
    return work.memory_traffic(counted)

  for bits, group, ins, outs in ((4, 64, 'mlp', 'embed'), (4, None, 'embed', 'mlp')):
    module = linear((((ins, 4096),), ((outs, 14336),)), bits=bits, group=group)
    few = traffic(module, 8, 'mosaic')
    most = 1.3 if not group else 2.5 if v5p else 1.3  # with scales and zeros
    assert few < most * 4096 * 14336 * bits / 8
    if group:
      assert few < 0.1 * traffic(module, 8, 'xla')
    traffic(module, mosaic.ROWS, 'mosaic')
  for ins, outs in (('mlp', 'embed'), ('embed', 'mlp')):
    module = linear((((ins, 4096),), ((outs, 14336),)), bits=2, group=512)
    traffic(module, mosaic.ROWS, 'mosaic')

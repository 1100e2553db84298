"""Kernels of the loss layer for accelerators, without any: interpreted at odd shapes, lowered for
TPUs and CUDA; what they cost, what they never make, and what each refuses.
"""

import contextlib
import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

import _meshes
import _table
import test_linear_cross_entropy as plain
from lmjax.kernels import choice
from lmjax.kernels import linear_cross_entropy as op
from lmjax.kernels.linear_cross_entropy import mosaic
from lmjax.kernels.linear_cross_entropy import mosaic_kernel
from lmjax.kernels.linear_cross_entropy import triton
from lmjax.kernels.linear_cross_entropy import triton_kernel
from lmjax.parallel import jaxprs
from lmjax.parallel import shard
from lmjax.planning import chips
from lmjax.planning import walk as walk_lib

KERNELS = {'mosaic': ('tpu', 'tpu'), 'triton': ('gpu', 'cuda')}  # platform, as XLA calls it
H100 = jax.sharding.AbstractMesh(  # since jax 0.12 Triton wants to know which GPU it is for
  (),
  (),
  (),
  abstract_device=jax.sharding.AbstractDevice('NVIDIA H100', 132, 'gpu'),
)
ODD = dict(rows=2, steps=137, width=40, words=300, real=290)  # three tiles of each, none whole


@pytest.fixture
def small_tiles(monkeypatch):
  monkeypatch.setattr(mosaic, 'TILES', ((256, 128),))
  for name, size in dict(TOKENS=16, WORDS=16, SPAN=64, CHUNK=32 * 304 * 4).items():
    monkeypatch.setattr(triton_kernel, name, size)


@contextlib.contextmanager
def interpreted(name):
  """On the platform of a kernel, whose code runs here."""
  call = functools.partial(pl.pallas_call, interpret=True)
  with choice.using(platform=KERNELS[name][0]), pltpu.force_tpu_interpret_mode(True):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(triton_kernel, 'CALL', call)
      yield


def slope(name, *args, **how):
  with interpreted(name):
    return plain.slope(name, *args, **how)


def values(name, arrays, y, **how):
  x, w, b, weights = arrays
  run = lambda x: op.linear_cross_entropy(x, w, y, weights, bias_V=b, implementation=name, **how)
  with interpreted(name) if name in KERNELS else contextlib.nullcontext():
    return jax.jit(run)(x)


# (how, bias, factor of the nll, factor of the sum)
CASES = [
  (plain.HOWS[0], False, 0.0, 1.0),
  (plain.HOWS[1], True, 0.0, 2.5),
  (plain.HOWS[2], False, 1.0, 0.0),
  (plain.HOWS[4], True, 0.7, -1.5),
]


@pytest.mark.parametrize('case', CASES, ids=str)
@pytest.mark.parametrize('name', KERNELS)
def test_gradients_equal_those_of_the_whole(name, case, small_tiles):
  how, bias, nll, total = case
  arrays, y = plain.inputs(bias=bias, **ODD)
  want = plain.slope('whole', arrays, y, nll, total, **how)
  _table.trees_close(slope(name, arrays, y, nll, total, **how), want, 5e-6)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('name', KERNELS)
def test_it_equals_float64(name, bias, small_tiles):
  (x, w, b, weights), y = plain.inputs(bias=bias, rows=1, steps=70, width=6, words=150, real=140)
  y = y.at[0, 0].set(jnp.argmax(0.0 if b is None else b))
  x = x.at[0, 0].set(0.0 if bias else 10 * w[0])  # a hit
  want = plain.numpy64(x, w, b, weights, y, **plain.HOWS[-1])
  for g, e in zip(values(name, (x, w, b, weights), y, **plain.HOWS[-1]), want, strict=True):
    np.testing.assert_allclose(g, e, rtol=5e-6, atol=5e-6)
  assert want[2][0, 0] and not want[2].all()


@pytest.mark.parametrize('steps, width, words', [(1, 1, 1), (129, 129, 257)])
@pytest.mark.parametrize('name', KERNELS)
def test_sizes_below_and_above_tiles(name, steps, width, words, small_tiles):
  arrays, y = plain.inputs(1, steps, width, words, words)
  arrays = *arrays[:3], jnp.ones((1, steps))
  for got, of in zip(slope(name, arrays, y), plain.slope('whole', arrays, y), strict=True):
    np.testing.assert_allclose(got, of, atol=5e-5)


@pytest.mark.parametrize('name', KERNELS)
def test_logits_that_overflow_exp(name, small_tiles):
  """A running maximum: that of the last tile is the largest, and the first is very small."""
  (x, w, b, weights), y = plain.inputs(**ODD)
  b = b.at[:128].add(-3000.0).at[280:290].add(500.0)
  arrays = x, w, b, weights
  want, got = plain.slope('whole', arrays, y), slope(name, arrays, y)
  assert np.all(np.isfinite(want[1]))
  _table.trees_close(got, want, 5e-4)


@pytest.mark.parametrize('name', KERNELS)
def test_tokens_without_weight_say_nothing(name, small_tiles):
  """Whatever their targets are, and where their logits overflow."""
  (x, w, b, _), y = plain.inputs(bias=True, **ODD)
  weights = jnp.ones(y.shape).at[:, ::2].set(0.0)
  outside = y.at[:, ::2].set(10**6).at[:, ::4].set(301)
  large = x.at[:, ::2].multiply(3e37)
  how = plain.HOWS[1]
  got = slope(name, (large, w, b, weights), outside, **how)
  assert not np.any(got[0][:, ::2]) and np.all(np.isfinite(got[2]))
  want = slope(name, (x, w, b, weights), y, **how)
  _table.close(got[0], want[0], 1e-6)
  _table.close(got[3], want[3], 1e-6)


@pytest.mark.parametrize(
  'name, dtype, by',
  [('mosaic', jnp.bfloat16, 1.0), ('triton', jnp.bfloat16, 1.0), ('triton', jnp.float16, 1e-6)],
)
def test_low_precision(name, dtype, by, small_tiles):
  """Products are in the dtype of x, sums in float32; a small factor comes behind them, since before
  the products nothing of it would be left in float16.
  """
  (x, w, b, weights), y = plain.inputs(dtype=dtype, **ODD | dict(steps=64))
  w = 0.2 * w.astype(dtype).astype(jnp.float32)
  dx, dw, *_ = slope(name, (x, w, b, weights), y, 0.0, by)
  assert dx.dtype == dtype and dw.dtype == jnp.float32
  full = plain.slope('whole', (x.astype(jnp.float32), w, b, weights), y)
  _table.close(dw / by, full[1], 2e-2)
  if by == 1:
    _table.close(dx.astype(jnp.float32), full[0], 2e-2)


@pytest.mark.parametrize(
  'axes', [dict(stage=2, data=2, tensor=2), dict(data=2, sequence=2, tensor=2)]
)
@pytest.mark.parametrize('name', KERNELS)
@pytest.mark.skipif(jax.device_count() < 8, reason='eight devices are needed')
def test_meshes(name, axes, small_tiles):
  arrays, y = plain.inputs(rows=8, steps=4, width=8, words=plain.V)
  want = plain.slope('whole', arrays, y, 0.7, **plain.HOWS[-1])
  x, w, b, weights = arrays
  with jax.set_mesh(_meshes.make(**axes)):
    place = lambda a, *names: jax.device_put(
      a, jax.NamedSharding(jax.sharding.get_mesh(), shard.spec(names))
    )
    rows = 'batch', 'time'
    placed = place(x, *rows, None), place(w, 'vocab', 'embed'), place(b, 'vocab')
    got = slope(name, (*placed, place(weights, *rows)), place(y, *rows), 0.7, **plain.HOWS[-1])
    got = jax.device_get(got)
  _table.trees_close(got, want, 5e-6)


# ---- programs


def traced(name, tokens=300, width=40, words=300, dtype=jnp.bfloat16, bias=True, place=None, **how):
  """The sum with its gradients, traced for the platform of an implementation."""
  place = {} if place is None else dict(sharding=place)
  of = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, **place)
  f32 = jnp.float32

  def both(x, w, b, y, weights):
    def total(x, w, b):
      found = op.linear_cross_entropy(x, w, y, weights, bias_V=b, implementation=name, **how)
      return found.total

    return jax.value_and_grad(total, (0, 1, 2) if bias else (0, 1))(x, w, b)

  given = of(dtype, 1, tokens, width), of(f32, words, width), of(f32, words) if bias else None
  platform = KERNELS[name][0] if name in KERNELS else 'tpu'
  with choice.using(platform=platform):
    return jax.jit(both).trace(*given, of(jnp.int32, 1, tokens), of(f32, 1, tokens))


def kernels(program):
  found = jaxprs.equations(program.jaxpr.jaxpr)
  return [e for e in found if e.primitive.name == 'pallas_call']


LOWERED = [('mosaic', jnp.bfloat16), ('mosaic', jnp.float32)]
LOWERED += [('triton', d) for d in (jnp.bfloat16, jnp.float16, jnp.float32)]


@pytest.mark.parametrize('how, bias', [(plain.HOWS[0], False), (plain.HOWS[-1], True)], ids=str)
@pytest.mark.parametrize('name, dtype', LOWERED)
def test_it_lowers_for_its_platform(name, dtype, how, bias):
  with jax.default_matmul_precision('high'):
    with jax.sharding.use_abstract_mesh(H100):
      program = traced(name, dtype=dtype, bias=bias, **how)
    text = program.lower(lowering_platforms=(KERNELS[name][1],)).as_text()
  assert text.count(dict(mosaic='@tpu_custom_call', triton='__gpu$xla.gpu.triton')[name]) == (
    3 if name == 'mosaic' else 2
  )
  bodies = [e.params['jaxpr'] for e in kernels(program)]
  dots = [e for k in bodies for e in jaxprs.equations(k) if e.primitive.name == 'dot_general']
  exact = ['HIGHEST' in str(e.params['precision']) for e in dots]
  assert len(dots) == (5 if name == 'mosaic' else 2)
  if name == 'mosaic':  # which has two precisions
    assert all(x == (dtype == jnp.float32) for x in exact)


@pytest.mark.parametrize('name, products', [('mosaic', 5), ('triton', 4)])
def test_what_kernels_state_is_what_plans_count(name, products):
  """`whole` has three."""
  sizes = dict(tokens=2048, width=256, words=4096)
  program = traced(name, bias=False, **sizes)
  walk = walk_lib.Walk({}, {}, chips.CHIPS['v5e'])
  given = [walk.value(a, ((),) * len(a.shape)) for a in program.jaxpr.in_avals]
  walk.run(program.jaxpr.jaxpr, given, 1)
  assert walk.flops == products * 2 * 2048 * 256 * 4096
  x, w, row = 2048 * 256 * 2, 4096 * 256 * 2, 2048 * 4
  if name == 'mosaic':  # tiles of 1,024 that stay: W passes twice by the tokens, x four times by W
    want = [x + 2 * w + 3 * row, x + 2 * w + x, 4 * x + w + 2 * w]
  else:
    want = [x + w + 3 * row, x + w + 2048 * 4096 * 2]
  states = [e.params['cost_estimate'] for e in kernels(program)]
  assert [s.bytes_accessed for s in states] == want
  assert {s.transcendentals for s in states} == {2048 * 4096}


@pytest.mark.parametrize('name, most', [('mosaic', 0), ('triton', 256 * 2048)])
def test_what_is_made_of_logits(name, most, monkeypatch):
  """Nothing between kernels on a TPU, a chunk of gradients on a GPU."""
  monkeypatch.setattr(triton_kernel, 'CHUNK', 256 * 2048 * 2)
  program = traced(name, tokens=1024, width=64, words=2048)
  made = {v.aval.shape for e in _outside(program.jaxpr.jaxpr) for v in e.outvars}
  found = [s for s in made if len(s) > 1 and s[-1] >= 2048 and s[-2] > 64]
  assert max((int(np.prod(s)) for s in found), default=0) == most


def _outside(jaxpr):
  """Equations, those of kernels left out."""
  for e in jaxpr.eqns:
    yield e
    if e.primitive.name != 'pallas_call':
      for _, inner in jaxprs.inner(e):
        yield from _outside(inner)


# ---- what is refused


def refused(name, platform='', **facts):
  usual = dict(unembed=(512, 64), tokens=(2, 128), dtype=jnp.bfloat16, twice=False)
  platform = platform or KERNELS[name][0]
  return op.IMPLEMENTATIONS[name].refuses(platform=platform, **usual | facts)


@pytest.mark.parametrize(
  'name, why, facts',
  [
    ('mosaic', 'mosaic runs on TPUs, this is for a gpu', dict(platform='gpu')),
    ('mosaic', 'no second derivative', dict(twice=True)),
    ('mosaic', 'bfloat16 or float32, not float16', dict(dtype=jnp.float16)),
    ('mosaic', 'not 65,536', dict(unembed=(512, 65_536))),
    ('triton', 'triton runs on NVIDIA GPUs, this is for a tpu', dict(platform='tpu')),
    ('triton', 'no second derivative', dict(twice=True)),
    ('triton', 'not float64', dict(dtype=jnp.float64)),
  ],
)
def test_what_a_kernel_refuses(name, why, facts):
  assert why in refused(name, **facts)
  assert refused(name) == refused(name, dtype=jnp.float32) == ''


@pytest.mark.parametrize('capability, why', [('9.0', ''), ('8.0', ''), ('7.5', 'Ampere')])
def test_triton_asks_the_gpu(capability, why, monkeypatch):
  class Gpu:
    compute_capability = capability

  monkeypatch.setattr(jax, 'local_devices', lambda backend: [Gpu()])
  assert why in triton.device() and bool(why) == bool(triton.device())
  Gpu.compute_capability = 'gfx942'
  assert 'this is another' in triton.device()


@pytest.mark.parametrize('width, item', [(1, 2), (768, 2), (4096, 2), (8192, 4), (16384, 2)])
def test_tiles_fit(width, item):
  stay, by = mosaic.tile(width, item)
  operands, result = 2 * (stay + by) * width * item, 2 * stay * width * 4
  assert operands + result + 3 * stay * by * 4 <= mosaic.MEMORY < mosaic_kernel.LIMIT
  assert stay % by == 0 and by % 128 == 0


@pytest.mark.parametrize('name', KERNELS)
def test_what_was_asked_for_and_cannot_run_is_an_error(name):
  arrays, y = plain.inputs()
  with pytest.raises(ValueError, match=f"linear_cross_entropy='{name}': {name} runs on .* can"):
    plain.slope(name, arrays, y)
  with choice.using(platform=KERNELS[name][0]):
    with choice.using(twice=True), pytest.raises(ValueError, match='second derivative; whole or'):
      plain.slope(name, arrays, y)
    with jax.set_mesh(_meshes.make('explicit', data=8)):
      with pytest.raises(ValueError, match="mesh.mode='auto'"):
        jax.eval_shape(lambda: plain.slope(name, arrays, y))
    with jax.set_mesh(_meshes.make(data=8)):
      with pytest.raises(ValueError, match='do not divide over the devices'):
        jax.eval_shape(lambda: plain.slope(name, arrays, y))


@pytest.mark.parametrize('platform', ['cpu', 'gpu', 'tpu'])
def test_auto_takes_none_of_them(platform):
  """Chunks are first: nothing was measured on a device, and they make fewer products."""
  given = (
    jax.ShapeDtypeStruct((1, 2048, 8), jnp.bfloat16),
    jax.ShapeDtypeStruct((50_304, 8), jnp.float32),
  )
  y, weights = jnp.zeros((1, 2048), jnp.int32), jnp.ones((1, 2048))
  f = lambda x, w: op.linear_cross_entropy(x, w, y, weights).total
  with choice.using(platform=platform):
    program = str(jax.make_jaxpr(f)(*given))
  assert 'scan' in program and 'pallas_call' not in program

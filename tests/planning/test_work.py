"""FLOPs, memory traffic and arrays of compiled programs against counts by hand."""

import functools
import importlib.util
import os
import pathlib

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np
import pytest

import _meshes
from lmjax import build
from lmjax import config
from lmjax import flops as flops_lib
from lmjax.parallel import mesh as mesh_lib
from lmjax.parallel import shard
from lmjax.planning import hlo
from lmjax.planning import traffic
from lmjax.planning import work

FILES = pathlib.Path(__file__).parent / 'hlo'  # see test_hlo.py
eight = pytest.mark.skipif(
  jax.device_count() < 8, reason='eight devices are needed; on the CPU conftest.py simulates them'
)


def stored(name: str) -> hlo.Program:
  return hlo.parse((FILES / f'{name}.txt').read_text())


def compiled(f, *shapes, dtype=jnp.float32) -> hlo.Program:
  args = [jax.ShapeDtypeStruct(s, dtype) if isinstance(s, tuple) else s for s in shapes]
  return hlo.parse(jax.jit(f).lower(*args).compile().as_text())


# ---- FLOPs


def test_products_by_hand():
  assert work.flops(compiled(lambda a, b: a @ b, (48, 32), (32, 40))) == 2 * 48 * 32 * 40
  scores = lambda q, k: jnp.einsum('bthd,bshd->bhts', q, k)
  assert work.flops(compiled(scores, (2, 16, 3, 8), (2, 24, 3, 8))) == 2 * 2 * 3 * 16 * 24 * 8
  assert work.flops(compiled(lambda a: jnp.tanh(a) + 1, (48, 32))) == 0


CONVOLUTIONS = {  # (stride, padding, input holes, window holes, groups)
  'same': (1, (1, 1), 1, 1, 1),
  'causal, by feature': (1, (2, 0), 1, 1, 4),
  'strided': (2, (1, 0), 1, 1, 1),
  'dilated window': (1, (2, 2), 1, 2, 2),
  'transposed': (1, (2, 2), 3, 1, 1),
}


@pytest.mark.parametrize('name', CONVOLUTIONS)
def test_convolutions_meet_their_input_without_padding_and_holes(name):
  """Ones convolved with ones count the products of every output."""
  stride, pad, holes, spread, groups = CONVOLUTIONS[name]

  def f(x, w):
    return jax.lax.conv_general_dilated(
      x, w, (stride,), [pad], (holes,), (spread,), ('NWC', 'WIO', 'NWC'), groups
    )

  x, w = jnp.ones((2, 9, 4)), jnp.ones((3, 4 // groups, 8))
  products = float(f(x, w).sum())
  text = 'convolution(%x, %w), window={size=3 stride=%d pad=%d_%d lhs_dilate=%d rhs_dilate=%d}, '
  text = text.replace('%x, %w', '%%x, %%w') % (stride, *pad, holes, spread)
  shape = ','.join(map(str, f(x, w).shape))
  program = hlo.parse(
    'HloModule m\n\nENTRY %e (x: f32[2,9,4], w: f32[3]) -> f32[] {\n'
    '  %x = f32[2,9,4]{2,1,0} parameter(0)\n'
    f'  %w = f32[3,{4 // groups},8]{{2,1,0}} parameter(1)\n'
    f'  ROOT %y = f32[{shape}]{{2,1,0}} {text}dim_labels=b0f_0io->b0f, '
    f'feature_group_count={groups}\n}}\n'
  )
  assert work.flops(program) == 2 * products


def test_a_tpu_makes_convolutions_of_products():
  assert work.flops(stored('tpu_batched_product')) == 2 * 64 * 16 * 256 * 256 * 64
  assert work.flops(stored('tpu_zero3')) == 2 * (2 * 1024**3)


@pytest.mark.parametrize(
  'left, right, out, window, want',
  [
    # two pieces of a matrix that travels around a ring, side by side, and one after the other
    (
      (16, 128, 512, 1),
      (16, 128, 2, 128),
      (512, 2, 128, 1),
      'window={size=2x16 pad=1_1x0_0 rhs_reversal=1x0}, dim_labels=1fb0_1i0o->b0f1',
      2 * (2 * 512 * (16 * 128) * 128),
    ),
    (
      (16, 128, 2, 128),
      (2, 128, 512, 1),
      (16, 128, 512, 1),
      'window={size=2x1}, dim_labels=1b0f_0io1->1bf0',
      2 * (16 * 128) * (2 * 128) * 512,
    ),
    # 1,024 tokens to 6 heads of 64
    (
      (2, 1024, 768),
      (6, 768, 64, 1),
      (2, 1024, 6, 64),
      'window={size=1x6 pad=0_0x5_5 rhs_reversal=0x1}, dim_labels=0bf1_1io0->0b1f',
      2 * (2 * 1024) * 768 * (6 * 64),
    ),
  ],
  ids=['pieces side by side', 'pieces summed', 'heads'],
)
def test_windows_of_a_tpu(left, right, out, window, want):
  left = left if len(left) == 4 else (*left, 1)
  shape = lambda dims: f'bf16[{",".join(map(str, dims))}]'
  program = hlo.parse(
    'HloModule m\n\nENTRY %e () -> bf16[] {\n'
    f'  %x = {shape(left)}{{3,2,1,0}} parameter(0)\n'
    f'  %w = {shape(right)}{{3,2,1,0}} parameter(1)\n'
    f'  ROOT %y = {shape(out)}{{3,2,1,0}} convolution(%x, %w), {window}\n}}\n'
  )
  assert work.flops(program) == want


def test_products_of_a_gpus_library():
  program = stored('gpu_library_product')
  assert work.flops(program) == 2 * 8 * 4 * 256 * 256 * 128
  assert work.opaque(program) == []


def test_kernels_count_what_they_state_and_are_listed_otherwise():
  program = stored('tpu_kernels')
  assert work.flops(program) == 12345
  (one,) = work.opaque(program)
  assert (one.target, one.count, one.results[0].dims) == ('tpu_custom_call', 1, (256, 256))
  assert one.op_name.endswith('pallas_call')


def layers(n: int, scanned: bool):
  """n layers of two matrices, and the gradient with respect to everything."""

  def layer(h, w):
    return h + jnp.tanh(h @ w[0]) @ w[1], None

  def loss(w, h):
    if scanned:
      h, _ = jax.lax.scan(layer, h, w)
    else:
      for i in range(n):
        h, _ = layer(h, jax.tree.map(lambda a, i=i: a[i], w))
    return (h**2).mean()

  return jax.grad(loss, (0, 1))


def by_layers(scanned: bool, place) -> hlo.Program:
  n, rows, width, hidden = 3, 256, 128, 256
  w = place((n, width, hidden)), place((n, hidden, width))
  f = jax.jit(layers(n, scanned))
  return hlo.parse(f.lower(w, place((rows, width))).compile().as_text())


def test_scanned_equals_unrolled():
  place = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  assert work.flops(by_layers(True, place)) == 3 * 3 * 2 * (2 * 256 * 128 * 256)
  assert work.flops(by_layers(False, place)) == 3 * 3 * 2 * (2 * 256 * 128 * 256)


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed (lmjax[tpu])'
)
def test_scanned_equals_unrolled_on_a_tpu(monkeypatch):
  """Compiled for eight chips, ZeRO-3 and tensor parallel; also loops of collectives count right."""
  from jax.experimental import topologies

  monkeypatch.setitem(os.environ, 'TPU_SKIP_MDS_QUERY', '1')
  monkeypatch.setitem(os.environ, 'ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  devices = topologies.get_topology_desc('v5e:2x4', platform='tpu').devices
  mesh = Mesh(np.array(devices).reshape(4, 2), ('data', 'tensor'))

  def place(shape):
    spec = P(None, 'data', 'tensor') if len(shape) == 3 else P('data')
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))

  found = [by_layers(scanned, place) for scanned in (True, False)]
  assert [work.flops(p) for p in found] == 2 * [3 * 3 * 2 * (2 * 256 * 128 * 256) / 8]
  for program in found:
    axes = {c.axes for c in traffic.collectives(program, mesh)}
    assert axes == {('data',), ('tensor',)}


# ---- memory and arrays


def test_memory_traffic_by_hand():
  read_and_write = 2 * 4 * 512 * 256
  assert work.memory_traffic(compiled(lambda x: jnp.sin(x) + 1, (512, 256))) == read_and_write
  found = work.memory_traffic(compiled(lambda x, w: x @ w, (512, 256), (256, 128)))
  assert found == pytest.approx(4 * (512 * 256 + 256 * 128 + 512 * 128), rel=0.02)


def test_a_loop_reads_and_writes_slices():
  """A scan over 64 rows reads each once and writes each once, not the whole 64 times."""

  def f(x):
    return jax.lax.scan(lambda c, row: (c + 1, jnp.sin(row) * c), 1.0, x)[1]

  whole = 4 * 64 * 1024
  found = work.memory_traffic(compiled(f, (64, 1024)))
  assert 2 * whole <= found < 4 * whole


def test_on_chip_memory_costs_nothing():
  """One kernel of a TPU writes to the core's own memory, the next reads from there."""
  assert work.memory_traffic(stored('tpu_kernels')) == 2 * 4 * 256 * 256


@eight
def test_what_is_materialized():
  mesh = mesh_lib.make(_meshes.settings(data=4, tensor=2))
  cut = NamedSharding(mesh, P('data', 'tensor'))

  def f(gathered, x):
    y = jnp.sin(x)
    if gathered:
      y = jax.lax.with_sharding_constraint(y, NamedSharding(mesh, P()))
    return jax.lax.with_sharding_constraint(jnp.cos(y), cut)

  x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=cut)
  sharded, whole = (compiled(functools.partial(f, g), x) for g in (False, True))
  assert work.shapes(sharded) == {('f32', (16, 16))}
  assert ('f32', (64, 32)) in work.shapes(whole)
  top = work.largest(whole, 1)[0]
  assert (top.bytes, top.shape.dims) == (64 * 32 * 4, (64, 32))
  assert work.largest(sharded, 1)[0].bytes == 16 * 16 * 4


def test_arguments_are_there_too():
  program = compiled(lambda x: x.sum(), (512, 256))
  assert ('f32', (512, 256)) in work.shapes(program)
  assert work.largest(program, 1)[0].opcode == 'parameter'


# ---- the training step


@functools.cache
def step():
  """(run, its compiled step on four times two devices, the mesh)."""
  sizes = [('batch_tokens', '1024'), ('model.depth', '2')]
  run = build.build(config.resolve(config.load('llama:tiny', sizes)))
  mesh = mesh_lib.make(_meshes.settings(data=4, tensor=2))
  with jax.set_mesh(mesh):
    put = lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
    state = jax.tree.map(put, run.state_shapes, run.shardings())
    place = NamedSharding(mesh, shard.spec(('batch', None)))
    rows = jax.tree.map(lambda a: put(a, place), run.batch_shapes())
    f = jax.jit(run.step, donate_argnums=0, out_shardings=(run.shardings(), None))
    text = f.lower(state, rows, jax.random.key(0)).compile().as_text()
  return run, hlo.parse(text), mesh


@eight
def test_a_step_costs_what_the_parameters_say():
  """Three times the matrices, as the model's count has it. Attention leaves out the upper right
  quarter of a row of 128 tokens in blocks of 64, and makes logits again on its way back: seven
  products of queries and keys instead of six.
  """
  run, program, _ = step()
  count = flops_lib.per_token(run)
  attention = count.mixing_full / 2 * 7 * 3 / 4
  assert work.flops(program) * 8 == 1024 * (3 * count.matrices + attention)
  assert 0.9 < work.flops(program) * 8 / (1024 * count.step_full) < 1


@eight
def test_the_collectives_of_a_step():
  """ZeRO-3 gathers each half of a matrix over `data`, those of layers again on the way back, and
  sums its gradient there; tensor parallelism sums activations over `tensor`, after attention and
  feed-forward, and on the way back.
  """
  run, program, mesh = step()
  found = traffic.collectives(program, mesh)
  assert {c.axes for c in found if c.payload > 1000} == {('data',), ('tensor',)}
  halves = sum(
    4 * np.prod(s.shape) / 2 * (2 if len(s.shape) > 2 else 1)
    for s in jax.tree.leaves(run.shapes['params'])
    if len(s.shape) > 1 and s.shape != (2, 128)  # all but the scales of norms
  )
  gathered = sum(c.payload * c.count for c in found if c.kind == 'all-gather')
  assert gathered == halves
  sums = [c for c in found if c.axes == ('tensor',) and c.payload > 100_000]
  assert {c.kind for c in sums} == {'all-reduce'} and {c.dtype for c in sums} == {'f32'}
  one = 2 * 128 * 128 * 4  # two rows of activations
  least = 1 + 2 * (2 + 2) + 1  # embedding, layers with two sublayers there and back, logits
  most = 1 + 2 * (2 + 5) + 1  # each matrix of a sublayer by itself on the way back
  assert least * one <= sum(c.payload * c.count for c in sums) <= most * one


@eight
def test_no_logits_and_no_table_of_a_step_are_whole():
  """Of 260 words and two rows of 128 a device."""
  made = {dims for _, dims in work.shapes(step()[1])}
  assert {(2, 128, 130), (130, 128), (130, 32)} <= made
  assert not [dims for dims in made if 260 in dims]

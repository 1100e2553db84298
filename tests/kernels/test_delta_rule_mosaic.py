"""The delta rule's kernel for TPUs, interpreted, lowered and compiled without one: it equals the
recurrence, and moves its inputs and results once.
"""

import contextlib

import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jax.sharding import NamedSharding
import numpy as np
import pytest

import _meshes
import _table
from lmjax.kernels import choice
from lmjax.kernels.delta_rule import chunked
from lmjax.kernels.delta_rule import delta_rule
from lmjax.kernels.delta_rule import mosaic
from lmjax.parallel import shard
from lmjax.planning import hlo
from lmjax.planning import work

B, K, V = 2, 8, 16


@pytest.fixture
def small(monkeypatch):
  monkeypatch.setattr(mosaic, 'CHUNK', 8)
  monkeypatch.setattr(mosaic, 'HEADS', (2,))


def inputs(steps, heads=2, starts=(), dtype=jnp.float32, beta=None, alike=False):
  normal = lambda *shape, i: _table.normal(*shape, seed=i)
  q, k, v = (normal(B, steps, heads, n, i=i) for i, n in enumerate((K, K, V)))
  k = jnp.broadcast_to(k[:, :1], k.shape) if alike else k
  q, k = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
  b = jax.nn.sigmoid(normal(B, steps, heads, i=3)) if beta is None else jnp.full(q.shape[:3], beta)
  begins = np.zeros((B, steps), bool)
  begins[0, list(starts)] = True  # the other row is one document
  arrays = *(x.astype(dtype) for x in (q, k, v)), b, normal(B, heads, K, V, i=4)
  return arrays, jnp.asarray(begins)


@contextlib.contextmanager
def interpreted():
  with choice.using(platform='tpu'), pltpu.force_tpu_interpret_mode(True):
    yield


def run(name, arrays, starts):
  """(what is read, the memory behind, gradients) of a weighted sum."""
  o, s = (_table.normal(*x, seed=9) for x in (arrays[2].shape, arrays[4].shape))

  def total(*given):
    found = delta_rule(*given[:4], starts_BT=starts, state_BHKV=given[4], implementation=name)
    return sum(jnp.sum(jnp.sin(x) * w) for x, w in zip(found, (o, s))), found

  with interpreted():
    grads, found = jax.jit(jax.grad(total, range(5), has_aux=True))(*arrays)
  return *found, grads


CASES = [
  (8, 1, ()),
  (8, 4, (0,)),
  (16, 2, (8,)),  # at the edge of a chunk
  (29, 4, (1, 3, 17)),  # two in one chunk, none in the next; five tokens in the last
  (33, 3, (10, 32)),  # one token in the last, and it begins a document
  (13, 2, tuple(range(13))),
]


@pytest.mark.parametrize('steps, heads, starts', CASES)
def test_the_kernel_equals_the_recurrence_and_its_gradients(steps, heads, starts, small):
  given = inputs(steps, heads, starts)
  got, want = run('mosaic', *given), run('reference', *given)
  _table.trees_close(got[:2], want[:2], 2e-6)
  _table.trees_close(got[2], want[2], 1e-5)


def test_chunks_of_the_usual_length_and_keys_that_are_alike():
  """Powers of A, with which the inverse could be made as well, grow beyond float32's digits."""
  for given in (inputs(150, starts=(70, 100)), inputs(128, beta=0.99, alike=True)):
    _table.trees_close(run('mosaic', *given)[:2], run('reference', *given)[:2], 1e-5)


def test_bfloat16_is_rounded_no_more_than_in_chunks(small):
  given = inputs(37, starts=(11,), dtype=jnp.bfloat16)
  got, chunks, want = (run(name, *given) for name in ('mosaic', 'chunked', 'reference'))
  error = lambda x, y: np.abs(np.asarray(x, np.float32) - np.asarray(y, np.float32)).max()
  for a, b, c in zip(got, chunks, want):
    for x, y, z in zip(*map(jax.tree.leaves, (a, b, c))):
      assert x.dtype == z.dtype
      assert error(x, z) <= 1.5 * error(y, z) + 1e-3


def program(shape, values, dtype, name=None, backward=False, place=None):
  """(its arguments and results, traced for a TPU)."""
  rows, _, heads, k = shape
  like = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=place)
  q, v, b = like(shape, dtype), like((*shape[:3], values), dtype), like(shape[:3], jnp.float32)
  given = q, q, v, b, like((rows, heads, k, values), jnp.float32)
  f = lambda *a: delta_rule(*a[:4], state_BHKV=a[4], implementation=name)
  if backward:
    f, forward = lambda do, ds, *a: jax.vjp(forward, *a)[1]((do, ds)), f
    given = v, given[4], *given
  with choice.using(platform='tpu'):
    found = jax.tree.leaves(jax.eval_shape(f, *given))
    return [*given, *found], jax.jit(f).trace(*given)


REFUSED = {
  'runs on TPUs, this is for a cpu': dict(platform='cpu'),
  'no second derivative': dict(twice=True),
  'not float16': dict(dtype=jnp.float16),
  'at least 64 tokens, these have 63': dict(shape=(1, 63, 2, 8)),
  r'multiple of 8 up to 256, these have \(12, 16\)': dict(shape=(1, 64, 2, 12)),
  r'multiple of 8 up to 256, these have \(8, 264\)': dict(values=264),
  'up to 16 heads or a multiple of 8, a device has 17': dict(shape=(1, 64, 17, 8)),
}


@pytest.mark.parametrize('why', REFUSED)
def test_refused(why):
  case = dict(platform='tpu', twice=False, dtype=jnp.bfloat16, shape=(1, 64, 2, 8), values=16)
  case |= REFUSED[why]
  like = jax.ShapeDtypeStruct
  q, b = like(case['shape'], case['dtype']), like(case['shape'][:3], jnp.float32)
  given = q, q, like((*q.shape[:3], case['values']), q.dtype), b
  with choice.using(platform=case['platform'], twice=case['twice']):
    assert 'pallas_call' not in str(jax.make_jaxpr(delta_rule)(*given))
    with choice.using(delta_rule='mosaic'), pytest.raises(ValueError, match=why):
      jax.eval_shape(delta_rule, *given)


def test_auto_takes_the_kernel_on_a_tpu_and_the_cpu_has_the_program_of_before():
  like = jax.ShapeDtypeStruct
  q, b = like((1, 64, 2, 8), jnp.bfloat16), like((1, 64, 2), jnp.float32)
  text = lambda: str(jax.make_jaxpr(delta_rule)(q, q, q, b))
  with choice.using(delta_rule='chunked'):
    old = text()
  assert text() == old
  with choice.using(platform='tpu'):
    assert 'pallas_call' in text()


@pytest.mark.skipif(jax.device_count() < 8, reason='eight devices are needed')
def test_each_device_has_its_rows_and_heads(small):
  arrays, starts = inputs(13, 4, (5,))
  want = run('reference', arrays, starts)
  with jax.set_mesh(_meshes.make(data=2, tensor=4)):
    mesh = jax.sharding.get_mesh()
    put = lambda x, *names: jax.device_put(x, NamedSharding(mesh, shard.spec(names)))
    q, k, v = (put(x, *chunked.STEPS) for x in arrays[:3])
    given = q, k, v, put(arrays[3], *chunked.STEPS[:3]), put(arrays[4], *chunked.MEMORY)
    got = run('mosaic', given, put(starts, 'batch', None))
    assert got[0].sharding.shard_shape(got[0].shape) == (1, 13, 1, V)
  _table.trees_close(got[:2], want[:2], 2e-6)
  _table.trees_close(got[2], want[2], 1e-5)


def test_a_mesh_that_does_not_divide_or_is_explicit_is_refused():
  like = jax.ShapeDtypeStruct
  q, b = like((8, 64, 3, 8), jnp.bfloat16), like((8, 64, 3), jnp.float32)
  cut = ('auto', dict(data=4, tensor=2), '3 heads'), ('explicit', dict(data=8), "mode='auto'")
  for mode, sizes, why in cut:
    with choice.using(platform='tpu', delta_rule='mosaic'):
      with jax.set_mesh(_meshes.make(mode, **sizes)), pytest.raises(ValueError, match=why):
        jax.eval_shape(lambda *a: delta_rule(*a), q, q, q, b)


SHAPES = [  # (q, size of a value)
  ((4, 256, 16, 128), 128),
  ((2, 100, 24, 64), 128),
  ((1, 65, 3, 40), 24),
  ((1, 128, 16, 256), 256),
]


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
@pytest.mark.parametrize('shape, values', SHAPES)
def test_lowered_for_a_tpu(shape, values, dtype):
  for backward, kernels in ((False, 1), (True, 2)):
    _, traced = program(shape, values, getattr(jnp, dtype), backward=backward)
    text = traced.lower(lowering_platforms=('tpu',)).as_text()
    assert text.count('tpu_custom_call') == kernels


@pytest.mark.slow
@pytest.mark.parametrize(
  'dtype, one_tpu',
  [('bfloat16', 'v5e-1'), ('float32', 'v5p:1x1x1'), ('bfloat16', 'v6e-1')],
  indirect=['one_tpu'],
)
def test_compiles_for_tpus_and_moves_inputs_and_results_once(dtype, one_tpu):
  for shape, values in [*SHAPES, ((4, 2048, 16, 128), 128)]:
    for backward in (False, True):
      arrays, traced = program(shape, values, getattr(jnp, dtype), 'mosaic', backward, one_tpu)
      counted = hlo.parse(traced.lower().compile().as_text())
      assert work.opaque(counted) == []
  least = sum(x.size * x.dtype.itemsize for x in arrays)  # the last: a gradient of whole tiles
  assert work.memory_traffic(counted) < 2 * least

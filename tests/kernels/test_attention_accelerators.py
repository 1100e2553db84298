"""Attention of accelerators, without any: splash interpreted, lowered and compiled for TPUs; what
cuDNN is asked for, computed by XLA; and what each refuses.
"""

import functools

import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

import _meshes
import _table
from lmjax import build
from lmjax import config
from lmjax import kinds
from lmjax.kernels import attention as op
from lmjax.kernels import choice
from lmjax.kernels.attention import cudnn
from lmjax.kernels.attention import tokamax
from lmjax.kernels.attention import splash
from lmjax.models.architectures import _recursion_select as select
from lmjax.models.mixers import gqa
from lmjax.parallel import jaxprs
from lmjax.planning import chips
from lmjax.planning import hlo
from lmjax.planning import walk as walk_lib
from lmjax.planning import work


def inputs(steps=150, heads=4, groups=2, size=8, rows=2, dtype=np.float32, segments=True):
  """(arrays, keywords): three documents in the first row, padding behind and within the second."""
  rng = np.random.default_rng(0)
  normal = lambda n: jnp.asarray(rng.normal(size=(rows, steps, n, size)), dtype)
  places = jnp.tile(jnp.arange(steps, dtype=jnp.int32), (rows, 1))
  how = dict(q_positions=places, k_positions=places)
  if segments:
    s = np.ones((rows, steps), np.int32)
    s[0, steps // 3 :] = 2
    s[0, steps // 2 :] = 3
    s[1, -steps // 5 :] = s[1, 3:6] = 0
    how |= dict(q_segments=jnp.asarray(s))
    how |= dict(k_segments=how['q_segments'])
  return (normal(heads), normal(groups), normal(groups)), how


def slope(arrays, how, name, **more):
  """(gradients, y) of a sum that no symmetry hides."""

  def total(arrays):
    y = op.attention(*arrays, **how, **more, implementation=name)
    return jnp.sum(jnp.sin(3 * y.astype(jnp.float32))), y

  return jax.jit(jax.grad(total, has_aux=True))(arrays)


def interpreted(*args, **more):
  with choice.using(platform='tpu'), pltpu.force_tpu_interpret_mode(True):
    return slope(*args, 'splash', **more)


def same(got, want, atol=2e-5):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    np.testing.assert_allclose(a, b, atol=atol)


CASES = {
  'documents': (dict(), dict()),
  'no documents, no multiple of 128': (dict(segments=False), dict()),
  'both ways': (dict(segments=False, steps=130), dict(causal=False)),
  'window': (dict(), dict(window=50)),
  'window both ways': (dict(), dict(window=30, causal=False)),
  'cap, one head of keys, scale': (dict(groups=1, size=16), dict(cap=2.0, scale=0.3)),
}


@pytest.mark.parametrize('case', CASES, ids=str)
def test_splash_equals_the_reference(case, monkeypatch):
  monkeypatch.setattr(splash, 'BLOCKS', (128,))
  shapes, more = CASES[case]
  arrays, how = inputs(**shapes)
  got = interpreted(arrays, how, **more)
  same(got, slope(arrays, how, 'reference', **more))
  if shapes.get('segments', True):
    padding = np.asarray(how['q_segments']) == 0
    assert padding.any() and all(np.all(np.asarray(x)[padding] == 0) for x in (*got[0], got[1]))


@pytest.mark.skipif(jax.device_count() < 8, reason='eight devices are needed')
@pytest.mark.parametrize('axes, groups', [(dict(data=4, tensor=2), 1), (dict(data=2, tensor=4), 2)])
def test_splash_on_pieces(axes, groups):
  """Each device has its rows and heads, and keys for them where there are fewer than devices."""
  arrays, how = inputs(steps=130, groups=groups, rows=4)
  with jax.set_mesh(_meshes.make(**axes)):
    got = jax.tree.map(np.asarray, interpreted(arrays, how))
  same(got, slope(arrays, how, 'reference'))


@pytest.mark.parametrize(
  'causal, window',
  [(True, None), (False, None), (True, 130), (False, 130), (False, 128), (True, 300)],
)
def test_blocks_that_splash_is_told_of(causal, window):
  how = splash.How(causal, window, None, 1.0, 128)
  place = np.arange(640)
  gap = place[:, None] - place
  seen = np.ones((640, 640), bool)
  seen &= gap >= 0 if causal else True
  seen &= np.abs(gap) < window if window else True
  tiles = seen.reshape(5, 128, 5, 128)
  for i in range(5):
    for j in range(5):
      span = lambda n: slice(128 * n, 128 * n + 128)
      assert how.met(span(i), span(j)) == (tiles[i, :, j].any(), tiles[i, :, j].all())
  assert how.blocks(640) == tiles.any(axis=(1, 3)).sum()


def on_a_tpu(steps, size, *, implementation='splash', place=None, **shapes):
  """A train-like gradient, traced for TPUs: layers are scanned and computed again."""
  (q, k, _), how = jax.eval_shape(lambda: inputs(steps=steps, size=size, **shapes)[:1] + ({},))
  place = {} if place is None else dict(sharding=place)
  of = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, **place)
  where = jax.ShapeDtypeStruct(q.shape[:2], jnp.int32, **place)

  def loss(q, k, v, where):
    def layer(x, _):
      how = dict(q_positions=where, k_positions=where, q_segments=where, k_segments=where)
      return x + op.attention(x, k, v, **how, implementation=implementation), None

    return jnp.sum(jax.lax.scan(jax.checkpoint(layer), q, length=2)[0].astype(jnp.float32))

  with choice.using(platform='tpu'):
    return jax.jit(jax.grad(loss, (0, 1, 2))).trace(of(q), of(k), of(k), where)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_splash_lowers_for_tpus(dtype):
  with jax.default_matmul_precision('high'):
    traced = on_a_tpu(200, 8, dtype=dtype)
    text = traced.lower(lowering_platforms=('tpu',)).as_text()
  assert text.count('tpu_custom_call') == 4  # forward, again, dq, and dk with dv
  equations = list(jaxprs.equations(traced.jaxpr.jaxpr))
  kernels = [e.params['jaxpr'] for e in equations if e.primitive.name == 'pallas_call']
  dots = [e for k in kernels for e in jaxprs.equations(k) if e.primitive.name == 'dot_general']
  exact = [
    'HIGHEST' in str(e.params['precision']) for e in dots
  ]  # for float32 alone, Mosaic has it
  assert dots and all(x == (dtype == jnp.float32) for x in exact)


def test_what_splash_states_is_what_plans_count(monkeypatch):
  """Three of four blocks, as often as the layers run: two products forward, the same again, and
  seven backward, where XLA's blocks have five; and dy.y, which is a product by itself here.
  """
  monkeypatch.setattr(splash, 'BLOCKS', (128,))
  traced = on_a_tpu(256, 64)
  times, block = 2 * 2 * 4, 2 * 128 * 128 * 64  # layers x rows x heads; FLOPs of a product
  want = times * (3 * block * (2 + 2 + 7) + 2 * 256 * 64)
  walk = walk_lib.Walk({}, {}, chips.CHIPS['v5e'])
  given = [walk.value(a, ((),) * len(a.shape)) for a in traced.jaxpr.in_avals]
  _, (live, _) = walk.run(traced.jaxpr.jaxpr, given, 1)
  assert walk.flops == want
  xla = walk_lib.Walk({}, {}, chips.CHIPS['v5e'])
  whole = on_a_tpu(256, 64, implementation='xla').jaxpr
  more = xla.run(whole.jaxpr, given, 1)[1][0]
  assert xla.flops == times * (10 / 16 * 256 * 256) * 2 * 64 * (2 + 2 + 5)
  assert xla.bytes > walk.bytes > times * (2 + 2 + 7) * 256 * 64 * 4
  assert more > 0 and live > 2 * 4 * 256 * 128 * 4  # sums of exponentials, 128 times each


def test_a_kernel_that_states_nothing_counts_its_grid():
  from jax.experimental import pallas as pl

  def body(x, y, out):
    out[...] = x[...] @ y[...]

  def f(x, y):
    spec = pl.BlockSpec((8, 16), lambda i: (i, 0))
    given = [spec, pl.BlockSpec((16, 16), lambda i: (0, 0))]
    shape = jax.ShapeDtypeStruct((32, 16), jnp.float32)
    return pl.pallas_call(body, grid=(4,), in_specs=given, out_specs=spec, out_shape=shape)(x, y)

  def walked(f):
    traced = jax.make_jaxpr(f)(jnp.ones((32, 16)), jnp.ones((16, 16)))
    walk = walk_lib.Walk({}, {}, chips.CHIPS['v5e'])
    given = [walk.value(a, ((), ())) for a in traced.in_avals]
    return walk, walk.run(traced.jaxpr, given, 1)[1][0]

  walk, live = walked(f)
  assert walk.flops == 2 * 32 * 16 * 16 and walk.bytes == 4 * (32 * 16 * 2 + 16 * 16)
  assert live == 4 * 32 * 16
  walk, live = walked(lambda x, y: f(2 * x, y))  # nothing is fused into a kernel
  assert walk.bytes == 4 * (32 * 16 * 4 + 16 * 16) and live == 2 * 4 * 32 * 16


@pytest.mark.slow
@pytest.mark.parametrize('size', [64, 128])
def test_splash_compiles_for_tpus(size, one_tpu):
  traced = on_a_tpu(2048, size, dtype=jnp.bfloat16, place=one_tpu)
  program = traced.lower().compile()
  counted = hlo.parse(program.as_text())
  assert work.opaque(counted) == []
  want = 2 * 2 * 4 * 10 * (2 * 512 * 512 * size) * 11  # layers, rows, heads, blocks, products
  assert want <= work.flops(counted) <= 1.001 * want
  logits = [s for s in work.shapes(counted) if sum(n >= 512 for n in s[1]) > 1]
  assert not logits


# ---- what is refused


def refused(name, q=None, k=None, platform='', **facts):
  q = jax.ShapeDtypeStruct((2, 256, 4, 64), jnp.bfloat16) if q is None else q
  usual = dict(causal=True, window=None, cap=None, bias=False, aligned=True, segments='own')
  usual |= dict(consecutive=True, twice=False, platform=platform or dict(cudnn='gpu')[name])
  return op.IMPLEMENTATIONS[name].refuses(q=q, k=q if k is None else k, **usual | facts)


def like(*shape, dtype=jnp.bfloat16):
  return jax.ShapeDtypeStruct(shape, dtype)


SPLASH = {
  'runs on TPUs': dict(platform='cpu'),
  'takes no bias': dict(bias=True),
  'without a cache or a prefix': dict(aligned=False),
  'of the same places': dict(k=like(2, 512, 4, 64)),
  'of the same segments': dict(segments='other'),
  'counts a window in places': dict(window=5, consecutive=False),
  'bfloat16 or float32': dict(q=like(2, 256, 4, 64, dtype=jnp.float16)),
  'of 128 to 131072 tokens, these have 262144': dict(q=like(1, 2**18, 4, 64)),
  'these have 64': dict(q=like(1, 64, 4, 64)),
  'multiple of 8 up to 256': dict(q=like(2, 256, 4, 12)),
  'no second derivative': dict(twice=True),
}


@pytest.mark.parametrize('why', SPLASH)
def test_splash_refuses(why):
  assert why in refused('splash', **dict(platform='tpu') | SPLASH[why])


def test_splash_takes_the_rest():
  for more in (dict(), dict(window=5), dict(cap=2.0), dict(segments=''), dict(causal=False)):
    assert refused('splash', platform='tpu', **more) == ''
  assert refused('splash', platform='tpu', consecutive=False) == ''
  assert refused('splash', like(1, 2**17, 4, 256, dtype=jnp.float32), platform='tpu') == ''


CUDNN = {
  'runs on NVIDIA GPUs': dict(platform='tpu'),
  'no soft-cap': dict(cap=2.0),
  'no bias': dict(bias=True),
  'bfloat16 or float16': dict(q=like(2, 256, 4, 64, dtype=jnp.float32)),
  'even lengths': dict(q=like(2, 255, 4, 64)),
  'a mask of 268,500,992 bytes': dict(q=like(2, 8194, 4, 64), k=like(2, 8192, 4, 64)),
  'multiple of 8 up to 128': dict(q=like(2, 256, 4, 136)),
  'counts a window': dict(segments='', window=5, consecutive=False),
  'no second derivative': dict(twice=True),
}


@pytest.mark.parametrize('why', CUDNN)
def test_cudnn_refuses(why, monkeypatch):
  monkeypatch.setattr(cudnn, 'device', lambda: ('', 128))
  found = refused('cudnn', **CUDNN[why])
  assert why.replace('no bias', 'takes no bias') in found


def test_cudnn_takes_the_rest(monkeypatch):
  monkeypatch.setattr(cudnn, 'device', lambda: ('', 256))
  assert refused('cudnn') == refused('cudnn', window=5) == ''
  assert refused('cudnn', like(2, 8192, 4, 256)) == ''
  assert refused('cudnn', like(2, 10**6 + 1, 4, 64), segments='') == ''  # without a mask
  assert refused('cudnn', aligned=False, segments='other', k=like(2, 64, 4, 64)) == ''


@pytest.mark.parametrize(
  'capability, version, why',
  [
    ('9.0', 91000, ''),
    ('8.0', 91000, ''),
    ('7.5', 91000, 'Ampere'),
    ('10.3', 91000, '9.11'),
    ('9.0', 0, 'cuDNN is not detected'),
    ('gfx942', 91000, 'NVIDIA'),
  ],
)
def test_cudnn_asks_the_gpu(capability, version, why, monkeypatch):
  class Gpu:
    compute_capability = capability

  monkeypatch.setattr(jax, 'local_devices', lambda backend: [Gpu()])
  monkeypatch.setattr(cudnn, 'installed', lambda: version)
  found, largest = cudnn.device()
  assert why in found and bool(why) == bool(found)
  assert largest == (0 if why else 256 if capability == '9.0' else 128)


def test_auto_goes_on_and_what_is_forced_is_an_error():
  arrays, how = inputs(steps=128, dtype=jnp.bfloat16)
  text = lambda: str(jax.make_jaxpr(lambda *a: op.attention(*a, **how))(*arrays))
  here = text()
  assert 'pallas_call' not in here
  with choice.using(platform='gpu'):  # a plan, from a process that has none
    assert text() == here
    with pytest.raises(ValueError, match="attention='cudnn': there is no GPU here; xla or ref"):
      slope(arrays, how, 'cudnn')
  with choice.using(platform='tpu'):
    assert 'pallas_call' in text()
    with choice.using(twice=True):
      assert text() == here
  with pytest.raises(
    ValueError, match="attention='splash': splash runs on TPUs, this is for a cpu"
  ):
    slope(arrays, how, 'splash')
  with choice.using(platform='tpu'), jax.set_mesh(_meshes.make('explicit', data=8)):
    with pytest.raises(ValueError, match="mesh.mode='auto'"):
      jax.eval_shape(functools.partial(slope, arrays, how, 'splash'))
  with choice.using(platform='tpu'), jax.set_mesh(_meshes.make(data=8)):
    with pytest.raises(ValueError, match='2 rows do not divide over 8 devices'):
      jax.eval_shape(functools.partial(slope, arrays, how, 'splash'))


def test_a_window_where_tokens_were_left_out():
  ctx = kinds.Ctx(jnp.arange(256, dtype=jnp.int32)[None], scheme=_table.scheme())
  places = jnp.arange(0, 256, 2, dtype=jnp.int32)[None]
  few = select.context(ctx, places)
  mixer = gqa.Gqa(head_dim=8, window=20)
  x = jnp.ones((1, 128, 16))
  with choice.using(platform='tpu', attention='splash'):
    traced = jax.make_jaxpr(lambda x: mixer.init_with_output(jax.random.key(0), x, few)[0][0])
    with pytest.raises(ValueError, match='tokens between these were left out; xla or reference'):
      traced(x)


def test_an_optimizer_that_wants_the_hessian():
  """It differentiates the loss twice, which kernels of accelerators cannot."""
  more = [('data.length', '128'), ('batch_tokens', '256'), ('optim', 'sophia_h()')]
  small = [('model.width', '16'), ('model.depth', '1'), ('model.mixer.head_dim', '8')]
  run = build.build(config.resolve(config.load('quickstart', [*more, *small])))
  key = jax.eval_shape(lambda: jax.random.key(0))
  with run.choices('tpu'):
    traced = jax.make_jaxpr(run.step)(run.state_shapes, run.batch_shapes(), key)
  kernels = [e for e in jaxprs.equations(traced.jaxpr) if e.primitive.name == 'pallas_call']
  assert len(kernels) >= 3  # the step's own gradient


# ---- what cuDNN is asked for


MASKS = {
  'documents': (dict(), dict()),
  'documents, both ways, window': (dict(), dict(causal=False, window=6)),
  'window': (dict(segments=False), dict(window=6)),
  'window both ways': (dict(segments=False), dict(causal=False, window=6)),
  'causal, scale': (dict(segments=False, groups=1), dict(scale=0.3)),
  'all': (dict(segments=False), dict(causal=False)),
}


@pytest.mark.parametrize('case', MASKS, ids=str)
def test_what_cudnn_is_asked_for_is_the_same(case, monkeypatch):
  seen = []

  def call(*args, **kw):
    seen.append(kw)
    return jax.nn.dot_product_attention(*args, **kw, implementation='xla')

  monkeypatch.setattr(cudnn, 'CALL', call)
  monkeypatch.setattr(cudnn, 'refuses', lambda **facts: '')
  shapes, more = MASKS[case]
  arrays, how = inputs(steps=30, **shapes)
  monkeypatch.setitem(op.IMPLEMENTATIONS, 'cudnn', choice.Implementation(cudnn.attention))
  same(slope(arrays, how, 'cudnn', **more), slope(arrays, how, 'reference', **more))
  masked = shapes.get('segments', True) or more == dict(causal=False, window=6)
  assert seen and ('mask' in seen[0]) == masked
  assert not (masked and seen[0].get('local_window_size'))


def joined_rows():
  """One document a row; padding behind the second."""
  arrays, how = inputs(steps=150, segments=False)
  s = jnp.asarray(np.where(np.arange(150) < np.array([[150], [97]]), 1, 0), jnp.int32)
  return arrays, how | dict(q_segments=s, k_segments=s, joined=True)


def test_rows_of_one_document_need_no_mask(monkeypatch):
  seen = []

  def call(*args, **kw):
    seen.append(kw)
    return jax.nn.dot_product_attention(*args, **kw, implementation='xla')

  monkeypatch.setattr(cudnn, 'CALL', call)
  found = []  # what is known when one is chosen
  refuses = lambda **facts: found.append(facts['segments']) or ''
  monkeypatch.setitem(op.IMPLEMENTATIONS, 'cudnn', choice.Implementation(cudnn.attention, refuses))
  arrays, how = joined_rows()
  for more in (dict(), dict(window=20)):
    got, want = (slope(arrays, how, name, **more) for name in ('cudnn', 'reference'))
    same(got, want)
    padding = np.asarray(how['q_segments']) == 0
    assert padding.any() and all(np.all(np.asarray(x)[padding] == 0) for x in (*got[0], got[1]))
  assert not any('mask' in kw for kw in seen) and set(found) == {''}
  same(*(slope(arrays, how, name, causal=False) for name in ('cudnn', 'reference')))
  assert 'mask' in seen[-1] and found[-1] == 'own'  # padding is seen by what is not causal


def test_splash_goes_without_segments_of_one_document(monkeypatch):
  monkeypatch.setattr(splash, 'BLOCKS', (128,))
  arrays, how = joined_rows()
  same(interpreted(arrays, how), slope(arrays, how, 'reference'))


@pytest.mark.parametrize('mask', [True, False])
def test_models_say_whether_rows_are_one_document(mask, monkeypatch):
  """In training alone: what decodes pads in front."""
  found = []
  refuses = lambda segments, **_: found.append(segments) or ''
  monkeypatch.setitem(
    op.IMPLEMENTATIONS, 'xla', choice.Implementation(op.IMPLEMENTATIONS['xla'].run, refuses)
  )
  small = [('model.width', '16'), ('model.depth', '1'), ('model.mixer.head_dim', '8')]
  more = [('data.mask_documents', str(mask)), ('data.length', '16'), ('batch_tokens', '32')]
  run = build.build(config.resolve(config.load('quickstart', [*small, *more])))
  for train in (True, False):
    found.clear()
    s = run.state_shapes
    loss = functools.partial(run.objective.loss, train=train)
    jax.eval_shape(loss, s.params, s.vars, run.batch_shapes(), jax.random.key(0))
    assert set(found) == {'' if train and not mask else 'own'}


def test_cudnn_with_a_prefix_and_with_keys_of_another_text(monkeypatch):
  call = functools.partial(jax.nn.dot_product_attention, implementation='xla')
  monkeypatch.setattr(cudnn, 'CALL', call)
  monkeypatch.setitem(op.IMPLEMENTATIONS, 'cudnn', choice.Implementation(cudnn.attention))
  (q, k, v), how = inputs(steps=30)
  seen_by_all = how | dict(k_positions=how['k_positions'].at[:, :7].set(0), aligned=False)
  same(*(slope((q, k, v), seen_by_all, name) for name in ('cudnn', 'reference')))
  how |= dict(k_positions=how['k_positions'][:, :12] * 0, k_segments=how['k_segments'][:, :12])
  more = dict(causal=False, aligned=False)
  arrays = q, k[:, :12], v[:, :12]  # documents 2 and 3 see nothing
  got = slope(arrays, how, 'cudnn', **more)
  same(got, slope(arrays, how, 'reference', **more))
  assert np.all(np.asarray(got[1])[0, 20:] == 0)


# ---- tokamax


TOKAMAX = {
  'run on GPUs and TPUs': dict(platform='cpu'),
  'there is no tpu here': dict(platform='tpu'),
  'no second derivative': dict(twice=True),
  'takes no bias': dict(bias=True),
  'a mask of 268,468,224 bytes': dict(q=like(4, 8193, 4, 64), k=like(4, 8192, 4, 64)),
  'counts a window': dict(segments='', window=5, consecutive=False),
}


@pytest.mark.parametrize('why', TOKAMAX)
def test_tokamax_refuses(why, monkeypatch):
  monkeypatch.setattr(tokamax.importlib.util, 'find_spec', lambda name: name)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert why in refused('tokamax', **dict(platform='gpu') | TOKAMAX[why])
  assert refused('tokamax', platform='gpu', cap=2.0) == ''


def test_tokamax_is_asked_for_and_must_be_there(monkeypatch):
  arrays, how = inputs(steps=32)
  monkeypatch.setattr(tokamax.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(
    ValueError, match=r"not installed: pip install 'lmjax\[tokamax\]'; xla or ref"
  ):
    slope(arrays, how, 'tokamax')


@pytest.mark.parametrize('case', [*MASKS, 'cap'], ids=str)
def test_what_tokamax_is_asked_for_is_the_same(case, monkeypatch):
  library = pytest.importorskip('tokamax', reason='tokamax is not installed')
  monkeypatch.setattr(tokamax, 'KERNELS', 'xla')
  monkeypatch.setitem(op.IMPLEMENTATIONS, 'tokamax', choice.Implementation(tokamax.attention))
  assert library.dot_product_attention
  shapes, more = MASKS.get(case, (dict(), dict(cap=2.0)))
  arrays, how = inputs(steps=30, **shapes)
  same(slope(arrays, how, 'tokamax', **more), slope(arrays, how, 'reference', **more))


def test_what_kernels_of_tokamax_refuse_is_an_error(monkeypatch):
  pytest.importorskip('tokamax', reason='tokamax is not installed')
  arrays, how = inputs(steps=32)  # its kernels refuse a CPU
  monkeypatch.setitem(op.IMPLEMENTATIONS, 'tokamax', choice.Implementation(tokamax.attention))
  with pytest.raises(ValueError, match="attention='tokamax': its kernels do not take queries"):
    slope(arrays, how, 'tokamax')

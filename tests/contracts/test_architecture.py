"""The contract of architectures: scanned = unrolled = a plain loop over layers; shared segments;
depth; packed rows; caches; aux.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax import registry
from lmjax.nn import embedding
from lmjax.parallel import facts as facts_lib

T, B, V, D = _table.STEPS, _table.BATCH, _table.VOCAB, _table.WIDTH
ROWS = _table.SPECS['architecture']
each = pytest.mark.parametrize('spec', ROWS)
PACKED = np.array([[1, 1, 1, 1, 2, 2, 2, 3, 0, 0], [1] * T])
POSITIONS = ('rope()', 'alibi()', 'none()', 'learned()', 'sinusoidal(scale=1.0)')
STACK = dict(
  stack='full + (local, full)*2 + shared(full)*2',
  blocks__full__mixer='gqa(head_dim=8)',
  blocks__local__mixer='gqa(head_dim=8, window=3)',
  blocks__local__ffn='swiglu()',
)


def model(**how):
  """Blocks that the stack does not name are dropped from the settings."""
  return _table.model(**how)


def tokens(segments=None, seed=0):
  return _table.batch(np.ones((B, T), int) if segments is None else segments, seed=seed)['tokens']


@functools.cache
def compiled(**how):
  net = model(**how)
  return jax.jit(lambda p, tokens, ctx: net.apply(p, tokens, ctx))


def hidden(params, segments=None, tok=None, **how):
  return compiled(**how)(
    params, tokens(segments) if tok is None else tok, _table.ctx(segments=segments)
  ).hidden_BTD


def test_no_part_is_missing():
  assert not _table.uncovered('architecture')


@each
def test_returns_what_the_contract_says(spec):
  out = compiled(architecture=spec, cap=3.0)(
    _table.model_params(architecture=spec), tokens(), _table.ctx()
  )
  assert (
    out.hidden_BTD.shape == (B, T, D)
    and out.unembed_VD.shape == (V, D)
    and out.cap == 3.0
    and out.cache is None
  )
  assert embedding.logits(out).shape == (B, T, V)
  assert model(architecture=spec).model.cap is None  # 0 in the config means none


@each
@pytest.mark.parametrize('position', POSITIONS)
def test_a_packed_row_equals_each_document_alone(spec, position):
  how = dict(architecture=spec, position=position)
  params, tok = _table.model_params(**how), tokens(PACKED)
  packed = np.asarray(hidden(params, PACKED, tok, **how))
  for document in (1, 2, 3):
    at = np.flatnonzero(PACKED[0] == document)
    segments, alone = np.zeros((B, T), int), np.zeros((B, T), np.int32)
    segments[0, : len(at)], alone[0, : len(at)] = 1, tok[0, at]
    got = np.asarray(hidden(params, segments, jnp.asarray(alone), **how))
    _table.close(packed[0, at], got[0, : len(at)])


@each
@pytest.mark.parametrize('position', POSITIONS)
def test_cached_equals_full_and_the_future_is_unseen(spec, position):
  how = dict(architecture=spec, position=position)
  net, params, tok = model(**how), _table.model_params(**how), tokens()
  want = hidden(params, np.ones((B, T), int), tok, **how)
  changed = hidden(params, np.ones((B, T), int), tok.at[:, 6:].set((tok[:, 6:] + 1) % V), **how)
  _table.same(want[:, :6], changed[:, :6])
  assert np.all(np.any(np.asarray(want[:, 6:] != changed[:, 6:]), axis=-1))
  ctx, cache = (
    _table.ctx(segments=np.ones((B, T), int)),
    net.init_cache(registry.make('cache', 'full()'), B, T),
  )
  step = jax.jit(lambda t, c, cache: net.apply(params, t, c, cache))
  for i in range(T):
    now = ctx.replace(
      positions_BT=ctx.positions_BT[:, i : i + 1], segments_BT=ctx.segments_BT[:, i : i + 1]
    )
    out = step(tok[:, i : i + 1], now, cache)
    cache = out.cache
    _table.close(out.hidden_BTD[:, 0], want[:, i], 2e-5)


# ---- the stack


def heterogeneous(**more):
  """Parameters and settings of a stack with two kinds of block, of which one segment is shared."""
  return {**STACK, **more}


def test_segments_have_the_parameters_that_the_stack_says():
  with pytest.raises(ValueError, match='stack'):
    model(**{**STACK, 'stack': 'full + lokal'})
  net = model(**heterogeneous())
  assert net.model.depth == 7
  boxed = _table.abstract(net, jnp.zeros((1, T), jnp.int32), _table.ctx(1))['params']

  def first(segment, block):
    return boxed[segment][block]['mixer']['q']['kernel']

  assert first('segment_0', '0_full').value.shape == (1, D, 4, 8)
  for block in ('0_local', '1_full'):
    assert first('segment_1', block).value.shape == (2, D, 4, 8)
    assert first('segment_1', block).fact.names == ('layers', 'embed', 'heads', 'head_dim')
  assert first('segment_2', '0_full').value.shape == (D, 4, 8)
  assert first('segment_2', '0_full').fact.names == ('embed', 'heads', 'head_dim')
  assert (
    'gate' in boxed['segment_1']['0_local']['ffn']
    and 'gate' not in boxed['segment_1']['1_full']['ffn']
  )


def plain_loop(net, params, tok, ctx):
  """The same layers, one after another, without the stack."""
  m, p = net.model, params['params']
  x = p['embed']['table'][tok]
  order = [('segment_0', '0_full', 'full', 0)]
  order += [
    ('segment_1', f'{i}_{n}', n, r) for r in range(2) for i, n in enumerate(('local', 'full'))
  ]
  order += [('segment_2', '0_full', 'full', None)] * 2
  for depth, (segment, key, block, at) in enumerate(order):
    own = jax.tree.map(lambda a, at=at: a if at is None else a[at], p[segment][key])
    x, _, _ = m.block(block)(parent=None).apply({'params': own}, x, ctx.replace(depth=depth))
  return m.final_norm(parent=None).apply({'params': p['final_norm']}, x, ctx)


def test_the_stack_equals_a_plain_loop_over_its_layers():
  how = heterogeneous(blocks__block__ffn='gelu()')
  net, params = model(**how), _table.model_params(**how)
  ctx = _table.ctx(segments=PACKED)
  want = jax.jit(lambda p, tok: plain_loop(net, p, tok, ctx))(params, tokens(PACKED))
  _table.close(hidden(params, PACKED, **how), want)


def loss_and_grad(params, **how):
  net = model(**how)

  @jax.jit
  def run(p):
    def f(p):
      z = embedding.logits(net.apply(p, tokens(PACKED), _table.ctx(segments=PACKED)))
      return jnp.mean(jnp.where(jnp.asarray(PACKED)[..., None] > 0, jax.nn.log_softmax(z), 0))

    return jax.value_and_grad(f)(p)

  return run(params)


def test_scanned_equals_unrolled():
  params = _table.model_params(**heterogeneous())
  want = loss_and_grad(params, **heterogeneous())
  _table.trees_close(loss_and_grad(params, **heterogeneous(unroll=100)), want)


def test_a_shared_segment_gets_the_gradient_of_all_its_uses():
  """Two shared layers are two layers whose weights happen to be equal: their gradients add."""
  shared, apart = dict(stack='shared(block)*2'), dict(stack='block*2')
  params = _table.model_params(**shared)
  double = jax.tree.map(lambda a: jnp.stack([a, a]), params['params']['segment_0'])
  twins = {'params': {**params['params'], 'segment_0': double}}
  one, grad = loss_and_grad(params, **shared)
  two, grads = loss_and_grad(twins, **apart)
  _table.close(one, two, 1e-6)
  _table.trees_close(
    grad['params']['segment_0'], jax.tree.map(lambda g: g.sum(0), grads['params']['segment_0'])
  )


def test_layers_start_apart():
  """Each repeat of a scanned segment draws its own initial values."""
  net = model(depth=2)
  params = facts_lib.unbox(
    jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, T), jnp.int32), _table.ctx(1))
  )
  kernel = np.asarray(params['params']['segment_0']['0_block']['mixer']['q']['kernel'])
  assert abs(np.corrcoef(kernel[0].ravel(), kernel[1].ravel())[0, 1]) < 0.1


class Depth(nn.Module):
  """Adds 1 at the coordinate of the layer's depth; reports it."""

  @nn.compact
  def __call__(self, x, ctx):
    mark = (jnp.arange(x.shape[-1]) == ctx.depth).astype(x.dtype) * jnp.ones_like(x)
    depth = jnp.asarray(ctx.depth, jnp.float32)
    return mark, {'depth': depth, 'loss/depth': depth}


class Silent(nn.Module):
  @nn.compact
  def __call__(self, x, ctx, cache=None):
    return jnp.zeros_like(x), cache, {}


def probed(**how):
  mine = f'{__name__}:'
  return model(
    final_norm='',
    blocks__full__ffn=f'{mine}Depth()',
    blocks__full__mixer=f'{mine}Silent()',
    blocks__local__ffn=f'{mine}Depth()',
    blocks__local__mixer=f'{mine}Silent()',
    **how,
  )


@pytest.mark.parametrize('unroll', [1, 100])
def test_depth_reaches_every_layer_once_and_reports_come_back(unroll):
  net = probed(stack=STACK['stack'], unroll=unroll)
  boxed = _table.abstract(net, tokens(), _table.ctx())
  params = _table.values(boxed)
  out = jax.jit(lambda p: net.apply(p, tokens(), _table.ctx()))(params)
  added = out.hidden_BTD - params['params']['embed']['table'][tokens()]
  np.testing.assert_allclose(added[0, 0], (np.arange(D) < 7).astype(float), atol=1e-5)
  # full stands at depths 0, 2, 4, 5, 6 and local at 1, 3; metrics are averaged over layers,
  # losses summed

  assert {k: round(float(v), 4) for k, v in out.aux.items()} == {
    'full/ffn/depth': 17 / 5,
    'local/ffn/depth': 2.0,
    'loss/ffn/depth': 21.0,
  }


def test_dropout_differs_between_layers_of_a_scan():
  mine = f'{__name__}:'
  net = model(
    final_norm='',
    depth=4,
    blocks__block__ffn=f'{mine}Ones()',
    blocks__block__mixer=f'{mine}Silent()',
    blocks__block__residual='pre(dropout=0.5)',
  )
  params = _table.values(_table.abstract(net, tokens(), _table.ctx()))
  out = jax.jit(
    lambda p: net.apply(p, tokens(), _table.ctx(train=True), rngs={'dropout': jax.random.key(0)})
  )(params)
  times = np.asarray(out.hidden_BTD - params['params']['embed']['table'][tokens()]) / 2
  share = [np.mean(np.abs(times - k) < 1e-3) for k in range(5)]
  np.testing.assert_allclose(share, np.array([1, 4, 6, 4, 1]) / 16, atol=0.06)


class Ones(nn.Module):
  @nn.compact
  def __call__(self, x, ctx):
    return jnp.ones_like(x), {}


def test_embedding_norm_and_dropout():
  net, plain = model(embed_norm='rms_norm()', dropout=0.5, depth=1), model(depth=1)
  boxed = _table.abstract(net, tokens(), _table.ctx())['params']
  assert (
    'embed_norm' in boxed
    and 'embed_norm' not in _table.abstract(plain, tokens(), _table.ctx())['params']
  )
  params = _table.values({'params': boxed})
  run = jax.jit(lambda ctx, key: net.apply(params, tokens(), ctx, rngs={'dropout': key}).hidden_BTD)
  calm, a, b = (
    run(_table.ctx(train=t), jax.random.key(k)) for t, k in ((False, 0), (True, 0), (True, 1))
  )
  assert not np.allclose(a, calm) and not np.allclose(a, b)
  _table.same(run(_table.ctx(), jax.random.key(5)), calm)


@pytest.mark.parametrize(
  'changes, word',
  [
    (dict(width=0), 'model.width=0'),
    (dict(dropout=1.0), 'model.dropout=1.0'),
    (dict(cap=-1.0), 'model.cap=-1.0'),
    (dict(depth=0), 'model.depth=0'),
    (dict(dtype='float8'), 'model.dtype'),
    (dict(stack='blok'), "did you mean 'block'"),
    (dict(remat='names(mixer)'), 'mixer'),
    (dict(blocks__other__ffn='gelu()'), 'model.stack is empty'),
  ],
)
def test_settings_that_make_no_sense_are_refused(changes, word):
  with pytest.raises(ValueError, match=word):
    model(**changes)

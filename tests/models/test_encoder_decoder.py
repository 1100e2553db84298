"""Encoder-decoders: cross-attention against the formula, who sees whom, caches, meshes, a run, and
what is refused.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _meshes
import _table
from lmjax import build
from lmjax import config
from lmjax import kinds
from lmjax import registry
from lmjax.nn import embedding

B, T, S, D = 2, 5, 7, _table.WIDTH
OWN = np.array([[1, 1, 1, 2, 2], [1, 1, 1, 1, 0]])
SOURCE = np.array([[1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1, 1]])


def ctx(memory=None, segments=OWN):
  c = _table.ctx(B, T, segments=segments)
  return c if memory is None else c.replace(memory=memory)


def memory(seed=1):
  return kinds.Memory(_table.normal(B, S, D, seed=seed), jnp.asarray(SOURCE, jnp.int32))


@functools.cache
def cross(spec='cross_attention(head_dim=8)'):
  module = registry.make('mixer', spec)(parent=None)
  return module, _table.values(_table.abstract(module, _table.normal(B, T, D), ctx(memory())))


def test_parts_apart_are_parts():
  for kind, rows in _table.APART.items():
    assert {_table.name(s) for s in rows} <= set(registry.names(kind))


@pytest.mark.parametrize(
  'spec',
  ['cross_attention(head_dim=8)', 'cross_attention(head_dim=8, kv_heads=1, bias=True, scale=0.3)'],
)
def test_cross_attention_is_the_formula(spec):
  module, v = cross(spec)
  x, m = _table.normal(B, T, D), memory()
  got, kept, aux = module.apply(v, x, ctx(m))
  assert kept is None and not aux
  p, (heads, groups) = v['params'], module.sizes(D)

  def project(name, x):
    bias = p[name].get('bias', 0.0)
    return np.einsum('bsd,dhk->bshk', x, p[name]['kernel']) + bias

  x = np.where(OWN[..., None] > 0, x, 0)
  hidden = np.where(SOURCE[..., None] > 0, m.hidden_BSD, 0)
  q, k, w = project('q', x), project('k', hidden), project('v', hidden)
  k, w = (np.repeat(a, heads // groups, 2) for a in (k, w))
  logits = np.einsum('bthk,bshk->bhts', q, k) * (module.scale or 8**-0.5)
  sees = (OWN[:, :, None] == SOURCE[:, None]) & (OWN[:, :, None] > 0)
  weights = np.where(sees[:, None], np.exp(logits), 0)
  weights = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-30)
  y = np.einsum('bhts,bshk->bthk', weights, w)
  want = np.einsum('bthk,hkd->btd', y, p['out']['kernel']) + p['out'].get('bias', 0.0)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_cross_attention_sees_its_own_segment_of_the_memory_only():
  module, v = cross()
  m = memory()
  f = lambda h: module.apply(v, _table.normal(B, T, D), ctx(m._replace(hidden_BSD=h)))[0]
  slopes = jax.jacobian(lambda h: f(h).sum(-1))(m.hidden_BSD)
  seen = np.asarray(jnp.abs(slopes).sum(-1) > 0)
  want = np.zeros((B, T, B, S), bool)
  for b in range(B):
    want[b, :, b] = (OWN[b][:, None] == SOURCE[b]) & (OWN[b][:, None] > 0)
  np.testing.assert_array_equal(seen, want)


def test_order_of_the_memory_does_not_matter():
  module, v = cross()
  m, order = memory(), np.random.default_rng(0).permutation(S)
  turned = kinds.Memory(m.hidden_BSD[:, order], m.segments_BS[:, order])
  run = lambda m: module.apply(v, _table.normal(B, T, D), ctx(m))[0]
  np.testing.assert_allclose(run(turned), run(m), atol=1e-6)


def test_a_cache_keeps_the_memory():
  module, v = cross()
  x, m = _table.normal(B, T, D), memory()
  want = module.apply(v, x, ctx(m))[0]
  cache = module.init_cache(None, B, S, D, jnp.float32)
  c = ctx(m)
  cut = lambda c, a, b: jax.tree.map(lambda l: l[:, a:b], c.replace(depth=jnp.zeros((1, 1))))
  first = cut(c.replace(memory=None), 0, 2).replace(memory=m)
  y, cache, _ = module.apply(v, x[:, :2], first, cache)
  ys = [y]
  for t in range(2, T):
    y, cache, _ = module.apply(v, x[:, t : t + 1], cut(c.replace(memory=None), t, t + 1), cache)
    ys.append(y)
  np.testing.assert_allclose(jnp.concatenate(ys, 1), want, atol=1e-5)
  small = module.init_cache(None, B, S - 1, D, jnp.float32)
  with pytest.raises(ValueError, match='a memory of 7 tokens, the cache has room for 6'):
    module.apply(v, x, c, small)


def test_refusals_of_the_parts():
  module, v = cross()
  with pytest.raises(kinds.Unsupported, match='needs the memory of an encoder'):
    module.apply(v, _table.normal(B, T, D), ctx())
  for kind, spec, words in (
    ('mixer', 'cross_attention(head_dim=0)', 'head_dim=0: a positive number'),
    ('mixer', 'cross_attention(heads=3, kv_heads=2)', 'does not divide by kv_heads=2'),
    ('mixer', 'cross_attention(scale=-1)', 'scale=-1.0: a positive number'),
    ('residual', 'pre_cross(cross=gqa())', 'a mixer that reads the memory'),
    ('residual', 'pre_cross(dropout=1)', 'dropout=1.0'),
    ('architecture', 'encoder_decoder()', "needs the argument 'encoder'"),
    ('architecture', 'encoder_decoder(encoder="")', "encoder='': a stack is expected"),
  ):
    with pytest.raises(ValueError, match=words):
      registry.make(kind, spec)


# ---- the architecture

SMALL = (
  ('model.width', '32'),
  ('data.length', '32'),
  ('batch_tokens', '256'),
  ('data.tokenizer', 'extended(extra=20)'),
  ('model.blocks.encoder.mixer', 'gqa(head_dim=8, causal=False)'),
  ('model.blocks.decoder.mixer', 'gqa(head_dim=8)'),
  ('model.blocks.decoder.residual', 'pre_cross(cross=cross_attention(head_dim=8))'),
  ('model.embed', 'tied(multiple_of=8)'),
)


def made(*changes) -> build.Run:
  return build.build(config.resolve(config.load('ul2_tiny:encoder_decoder', [*SMALL, *changes])))


@functools.cache
def run() -> build.Run:
  return made()


def rows(n=8):
  """Rows as the transform makes them."""
  out, rng = [], np.random.default_rng(0)
  for i in range(n):
    real = np.arange(33) < 33 - 4 * i
    text = np.where(real, rng.integers(0, 256, 33), 0).astype(np.int32)
    given = dict(tokens=text, segments=real.astype(np.int32), positions=np.zeros(33, np.int32))
    (transform,) = run().transforms
    out.append(transform.fn(given, i * 7919))
  return {k: jnp.stack([r[k] for r in out]) for k in run().fields}


@functools.cache
def start():
  return jax.tree.map(np.asarray, run().init(jax.random.key(0)).params)


@pytest.mark.slow
def test_decoders_see_the_whole_source_and_their_own_past():
  """Read off the slopes of the embedding's rows: each token of the row is another id."""
  params, (encoder, decoder) = start(), (9, 6)
  source = jnp.arange(encoder)[None] + 100
  tokens = jnp.arange(decoder)[None]
  one = lambda n: jnp.ones((1, n), jnp.int32)
  text = kinds.Text(source, jnp.arange(encoder)[None], one(encoder))
  c = kinds.Ctx(jnp.arange(decoder)[None], one(decoder), source=text)

  def hidden(table):
    p = {**params, 'embed': {'table': table}}
    return run().architecture.apply({'params': p}, tokens, c).hidden_BTD[0].sum(-1)

  slopes = np.abs(jax.jacobian(hidden)(params['embed']['table'])).sum(-1) > 0
  assert slopes[:, 100 : 100 + encoder].all(), 'every token of the source'
  np.testing.assert_array_equal(slopes[:, :decoder], np.tri(decoder, dtype=bool))


@pytest.mark.slow
def test_decoding_with_a_cache_is_the_same():
  batch, net = rows(2), run().architecture
  text = kinds.Text(*(batch[f'encoder_{k}'] for k in ('tokens', 'positions', 'segments')))
  n = 7
  tokens, one = batch['tokens'][:, :n], jnp.ones((2, n), jnp.int32)
  positions = jnp.arange(n)[None] * one
  v = jax.tree.map(jnp.asarray, {'params': start()})
  want = embedding.logits(net.apply(v, tokens, kinds.Ctx(positions, one, source=text)))
  memory = text.tokens_BS.shape[1]
  cache = net.init_cache(registry.make('cache', 'full()'), 2, n, memory)
  got, step = [], jax.jit(lambda t, c, cache: net.apply(v, t, c, cache))
  for a, b in ((0, 3), (3, 4), (4, 5), (5, 7)):
    c = kinds.Ctx(positions[:, a:b], one[:, a:b], source=text if a == 0 else None)
    out = step(tokens[:, a:b], c, cache)
    cache = out.cache
    got.append(embedding.logits(out))
  np.testing.assert_allclose(jnp.concatenate(got, 1), want, atol=2e-5)
  with pytest.raises(kinds.Unsupported, match='reads a source, and none is given'):
    net.apply(v, tokens, kinds.Ctx(positions, one))


def test_the_loss_is_that_of_the_targets():
  """Weights at places that are no targets change nothing; padding of the source neither."""
  batch, objective = rows(), run().objective
  params = jax.tree.map(jnp.asarray, start())
  loss = jax.jit(lambda b: objective.loss(params, {}, b, jax.random.key(0), False))
  out = loss(batch)
  assert float(out.weight) == float(batch['weights'].sum()) > 0
  noise = jnp.where(batch['encoder_segments'] > 0, batch['encoder_tokens'], 5)
  np.testing.assert_allclose(loss({**batch, 'encoder_tokens': noise}).sum, out.sum, rtol=1e-6)
  behind = jnp.where(batch['segments'] > 0, batch['tokens'], 5)
  np.testing.assert_allclose(loss({**batch, 'tokens': behind}).sum, out.sum, rtol=1e-6)
  half = loss({**batch, 'weights': batch['weights'] / 2})
  np.testing.assert_allclose(half.sum, out.sum / 2, rtol=1e-6)


def test_each_stack_is_made_for_its_own_depth():
  """An encoder of 8 layers beside a decoder of 2: initial values, layers that know the depth."""
  c = config.load('ul2_tiny:encoder_decoder')
  c.model.architecture, c.model.stack = 'encoder_decoder(encoder="encoder*8")', 'decoder*2'
  c.model.blocks.encoder.residual = 'mix_ln(alpha=0.5)'
  built = build.build(config.resolve(c)).model
  encoder = built.stack('encoder')
  assert dict(encoder.block('encoder').context)['depth'] == encoder.scheme.init.depth == 8
  assert built.scheme.init.depth == 2
  variables = build.build(config.resolve(c)).init(jax.random.key(0)).params
  std = lambda side: float(
    np.std(variables[side]['segment_0'][f'0_{side}']['mixer']['out']['kernel'])
  )
  assert std('encoder') == pytest.approx(0.02 / np.sqrt(16), rel=0.05)
  assert std('decoder') == pytest.approx(0.02 / np.sqrt(4), rel=0.05)


@pytest.mark.slow
@_meshes.each
def test_a_mesh_changes_neither_loss_nor_gradient(axes):
  given = run(), start(), {}, rows()
  _table.trees_close(_meshes.slope(*given, axes), _meshes.slope(*given), 2e-5)


@pytest.mark.parametrize(
  'change, words',
  [
    (('data.transforms', 'ul2()'), 'has an encoder, and rows have nothing for it to read'),
    (('model.architecture', 'encoder_decoder(encoder="enc*2")'), "no block 'enc'; did you mean"),
    (('model.architecture', 'encoder_decoder(encoder="decoder*2")'), 'encoder is not used'),
    (('model.blocks.decoder.mixer', 'gqa(head_dim=8, causal=False)'), 'needs a mixer that looks'),
    (('model.blocks.decoder.residual', 'pre()'), 'mixer gqa has no cross-attention'),
    (('model.blocks.encoder.residual', 'pre_cross()'), 'needs the memory of an encoder'),
    (('model.embed', 'stable(norm=power_norm())'), 'embeds twice a step'),
  ],
)
def test_configs_that_are_refused(change, words):
  with pytest.raises(ValueError, match=words):
    made(change)


def test_a_decoder_refuses_what_is_for_an_encoder():
  with pytest.raises(ValueError, match='makes texts for an encoder, and config.model.architecture'):
    changes = [('data.transforms', 'ul2(form="encoder_decoder")'), ('model.width', '32')]
    build.build(config.resolve(config.load('ul2_tiny', changes)))

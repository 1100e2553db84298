"""The contract of mixers: who may influence whom, exactly; documents and padding; caches; exact
values; refusals.

One table of influence, read off gradients, must equal the table that the facts (causal, window,
segments) promise: too much is a leak, too little is a part that does less than it says.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _rows
import _table
from lmjax import kinds
from lmjax import registry

T, B, D = _table.STEPS, _table.BATCH, _table.WIDTH
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 2, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]])
ONES = np.ones((B, T), int)
ROWS = _table.SPECS['mixer']
each = pytest.mark.parametrize('spec', ROWS)


def fact(spec, key):
  return registry.make('mixer', spec).fact(key)


CAUSAL = [s for s in ROWS if fact(s, 'causal')]
CACHED = [s for s in ROWS if fact(s, 'cache')]
SEGMENTED = [s for s in ROWS if fact(s, 'segments')]


@functools.cache
def instance(spec):
  """(module, abstract boxed variables, parameters)."""
  module = registry.make('mixer', spec)(parent=None)
  boxed = _table.abstract(module, jnp.ones((B, T, D)), _table.ctx())
  return module, boxed, _table.values(boxed)


@functools.cache
def compiled(spec):
  module = instance(spec)[0]
  return jax.jit(lambda v, x, ctx: module.apply(v, x, ctx)[0])


@functools.cache
def compiled_influence(spec):
  module = instance(spec)[0]

  def run(v, x, ctx, c_D):
    y, back = jax.vjp(lambda x: module.apply(v, x, ctx)[0], x)
    one_hot = jnp.eye(B * T).reshape(B * T, B, T, 1) * c_D
    g = jax.vmap(lambda c: back(c)[0])(one_hot)  # (queries, B, T, D)
    return jnp.any(g != 0, axis=-1)

  return jax.jit(run)


def run(spec, x, segments=None, variables=None):
  return compiled(spec)(
    instance(spec)[2] if variables is None else variables, x, _table.ctx(segments=segments)
  )


def promised(spec, segments) -> np.ndarray:
  """(B, T, B, T): may the input at the second place reach the output at the first?"""
  s = np.ones((B, T), int) if segments is None else segments
  position = np.tile(np.arange(T), (B, 1)) if segments is None else _table.positions_of(segments)
  gap = position[:, :, None] - position[:, None, :]
  see = (s[:, :, None] == s[:, None, :]) & (s[:, :, None] > 0)
  if fact(spec, 'causal'):
    see &= gap >= 0
  if fact(spec, 'window') is not None:
    see &= np.abs(gap) < fact(spec, 'window')
  out = np.zeros((B, T, B, T), bool)
  for b in range(B):
    out[b, :, b] = see[b]
  return out


def test_no_part_is_missing():
  assert not _table.uncovered('mixer')
  assert set(REFERENCES) == set(_table.alone('mixer'))


def plain(*rows):
  """Rows that are also tried without segments, which is another program."""
  return [pytest.param(s, None, id=f'one document-{s}') for s in rows]


@pytest.mark.parametrize(
  'spec, segments',
  [pytest.param(s, SEGMENTS, id=f'packed-{s}') for s in ROWS]
  + plain(ROWS[0], ROWS[4], ROWS[11], 'deltanet(head_dim=8)'),
)
def test_influence_is_exactly_what_the_facts_promise(spec, segments):
  if segments is not None and not fact(spec, 'segments'):
    with pytest.raises(kinds.Unsupported):
      run(spec, jnp.ones((B, T, D)), segments)
    return
  x, c = _table.normal(B, T, D, seed=1), _table.normal(D, seed=2)
  got = compiled_influence(spec)(instance(spec)[2], x, _table.ctx(segments=segments), c)
  np.testing.assert_array_equal(np.asarray(got).reshape(B, T, B, T), promised(spec, segments))


@pytest.mark.parametrize('spec', SEGMENTED)
def test_other_documents_and_padding_leave_this_one_bit_equal(spec):
  x = _table.normal(B, T, D, seed=1)
  mine = SEGMENTS == 2
  other = jnp.where(mine[..., None], x, 1e4 * _table.normal(B, T, D, seed=9))
  _table.same(
    np.asarray(run(spec, x, SEGMENTS))[mine], np.asarray(run(spec, other, SEGMENTS))[mine]
  )


@pytest.mark.parametrize('spec', SEGMENTED)
def test_a_packed_row_equals_each_document_alone(spec):
  x = _table.normal(B, T, D, seed=1)
  packed = np.asarray(run(spec, x, SEGMENTS))
  for document in (1, 2, 3):
    at = np.flatnonzero(SEGMENTS[0] == document)
    alone = np.zeros((B, T, D), np.float32)
    alone[0, : len(at)] = x[0, at]
    segments = np.zeros((B, T), int)
    segments[0, : len(at)] = 1
    _table.close(packed[0, at], np.asarray(run(spec, jnp.asarray(alone), segments))[0, : len(at)])


@pytest.mark.parametrize('spec', CAUSAL)
def test_the_future_leaves_the_past_bit_equal(spec):
  x = _table.normal(B, T, D, seed=1)
  later = x.at[:, 6:].set(-3 * x[:, 6:])
  segments = ONES if fact(spec, 'segments') else None
  _table.same(run(spec, x, segments)[:, :6], run(spec, later, segments)[:, :6])


@pytest.mark.parametrize('spec', SEGMENTED)
def test_padding_may_hold_anything_forward_and_backward(spec):
  module, _, variables = instance(spec)
  x, real = _table.normal(B, T, D, seed=1), jnp.asarray(SEGMENTS > 0)[..., None]
  ctx = _table.ctx(segments=SEGMENTS)

  @jax.jit
  def total(v, x):
    def f(v, x):
      y = module.apply(v, x, ctx)[0]
      return jnp.sum(jnp.where(real, jnp.sin(y), 0)), y

    return jax.value_and_grad(f, (0, 1), has_aux=True)(v, x)

  clean = total(variables, jnp.where(real, x, 0))
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(clean))
  for poison in (np.nan, np.inf, 1e30):
    jax.tree.map(_table.same, total(variables, jnp.where(real, x, poison)), clean)


# ---- caches


@functools.cache
def compiled_cached(spec):
  module = instance(spec)[0]
  return jax.jit(lambda v, x, ctx, cache: module.apply(v, x, ctx, cache)[:2])


def decode(spec, cache_part, x, blocks, segments=None, dtype=jnp.float32):
  """The outputs of x fed in blocks, and the last cache."""
  module, _, variables = instance(spec)
  whole = _table.ctx(segments=segments)
  cache = module.init_cache(registry.make('cache', cache_part), B, T, D, dtype)
  out, start = [], 0
  for n in blocks:
    part = slice(start, start + n)
    ctx = whole.replace(
      positions_BT=whole.positions_BT[:, part],
      segments_BT=None if segments is None else whole.segments_BT[:, part],
    )
    y, cache = compiled_cached(spec)(variables, x[:, part], ctx, cache)
    out.append(y)
    start += n
  return jnp.concatenate(out, axis=1), cache


PADDED = np.array(
  [[1] * T, [0] * 3 + [1] * (T - 3)]
)  # prompts of unequal length are padded on the left


@pytest.mark.parametrize(
  'spec, segments', [pytest.param(s, PADDED, id=s) for s in CACHED] + plain(CACHED[0], CACHED[4])
)
@pytest.mark.parametrize('cache', _table.SPECS['cache'])
def test_cached_equals_full(spec, cache, segments):
  recurrent = fact(spec, 'recurrent')  # it keeps no keys, so that either will do
  if _table.name(cache) == 'window' and fact(spec, 'window') is None and not recurrent:
    with pytest.raises(kinds.Unsupported, match='window'):
      decode(spec, cache, jnp.ones((B, T, D)), [T])
    return
  if segments is not None and not fact(spec, 'segments'):
    pytest.skip('this mixer knows no padding')
  x = _table.normal(B, T, D, seed=1)
  want = run(spec, x, segments)
  for blocks in ([1] * T, [5, 5], [5, 1, 1, 1, 1, 1]):
    _table.close(decode(spec, cache, x, blocks, segments)[0], want)


@pytest.mark.parametrize('spec', [s for s in CACHED if fact(s, 'window') is not None])
def test_a_bounded_cache_stays_small(spec):
  for cache in _table.SPECS['cache']:
    made = instance(spec)[0].init_cache(registry.make('cache', cache), B, 1000, D, jnp.float32)
    longest = max(max(a.shape, default=0) for a in jax.tree.leaves(made))
    assert (
      longest
      == (max(D, fact(spec, 'window')) if registry.make('cache', cache).fact('bounded') else 1000)
      or longest <= D
    )


@pytest.mark.parametrize('spec', [s for s in CACHED if fact(s, 'recurrent')])
def test_a_state_has_one_size_whatever_the_length(spec):
  made = lambda n: instance(spec)[0].init_cache(None, B, n, D, jnp.float32)
  assert jax.tree.map(jnp.shape, made(10)) == jax.tree.map(jnp.shape, made(10_000))


@pytest.mark.parametrize('spec', CACHED[:1])
def test_a_cache_in_low_precision_stays_in_it(spec):
  y, cache = decode(spec, 'full()', _table.normal(B, T, D, seed=1), [4, 1], dtype=jnp.bfloat16)
  assert cache.k_BSHK.dtype == jnp.bfloat16 and y.dtype == jnp.float32
  _table.close(y, run(spec, _table.normal(B, T, D, seed=1))[:, :5], 0.03)


@pytest.mark.parametrize('spec', [s for s in ROWS if not fact(s, 'cache')])
def test_a_mixer_that_cannot_decode_says_so(spec):
  module, _, variables = instance(spec)
  with pytest.raises(kinds.Unsupported):
    module.init_cache(registry.make('cache', 'full()'), B, T, D, jnp.float32)
  cache = registry.make('cache', 'full()').obj(
    batch=B, length=T, heads=4, head_dim=8, dtype=jnp.float32, window=None
  )
  with pytest.raises(kinds.Unsupported):
    module.apply(variables, jnp.ones((B, T, D)), _table.ctx(), cache)


@each
def test_memory_is_used_or_refused(spec):
  module, _, variables = instance(spec)
  assert not fact(spec, 'cross'), 'write the test of cross-attention'
  with pytest.raises(kinds.Unsupported, match='cross'):
    module.apply(variables, jnp.ones((B, T, D)), _table.ctx(memory=jnp.ones((B, 3, D))))


# ---- exact values


def turn(x_TK, positions, base=10_000.0, fraction=1.0, interleaved=False):
  """Rotary positions by complex multiplication, float64."""
  size = int(x_TK.shape[-1] * fraction) // 2 * 2
  angles = positions[:, None] * base ** (-np.arange(0, size, 2) / size)
  turned, kept = x_TK[:, :size], x_TK[:, size:]
  a, b = (
    (turned[:, 0::2], turned[:, 1::2])
    if interleaved
    else (turned[:, : size // 2], turned[:, size // 2 :])
  )
  z = (a + 1j * b) * np.exp(1j * angles)
  pairs = (
    np.stack([z.real, z.imag], -1).reshape(-1, size)
    if interleaved
    else np.concatenate([z.real, z.imag], -1)
  )
  return np.concatenate([pairs, kept], -1)


def gqa(x, p, a, see, positions, more=lambda h, gaps: 0.0):
  """One row x (T, D), by loops over heads and queries; `see` (T, T) says which keys count."""
  width, size = x.shape[-1], a['head_dim']
  heads = a['heads'] or width // size
  groups = a['kv_heads'] or heads
  position = a['position'].name if a['position'] else 'rope'
  extra = dict(a['position'].args) if a['position'] and position == 'rope' else {}

  def project(name):
    return np.einsum('td,dhk->thk', x, p[name]['kernel']) + p[name].get('bias', 0.0)

  def prepare(z, norm):
    if a['qk_norm'] is not None:
      own = -1 if a['qk_norm'].name == 'rms_norm' else (-1, -2)
      z = z / np.sqrt(np.mean(z**2, own, keepdims=True) + 1e-6) * p[norm]['scale']
    if position != 'rope':
      return z
    how = dict(fraction=extra.get('fraction', 1.0), interleaved=extra.get('pairs') == 'interleaved')
    return np.stack([turn(z[:, h], positions, **how) for h in range(z.shape[1])], 1)

  q, k, v = prepare(project('q'), 'norm_q'), prepare(project('k'), 'norm_k'), project('v')
  y = np.zeros_like(q)
  for h in range(heads):
    g = h // (heads // groups)
    for t in np.flatnonzero(see.any(1)):
      logits = (a['scale'] or size**-0.5) * k[:, g] @ q[t, h]
      if a['cap']:
        logits = a['cap'] * np.tanh(logits / a['cap'])
      if position == 'alibi':
        logits = logits - 2.0 ** (-8 * (h + 1) / heads) * np.abs(positions - positions[t])
      logits = logits + more(h, positions - positions[t])
      w = np.where(see[t], np.exp(logits - logits[see[t]].max()), 0)
      y[t, h] = w / w.sum() @ v[:, g]
  return np.einsum('thk,hkd->td', y, p['out']['kernel']) + p['out'].get('bias', 0.0)


def deltanet(x, p, a, see, positions):
  """One row x (T, D), token by token; a document begins at position 0."""
  heads = a['heads'] or x.shape[-1] // a['head_dim']
  silu = lambda z: z / (1 + np.exp(-z))
  feature = {'silu': silu, 'relu': lambda z: np.maximum(z, 0), 'elu': elu}[a['feature']]
  project = lambda name: np.einsum('td,dhk->thk', x, p[name]['kernel'])

  def convolved(name):
    z = project(name)
    if not a['taps']:
      return z
    w, out = p[f'conv_{name}']['kernel'], np.zeros_like(z)
    for t in range(len(z)):
      for lag in range(min(a['taps'] - 1, positions[t]) + 1):
        out[t] += w[lag] * z[t - lag]
    return out

  def unit(z):
    if a['sums']:
      return z / (z.sum(-1, keepdims=True) + 1e-6)
    return z / np.sqrt((z**2).sum(-1, keepdims=True) + 1e-6)

  q, k = unit(feature(convolved('q'))), unit(feature(convolved('k')))
  v = silu(convolved('v'))
  beta = (2 if a['negative'] else 1) / (1 + np.exp(-x @ p['beta']))
  o = np.zeros_like(v)
  for h in range(heads):
    for t in np.flatnonzero(see.any(1)):
      if positions[t] == 0:
        s = np.zeros((a['head_dim'], v.shape[-1]))
      s = s + np.outer(k[t, h], beta[t, h] * (v[t, h] - k[t, h] @ s))
      o[t, h] = q[t, h] @ s / np.sqrt(a['head_dim'])
  if a['norm'] is not None:
    o = o / np.sqrt(np.mean(o**2, -1, keepdims=True) + 1e-5) * p['norm']['scale']
  if a['gate']:
    o = o * silu(project('gate'))
  return np.einsum('thk,hkd->td', o, p['out']['kernel'])


def elu(z):
  return np.where(z > 0, z + 1, np.exp(z))


def qkv_bias(x, p, a, see, positions):
  inner, p = dict(a['inner'].args), p['inner']
  assert set(p['q']) == {'kernel', 'bias'} and set(p['out']) == {'kernel'}
  return gqa(x, p, inner, see, positions)


def relative_bias(x, p, a, see, positions):
  inner, table = dict(a['inner'].args), p['bias']['table']
  n = a['buckets'] if inner['causal'] else a['buckets'] // 2
  m = n // 2
  starts = [*range(m), *(m * (a['distance'] / m) ** (j / (n - m)) for j in range(n - m))]

  def more(h, gaps):
    near = [max(i for i, start in enumerate(starts) if start <= abs(g) + 1e-9) for g in gaps]
    later = [n if g > 0 and not inner['causal'] else 0 for g in gaps]
    return np.array([table[i + j, h] for i, j in zip(near, later)])

  return gqa(x, p['inner'], inner, see, positions, more)


REFERENCES = dict(gqa=gqa, deltanet=deltanet, qkv_bias=qkv_bias, relative_bias=relative_bias)
REFERENCES |= _rows.values('mixer', 'reference')


@each
def test_equals_the_float64_reference(spec):
  segments = SEGMENTS if fact(spec, 'segments') else None
  x = _table.normal(B, T, D, seed=1, scale=2.0)
  y, see = run(spec, x, segments), promised(spec, segments)
  positions = np.tile(np.arange(T), (B, 1)) if segments is None else _table.positions_of(segments)
  p, real = _table.numpy64(instance(spec)[2]['params']), SEGMENTS > 0
  for b in range(B):
    want = REFERENCES[_table.name(spec)](
      np.asarray(x[b], np.float64), p, _table.arguments('mixer', spec), see[b, :, b], positions[b]
    )
    _table.close(np.asarray(y)[b][real[b]], want[real[b]], 5e-6)


@each
def test_parameters_carry_facts_and_write_to_the_stream(spec):
  leaves = _table.check_facts(instance(spec)[1])
  writers = [l for l in leaves if l.fact.role == 'residual']
  assert writers and all(l.fact.names[-1] == 'embed' for l in writers)


@pytest.mark.parametrize('spec', ROWS[6:9:2])
def test_bfloat16_in_bfloat16_out(spec):
  x = _table.normal(B, T, D, seed=1).astype(jnp.bfloat16)
  y = run(spec, x)
  assert y.dtype == jnp.bfloat16
  _table.close(y.astype(jnp.float32), run(spec, x.astype(jnp.float32)), 0.03)


def test_the_attention_scale_is_the_init_parts_unless_given():
  x = _table.normal(B, T, D, seed=1)
  module, _, variables = instance('gqa(head_dim=8)')
  mup = module.apply(variables, x, _table.ctx(init='mup(base_head_dim=4)'))[0]
  by_hand = registry.make('mixer', 'gqa(head_dim=8, scale=0.25)')(parent=None).apply(
    variables, x, _table.ctx()
  )[0]
  _table.close(mup, by_hand, 1e-6)
  assert np.max(np.abs(mup - run('gqa(head_dim=8)', x))) > 1e-3


@pytest.mark.parametrize(
  'spec, word',
  [
    ('gqa(head_dim=0)', 'head_dim=0'),
    ('gqa(window=0)', 'window=0'),
    ('gqa(heads=3, kv_heads=2)', 'kv_heads=2'),
    ('gqa(cap=-1.0)', 'cap=-1.0'),
    ('gqa(scale=0.0)', 'scale=0.0'),
    ('gqa(kv_heads=-1)', 'kv_heads=-1'),
    ('deltanet(head_dim=0)', 'head_dim=0'),
    ('deltanet(value_dim=-3)', 'value_dim=-3'),
    ('deltanet(taps=-1)', 'taps=-1'),
    ('deltanet(feature="gelu")', 'silu, elu, relu'),
    ('deltanet(sums=True)', 'a sum of values of both signs'),
  ],
)
def test_arguments_that_make_no_sense_are_refused(spec, word):
  with pytest.raises(ValueError, match=word):
    registry.make('mixer', spec)


@pytest.mark.parametrize(
  'spec, word',
  [
    ('gqa(head_dim=5)', 'width=32'),
    ('gqa(head_dim=8, kv_heads=3)', 'kv_heads=3'),
    ('deltanet()', 'width=32'),
  ],
)
def test_sizes_that_do_not_divide_are_refused(spec, word):
  with pytest.raises(ValueError, match=word):
    registry.make('mixer', spec)(parent=None).init(
      jax.random.key(0), jnp.ones((B, T, D)), _table.ctx()
    )

"""MEGABYTE: its equations as plain loops, who depends on whom, its two limits, documents, texts
byte by byte, and what it refuses.
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
from lmjax import generate
from lmjax import kinds
from lmjax import registry
from lmjax.nn import embedding

pytestmark = pytest.mark.slow  # minutes of compiling

T, P, V = 12, 4, 13
ONE = 'megabyte(patch=4, local_width=16, local_stack="block")'
TWO = 'megabyte(patch=4, local_width=16, local_stack="block*2")'


def spec(text: str, **more) -> str:
  return text[:-1] + ''.join(f', {k}={v}' for k, v in more.items()) + ')'


def how(text: str = TWO, length: int = T, **changes) -> dict:
  return dict(architecture=text, length=length, vocab=V, width=32, depth=2) | changes


@functools.cache
def made(**given):
  return _table.model(**how(**given)), _table.model_params(**how(**given))


@functools.cache
def compiled(**given):
  net, _ = made(**given)
  return jax.jit(lambda v, tokens, ctx, cache: net.apply(v, tokens, ctx, cache))


def hidden(tokens, segments=None, variables=None, **given):
  ctx = _table.ctx(*tokens.shape, segments=segments)
  return compiled(**given)(variables or made(**given)[1], tokens, ctx, None).hidden_BTD


def row(seed=0, rows=2, steps=T):
  return jnp.asarray(np.random.default_rng(seed).integers(0, V, (rows, steps)), jnp.int32)


# ---- the equations, as plain loops


def layers(m, p, x_TD, ctx):
  """A stack of one segment and its norm, one row."""
  own = p['segment_0']['0_block']
  for i in range(m.segments[0].repeats):
    layer = jax.tree.map(lambda a, i=i: a[i], own)
    ctx = ctx.replace(scheme=m.scheme, depth=i)
    x_TD, _, _ = m.block('block')(parent=None).apply({'params': layer}, x_TD, ctx)
  return m.final_norm(parent=None).apply({'params': p['final_norm']}, x_TD, ctx)


def plain(net, p, tokens_T, convolved=lambda h: h):
  """hidden (T, local width) of one document."""
  globe, local = net.sides()
  patch, size = net.patch, globe.width // net.patch
  h = convolved(p['patches']['table'][tokens_T])
  bytes_of = lambda k: [
    h[t] if t >= 0 else p['patches']['pad'][i]
    for i, t in enumerate(range((k - 1) * patch + 1, k * patch + 1))
  ]
  patches = len(tokens_T) // patch
  g = jnp.stack([jnp.concatenate(bytes_of(k)) for k in range(patches)])
  z = layers(globe, p['global_model'], g[None], _table.ctx(1, patches))[0]
  out = []
  for k in range(patches):
    l = []
    for i in range(patch):
      wide = z[k, i * size : (i + 1) * size] @ p['slices']['down']['kernel']
      own = p['pad'][0] if i == 0 else p['embed']['table'][tokens_T[k * patch + i]]
      l.append(wide / np.sqrt(local.width) + own)
    out.append(layers(local, p['local_model'], jnp.stack(l)[None], _table.ctx(1, patch))[0])
  return jnp.concatenate(out)


def test_the_equations_as_plain_loops():
  net, variables = made()
  want = jax.jit(lambda p, tokens_T: plain(net, p, tokens_T))
  got = hidden(row())
  for r in range(2):
    _table.close(got[r], want(variables['params'], row()[r]))


def test_convolutions_stand_before_patches_are_made():
  given = dict(text=spec(TWO, conv_patch_encoder=(3, 2)))
  net, variables = made(**given)

  def convolved(h):
    for i, taps in enumerate((3, 2)):
      w = variables['params']['patches'][f'conv_{i}']['kernel']
      past = jnp.concatenate([jnp.zeros((taps - 1, h.shape[1])), h])
      n = len(h)
      y = sum(past[taps - 1 - lag : taps - 1 - lag + n] * w[lag] for lag in range(taps))
      h = h + jax.nn.gelu(y)
    return h

  want = jax.jit(lambda p: plain(net, p, row()[0], convolved))(variables['params'])
  _table.close(hidden(row(), **given)[0], want)


def test_both_sides_are_initialized_by_their_own_width_and_depth():
  """gpt2: residual writers begin with sigma / sqrt(2 N), N the layers of their own stack."""
  net, _ = made(text=ONE, depth=8, width=64, init='gpt2()', blocks__block__residual='mix_ln()')
  depths = [dict(side.block('block').context)['depth'] for side in net.sides()]
  assert depths == [8, 1]
  tokens = jnp.zeros((1, T), jnp.int32)
  params = jax.jit(net.init)(jax.random.key(0), tokens, _table.ctx(1, T))['params']
  std = lambda side: float(
    jnp.std(params[side]['segment_0']['0_block']['ffn']['down']['kernel'].value)
  )
  assert abs(std('global_model') / (0.02 / 4) - 1) < 0.05
  assert abs(std('local_model') / (0.02 / 2**0.5) - 1) < 0.1


# ---- who depends on whom


def touched(net, variables, segments=None):
  """{'patches', 'embed'} -> bool (T, T): whether hidden t depends on byte j through E_g or E_l.
  Every byte is another one, so that rows of the tables are places.
  """
  steps = net.model.length
  tokens = jnp.arange(steps, dtype=jnp.int32)[None]
  segments = None if segments is None else np.asarray([segments])
  ctx = _table.ctx(1, steps, segments=segments)

  def f(tables):
    p = dict(variables['params'])
    p = {k: {**p[k], 'table': tables[k]} if k in tables else p[k] for k in p}
    y = net.apply({'params': p}, tokens, ctx).hidden_BTD[0]
    return y @ _table.normal(y.shape[-1])

  tables = {k: variables['params'][k]['table'] for k in ('patches', 'embed')}
  found = jax.jit(jax.jacrev(f))(tables)
  return {k: np.abs(np.asarray(a)).sum(-1)[:, :steps] > 0 for k, a in found.items()}


t, j = np.arange(T)[:, None], np.arange(T)[None]


def test_a_byte_depends_on_whole_patches_before_and_on_its_own_patch_so_far():
  """The shift by one patch, exactly: h_j reaches hidden_t once j is behind the border at or before
  t; E_l[x_j] where j is in the patch of t, not first in it, and not later.
  """
  found = touched(*made(text=ONE, depth=1, vocab=16))
  np.testing.assert_array_equal(found['patches'], j <= t // P * P)
  np.testing.assert_array_equal(found['embed'], (j // P == t // P) & (j <= t) & (j % P > 0))


@pytest.mark.parametrize('reach', [1, 3, 4])
def test_cross_patch_attention_sees_exactly_that_many_states_of_the_patch_before(reach):
  net, variables = made(text=spec(ONE, cross_patch_attention=reach), depth=1, vocab=16)
  found = touched(net, variables)
  near = (j // P == t // P) & (j <= t)
  near |= (j // P == t // P - 1) & (j % P >= P - reach)
  np.testing.assert_array_equal(found['embed'], near & (j % P > 0))
  np.testing.assert_array_equal(found['patches'], j <= t // P * P)


@pytest.mark.parametrize(
  'more', [dict(cross_patch_attention=2, conv_patch_encoder=(3,)), dict(strided_inference=True)]
)
def test_a_changed_byte_changes_what_follows_and_nothing_before(more):
  given, tokens = dict(text=spec(TWO, **more)), row(rows=1)
  want = np.asarray(hidden(tokens, **given))[0]
  for at in range(T):
    got = np.asarray(hidden(tokens.at[0, at].set((tokens[0, at] + 1) % V), **given))[0]
    _table.same(got[:at], want[:at])
    assert np.all(np.any(got[at:] != want[at:], axis=-1)), at


DOCUMENTS = [1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 0, 4]


@pytest.mark.parametrize(
  'more',
  [
    dict(cross_patch_attention=3, conv_patch_encoder=(3,)),
    pytest.param(dict(strided_inference=True), marks=pytest.mark.slow),
  ],
)
def test_nothing_passes_between_documents_and_nothing_within_one_is_lost(more):
  found = touched(*made(text=spec(TWO, **more), vocab=16), segments=DOCUMENTS)
  s = np.asarray(DOCUMENTS)
  want = (s[:, None] == s[None]) & (s[:, None] > 0) & (j <= t)
  either = (found['patches'] | found['embed'])[s > 0]
  np.testing.assert_array_equal(either, want[s > 0])


@pytest.mark.parametrize('more', [{}, dict(cross_patch_attention=2, conv_patch_encoder=(3,))])
def test_a_row_is_the_same_wherever_its_padding_is(more):
  given, tokens = dict(text=spec(TWO, **more)), row(rows=1, steps=7)
  want = hidden(tokens, **given)[0]
  for left in (0, 3, 5):
    padded, segments = np.full((2, T), 9, np.int32), np.zeros((2, T), int)
    padded[1, left : left + 7], segments[1, left : left + 7] = tokens[0], 1
    got = hidden(jnp.asarray(padded), segments, **given)[1, left : left + 7]
    _table.close(got, want)


def test_a_document_that_begins_with_a_patch_is_computed_as_alone():
  tokens, segments = row(rows=1), np.array([[1] * 8 + [2] * 4])
  _table.close(hidden(tokens, segments)[0, 8:], hidden(tokens[:, 8:])[0])


# ---- limits


def test_patches_of_one_byte_are_the_global_model_alone():
  """P = 1, a local model that adds nothing: the transformer over bytes."""
  text = 'megabyte(patch=1, local_width=32, local_stack="block")'
  net, variables = made(text=text, final_norm='')
  p = jax.tree.map(lambda a: a, variables['params'])
  layer = p['local_model']['segment_0']['0_block']
  for part, name in (('mixer', 'out'), ('ffn', 'down')):
    layer[part][name]['kernel'] *= 0
  p['slices']['down']['kernel'], p['pad'] = jnp.sqrt(32.0) * jnp.eye(32), jnp.zeros((1, 32))
  flat = dict(text='transformer()', final_norm='')
  same = {'params': {'embed': {'table': p['patches']['table']}, **p['global_model']}}
  got = hidden(row(), variables={'params': p}, text=text, final_norm='')
  _table.close(got, hidden(row(), variables=same, **flat))


def test_one_patch_is_the_local_model_alone():
  """P = T, a global model that is not heard: the transformer over bytes, whose first is the pad."""
  text = 'megabyte(patch=12, local_width=32, local_stack="block*2")'
  net, variables = made(text=text, width=96)
  p = jax.tree.map(lambda a: a, variables['params'])
  tokens = row().at[:, 0].set(5)
  p['slices']['down']['kernel'] *= 0
  p['pad'] = p['embed']['table'][5][None]
  same = {'params': {'embed': p['embed'], **p['local_model']}}
  got = hidden(tokens, variables={'params': p}, text=text, width=96)
  _table.close(got, hidden(tokens, variables=same, text='transformer()'))


def test_strided_inference_takes_the_first_half_of_patches_moved_by_half():
  """The moved pass is a row behind a document of P / 2 bytes, whose patches begin P / 2 earlier."""
  given, tokens = dict(text=spec(TWO, strided_inference=True)), row()
  want = np.array(hidden(tokens))
  junk = jnp.concatenate([row(1)[:, :2], tokens, row(1)[:, 2:4]], axis=1)
  segments = np.array([[1] * 2 + [2] * T + [0] * 2] * 2)
  moved = np.asarray(hidden(junk, segments))[:, 2 : T + 2]
  late = np.arange(T) % P >= P // 2
  want[:, late] = moved[:, late]
  got = hidden(tokens, **given)
  _table.close(got, want)
  assert not np.allclose(got[:, late], hidden(tokens)[:, late], atol=1e-3)
  training = _table.ctx(2, T, train=True)
  learnt = compiled(**given)(made(**given)[1], tokens, training, None).hidden_BTD
  _table.close(learnt, hidden(tokens))


# ---- one byte after another

CACHED = {
  'plain': {},
  'cross': dict(text=spec(TWO, cross_patch_attention=3)),
  'conv': dict(text=spec(TWO, conv_patch_encoder=(3, 2))),
  'recurrent': dict(blocks__block__mixer='deltanet(head_dim=8)', position='none()'),
  'window': dict(blocks__block__mixer='gqa(head_dim=8, window=2)'),
  'deep cross': dict(text=spec(TWO.replace('*2', '*3'), cross_patch_attention=4)),
  'added': dict(position='learned()'),
  'alibi': dict(position='alibi()', text=spec(TWO, cross_patch_attention=1)),
}
STEPS = 24
RAGGED = np.array([[1] * STEPS, [0] * 5 + [1] * (STEPS - 5), [0] * 16 + [1] * (STEPS - 16)])
PACKED = np.array([[1] * 7 + [2] * 6 + [3] * (STEPS - 13), [0] * 2 + [1] * 9 + [2] * (STEPS - 11)])


def in_blocks(blocks, tokens, segments, cache_spec='full()', **given):
  """Logits, computed in blocks of so many bytes."""
  net, variables = made(length=STEPS, **given)
  places = _table.ctx(*tokens.shape, segments=segments)
  cache = net.init_cache(registry.make('cache', cache_spec), *tokens.shape)
  out, start = [], 0
  for n in blocks:
    at = slice(start, start + n)
    now = places.replace(
      positions_BT=places.positions_BT[:, at], segments_BT=places.segments_BT[:, at]
    )
    found = compiled(length=STEPS, **given)(variables, tokens[:, at], now, cache)
    cache, start = found.cache, start + n
    out.append(embedding.logits(found))
  assert start == tokens.shape[1]
  return np.concatenate(out, axis=1), cache


def whole(tokens, segments, **given):
  ctx = _table.ctx(*tokens.shape, segments=segments)
  _, variables = made(length=STEPS, **given)
  return np.asarray(embedding.logits(compiled(length=STEPS, **given)(variables, tokens, ctx, None)))


def compare(blocks, segments, cache_spec='full()', **given):
  tokens, real = row(rows=len(segments), steps=STEPS), segments > 0
  got, _ = in_blocks(blocks, tokens, segments, cache_spec, **given)
  _table.close(got[real], whole(tokens, segments, **given)[real])


def test_what_follows_a_prompt_byte_by_byte_is_the_whole_row():
  """The prompts end at different places of their patches."""
  compare([18] + [1] * 6, RAGGED, **CACHED['cross'])


def test_a_ring_holds_the_window_of_patches():
  compare([18] + [1] * 6, RAGGED, 'window()', **CACHED['window'])


def test_a_text_of_several_documents_byte_by_byte_is_the_whole_row():
  compare([1] * STEPS, PACKED)


@pytest.mark.slow
@pytest.mark.parametrize(
  'blocks, segments',
  [([18] + [1] * 6, RAGGED), ([6, 3, 15], PACKED)],
  ids=['prefill, ragged', 'blocks, packed'],
)
@pytest.mark.parametrize('name', CACHED)
def test_texts_in_blocks_of_any_size_are_the_whole_row(name, blocks, segments):
  compare(blocks, segments, **CACHED[name])


def test_one_step_of_the_global_model_for_each_patch_of_a_row():
  """Real entries of its cache, after a prompt and single bytes."""
  _, cache = in_blocks([18] + [1] * 6, row(rows=3, steps=STEPS), RAGGED)
  keys = next(a for a in jax.tree.leaves(cache.globe) if a.ndim == 5)
  assert keys.shape[2] == STEPS // P + 1
  real = np.asarray(jnp.any(keys != 0, axis=(-2, -1)).sum(-1))  # those of padding are 0
  np.testing.assert_array_equal(real[0], -(-RAGGED.sum(1) // P))


def sizes(jaxpr, conditional=False):
  """(whether under a condition, size of the last axis) of all that a program computes."""
  is_program = lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
  for e in jaxpr.eqns:
    yield from ((conditional, v.aval.shape[-1]) for v in e.outvars if v.aval.shape)
    for x in jax.tree.leaves(e.params, is_leaf=is_program):
      if is_program(x):
        yield from sizes(getattr(x, 'jaxpr', x), conditional or e.primitive.name == 'cond')


def test_where_no_row_ends_a_patch_the_global_model_does_not_run():
  """It stands under a condition on the whole batch: P - 1 of P bytes cost the local model alone."""
  net, variables = made(length=STEPS)
  cache = net.init_cache(registry.make('cache', 'full()'), 2, STEPS)
  one = lambda cache: net.apply(variables, row()[:, :1], _table.ctx(2, 1), cache).cache
  found = set(sizes(jax.make_jaxpr(one)(cache.replace(fresh=False)).jaxpr))
  wide, narrow = 4 * 32, 4 * 16  # hidden units of the feed-forwards
  assert (True, wide) in found and (False, wide) not in found
  assert (False, narrow) in found


PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 1, 2, 3], [3, 3, 7, 1]]


@pytest.mark.slow
def test_what_is_generated_is_the_argmax_of_the_whole_row_alone_and_in_any_batch():
  given = dict(CACHED['cross'], length=STEPS)
  net, variables = made(**given)
  new = generate.generate(net, variables, PROMPTS, max_tokens=9)
  for p, n in zip(PROMPTS, new):
    text = np.asarray([[*p, *map(int, n)]], np.int32)
    top = np.argmax(
      np.asarray(hidden(jnp.asarray(text), **given) @ variables['params']['embed']['table'].T), -1
    )
    assert text[0, len(p) :].tolist() == top[0, len(p) - 1 : -1].tolist()


def test_memory_of_the_local_model_is_flat_and_of_the_global_one_an_entry_a_patch():
  net, _ = made(**CACHED['cross'])
  kind = registry.make('cache', 'full()')
  size = lambda n: jax.eval_shape(lambda: net.init_cache(kind, 2, n))
  nbytes = lambda tree: sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))
  short, long = size(400), size(40_000)
  assert nbytes(short.local) == nbytes(long.local)
  assert 95 < nbytes(long.globe) / nbytes(short.globe) < 100
  assert all(
    a.shape[1] == 2 for a in jax.tree.leaves(long)
  )  # rows, for rules that choose among them


# ---- the stack's own options, meshes


def slope(variables, **given):
  net, _ = made(**given)
  ctx = _table.ctx(2, T, segments=np.array([DOCUMENTS, [1] * T]))

  @jax.jit
  def f(v):
    z = embedding.logits(net.apply(v, row(), ctx))
    return jnp.mean(jnp.where(ctx.segments_BT > 0, jax.nn.log_softmax(z)[..., 0], 0))

  return jax.value_and_grad(f)(variables)


@pytest.mark.slow
def test_neither_unrolling_nor_recomputing_changes_loss_or_gradient():
  text = spec(ONE, cross_patch_attention=2)
  _, variables = made(text=text)
  want = slope(variables, text=text)
  assert all(np.any(g != 0) for g in jax.tree.leaves(want[1]))
  _table.trees_close(slope(variables, text=text, unroll=100), want)
  _table.trees_close(slope(variables, text=text, remat='full'), want)


def test_recomputing_keeps_less_also_with_cross_patch_attention():
  def kept(remat):
    given = dict(text=spec(TWO, cross_patch_attention=2), remat=remat)
    net, variables = made(**given)
    f = lambda v: jnp.sum(net.apply(v, row(), _table.ctx(2, T)).hidden_BTD)
    _, back = jax.eval_shape(lambda v: jax.vjp(f, v), variables)
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(back))

  assert kept('full') < 0.6 * kept('none')


def test_flops_are_counted_where_they_are_spent():
  """A matrix of the global model is used once in P bytes, its attention spans T / P places."""
  net, _ = made(text=spec(TWO, cross_patch_attention=3))
  wide, narrow = net.passes(T, 0)
  assert (wide.model.width, wide.length, wide.share) == (32, T // P, 1 / P)
  assert (narrow.model.width, narrow.length, narrow.share) == (16, P, 1)
  assert narrow.beside == 3  # bytes of the patch before, which all of a patch see
  assert (wide.model.depth, narrow.model.depth) == (2, 2)
  assert {wide.prefix[0], narrow.prefix[0]} <= set(made()[1]['params'])


SMALL = {
  'model.width': '64',
  'model.depth': '1',
  'data.length': '16',
  'batch_tokens': '128',
  'model.mixer': 'gqa(head_dim=8)',
  'model.embed': 'tied(multiple_of=8)',
  'model.architecture': 'megabyte(patch=4, local_width=32, local_stack="block", '
  'cross_patch_attention=2, conv_patch_encoder=(3,))',
}


@functools.cache
def run() -> build.Run:
  return build.build(config.resolve(config.load('quickstart', list(SMALL.items()))))


@functools.cache
def alone():
  state = run().init(jax.random.key(0))
  params, vars = jax.tree.map(np.asarray, (state.params, state.vars))
  return params, vars, _meshes.slope(run(), params, vars, rows())


def rows():
  rng, segments = np.random.default_rng(0), np.ones((8, 17), np.int32)
  segments[::2, 9:] = 2
  segments[5, 3:] = 0
  segments[6, :5] = 0
  return dict(
    tokens=rng.integers(0, 256, segments.shape).astype(np.int32),
    segments=segments,
    positions=_table.positions_of(segments),
  )


@pytest.mark.parametrize('name', [pytest.param('auto', marks=pytest.mark.slow), 'explicit'])
def test_a_mesh_changes_neither_loss_nor_gradient(name):
  *first, want = alone()
  _table.trees_close(_meshes.slope(run(), *first, rows(), _meshes.MESHES[name]), want, 2e-5)


# ---- refusals


@pytest.mark.parametrize(
  'changes, words',
  [
    (dict(width=30), r'config.model.width=30 does not divide by patch=4'),
    (dict(length=14), r'config.data.length=14 does not divide by patch=4'),
    (dict(text=TWO.replace('16', '20')), r'local_width=20: mixer gqa: .*head_dim=8'),
    (dict(text=TWO.replace('block', 'blok')), "local_stack.*did you mean 'block'"),
    (dict(text=spec(TWO, strided_inference=True).replace('=4', '=3')), 'even patch, not patch=3'),
    (dict(text=spec(TWO, cross_patch_attention=5)), 'from 0 to patch=4'),
    (dict(text=spec(TWO, conv_patch_encoder=(1,))), 'taps from 2 to 64'),
    (dict(text=TWO.replace('16', '0')), 'local_width=0'),
    (dict(text=TWO.replace('=4', '=0')), 'patch=0'),
    (dict(blocks__block__mixer='gqa(head_dim=8, causal=False)'), 'looks ahead'),
    (dict(init='mup(base_width=16)'), 'config.model.init=mup.*two'),
    (
      dict(
        text=spec(TWO, cross_patch_attention=1),
        blocks__block__mixer='deltanet(head_dim=8)',
        position='none()',
      ),
      'keeps no keys, which cross_patch_attention',
    ),
  ],
)
def test_what_cannot_be_is_refused_by_name(changes, words):
  with pytest.raises(ValueError, match=words):
    net = _table.model(**how(**changes))
    tokens = jnp.zeros((1, changes.get('length', T)), jnp.int32)
    jax.eval_shape(net.init, jax.random.key(0), tokens, _table.ctx(*tokens.shape))


@pytest.mark.parametrize('field', ['prefix_BT', 'source', 'memory'])
def test_what_it_cannot_honour_is_refused(field):
  net, variables = made()
  with pytest.raises(kinds.Unsupported, match=field.partition('_')[0]):
    net.apply(variables, row(), _table.ctx(2, T).replace(**{field: jnp.ones((2, T), jnp.int32)}))


def test_blocks_that_neither_stack_uses_are_refused():
  def settings(*names):
    c = config.load('quickstart', list(SMALL.items())).unlock()
    for name in names:
      c.model.blocks[name] = config.block()
    c.model.stack = 'block*2'  # with several blocks it must be said
    c.model.architecture = 'megabyte(patch=4, local_width=32, local_stack="near")'
    return config.resolve(c)

  assert build.build(settings('near')).model.depth == 2
  with pytest.raises(ValueError, match='config.model.blocks.idle is not used'):
    build.build(settings('near', 'idle'))

"""Mixture-of-Recursions against loops over rows and tokens as the paper has them; routing that
looks at nothing later where it must not; caches; meshes; what is refused.
"""

import functools

import flax.linen as nn
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
from lmjax.kernels.attention import reference
from lmjax.models.architectures import _recursion_select as select

pytestmark = pytest.mark.slow  # minutes of compiling

T, B, V, D = _table.STEPS, _table.BATCH, _table.VOCAB, _table.WIDTH
CYCLE, MIDDLE = 'shared(block)*3', 'block + shared((block, block))*2 + block'
PACKED = np.array([[1, 1, 1, 1, 2, 2, 2, 3, 0, 0], [1] * T])
ONES = np.ones((B, T), int)


def spec(**args):
  return f'mixture_of_recursions({", ".join(f"{k}={v!r}" for k, v in args.items())})'


EXPERT, TOKEN = spec(), spec(router='token_choice')
SHARING = spec(kv='share_first')
PLAIN = spec(adds='change', gate='one', capacities=(1, 1))


def model(architecture, stack=CYCLE, **how):
  return _table.model(architecture=architecture, stack=stack, **how)


def abstract(net):
  return _table.abstract(net, jnp.zeros((1, T), jnp.int32), _table.ctx(1))


@functools.cache
def variables(architecture, stack=CYCLE, seed=0, **how):
  """Stirred; what is not trained begins at 0."""
  made = abstract(model(architecture, stack, **how))
  rest = {k: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), v) for k, v in made.items()}
  return {**rest, **_table.values({'params': made['params']}, seed=seed)}


def tokens(segments=ONES, seed=0):
  return _table.batch(segments, seed=seed)['tokens']


@functools.cache
def compiled(architecture, stack=CYCLE, **how):
  net = model(architecture, stack, **how)
  return jax.jit(lambda v, tok, ctx: net.apply(v, tok, ctx, mutable=['vars', 'intermediates']))


def outputs(architecture, tok, ctx, stack=CYCLE, v=None, **how):
  """(Outputs, depths of the tokens in the first recursed segment (B, T), variables after it)."""
  v = variables(architecture, stack, **how) if v is None else v
  out, new = compiled(architecture, stack, **how)(v, tok, ctx)
  (depths,) = next(iter(new['intermediates'].values()))
  return out, np.asarray(depths), new.get('vars', {})


# ---- against loops


def sigma(z):
  return 1 / (1 + np.exp(-np.asarray(z, np.float64)))


@functools.cache
def masked(name):
  """The block among the tokens of segments other than 0, in their places."""
  net = model(name, final_norm='')

  def run(v, x, ctx):
    own = {'params': v['params']['segment_0']['0_block']}
    return net.model.block('block')(parent=None).apply(own, x, ctx)[0]

  return jax.jit(run)


def block_alone(name, v, x, taken, ctx):
  """The block of the taken tokens of each row, without all others; float64."""
  segments = jnp.where(jnp.asarray(taken), ctx.segments_BT, 0)
  return np.asarray(
    masked(name)(v, jnp.asarray(x, jnp.float32), ctx.replace(segments_BT=segments)), np.float64
  )


def experts_by_hand(name, v, x, ctx, shares):
  """(x, depths, [(logit, whether among the largest)] by recursion) of one segment of one block."""
  net, before, judged = model(name, final_norm=''), 1, []
  active, kernel = np.asarray(ctx.segments_BT) > 0, np.asarray(v['params']['router_0'], np.float64)
  depth, real = np.zeros((B, T), int), active.sum(1)
  for r, share in enumerate(shares):
    z = x @ kernel[:, r]
    if share < before:
      largest = np.zeros_like(active)
      for b in range(B):
        best = sorted(np.flatnonzero(active[b]), key=lambda t: -z[b, t].round(5))
        largest[b, best[: max(1, int(share * real[b] + 1e-9))]] = True
      judged.append(np.stack([z[active], largest[active]]))
      active = largest if ctx.train else active & (z > 0)
    g = net.alpha * sigma(z)[..., None] if net.gate == 'router' else 1.0
    y = block_alone(name, v, x, active, ctx)
    x = np.where(active[..., None], x + g * (y - x if net.adds == 'change' else y), x)
    depth, before = depth + active, share
  return x, depth, judged


@pytest.mark.parametrize(
  'how',
  [
    dict(),
    dict(adds='change', alpha=2.0, capacities=(0.8, 0.8, 0.3), z_loss=0.5),
    dict(gate='one', adds='change', capacities=(1, 0.5, 0.2), auxiliary_loss=1.0),
  ],
  ids=['paper', 'change', 'one'],
)
@pytest.mark.parametrize('train', [True, False], ids=['train', 'eval'])
def test_expert_choice_equals_a_loop(how, train):
  name = spec(**how)
  net, v = model(name, final_norm=''), variables(name, seed=1, final_norm='')
  ctx, tok, real = _table.ctx(segments=PACKED, train=train), tokens(PACKED), PACKED > 0
  out, depths, _ = outputs(name, tok, ctx, v=v, final_norm='')
  shares = how.get('capacities', (1, 2 / 3, 1 / 3))
  x = np.asarray(v['params']['embed']['table'], np.float64)[tok]
  want, depth, judged = experts_by_hand(name, v, x, ctx, shares)
  np.testing.assert_array_equal(depths, depth)
  _table.close(np.asarray(out.hidden_BTD)[real], np.asarray(want)[real])
  share = [np.mean(depth[real] == d) for d in range(4)]
  got = [float(out.aux[f'recursion/share_{d}']) for d in range(4)]
  np.testing.assert_allclose(got, share, atol=1e-6)
  assert np.isclose(out.aux['recursion/depth'], depth[real].mean()) and len(set(depth[real])) > 1
  right = np.mean([np.mean((z > 0) == top) for z, top in judged])
  assert np.isclose(out.aux['recursion/accuracy'], right)
  if not train:  # the loss of an evaluation is the plain one
    assert not any(k.startswith('loss/') for k in out.aux)
    return
  missed = [-np.mean(np.log(np.where(top, sigma(z), sigma(-z)))) for z, top in judged]
  assert np.isclose(out.aux['loss/router'], net.auxiliary_loss * sum(missed), rtol=1e-5)
  squares = net.z_loss * sum(np.mean(z**2) for z, _ in judged)
  assert np.isclose(out.aux.get('loss/router_z', 0.0), squares, rtol=1e-5)


def tokens_by_hand(name, v, x, ctx, bias):
  """(x, depths, probabilities) of one segment of one block."""
  net, kernel = model(name, final_norm=''), np.asarray(v['params']['router_0'], np.float64)
  p = np.exp(x @ kernel) / np.exp(x @ kernel).sum(-1, keepdims=True)
  depth = np.where(ctx.segments_BT > 0, np.argmax(p + bias, axis=-1) + 1, 0)
  y = x
  for r in range(3):
    y = np.where((depth > r)[..., None], block_alone(name, v, y, depth > r, ctx), y)
  chosen = np.take_along_axis(p, np.maximum(depth - 1, 0)[..., None], axis=-1)
  return x + chosen * (y - x if net.adds == 'change' else y), depth, p


@pytest.mark.parametrize(
  'how', [dict(z_loss=0.3), dict(adds='change', balance='bias', bias_rate=0.25)], ids=str
)
def test_token_choice_equals_a_loop(how):
  name = spec(router='token_choice', **how)
  net, v = model(name, final_norm=''), variables(name, final_norm='')
  bias = np.array([0.0, -0.4, 0.2]) if net.balance == 'bias' else np.zeros(3)
  v = {**v, 'vars': {'bias_0': jnp.asarray(bias, jnp.float32)}} if net.balance == 'bias' else v
  ctx, tok, real = _table.ctx(segments=PACKED, train=True), tokens(PACKED), PACKED > 0
  out, depths, new = outputs(name, tok, ctx, CYCLE, v=v, final_norm='')
  x = np.asarray(v['params']['embed']['table'], np.float64)[tok]
  want, depth, p = tokens_by_hand(name, v, x, ctx, bias)
  np.testing.assert_array_equal(depths, depth)
  _table.close(np.asarray(out.hidden_BTD)[real], np.asarray(want)[real])
  f = np.array([np.mean(depth[real] == d) for d in (1, 2, 3)])
  assert len(set(f)) > 1
  if net.balance == 'bias':
    assert np.any(np.argmax(p, -1)[real] + 1 != depth[real])  # chosen by the bias, weighted by p
    assert 'loss/balance' not in out.aux
    np.testing.assert_allclose(new['bias_0'], bias + 0.25 * np.sign(1 / 3 - f), atol=1e-6)
    calm, _, new = outputs(name, tok, ctx.replace(train=False), CYCLE, v=v, final_norm='')
    _table.same(new['bias_0'], v['vars']['bias_0'])
    _table.close(np.asarray(calm.hidden_BTD)[real], np.asarray(want)[real])
    return
  assert np.isclose(out.aux['loss/balance'], 0.1 * 3 * np.sum(f * p[real].mean(0)), rtol=1e-5)
  z = x @ np.asarray(v['params']['router_0'], np.float64)
  size = np.square(np.log(np.exp(z).sum(-1)))[real].mean()
  assert np.isclose(out.aux['loss/router_z'], 0.3 * size, rtol=1e-5)


def shared_layer(net, own, x, ctx, kept=None):
  """A pre-norm layer as written: (x, (keys, values)); attention to the keys and values `kept`."""
  parts = dict(net.model.block('block').context)
  norm = lambda name, x: parts['norm'](parent=None).apply({'params': own[name]}, x, ctx)
  h, position, mixer = norm('norm_mixer', x), ctx.scheme.position, own['mixer']
  q, k, v = (jnp.einsum('btd,dhk->bthk', h, mixer[n]['kernel']) for n in 'qkv')
  kept = kept or (position.rotate(k, ctx.positions_BT), v)
  y = reference.attention(
    position.rotate(q, ctx.positions_BT),
    *kept,
    q_positions=ctx.positions_BT,
    k_positions=ctx.positions_BT,
    q_segments=ctx.segments_BT,
    k_segments=ctx.segments_BT,
    causal=True,
    window=None,
    cap=None,
    scale=8**-0.5,
    bias=None,
    aligned=True,
  )
  x = x + jnp.einsum('bthk,hkd->btd', y, mixer['out']['kernel'])
  fed = parts['ffn'](parent=None).apply({'params': own['ffn']}, norm('norm_ffn', x), ctx)[0]
  return x + fed, kept


@pytest.mark.parametrize('train', [True, False], ids=['train', 'eval'])
def test_sharing_shows_the_keys_of_the_first_recursion(train):
  """All rows of the queries are computed here and those of others dropped."""
  how = dict(stack='shared((block, block))*2', final_norm='')
  net, v = model(SHARING, **how), variables(SHARING, **how)
  ctx, tok, real = _table.ctx(segments=PACKED, train=train), tokens(PACKED), PACKED > 0
  out, depths, _ = outputs(SHARING, tok, ctx, **how)
  own, x, kept = v['params']['segment_0'], v['params']['embed']['table'][tok], [None, None]
  for r in range(2):
    g = 0.1 * jax.nn.sigmoid(x @ v['params']['router_0'][:, r])
    y = x
    for i in range(2):
      y, kept[i] = shared_layer(net, own[f'{i}_block'], y, ctx, kept[i])
    x = jnp.where((depths > r)[..., None], x + g[..., None] * y, x)
  assert depths[real].min() == 1 and len(set(depths[real])) > 1
  _table.close(np.asarray(out.hidden_BTD)[real], np.asarray(x)[real])


# ---- the recursive network, the vanilla stack, counts


def loss_and_grad(architecture, v, stack=CYCLE, **how):
  net, (params, rest) = model(architecture, stack, **how), split(v)
  ctx = _table.ctx(segments=PACKED, train=True)

  @jax.jit
  def run(params):
    def f(params):
      out, _ = net.apply({**rest, 'params': params}, tokens(PACKED), ctx, mutable=['vars'])
      own = sum(x for k, x in out.aux.items() if k.startswith('loss/'))
      return (
        jnp.sum(jnp.where(jnp.asarray(PACKED)[..., None] > 0, jnp.sin(out.hidden_BTD), 0)) + own
      )

    return jax.value_and_grad(f)(params)

  return run(params)


def split(v):
  return v['params'], {k: x for k, x in v.items() if k != 'params'}


def test_all_tokens_and_gate_one_are_the_recursive_network():
  v = variables(PLAIN, MIDDLE)
  got = loss_and_grad(PLAIN, v, MIDDLE)
  _table.trees_close(got, loss_and_grad('transformer()', v, MIDDLE))


def test_one_recursion_is_a_vanilla_stack():
  v = variables(EXPERT, 'shared((block, block))*1')
  params = dict(v['params'])
  one, grad = loss_and_grad(EXPERT, v, 'shared((block, block))*1')
  params['segment_0'] = jax.tree.map(lambda a: a[None], params['segment_0'])
  two, grads = loss_and_grad('transformer()', {'params': params}, '(block, block)*1')
  grads['segment_0'] = jax.tree.map(lambda a: a[0], grads['segment_0'])
  _table.close(one, two, 1e-6)
  _table.trees_close(grad, grads)


@pytest.mark.parametrize(
  'stack, layers, segments',
  [
    ('shared((block, block))*3', 2, 1),  # cycle
    ('shared(block)*3 + shared(block)*3', 2, 2),  # sequence
    ('block + shared((block, block))*3 + block', 4, 1),  # middle_cycle
    ('block + shared(block)*3 + shared(block)*3 + block', 4, 2),  # middle_sequence
  ],
)
def test_parameters_are_those_of_the_layers_written_once(stack, layers, segments):
  count = lambda net: sum(x.size for x in jax.tree.leaves(abstract(net)['params']))
  layer = 4 * D * D + 8 * D * D + 2 * D
  want = V * D + D + layers * layer
  assert count(_table.model(stack=stack)) == want
  for name in (EXPERT, TOKEN):
    assert count(model(name, stack)) == want + segments * D * 3
    assert model(name, stack).model.depth == (layers - 2) * 3 + 2 if 'block +' in stack[:7] else 6


# ---- what tokens may depend on


class Visits(nn.Module):
  """Adds 1 at the coordinate of the layer's depth."""

  @nn.compact
  def __call__(self, x, ctx):
    return (jnp.arange(x.shape[-1]) == ctx.depth).astype(x.dtype) * jnp.ones_like(x), {}


class Silent(nn.Module):
  @nn.compact
  def __call__(self, x, ctx, cache=None):
    return jnp.zeros_like(x), cache, {}


registry.register('mixer', segments=True)(Silent)
registry.register('ffn')(Visits)


@pytest.mark.parametrize('train', [True, False], ids=['train', 'eval'])
def test_who_leaves_never_comes_back(train):
  name, mine = spec(gate='one', adds='change', capacities=(0.9, 0.6, 0.5, 0.3)), f'{__name__}:'
  how = dict(stack='shared(block)*4', final_norm='', blocks__block__mixer=f'{mine}Silent()')
  how['blocks__block__ffn'] = f'{mine}Visits()'
  v, ctx, tok = variables(name, **how), _table.ctx(train=train), tokens()
  out, depths, _ = outputs(name, tok, ctx, **how)
  added = np.asarray(out.hidden_BTD - v['params']['embed']['table'][tok])
  np.testing.assert_allclose(
    added[..., :5], np.arange(5) < depths[..., None], atol=1e-5
  )  # through recursions 0 ... depth - 1 and no other
  assert len(set(depths.ravel())) > 2


def test_padding_takes_no_capacity_and_none_is_counted_for_it():
  """A row with 4 tokens of padding gives in training what the 6 others give alone."""
  v = variables(EXPERT)
  for where in ([1] * 6 + [0] * 4, [0] * 4 + [1] * 6, [1, 0, 1, 1, 0, 0, 1, 1, 0, 1]):
    segments = np.array([where, [1] * T])
    at, tok = np.flatnonzero(where), tokens()
    positions = jnp.asarray([np.cumsum(where) - 1, np.arange(T)], jnp.int32)
    ctx = _table.ctx(segments=segments, positions=positions, train=True)
    got, depths, _ = outputs(EXPERT, tok, ctx)
    short = _table.ctx(1, 6, segments=np.ones((1, 6), int), train=True)
    want, short_depths, _ = outputs(EXPERT, tok[:1, at], short)
    _table.close(got.hidden_BTD[0, at], want.hidden_BTD[0])
    np.testing.assert_array_equal(depths[0, at], short_depths[0])
    assert list(np.bincount(depths[0], minlength=4)) == [4, 2, 2, 2]
  net, ctx = model(EXPERT), _table.ctx(segments=np.array([[0] * T, [1] * T]), train=True)
  grads = jax.jit(jax.grad(lambda v: jnp.sum(net.apply(v, tokens(), ctx).hidden_BTD[1])))(v)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))  # a row of nothing but padding


@pytest.mark.parametrize('name', [EXPERT, SHARING, TOKEN])
def test_evaluation_looks_at_nothing_later(name):
  ctx, tok = _table.ctx(segments=ONES), tokens()
  want, depths, _ = outputs(name, tok, ctx)
  got, new_depths, _ = outputs(name, tok.at[:, 6:].set((tok[:, 6:] + 1) % V), ctx)
  _table.same(got.hidden_BTD[:, :6], want.hidden_BTD[:, :6])
  np.testing.assert_array_equal(depths[:, :6], new_depths[:, :6])
  assert np.any(depths[:, 6:] != new_depths[:, 6:])


def test_no_gradient_of_evaluation_comes_from_later():
  net, v, ctx = model(EXPERT), variables(EXPERT), _table.ctx(segments=ONES)
  ids = jnp.broadcast_to(jnp.arange(T), (B, T))  # a row of the table for each place

  def past(table):
    params = {**v['params'], 'embed': {'table': table}}
    return jnp.sum(jnp.sin(net.apply({'params': params}, ids, ctx).hidden_BTD[:, :6]))

  slope = np.asarray(jax.jit(jax.grad(past))(v['params']['embed']['table']))
  assert np.all(slope[6:] == 0) and np.all(np.abs(slope[:6]).max(-1) > 0)


def test_training_takes_the_largest_of_the_row_whatever_the_threshold():
  """With logits shifted far from 0 training goes on as before, and evaluation takes all or none."""
  v = variables(EXPERT)
  _, before, _ = outputs(EXPERT, tokens(), _table.ctx(segments=ONES, train=True))
  assert list(np.bincount(before[0])) == [0, 4, 3, 3]
  # a coordinate on which every embedding is 1 adds the same to all logits
  table, kernel = v['params']['embed']['table'], v['params']['router_0']
  for shift, depth in ((50.0, 3), (-50.0, 1)):
    params = {
      **v['params'],
      'embed': {'table': table.at[:, 0].set(1.0)},
      'router_0': kernel.at[0].set(jnp.array([0.0, shift, shift])),
    }
    _, depths, _ = outputs(EXPERT, tokens(), _table.ctx(segments=ONES), v={'params': params})
    assert np.all(depths == depth)
    _, depths, _ = outputs(
      EXPERT, tokens(), _table.ctx(segments=ONES, train=True), v={'params': params}
    )
    assert list(np.bincount(depths[0])) == [0, 4, 3, 3]


def test_a_second_router_judges_and_teaches_nothing_to_the_first():
  name = spec(auxiliary='router', auxiliary_loss=1.0)
  net, v, ctx = model(name), variables(name), _table.ctx(segments=ONES, train=True)

  @jax.jit
  def slope(params):
    f = lambda p: net.apply({'params': p}, tokens(), ctx).aux['loss/router']
    return jax.grad(f)(params)

  norms = {
    k: max(np.abs(x).max() for x in jax.tree.leaves(g)) for k, g in slope(v['params']).items()
  }
  assert norms.pop('auxiliary_0') > 0 and not any(norms.values())
  calm = ctx.replace(train=False)
  turned = {**v['params'], 'auxiliary_0': -v['params']['auxiliary_0']}
  a, b = (outputs(name, tokens(), calm, v={'params': p})[1] for p in (v['params'], turned))
  np.testing.assert_array_equal((a > 1) ^ (b > 1), True)  # the second decides, of the same h


# ---- decoding


@pytest.mark.parametrize(
  'name, kind',
  [(EXPERT, 'full()'), (SHARING, 'full()'), (TOKEN, 'full()'), (SHARING, 'window()')],
)
def test_decoding_equals_the_whole_row(name, kind):
  how = dict(blocks__block__mixer='gqa(head_dim=8, window=3)') if kind == 'window()' else {}
  net, v = model(name, **how), variables(name, **how)
  ctx, tok = _table.ctx(segments=ONES), tokens()
  want, depths, _ = outputs(name, tok, ctx, **how)
  assert len(set(depths.ravel())) > 1
  cache, got, seen = net.init_cache(registry.make('cache', kind), B, T), [], []
  step = jax.jit(lambda t, c, cache: net.apply(v, t, c, cache, mutable='intermediates'))
  for part in [slice(0, 5), *(slice(i, i + 1) for i in range(5, T))]:
    now = ctx.replace(positions_BT=ctx.positions_BT[:, part], segments_BT=ctx.segments_BT[:, part])
    out, kept = step(tok[:, part], now, cache)
    cache = out.cache
    got.append(out.hidden_BTD)
    seen.append(kept['intermediates']['depth_0'][0])
  _table.close(jnp.concatenate(got, axis=1), want.hidden_BTD, 1e-5)
  np.testing.assert_array_equal(np.concatenate(seen, axis=1), depths)
  assert cache[0][0].k_BSHK.shape[0] == (1 if name == SHARING else 3)


@pytest.mark.slow
def test_a_prompt_gives_the_same_alone_and_padded_beside_others():
  v, prompts = variables(SHARING), [[1, 2, 3, 4, 5, 6], [7], [3, 9, 2]]
  write = functools.partial(generate.generate, model(SHARING), v, max_tokens=4)
  together = write(prompts)
  for prompt, new in zip(prompts, together):
    np.testing.assert_array_equal(write([prompt])[0], new)
    row = jnp.asarray([[*prompt, *new]])
    out, _, _ = outputs(SHARING, row, _table.ctx(1, row.shape[1]))
    best = np.argmax(out.hidden_BTD @ out.unembed_VD.T, axis=-1)[0, len(prompt) - 1 : -1]
    np.testing.assert_array_equal(best, new)


# ---- cost


def flops(name, stack, train=True, **how):
  net, steps = model(name, stack, length=40, **how), 40
  v = _table.values(_table.abstract(net, jnp.zeros((1, steps), jnp.int32), _table.ctx(1, steps)))
  ctx = _table.ctx(1, steps, train=train)
  run = jax.jit(lambda v, tok: net.apply(v, tok, ctx).hidden_BTD)
  return run.lower(v, jnp.zeros((1, steps), jnp.int32)).compile().cost_analysis()['flops']


def test_a_recursion_costs_its_share_in_training():
  """Counted in the compiled program, where whatever is computed and thrown away counts too."""
  full = dict(adds='change', gate='one')
  whole = flops(spec(capacities=(1, 1, 1, 1), **full), 'shared(block)*4')
  block = whole - flops(spec(capacities=(1, 1, 1), **full), 'shared(block)*3')
  name = spec(capacities=(1, 0.5, 0.25, 0.1))
  costs = model(name, 'shared(block)*4').costs()
  assert costs == {0: ((1.0, 1.0), (0.5, 0.5), (0.25, 0.25), (0.1, 0.1))}
  part = flops(name, 'shared(block)*4')
  spared = sum(1 - queries for queries, _ in costs[0])
  assert abs((whole - part) / block - spared) < 0.12, ((whole - part) / block, spared)
  assert abs(flops(name, 'shared(block)*4', train=False) / whole - 1) < 0.05
  shared = spec(capacities=(1, 0.5, 0.25, 0.1), kv='share_first')
  assert model(shared, 'shared(block)*4').costs()[0][2] == (0.25, 1.0)
  assert flops(shared, 'shared(block)*4') < part + 0.1 * block
  assert model(TOKEN, CYCLE).costs() == {0: ((1.0, 1.0),) * 3}


@pytest.mark.parametrize('name', [SHARING, pytest.param(TOKEN, marks=pytest.mark.slow)])
def test_scanned_unrolled_and_recomputed_are_one(name):
  stack = 'block*2 + shared(block)*2'
  v = variables(name, stack)
  want = loss_and_grad(name, v, stack)
  assert np.abs(want[1]['router_1']).max() > 0
  _table.trees_close(loss_and_grad(name, v, stack, unroll=100, remat='full'), want)


# ---- meshes

SMALL = {
  'model.width': '32',
  'model.stack': 'shared(block)*2',
  'data.length': '16',
  'batch_tokens': '128',
  'model.mixer': 'gqa(head_dim=8)',
  'model.embed': 'untied(multiple_of=8)',
}
ON_MESHES = {
  'expert': EXPERT,
  'sharing': SHARING,
  'token': spec(router='token_choice', balance='bias', bias_rate=0.1),
}


@functools.cache
def run(name) -> build.Run:
  settings = SMALL | {'model.architecture': ON_MESHES[name]}
  return build.build(config.resolve(config.load('quickstart', list(settings.items()))))


@functools.cache
def start(name):
  """A state with routers that choose, as they begin near 0."""
  state = run(name).init(jax.random.key(0))
  params, vars = jax.tree.map(np.asarray, (state.params, state.vars))
  return params | {'router_0': params['router_0'] * 50}, vars


def batch():
  segments = np.ones((8, 17), np.int32)
  segments[::2, 9:], segments[5, 3:] = 2, 0
  return _table.batch(segments, vocab=256)


@functools.cache
def on_one_device(name):
  return _meshes.slope(run(name), *start(name), batch())


@pytest.mark.parametrize(
  'name, mesh',
  [
    ('expert', 'explicit'),
    ('token', 'auto'),
    pytest.param('expert', 'auto', marks=pytest.mark.slow),
    pytest.param('token', 'explicit', marks=pytest.mark.slow),
    pytest.param('sharing', 'explicit', marks=pytest.mark.slow),
  ],
)
def test_a_mesh_changes_neither_loss_nor_gradient(name, mesh):
  want = on_one_device(name)
  got = _meshes.slope(run(name), *start(name), batch(), _meshes.MESHES[mesh])
  _table.trees_close(got, want, 2e-5)
  assert np.abs(want[1]['router_0']).max() > 0
  if name == 'token':
    assert np.abs(got[0][1]['vars']['bias_0']).max() > 0


# ---- refusals and small pieces


@pytest.mark.parametrize(
  'args, word',
  [
    (dict(capacities=(1, 0.5, 0.0)), r'capacities=\(1, 0.5, 0.0\): .* above 0 and at most 1'),
    (dict(capacities=(1.5, 1, 1)), 'at most 1'),
    (dict(capacities=()), 'for each recursion'),
    (dict(capacities=('a',)), 'for each recursion'),
    (dict(capacities=(0.5, 1)), 'larger than the one before'),
    (dict(capacities=(0.9, 0.5), kv='share_first'), 'must be 1'),
    (dict(capacities=(1, 0.5), router='token_choice'), 'an argument of expert_choice'),
    (dict(balance='bias'), 'an argument of token_choice'),
    (dict(kv='first'), "'recursion_wise' or 'share_first' is expected"),
    (dict(router='both'), "'expert_choice' or 'token_choice' is expected"),
    (dict(alpha=0.0), 'alpha=0.0'),
    (dict(z_loss=-1.0), 'z_loss=-1.0'),
    (dict(gate='one', auxiliary='router'), 'without a gradient'),
  ],
)
def test_arguments_that_make_no_sense_are_refused(args, word):
  with pytest.raises(ValueError, match=word):
    model(spec(**args))


@pytest.mark.parametrize(
  'name, how, word',
  [
    (EXPERT, dict(stack='block*2'), 'has no shared segment'),
    (TOKEN, dict(stack='shared(block)*1'), 'no depth to choose'),
    (spec(capacities=(1, 0.5)), dict(stack=CYCLE), '2 capacities .* 3 times'),
    (EXPERT, dict(blocks__block__mixer='deltanet(head_dim=8)'), 'keeps a state'),
    (SHARING, dict(blocks__block__mixer='gqa(head_dim=8, causal=False)'), 'has no cache'),
  ],
)
def test_stacks_that_do_not_suit_are_refused(name, how, word):
  net = model(name, **how)
  with pytest.raises(ValueError, match=word):
    abstract(net)
  with pytest.raises(ValueError, match=word):
    net.init_cache(registry.make('cache', 'full()'), B, T)


@pytest.mark.parametrize(
  'how, word',
  [
    (dict(blocks__block__norm='power_norm()'), 'a state of backward passes'),
    (dict(blocks__block__norm='power_norm(variant="batch")'), 'variables that training changes'),
    (
      dict(linear='structured_ffn(rank=4, guided=0.5, steps=9)'),
      'variables that training changes',
    ),
  ],
)
def test_what_counts_its_passes_is_refused(how, word):
  with pytest.raises(kinds.Unsupported, match=f'block keeps {word}'):
    abstract(model(EXPERT, stack=CYCLE, **how))
  abstract(model(EXPERT, stack=CYCLE, linear='spdf(sparsity=0.5)'))  # a mask stays as it is


def test_the_share_of_a_row():
  shares = select.shares(None, 3)
  assert [select.size(s, 9) for s in shares] == [9, 6, 3] and select.size(shares[2], 2) == 1
  assert [select.size(s, 100) for s in select.shares((1, 0.29, 0.07), 3)] == [100, 29, 7]
  real = jnp.arange(9)[None] < jnp.array([[9], [7], [1], [0]])
  assert select.counts(shares[1], real).tolist() == [6, 4, 1, 1]
  score, among = (
    jnp.array([[2.0, 2.0, 5.0, 1.0, 2.0]]),
    jnp.array([[True, True, False, True, True]]),
  )
  chosen = select.largest(score, among, jnp.array([2]))
  assert chosen.tolist() == [[True, True, False, False, False]]  # of equals the earlier
  assert select.places(chosen, 3).tolist() == [[0, 1, 5]]
  assert not select.largest(score, jnp.zeros((1, 5), bool), jnp.array([1])).any()

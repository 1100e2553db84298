"""Pre-norm models of layer norm, rms norm and compressed rms norm are one function, to rounding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax import kinds
from lmjax import registry
from lmjax.nn import embedding
from lmjax.parallel import facts as facts_lib

SIZE = 12  # d; an eps that shows, since none is read over
LAYER, BARE = 'layer_norm(eps=0.03)', 'layer_norm(eps=0.03, bias=False)'
RMS, SHORT = 'rms_norm(eps=0.03)', 'pre_crmsnorm(eps=0.03)'
GPT = dict(  # biases everywhere, learned positions, the same but for norms in all models
  width=SIZE,
  depth=2,
  embed='untied(scale=2.0)',
  position='learned()',
  blocks__block__mixer='gqa(head_dim=4, heads=3, bias=True)',
  blocks__block__ffn='gelu(hidden=20, bias=True)',
)


def model(norm: str, residual='pre()', final='', **how) -> dict:
  """A model's settings: GPT with this norm, and others."""
  made = {**GPT, 'blocks__block__norm': norm, 'blocks__block__residual': residual}
  return {**made, 'final_norm': final or norm, **how}


LAYERS = model(LAYER, final=BARE)
CENTRED = model(RMS, 'pre_rmsnorm()')
FOLDED = model(RMS)
SHORTER = model(SHORT, width=SIZE - 1)


def stage(seed=0, double=False, tokenizer='bytes()', objective='clm()', **how) -> kinds.Stage:
  """A run with gains that are not 1 and biases that are not 0, as surgery sees it."""
  net = _table.model(**how)
  tokens = jnp.zeros((1, net.model.length), jnp.int32)
  boxed = _table.abstract(net, tokens, _table.ctx(1, net.model.length))
  values = _table.values(boxed['params'], seed)
  if double:
    values = jax.tree.map(lambda a: np.asarray(a, np.float64), values)
  c = dict(
    model=dict(architecture=how.get('architecture', 'transformer()')),
    data=dict(tokenizer=tokenizer),
    objective=objective,
  )
  facts = facts_lib.facts(boxed)
  return kinds.Stage(c, net.model, lambda p, v: (p, v), dict(params=values), facts)


def converted(old, new, params=None):
  """What a run with the settings `new` begins with; `params`: of the old one."""
  old = stage(**old)
  if params is not None:
    old = old._replace(variables=dict(params=params))
  made = registry.make('surgery', 'pre_crmsnorm(run="there")')()(old, stage(1, **new), None)
  return made['params']


@functools.cache
def forward(net):
  tokens = np.random.default_rng(5).integers(0, net.model.vocab, (2, net.model.length))
  ctx = _table.ctx(2, net.model.length)
  return jax.jit(
    lambda params: embedding.logits(net.apply({'params': params}, jnp.asarray(tokens), ctx))
  )


def logits(params, **how):
  return np.asarray(forward(_table.model(**how))(params))


def params_of(how):
  return stage(**how).variables['params']


def off(got, want) -> float:
  return float(np.abs(got - want).max() / np.abs(want).max())


def error(old, new) -> float:
  """How far logits are apart, in units of the largest."""
  return off(logits(converted(old, new), **new), logits(params_of(old), **old))


PAIRS = {
  'layer norm to rms norm, centred in the forward pass': (LAYERS, CENTRED),
  'layer norm to rms norm with centred writers': (LAYERS, FOLDED),
  'layer norm to compressed': (LAYERS, SHORTER),
  'layer norm to compressed with gains': (
    LAYERS,
    {**SHORTER, 'final_norm': 'pre_crmsnorm(eps=0.03, scale=True)'},
  ),
  'layer norm without gains of its own': (LAYERS, model('layer_norm(eps=0.03, scale=False)')),
  "a final norm's bias becomes that of words": (
    model(LAYER, embed='tied(scale=2.0)'),
    {**SHORTER, 'embed': 'untied(scale=2.0, bias=True)'},
  ),
  'rms norm to layer norm': (CENTRED, model(LAYER)),
  'rms norm to compressed': (CENTRED, SHORTER),
  'rms norm to centred writers': (CENTRED, FOLDED),
  'compressed to layer norm': (SHORTER, model(LAYER)),
  'compressed to rms norm': (SHORTER, CENTRED),
  'compressed with gains to rms norm': (
    model('pre_crmsnorm(eps=0.03, scale=True)', width=SIZE - 1),
    FOLDED,
  ),
}


@pytest.mark.parametrize('name', PAIRS)
def test_the_function_stays(name):
  assert error(*PAIRS[name]) < 1e-5


LLAMA = dict(  # no biases: those of norms would have no place
  position='rope()',
  blocks__block__mixer='gqa(head_dim=4, heads=4, kv_heads=2, qk_norm=rms_norm())',
  blocks__block__ffn='swiglu(hidden=20)',
  embed='untied(multiple_of=8)',
)
TWO = dict(
  stack='block + (local, block)*2 + shared(block)*2',
  blocks__block__residual='{}',
  blocks__local__residual='{}',
  blocks__local__mixer='gqa(head_dim=4, heads=2, window=3, bias=True)',
  blocks__local__ffn='squared_relu(hidden=8, bias=True)',
)


def two(settings: dict) -> dict:
  residual, norm = (settings[f'blocks__block__{k}'] for k in ('residual', 'norm'))
  return {
    **settings,
    **{k: v.format(residual) for k, v in TWO.items()},
    'blocks__local__norm': norm,
  }


MUP = dict(init='mup(base_width=6)')
OTHERS = {
  'no biases, grouped heads': ({**model(BARE), **LLAMA}, LLAMA),
  'two kinds of blocks, a shared segment': (two(LAYERS), {}),
  'unrolled': ({**LAYERS, 'unroll': 2}, dict(unroll=2)),
  'logits scaled by the width': ({**LAYERS, **MUP}, MUP),
  'capped logits': ({**LAYERS, 'cap': 1.0}, dict(cap=1.0)),
  'waves become a table': ({**LAYERS, 'position': 'sinusoidal(scale=1.0)'}, {}),
  'one table there': ({**LAYERS, 'embed': 'tied(scale=2.0)'}, {}),
  'biases of heads': ({**LAYERS, 'position': 'alibi()'}, dict(position='alibi()')),
  'delta rule': (
    {**model(BARE), 'blocks__block__mixer': 'deltanet(head_dim=4, heads=2, gate=True)'},
    dict(blocks__block__mixer='deltanet(head_dim=4, heads=2, gate=True)'),
  ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('name', OTHERS)
@pytest.mark.parametrize('target', ['folded', 'shorter'])
def test_other_models_too(name, target):
  old, more = OTHERS[name]
  new = {'folded': FOLDED, 'shorter': SHORTER}[target]
  new = two(new) if name.startswith('two kinds') else {**new, **more}
  assert error(old, new) < 1e-5


@pytest.mark.slow
def test_one_table_stays_one_where_it_can():
  tied = lambda how, embed='tied()': {**how, 'embed': embed}
  whole = model(LAYER)
  assert error(tied(whole), tied({**CENTRED, 'final_norm': LAYER})) < 1e-5
  assert error(tied(whole), tied(CENTRED, 'tied(bias=True)')) < 1e-5, 'the bias of the final norm'
  assert error(tied(CENTRED), tied(whole)) < 1e-5
  plain = dict(final_norm='layer_norm(eps=0.03, scale=False, bias=False)')
  assert error(tied({**LAYERS, **plain}), tied(FOLDED)) < 1e-5, 'with equal gains'
  waves = dict(position='sinusoidal(scale=1.0)')
  assert error({**LAYERS, **waves}, {**CENTRED, **waves}) < 1e-5


def test_there_and_back_are_the_same_parameters():
  old = params_of(SHORTER)
  for between in (model(LAYER), FOLDED):
    middle = converted(SHORTER, between)
    if between is FOLDED:  # whose stream has a mean of its own, if it is to be trained
      between = CENTRED
    back = converted(between, SHORTER, middle)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), back, old)
  writer = np.asarray(middle['segment_0']['0_block']['ffn']['down']['kernel'])
  reader = np.asarray(middle['segment_0']['0_block']['ffn']['up']['kernel'])
  assert np.abs(writer.sum(-1)).max() < 1e-5 and np.abs(reader.sum(1)).max() < 1e-5


def test_norms_and_their_readers_agree_in_double_precision():
  """On a stream with a mean: layer norm of x, rms norm of P x and compressed rms norm of its first
  d - 1 coordinates, each in front of its W.
  """
  draw, at = np.random.default_rng(0), lambda p: p['segment_0']['0_block']
  x = draw.normal(size=(5, SIZE)) + 3
  old = stage(double=True, **LAYERS)
  operate = registry.make('surgery', 'pre_crmsnorm(run="there")')()

  def read(made, z, squares, bias=0.0):
    norm, q = at(made).get('norm_mixer', {}), at(made)['mixer']['q']
    y = norm.get('scale', np.ones((2, 1)))[1] * z / np.sqrt(squares / SIZE + 0.03)[:, None] + bias
    return np.einsum('nd,dhk->nhk', y, q['kernel'][1]) + q['bias'][1]

  centred = x - x.mean(-1, keepdims=True)
  squares = np.square(centred).sum(-1)
  bias = at(old.variables['params'])['norm_mixer']['bias'][1]
  want = read(old.variables['params'], centred, squares, bias)
  for new in (CENTRED, FOLDED, SHORTER):
    made = operate(old, stage(1, **new), None)['params']
    z = centred[:, : new['width']]
    own = np.square(z).sum(-1) + (np.square(z.sum(-1)) if new is SHORTER else 0)
    np.testing.assert_allclose(read(made, z, own), want, rtol=1e-10, atol=1e-12)


def test_a_stream_with_a_mean_is_not_what_rms_norm_reads():
  made = converted(LAYERS, FOLDED)
  want = logits(made, **FOLDED)
  moved = lambda p: {**p, 'embed': {**p['embed'], 'table': p['embed']['table'] + 0.3}}
  assert off(logits(moved(made), **FOLDED), want) > 0.01
  assert off(logits(moved(params_of(LAYERS)), **LAYERS), want) < 1e-5


def with_(settings: dict, **more) -> dict:
  return {**settings, **more}


MIXER, FFN, WHOLE = 'blocks__block__mixer', 'blocks__block__ffn', model(LAYER)


@pytest.mark.parametrize(
  'old, new, words',
  [
    (model(LAYER, 'post()'), SHORTER, r'residual=post.* there: pre or pre_rmsnorm is expected'),
    (LAYERS, model(RMS, 'parallel()'), r'residual=parallel.* here: pre or pre_rmsnorm'),
    (FOLDED, CENTRED, 'whose stream has a mean that matters'),
    (model('power_norm()'), CENTRED, 'norm=power_norm.* there: norms that are layer_norm or rms'),
    (LAYERS, model(SHORT, 'pre_rmsnorm()', width=11), 'norm=pre_crmsnorm.* here: norms that are'),
    (LAYERS, with_(SHORTER, final_norm=RMS), 'norm=pre_crmsnorm.* here: norms that are'),
    (LAYERS, with_(CENTRED, final_norm=''), 'config.model.final_norm is nothing here'),
    (with_(LAYERS, embed_norm=LAYER), CENTRED, 'config.model.embed_norm=layer_norm.* there'),
    (LAYERS, with_(CENTRED, final_norm='rms_norm()'), 'final_norm=.*the same eps is expected'),
    (LAYERS, with_(CENTRED, blocks__block__norm='rms_norm()'), 'block.norm=.*the same eps'),
    (LAYERS, with_(SHORTER, width=12), r'width is 12 there and 12 \(and one .*: 11 is expected'),
    (SHORTER, with_(CENTRED, width=11), 'one that is implied.* there and 11 here: 12 is expected'),
    (LAYERS, with_(CENTRED, depth=1), r'the layers are \(block\)\*2 there and \(block\)\*1 here'),
    (LAYERS, with_(CENTRED, **{MIXER: 'gqa(head_dim=4, heads=6, bias=True)'}), 'as many heads'),
    (LAYERS, with_(CENTRED, **{MIXER: 'gqa(head_dim=6, heads=3, bias=True)'}), 'block.mixer is'),
    (LAYERS, with_(SHORTER, **{FFN: 'gelu(mult=2.0, bias=True)'}), 'hidden= of the ffn'),
    (LAYERS, with_(CENTRED, **{FFN: 'squared_relu(hidden=20, bias=True)'}), 'block.ffn is gelu'),
    (LAYERS, with_(CENTRED, **{MIXER: 'gqa(head_dim=4, heads=3)'}), 'mixer/k/kernel reads a norm'),
    (LAYERS, with_(CENTRED, **{FFN: 'gelu(hidden=20)'}), 'ffn/up/kernel reads a norm with a bias'),
    (CENTRED, with_(WHOLE, **{FFN: 'gelu(hidden=20)'}), 'ffn/down/bias is a parameter there, not'),
    (WHOLE, SHORTER, 'final_norm=layer_norm.* has a bias that is not 0'),
    (with_(WHOLE, embed='tied()', cap=1.0), with_(CENTRED, embed='tied(bias=True)', cap=1.0),
     'with config.model.cap=1.0, keeps it'),
    (with_(LAYERS, embed='tied(scale=2.0)'), with_(FOLDED, embed='tied(scale=2.0)'),
     r'are two here; untied\(\) is expected'),
    (with_(LAYERS, embed='tied()'), with_(SHORTER, embed='tied()'), 'untied.* is expected here'),
    (LAYERS, with_(CENTRED, embed='tied(scale=2.0)'), 'untied.* is expected here'),
    (LAYERS, with_(CENTRED, embed='untied()'), 'the same scale and multiple_of'),
    (with_(LAYERS, embed='stable()'), CENTRED, 'embed=stable.* there: tied or untied'),
    (LAYERS, with_(CENTRED, position='rope()'), 'config.model.position=learned.* there and rope'),
    (LAYERS, with_(CENTRED, length=8), 'position/table should have shape'),
    (*[with_(s, position='sinusoidal()') for s in (LAYERS, SHORTER)], 'have a mean; learned'),
    (LAYERS, with_(CENTRED, cap=2.0), 'config.model.cap=None there and 2.0 here'),
    (LAYERS, with_(CENTRED, vocab=40), 'the same vocabulary'),
    (LAYERS, with_(CENTRED, init='mup()'), 'scale the logits of attention'),
    (*[with_(s, linear='low_rank(rank=2)') for s in (LAYERS, CENTRED)], 'linear=low_rank.* there'),
    (*[with_(s, **{FFN: 'base_layers(experts=2, hidden=8)'}) for s in (model(BARE), CENTRED)],
     r'ffn/\w+ has the axes'),
    (LAYERS, with_(CENTRED, architecture='mixture_of_recursions()'), 'architecture=mixture'),
  ],
)  # fmt: skip
def test_what_has_no_exact_image_is_refused(old, new, words):
  with pytest.raises(ValueError, match=words) as e:
    converted(old, new)
  assert '\n' not in str(e.value) and e.value.__class__ is ValueError


def test_a_run_of_several_networks_is_refused():
  old = stage(**LAYERS)
  params = {**old.variables['params'], 'generator': {}}
  with pytest.raises(ValueError, match="clm.. there has parameters beside the model's .generator"):
    converted(LAYERS, CENTRED, params)

"""ModernBERT with the head of masked language models: an encoder with rotary positions, a window in
most layers, a gated feed-forward layer, and few biases.

Warner et al., 2024 (arXiv:2412.13663). The embedding is normed, so that the first layer does not
norm what its attention reads. A window of `local_attention` tokens is half of that to each side,
and the layers with one have a rotary base of their own.
"""

from typing import Any, Mapping

from lmjax.interop.hf import _rope
from lmjax.interop.hf import _settings
from lmjax.interop.hf import gpt2
from lmjax.interop.hf._fields import Fields
from lmjax.interop.hf._tensors import Row, Table

FULL, LOCAL = 'full_attention', 'sliding_attention'
BASES = {FULL: ('global_rope_theta', 160_000.0), LOCAL: ('local_rope_theta', 10_000.0)}
EVERY = 'global_attn_every_n_layers'
FIELDS = Fields(
  sizes=(
    'vocab_size',
    'hidden_size',
    'intermediate_size',
    'num_hidden_layers',
    'num_attention_heads',
    'max_position_embeddings',
  ),
  defaults=dict(
    hidden_activation='gelu',
    norm_eps=1e-5,
    norm_bias=False,
    attention_bias=False,
    mlp_bias=False,
    classifier_bias=False,
    classifier_activation='gelu',
    decoder_bias=True,
    local_attention=128,
    layer_types=[],
    rope_parameters={},
    **{EVERY: 3, **{key: base for key, base in BASES.values()}},
  ),
  fixed=dict(position_embedding_type=('absolute',), tie_word_embeddings=(True,)),
  silent=(
    'attention_dropout',
    'classifier_dropout',
    'classifier_pooling',
    'cls_token_id',
    'deterministic_flash_attn',
    'embedding_dropout',
    'initializer_cutoff_factor',
    'layer_norm_eps',  # published beside norm_eps, and read by nothing
    'mlp_dropout',
    'reference_compile',
    'repad_logits_with_grad',
    'sparse_pred_ignore_index',
    'sparse_prediction',
  ),
)
NAME = 'model.layers.{n}.'
QKV = gpt2.QKV


def _norm(own: str, name: str) -> tuple[Row, Row]:
  return Row(f'{own}/scale', f'{name}.weight'), Row(f'{own}/bias', f'{name}.bias')


TABLE = Table(
  outer=(
    Row('embed/table', 'model.embeddings.tok_embeddings.weight', 'V D -> V D'),
    *_norm('embed_norm', 'model.embeddings.norm'),
    *_norm('final_norm', 'model.final_norm'),
    Row('head/kernel', 'head.dense.weight', 'D E -> E D'),
    Row('head/bias', 'head.dense.bias'),
    *_norm('head_norm', 'head.norm'),
    Row('embed/bias', 'decoder.bias', 'V -> V'),
  ),
  layer=(
    *_norm('norm_mixer', f'{NAME}attn_norm'),
    Row(QKV[0], f'{NAME}attn.Wqkv.weight', 'P D H K -> (P H K) D'),
    Row(QKV[1], f'{NAME}attn.Wqkv.bias', 'P H K -> (P H K)'),
    Row('mixer/out/kernel', f'{NAME}attn.Wo.weight', 'H K D -> D (H K)'),
    Row('mixer/out/bias', f'{NAME}attn.Wo.bias'),
    *_norm('norm_ffn', f'{NAME}mlp_norm'),
    Row(('ffn/gate/kernel', 'ffn/up/kernel'), f'{NAME}mlp.Wi.weight', 'P D F -> (P F) D'),
    Row(('ffn/gate/bias', 'ffn/up/bias'), f'{NAME}mlp.Wi.bias', 'P F -> (P F)'),
    Row('ffn/down/kernel', f'{NAME}mlp.Wo.weight', 'F D -> D F'),
    Row('ffn/down/bias', f'{NAME}mlp.Wo.bias'),
  ),
  prefix='',
  copies=(('decoder.weight', 'model.embeddings.tok_embeddings.weight'),),
)
CLASS = 'ModernBertForMaskedLM'


def to_settings(h):
  width, heads, bias = h['hidden_size'], h['num_attention_heads'], h['attention_bias']
  if width % heads:
    raise ValueError(
      f'config.json: hidden_size={width} does not divide by num_attention_heads={heads}'
    )
  norm = f'layer_norm(eps={h["norm_eps"]!r}, bias={h["norm_bias"]})'
  act = _approximate(h, 'hidden_activation')
  ffn = f'geglu(hidden={h["intermediate_size"]}, bias={h["mlp_bias"]}, approximate={act})'
  sizes = f'head_dim={width // heads}, heads={heads}, kv_heads={heads}, causal=False, bias={bias}'

  def block(kind, residual='pre()'):
    window = f', window={h["local_attention"] // 2 + 1}' if kind == LOCAL else ''
    mixer = f'gqa({sizes}{window}, position={_position(h, kind)})'
    return _settings.block(mixer, ffn, norm, residual)

  order = _order(h)
  names = ['first', *({FULL: 'full', LOCAL: 'local'}[k] for k in order[1:])]
  blocks = {'first': block(order[0], 'pre_ffn()')}
  blocks |= {n: block(k) for n, k in zip(names[1:], order[1:])}
  head = _approximate(h, 'classifier_activation')
  return _settings.Settings(
    width=width,
    depth=len(order),
    vocab=h['vocab_size'],
    length=h['max_position_embeddings'],
    tied=True,
    position='none()',
    final_norm=norm,
    blocks=blocks,
    stack=' + '.join(['first', *_runs(names[1:])]),
    embed=f'tied(bias={h["decoder_bias"]})',
    embed_norm=norm,
    architecture=f'head_transform(norm={norm}, bias={h["classifier_bias"]}, approximate={head})',
    objective='mlm()',
  )


def _approximate(h: Mapping[str, Any], key: str) -> bool:
  if h[key] not in gpt2.APPROXIMATE:
    raise ValueError(
      f'config.json: {key}={h[key]!r}: this is not supported, only {", ".join(gpt2.APPROXIMATE)}'
    )
  return gpt2.APPROXIMATE[h[key]]


def _order(h: Mapping[str, Any]) -> list[str]:
  """The kind of attention of each layer."""
  depth, kinds, every = h['num_hidden_layers'], h['layer_types'], h[EVERY]
  if not kinds:
    if every < 1:
      raise ValueError(f'config.json: {EVERY}={every}: a whole number from 1 is expected')
    return [LOCAL if n % every else FULL for n in range(depth)]
  if len(kinds) != depth or not all(k in (FULL, LOCAL) for k in kinds):
    raise ValueError(
      f'config.json: layer_types={kinds!r}: {depth} of {FULL} and {LOCAL} are expected'
    )
  return kinds


def _runs(names: list[str]) -> list[str]:
  """A stack in words, in groups that are repeated: ['a', 'b', 'a', 'b', 'a'] -> (a, b)*2, a*1."""
  n = len(names)
  size = next((p for p in range(1, n) if names[p:] == names[:-p]), n)
  if not n:
    return []
  whole = n - n % size
  return [f'({", ".join(names[:size])})*{n // size}', *(f'{k}*1' for k in names[whole:])]


def _position(h: Mapping[str, Any], kind: str) -> str:
  """The rotary positions of one kind of layers."""
  key, _ = BASES[kind]
  given = h['rope_parameters'].get(kind) or {}
  unknown = sorted(set(h['rope_parameters']) - set(BASES))
  if unknown or not isinstance(given, dict):
    raise ValueError(
      f'config.json: rope_parameters={h["rope_parameters"]!r}: objects named {FULL} and {LOCAL} '
      'are expected'
    )
  return _rope.spec(dict(rope_parameters=given), h[key])


def to_fields(view):
  mixers = [layer['mixer'] for layer in view.layers]
  kinds = [LOCAL if m.get('window') else FULL for m in mixers]
  of = dict(zip(kinds, mixers))
  ffn, norm = view.layer('ffn'), view.layer('norm')
  head = view.parts['architecture']
  ropes = {k: _rope.fields(m.get('position').args) for k, m in of.items() if m.get('position')}
  bases = {BASES[k][0]: r['rope_theta'] for k, r in ropes.items() if r}
  every = next((n for n in range(1, len(kinds) + 1) if kinds == _order(_every(n, kinds))), None)
  return dict(
    vocab_size=view.vocab,
    hidden_size=view.width,
    intermediate_size=ffn.get('hidden'),
    num_hidden_layers=len(kinds),
    num_attention_heads=mixers[0].get('heads'),
    max_position_embeddings=view.length,
    hidden_activation=_act(ffn.get('approximate')),
    norm_eps=norm.get('eps'),
    norm_bias=norm.get('bias') is True,
    attention_bias=mixers[0].get('bias') is True,
    mlp_bias=ffn.get('bias') is True,
    classifier_bias=head.get('bias') is True,
    classifier_activation=_act(head.get('approximate')),
    decoder_bias=view.parts['embed'].get('bias') is True,
    local_attention=2 * (of[LOCAL].get('window') - 1) if LOCAL in of else 128,
    layer_types=kinds,
    rope_parameters={k: _rope_parameters(r) for k, r in ropes.items() if r},
    tie_word_embeddings=True,
    **{EVERY: every, **bases},  # for older versions of the library that reads them
  )


def _every(n: int, kinds: list[str]) -> dict[str, Any]:
  return {'num_hidden_layers': len(kinds), 'layer_types': [], EVERY: n}


def _act(approximate: Any) -> str:
  return 'gelu_new' if approximate else 'gelu'


def _rope_parameters(fields: Mapping[str, Any]) -> dict[str, Any]:
  own = {k: v for k, v in fields.items() if k != 'rope_scaling'}
  return own | fields.get('rope_scaling', dict(rope_type='default'))

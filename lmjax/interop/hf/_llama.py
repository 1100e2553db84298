"""What Llama's relatives share: the tensors of a decoder with rotary positions, RMS norms and a
gated feed-forward layer, and the fields that give its sizes.
"""

from typing import Any, Mapping

from lmjax.interop.hf import _rope
from lmjax.interop.hf import _settings
from lmjax.interop.hf._tensors import Row, Table

SIZES = (
  'vocab_size',
  'hidden_size',
  'intermediate_size',
  'num_hidden_layers',
  'num_attention_heads',
  'max_position_embeddings',
)
OUTER = (
  Row('embed/table', 'model.embed_tokens.weight', 'V D -> V D'),
  Row('embed/unembed', 'lm_head.weight', 'V D -> V D'),
  Row('final_norm/scale', 'model.norm.weight'),
)
FFN = tuple(
  Row(f'ffn/{own}/{leaf}', f'model.layers.{{n}}.mlp.{own}_proj.{name}', axes)
  for own in ('gate', 'up', 'down')
  for leaf, name, axes in (('kernel', 'weight', 'A B -> B A'), ('bias', 'bias', ''))
)
NORMS = (
  Row('norm_mixer/scale', 'model.layers.{n}.input_layernorm.weight'),
  Row('norm_ffn/scale', 'model.layers.{n}.post_attention_layernorm.weight'),
)
COPIES = (('lm_head.weight', 'model.embed_tokens.weight'),)
DROPPED = ('model.layers.{n}.self_attn.rotary_emb.inv_freq',)


def attention(mixer: str = 'mixer') -> tuple[Row, ...]:
  """Rows of the four products of attention, at this path."""
  name = 'model.layers.{n}.self_attn.'
  rows = []
  for own in 'qkv':
    rows += [
      Row(f'{mixer}/{own}/kernel', f'{name}{own}_proj.weight', 'D H K -> (H K) D'),
      Row(f'{mixer}/{own}/bias', f'{name}{own}_proj.bias', 'H K -> (H K)'),
    ]
  rows += [
    Row(f'{mixer}/out/kernel', f'{name}o_proj.weight', 'H K D -> D (H K)'),
    Row(f'{mixer}/out/bias', f'{name}o_proj.bias'),
  ]
  return tuple(rows)


def table(layer: tuple[Row, ...]) -> Table:
  return Table(OUTER, layer, 'model.', DROPPED, COPIES)


def heads(h: Mapping[str, Any]) -> dict[str, int]:
  """Arguments of attention. Raises ValueError where heads do not divide."""
  n, width = h['num_attention_heads'], h['hidden_size']
  kv = h['num_key_value_heads'] or n
  if n % kv or (not h['head_dim'] and width % n):
    raise ValueError(
      f'config.json: hidden_size={width}, num_attention_heads={n} and num_key_value_heads={kv} do '
      'not divide'
    )
  return dict(head_dim=h['head_dim'] or width // n, heads=n, kv_heads=kv)


def settings(h: Mapping[str, Any], blocks: dict[str, dict[str, str]], stack: str = ''):
  """The settings of checked fields around these blocks."""
  return _settings.Settings(
    width=h['hidden_size'],
    depth=h['num_hidden_layers'],
    vocab=h['vocab_size'],
    length=h['max_position_embeddings'],
    tied=h['tie_word_embeddings'],
    position=_rope.spec(h),
    final_norm=norm(h),
    blocks=blocks,
    stack=stack,
  )


def norm(h: Mapping[str, Any]) -> str:
  return f'rms_norm(eps={h["rms_norm_eps"]!r})'


def block(h: Mapping[str, Any], mixer: Mapping[str, Any], **parts: str) -> dict[str, str]:
  """The parts of a layer; mixer: arguments of attention beside its heads."""
  args = ', '.join(f'{k}={v}' for k, v in (heads(h) | mixer).items())
  ffn = f'swiglu(hidden={h["intermediate_size"]}, bias={h.get("mlp_bias", False)})'
  return _settings.block(f'gqa({args})', ffn, norm(h)) | parts


def fields(view: _settings.View) -> dict[str, Any]:
  """Fields of config.json that all relatives have."""
  mixer, ffn = view.layer('mixer').inner(), view.layer('ffn')
  out = dict(
    vocab_size=view.vocab,
    hidden_size=view.width,
    intermediate_size=ffn.get('hidden'),
    num_hidden_layers=len(view.layers),
    num_attention_heads=mixer.get('heads'),
    num_key_value_heads=mixer.get('kv_heads'),
    head_dim=mixer.get('head_dim'),
    max_position_embeddings=view.length,
    rms_norm_eps=view.layer('norm').get('eps'),
    hidden_act='silu',
    tie_word_embeddings=view.tied,
  )
  return out | _rope.fields(view.parts['position'].args)

"""GPT-NeoX and Pythia: attention and feed-forward beside each other, rotary positions in a part of
each head, layer norms, GELU, biases.

Black et al., 2022 (arXiv:2204.06745); Biderman et al., 2023 (arXiv:2304.01373). q, k and v are one
matrix there, side by side for each head.
"""

from lmjax.interop.hf import _rope
from lmjax.interop.hf import _settings
from lmjax.interop.hf import gpt2
from lmjax.interop.hf._fields import Fields
from lmjax.interop.hf._tensors import Row, Table

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
    hidden_act='gelu',
    layer_norm_eps=1e-5,
    tie_word_embeddings=False,
    use_parallel_residual=True,
    attention_bias=True,
    rotary_pct=0.25,
    rotary_emb_base=10_000.0,
  ),
  silent=(
    *('attention_dropout', 'hidden_dropout', 'classifier_dropout'),
    *('attention_probs_dropout_prob', 'hidden_dropout_prob'),  # of GPT-NeoX-20B
  ),
  kept=_rope.FIELDS,
)
NAME = 'gpt_neox.layers.{n}.'
TABLE = Table(
  outer=(
    Row('embed/table', 'gpt_neox.embed_in.weight', 'V D -> V D'),
    Row('embed/unembed', 'embed_out.weight', 'V D -> V D'),
    Row('final_norm/scale', 'gpt_neox.final_layer_norm.weight'),
    Row('final_norm/bias', 'gpt_neox.final_layer_norm.bias'),
  ),
  layer=(
    Row('norm_mixer/scale', f'{NAME}input_layernorm.weight'),
    Row('norm_mixer/bias', f'{NAME}input_layernorm.bias'),
    Row('norm_ffn/scale', f'{NAME}post_attention_layernorm.weight'),
    Row('norm_ffn/bias', f'{NAME}post_attention_layernorm.bias'),
    Row(gpt2.QKV[0], f'{NAME}attention.query_key_value.weight', 'P D H K -> (H P K) D'),
    Row(gpt2.QKV[1], f'{NAME}attention.query_key_value.bias', 'P H K -> (H P K)'),
    Row('mixer/out/kernel', f'{NAME}attention.dense.weight', 'H K D -> D (H K)'),
    Row('mixer/out/bias', f'{NAME}attention.dense.bias'),
    Row('ffn/up/kernel', f'{NAME}mlp.dense_h_to_4h.weight', 'D F -> F D'),
    Row('ffn/up/bias', f'{NAME}mlp.dense_h_to_4h.bias'),
    Row('ffn/down/kernel', f'{NAME}mlp.dense_4h_to_h.weight', 'F D -> D F'),
    Row('ffn/down/bias', f'{NAME}mlp.dense_4h_to_h.bias'),
  ),
  prefix='gpt_neox.',
  dropped=tuple(f'{NAME}attention.{x}' for x in ('bias', 'masked_bias', 'rotary_emb.inv_freq')),
  copies=(('embed_out.weight', 'gpt_neox.embed_in.weight'),),
)
CLASS = 'GPTNeoXForCausalLM'


def to_settings(h):
  width, heads, act = h['hidden_size'], h['num_attention_heads'], h['hidden_act']
  if width % heads:
    raise ValueError(
      f'config.json: hidden_size={width} does not divide by num_attention_heads={heads}'
    )
  if act not in gpt2.APPROXIMATE:
    raise ValueError(
      f'config.json: hidden_act={act!r}: this is not supported, only {", ".join(gpt2.APPROXIMATE)}'
    )
  norm = f'layer_norm(eps={h["layer_norm_eps"]!r})'
  bias, sizes = h['attention_bias'], f'head_dim={width // heads}, heads={heads}, kv_heads={heads}'
  block = _settings.block(
    f'gqa({sizes}, bias={bias})',
    f'gelu(hidden={h["intermediate_size"]}, bias=True, approximate={gpt2.APPROXIMATE[act]})',
    norm,
    'parallel(shared_norm=False)' if h['use_parallel_residual'] else 'pre()',
  )
  return _settings.Settings(
    width=width,
    depth=h['num_hidden_layers'],
    vocab=h['vocab_size'],
    length=h['max_position_embeddings'],
    tied=h['tie_word_embeddings'],
    position=_rope.spec(h, h['rotary_emb_base'], h['rotary_pct']),
    final_norm=norm,
    blocks={'block': block},
  )


def to_fields(view):
  mixer, ffn = view.layer('mixer'), view.layer('ffn')
  rope = _rope.fields(view.parts['position'].args)
  out = dict(
    vocab_size=view.vocab,
    hidden_size=view.width,
    intermediate_size=ffn.get('hidden'),
    num_hidden_layers=len(view.layers),
    num_attention_heads=mixer.get('heads'),
    max_position_embeddings=view.length,
    hidden_act='gelu' if ffn.get('approximate') is False else 'gelu_new',
    layer_norm_eps=view.layer('norm').get('eps'),
    tie_word_embeddings=view.tied,
    use_parallel_residual=view.layer('residual').name == 'parallel',
    attention_bias=mixer.get('bias') is True,
    rotary_pct=rope.pop('partial_rotary_factor', 1.0) if rope else None,
    rotary_emb_base=rope.pop('rope_theta', None),
  )
  return out | rope

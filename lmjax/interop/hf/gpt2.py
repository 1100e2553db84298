"""GPT-2: learned positions, layer norms, GELU, biases everywhere.

Radford et al., 2019. q, k and v are one matrix there, and matrices are stored as (in, out).
"""

from lmjax.interop.hf import _settings
from lmjax.interop.hf._fields import Fields
from lmjax.interop.hf._tensors import Row, Table

APPROXIMATE = {
  'gelu_new': True,
  'gelu_fast': True,
  'gelu_pytorch_tanh': True,
  'gelu': False,
}
FIELDS = Fields(
  sizes=('vocab_size', 'n_positions', 'n_embd', 'n_layer', 'n_head'),
  defaults=dict(
    n_inner=None,
    activation_function='gelu_new',
    layer_norm_epsilon=1e-5,
    scale_attn_weights=True,
    tie_word_embeddings=True,
  ),
  fixed=dict(scale_attn_by_inverse_layer_idx=(False,)),
  silent=(
    'attn_pdrop',
    'embd_pdrop',
    'resid_pdrop',
    'reorder_and_upcast_attn',
    'n_ctx',
    'n_special',
    'predict_special_tokens',
    'summary_activation',
    'summary_first_dropout',
    'summary_proj_to_labels',
    'summary_type',
    'summary_use_proj',
  ),
)
QKV = tuple(f'mixer/{x}/kernel' for x in 'qkv'), tuple(f'mixer/{x}/bias' for x in 'qkv')
TABLE = Table(
  outer=(
    Row('embed/table', 'transformer.wte.weight', 'V D -> V D'),
    Row('embed/unembed', 'lm_head.weight', 'V D -> V D'),
    Row('position/table', 'transformer.wpe.weight'),
    Row('final_norm/scale', 'transformer.ln_f.weight'),
    Row('final_norm/bias', 'transformer.ln_f.bias'),
  ),
  layer=(
    Row('norm_mixer/scale', 'transformer.h.{n}.ln_1.weight'),
    Row('norm_mixer/bias', 'transformer.h.{n}.ln_1.bias'),
    Row(QKV[0], 'transformer.h.{n}.attn.c_attn.weight', 'P D H K -> D (P H K)'),
    Row(QKV[1], 'transformer.h.{n}.attn.c_attn.bias', 'P H K -> (P H K)'),
    Row('mixer/out/kernel', 'transformer.h.{n}.attn.c_proj.weight', 'H K D -> (H K) D'),
    Row('mixer/out/bias', 'transformer.h.{n}.attn.c_proj.bias'),
    Row('norm_ffn/scale', 'transformer.h.{n}.ln_2.weight'),
    Row('norm_ffn/bias', 'transformer.h.{n}.ln_2.bias'),
    Row('ffn/up/kernel', 'transformer.h.{n}.mlp.c_fc.weight'),
    Row('ffn/up/bias', 'transformer.h.{n}.mlp.c_fc.bias'),
    Row('ffn/down/kernel', 'transformer.h.{n}.mlp.c_proj.weight'),
    Row('ffn/down/bias', 'transformer.h.{n}.mlp.c_proj.bias'),
  ),
  prefix='transformer.',
  dropped=('transformer.h.{n}.attn.bias', 'transformer.h.{n}.attn.masked_bias'),
  copies=(('lm_head.weight', 'transformer.wte.weight'),),
)
CLASS = 'GPT2LMHeadModel'


def to_settings(h):
  width, heads, act = h['n_embd'], h['n_head'], h['activation_function']
  if width % heads:
    raise ValueError(f'config.json: n_embd={width} does not divide by n_head={heads}')
  if act not in APPROXIMATE:
    raise ValueError(
      f'config.json: activation_function={act!r}: this is not supported, only '
      f'{", ".join(APPROXIMATE)}'
    )
  norm = f'layer_norm(eps={h["layer_norm_epsilon"]!r})'
  scale = '' if h['scale_attn_weights'] else ', scale=1.0'
  hidden = h['n_inner'] or 4 * width
  block = _settings.block(
    f'gqa(head_dim={width // heads}, heads={heads}, kv_heads={heads}, bias=True{scale})',
    f'gelu(hidden={hidden}, bias=True, approximate={APPROXIMATE[act]})',
    norm,
  )
  return _settings.Settings(
    width=width,
    depth=h['n_layer'],
    vocab=h['vocab_size'],
    length=h['n_positions'],
    tied=h['tie_word_embeddings'],
    position='learned()',
    final_norm=norm,
    blocks={'block': block},
  )


def to_fields(view):
  mixer, ffn = view.layer('mixer'), view.layer('ffn')
  act = 'gelu' if ffn.get('approximate') is False else 'gelu_new'
  return dict(
    vocab_size=view.vocab,
    n_positions=view.length,
    n_embd=view.width,
    n_layer=len(view.layers),
    n_head=mixer.get('heads'),
    n_inner=ffn.get('hidden'),
    activation_function=act,
    layer_norm_epsilon=view.layer('norm').get('eps'),
    scale_attn_weights=mixer.get('scale') != 1,
    tie_word_embeddings=view.tied,
    attn_pdrop=0.0,
    embd_pdrop=0.0,
    resid_pdrop=0.0,
  )

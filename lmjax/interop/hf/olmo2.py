"""OLMo 2: norms behind sublayers, one of all of q and one of all of k. 2024 (arXiv:2501.00656)."""

from lmjax.interop.hf import _llama
from lmjax.interop.hf import _rope
from lmjax.interop.hf._fields import Fields
from lmjax.interop.hf._tensors import Row

FIELDS = Fields(
  sizes=_llama.SIZES,
  defaults=dict(
    num_key_value_heads=None,
    head_dim=None,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    attention_bias=False,
  ),
  fixed=dict(hidden_act=('silu',)),
  silent=('attention_dropout',),
  kept=_rope.FIELDS,
)
NAME = 'model.layers.{n}.'
NORMS = (
  Row('mixer/norm_q/scale', f'{NAME}self_attn.q_norm.weight', 'H K -> (H K)'),
  Row('mixer/norm_k/scale', f'{NAME}self_attn.k_norm.weight', 'H K -> (H K)'),
  Row('norm_mixer/scale', f'{NAME}post_attention_layernorm.weight'),
  Row('norm_ffn/scale', f'{NAME}post_feedforward_layernorm.weight'),
)
TABLE = _llama.table(_llama.attention() + _llama.FFN + NORMS)
CLASS = 'Olmo2ForCausalLM'


def to_settings(h):
  mixer = dict(bias=h['attention_bias'], qk_norm=f'token_{_llama.norm(h)}')
  return _llama.settings(h, {'block': _llama.block(h, mixer, residual='res_post()')})


def to_fields(view):
  out = _llama.fields(view) | dict(attention_bias=view.layer('mixer').get('bias') is True)
  return out

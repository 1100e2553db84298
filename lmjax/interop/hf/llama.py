"""Llama 2 and 3, and models of their shape (SmolLM, TinyLlama, Yi).

Touvron et al., 2023 (arXiv:2307.09288); Llama Team, 2024 (arXiv:2407.21783). `rope_type` may be
default, linear or llama3.
"""

from lmjax.interop.hf import _llama
from lmjax.interop.hf import _rope
from lmjax.interop.hf._fields import Fields

FIELDS = Fields(
  sizes=_llama.SIZES,
  defaults=dict(
    num_key_value_heads=None,
    head_dim=None,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
    attention_bias=False,
    mlp_bias=False,
  ),
  fixed=dict(hidden_act=('silu',)),
  silent=('attention_dropout',),
  kept=_rope.FIELDS,
)
TABLE = _llama.table(_llama.attention() + _llama.FFN + _llama.NORMS)
CLASS = 'LlamaForCausalLM'


def to_settings(h):
  return _llama.settings(h, {'block': _llama.block(h, dict(bias=h['attention_bias']))})


def to_fields(view):
  return _llama.fields(view) | dict(
    attention_bias=view.layer('mixer').get('bias') is True,
    mlp_bias=view.layer('ffn').get('bias') is True,
  )

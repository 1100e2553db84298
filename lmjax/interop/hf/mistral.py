"""Mistral: Llama with a window in every layer. Jiang et al., 2023 (arXiv:2310.06825)."""

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
    sliding_window=4096,
  ),
  fixed=dict(hidden_act=('silu',)),
  silent=('attention_dropout',),
  kept=_rope.FIELDS,
  nullable=('sliding_window',),
)
TABLE = _llama.table(_llama.attention() + _llama.FFN + _llama.NORMS)
CLASS = 'MistralForCausalLM'


def to_settings(h):
  return _llama.settings(h, {'block': _llama.block(h, dict(window=h['sliding_window']))})


def to_fields(view):
  return _llama.fields(view) | dict(sliding_window=view.layer('mixer').get('window'))

"""Qwen 2 and 2.5: Llama with biases on q, k and v. 2024 (arXiv:2407.10671)."""

from lmjax.interop.hf import _llama
from lmjax.interop.hf import _qwen
from lmjax.interop.hf import _rope
from lmjax.interop.hf._fields import Fields

FIELDS = Fields(
  sizes=_llama.SIZES,
  defaults=_qwen.DEFAULTS | dict(head_dim=None),
  fixed=dict(hidden_act=('silu',), use_mrope=(False,)),
  silent=('attention_dropout',),
  kept=_rope.FIELDS,
  nullable=('sliding_window', 'layer_types'),
)
TABLE = _llama.table(_llama.attention('mixer/inner') + _llama.FFN + _llama.NORMS)
CLASS = 'Qwen2ForCausalLM'


def to_settings(h):
  def block(window):
    made = _llama.block(h, dict(window=window))
    return made | dict(mixer=f'qkv_bias(inner={made["mixer"]})')

  return _qwen.settings(h, block)


def to_fields(view):
  return _qwen.fields(view)

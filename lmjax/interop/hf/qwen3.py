"""Qwen 3: Llama with a norm of each head of q and k. 2025 (arXiv:2505.09388)."""

from lmjax.interop.hf import _llama
from lmjax.interop.hf import _qwen
from lmjax.interop.hf import _rope
from lmjax.interop.hf._fields import Fields
from lmjax.interop.hf._tensors import Row

FIELDS = Fields(
  sizes=_llama.SIZES,
  defaults=_qwen.DEFAULTS | dict(head_dim=128, attention_bias=False),
  fixed=dict(hidden_act=('silu',)),
  silent=('attention_dropout',),
  kept=_rope.FIELDS,
  nullable=('sliding_window', 'layer_types'),
)
QK = tuple(
  Row(f'mixer/norm_{x}/scale', f'model.layers.{{n}}.self_attn.{x}_norm.weight') for x in 'qk'
)
TABLE = _llama.table(_llama.attention() + QK + _llama.FFN + _llama.NORMS)
CLASS = 'Qwen3ForCausalLM'


def to_settings(h):
  mixer = dict(bias=h['attention_bias'], qk_norm=_llama.norm(h))
  return _qwen.settings(h, lambda window: _llama.block(h, mixer | dict(window=window)))


def to_fields(view):
  return _qwen.fields(view) | dict(attention_bias=view.layer('mixer').get('bias') is True)

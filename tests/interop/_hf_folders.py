"""Tiny folders in Hugging Face's layout, made by hand."""

import json

import numpy as np

from lmjax.interop import safetensors

LLAMA = dict(
  architectures=['LlamaForCausalLM'],
  model_type='llama',
  vocab_size=263,
  hidden_size=12,
  intermediate_size=19,
  num_hidden_layers=3,
  num_attention_heads=3,
  num_key_value_heads=1,
  max_position_embeddings=24,
  rms_norm_eps=1e-5,
  rope_theta=5000.0,
  hidden_act='silu',
  tie_word_embeddings=False,
  torch_dtype='float32',
)


def llama_shapes(c=LLAMA) -> dict[str, tuple[int, ...]]:
  """Tensors of a Llama, written down from its public description."""
  d, f, n = c['hidden_size'], c['intermediate_size'], c['num_attention_heads']
  size = d // n
  out = {'model.embed_tokens.weight': (c['vocab_size'], d)}
  for i in range(c['num_hidden_layers']):
    at = f'model.layers.{i}.'
    out |= {
      f'{at}self_attn.q_proj.weight': (n * size, d),
      f'{at}self_attn.k_proj.weight': (c['num_key_value_heads'] * size, d),
      f'{at}self_attn.v_proj.weight': (c['num_key_value_heads'] * size, d),
      f'{at}self_attn.o_proj.weight': (d, n * size),
      f'{at}mlp.gate_proj.weight': (f, d),
      f'{at}mlp.up_proj.weight': (f, d),
      f'{at}mlp.down_proj.weight': (d, f),
      f'{at}input_layernorm.weight': (d,),
      f'{at}post_attention_layernorm.weight': (d,),
    }
  return out | {'model.norm.weight': (d,), 'lm_head.weight': (c['vocab_size'], d)}


def arrays(shapes, dtype=np.float32) -> dict[str, np.ndarray]:
  """Random values, of a size at which a model's logits are about 1."""
  rng = np.random.default_rng(0)
  return {k: (rng.normal(size=s) * 0.3 + (len(s) == 1)).astype(dtype) for k, s in shapes.items()}


def folder(path, config=LLAMA, tensors=None, shards: int = 1, **other):
  """A folder of a Llama, or of these tensors, in so many files; returns its path."""
  path.mkdir(parents=True)
  (path / 'config.json').write_text(json.dumps({**config, **other}))
  tensors = arrays(llama_shapes({**config, **other})) if tensors is None else tensors
  if shards == 1:
    safetensors.write(path / 'model.safetensors', tensors)
    return path
  where = {
    k: f'model-{i % shards + 1:05}-of-{shards:05}.safetensors' for i, k in enumerate(tensors)
  }
  for file in set(where.values()):
    safetensors.write(path / file, {k: v for k, v in tensors.items() if where[k] == file})
  index = dict(metadata={}, weight_map=where)
  (path / 'model.safetensors.index.json').write_text(json.dumps(index))
  return path

"""GPT-NeoX here and in `transformers`."""

import pytest

import _torch

SIZES = {k: v for k, v in _torch.LLAMA.items() if 'heads' not in k} | dict(num_attention_heads=3)


@pytest.mark.parametrize(
  'more',
  [
    {},
    dict(use_parallel_residual=False, hidden_act='gelu_new', tie_word_embeddings=True),
    dict(attention_bias=False, rotary_pct=1.0, layer_norm_eps=1e-3),
  ],
  ids=['parallel', 'one after another', 'whole heads'],
)
def test_logits_and_round_trip(tmp_path, more):
  _torch.check(tmp_path, _torch.config('GPTNeoXConfig', **SIZES, **more))

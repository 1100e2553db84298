"""GPT-2 here and in `transformers`."""

import pytest

import _torch

SIZES = dict(vocab_size=263, n_positions=19, n_embd=24, n_layer=3, n_head=3)
IDS = dict(bos_token_id=1, eos_token_id=2)


@pytest.mark.parametrize(
  'more',
  [
    {},
    dict(n_inner=29, activation_function='gelu', layer_norm_epsilon=1e-3),
    dict(scale_attn_weights=False, tie_word_embeddings=False),
  ],
  ids=str,
)
def test_logits_and_round_trip(tmp_path, more):
  _torch.check(tmp_path, _torch.config('GPT2Config', **SIZES, **IDS, **more), steps=19)

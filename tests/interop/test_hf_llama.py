"""Llama here and in `transformers`."""

import pytest

import _torch

LLAMA3 = dict(
  rope_type='llama3',
  rope_theta=500.0,
  factor=4.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=8,
)


@pytest.mark.parametrize(
  'more',
  [
    {},
    dict(rope_parameters=LLAMA3, tie_word_embeddings=True),
    dict(rope_parameters=dict(rope_type='linear', rope_theta=1e4, factor=3.0), rms_norm_eps=1e-3),
    dict(attention_bias=True, mlp_bias=True, head_dim=6),
  ],
  ids=['plain', 'llama3', 'linear', 'biases'],
)
def test_logits_and_round_trip(tmp_path, more):
  _torch.check(tmp_path, _torch.config('LlamaConfig', **_torch.LLAMA, **more))

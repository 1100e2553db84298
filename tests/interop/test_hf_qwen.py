"""Qwen 2 and 3 here and in `transformers`."""

import pytest

import _torch

LOCAL = dict(use_sliding_window=True, sliding_window=5, max_window_layers=2)


@pytest.mark.parametrize(
  'name, more',
  [
    ('Qwen2Config', {}),
    ('Qwen2Config', LOCAL | dict(tie_word_embeddings=True)),
    ('Qwen3Config', dict(head_dim=8)),
    ('Qwen3Config', LOCAL | dict(head_dim=6, attention_bias=True)),
  ],
  ids=['2', '2 with a window', '3', '3 with a window'],
)
def test_logits_and_round_trip(tmp_path, name, more):
  _torch.check(tmp_path, _torch.config(name, **_torch.LLAMA, **more))

"""OLMo 2 here and in `transformers`."""

import pytest

import _torch


@pytest.mark.parametrize('more', [{}, dict(attention_bias=True, tie_word_embeddings=True)], ids=str)
def test_logits_and_round_trip(tmp_path, more):
  _torch.check(tmp_path, _torch.config('Olmo2Config', **_torch.LLAMA, **more))

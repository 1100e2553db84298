"""Mistral here and in `transformers`."""

import pytest

import _torch


@pytest.mark.parametrize('window', [5, None])
def test_logits_and_round_trip(tmp_path, window):
  _torch.check(tmp_path, _torch.config('MistralConfig', **_torch.LLAMA, sliding_window=window))

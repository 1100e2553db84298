"""BERT, RoBERTa and ModernBERT here and in `transformers`."""

import pytest

import _torch

SIZES = dict(
  vocab_size=263,
  hidden_size=24,
  intermediate_size=37,
  num_hidden_layers=3,
  num_attention_heads=3,
  max_position_embeddings=19,
  initializer_range=0.2,
)


@pytest.mark.parametrize(
  'name, more',
  [
    ('BertConfig', {}),
    ('BertConfig', dict(hidden_act='gelu_new', type_vocab_size=3, layer_norm_eps=1e-3)),
    ('RobertaConfig', dict(type_vocab_size=1)),
    ('RobertaConfig', dict(hidden_act='gelu_new', pad_token_id=4)),
  ],
  ids=str,
)
def test_logits_and_round_trip(tmp_path, name, more):
  settings = _torch.config(name, **SIZES, **more)
  pad = settings.pad_token_id + 1 if name == 'RobertaConfig' else 0
  steps = SIZES['max_position_embeddings'] - pad
  _torch.check(tmp_path, settings, steps, 'AutoModelForMaskedLM', first=pad)


LOCAL, FULL = 'sliding_attention', 'full_attention'
NO_IDS = dict(bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, pad_token_id=0)


@pytest.mark.parametrize(
  'more',
  [
    dict(local_attention=6),
    dict(
      local_attention=9,
      layer_types=[LOCAL, FULL, FULL, LOCAL, FULL],
      num_hidden_layers=5,
      norm_bias=True,
      attention_bias=True,
      mlp_bias=True,
      classifier_bias=True,
      decoder_bias=False,
      hidden_activation='gelu_new',
    ),
    dict(num_hidden_layers=1, norm_eps=1e-3, classifier_activation='gelu_new'),
  ],
  ids=['a window', 'biases', 'one layer'],
)
def test_modernbert(tmp_path, more):
  sizes = SIZES | dict(num_hidden_layers=8) | NO_IDS | more
  _torch.check(tmp_path, _torch.config('ModernBertConfig', **sizes), 19, 'AutoModelForMaskedLM')

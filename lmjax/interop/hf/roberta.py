"""RoBERTa: BERT's layers, one
kind of text, and positions that begin behind the padding token's id.

Liu et al., 2019 (arXiv:1907.11692). Padding inside a text is not known here: tokens with its id
have the position where they stand.
"""

from lmjax.interop.hf import _bert

FIELDS = _bert.fields_of(pad_token_id=1)
TABLE = _bert.table(
  'roberta.', 'lm_head.dense', 'lm_head.layer_norm', 'lm_head.bias', 'lm_head.decoder'
)
CLASS = 'RobertaForMaskedLM'


def to_settings(h):
  return _bert.settings(h, h['pad_token_id'] + 1, False)


def to_fields(view):
  offset = view.parts['position'].get('offset')
  return _bert.fields(view) | dict(pad_token_id=max(offset or 1, 1) - 1)

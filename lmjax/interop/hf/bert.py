"""BERT with the head of masked language models; texts of the first kind alone.

Devlin et al., 2018 (arXiv:1810.04805).
"""

from lmjax.interop.hf import _bert

FIELDS = _bert.fields_of()
HEAD = 'cls.predictions'
TABLE = _bert.table(
  'bert.',
  f'{HEAD}.transform.dense',
  f'{HEAD}.transform.LayerNorm',
  f'{HEAD}.bias',
  f'{HEAD}.decoder',
  'cls.seq_relationship.weight',
  'cls.seq_relationship.bias',
)
CLASS = 'BertForMaskedLM'


def to_settings(h):
  return _bert.settings(h, 0, _bert.approximate(h))


def to_fields(view):
  return _bert.fields(view)

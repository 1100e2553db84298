"""Tiny Shakespeare, bundled with the package: 1,115,394 characters, 65 distinct, one document.

The split is nanoGPT's: the first 1 - valid_fraction of the characters train, the rest validate.
Source: karpathy/char-rnn, data/tinyshakespeare; split: karpathy/nanoGPT,
data/shakespeare_char/prepare.py. Public domain.
"""

import dataclasses
import hashlib
import importlib.resources
import lzma
from typing import Literal

from lmjax.registry import register


@register('source')
@dataclasses.dataclass(frozen=True)
class Shakespeare:
  """The bundled tiny Shakespeare; split is 'train', 'valid' or 'all'."""

  split: Literal['train', 'valid', 'all'] = 'train'
  valid_fraction: float = 0.1

  @staticmethod
  def check(split, valid_fraction):
    if not 0 < valid_fraction < 1:
      raise ValueError(f'valid_fraction={valid_fraction}: a number between 0 and 1 is expected')

  def text(self) -> str:
    raw = importlib.resources.files('lmjax').joinpath('assets/tinyshakespeare.txt.xz').read_bytes()
    text = lzma.decompress(raw).decode('utf-8')
    cut = int(len(text) * (1 - self.valid_fraction))
    return {'train': text[:cut], 'valid': text[cut:], 'all': text}[self.split]

  def fingerprint(self) -> str:
    return hashlib.sha256(self.text().encode('utf-8')).hexdigest()

  def __iter__(self):
    yield self.text()

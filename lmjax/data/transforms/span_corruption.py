"""Span corruption: an encoder reads a text in which spans are replaced by sentinels, and a decoder
writes the spans.

  inputs   Thank you <extra_id_0> me to your party <extra_id_1> week.  eos
  targets  start <extra_id_0> for inviting <extra_id_1> last eos

Of L tokens round(L rate) are noise in round(noise / mean) spans, both partitions uniform; noise
stands at the end, so that no sentinel is needed there. Only targets have weight, the start token
(pad, else bos or eos) not. Rows have one size, and padding.

Ids: the tokenizer must have extra ones, as those with T5's sentinels have, or `extended(...)`. All
documents of a row are one text, hence `data.mask_documents=False`; pack `pad()` keeps them apart. A
row of one token hides nothing, and its targets are eos alone.

Prompts are inputs: with sentinels, in order from `<extra_id_0>` on, the model writes what they
stand for; a text without any is what models have read that were fine-tuned on pairs of texts, and
what is written then is an answer of its own.

Raffel et al., 2020 (arXiv:1910.10683, section 3.1.4), with its 15 % in spans of 3 on average.
"""

import dataclasses
from typing import Any

import numpy as np

from lmjax import kinds
from lmjax.data import fields as fields_lib
from lmjax.data import permutation
from lmjax.data.transforms import _marks
from lmjax.data.transforms import _spans
from lmjax.registry import register


@register('transform', task=True, joins=True)
@dataclasses.dataclass(frozen=True)
class SpanCorruption:
  """Inputs with sentinels, targets with what they stand for."""

  tokenizer: Any
  length: int
  rate: float = 0.15
  mean: float = 3.0

  @staticmethod
  def check(rate, mean):
    if not 0 < rate < 1:
      raise ValueError(f'rate={rate}: a share of the tokens, above 0 and below 1, is expected')
    if not 1 <= mean < 1 << 31:
      raise ValueError(f'mean={mean}: tokens of a span, from 1, are expected')

  def __post_init__(self):
    have = len(getattr(self.tokenizer, 'extra', ()))
    if self.length < 2:
      raise ValueError(
        f'span_corruption: data.length={self.length}: at least 2 tokens are expected'
      )
    need = max(_spans.count(n, self.mean, self.rate)[1] for n in (2, self.length))
    if have < need:
      raise ValueError(
        f'span_corruption: config.data.tokenizer has {have} extra ids, {need} are needed for '
        f'sentinels; extended(inner=..., extra={need}) gives them'
      )
    if self.tokenizer.eos is None:
      raise ValueError(
        'span_corruption: config.data.tokenizer has no end-of-text id, which ends the targets'
      )

  @property
  def sizes(self) -> tuple[int, int]:
    """The most tokens of inputs and of targets."""
    noise, spans = _spans.count(self.length, self.mean, self.rate)
    return self.length - noise + spans + 1, noise + spans + 1

  def layout(self, fields):
    """The fields of a row."""
    inputs, targets = self.sizes
    made = {**fields_lib.text(inputs, 'encoder_'), **fields_lib.text(targets + 1)}
    return {**fields, **made, 'weights': fields_lib.field('weights', targets + 1)}

  def __call__(self, row, seed: int):
    tokens = row['tokens'][row['segments'] > 0][: self.length]
    rest = {k: v for k, v in row.items() if k not in fields_lib.TEXT}
    none = np.zeros(0, np.int32)
    inputs, targets = self._corrupted(tokens, seed) if len(tokens) else (none, none)
    return rest | _spans.source_row(inputs, targets, self.sizes, _spans.start(self.tokenizer))

  def _corrupted(self, tokens: np.ndarray, seed: int):
    n, eos = len(tokens), [self.tokenizer.eos]
    inputs, targets = tokens, []
    if n > 1:
      draws = permutation.uniform(seed, self.length)
      found = _spans.bounds(n, self.mean, self.rate, draws)
      inputs, targets = _spans.split(tokens, found, self.tokenizer.extra[: len(found)])
    joined = lambda *parts: np.concatenate(parts).astype(np.int32)
    return joined(inputs, eos), joined(targets, eos)

  def _names(self) -> dict[str, int]:
    return {f'<extra_id_{n}>': i for n, i in enumerate(self.tokenizer.extra)}

  def encode(self, text: str) -> list[int]:
    """The ids of a prompt, sentinels read. Raises ValueError for one that there is not."""
    return _marks.encode(self.tokenizer, text, self._names(), 'span_corruption')

  def decode(self, ids) -> str:
    """The text of targets, with sentinels."""
    return _marks.decode(self.tokenizer, ids, self._names())

  def prompt(self, ids) -> kinds.Prompt:
    """The inputs of a row that asks about these tokens. Raises ValueError where none does."""
    text, extra = [int(i) for i in ids], self.tokenizer.extra
    holes = [i for i in text if i in extra]
    if not text:
      raise ValueError('span_corruption: the prompt is empty, and no row begins with nothing')
    if tuple(holes) != tuple(extra[: len(holes)]):
      raise ValueError(
        'span_corruption: sentinels are expected in order from <extra_id_0> on, each once'
      )
    inputs = (*text, self.tokenizer.eos)
    return kinds.Prompt((_spans.start(self.tokenizer),), source=inputs, joined=False)

"""Perplexity of a text by token and by word, and bits per byte, from one sum of log-probabilities.

With L the nats of all scored tokens: nll = L / tokens, token perplexity exp(nll), word perplexity
exp(L / words), bits per byte L / (ln 2 bytes). Only the last two compare models with different
tokenizers. Words and bytes are those of the text as stored, also where `detokenize` changes what
the model reads.

Windows of the model's length advance by `stride` (None: disjoint; half the length for models that
answer prompts, see `lm`) and every token is scored once;
the first token of a document follows the tokenizer's bos, or eos, and is not scored where there is
neither, in which case one word less is counted for each document (Megatron's N - 1). Perplexity
falls with the stride, so both are in the score's name. Documents are divided by `separator`, which
is not scored; attention does not cross them; '' makes the file one document.

detokenize='wikitext' is Megatron-LM's protocol for WikiText-103. Standard errors: over blocks of a
model's length of tokens, which are taken as independent (ratio estimator); tokens themselves are
not.
"""

import dataclasses
import math
from typing import Literal, Sequence

import numpy as np

from lmjax import kinds
from lmjax import metrics
from lmjax.evals import _paths
from lmjax.evals import _scores
from lmjax.evals import _wikitext
from lmjax.registry import register

BLOCK = 256


@register('eval')
@dataclasses.dataclass(frozen=True)
class Perplexity:
  """nll, perplexities and bits per byte of the text file `path`."""

  path: str
  stride: int | None = None
  words: Literal['whitespace'] = 'whitespace'
  detokenize: Literal['none', 'wikitext'] = 'none'
  separator: str = ''

  @staticmethod
  def check(path, stride, **_):
    if stride is not None and stride < 1:
      raise ValueError(f'stride={stride}: a positive number of tokens or None is expected')

  def __post_init__(self):
    _paths.find(self.path)  # a missing file is told before any work

  def suits(self, lm: kinds.LM):
    _scores.likelihoods(lm)

  def run(self, lm: kinds.LM) -> list[kinds.Score]:
    """Scores and the counts behind them. Raises ValueError naming the file where it is missing,
    empty or not UTF-8.
    """
    path = _paths.find(self.path)
    whole = _paths.text(path)
    documents = [
      d for d in (whole.split(self.separator) if self.separator else [whole]) if d.strip()
    ]
    if not documents:
      raise ValueError(f'{path} holds nothing but the separator {self.separator!r}')
    read = _wikitext.detokenize if self.detokenize == 'wikitext' else str
    logps, unscored = [], 0
    for d in documents:
      ids = lm.tokenizer.encode(read(d))
      logps.append(np.asarray(lm.rolling(ids, stride=self.stride), np.float64))
      unscored += len(ids) - len(logps[-1])
    words = sum(len(d.split()) for d in documents) - unscored
    size = sum(len(d.encode()) for d in documents)
    stride = self.stride or getattr(lm, 'stride_name', 'length')
    how = dict(file=_paths.stem(path), stride=stride, detokenize=self.detokenize)
    found = summary(logps, words=words, size=size)
    return [kinds.Score(_scores.label(k, lm, **how), *v) for k, v in found.items()]


def summary(
  logps: Sequence[np.ndarray], *, words: int, size: int
) -> dict[str, tuple[float, float | None]]:
  """(value, standard error) of each measure from the log-probabilities of documents, their words
  and their bytes.
  """
  nats = -math.fsum(x for logp in logps for x in logp)
  tokens = sum(map(len, logps))
  if not tokens or words < 1:
    raise ValueError(f'{tokens} scored tokens in {words} words: the text is too short to score')
  blocks = [-logp[i : i + BLOCK] for logp in logps for i in range(0, len(logp), BLOCK)]
  sums = metrics.row_sums(
    np.array([b.sum() for b in blocks]), np.array([float(len(b)) for b in blocks])
  )
  error = metrics.ratio_stderr(sums)
  error = None if math.isnan(error) else error
  scaled = lambda factor: None if error is None else error * factor
  per_word, per_token = _scores.exp(nats / words), _scores.exp(nats / tokens)
  return dict(
    nll=(nats / tokens, error),
    token_perplexity=(per_token, scaled(per_token)),
    word_perplexity=(per_word, scaled(per_word * tokens / words)),
    bits_per_byte=(metrics.bits_per_byte(nats, size), scaled(tokens / size / math.log(2))),
    tokens=(float(tokens), None),
    words=(float(words), None),
    bytes=(float(size), None),
  )

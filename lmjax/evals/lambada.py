"""LAMBADA: the last word of a passage that people guess only from its whole.

context = all before the last space, target = the space and the last word, encoded jointly. Never
cut from the right, no end token.

  strict  a hit is the greedy token at every sub-token of the word (teacher-forced); perplexity =
          exp(-mean over passages of log P(word)), per word and not per token
  loose   the target is the last sub-token of the whole text alone (Megatron-LM's default); it
  inflates the accuracy

Paperno et al., 2016 (arXiv:1606.06031). Two texts exist, "openai" (cased prose) and the original
(lower case, tokenised), and their scores cannot be compared: the file's name is part of the score's
name. Both .jsonl with the field `text` and .txt with a passage a line are read.
"""

import dataclasses
from typing import Literal

from lmjax import kinds
from lmjax.evals import _paths
from lmjax.evals import _scores
from lmjax.registry import register

DEFAULT = 'lambada_openai_test.jsonl'


@register('eval')
@dataclasses.dataclass(frozen=True)
class Lambada:
  """Accuracy and perplexity of the last word. `path=''` is the openai test file of the data
  folder.
  """

  path: str = ''
  limit: int | None = None
  mode: Literal['strict', 'loose'] = 'strict'

  @staticmethod
  def check(path, limit, mode):
    _paths.check_limit(limit)

  def __post_init__(self):
    _paths.find(self.path, DEFAULT)  # a missing file is told before any work

  def suits(self, lm: kinds.LM):
    _scores.likelihoods(lm)

  def run(self, lm: kinds.LM) -> list[kinds.Score]:
    """Accuracy, and perplexity of the target. Raises ValueError naming the file and the line."""
    path = _paths.find(self.path, DEFAULT)
    pairs = passages(path, self.limit)
    if self.mode == 'strict':
      found = lm.loglikelihood(pairs)
    else:
      ids = [[int(i) for i in lm.tokenizer.encode(context + word)] for context, word in pairs]
      found = [
        (float(p.sum()), bool(hit.all()))
        for p, hit in lm.loglikelihood_tokens([(x[:-1], x[-1:]) for x in ids])
      ]
    how = dict(file=_paths.stem(path), mode=self.mode, n=len(pairs))
    return [
      _scores.shares('accuracy', [hit for _, hit in found], lm, **how),
      kinds.Score(
        _scores.label('perplexity', lm, **how), *_scores.exp_mean([-p for p, _ in found])
      ),
    ]


def passages(path, limit: int | None) -> list[tuple[str, str]]:
  """(context, ' ' + last word) of each passage."""
  if '.jsonl' in path.name:
    texts = [r['text'] for r in _paths.rows(path, ['text'], limit)]
  else:
    texts = [x for x in _paths.text(path).split('\n') if x.strip()][:limit]
  out = []
  for i, t in enumerate(texts, 1):
    context, _, word = str(t).rpartition(' ')
    if not context or not word:
      raise ValueError(f'{path}, passage {i}: {str(t)[:40]!r} has no last word after a space')
    out.append((context, ' ' + word))
  return out

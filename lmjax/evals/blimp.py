"""BLiMP: of two sentences that differ minimally, the grammatical one should be more probable.

accuracy = share of pairs with log P(good) > log P(bad), each the log-likelihood of the whole
sentence after the prefix (bos, or eos where there is no bos). Reported for each paradigm, and
averaged over paradigms with equal weight. A tie is a miss. Warstadt et al., 2020
(arXiv:1912.00582), the simple language-model method.
"""

import dataclasses
import math

from lmjax import kinds
from lmjax.evals import _paths
from lmjax.evals import _scores
from lmjax.registry import register

DEFAULT = 'blimp.shared.jsonl'


@register('eval')
@dataclasses.dataclass(frozen=True)
class Blimp:
  """Accuracy by paradigm and its average. `limit`: pairs of each paradigm."""

  path: str = ''
  limit: int | None = None

  @staticmethod
  def check(path, limit):
    _paths.check_limit(limit)

  def __post_init__(self):
    _paths.find(self.path, DEFAULT)  # a missing file is told before any work

  def suits(self, lm: kinds.LM):
    _scores.likelihoods(lm)

  def run(self, lm: kinds.LM) -> list[kinds.Score]:
    """The average first. Raises ValueError naming the file, the line and the field."""
    path = _paths.find(self.path, DEFAULT)
    groups: dict[str, list] = {}
    for row in _paths.rows(path, ['sentence_good', 'sentence_bad', 'UID']):
      pairs = groups.setdefault(row['UID'], [])
      if self.limit is None or len(pairs) < self.limit:
        pairs.append((row['sentence_good'], row['sentence_bad']))
    flat = [('', sentence) for pairs in groups.values() for pair in pairs for sentence in pair]
    found = iter([p for p, _ in lm.loglikelihood(flat)])
    hits = {uid: [next(found) > next(found) for _ in pairs] for uid, pairs in groups.items()}
    parts = {uid: _scores.share(h) for uid, h in hits.items()}
    values, errors = zip(*parts.values())
    error = None if None in errors else math.sqrt(sum(e * e for e in errors)) / len(errors)
    how = dict(file=_paths.stem(path), limit=self.limit)
    average = kinds.Score(
      _scores.label('average', lm, **how, paradigms=len(parts)), sum(values) / len(values), error
    )
    return [average, *(kinds.Score(_scores.label(uid, lm, **how), *parts[uid]) for uid in parts)]

"""What authors say of a method, and what the measurements say of it.

A verdict is computed from the numbers of one budget, the largest; nobody types it.

  reproduced            the effect is there, beyond the noise, and at least as large as claimed
  direction only        the effect is there, beyond the noise, but smaller than claimed
  not at this scale     the noise leaves it open
  contradicted          the effect goes the other way, beyond the noise

"Beyond the noise" means that the 95 % interval leaves out the value without effect, and that
Welch's p, by Holm's method over the treatments of the experiment, is below 0.05. A claim of
equality (`AsGood`) is about the interval alone.
"""

import dataclasses
from typing import NamedTuple, Protocol

REPRODUCED, DIRECTION = 'reproduced', 'direction only'
NOT_HERE, CONTRADICTED = 'not at this scale', 'contradicted'
LEVEL = 0.05


class Interval(NamedTuple):
  """A value and its 95 % interval."""

  value: float
  low: float
  high: float


class Claim(Protocol):
  def verdict(self, gain: Interval, speedup: Interval, p: float) -> str:
    """gain: the baseline's number minus the treatment's. speedup: the baseline's tokens for the
    treatment's loss, over the treatment's tokens. p: of no difference, by Holm's method.
    """


@dataclasses.dataclass(frozen=True)
class Better:
  """The compared number is lower by at least `by`."""

  by: float = 0.0

  def verdict(self, gain: Interval, speedup: Interval, p: float) -> str:
    if not p < LEVEL:
      return NOT_HERE
    if gain.high < 0:
      return CONTRADICTED
    if gain.low > 0:
      return REPRODUCED if gain.value >= self.by else DIRECTION
    return NOT_HERE

  def __str__(self):
    return f'lower by {self.by:g}' if self.by else 'lower'


@dataclasses.dataclass(frozen=True)
class AsGood:
  """The compared number is no higher than `within` above the baseline's (for less memory, say)."""

  within: float

  def verdict(self, gain: Interval, speedup: Interval, p: float) -> str:
    if gain.low > -self.within:
      return REPRODUCED
    return CONTRADICTED if gain.high < -self.within else NOT_HERE

  def __str__(self):
    return f'no worse than {self.within:g} above'


@dataclasses.dataclass(frozen=True)
class Faster:
  """The baseline's loss in 1 / `times` of the tokens."""

  times: float

  def verdict(self, gain: Interval, speedup: Interval, p: float) -> str:
    if not p < LEVEL:
      return NOT_HERE
    if speedup.high < 1:
      return CONTRADICTED
    if speedup.low > 1:
      return REPRODUCED if speedup.value >= self.times else DIRECTION
    return NOT_HERE

  def __str__(self):
    return f'{self.times:g} times fewer tokens'

"""Aioli: weights by a law of mixing whose matrix is measured while training.

The law: one round on the mixture p changes the held-out loss of source i by -sum_j A_ij p_j. Each
round of `update_steps` steps first measures A on the live model (LearnParams):
  P_j = f at j and (1 - f) / (m - 1) elsewhere          f = one_hot_factor, m sources
  for each of `lp_rounds` sweeps, for j in a fresh random order: train `lp_steps` steps on P_j;
    G_:j += losses before - losses after
  G = A P^T divided by lp_rounds, solved for A row by row
A is lowered by its least entry where that is below 0, divided by its sum, and then
  B <- (1 - ema) A + ema B,   p_j proportional to exp(eta sum_i B_ij)        (columns)
which begins from uniform each round: the past is in B. With ema=None it is in p instead:
p_j <- p_j exp(eta sum_i A_ij), normalised. The rest of the round trains on p.

The steps of LearnParams are steps of the run like any other. Chen et al., 2024 (arXiv:2411.05735),
defaults for m = 2; for 3 sources the paper has lp_steps 6, eta 0.1, ema 0.5, f 0.5, for 7 lp_rounds
2, lp_steps 10, eta 1, update_steps 200 and f 0.75. Let `update_steps` divide the steps of the run,
or what the last round measures is of no use.

config.data.valid has the sources in the order of config.data.train: a loss belongs to the source of
its name, and of several that one part reads the names are places in the sum (jsonl, jsonl_2).

`prior_steps` steps on the weights that the sum writes come first where it is positive: a mixture
learnt elsewhere, adjusted. `rows`: held-out rows of each source that a look takes, from its start;
0 takes all. Metrics of the lines `mixture`: weights and losses, and `A/<i>`, the last A as solved.
"""

import dataclasses

import numpy as np

from lmjax.data import permutation
from lmjax.data.mixtures import _match
from lmjax.data.mixtures import _softmax
from lmjax.data.mixtures import _weights
from lmjax.registry import register


@register('mixture', needs=('valid_losses',))
@dataclasses.dataclass(frozen=True)
class Aioli:
  """Exponentiated gradient on a matrix measured anew each round."""

  seed: int
  eta: float = 0.2
  ema: float | None = 0.1
  update_steps: int = 250
  lp_rounds: int = 4
  lp_steps: int = 4
  one_hot_factor: float = 0.625
  prior_steps: int = 0
  rows: int = 0

  @staticmethod
  def check(eta, ema, update_steps, lp_rounds, lp_steps, one_hot_factor, prior_steps, rows):
    counts = dict(update_steps=update_steps, lp_rounds=lp_rounds, lp_steps=lp_steps)
    for name, value in counts.items():
      if value < 1:
        raise ValueError(f'{name}={value}: a positive number is expected')
    for name, value in dict(eta=eta, prior_steps=prior_steps, rows=rows).items():
      if value < 0:
        raise ValueError(f'{name}={value}: at least 0 is expected')
    if ema is not None and not 0 <= ema < 1:
      raise ValueError(f'ema={ema}: at least 0 and below 1, or None, is expected')
    if not 0 < one_hot_factor <= 1:
      raise ValueError(f'one_hot_factor={one_hot_factor}: above 0 and at most 1 is expected')

  def init(self, names, weights, tokens):
    m, looks = len(names), self.lp_rounds * len(names)
    _match.several('aioli', names)
    _weights.sizes(names, tokens)
    if self.one_hot_factor * m <= 1:
      raise ValueError(
        f'aioli: one_hot_factor={self.one_hot_factor} with {m} sources makes mixtures that do not '
        f'tell them apart; more than {1 / m:.4g} is expected'
      )
    if self.update_steps < looks * self.lp_steps:
      raise ValueError(
        f'aioli: update_steps={self.update_steps} has no room for lp_rounds x lp_steps x {m} '
        f'sources = {looks * self.lp_steps} steps; at least that is expected'
      )
    prior = _weights.given(names, weights) if self.prior_steps else None
    if self.prior_steps and prior is None:
      raise ValueError(
        f'aioli: prior_steps={self.prior_steps} train on the weights of config.data.train, which '
        f'writes none; 0.5*{names[0]}(...) + ... is expected'
      )
    if not self.prior_steps:
      _match.unweighted('aioli', names, weights)
    even = np.full(m, 1 / m)
    return dict(
      p=even if prior is None else prior,
      A=np.zeros((m, m)),
      B=np.zeros((m, m)),
      G=np.zeros((m, m)),
      losses=np.zeros(m),
      due=np.array(self.prior_steps, np.int64),
      round=np.zeros((), np.int64),
      at=np.array(-1, np.int64),  # how many looks of LearnParams were taken, -1 outside of it
    )

  def due(self, state) -> int:
    return int(state['due'])

  def row(self, state) -> int:
    """Which mixture LearnParams trains on."""
    m = len(state['p'])
    sweep, place = divmod(int(state['at']), m)
    key = permutation.key(self.seed, 'aioli', int(state['round']), sweep)
    return permutation.Permutation(m, key)[place]

  def update(self, state, observed):
    losses = np.asarray(observed['valid_losses'], np.float64)
    m, at = len(losses), state['at']
    if at < 0:  # a round begins
      start = dict(G=np.zeros((m, m)), at=np.zeros_like(at), due=state['due'] + self.lp_steps)
      return {**state, **start, 'losses': losses}
    G = state['G'].copy()
    G[:, self.row(state)] += state['losses'] - losses
    state = {**state, 'G': G, 'losses': losses, 'at': at + 1}
    if at + 1 < self.lp_rounds * m:
      return {**state, 'due': state['due'] + self.lp_steps}
    state = {**state, **self.solved(state, G / self.lp_rounds)}
    state |= dict(at=np.full_like(at, -1), round=state['round'] + 1)
    now, due = state['due'], self.prior_steps + self.update_steps * state['round']
    state['due'] = np.asarray(due, np.int64)
    return self.update(state, observed) if due == now else state

  def solved(self, state, G):
    """A, B and p behind a round's LearnParams."""
    m = len(G)
    A = law(G, design(m, self.one_hot_factor))
    if self.ema is None:
      past = np.ones(m) / m if not state['round'] else state['p']
      p = past * np.exp(self.eta * normal(A).sum(0))
      return dict(A=A, p=p / p.sum())
    B = normal(A) if not state['round'] else (1 - self.ema) * normal(A) + self.ema * state['B']
    return dict(A=A, B=B, p=_softmax.softmax(self.eta * B.sum(0)))

  def weights(self, state) -> np.ndarray:
    if state['at'] < 0:
      return state['p']
    return design(len(state['p']), self.one_hot_factor)[self.row(state)]

  def report(self, state, names):
    return {f'A/{n}': [float(a) for a in row] for n, row in zip(names, state['A'])}


def design(m: int, f: float) -> np.ndarray:
  """P (m, m): the mixtures that LearnParams trains on."""
  return np.where(np.eye(m) > 0, f, (1 - f) / (m - 1))


def law(G: np.ndarray, P: np.ndarray) -> np.ndarray:
  """A of G = A P^T."""
  return np.linalg.solve(P, G.T).T


def normal(A: np.ndarray) -> np.ndarray:
  """Entries of at least 0 and of sum 1; uniform where all are equal to the least, below 0 or at
  it.
  """
  A = A - min(A.min(), 0.0)
  total = A.sum()
  return A / total if total > 0 else np.full_like(A, 1 / A.size)

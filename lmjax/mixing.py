"""Weights of the sources that follow validation losses.

A mixture with the fact needs=('valid_losses',) is asked after certain numbers of steps, which it
names itself (`due`), and told the held-out loss of each source then; what it weighs them with holds
from the next step on. All that it remembers, and the stretch of the plan that is in force, is in
the cursor of every checkpoint, so that a resume draws the same rows whenever it was stopped: a
checkpoint of a step at which losses are due was written before them, and they are looked at again.

Batches that are left out are left out as the weights at their first one draw them: a bad row of a
source with little weight then may lie behind them.
"""

import dataclasses
from typing import Any, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from lmjax import kinds
from lmjax.data import plan as plan_lib

LEAST = 2.0**-32  # weights below are raised to it: the plan has no smaller share


class Mixing:
  """What a mixture has made of the plan so far: `plan` holds from the last look on.

  Args: policy: the built part, `state` its first one. plan: that of the first step.
  """

  def __init__(self, policy: Any, state: Mapping[str, np.ndarray], plan: plan_lib.Plan):
    self.policy, self._first, self._base = policy, dict(state), plan
    self.begin()

  def begin(self) -> None:
    """Back to the first step."""
    self.state, self.plan = self._first, self._base

  @property
  def due(self) -> int | None:
    """After how many steps it wants losses next; None: never again."""
    return self.policy.due(self.state)

  def look(self, row: int, losses: Sequence[float]) -> dict[str, Any]:
    """Takes the losses of the sources in, for rows from `row` of the stream on; returns what is to
    be logged. Raises ValueError where a loss is no number.
    """
    names, losses = self.plan.names, np.asarray(losses, np.float64)
    for name, loss in zip(names, losses, strict=True):
      if not np.isfinite(loss):
        raise ValueError(
          f'the validation loss of source {name} is {loss}, from which no weights can be made'
        )
    before = self.due
    self.state = self.policy.update(self.state, dict(valid_losses=losses))
    assert self.due is None or self.due > before, (before, self.due)
    weights = np.asarray(self.policy.weights(self.state), np.float64)
    assert np.all(weights >= 0) and abs(weights.sum() - 1) < 1e-9, weights
    here = self.plan.beginning(self.plan.pieces[-1])  # what lies further back is done with
    self.plan = here.reweighted(row, np.maximum(weights, LEAST))
    by = lambda what, values: {f'{what}/{n}': float(v) for n, v in zip(names, values)}
    more = self.policy.report(self.state, names) if hasattr(self.policy, 'report') else {}
    return by('weight', weights) | by('nll', losses) | more

  def cursor(self) -> dict[str, Any]:
    """JSON values; floats are written so that they are read as they were."""
    piece = dataclasses.asdict(self.plan.pieces[-1])
    state = {k: np.asarray(v).tolist() for k, v in self.state.items()}
    return dict(
      state=state, piece={k: v if k == 'first_row' else list(v) for k, v in piece.items()}
    )

  def take_up(self, cursor: Mapping[str, Any]) -> None:
    """Goes on from a checkpoint's cursor."""
    like, piece = self._first, cursor['piece']
    assert cursor['state'].keys() == like.keys(), (cursor['state'].keys(), like.keys())
    made = lambda k: np.array(cursor['state'][k], like[k].dtype).reshape(like[k].shape)
    self.state = {k: made(k) for k in like}
    units, base = (tuple(piece[k]) for k in ('units', 'base'))
    self.plan = self._base.beginning(plan_lib.Piece(piece['first_row'], units, base))


@dataclasses.dataclass(frozen=True)
class BySource:
  """An objective that also measures each source of its batches: metrics `nll/<source>`, where its
  rows stand alone.
  """

  objective: Any
  names: tuple[str, ...]

  def loss(self, params, vars, batch, rng, train: bool = True) -> kinds.Loss:
    out = self.objective.loss(params, vars, batch, rng, train)
    if out.rows is None:
      return out
    nll_M, weight_M = (sums(batch['source'], x_B, len(self.names)) for x_B in out.rows)
    found = {f'nll/{n}': (nll_M[i], weight_M[i]) for i, n in enumerate(self.names)}
    return out._replace(metrics={**out.metrics, **found})


def by_source(run: Any, names: Sequence[str]) -> Any:
  """The run, to be evaluated source by source where there are several."""
  if len(names) < 2:
    return run
  return dataclasses.replace(run, objective=BySource(run.objective, tuple(names)))


def sums(source_B, x_B, m: int):
  """float32 (m,): the sum of x over the rows of each source; rows of padding are of none."""
  own_BM = source_B[:, None] == jnp.arange(m)
  return jnp.sum(jnp.where(own_BM, x_B[:, None], 0.0), axis=0)

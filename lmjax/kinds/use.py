"""Contracts of the parts that use a model."""

from typing import Any, NamedTuple, Protocol, Sequence

import jax
import numpy as np

from lmjax.kinds.data import Tokenizer


class DecodingRule(Protocol):
  """Chooses tokens. `step_fns[i](cache, tokens_B) -> (logits_BV, cache)`, one per model; pure and
  traced.

  Rules that only reshape the distribution define `filter(logits_BV) -> logits_BV` and can be
  chained with `|`.
  """

  def advance(self, step_fns, state, rng) -> tuple[Any, jax.Array]: ...


class LM(Protocol):
  """What evals see (`lm.py`); the same three requests as lm-evaluation-harness."""

  tokenizer: Tokenizer

  def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """(context, continuation) -> (sum of log-probabilities, whether greedy decoding gives it)."""

  def loglikelihood_tokens(
    self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """The same over ids: log-probability and argmax-correctness of every continuation token."""

  def rolling(self, ids: Sequence[int], stride: int | None = None) -> np.ndarray:
    """Log-probability of each token of a document, windows advancing by `stride`."""

  def generate(
    self, prompts: Sequence[str], max_tokens: int, stop: Sequence[str] = ()
  ) -> list[str]: ...


class Score(NamedTuple):
  """One number of an eval."""

  name: str
  value: float
  stderr: float | None


class Eval(Protocol):
  """`part(...)` returns an object with `run`."""

  def run(self, lm: LM) -> list[Score]: ...

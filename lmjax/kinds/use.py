"""Contracts of the parts that use a model."""

from typing import Any, NamedTuple, Protocol, Sequence

import jax
import numpy as np

from lmjax.kinds.data import Tokenizer


class StepFn(Protocol):
  """One model as decoding rules see it; pure and traced. A cache is opaque; R rows of it.

  Rules that only take one token after another call it; the methods are for those that do more.
  """

  def __call__(self, cache, tokens_R) -> tuple[jax.Array, Any]:
    """(logits (R, V), cache) after one more token in each row."""

  def many(self, cache, tokens_RT, real_RT=None) -> tuple[jax.Array, Any]:
    """(logits (R, T, V), cache) after T tokens in one pass; nothing sees those that are not real
    (none of a row, or its first ones before all that is real).
    """

  def mixed(self, cache, tokens_RK, weights_RK) -> tuple[jax.Array, Any]:
    """(logits (R, V), cache) after one input, the weighted sum of K tokens' embeddings."""

  def alone(self, tokens_RT) -> jax.Array:
    """Logits (R, V) behind these tokens, -1 for none at the front, without any cache."""

  def back(self, cache, dropped_R, most: int) -> Any:
    """The cache before the last dropped_R tokens of each row, at most `most`."""

  def rows(self, cache, rows_R) -> Any:
    """The cache of these rows."""


class DecodingRule(Protocol):
  """Chooses tokens: `init`, then `advance` for each step until all rows are done, then `finish`.

  Rules that only reshape the distribution define `filter(logits_BV) -> logits_BV` and can be
  chained with `|`; `decoding._base.Rule` has the rest for them, and the arguments in full. `rng` is
  a key for each row, so that a row is the same alone and in any batch. The state is a pytree with
  `caches`, `tokens_B` and the rule's `own`.

  Facts: models (how many it takes: the model itself, then the others), rewinds (it goes back over
    tokens that a model has read, `StepFn.back`).
  """

  def load(self, vocab: int, tokenizer: Tokenizer | None = None) -> Any:
    """Arrays from files that the rule reads, given to `init`."""

  def init(self, step_fns: Sequence[StepFn], caches: tuple, start, arrays) -> Any:
    """The state before the first step; the caches hold all but the last token of each prompt."""

  def advance(self, step_fns: Sequence[StepFn], state, rng) -> tuple[Any, jax.Array]:
    """(state, new tokens): (B,), or (B, N) with -1 behind a row's last one."""

  def done(self, state) -> jax.Array:
    """Rows with nothing more to write."""

  def finish(self, state) -> tuple[jax.Array, jax.Array | None] | None:
    """None, or (texts (B, K, T), scores (B, K)) of a rule that keeps several texts."""


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
    """Log-probability of each token of a document, windows advancing by `stride`; `stride_name`,
    optional, is what None means, 'length' unless it says otherwise.
    """

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

  def suits(self, lm: LM) -> None:
    """Optional: raises Unsupported for a model that it cannot score, whatever the parameters; asked
    before training begins, when there are none.
    """

  def run(self, lm: LM) -> list[Score]: ...


class Inputs(NamedTuple):
  """What calibration saw of the inputs of one matrix, float32.

  hessian_II: (2/n) sum of x x^T over n tokens. largest_I: max |x| of each input.
  """

  hessian_II: np.ndarray
  largest_I: np.ndarray


class Quantizer(Protocol):
  """`part(...)` returns an object that makes codes of one matrix at a time.

  Facts: calibration = needs inputs; outliers = the command also tells the outlier features of the
    activations.
  """

  linear: str
  """The spec of the linear part that computes with what `quantize` gives."""

  def quantize(self, kernel_IO: jax.Array, inputs: Inputs | None) -> dict[str, jax.Array]:
    """Arrays by the names that the linear part's `stored` takes; I inputs, O outputs, all axes of
    each side folded into one.
    """

"""Contracts of the parts that make batches."""

import dataclasses
from typing import Any, Iterator, Mapping, Protocol, Sequence

import numpy as np


class Source(Protocol):
  """Documents in a fixed order: str, bytes, or with the fact `tokens` arrays of ids."""

  def fingerprint(self) -> str:
    """Changes when the documents do (paths, sizes, contents)."""

  def __iter__(self) -> Iterator[Any]: ...


class Transform(Protocol):
  """`part(...)` returns a pure function (row, seed) -> row; a row is a dict of arrays, see
  `data/fields.py`.

  Facts: task = part of the task, hence applied to validation rows too, from the same seed each
    time; joins = makes one example of all documents of a row; its rows have `data.length` tokens,
    without those that an objective looks ahead to.
  """

  def __call__(self, row: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]: ...

  def layout(self, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of its rows, by name, from those it is given; optional where they are the same."""

  def prompt(self, ids: Sequence[int]) -> 'Prompt':
    """What a model that learnt from its rows reads before it goes on from these tokens; optional,
    of a task whose inputs are no plain text. Raises ValueError where no row asks for the like.
    """

  def encode(self, text: str) -> list[int]:
    """The ids of what a user writes, marks for ids that no text yields among them; with `prompt`.
    Raises ValueError for marks that its rows do not have.
    """

  def decode(self, ids: Sequence[int]) -> str:
    """What a model writes, with marks for ids that no text yields; with `prompt`."""


@dataclasses.dataclass(frozen=True)
class Prompt:
  """What a model reads before it writes.

  text: of the stack that writes, at least one token. source: of the encoder, None for models
  without one. prefix: how many of the text's first tokens all of its tokens may see. joined:
  whether what is written goes on where the tokens that were asked about end.
  """

  text: tuple[int, ...]
  source: tuple[int, ...] | None = None
  prefix: int = 0
  joined: bool = True


class Pack(Protocol):
  """`part(...)` returns a dataclass (its repr is part of the data's fingerprint) with `plan`.

  `plan` gives the rows of one epoch as spans of documents, a pure function of its arguments, and as
  many rows in every epoch.
  """

  def plan(
    self, lengths: np.ndarray, row_tokens: int, lookahead: int, seed: int, epoch: int
  ) -> 'RowPlan': ...


class RowPlan(Protocol):
  """Rows of one epoch; `plan[i]` is an int64 array (spans, 3) of (document, start, stop)."""

  def __len__(self) -> int: ...

  def __getitem__(self, i: int) -> np.ndarray: ...


class Mixture(Protocol):
  """Weights of the sources; all that changes is in `state`, NumPy arrays by name, of constant
  shape, kept in the checkpoint.

  Context: sources = {name: spec}; seed = that of the run. Fact needs=('valid_losses',):
  `due(state)` says after how many steps (None: never) `update` is to be called with the mean
  held-out losses of the sources as `observed['valid_losses']`, float64 (m,), from where on
  `weights` are others; the step that is due must then be a later one. `rows`: held-out rows of
  each source that are taken, 0 for all. Optional `report(state, names)`: {name: value} to be
  logged behind it.
  """

  def init(self, names: Sequence[str], weights: Sequence[float], tokens: Sequence[int]) -> Any: ...

  def update(self, state, observed: Mapping[str, Any]) -> Any: ...

  def weights(self, state) -> np.ndarray:
    """Non-negative, of sum 1, in the order of names."""


class Tokenizer(Protocol):
  """Ids are 0 ... vocab_size - 1. bos, eos, pad, mask are ids or None.

  Optional: `extra`, ids that no text yields, for transforms that need some.

  Fact `lossless`: decode_bytes(encode(data)) == data for arbitrary bytes. Text never yields a
    special id. Optional: `encode_batch(texts)`, and a static `train(texts, vocab_size, ...) ->
    bytes of the file`, which `python -m lmjax.tokenize train` offers.
  """

  vocab_size: int
  bos: int | None
  eos: int | None
  pad: int | None
  mask: int | None

  def encode(self, text: str | bytes) -> np.ndarray: ...

  def decode(self, ids: Sequence[int]) -> str: ...

  def fingerprint(self) -> str: ...

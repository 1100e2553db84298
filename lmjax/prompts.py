"""Texts as prompts: the layout that a model's rows had in training.

For a model of plain text a prompt is its ids. A transform that makes rows of inputs and targets
says itself what a prompt looks like, with `kinds.Transform.prompt`.
"""

import dataclasses
from typing import Any, Sequence

from lmjax import kinds


@dataclasses.dataclass(frozen=True)
class Prompts:
  """How texts become prompts of one model, and back.

  bos: whether texts begin with that token. task: the transform that lays prompts out, None for
  plain text; name: its own in the config.
  """

  tokenizer: Any
  bos: bool = False
  task: Any = None
  name: str | None = None

  def ids(self, text: str) -> list[int]:
    """The ids of a user's text. An empty one begins with a token of its own only where there is no
    task, or its rows had that token: else `prompt` refuses it.
    """
    if self.task is None or self.bos:
      return prompt_ids(self.tokenizer, text, self.bos, encode=getattr(self.task, 'encode', None))
    return [int(i) for i in self.task.encode(text)]

  def prompt(self, ids: Sequence[int]) -> kinds.Prompt:
    """What the model reads to go on from these ids. Raises ValueError where it never learnt to."""
    return plain(ids) if self.task is None else self.task.prompt(ids)

  def new_text(self, ids: Sequence[int], new: Sequence[int]) -> str:
    """The text of what was written behind the prompt of `ids`."""
    if self.task is None or self.prompt(ids).joined:
      return new_text(self.tokenizer, ids, new)
    return self.task.decode(new)


def of(run: Any) -> Prompts:
  """Those of a run's model. Raises ValueError where it reads a source that nothing makes from a
  text, or where two transforms lay prompts out.
  """
  c = run.config
  found = [t for t in run.transforms if hasattr(t.fn, 'prompt')]
  if len(found) > 1:
    raise ValueError(
      f'config.data.transforms={c["data"]["transforms"]}: {" and ".join(t.name for t in found)} '
      'each lay out prompts; at most one such transform is expected'
    )
  if run.architecture.model.encoders and not found:
    raise ValueError(
      f'config.model.architecture={c["model"]["architecture"]} reads a source, and no transform of '
      'config.data.transforms says how one is made of a text (its method `prompt`)'
    )
  task = found[0] if found else None
  bos = c['data']['bos']
  return Prompts(run.tokenizer, bos, *((task.fn, task.name) if task else (None, None)))


def plain(ids: Sequence[int]) -> kinds.Prompt:
  """A prompt that is its ids."""
  return kinds.Prompt(tuple(int(i) for i in ids))


def prompt_ids(tokenizer, text: str, bos: bool, encode=None) -> list[int]:
  """The ids of a prompt, a beginning-of-text token in front where asked for or where there is
  nothing else to start from.
  """
  ids = [int(i) for i in (encode or tokenizer.encode)(text)]
  start = tokenizer.bos if tokenizer.bos is not None else tokenizer.eos
  if not ids and start is None:
    raise ValueError(
      'the prompt is empty, and the tokenizer has neither a bos nor an eos token to start from'
    )
  return [start, *ids] if start is not None and (bos or not ids) else ids


def new_text(tokenizer, prompt: Sequence[int], new: Sequence[int]) -> str:
  """The text that `new` adds to the prompt: joined first, since a tokenizer may treat the start of
  a text apart.
  """
  before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *new])
  return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)

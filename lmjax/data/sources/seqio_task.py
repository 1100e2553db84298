"""A seqio Task (or Mixture): token ids exactly as seqio's preprocessors give them, in seqio's
order, unshuffled and untrimmed.

`module` is imported first, so that it can register the task. Ids come from the feature's own
vocabulary; they must lie in that of config.data.tokenizer. TensorFlow is needed; it is imported
here alone.

Source: Roberts et al., 2022, Scaling Up Models and Data with t5x and seqio (arXiv:2203.17189).
"""

import dataclasses
import hashlib
import importlib
import os
import pathlib

import numpy as np

from lmjax.registry import nearest
from lmjax.registry import register


@register('source', tokens=True, sequential=True)
@dataclasses.dataclass(frozen=True)
class SeqioTask:
  """One feature of a seqio Task, as ids; `module` registers the task when imported."""

  task: str
  module: str | None = None
  split: str = 'train'
  feature: str = 'targets'

  def open(self):
    """The seqio Task or Mixture. Raises ValueError naming what is not there."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    try:
      import seqio
    except ImportError as e:
      raise ValueError(f"seqio_task(...) needs seqio ({e}): pip install 'lmjax[seqio]'") from None
    if self.module is not None:
      try:
        importlib.import_module(self.module)
      except ImportError as e:
        raise ValueError(f'module={self.module!r} cannot be imported: {e}') from None
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    if self.task not in known:
      hint = '' if self.module else ', and module=... names no module that registers it'
      raise ValueError(
        f'task={self.task!r} is not registered with seqio{nearest(self.task, known)}{hint}'
      )
    task = seqio.get_mixture_or_task(self.task)
    if self.feature not in task.output_features:
      raise ValueError(
        f'feature={self.feature!r}: task {self.task} has {", ".join(task.output_features)}'
      )
    if self.split not in task.splits:
      raise ValueError(f'split={self.split!r}: task {self.task} has {", ".join(task.splits)}')
    return task

  @property
  def vocab_size(self) -> int:
    """Ids of the feature's vocabulary."""
    return int(self.open().output_features[self.feature].vocabulary.vocab_size)

  def fingerprint(self) -> str:
    """Of the task's name, the file of `module`, the vocabulary and the sizes and times of local
    input files.

    Running the task would say more and take as long as training on it. After an edit that none of
    these shows (in a module that `module` imports, say), empty the token cache.
    """
    task = self.open()
    digest = hashlib.sha256(repr((self.task, self.split, self.feature)).encode())
    if self.module is not None:
      digest.update(pathlib.Path(importlib.import_module(self.module).__file__).read_bytes())
    vocabulary = task.output_features[self.feature].vocabulary
    model = getattr(vocabulary, 'sp_model', b'')
    digest.update(repr((type(vocabulary).__name__, self.vocab_size)).encode() + (model or b''))
    for part in getattr(task, 'tasks', [task]):
      for shard in part.source.list_shards(self.split):
        file = pathlib.Path(str(shard))
        found = (file.stat().st_size, file.stat().st_mtime_ns) if file.is_file() else ()
        digest.update(repr((file.name, found)).encode())
    return digest.hexdigest()

  def __iter__(self):
    task = self.open()
    data = task.get_dataset(sequence_length=None, split=self.split, shuffle=False)
    for n, example in enumerate(data.as_numpy_iterator()):
      ids = np.asarray(example[self.feature])
      if ids.ndim != 1 or ids.dtype.kind not in 'ui':
        raise ValueError(
          f'task {self.task}, example {n}: {self.feature} is {ids.dtype} of shape {ids.shape}; a '
          'row of ids '
          'is expected'
        )
      yield ids

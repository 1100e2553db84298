"""What self-guided training, or structure, was for is over: the guide goes, or the factors become
the full matrix that they stand for.

  here structured_ffn(guided=0), of the same kind, rank and blocks:  down, up as they were
  here dense():    kernel = a W + (1 - a) (product of the factors),  a = 0 without a guide

For runs that begin from one with `config.model.linear='structured_ffn(...)'`. The first needs a = 0
(the guided share of the old run's steps is over): the function is the same, without the guide's
parameters. The second is the same function at any a, for inference by one product, or to train full
matrices further. The optimizer begins anew. Wei et al., 2024 (arXiv:2406.16450).
"""

import dataclasses
from typing import Any

from lmjax.registry import register

GUIDANCE = ('guided', 'stochastic', 'steps', 'micro_batches')
MODEL = ('params', 'vars', 'backward')  # what belongs to the model and not to its objective


@register('surgery')
@dataclasses.dataclass(frozen=True)
class MergeStructured:
  """The factors alone, or their product."""

  run: str

  def __call__(self, old, new, rng) -> dict[str, Any]:
    del rng
    theirs, ours = old.model.scheme.linear, new.model.scheme.linear
    made = None
    if theirs.name == 'structured_ffn' and ours.name == 'dense':
      made = theirs.obj.merge(theirs, old.variables, old.facts['params'])
    elif theirs.name == ours.name == 'structured_ffn':
      if form(theirs) == form(ours) and not dict(ours.args)['guided']:
        made = theirs.obj.drop(theirs, old.variables)
    if made is None:
      raise ValueError(
        f'merge_structured: config.model.linear={theirs} of {self.run} and {ours} here: '
        'structured_ffn(...) there, and here dense() or the same with guided=0, are expected'
      )
    return {**new.variables, **{k: made[k] for k in MODEL if k in made}}


def form(part) -> dict[str, Any]:
  """Its arguments, but for those of its guidance."""
  return {k: v for k, v in part.args if k not in GUIDANCE}

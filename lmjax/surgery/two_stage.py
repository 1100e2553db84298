"""The second of two stages of `electra`: the model begins as a copy of the generator, which it is
then to learn from.

  generator <- the old generator;  model <- the old generator too;  the model's own head is new

Both runs have a generator as large as the model, electra(generator=1, ...); this one has
share="none", so that the generator, its embeddings with it, can be kept as it is while the model
learns: see `electra` for the optimizer. The old run has share="none" or share="embed"; its weight=0
trains the generator alone. Clark et al., 2020 (arXiv:2003.10555), section 3.2; there the model did
not learn at all in some runs that did not begin as a copy.
"""

import dataclasses
from typing import Any

from lmjax.registry import register

ENTRANCE = ('embed', 'position', 'embed_norm')


@register('surgery')
@dataclasses.dataclass(frozen=True)
class TwoStage:
  """The old generator, twice."""

  run: str

  def __call__(self, old, new, rng) -> dict[str, Any]:
    del rng
    theirs, ours = old.variables['params'], new.variables['params']
    if not ('generator' in theirs and 'head' in theirs and 'generator_in' in ours):
      raise ValueError(
        f'two_stage: config.objective={old.config["objective"]} of {self.run} and '
        f'{new.config["objective"]} here: electra(generator=1, share="none", weight=0) there and '
        'electra(generator=1, share="none") here are expected'
      )
    leads = theirs.get('project', {'in': {'kernel': None}})['in']
    if set(leads) != {'kernel'}:
      raise ValueError(
        f'two_stage: config.objective={old.config["objective"]} of {self.run} has a projection of '
        'the generator that the model has not; generator=1, and config.model.linear=dense() where '
        'config.model.embed is narrower than the model, are expected'
      )
    return {name: staged(old.variables.get(name, {}), own) for name, own in new.variables.items()}


def staged(old: dict, new: dict) -> dict:
  """One collection of the new run, with what there is of it in the old one."""
  entrance = old.get('generator_in') or {k: old[k] for k in ENTRANCE if k in old}
  embed = {k: v for k, v in entrance.get('embed', {}).items() if k != 'project'}
  entrance = {**entrance, 'embed': embed}
  copies = {**entrance, 'generator_in': entrance, 'discriminator': old.get('generator', {})}
  if 'project' in old:  # of a table narrower than the model, which is part of the model's embedding
    copies['embed'] = {**embed, 'project': old['project']['in']['kernel']}
  copies |= {k: old[k] for k in ('generator', 'head', 'project') if k in old}
  return {k: copies.get(k, own) for k, own in new.items()}

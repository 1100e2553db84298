"""What the variants of `electra` refuse, and what they cost."""

import dataclasses

from lmjax import kinds
from lmjax.objectives import _electra

ENTRANCE = ('embed', 'position', 'embed_norm')


def check(generator, weight, *, detect, share, predict, adversarial):
  """Raises ValueError for arguments that contradict each other."""
  if share == 'all' and generator != 1:
    raise ValueError(
      f'share={share!r}, generator={generator}: one set of layers has one width, generator=1 is '
      'expected'
    )
  if share == 'none' and not generator:
    raise ValueError(f'share={share!r}, generator={generator}: there is no generator to part from')
  if predict is not None and detect != 'all':
    raise ValueError(
      f'predict={predict!r}, detect={detect!r}: where tokens are predicted none is detected; one '
      'of the two is expected'
    )
  if adversarial and (not generator or predict is not None or not weight):
    raise ValueError(
      f'adversarial=True, generator={generator}, predict={predict!r}, weight={weight}: a generator '
      'is rewarded for misleading the detection; one, predict=None and a positive weight are '
      'expected'
    )


def check_model(model, leads: bool):
  """Raises kinds.Unsupported for a model whose positions or norm cannot be shared."""
  if _electra.size(model) is None or not leads:
    return
  if model.position.fact('added') or model.embed_norm is not None:
    key, part = (
      ('position', model.position) if model.embed_norm is None else ('embed_norm', model.embed_norm)
    )
    raise kinds.Unsupported(
      f'objective electra: config.model.{key}={part} acts behind the projection of '
      f'config.model.embed={model.embed}, which each network has for itself; in front of it is '
      'expected, as in factorized(position=learned(), norm=layer_norm())'
    )


def check_backward(variables, pair):
  """Raises kinds.Unsupported where both networks would use a state of backward passes, which knows
  one use.
  """
  shared = set() if pair.narrow is None or pair.share == 'none' else set(ENTRANCE)
  shared |= {'discriminator'} if pair.share == 'all' else set()
  shared |= {'embed'} if _electra.size(pair.model) is not None else set()
  for name in sorted(shared & set(variables.get('backward', {}))):
    raise kinds.Unsupported(
      f'objective electra: {name} is used more than once a step, and config.model gives it a state '
      'of backward passes, which knows one use; a norm without one is expected'
    )


def passes(pair, steps: int, places: float) -> list[kinds.Pass]:
  """The stacks and heads of both networks; `places`: how many of a row's tokens are replaced.

  A head reads the table in the table's own size, whatever the facts of the table say of logits.
  """
  m, tied = pair.model, pair.share == 'all'
  bare = dataclasses.replace(m, segments=())
  one = (_electra.size(m) or m.width) / m.width
  reads = {None: 0.0, 'places': places, 'all': 1.0}[pair.predict]
  part = lambda share, *keys: kinds.Pass(keys, bare, share, steps)
  shared = places if pair.narrow is not None and pair.share != 'none' else 0.0
  found = [
    kinds.Pass(('discriminator',), m, 2.0 if tied else 1.0, steps),
    part(one * (reads + shared), 'embed', 'table'),
    part(2.0 if tied else 1.0, 'embed', 'project'),
    part(reads, 'reader'),
    part(places, 'head'),
    part(places, 'critic'),
    part(one * places, 'generator_in', 'embed', 'table'),
  ]
  if pair.narrow is not None and not tied:
    found.append(kinds.Pass(('generator',), pair.small, 1.0, steps))
  return found

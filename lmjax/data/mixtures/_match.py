"""Sources of two runs matched by what they read: of two files read by one part the names are only
places in the sum, so that a name alone could give one file the other's weight.
"""

from typing import Mapping, Sequence

from lmjax import specs


def sources(train: str) -> dict[str, str]:
  """{name: spec} of a resolved `config.data.train`."""
  return {name: str(call) for name, (_, call) in specs.weighted(train).items()}


def unweighted(part: str, names: Sequence[str], weights: Sequence[float | None]) -> None:
  """Raises ValueError where the config writes weights that the mixture would not use."""
  written = [n for n, w in zip(names, weights, strict=True) if w is not None]
  if written:
    raise ValueError(
      f'{part}() finds the weights itself, but source {written[0]} has one; remove it, or use '
      'static()'
    )


def several(part: str, names: Sequence[str]) -> None:
  """Raises ValueError where there is nothing to mix."""
  if len(names) < 2:
    raise ValueError(
      f'{part}() weighs sources against each other, and config.data.train has only {names[0]}; at '
      'least two are expected, as in text(path="a") + text(path="b")'
    )


def matched(where: str, ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
  """Their name of each of our sources. Raises ValueError, which begins with `where`, for a source
  that they do not have.
  """
  out = []
  for name, spec in ours.items():
    same = [n for n, s in theirs.items() if s == spec]
    if not same:
      have = ', '.join(f'{n}={s}' for n, s in theirs.items())
      raise ValueError(
        f'{where}: it knows nothing of the source {name}={spec}; it has {specs.cut(have, 300)}'
      )
    out.append(name if name in same else same[0])
  if len(set(out)) < len(out):
    raise ValueError(f'{where}: a source stands twice in config.data.train ({", ".join(ours)})')
  return out

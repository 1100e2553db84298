"""Marks in a user's text for ids that no text yields: modes `[R]` at the front, and sentinels
`<extra_id_0>` anywhere, as T5 writes them (Raffel et al., 2020, arXiv:1910.10683).
"""

import re
from typing import Any, Mapping, Sequence

MODE, SENTINEL = re.compile(r'\[[A-Z]\]'), re.compile(r'(<extra_id_\d+>)')


def encode(tokenizer: Any, text: str, names: Mapping[str, int], where: str) -> list[int]:
  """The ids of a text whose marks are in `names`. Raises ValueError for a sentinel that is not; a
  mode that is not is text.
  """
  out = []
  mode = MODE.match(text)
  if mode and mode[0] in names:
    out.append(names[mode[0]])
    text = text[mode.end() :].removeprefix(' ')
  for piece in SENTINEL.split(text):
    if SENTINEL.fullmatch(piece):
      if piece not in names:
        have = [n for n in names if SENTINEL.fullmatch(n)]
        raise ValueError(
          f'{where}: no row has {piece}; there are '
          + (f'{have[0]} to {have[-1]}' if have else 'no sentinels')
        )
      out.append(names[piece])
    elif piece:
      out += [int(i) for i in tokenizer.encode(piece)]
  return out


def decode(tokenizer: Any, ids: Sequence[int], names: Mapping[str, int]) -> str:
  """The text of ids, with the marks of `names`."""
  marks, out, run = {i: n for n, i in names.items()}, [], []
  for i in [*map(int, ids), None]:
    if i is not None and i not in marks:
      run.append(i)
      continue
    out += [tokenizer.decode(run) if run else '', marks.get(i, '')]
    run = []
  return ''.join(out)

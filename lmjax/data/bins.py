"""Pieces of different sizes in rows of one size."""

import numpy as np


def best_fit(sizes, room: int) -> tuple[np.ndarray, int]:
  """Each piece, in the order given, goes into the row with the least room that still holds it, or
  into a new one: (row of each piece, number of rows). Sizes are 1 ... room.

  Room is a whole number below the row's size, so rows are kept by room and the set of rooms in use
  is one integer's bits: a piece costs a shift, not a search.
  """
  by_room: list[list[int]] = [[] for _ in range(room + 1)]
  used, count, rows = 0, 0, []
  for size in sizes.tolist():
    fits = used >> size
    if fits:
      found = size + (fits & -fits).bit_length() - 1  # the lowest bit: the least room that holds it
      row = by_room[found].pop()
      if not by_room[found]:
        used ^= 1 << found
    else:
      found, row, count = room, count, count + 1
    rows.append(row)
    left = found - size
    if left:
      by_room[left].append(row)
      used |= 1 << left
  return np.array(rows, np.int64), count

"""A random permutation of 0 ... n-1 in constant memory: a keyed Feistel network with cycle walking.

With b = max(2, ceil(log2 n)) bits split into halves (L, R) of b // 2 and b - b // 2 bits, a round
is
  (L, R) -> (R, L xor (F(R + k_r) mod 2^|L|)),
which is invertible whatever F is; F is the finaliser of SplitMix64. A result of n or more is fed in
again until it falls below n (cycle walking: at most two passes are expected, since
2^b < 2 n for n > 2), which keeps the map a bijection of 0 ... n-1. Affine maps (a i + c mod n) are
bijective as well, but leave neighbours correlated.

Source: Luby and Rackoff, 1988 (four rounds suffice for a pseudo-random permutation with ideal F;
eight are used since the halves of small domains are short); Black and Rogaway, 2002 (cycle
walking); Steele et al., 2014 (SplitMix64).
"""

import hashlib
import json

import numpy as np

ROUNDS = 8  # even, so that the halves end with the widths they began with
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def key(*words: int | str) -> int:
  """A 64-bit key from whole numbers and strings, e.g. key(seed, 'rows', epoch); the same on every
  machine.
  """
  text = json.dumps([w if isinstance(w, str) else int(w) for w in words])
  return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), 'little')


def mix(x):
  """The SplitMix64 finaliser on uint64 arrays: a bijection in which each input bit flips about half
  of the output.
  """
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def uniform(key: int, n: int) -> np.ndarray:
  """n float64 in [0, 1) from a key (SplitMix64): unlike NumPy's generators the same under every
  version.
  """
  with np.errstate(over='ignore'):
    x = mix(np.uint64(key & _MASK) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GOLDEN))
  return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Permutation:
  """A bijection of range(n) chosen by a key: `permutation[i]` for a whole number or an array of
  them.
  """

  def __init__(self, n: int, key: int):
    """Args: n: size, at least 1. key: 64 bits, from `key(...)`. Raises ValueError on n < 1."""
    if n < 1:
      raise ValueError(f'a permutation of n={n} things: at least 1 is expected')
    self.n = int(n)
    bits = max(2, (self.n - 1).bit_length())
    self._widths = bits // 2, bits - bits // 2
    steps = np.array([(key + (r + 1) * _GOLDEN) & _MASK for r in range(ROUNDS)], np.uint64)
    self._keys = mix(steps)

  def __len__(self) -> int:
    return self.n

  def __getitem__(self, i):
    """The image of i: int for a whole number, int64 array for an array. Raises IndexError outside 0
    ... n-1.
    """
    x = np.atleast_1d(np.asarray(i))
    if x.size and (x.min() < 0 or x.max() >= self.n):
      raise IndexError(f'index {i!r} is outside 0 ... {self.n - 1}')
    x = self._pass(x.astype(np.uint64))
    out = np.flatnonzero(x >= self.n)
    while out.size:
      again = self._pass(x.flat[out])
      x.flat[out] = again
      out = out[again >= self.n]
    x = x.astype(np.int64)
    return int(x[0]) if np.ndim(i) == 0 else x

  def _pass(self, x):
    left_bits, right_bits = self._widths
    left, right = x >> np.uint64(right_bits), x & np.uint64((1 << right_bits) - 1)
    for k in self._keys:
      left, right = right, left ^ (mix(right + k) & np.uint64((1 << left_bits) - 1))
      left_bits, right_bits = right_bits, left_bits
    return (left << np.uint64(right_bits)) | right

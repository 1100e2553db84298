"""Small stores for the data tests."""

import numpy as np

from lmjax.data import store


def documents(lengths, first: int = 0) -> store.TokenStore:
  """Documents whose ids are all different, so that a lost or invented token shows."""
  ids = first + np.arange(int(np.sum(lengths)), dtype=np.uint32)
  offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
  return store.TokenStore(
    ids, offsets, fingerprint=store.fingerprint_of(ids, offsets), name='made up'
  )


def lengths(seed: int, count: int, mean: float = 12.0, empty: bool = True) -> np.ndarray:
  """Log-normal lengths, some zero, one huge."""
  rng = np.random.default_rng(seed)
  out = np.ceil(rng.lognormal(np.log(mean), 0.9, count)).astype(np.int64)
  if empty:
    out[rng.integers(0, count, max(1, count // 10))] = 0
  out[rng.integers(count)] = int(mean * 20)
  return out

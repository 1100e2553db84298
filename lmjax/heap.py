"""Keeps freed memory in the process where the CPU computes.

XLA:CPU allocates a program's scratch memory anew for each call. glibc takes such blocks from
the kernel, page by page and zeroed, and gives them back at the end: about a quarter of the CPU time
of a small training step. One arena, no mmap and no trimming let the next call reuse them.
"""

import ctypes
import os

ARENA_MAX, MMAP_MAX, TRIM_THRESHOLD = -8, -4, -1  # malloc.h


def keep() -> bool:
  """Call before jax is imported, where the CPU computes. Does nothing, and returns False, where the
  user has set MALLOC_ variables, or the C library is not glibc.
  """
  if any(k.startswith('MALLOC_') for k in os.environ):
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError, TypeError):
    return False
  return all([mallopt(ARENA_MAX, 1), mallopt(MMAP_MAX, 0), mallopt(TRIM_THRESHOLD, -1)])

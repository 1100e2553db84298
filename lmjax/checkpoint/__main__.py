"""python -m lmjax.checkpoint: see tool.py."""

import sys

import jax

from lmjax.checkpoint import tool

if __name__ == '__main__':
  jax.config.update('jax_platforms', 'cpu')  # an accelerator is not taken from a run that trains
  sys.exit(tool.main())

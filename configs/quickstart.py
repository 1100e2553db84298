"""A small GPT on the bundled tiny Shakespeare, byte by byte.

command: python -m lmjax.main --config=quickstart --workdir=/tmp/quickstart
expect: not measured yet
time: about five minutes on two CPU cores
"""

from lmjax.config import default


def get_config():
  c = default()
  c.steps = 1000
  c.batch_tokens = 4096
  c.peak_lr = 2e-3
  c.data.length = 128
  c.model.width = 128
  c.model.depth = 4
  c.model.unroll = 4
  return c

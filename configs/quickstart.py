"""A small GPT on the bundled tiny Shakespeare, byte by byte.

command: python -m lmjax.main --config=quickstart --workdir=runs/quickstart
expect: validation loss 1.58 nats a byte (2.29 bits) after 3.7M tokens, seed 0; nanoGPT's CPU recipe
  for the same text (its README) gives 1.88
time: about five minutes on two CPU cores
"""

from lmjax.config import default


def get_config():
  c = default()
  c.steps = 1800
  c.batch_tokens = 2048
  c.peak_lr = 3e-3
  c.optim = 'clip(norm=1.0) | adam(b2=0.99) | decay(rate=0.1)'
  c.schedule = 'cosine(warmup=0.05, end=0.1)'
  c.data.length = 128
  c.model.width = 128
  c.model.depth = 4
  c.model.unroll = 4
  c.eval.every = 600
  c.checkpoint_every = 600
  c.sample.every = 600
  return c

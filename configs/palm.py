"""PaLM: attention and feed-forward side by side behind one norm, one head of keys and values,
SwiGLU of four times the width, rotary positions, a shared table with scaled logits, no biases.

command: python -m lmjax.main --config=palm:tiny --workdir=DIR
  python -m lmjax.main --config=palm:540B@v4:8x16x16 --plan
sizes: tiny (0.8M), 8B, 62B, 540B, as in Chowdhery et al., 2022 (arXiv:2204.02311, table 1)
slices: settings for the slices in SLICES, as SIZE@SLICE; they are planned, not run. The source had
  two slices v4:12x16x16 and cut tensors in 12, over which 256,000 words do not divide
recipe: rows of 2,048 tokens, 255k steps for 540B, the rate constant for 10,000 steps and then as
  1/sqrt(step), clip 1, z-loss 1e-4, no dropout (section 5). Batches grow there: 540B has 512, 1,024
  and 2,048 rows, from steps 50k and 115k on; here they have the last size from the start. The
  source's optimizer is Adafactor with factors of the parameters' scale (rate 1e-2) and decay of the
  rate squared; here it is AdamW at the rates of SIZES, which nobody tuned
expect: not measured
time: `tiny`: minutes on a laptop; the others want accelerators
"""

import dataclasses

from lmjax import slices
from lmjax.config import default


@dataclasses.dataclass(frozen=True)
class Size:
  """One published shape."""

  width: int
  depth: int
  heads: int
  head_dim: int
  rows: int
  steps: int
  lr: float


SIZES = {
  'tiny': Size(128, 3, 4, 32, 32, 500, 3e-3),
  '8B': Size(4096, 32, 16, 256, 512, 255_000, 3e-4),
  '62B': Size(8192, 64, 32, 256, 1024, 255_000, 1.5e-4),
  '540B': Size(18432, 118, 48, 256, 2048, 255_000, 1e-4),
}
SLICES = {
  '8B': {'v4:4x4x8': slices.Settings(dict(data=128), 'full')},
  '62B': {'v4:8x8x8': slices.Settings(dict(data=512), 'full', 2)},
  '540B': {'v4:8x16x16': slices.Settings(dict(data=256, tensor=8), 'full', 8)},
}


def get_config(size='tiny'):
  size, settings = slices.split(size, SIZES, SLICES)
  s, c = SIZES[size], default()
  m, block = c.model, c.model.blocks.block
  m.width, m.depth, c.peak_lr = s.width, s.depth, s.lr
  m.embed, m.init = 'tied()', 'palm()'
  m.position = 'rope()'
  m.final_norm = block.norm = 'layer_norm(bias=False)'
  block.residual = 'parallel()'
  block.mixer = f'gqa(head_dim={s.head_dim}, heads={s.heads}, kv_heads=1)'
  block.ffn = 'swiglu(mult=4.0)'
  c.objective = 'clm(z_loss=0.0001)'
  c.data.bos, c.steps = True, s.steps
  if size == 'tiny':
    c.batch_tokens = s.rows * c.data.length
    return c
  m.vocab, m.dtype, m.remat = 256_000, 'bfloat16', 'full'
  c.data.length, c.batch_tokens, c.micro_batches = 2048, s.rows * 2048, 4
  c.schedule = 'inverse_sqrt(warmup=10000, ramp="flat")'
  c.mesh.data = -1
  c.checkpoint_every, c.eval.every, c.sample.every, c.eval.batches = 1000, 1000, 10_000, 8
  slices.apply(c, settings)
  return c

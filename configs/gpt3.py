"""GPT-3: GPT-2's layers, deeper and wider: learned positions, layer norm before each sublayer,
GELU, tied embedding, biases everywhere.

command: python -m lmjax.main --config=gpt3:tiny --workdir=DIR
  python -m lmjax.main --config=gpt3:175B@v5p:8x8x8 --plan
sizes: tiny (0.9M), 125M, 350M, 760M, 1.3B, 2.7B, 6.7B, 13B, 175B, as in Brown et al., 2020
  (arXiv:2005.14165, table 2.1). Where its widths are not those of its heads, heads have the width
  divided by their number: 1.3B has 16 heads of 128 (the table has 24), 13B is 5,120 wide (5,140)
slices: settings for the slices in SLICES, as SIZE@SLICE; they are planned, not run
recipe: rows of 2,048 tokens, 300B tokens, batches of table 2.1, which the source grows to over the
  first 4 to 12B tokens; AdamW (b2 0.95, decay 0.1, clip 1), warm-up over 375M tokens, cosine to a
  tenth (there over 260B tokens, then held; here over the run), documents not masked (appendix B).
  Every layer attends to all positions; in the source every other one to a band
  Up to 2.7B the products with the layers' matrices are kept, attention is made again (at 1.3B, 8
  rows at a time, 15 % fewer FLOPs and 12 GiB more than with all made again, by --plan); beyond none
expect: not measured
time: `tiny`: minutes on a laptop; the others want accelerators
"""

import dataclasses

from lmjax import slices
from lmjax.config import default


@dataclasses.dataclass(frozen=True)
class Size:
  """One row of table 2.1; `batch` in tokens."""

  width: int
  depth: int
  head_dim: int
  batch: int
  lr: float


HALF, ONE, TWO = 524_288, 1_048_576, 2_097_152
SIZES = {
  'tiny': Size(128, 4, 32, 2048, 3e-3),
  '125M': Size(768, 12, 64, HALF, 6e-4),
  '350M': Size(1024, 24, 64, HALF, 3e-4),
  '760M': Size(1536, 24, 96, HALF, 2.5e-4),
  '1.3B': Size(2048, 24, 128, ONE, 2e-4),
  '2.7B': Size(2560, 32, 80, ONE, 1.6e-4),
  '6.7B': Size(4096, 32, 128, TWO, 1.2e-4),
  '13B': Size(5120, 40, 128, TWO, 1e-4),
  '175B': Size(12288, 96, 128, 3_145_728, 0.6e-4),
}
TOKENS, WARMUP = 300_000_000_000, 375_000_000
SLICES = {
  '13B': {'v5e:16x16': slices.Settings(dict(data=256), 'full')},
  '175B': {
    'v5p:8x8x8': slices.Settings(dict(data=512), 'full'),
    'v6e:16x16': slices.Settings(dict(data=128, sequence=2), 'full', 12, 'optimizer'),
    '3*v6e:16x16': slices.Settings(dict(replica=3, data=128, sequence=2), 'full', 4, 'optimizer'),
  },
}


def get_config(size='tiny'):
  size, settings = slices.split(size, SIZES, SLICES)
  s, c = SIZES[size], default()
  m, block = c.model, c.model.blocks.block
  m.width, m.depth, c.peak_lr, c.batch_tokens = s.width, s.depth, s.lr, s.batch
  m.position = 'learned()'
  m.final_norm = block.norm = 'layer_norm()'
  block.mixer = f'gqa(head_dim={s.head_dim}, bias=True)'
  block.ffn = 'gelu(bias=True)'
  c.data.mask_documents = False
  if size == 'tiny':
    return c
  m.vocab, m.dtype = 50_257, 'bfloat16'
  m.remat = 'names(qkv, mixer_out, ffn_up)' if s.width <= 2560 else 'full'
  c.data.length, c.micro_batches = 2048, 4
  c.steps = TOKENS // s.batch
  c.schedule = f'cosine(warmup={WARMUP // s.batch}, end=0.1)'
  c.mesh.data = -1
  c.checkpoint_every, c.eval.every, c.sample.every, c.eval.batches = 1000, 1000, 10_000, 8
  slices.apply(c, settings)
  return c

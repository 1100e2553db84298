"""Llama: rotary positions, RMS norm before each sublayer, SwiGLU, grouped keys and values, no
biases.

command: python -m lmjax.main --config=llama:tiny --workdir=DIR
  python -m lmjax.main --config=llama:70B@v5p:8x8x8 --plan
sizes: tiny (1M), 15M (the shape of stories15M), 160M, 1B (Llama 3.2), 7B (Llama 2), 8B, 70B and
  405B (Llama 3, as pre-trained at 8,192 tokens)
slices: settings for the slices in SLICES, as SIZE@SLICE; they are planned, not run
recipe: AdamW (b2 0.95, decay 0.1, clip 1), cosine to a tenth after 2000 steps of warm-up (Touvron
  et al., 2023, arXiv:2302.13971, arXiv:2307.09288). Llama 3: 8000 steps of warm-up, 1.2M steps,
  cosine to a hundredth (Llama Team, 2024, arXiv:2407.21783, section 3.4 and table 3); 405B began
  with batches of 4M tokens, then had 8M and, for most of its training, the 16M given here. Nothing
  is said there of batches of 8B and 70B
  `1B` keeps products with the layers' matrices, larger ones none (`config.model.remat`)
expect: `tiny`: validation loss 1.784 ± 0.007 nats a byte on the bundled corpus after 500 steps
  (2.0M tokens), seed 0; the others are not measured here
time: `tiny`: three and a half minutes on two CPU cores that other programs used too; the others
  want accelerators
"""

import dataclasses

from lmjax import slices
from lmjax.config import default


@dataclasses.dataclass(frozen=True)
class Size:
  """One published shape; `hidden` is that of SwiGLU."""

  width: int
  depth: int
  heads: int
  kv_heads: int
  hidden: int
  length: int
  lr: float
  tied: bool = False
  vocab: int = 32_000
  rope: str = 'rope()'
  batch: int = 4_194_304
  llama3: bool = False


LLAMA3 = 'rope(base=500000.0, scaling="llama3", factor={}, original=8192)'
SIZES = {
  'tiny': Size(128, 4, 4, 2, 352, 128, 2e-3, tied=True),
  '15M': Size(288, 6, 6, 6, 768, 256, 5e-4, tied=True),
  '160M': Size(768, 12, 12, 12, 2048, 1024, 6e-4),
  '1B': Size(2048, 16, 32, 8, 8192, 8192, 3e-4, tied=True, vocab=128_256, rope=LLAMA3.format(32.0)),
  '7B': Size(4096, 32, 32, 32, 11008, 4096, 3e-4),
}
HERD = dict(vocab=128_256, rope='rope(base=500000.0)', llama3=True)
SIZES |= {
  '8B': Size(4096, 32, 32, 8, 14336, 8192, 3e-4, **HERD),
  '70B': Size(8192, 80, 64, 8, 28672, 8192, 1.5e-4, **HERD),
  '405B': Size(16384, 126, 128, 8, 53248, 8192, 8e-5, **HERD, batch=16_777_216),
}
SLICES = {
  '8B': {
    'v5e:16x16': slices.Settings(dict(data=256), 'full', 2),
    'v5p:4x4x4': slices.Settings(dict(data=64), 'full', 4),
    'v6e:8x8': slices.Settings(dict(data=64), 'full', 8),
    'h100:8x4': slices.Settings(dict(data=32), 'names(qkv)', 4),
  },
  '70B': {
    'v5e:16x16': slices.Settings(dict(data=16, sequence=4, tensor=4), 'full', 32),
    'v5p:8x8x8': slices.Settings(dict(data=512), 'names(qkv)'),
    'v6e:16x16': slices.Settings(dict(data=32, sequence=4, tensor=2), 'full', 16),
    'h100:8x32': slices.Settings(dict(data=256), 'full'),
  },
  '405B': {
    'v5p:8x16x16': slices.Settings(dict(data=512, tensor=4), 'full', 4),
    'v5p:16x16x16': slices.Settings(dict(data=1024, tensor=4), 'full', 2),
    'h100:8x512': slices.Settings(dict(data=1024, sequence=4), 'full'),
  },
}


def get_config(size='tiny'):
  size, settings = slices.split(size, SIZES, SLICES)
  s, c = SIZES[size], default()
  m, block = c.model, c.model.blocks.block
  m.width, m.depth, c.data.length, c.peak_lr = s.width, s.depth, s.length, s.lr
  m.embed = 'tied()' if s.tied else 'untied()'
  m.position = s.rope
  m.final_norm = block.norm = 'rms_norm(eps=1e-05)'
  block.mixer = f'gqa(head_dim={s.width // s.heads}, kv_heads={s.kv_heads})'
  block.ffn = f'swiglu(hidden={s.hidden})'
  c.data.bos = True
  if size == 'tiny':
    c.steps, c.batch_tokens = 500, 4096
    return c
  m.vocab = s.vocab
  m.dtype = 'bfloat16'
  m.remat = 'names(qkv, mixer_out, ffn_up)' if s.width <= 2048 else 'full'
  c.batch_tokens = s.batch if s.depth > 12 else 524_288
  c.micro_batches = 4
  c.steps, c.schedule = 100_000, 'cosine(warmup=2000, end=0.1)'
  if s.llama3:
    c.steps, c.schedule = 1_200_000, 'cosine(warmup=8000, end=0.01)'
  c.mesh.data = -1
  c.checkpoint_every, c.eval.every, c.sample.every, c.eval.batches = 1000, 1000, 10_000, 8
  slices.apply(c, settings)
  return c

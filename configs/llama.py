"""Llama: rotary positions, RMS norm before each sublayer, SwiGLU, grouped keys and values, no
biases.

command: python -m lmjax.main --config=llama:tiny --workdir=DIR
sizes: tiny (1M), 15M (the shape of stories15M), 160M, 1B (Llama 3.2), 7B (Llama 2), 8B (Llama 3.1)
recipe: AdamW (b2 0.95, decay 0.1, clip 1), cosine to a tenth after 2000 steps of warm-up (Touvron
  et al., 2023, arXiv:2302.13971, arXiv:2307.09288; Llama Team, 2024, arXiv:2407.21783)
expect: `tiny`: validation loss 1.784 ± 0.007 nats a byte on the bundled corpus after 500 steps
  (2.0M tokens), seed 0; the others are not measured here
time: `tiny`: three and a half minutes on two CPU cores that other programs used too; the others
  want accelerators
"""

import dataclasses

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


LLAMA3 = 'rope(base=500000.0, scaling="llama3", factor={}, original=8192)'
SIZES = {
  'tiny': Size(128, 4, 4, 2, 352, 128, 2e-3, tied=True),
  '15M': Size(288, 6, 6, 6, 768, 256, 5e-4, tied=True),
  '160M': Size(768, 12, 12, 12, 2048, 1024, 6e-4),
  '1B': Size(2048, 16, 32, 8, 8192, 8192, 3e-4, tied=True, vocab=128_256, rope=LLAMA3.format(32.0)),
  '7B': Size(4096, 32, 32, 32, 11008, 4096, 3e-4),
  '8B': Size(4096, 32, 32, 8, 14336, 8192, 3e-4, vocab=128_256, rope=LLAMA3.format(8.0)),
}


def get_config(size='tiny'):
  if size not in SIZES:
    raise KeyError(f'llama:{size}: no such size; there are {", ".join(SIZES)}')
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
  m.dtype, m.remat = 'bfloat16', 'full'
  c.batch_tokens = 4_194_304 if s.depth > 12 else 524_288
  c.micro_batches = 4
  c.steps, c.schedule = 100_000, 'cosine(warmup=2000, end=0.1)'
  c.mesh.data = -1
  c.checkpoint_every, c.eval.every, c.sample.every, c.eval.batches = 1000, 1000, 10_000, 8
  return c

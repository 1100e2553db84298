"""GPT-2: learned positions, layer norm before each sublayer, GELU, tied embedding, biases
everywhere.

command: python -m lmjax.main --config=gpt2 --workdir=DIR --config.data.train='tokens(path="T")'
  --config.data.tokenizer='bpe(path="GPT2")' --config.data.valid=''
sizes: tiny (0.9M), 124M, 350M, 774M, 1558M, as in Radford et al., 2019; `tiny` runs on a laptop
  with the bundled corpus
recipe: nanoGPT's for OpenWebText: batches of about 0.5M tokens, 1024 a row, AdamW 6e-4 (b2 0.95,
  decay 0.1, clip 1), 600k steps, cosine to a tenth
expect: `tiny`: validation loss 1.843 ± 0.007 nats a byte on the bundled corpus after 1000 steps
  (2.0M tokens), seed 0. 124M: about 2.85 nats a token on OpenWebText (nanoGPT's README); not
  measured here
time: `tiny`: four minutes on two CPU cores that other programs used too. 124M: days on 8 GPUs
"""

from lmjax import slices
from lmjax.config import default

SIZES = {  # width, depth, head size, peak learning rate (GPT-3's table 2.1 for the larger ones)
  'tiny': (128, 4, 32, 3e-3),
  '124M': (768, 12, 64, 6e-4),
  '350M': (1024, 24, 64, 3e-4),
  '774M': (1280, 36, 64, 2.5e-4),
  '1558M': (1600, 48, 64, 2e-4),
}


def get_config(size='124M'):
  size, _ = slices.split(size, SIZES)
  c = default()
  m, block = c.model, c.model.blocks.block
  m.width, m.depth, head_dim, c.peak_lr = SIZES[size]
  m.embed = 'tied(multiple_of=128)'
  m.position = 'learned()'
  m.final_norm = 'layer_norm()'
  block.mixer = f'gqa(head_dim={head_dim}, bias=True)'
  block.ffn = 'gelu(bias=True)'
  block.norm = 'layer_norm()'
  c.optim = 'clip(norm=1.0) | adam(b2=0.95) | decay(rate=0.1)'
  if size == 'tiny':
    c.steps, c.batch_tokens = 1000, 2048
    return c
  m.vocab = 50_257
  m.dtype, m.remat = 'bfloat16', 'names(mixer_out, ffn_out)'
  c.data.length, c.batch_tokens, c.micro_batches = 1024, 491_520, 8
  c.steps, c.schedule = 600_000, 'cosine(warmup=2000, end=0.1)'
  c.data.mask_documents = False  # GPT-2 attends across documents
  c.mesh.data = -1
  c.checkpoint_every, c.eval.every, c.sample.every, c.eval.batches = 2000, 2000, 10_000, 20
  return c

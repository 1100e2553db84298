"""A small mixture of denoisers on the bundled corpus, for three kinds of models: decoders that see
a prefix both ways (the default), plain decoders, and encoder-decoders.

command: python -m lmjax.main --config=ul2_tiny:encoder_decoder --workdir=/tmp/ul2
  (or ul2_tiny:prefix, ul2_tiny:causal)
recipe: the seven tasks of UL2 (Tay et al., 2022) on rows of 128 bytes, modes and sentinels behind
  the 260 ids of bytes; T5's layout in small, with rotary positions
expect: not measured yet
time: not measured yet
"""

from lmjax.config import block
from lmjax.config import default


def get_config(form: str = 'prefix'):
  c = default()
  m = c.model
  m.width, m.depth = 128, 4
  c.data.tokenizer = 'extended(extra=40)'
  c.data.transforms = f'ul2(form="{form}")'
  c.data.mask_documents = False
  c.optim = 'clip(norm=1.0) | adam(b2=0.99) | decay(rate=0.1)'
  c.schedule = 'linear(warmup=0.1)'
  c.peak_lr, c.steps, c.batch_tokens = 2e-3, 2000, 2048
  c.data.length = 128
  if form == 'encoder_decoder':
    with m.unlocked():
      del m.blocks.block
      m.blocks.encoder, m.blocks.decoder = block(), block()
    m.blocks.encoder.mixer = 'gqa(head_dim=32, causal=False)'
    m.blocks.decoder.residual = 'pre_cross(cross=cross_attention(head_dim=32))'
    m.architecture = 'encoder_decoder(encoder="encoder*2")'
    m.stack = 'decoder*2'
  return c

"""A small BERT: sees both sides, hides 15 % of the bytes and predicts them; the bundled corpus.

command: python -m lmjax.main --config=bert_tiny --workdir=/tmp/bert
recipe: BERT's layer (norm after each sublayer, GELU, learned positions, norm on the embedding)
  in small; masking as in Devlin et al., 2018. Rows of 32: with 128 the model had not learnt by
  step 1000 which position is next to which, and stayed at the loss of bytes without context, 3.0
expect: validation loss 1.533 ± 0.012 nats a hidden byte after 2000 steps (4.1M tokens), seed 0;
  2.02 after 1000
time: five minutes on two CPU cores that other programs used too
"""

from lmjax.config import default


def get_config():
  c = default()
  m, block = c.model, c.model.blocks.block
  m.width, m.depth = 128, 4
  m.embed = 'tied(bias=True)'
  m.position = 'learned()'
  m.embed_norm, m.final_norm = 'layer_norm()', ''
  block.mixer = 'gqa(head_dim=32, causal=False, bias=True)'
  block.ffn = 'gelu(bias=True, approximate=False)'
  block.norm = 'layer_norm()'
  block.residual = 'post()'
  c.objective = 'mlm()'
  c.optim = 'clip(norm=1.0) | adam(b2=0.98) | decay(rate=0.01)'
  c.schedule = 'linear(warmup=0.1)'
  c.peak_lr, c.steps, c.batch_tokens = 2e-3, 2000, 2048
  c.data.length = 32
  return c

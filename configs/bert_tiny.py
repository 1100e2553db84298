"""A small BERT: sees both sides, hides 15 % of the bytes and predicts them; the bundled corpus.

command: python -m lmjax.main --config=bert_tiny --workdir=/tmp/bert
recipe: BERT's layer (norm after each sublayer, GELU, learned positions, norm on the embedding)
  in small; masking as in Devlin et al., 2018
expect: not measured yet
time: about three minutes on two CPU cores
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
  c.peak_lr, c.steps, c.batch_tokens = 1e-3, 500, 4096
  return c

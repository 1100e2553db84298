"""Embedding, a stack of layers, a final norm, and the unembedding: decoders and encoders alike.

  x = embed(tokens) (+ position); x = stack(x); hidden = final_norm(x)
  logits = cap(scale * hidden U^T + bias)

Whether it is causal is the mixers' affair. `model.embed_norm` norms the embedding (BERT),
`model.final_norm` the output (GPT-2, Llama).
"""

from typing import Any

import flax.linen as nn

from lmjax import kinds
from lmjax.nn import stack
from lmjax.nn.dropout import dropout
from lmjax.registry import register


@register('architecture')
class Transformer(nn.Module):
  """Embed, stack, norm."""

  model: Any

  @nn.compact
  def __call__(self, tokens_BT, ctx, cache=None):
    m = self.model
    ctx = ctx.replace(scheme=m.scheme)
    x, unembed, bias = m.embed(name='embed')(tokens_BT, ctx)
    x = m.position(name='position')(x, ctx)
    if m.embed_norm is not None:
      x = m.embed_norm(name='embed_norm')(x, ctx)
    x = dropout(self, x, m.dropout, ctx)
    x, cache, aux = stack.run(m, x, ctx, cache)
    if m.final_norm is not None:
      x = m.final_norm(name='final_norm')(x, ctx)
    return kinds.Outputs(x, unembed, bias, m.scheme.init.logit_scale(), m.cap, cache, aux)

  @nn.nowrap
  def init_cache(self, kind, batch, length):
    return stack.init_cache(self.model, kind, batch, length)

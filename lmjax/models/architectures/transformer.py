"""Embedding, a stack of layers, a final norm, and the unembedding: decoders and encoders alike.

  x = embed(tokens) (+ position); x = stack(x); hidden = final_norm(x)
  logits = cap(scale * hidden U^T + bias)

Whether it is causal is the mixers' affair. `model.embed_norm` norms the embedding (BERT),
`model.final_norm` the output (GPT-2, Llama).
"""

import flax.linen as nn

from lmjax.models.architectures import _single
from lmjax.registry import register


@register('architecture', cuts=('sequence', 'stage'))
class Transformer(_single.Single):
  """Embed, stack, norm."""

  @nn.compact
  def __call__(self, tokens_BT, ctx, cache=None):
    return self.outputs(tokens_BT, ctx, cache)

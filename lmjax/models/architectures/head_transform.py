"""A transformer whose output goes through a layer of its own before it meets the unembedding.

  x = stack(norm(embed(tokens) + position));  hidden = norm(gelu(final_norm(x) W + b))
  logits = cap(scale * hidden U^T + bias)

The head of masked language models: BERT (Devlin et al., 2018, arXiv:1810.04805; the layer is in its
code, not in the paper), RoBERTa, ModernBERT (2024, arXiv:2412.13663). `approximate=False` is the
exact GELU. Evals and objectives that read `hidden` get what the layer gives.
"""

from typing import Annotated

import flax.linen as nn

from lmjax.models.architectures import _single
from lmjax.nn import params
from lmjax.parallel import shard
from lmjax.registry import Part, register


@register('architecture', cuts=('sequence', 'stage'))
class HeadTransform(_single.Single):
  """Embed, stack, norm; dense, gelu, norm."""

  norm: Annotated[Part, 'norm'] = 'layer_norm()'
  bias: bool = True
  approximate: bool = False

  @nn.compact
  def __call__(self, tokens_BT, ctx, cache=None):
    return self.outputs(tokens_BT, ctx, cache, self._head)

  def _head(self, x, ctx):
    width = self.model.width
    dense = params.dense(ctx, 'head', dict(embed=width), dict(mlp=width), bias=self.bias)
    x = shard.shard(nn.gelu(dense(x), approximate=self.approximate), 'batch', 'time', 'width')
    return self.norm(name='head_norm')(x, ctx)

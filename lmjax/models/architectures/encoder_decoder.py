"""An encoder that reads the source, and a decoder that looks at what the encoder gives.

  memory = norm(encoder(embed(source)))
  hidden = norm(decoder(embed(tokens), memory));  logits = cap(scale * hidden U^T + bias)

`config.model.stack` is the decoder, whose layers look at the memory (residual `pre_cross`);
`encoder` is the other stack, in the same words, its blocks among `config.model.blocks`. Embedding
and positions are one for both, as in T5 (Raffel et al., 2020, arXiv:1910.10683); Vaswani et al.,
2017 (arXiv:1706.03762). The source comes with the batch (fields `encoder_*`); without one, only a
decoder that has been given a cache goes on.
"""

from typing import Any

import flax.linen as nn

from lmjax import kinds
from lmjax.nn import stack
from lmjax.nn.dropout import dropout
from lmjax.registry import register


class Stack(nn.Module):
  """A stack of layers under a name of its own."""

  model: Any

  @nn.compact
  def __call__(self, x, ctx, cache=None):
    return stack.run(self.model, x, ctx, cache)


@register('architecture', stacks=lambda args: {'encoder': args['encoder']}, encoders=('encoder',))
class EncoderDecoder(nn.Module):
  """Two stacks, the second with cross-attention to the first."""

  model: Any
  encoder: str

  @staticmethod
  def check(encoder):
    if not encoder.strip():
      raise ValueError("encoder='': a stack is expected, such as 'enc*4'")

  @nn.compact
  def __call__(self, tokens_BT, ctx, cache=None):
    m = self.model
    ctx = ctx.replace(scheme=m.scheme)
    embed, position = m.embed(name='embed'), m.position(name='position')

    def enter(tokens, ctx, norm_name):
      x, *unembedding = embed(tokens, ctx)
      x = position(x, ctx)
      if m.embed_norm is not None:
        x = m.embed_norm(name=norm_name)(x, ctx)
      return dropout(self, x, m.dropout, ctx), unembedding

    def leave(x, ctx, norm_name):
      return x if m.final_norm is None else m.final_norm(name=norm_name)(x, ctx)

    memory, reports = None, {}
    if ctx.source is not None:
      tokens, positions, segments = ctx.source
      own = ctx.replace(
        positions_BT=positions, segments_BT=segments, source=None, memory=None, prefix_BT=None
      )
      x, _ = enter(tokens, own, 'encoder_embed_norm')
      if 'embed' in self.variables.get('backward', {}):
        raise kinds.Unsupported(
          'architecture encoder_decoder embeds twice a step, and config.model.embed has a state of '
          'backward passes, which knows one use; an embedding without one is expected'
        )
      encoder = m.stack('encoder')
      x, _, aux = Stack(encoder, name='encoder')(x, own.replace(scheme=encoder.scheme))
      memory = kinds.Memory(leave(x, own, 'encoder_final_norm'), segments)
      reports = {k if k.startswith('loss/') else f'encoder/{k}': v for k, v in aux.items()}
    elif cache is None:
      raise kinds.Unsupported('architecture encoder_decoder reads a source, and none is given')
    ctx = ctx.replace(source=None, memory=memory)
    x, (unembed, bias) = enter(tokens_BT, ctx, 'embed_norm')
    x, cache, aux = Stack(m, name='decoder')(x, ctx, cache)
    for key, value in aux.items():
      reports[key] = reports[key] + value if key in reports else value
    x = leave(x, ctx, 'final_norm')
    return kinds.Outputs(x, unembed, bias, m.scheme.init.logit_scale(), m.cap, cache, reports)

  @nn.nowrap
  def passes(self, steps, source):
    encoder = self.model.stack('encoder')
    return [
      kinds.Pass(('encoder',), encoder, source / steps, source),
      kinds.Pass(('decoder',), self.model, 1.0, steps),
    ]

  @nn.nowrap
  def init_cache(self, kind, batch, length, memory: int | None = None):
    """Room for `length` tokens and a memory of `memory`, by default that of training."""
    return stack.init_cache(self.model, kind, batch, length, memory or self.model.length)

"""What architectures of one stack share: from tokens to what the final norm gives, and caches."""

from typing import Any

import flax.linen as nn

from lmjax import kinds
from lmjax.nn import stack
from lmjax.nn.dropout import dropout


class Single(nn.Module):
  """x = embed(tokens) (+ position), normed by `embed_norm`; hidden = final_norm(stack(x))."""

  model: Any

  def outputs(self, tokens_BT, ctx, cache, head=lambda x, ctx: x):
    """`kinds.Outputs` with hidden = head(final_norm(...), ctx)."""
    m = self.model
    ctx = ctx.replace(scheme=m.scheme, joined=m.joined and ctx.train)
    x, unembed, bias = m.embed(name='embed')(tokens_BT, ctx)
    x = m.position(name='position')(x, ctx)
    if m.embed_norm is not None:
      x = m.embed_norm(name='embed_norm')(x, ctx)
    x = dropout(self, x, m.dropout, ctx)
    x, cache, aux = stack.run(m, x, ctx, cache, within=self)
    if m.final_norm is not None:
      x = m.final_norm(name='final_norm')(x, ctx)
    scale = m.scheme.init.logit_scale()
    return kinds.Outputs(head(x, ctx), unembed, bias, scale, m.cap, cache, aux)

  @nn.nowrap
  def init_cache(self, kind, batch, length):
    return stack.init_cache(self.model, kind, batch, length)

  @nn.nowrap
  def unpack(self, cache, rows_B, marks_B, length):
    return stack.unpack(cache, rows_B, marks_B, length)

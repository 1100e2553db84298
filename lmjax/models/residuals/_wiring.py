"""What the residual parts share: the fields of a layer and running its two sublayers."""

from typing import Any

import flax.linen as nn

from lmjax.parallel import remat
from lmjax.parallel import shard


class Layer(nn.Module):
  """Base of the residual parts. `mixer`, `ffn` and `norm` are handles; `ffn` may be None."""

  mixer: Any
  ffn: Any
  norm: Any

  @staticmethod
  def check(dropout=0.0, **_):
    if not 0 <= dropout < 1:
      raise ValueError(f'dropout={dropout}: at least 0 and below 1 is expected')

  @nn.nowrap
  def enter(self, x_BTD):
    return x_BTD

  @nn.nowrap
  def leave(self, carry):
    return carry

  @nn.nowrap
  def init_cache(self, kind, batch, length, width, dtype, memory):
    del memory
    return self.mixer(parent=None).init_cache(kind, batch, length, width, dtype)

  @nn.nowrap
  def mixing_flops(self, width, length, memory):
    del memory
    return self.mixer(parent=None).mixing_flops(width, length)

  def mix(self, x_BTD, ctx, cache):
    y, cache, aux = self.mixer(name='mixer')(remat.tag(x_BTD, 'mixer_in'), ctx, cache)
    return remat.tag(y, 'mixer_out'), cache, {f'mixer/{k}': v for k, v in aux.items()}

  def feed(self, x_BTD, ctx):
    y, aux = self.ffn(name='ffn')(remat.tag(x_BTD, 'ffn_in'), ctx)
    return remat.tag(y, 'ffn_out'), {f'ffn/{k}': v for k, v in aux.items()}


def join(*reports):
  """Merges reports of sublayers; entries `loss/...` keep their prefix in front."""
  out = {}
  for report in reports:
    for key, value in report.items():
      part, _, rest = key.partition('/')
      out[f'loss/{part}/{rest[5:]}' if rest.startswith('loss/') else key] = value
  return out


def place(x_BTD):
  return shard.shard(x_BTD, 'batch', 'time', 'width')

"""The three ways a position may enter; a part overrides those it uses."""

import flax.linen as nn


class Position(nn.Module):
  """Adds nothing, rotates nothing, biases nothing."""

  def __call__(self, x_BTD, ctx):
    return x_BTD

  @nn.nowrap
  def rotate(self, x_BTHK, positions_BT):
    return x_BTHK

  @nn.nowrap
  def bias(self, heads, positions_BT, positions_BS):
    return None

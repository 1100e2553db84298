"""What an init part answers unless it says otherwise, and the initial values all of them share."""

import dataclasses

import jax

ZEROS = jax.nn.initializers.zeros
ONES = jax.nn.initializers.ones


@dataclasses.dataclass(frozen=True)
class Init:
  """Standard parameterization: every factor is 1, attention is scaled by 1/sqrt(head_dim)."""

  depth: int
  width: int

  def initializer(self, fact, shape):
    if fact.role == 'norm':
      return ONES
    if fact.role == 'bias':
      return ZEROS
    return jax.nn.initializers.normal(self.std(fact, shape))

  def std(self, fact, shape) -> float:
    raise NotImplementedError

  def lr(self, fact, shape) -> float:
    return 1.0

  def logit_scale(self) -> float:
    return 1.0

  def attention_scale(self, head_dim: int) -> float:
    return head_dim**-0.5


def positive(**values):
  for key, value in values.items():
    if value is not None and value <= 0:
      raise ValueError(f'{key}={value}: a positive number is expected')

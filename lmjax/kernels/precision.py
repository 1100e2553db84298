"""How exactly Pallas kernels multiply float32."""

import jax
import numpy as np


def exact(dtype) -> bool:
  """Whether operands of this dtype are multiplied in float32: Mosaic knows this and the default."""
  asked = jax.config.jax_default_matmul_precision
  return dtype == np.float32 and asked not in (None, 'default', 'fastest', 'bfloat16')

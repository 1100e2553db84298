"""Running the segments of a stack one by one: names, shapes of parameters and reports are those of
`nn.stack.run`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax import kinds
from lmjax.nn import stack
from lmjax.parallel import remat as remat_lib


def _module(model, remat: bool):
  on, policy = remat_lib.policy(model.remat)
  if not (on and remat):
    return stack.Group
  return nn.remat(stack.Group, policy=policy, prevent_cse=False)


def group(model, n: int, remat: bool):
  """The blocks of a shared segment, to be called as often as they run."""
  module = _module(model, remat)
  return module(model.segments[n].pattern, model, name=f'segment_{n}')


def refuse_backward(model, n: int, blocks):
  """State of backward passes has one use a step, and these blocks have several."""
  if 'backward' in blocks.variables:
    raise kinds.Unsupported(
      f'config.model.blocks: {", ".join(model.segments[n].pattern)} keeps a state of backward '
      'passes, which blocks that mixture_of_recursions repeats cannot have'
    )


def plain(model, n: int, carry, cache, offset: int, ctx):
  """A segment without routing: (carry, its caches, reports)."""
  s, each = model.segments[n], {'vars': 0, 'backward': 0}
  lifted = nn.scan(
    _module(model, cache is None),
    variable_axes=each if s.shared else {'params': 0, **each},
    variable_broadcast='params' if s.shared else False,
    split_rngs={'params': not s.shared, 'dropout': True},
    in_axes=(0, 0, nn.broadcast),
    length=s.repeats,
    unroll=min(model.unroll, s.repeats),
    metadata_params={nn.PARTITION_NAME: 'layers'},
  )
  depths = offset + jnp.arange(s.repeats) * len(s.pattern)
  carry, (out, report) = lifted(s.pattern, model, name=f'segment_{n}')(carry, cache, depths, ctx)
  return carry, out, list(report)


def combine(reports):
  """Reports, each entry of one layer or of several, as one: losses summed, metrics averaged."""
  return stack._combine([jax.tree.map(jnp.atleast_1d, r) for r in reports])

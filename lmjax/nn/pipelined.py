"""A segment of the stack whose layers lie apart over a pipeline (`parallel.pipeline`)."""

import flax.errors
import jax
import jax.numpy as jnp

from lmjax import kinds
from lmjax.parallel import facts
from lmjax.parallel import pipeline


def params(module, name: str):
  """The stacked parameters of a segment. Raises kinds.Unsupported where it has other variables:
  micro-batches pass through it at different times.
  """
  other = sorted(k for k, v in module.variables.items() if k != 'params' and name in v)
  if other:
    raise kinds.Unsupported(
      f'config.mesh.{pipeline.AXIS}: {name} has variables ({", ".join(other)}) that every '
      'micro-batch changes, which a pipeline cannot keep in order'
    )
  return module.variables['params'][name]


def segment(block, model, n: int, params, carry, offset: int, ctx):
  """The carry behind segment n. block: a round of it, unbound; offset: the depth of its first
  layer.
  """
  s = model.segments[n]

  def layers(params, carry, rows, first):
    own = ctx.replace(**rows)

    def one(carry, xs):
      params, i = xs
      depth = offset + (first + i) * len(s.pattern)
      try:
        carry, (_, reports) = block.apply({'params': params}, carry, None, depth, own)
      except flax.errors.InvalidRngError:
        raise kinds.Unsupported(
          f'config.mesh.{pipeline.AXIS}: layers draw random numbers (dropout), which a pipeline '
          'does not give them'
        ) from None
      found = sorted({k for report in reports for k in report})
      if found:
        raise kinds.Unsupported(
          f'config.mesh.{pipeline.AXIS}: layers report {found[0]}, which a pipeline does not carry'
        )
      return carry, None

    many = jax.tree.leaves(params)[0].shape[0]
    return jax.lax.scan(one, carry, (params, jnp.arange(many)), unroll=min(model.unroll, many))[0]

  how, stages = model.how, pipeline.stages()
  return pipeline.run(
    layers,
    params,
    carry,
    ctx.of_tokens(),
    groups=s.repeats,
    micro=how.micro or stages,
    rounds=how.rounds,
    remat=how.remat,
    names=_names(block, carry, offset, ctx) if how.gather == 'once' else None,
  )


def _names(block, carry, depth: int, ctx):
  """The axis names of the stacked parameters."""
  key = jax.random.key(0)
  made = lambda: block.init(dict(params=key, dropout=key), carry, None, depth, ctx)
  found = facts.facts(jax.eval_shape(made)['params'])
  return jax.tree.map(lambda fact: ('layers', *fact.names), found, is_leaf=facts.is_fact)

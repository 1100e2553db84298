"""What objectives share that learn weights of the sources (domains) in a proxy run.

Their memory is the collection `domains` of the variables, so that it moves with the updates that
are made and is in every checkpoint:
  alpha   float32 (m,), weights of sum 1
  mean    float32 (m,), their average over all updates, which is what a proxy run is for
  count   int32, updates made
It is of one run (fact `memory`): one that begins from another run's parameters averages its own
steps alone. The order is that of config.data.train.
"""

from typing import Any, Mapping, Sequence

import jax
import jax.numpy as jnp

from lmjax import kinds
from lmjax.mixing import sums as sums

OWN = 'domains'


def check_inner(inner) -> None:
  """Raises ValueError where rows of the inner objective do not stand alone."""
  if inner.fact('couples') != 'none':
    raise ValueError(
      f'inner={inner}: an objective whose rows stand alone is expected, such as clm() or mlm()'
    )


def check_sources(objective: str, sources: Sequence[str]) -> None:
  """Raises Unsupported where there is nothing to weigh."""
  if len(sources) < 2:
    raise kinds.Unsupported(
      f'objective {objective} weighs the sources of config.data.train against each other, which '
      f'has {", ".join(sources) or "none"}; at least two are expected, as in text(path="a") + '
      'text(path="b")'
    )


def first(alpha_M) -> dict[str, jax.Array]:
  return dict(alpha=alpha_M, mean=jnp.zeros_like(alpha_M), count=jnp.zeros((), jnp.int32))


def moved(memory: Mapping[str, Any], alpha_M) -> dict[str, Any]:
  """The memory a step later. A running mean, since a sum would lose digits over a long run."""
  count = memory['count'] + 1
  mean_M = memory['mean'] + (alpha_M - memory['mean']) / count.astype(jnp.float32)
  return {**memory, 'alpha': alpha_M, 'mean': mean_M, 'count': count}


def ratio(x, weight):
  """x / weight, 0 where nothing was weighed."""
  return jnp.where(weight > 0, x / jnp.where(weight > 0, weight, 1.0), 0.0)


def reports(names: Sequence[str], **by) -> dict[str, tuple[jax.Array, jax.Array]]:
  """Metrics `<what>/<source>` of vectors (m,)."""
  one = jnp.ones(())
  return {f'{k}/{n}': (v_M[i], one) for k, v_M in by.items() for i, n in enumerate(names)}


def others(vars: Mapping[str, Any], *own: str) -> dict[str, Any]:
  """The collections that are the inner objective's."""
  return {k: v for k, v in vars.items() if k not in own}

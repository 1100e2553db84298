"""Matrix methods on a mesh: the partitioner lays out the arithmetic, facts place the results."""

import jax
from jax.sharding import PartitionSpec as P

from lmjax.parallel import shard


def as_parameter(x, fact):
  """x, of a parameter's shape, where the parameter lies."""
  return shard.shard(x, *fact.names)


def everywhere(x):
  """x, whole on every device."""
  if shard.mesh().empty:
    return x
  place = jax.sharding.reshard if shard.is_explicit() else jax.lax.with_sharding_constraint
  return place(x, P())


def call(f, args, out):
  """f(*args), on an explicit mesh run as on an auto one.

  Sums over sharded axes, merged axes and decompositions have no sharding of their own to state;
  `out(*specs of args)` says how the results lie.
  """
  if not shard.is_explicit():
    return f(*args)
  specs = [jax.tree.map(lambda x: jax.typeof(x).sharding.spec, a) for a in args]
  return shard.automatic(f, out(*specs))(*args)


def automatic(update):
  """The Optax update of an update(updates, state, params), run by `call`: updates and state lie as
  they did. The extra arguments are dropped.
  """

  def run(updates, state, params=None, **extra):
    return call(update, (updates, state, params), lambda updates, state, params: (updates, state))

  return run

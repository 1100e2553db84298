"""Meshes of eight simulated devices, and a loss with its gradient on them."""

import math

import jax
from jax.sharding import NamedSharding
import numpy as np
import pytest

from lmjax.parallel import mesh as mesh_lib
from lmjax.parallel import shard


def settings(mode: str = 'auto', **sizes) -> dict:
  """`config.mesh` with these sizes, 1 for all other axes."""
  return dict.fromkeys(mesh_lib.AXES, 1) | sizes | {'mode': mode}


def make(mode: str = 'auto', **sizes):
  return mesh_lib.make(settings(mode, **sizes))


MESHES = {
  'auto': settings(data=4, tensor=2),
  'explicit': settings('explicit', replica=2, data=2, tensor=2),
}
each = pytest.mark.parametrize(
  'axes',
  [pytest.param(MESHES['auto'], marks=pytest.mark.slow), MESHES['explicit']],
  ids=['auto', 'explicit'],
)


def slope(run, params, vars, rows, axes=None):
  """((loss, variables after it), gradient) of a batch, as NumPy arrays; on a mesh with everything
  placed as in training.
  """

  def found(params, rows):
    def f(p):
      loss = run.objective.loss(p, vars, rows, jax.random.key(1))
      return loss.sum, loss.vars

    return jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(f, has_aux=True))(params))

  if axes is None:
    return found(params, jax.tree.map(jax.numpy.asarray, rows))
  made = mesh_lib.make(axes, jax.devices()[: math.prod(axes[a] for a in mesh_lib.AXES)])
  with jax.set_mesh(made):
    params = jax.device_put(params, run.shardings().params)
    return found(params, jax.device_put(rows, NamedSharding(made, shard.spec(('batch', None)))))

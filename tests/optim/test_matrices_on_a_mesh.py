"""Parts that view parameters as matrices, where heads are sharded axes that the view merges."""

import jax
from jax.sharding import AxisType, NamedSharding
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import registry
from lmjax.parallel import shard
from lmjax.parallel.facts import Fact

FACTS = dict(
  q=Fact(('layers', 'embed', 'heads', 'head_dim'), ('embed',)),
  out=Fact(('layers', 'heads', 'head_dim', 'embed'), ('heads', 'head_dim'), 'residual'),
)
SHAPES = dict(q=(2, 8, 4, 6), out=(2, 4, 6, 8))
SPECS = (
  'galore(inner=eight_bit(inner=adam() | decay(), min_size=1, block=8), rank=2, gap=2)',
  'fira(rank=2, gap=2)',
  'apollo(rank=2, gap=2)',
  'soap(every=2)',
  'schedule_free(inner=eight_bit(min_size=1))',
)


def run(spec, place):
  """Updates of three steps as arrays, and the last where it lies."""
  rng = np.random.default_rng(0)
  draw = lambda: {k: place(k, rng.standard_normal(s).astype(np.float32)) for k, s in SHAPES.items()}
  tx = registry.make('optim', spec, facts=FACTS)()
  params, step = draw(), jax.jit(tx.update)
  state, out = jax.jit(tx.init)(params), []
  for _ in range(3):
    u, state = step(draw(), state, params)
    out.append({k: np.asarray(x) for k, x in u.items()})
  return out, u


@pytest.mark.parametrize(
  'spec', [*SPECS[:2], *(pytest.param(s, marks=pytest.mark.slow) for s in SPECS[2:])]
)
def test_sharded_equals_unsharded(spec):
  want, _ = run(spec, lambda k, x: jnp.asarray(x))
  for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((2, 2), ('data', 'tensor'), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
      to = {k: NamedSharding(mesh, shard.spec(f.names)) for k, f in FACTS.items()}
      got, last = run(spec, lambda k, x, to=to: jax.device_put(x, to[k]))
    for a, b in zip(got, want):
      for k in a:
        np.testing.assert_allclose(
          a[k], b[k], atol=2e-4 * np.abs(b[k]).max(), err_msg=f'{kind} {k}'
        )
    for k, x in last.items():
      assert x.sharding.is_equivalent_to(to[k], x.ndim)

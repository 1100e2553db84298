import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import config
from lmjax.parallel import mesh as mesh_lib
from lmjax.planning import chips
from lmjax.planning import hlo
from lmjax.planning import links
from lmjax.planning import roofline
from lmjax.planning import topologies
from lmjax.planning import traffic


def mesh(topology: str, **sizes):
  where = topologies.parse(topology)
  settings = config.default().mesh.to_dict() | sizes
  return mesh_lib.make(settings, where.places()), where


@pytest.mark.parametrize(
  'topology, sizes, axes, network, ring',
  [
    ('v5e-256', dict(data=256), ('data',), 'ICI', 4 * 50e9),  # both directions of the torus
    ('v5e-256', dict(data=16, tensor=16), ('tensor',), 'ICI', 2 * 50e9),
    ('v5e-256', dict(data=16, tensor=16), ('data', 'tensor'), 'ICI', 4 * 50e9),
    ('v5e-16', dict(data=4, tensor=4), ('tensor',), 'ICI', 50e9),  # no ring: 4 of a line
    ('v5p:4x4x4', dict(data=64), ('data',), 'ICI', 6 * 100e9),
    ('2*v5e-16', dict(replica=2, data=16), ('replica',), 'DCN', 3.125e9),
    ('2*v5e-16', dict(replica=2, data=16), ('data',), 'ICI', 2 * 50e9),
    ('h100:8x2', dict(data=2, tensor=8), ('tensor',), 'NVLink', 450e9),
    ('h100:8x2', dict(data=2, tensor=8), ('data',), 'network', 50e9),
    ('h100:8x2', dict(data=16), ('data',), 'network', 400e9),  # eight cards a host
  ],
)
def test_links(topology, sizes, axes, network, ring):
  laid, where = mesh(topology, **sizes)
  link = links.of(laid, axes, where)
  assert (link.network, link.ring) == (network, pytest.approx(ring))


def test_rings_that_share_links_share_their_bandwidth():
  laid, where = mesh('v5e-256', data=64, tensor=4)
  total = sum(links.of(laid, (a,), where).ring for a in ('data', 'tensor'))
  assert total <= 4 * 50e9


def test_permutes_use_one_direction_and_all_to_alls_cross_the_middle():
  laid, where = mesh('v5e-256', data=16, tensor=16)
  link = links.of(laid, ('tensor',), where)
  assert link.seconds('all-gather', 1e9) == pytest.approx(1e9 / 100e9)
  assert link.seconds('collective-permute', 1e9) == pytest.approx(1e9 / 50e9)
  assert link.seconds('all-to-all', 1e9) == pytest.approx(4 * 1e9 / 100e9)


def test_times():
  t = roofline.Times(
    2.0, 1.0, 2.5, {('ICI', 'data'): 1.0, ('ICI', 'tensor'): 0.5, ('DCN', 'replica'): 2.25}
  )
  assert t.networks == {'ICI': 1.5, 'DCN': 2.25}
  assert (t.interconnect, t.bound) == (2.25, 'DCN')
  assert (t.optimistic, t.pessimistic) == (2.25, 6.75)
  assert t.step == pytest.approx(2.5 + 2.25 - 1.25)


def test_interconnect_adds_up_collectives_by_axis():
  laid, where = mesh('v5e-16', data=4, tensor=4)
  one = lambda kind, axes, wire, count: traffic.Collective(kind, axes, 4, 'bf16', count, 0, wire)
  found = roofline.interconnect(
    [
      one('all-gather', ('data',), 1e9, 3),
      one('all-reduce', ('tensor',), 2e9, 1),
      one('collective-permute', (), 1e9, 5),  # to itself
      one('all-gather', None, 4e9, 1),  # groups that are no axes
    ],
    laid,
    where,
  )
  assert found[('ICI', 'data')] == pytest.approx(3e9 / 50e9 / 0.8)
  assert found[('ICI', 'tensor')] == pytest.approx(2e9 / 50e9 / 0.8)
  assert found[('ICI', '?')] == pytest.approx(4e9 / 100e9 / 0.8)
  assert len(found) == 3


def test_work_counts_each_operation_by_what_bounds_it():
  """A loop of three large products and one large sum."""

  def fn(w, x):
    y, _ = jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=3)
    return y, jnp.sum(jnp.sin(x))

  n, chip = 256, chips.CHIPS['v5e']
  x = jax.ShapeDtypeStruct((n, n), np.float32)
  program = hlo.parse(jax.jit(fn).lower(x, x).compile().as_text())
  product = max(2 * n**3 / (0.9 * 197e12), 3 * 4 * n * n / (0.9 * 819e9))
  least, most = 3 * product, 3 * product + 8 * 4 * n * n / (0.9 * 819e9)
  assert least <= roofline.work_seconds(program, chip) <= 1.5 * most

"""Collectives of compiled programs against counts by hand: kinds, axes, bytes."""

import json
import pathlib
import types

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np
import pytest

from lmjax.planning import groups
from lmjax.planning import hlo
from lmjax.planning import traffic

FILES = pathlib.Path(__file__).parent / 'hlo'  # see test_hlo.py
AXES = {'data': 4, 'tensor': 2}
GRID = (AXES, np.arange(8))
eight = pytest.mark.skipif(
  jax.device_count() < 8, reason='eight devices are needed; on the CPU conftest.py simulates them'
)


def stored(name: str, mesh=GRID) -> list[traffic.Collective]:
  return traffic.collectives(hlo.parse((FILES / f'{name}.txt').read_text()), mesh)


def manual(f, mesh, shape, before, after) -> list[traffic.Collective]:
  """Collectives of f over float32 shards on a mesh."""
  x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, before))
  f = jax.shard_map(f, mesh=mesh, in_specs=before, out_specs=after, check_vma=False)
  return traffic.collectives(hlo.parse(jax.jit(f).lower(x).compile().as_text()), mesh)


def facts(c: traffic.Collective):
  return c.kind, c.axes, c.size, c.dtype, c.count, c.payload, c.wire


def mesh(order=tuple(range(8))) -> Mesh:
  return Mesh(np.array(jax.devices()[:8])[list(order)].reshape(4, 2), tuple(AXES))


# ---- groups


@pytest.mark.parametrize(
  'text, want',
  [
    ('{{0,2},{1,3}}', [[0, 2], [1, 3]]),
    ('{}', [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ('', [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ('[4,2]<=[8]', [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ('[2,4]<=[4,2]T(1,0)', [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ('[4,2]<=[2,2,2]T(1,0,2)', [[0, 1], [4, 5], [2, 3], [6, 7]]),
    ("mesh['a'=4,'b'=2] {'a'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ("mesh['a'=4,'b'=2] {'a','b'}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ("mesh['a'=4,'b'=2] {'a':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ("mesh['a'=4,'b'=2] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
    (
      "mesh['a'=1,'b'=2,'c'=4], device_ids=([4,2]T(1,0)) {'c'}",
      [[0, 2, 4, 6], [1, 3, 5, 7]],
    ),
    ("mesh['a'=2,'b'=2], device_ids=([[0, 3], [1, 2]]) {'b'}", [[0, 3], [1, 2]]),
  ],
)
def test_forms_of_groups(text, want):
  line = f', channel_id=1, replica_groups={text}, use_global_device_ids=true, to_apply=%f'
  i = hlo.Instruction('x', 'all-reduce', 'f32[]', '%a', line, False)
  assert groups.written(i) == text
  assert groups.read(text, 8).tolist() == want


def test_groups_that_are_not_understood():
  assert groups.read('{{0,1},{2}}', 3) is None
  with pytest.raises(ValueError, match=r'replica_groups=\[8\]: this form is not known'):
    groups.read('[8]', 8)


@pytest.mark.parametrize(
  'members, axes',
  [
    ([[0, 2, 4, 6], [1, 3, 5, 7]], ('data',)),
    ([[7, 6], [0, 1], [3, 2], [5, 4]], ('tensor',)),
    ([[0, 1, 2, 3, 4, 5, 6, 7]], ('data', 'tensor')),
    ([[0], [1]], ()),
    ([[0, 2], [1, 3], [4, 6], [5, 7]], None),  # half of an axis
    ([[0, 3, 4, 7], [1, 2, 5, 6]], None),  # neither axis
    ([[6, 8]], None),  # no such device
  ],
)
def test_axes_of_groups(members, axes):
  assert groups.grid(GRID, 8).axes(np.array(members)) == axes


def test_a_mesh_that_is_not_the_programs_is_refused():
  with pytest.raises(ValueError, match='cut over 8 devices, the mesh .* has 4'):
    stored('tpu_ring', ({'data': 4}, np.arange(4)))
  with pytest.raises(ValueError, match='cut over 8 devices'):
    stored('tpu_ring', None)


# ---- programs of the simulated devices


@eight
def test_by_hand():
  """Shards of 8 x 16 float32: 512 bytes a device."""
  both, data = P(('data', 'tensor')), P('data')
  sum_of = lambda axes: lambda x: jax.lax.psum(x, axes)
  one = lambda *args: [facts(c) for c in manual(*args)]
  m, shape = mesh(), (64, 16)
  assert one(sum_of(('data', 'tensor')), m, shape, both, P()) == [
    ('all-reduce', ('data', 'tensor'), 8, 'f32', 1, 512, 2 * 7 / 8 * 512)
  ]
  assert one(sum_of('tensor'), m, shape, both, data) == [
    ('all-reduce', ('tensor',), 2, 'f32', 1, 512, 512)
  ]
  gather = lambda x: jax.lax.all_gather(x, 'data', tiled=True)
  assert one(gather, m, shape, both, P('tensor')) == [
    ('all-gather', ('data',), 4, 'f32', 1, 4 * 512, 3 * 512)
  ]
  scatter = lambda x: jax.lax.psum_scatter(x, 'data', tiled=True)
  assert one(scatter, m, shape, both, both) == [
    ('reduce-scatter', ('data',), 4, 'f32', 1, 512, 3 / 4 * 512)
  ]
  switch = lambda x: jax.lax.all_to_all(x, 'data', 0, 1, tiled=True)
  assert one(switch, m, shape, both, both) == [
    ('all-to-all', ('data',), 4, 'f32', 1, 512, 3 / 4 * 512)
  ]


@eight
@pytest.mark.parametrize('order', [range(8), (3, 1, 4, 0, 5, 7, 2, 6)])
def test_a_ring_in_a_scan(order):
  """Also on a mesh that lists its devices in another order than theirs."""

  def ring(x):
    step = lambda c, _: (
      jnp.sin(jax.lax.ppermute(c, 'data', [(i, (i + 1) % 4) for i in range(4)])),
      0,
    )
    return jax.lax.scan(step, x, None, length=7)[0]

  (c,) = manual(ring, mesh(order), (64, 16), P(('data', 'tensor')), P(('data', 'tensor')))
  assert facts(c) == ('collective-permute', ('data',), 4, 'f32', 7, 512, 512)
  assert c.total == 7 * 512 and 'ppermute' in c.op_name


@eight
def test_a_matrix_cut_by_zero3_is_gathered_for_its_product():
  m = mesh()
  cut = lambda shape, s: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(m, s))
  place = lambda x, s: jax.lax.with_sharding_constraint(x, NamedSharding(m, s))
  f = lambda x, w: place(x @ place(w, P(None, 'tensor')), P('data', 'tensor'))
  args = cut((64, 32), P('data')), cut((32, 48), P('data', 'tensor'))
  found = traffic.collectives(hlo.parse(jax.jit(f).lower(*args).compile().as_text()), m)
  whole = 32 * 48 // 2 * 4  # bytes, of one half of the columns
  assert [facts(c) for c in found] == [('all-gather', ('data',), 4, 'f32', 1, whole, 3 / 4 * whole)]


# ---- programs of accelerators


def test_a_ring_of_a_tpu():
  (c,) = stored('tpu_ring')
  assert facts(c) == ('collective-permute', ('data',), 4, 'bf16', 7, 4096, 4096)


def test_a_tpu_sums_and_cuts_in_a_fusion():
  (c,) = stored('tpu_reduce_scatter')
  whole = 1024 * 768 * 4
  assert facts(c) == ('reduce-scatter', ('data',), 4, 'f32', 1, whole, 3 / 4 * whole)


def test_a_collective_that_runs_beside_a_product_counts_once():
  """Two matrices are gathered, one of them through three fusions that all name it."""
  assert (FILES / 'tpu_zero3.txt').read_text().count(' all-gather(') == 4
  found = stored('tpu_zero3')
  whole = 1024 * 1024 * 2
  want = ('all-gather', ('data',), 4, 'bf16', 1, whole, 3 / 4 * whole)
  assert [facts(c) for c in found] == [want, want]


def slices(shape=(2, 2, 4), names=('pod', 'replica', 'data')):
  """A mesh of four slices of four chips, as libtpu numbers them."""
  devices = [
    types.SimpleNamespace(id=100_000 * (s + 1) + n, slice_index=s)
    for s in range(4)
    for n in range(4)
  ]
  devices = np.array(devices).reshape(shape)
  return types.SimpleNamespace(devices=devices, shape=dict(zip(names, shape)))


def test_traffic_between_slices():
  """A sum over replica and data: in the slice, across slices with a quarter each, and back; then
  one over pod and replica.
  """
  found = {(c.between_slices, facts(c)) for c in stored('tpu_slices', slices())}
  quarter, whole = 8 * 1024 * 4, 32 * 1024 * 2
  assert found == {
    (False, ('all-reduce', ('data',), 4, 'f32', 1, 4 * quarter, 6 * quarter)),
    (True, ('all-reduce', ('replica',), 2, 'f32', 1, quarter, quarter)),
    (False, ('all-gather', ('data',), 4, 'bf16', 1, whole, 3 / 4 * whole)),
    (True, ('all-reduce', ('pod', 'replica'), 4, 'bf16', 1, whole, 1.5 * whole)),
  }


def test_pairs_of_start_and_done():
  (c,) = stored('gpu_all_to_all')
  assert facts(c) == ('all-to-all', ('data',), 4, 'bf16', 1, 262_144, 196_608)
  (c,) = stored('gpu_ragged')
  assert facts(c) == ('ragged-all-to-all', ('data',), 4, 'bf16', 1, 4096, 3072)


def test_combined_and_wrapped_ones():
  found = {c.name: facts(c) for c in stored('combined')}
  two = 2 * 512 * 512 * 2
  assert found == {
    'reduce-scatter-start': ('reduce-scatter', ('data',), 4, 'bf16', 1, two, 3 / 4 * two),
    'all-reduce': ('all-reduce', None, 2, 'bf16+f32', 1, two // 2 + 256, two // 2 + 256),
    'send': ('send', ('data',), 4, 'f32', 1, 256, 256),  # and nothing for what goes to the host
    'rs': ('reduce-scatter', ('data',), 4, 'f32', 1, 256, 192),
  }


def test_the_table_is_sorted_plain_values():
  found = stored('combined') + stored('tpu_zero3')
  table = traffic.table(found)
  assert table == traffic.table(reversed(found)) == json.loads(json.dumps(table))
  whole = 1024 * 1024 * 2
  gathered = dict(kind='all-gather', axes=['data'], dtype='bf16', count=2)
  assert table[0] == gathered | dict(payload=2 * whole, wire=2 * 3 * whole // 4)
  assert [(r['kind'], r['axes']) for r in table[1:]] == [
    ('all-reduce', None),
    ('reduce-scatter', ['data']),
    ('reduce-scatter', ['data']),
    ('send', ['data']),
  ]

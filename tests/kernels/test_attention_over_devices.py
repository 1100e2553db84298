"""Attention over rows that are cut over devices and folded equals attention over whole rows: values
and gradients, both ways for keys to come.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _meshes
from lmjax.kernels import attention as op
from lmjax.kernels.attention import blocks
from lmjax.kernels.attention import context
from lmjax.models.positions import alibi
from lmjax.parallel import folding

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason='eight devices are needed')
B, T, H, K = 2, 32, 4, 5


def inputs(groups, documents):
  rng = np.random.default_rng(0)
  q, k, v, w = (
    jnp.asarray(rng.normal(size=(B, T, n, K)), jnp.float32) for n in (H, groups, groups, H)
  )
  segments = np.ones((B, T), np.int32)
  if documents:  # one that ends within a chunk, a long one, padding
    segments[0, 5:] = 2
    segments[0, 27:] = 0
  positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))
  if documents:
    positions[0, 5:] -= 5
  return (q, k, v), w, positions, segments


def both(groups=2, documents=True, prefix=False, bias=False, by='ring', axes=None, **rule):
  """(y, gradients) of a weighted sum; on a mesh with folded rows."""
  arrays, w, positions, segments = inputs(groups, documents)
  rule = dict(causal=True, window=None, cap=None, aligned=not prefix) | rule
  keys = np.where((np.arange(T) < 7) & (segments == 1), 0, positions) if prefix else positions
  made = functools.partial(alibi.Alibi(parent=None).bias, H) if bias else None
  wide = lambda x, heads: folding.fold(x, 'batch', 'time', heads, None)
  flat = lambda x: folding.fold(jnp.asarray(x), 'batch', 'time')

  def total(arrays):
    where = (positions, keys, segments, segments)
    if axes is not None:
      arrays = map(wide, arrays, ('heads', 'kv_heads', 'kv_heads'))
      where = map(flat, where)
    q_pos, k_pos, q_seg, k_seg = where
    y = op.attention(
      *arrays,
      q_positions=q_pos,
      k_positions=k_pos,
      q_segments=q_seg,
      k_segments=k_seg,
      bias=made,
      folded=by if axes is not None else '',
      implementation=None if axes is not None else 'reference',
      **rule,
    )
    y = y if axes is None else folding.unfold(y, 'batch', 'time', 'heads', None)
    return jnp.sum(y * w), y

  run = jax.jit(jax.grad(total, has_aux=True))
  if axes is None:
    grads, y = run(arrays)
  else:
    with jax.set_mesh(_meshes.make(**axes)):
      grads, y = run(arrays)
  return np.asarray(y), *map(np.asarray, grads)


CASES = {
  'causal': dict(documents=False),
  'documents': {},
  'window': dict(window=6),
  'cap, one head of keys': dict(cap=2.0, groups=1),
  'both ways': dict(causal=False),
  'a prefix': dict(prefix=True),
  'a bias': dict(bias=True, groups=4),
}
FEW = ('documents', 'a prefix')


@pytest.mark.parametrize('by', ['ring', 'all_gather'])
@pytest.mark.parametrize(
  'case', [pytest.param(c, marks=() if c in FEW else pytest.mark.slow) for c in CASES]
)
def test_as_on_whole_rows(case, by):
  want = both(**CASES[case])
  got = both(**CASES[case], by=by, axes=dict(sequence=4, tensor=2))
  for name, a, b in zip(('y', 'dq', 'dk', 'dv'), got, want, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize('axes', [dict(sequence=8), dict(data=2, sequence=2, tensor=2)], ids=str)
@pytest.mark.parametrize('by', ['ring', 'all_gather'])
def test_other_numbers_of_devices(axes, by):
  for a, b in zip(both(by=by, axes=axes), both(), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_half_of_the_pairs_are_left_out_of_causal_rows():
  rule = blocks.Rule(True, None, None, 1.0, True)
  how = context.How(rule, 'ring', None)
  assert how.halves == 2 and len(how.pairs(None)) == 3 and len(how.pairs(jnp.array(True))) == 2
  n, seen = 4, set()
  for i in range(n):  # every allowed pair of chunks is met once, by the device of the query
    home = (i, 2 * n - 1 - i)
    for j in range(n):
      theirs = (j, 2 * n - 1 - j)
      before = None if i == j else jnp.array(j < i)
      for a, b in how.pairs(before):
        pair = home[int(a)], theirs[int(b)]
        assert pair not in seen
        seen.add(pair)
  assert seen == {(q, k) for q in range(2 * n) for k in range(q + 1)}
  assert context.How(rule._replace(causal=False), 'ring', None).halves == 1


def test_an_implementation_by_name_is_refused():
  arrays, _, positions, _ = inputs(2, False)
  with pytest.raises(ValueError, match="attention='reference' knows no rows that are cut"):
    op.attention(
      *arrays,
      q_positions=positions,
      k_positions=positions,
      folded='ring',
      implementation='reference',
    )

"""Parameter facts: axes, fans, the matrix view, and how the box lives through Linen's lifted
transforms.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax.parallel import facts
from lmjax.parallel.facts import Box, Fact

HEADS = Fact(('embed', 'heads', 'head_dim'), ('embed',), 'hidden')
OUT = Fact(('heads', 'head_dim', 'embed'), ('heads', 'head_dim'), 'residual')
STACKED = Fact(('layers', 'expert', 'mlp', 'embed'), ('mlp',), 'hidden')


def test_axes_and_fans():
  assert HEADS.axes() == ([], [0], [1, 2]) and HEADS.fans((32, 4, 8)) == (32, 32)
  assert OUT.axes() == ([], [0, 1], [2]) and OUT.fans((4, 8, 16)) == (32, 16)
  assert STACKED.axes() == ([0, 1], [2], [3]) and STACKED.fans((7, 5, 6, 3)) == (6, 3)
  mixed_over_experts = Fact(('expert', 'embed'), ('expert',), 'hidden')
  assert mixed_over_experts.axes() == ([], [0], [1])


def test_what_counts_as_a_matrix():
  assert HEADS.is_matrix and OUT.is_matrix and STACKED.is_matrix
  for fact in (
    Fact((None,), (), 'norm'),
    Fact(('mlp',), (), 'bias'),
    Fact(('layers', 'mlp'), (), 'bias'),
    Fact(('embed',), ('embed',), 'hidden'),
  ):
    assert not fact.is_matrix, fact


def test_facts_that_contradict_themselves_are_refused():
  with pytest.raises(AssertionError):
    Fact(('embed',), ('mlp',), 'hidden')
  with pytest.raises(AssertionError):
    Fact(('embed',), (), 'weight')


@pytest.mark.parametrize(
  'fact, shape, matrix',
  [
    (HEADS, (6, 2, 3), (6, 6)),
    (OUT, (2, 3, 5), (6, 5)),
    (STACKED, (2, 3, 4, 5), (2, 3, 4, 5)),
    (Fact(('embed', 'layers', 'mlp'), ('embed',), 'hidden'), (3, 2, 4), (2, 3, 4)),
    (Fact(('mlp', 'layers', 'embed'), ('embed',), 'hidden'), (4, 2, 3), (2, 3, 4)),
    (Fact(('vocab', 'embed'), ('embed',), 'unembed'), (7, 3), (3, 7)),
  ],
)
def test_the_matrix_view_maps_inputs_to_outputs_and_comes_back(fact, shape, matrix):
  x = _table.normal(*shape)
  y, back = facts.as_matrix(x, fact)
  assert y.shape == matrix
  _table.same(back(y), x)
  stack, ins, outs = fact.axes()
  if not stack:  # contracting the view contracts the declared axes
    v = _table.normal(*(shape[i] for i in ins), seed=1)
    _table.close(
      v.reshape(-1) @ y, jnp.tensordot(v, x, (list(range(len(ins))), ins)).reshape(-1), 1e-5
    )


class Leaf(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    w = self.param(
      'w',
      facts.boxed(nn.initializers.normal(), Fact(('embed', 'mlp'), ('embed',))),
      (3, 3),
      jnp.float32,
    )
    return x @ w, None


def test_a_box_gets_the_axis_that_scan_adds_and_loses_it_inside():
  lifted = nn.scan(
    Leaf,
    variable_axes={'params': 0},
    split_rngs={'params': True},
    length=4,
    metadata_params={nn.PARTITION_NAME: 'layers'},
  )
  variables = lifted().init(jax.random.key(0), jnp.ones((2, 3)), None)
  box = variables['params']['w']
  assert facts.is_box(box) and box.value.shape == (4, 3, 3)
  assert box.fact == Fact(('layers', 'embed', 'mlp'), ('embed',))
  boxed = lifted().apply(variables, jnp.ones((2, 3)), None)[0]
  _table.same(boxed, lifted().apply(facts.unbox(variables), jnp.ones((2, 3)), None)[0])
  assert box.remove_axis(0, {}).fact == Fact(('embed', 'mlp'), ('embed',))


def test_boxes_are_pytrees_and_unboxing_undoes_them():
  tree = {'a': Box(jnp.ones(2), Fact(('mlp',), (), 'bias')), 'b': jnp.zeros((2, 3))}
  doubled = jax.jit(lambda t: jax.tree.map(lambda x: 2 * x, t))(tree)
  assert facts.is_box(doubled['a']) and doubled['a'].fact.role == 'bias'
  np.testing.assert_array_equal(facts.unbox(doubled)['a'], 2)
  assert facts.facts(tree) == {
    'a': Fact(('mlp',), (), 'bias'),
    'b': Fact((None, None), (), 'other'),
  }
  assert dataclasses.is_dataclass(facts.facts(tree)['a']) and hash(HEADS) == hash(
    dataclasses.replace(HEADS)
  )

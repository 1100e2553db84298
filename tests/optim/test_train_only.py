"""Which updates are left, and what is refused."""

import jax
import jax.numpy as jnp
import pytest

from lmjax import registry
from lmjax.parallel.facts import Fact

VECTOR = Fact((None,), (), 'norm')
FACTS = {'embed': {'table': VECTOR, 'unembed': VECTOR}, 'segment_0': {'norm': VECTOR}}


def left(names):
  tx = registry.make('optim', f'train_only(names="{names}")', facts=FACTS)()
  updates = jax.tree.map(lambda _: jnp.ones(2), FACTS, is_leaf=lambda x: isinstance(x, Fact))
  out, state = tx.update(updates, tx.init(updates), updates)
  assert not jax.tree.leaves(state)
  return sorted(
    '/'.join(k.key for k in path) for path, u in jax.tree_util.tree_leaves_with_path(out) if u.any()
  )


def test_the_named_ones_are_left():
  assert left('embed/unembed') == ['embed/unembed']
  assert left('embed/*') == ['embed/table', 'embed/unembed']
  assert left('embed/table, segment_0/norm') == ['embed/table', 'segment_0/norm']
  assert left('*') == ['embed/table', 'embed/unembed', 'segment_0/norm']


@pytest.mark.parametrize('names', ['embed', 'unembed', 'embed/table,', 'segment_1/*', ''])
def test_a_pattern_that_matches_nothing_is_refused(names):
  with pytest.raises(ValueError, match='no parameter matches .*embed/table'):
    left(names)

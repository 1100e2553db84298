"""A stack of recurrent layers and layers with a window: what it writes token by token is what the
whole row says, for ragged prompts, at a cost that does not grow.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax import generate
from lmjax import registry

HOW = dict(
  stack='delta + (local, delta)*2',
  length=64,
  position='none()',
  blocks__delta__mixer='deltanet(head_dim=8)',
  blocks__local__mixer='gqa(head_dim=8, window=4)',
)
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 1, 2, 3], [3, 3]]


@pytest.mark.parametrize('cache', [pytest.param('full()', marks=pytest.mark.slow), 'window()'])
def test_what_is_generated_is_the_argmax_of_the_whole_row(cache):
  net, variables = _table.model(**HOW), _table.model_params(**HOW)
  new = generate.generate(net, variables, PROMPTS, max_tokens=9, cache=cache)
  rows = [[*p, *map(int, n)] for p, n in zip(PROMPTS, new)]
  tokens, segments = np.zeros((4, 20), np.int32), np.zeros((4, 20), np.int32)
  for i, row in enumerate(rows):
    tokens[i, : len(row)], segments[i, : len(row)] = row, 1
  ctx = _table.ctx(4, 20, segments=segments)
  out = jax.jit(lambda t: net.apply(variables, t, ctx))(jnp.asarray(tokens))
  top = np.argmax(np.asarray(out.hidden_BTD @ out.unembed_VD.T), -1)
  for i, (p, row) in enumerate(zip(PROMPTS, rows)):
    assert row[len(p) :] == top[i, len(p) - 1 : len(row) - 1].tolist()


def test_the_cache_has_one_size_whatever_the_length():
  net, kind = _table.model(**HOW), registry.make('cache', 'window()')
  size = lambda n: [x.shape for x in jax.tree.leaves(net.init_cache(kind, 2, n))]
  assert size(100) == size(100_000)

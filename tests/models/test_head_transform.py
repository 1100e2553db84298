"""The layer in front of the unembedding: what `transformer` gives, through a matrix, GELU and a
norm, in float64.
"""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax.nn import embedding

T, B = _table.STEPS, _table.BATCH


@pytest.mark.parametrize('approximate', [False, True])
def test_hidden_is_that_of_the_transformer_through_the_layer(approximate):
  how = dict(architecture=f'head_transform(approximate={approximate})', embed='tied(bias=True)')
  tokens, ctx = _table.batch(np.ones((B, T), int))['tokens'], _table.ctx()
  net, variables = _table.model(**how), _table.model_params(**how)
  p = dict(variables['params'])
  head, norm = p.pop('head'), p.pop('head_norm')
  plain = _table.model(embed='tied(bias=True)').apply({'params': p}, tokens, ctx)
  x = np.asarray(plain.hidden_BTD, np.float64) @ np.float64(head['kernel']) + head['bias']
  if approximate:
    x = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
  else:
    x = 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
  want = x * norm['scale'] + norm['bias']
  out = net.apply(variables, tokens, ctx)
  _table.close(out.hidden_BTD, want)
  logits = np.einsum('btd,vd->btv', want, np.float64(p['embed']['table'])) + p['embed']['bias']
  _table.close(embedding.logits(out), logits)
  assert float(jnp.abs(p['embed']['bias']).max()) > 0

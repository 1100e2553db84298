"""What is decayed, and by how much."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmjax import registry
from lmjax.parallel.facts import Fact

CASES = {  # fact, shape, whether 'matrices' decays it
  'hidden': (Fact(('embed', 'heads', 'head_dim'), ('embed',)), (4, 2, 3), True),
  'residual': (
    Fact(('heads', 'head_dim', 'embed'), ('heads', 'head_dim'), 'residual'),
    (2, 3, 4),
    True,
  ),
  'layers': (Fact(('layers', 'embed', 'mlp'), ('embed',)), (3, 4, 5), True),
  'experts': (Fact(('layers', 'expert', 'embed', 'mlp'), ('embed',)), (3, 2, 4, 5), True),
  'embed': (Fact(('vocab', 'embed'), ('vocab',), 'embed'), (7, 4), True),
  'unembed': (Fact(('vocab', 'embed'), ('embed',), 'unembed'), (7, 4), True),
  'position': (Fact(('position', 'embed'), ('position',), 'position'), (6, 4), False),
  'norm': (Fact(('embed',), (), 'norm'), (4,), False),
  'norms': (Fact(('layers', 'embed'), (), 'norm'), (3, 4), False),
  'bias': (Fact(('heads', 'head_dim'), (), 'bias'), (2, 3), False),
  'biases': (Fact(('layers', 'heads', 'head_dim'), (), 'bias'), (3, 2, 3), False),
  'no_fact': (Fact((None, None), (), 'other'), (4, 4), False),
  'scalar': (Fact((), (), 'other'), (), False),
}
FACTS = {k: f for k, (f, _, _) in CASES.items()}
PARAMS = {k: jnp.full(s, 2.0) for k, (_, s, _) in CASES.items()}


@pytest.mark.parametrize('only', ['matrices', 'all'])
def test_adds_rate_times_parameter_to_what_facts_call_a_matrix(only):
  tx = registry.get('optim', 'decay').obj(rate=0.25, only=only, facts=FACTS)
  g = jax.tree.map(jnp.ones_like, PARAMS)
  u, _ = tx.update(g, tx.init(PARAMS), PARAMS)
  for k, (_, _, matrix) in CASES.items():
    np.testing.assert_array_equal(u[k], 1.5 if matrix or only == 'all' else 1.0, err_msg=k)


def test_its_place_in_the_chain_decides():
  """Behind Adam it shrinks by lr x rate (AdamW); in front it is L2, which Adam normalizes away."""
  params, g = {'w': jnp.array([[4.0]])}, {'w': jnp.zeros((1, 1))}
  for spec, want in (('adam() | decay(rate=0.1)', 0.4), ('decay(rate=0.1) | adam()', 1.0)):
    parts = registry.make_chain('optim', spec, facts={'w': Fact(('embed', 'mlp'), ('embed',))})
    tx = optax.named_chain(*((k, p()) for k, p in parts.items()))
    u, _ = tx.update(g, tx.init(params), params)
    np.testing.assert_allclose(u['w'], want, rtol=1e-5)

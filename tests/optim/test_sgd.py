"""SGD against PyTorch's, and its momentum as a sum."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import registry


def sgd(**args):
  return registry.get('optim', 'sgd').obj(**args)


def test_momentum_is_a_sum():
  tx, g = sgd(momentum=0.5), jnp.ones(1)
  state = tx.init(g)
  for want in (1.0, 1.5, 1.75):
    u, state = tx.update(g, state)
    assert u == want


@pytest.mark.parametrize('momentum, nesterov', [(0.0, False), (0.9, False), (0.9, True)])
def test_equals_pytorch(momentum, nesterov):
  torch = pytest.importorskip('torch', reason='torch is in the extra test-heavy')
  rng = np.random.default_rng(0)
  first, grads = rng.standard_normal(5), rng.standard_normal((4, 5))
  theirs = torch.nn.Parameter(torch.tensor(first))
  opt = torch.optim.SGD([theirs], lr=0.1, momentum=momentum, nesterov=nesterov)
  tx, ours = sgd(momentum=momentum, nesterov=nesterov), jnp.asarray(first, jnp.float32)
  state = tx.init(ours)
  for g in grads:
    theirs.grad = torch.tensor(g)
    opt.step()
    u, state = tx.update(jnp.asarray(g, jnp.float32), state)
    ours = ours - 0.1 * u
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5, atol=1e-6)

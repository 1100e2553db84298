"""Adam by hand, against PyTorch's AdamW, and its rounding of the first moment."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmjax import registry
from lmjax.parallel.facts import Fact


def adam(**args):
  return registry.get('optim', 'adam').obj(**args)


def test_first_update_is_the_sign_of_the_gradient_whatever_its_size():
  g = jnp.array([1e-3, -5.0, 2e4])
  tx = adam(b2=0.999)
  u, _ = tx.update(g, tx.init(g))
  np.testing.assert_allclose(u, [1, -1, 1], rtol=2e-5)


def test_eps_is_outside_the_root():
  g = jnp.array([1e-2])
  tx = adam(eps=1e-2)
  u, _ = tx.update(g, tx.init(g))
  np.testing.assert_allclose(u, [0.5], rtol=1e-5)


@pytest.mark.parametrize('matrix_rate, all_rate', [(0.1, None), (None, 0.1)])
def test_chain_equals_adamw_of_pytorch(matrix_rate, all_rate):
  """Clipping, Adam and decoupled decay by lr x rate, over a falling learning rate."""
  torch = pytest.importorskip('torch', reason='torch is in the extra test-heavy')
  rng = np.random.default_rng(0)
  first = dict(w=rng.standard_normal((4, 3)), b=rng.standard_normal(3))
  grads = [{k: rng.standard_normal(x.shape) * s for k, x in first.items()} for s in (1, 9, 0.1, 3)]
  facts = dict(w=Fact(('embed', 'mlp'), ('embed',)), b=Fact(('mlp',), (), 'bias'))
  rate = f'rate={matrix_rate}' if matrix_rate else f'rate={all_rate}, only="all"'
  spec = f'clip(norm=2.0) | adam(b1=0.8, b2=0.95) | decay({rate})'
  tx = optax.named_chain(
    *((k, p()) for k, p in registry.make_chain('optim', spec, facts=facts).items())
  )

  theirs = {k: torch.nn.Parameter(torch.tensor(x)) for k, x in first.items()}
  groups = [
    dict(params=[theirs['w']], weight_decay=0.1),
    dict(params=[theirs['b']], weight_decay=all_rate or 0.0),
  ]
  opt = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-8)
  ours = {k: jnp.asarray(x, jnp.float32) for k, x in first.items()}
  state = tx.init(ours)
  for i, g in enumerate(grads):
    lr = 0.1 / (i + 1)
    for k, p in theirs.items():
      p.grad = torch.tensor(g[k])
    for group in opt.param_groups:
      group['lr'] = lr
    torch.nn.utils.clip_grad_norm_(theirs.values(), 2.0)
    opt.step()
    u, state = tx.update({k: jnp.asarray(x, jnp.float32) for k, x in g.items()}, state, ours)
    ours = jax.tree.map(lambda p, d, lr=lr: p - lr * d, ours, u)
    for k, p in theirs.items():
      np.testing.assert_allclose(ours[k], p.detach().numpy(), rtol=2e-6, atol=1e-6)


def test_second_moment_of_bfloat16_parameters_still_moves():
  """In bfloat16 a step of a thousandth is rounded away, and v would stay at its first value."""
  g = jnp.ones(4, jnp.bfloat16)
  tx = adam(b1=0.0, b2=0.999)
  state = tx.init(g)
  for _ in range(3):
    _, state = tx.update(g, state)
  np.testing.assert_allclose(state.nu, 1 - 0.999**3, rtol=1e-5)


def test_bfloat16_first_moment_is_rounded_once_a_step():
  g = jax.random.normal(jax.random.key(0), (1000,))
  full, half = adam(b1=0.9), adam(b1=0.9, mu_dtype='bfloat16')
  a, b = full.init(g), half.init(g)
  for _ in range(3):  # one starts each step from what the other has stored
    (want, a), (u, b) = full.update(g, a), half.update(g, b)
    assert b.mu.dtype == jnp.bfloat16 and b.nu.dtype == u.dtype == jnp.float32
    np.testing.assert_array_equal(u, want)
    np.testing.assert_array_equal(b.mu, a.mu.astype(jnp.bfloat16))
    a = a._replace(mu=b.mu.astype(jnp.float32))

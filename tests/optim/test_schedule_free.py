"""Schedule-Free by its three sequences, at any rate, and against Optax's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmjax import registry
from lmjax.parallel.facts import Fact


def losses():
  """Gradients of a noisy quadratic, the noise given by the step."""
  curvature = jnp.asarray(np.geomspace(0.1, 3, 6), jnp.float32)
  noise = jnp.asarray(np.random.default_rng(0).standard_normal((60, 6)), jnp.float32)
  return lambda p, t: curvature * (p - 1) + noise[t]


def train(spec, lr, steps=12):
  """(where the next gradient is taken: y, the parameters x) after each step, as the training step
  makes them.
  """
  part = registry.make('optim', spec, facts=Fact(('embed',), (), 'norm'))
  tx, gradient = part(), losses()
  x = y = jnp.zeros(6)
  state, out = tx.init(x), []
  step = jax.jit(tx.update)
  for t in range(steps):
    u, state = step(gradient(y, t), state, y)
    x = x - lr * u
    y = x - lr * part.fact('gradient_at')(state)
    out.append((np.asarray(y), np.asarray(x)))
  return out


LR = jnp.array([0.01, 0.3, 0.3, 0.3, 0.5, 0.5])  # as a parameterization's factors would have it


@pytest.mark.parametrize('lr', [0.003, 0.2, LR], ids=['low', 'high', 'by parameter'])
@pytest.mark.parametrize('b1, warmup, r, power', [(0.9, 0, 0.0, 2.0), (0.6, 5, 1.5, 1.0)])
def test_equals_the_algorithm_at_any_rate(lr, b1, warmup, r, power):
  """AdamW's form with decay at y, in float64, the rate where the paper has it."""
  inner = 'rmsprop(b2=0.9) | decay(rate=0.1, only="all")'
  spec = f'schedule_free(inner={inner}, b1={b1}, warmup={warmup}, r={r}, power={power})'
  got, gradient = train(spec, lr), losses()
  lr = np.asarray(lr, np.float64)
  x = z = y = np.zeros(6)
  v = total = 0.0
  for t, (own_y, own_x) in enumerate(got, 1):
    g = np.float64(gradient(jnp.asarray(y, jnp.float32), t - 1))
    v = 0.9 * v + 0.1 * g * g
    rate = lr * (min(1, t / warmup) if warmup else 1)
    z = z - rate * (g / (np.sqrt(v / (1 - 0.9**t)) + 1e-8) + 0.1 * y)
    w = t**r * (rate / lr).max() ** power
    total += w
    x = x + w / total * (z - x)
    y = (1 - b1) * z + b1 * x
    np.testing.assert_allclose(own_y, y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(own_x, x, rtol=1e-4, atol=1e-5)


def test_equals_optax():
  lr, gradient = 0.1, losses()
  theirs = optax.contrib.schedule_free(
    optax.chain(
      optax.scale_by_rms(0.99, eps_in_sqrt=False, bias_correction=True), optax.scale(-lr)
    ),
    learning_rate=lr,
    b1=0.9,
  )
  got = train('schedule_free(inner=rmsprop(b2=0.99))', lr, steps=8)
  y = jnp.zeros(6)
  state = theirs.init(y)
  for t, (own_y, own_x) in enumerate(got):
    u, state = theirs.update(gradient(y, t), state, y)
    y = optax.apply_updates(y, u)
    np.testing.assert_allclose(own_y, y, rtol=1e-4, atol=1e-5)
    x = optax.contrib.schedule_free_eval_params(state, y)
    np.testing.assert_allclose(own_x, x, rtol=1e-4, atol=1e-4)


def test_without_interpolation_x_is_the_average_of_all_iterates():
  """b1 = 0 is plain SGD on y with Polyak's average beside it."""
  got = train('schedule_free(inner=sgd(), b1=0.0)', 0.1)
  ys = [y for y, _ in got]
  for t, (_, x) in enumerate(got, 1):
    np.testing.assert_allclose(x, np.mean(ys[:t], axis=0), rtol=1e-4, atol=1e-6)


def test_the_average_is_quieter_than_the_iterates_of_sgd():
  curve = np.geomspace(0.1, 3, 6)
  value = lambda p: np.sum(curve * (np.float64(p) - 1) ** 2)
  late = train('schedule_free(inner=sgd())', 0.3, steps=60)[30:]
  tx, gradient, p, plain = registry.make('optim', 'sgd()')(), losses(), jnp.zeros(6), []
  for t in range(60):
    p = p - 0.3 * tx.update(gradient(p, t), tx.init(p))[0]
    plain.append(value(p))
  assert np.mean([value(x) for _, x in late]) < 0.7 * np.mean(plain[30:])


@pytest.mark.parametrize(
  'spec, t',
  [('warmup=10000, power=10.0', 3), ('warmup=2000, power=12.0', 3), ('r=8.0', 5)],
)
def test_weights_that_leave_float32_are_ratios_all_the_same(spec, t):
  """w = t^r s^power is 1e-40 in the first step of the first; the average is w's all the same."""
  tx = registry.make('optim', f'schedule_free(inner=sgd(), b1=0.0, {spec})')()
  args = dict(registry.make('optim', f'schedule_free({spec})').args)
  params, lr = {'w': jnp.zeros(1)}, 0.1
  state = tx.init(params)
  z, zs, ws = 0.0, [], []
  for step in range(1, t + 1):
    updates, state = tx.update({'w': jnp.ones(1)}, state, params)
    params = jax.tree.map(lambda p, u: p - lr * u, params, updates)
    s = min(1.0, step / args['warmup']) if args['warmup'] else 1.0
    z -= lr * s
    zs, ws = [*zs, z], [*ws, step ** args['r'] * s ** args['power']]
    np.testing.assert_allclose(params['w'][0], np.average(zs, weights=ws), rtol=1e-5)


def test_parameters_below_float32_are_refused():
  tx = registry.make('optim', 'schedule_free()')()
  with pytest.raises(ValueError, match="not bfloat16; set config.model.param_dtype='float32'"):
    tx.init({'w': jnp.zeros(3, jnp.bfloat16)})


def test_facts_and_state():
  """The rate is its own; beside the inner state there is one tensor."""
  part = registry.make('optim', 'schedule_free()')
  assert part.fact('owns_lr') and part.fact('needs') == ()
  assert registry.make('optim', 'schedule_free(inner=sophia_g())').fact('needs')
  state = part().init(jnp.zeros(1000))
  assert sum(x.size for x in jax.tree.leaves(state) if x.ndim) == 2000

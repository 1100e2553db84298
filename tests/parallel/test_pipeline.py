"""The pipeline: what passes through it equals what passes through the layers in order, whatever
the stages, rounds and micro-batches; and the routes of parameters to their stages.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _meshes
from lmjax.parallel import jaxprs
from lmjax.parallel import pipeline

needed = pytest.mark.skipif(jax.device_count() < 8, reason='eight devices are needed')
GROUPS, ROWS, STEPS, WIDTH = 8, 8, 3, 4


def layers(params, x, rows, first):
  """Neither commutes nor forgets which layer and which row it was."""

  def one(x, wi):
    w, i = wi
    return jnp.tanh(x @ w + 0.1 * rows['row'][..., None] + 0.01 * (first + i)), None

  return jax.lax.scan(one, x, (params, jnp.arange(len(params))))[0]


def inputs():
  rng = np.random.default_rng(0)
  params = jnp.asarray(rng.normal(size=(GROUPS, WIDTH, WIDTH)), jnp.float32)
  x = jnp.asarray(rng.normal(size=(ROWS, STEPS, WIDTH)), jnp.float32)
  return params, x, dict(row=jnp.asarray(rng.normal(size=(ROWS, STEPS)), jnp.float32))


def piped(micro, rounds, remat):
  return lambda p, x, rows: pipeline.run(
    layers, p, x, rows, groups=GROUPS, micro=micro, rounds=rounds, remat=remat
  )


def found(f):
  params, x, rows = inputs()
  y, pull = jax.vjp(jax.jit(lambda p, x: f(p, x, rows)), params, x)
  return y, *pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))


@needed
@pytest.mark.parametrize('remat', [False, True], ids=['layers', 'stages'])
@pytest.mark.parametrize(
  'axes, micro, rounds',
  [
    (dict(stage=8), 8, 1),
    (dict(stage=2, data=4), 2, 1),
    (dict(stage=2, data=4), 2, 4),
    (dict(stage=4, data=2), 4, 2),
    (dict(stage=4, data=2), 2, 1),  # fewer micro-batches than stages
    (dict(stage=2, data=2, tensor=2), 4, 2),
  ],
  ids=str,
)
def test_as_through_the_layers_in_order(axes, micro, rounds, remat):
  want = found(lambda p, x, rows: layers(p, x, rows, 0))
  with jax.set_mesh(_meshes.make(**axes)):
    got = found(piped(micro, rounds, remat))
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def scans(jaxpr):
  return [e for e in jaxprs.equations(jaxpr) if e.primitive.name == 'scan']


@needed
@pytest.mark.parametrize(
  'rounds, remat, inputs_kept', [(1, False, 4), (1, True, 1), (2, False, 2), (2, True, 1)]
)
def test_each_time_keeps_inputs_and_no_parameters(rounds, remat, inputs_kept):
  """Inputs of its layers, or of the stage; tanh's derivative is made of what it gave, an input."""
  stages, micro = 2, 4
  params, x, rows = inputs()
  thrifty = lambda p, x, rows, first: jax.lax.scan(
    jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None)), x, p
  )[0]
  run = lambda p, x: pipeline.run(
    thrifty, p, x, rows, groups=GROUPS, micro=micro, rounds=rounds, remat=remat
  )
  with jax.set_mesh(_meshes.make(stage=stages, data=4)):
    jaxpr = jax.make_jaxpr(jax.jit(jax.grad(lambda p, x: run(p, x).sum(), (0, 1))))(params, x)
  times = micro * rounds + stages - 1
  forward = next(e for e in scans(jaxpr.jaxpr) if e.params['length'] == times)
  given = zip(forward.outvars, forward.params['jaxpr'].jaxpr.outvars, strict=True)
  kept = [v.aval.shape for v, each in given if v.aval.shape == (times, *each.aval.shape)]
  assert not [s for s in kept if s[-2:] == (WIDTH, WIDTH)]
  sizes = [np.prod(s[1:]) for s in kept if s[-2:] == (STEPS, WIDTH)]
  assert sum(sizes) == inputs_kept * ROWS // micro * STEPS * WIDTH


@needed
def test_the_result_and_its_gradient_cross_once():
  params, x, rows = inputs()
  with jax.set_mesh(_meshes.make(stage=8)):
    slope = jax.grad(lambda p, x: jnp.cos(piped(8, 1, False)(p, x, rows)).sum(), (0, 1))
    text = jax.jit(slope).lower(params, x).compile().as_text()
  assert len(re.findall(r' all-reduce(?:-start)?\(', text)) == 2


@needed
@pytest.mark.parametrize('axes, rounds', [(dict(stage=2, data=4), 1), (dict(stage=2, data=4), 2)])
def test_parameters_are_gathered_once(axes, rounds):
  want = found(lambda p, x, rows: layers(p, x, rows, 0))
  names = ('layers', 'embed', None)
  run = lambda p, x, rows: pipeline.run(
    layers, p, x, rows, groups=GROUPS, micro=2, rounds=rounds, names=names
  )
  params, x, rows = inputs()
  with jax.set_mesh(_meshes.make(**axes)):
    got = found(run)
    slope = jax.jit(jax.grad(lambda p: run(p, x, rows).sum()))
    jaxpr = jax.make_jaxpr(slope)(params).jaxpr
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)
  names = [e.primitive.name for e in jaxprs.equations(jaxpr)]
  inside = [
    e.primitive.name for s in scans(jaxpr) for e in jaxprs.equations(s.params['jaxpr'].jaxpr)
  ]
  for name in ('all_gather', 'reduce_scatter'):
    assert names.count(name) == 1 and name not in inside


@pytest.mark.parametrize('n', range(1, 9))
@pytest.mark.parametrize('rounds', range(1, 9))
def test_every_stage_gets_what_it_needs(n, rounds):
  sent, kept, ways = pipeline.routes(n, rounds)
  has = [[s * rounds + k for k in range(rounds)] for s in range(n)]
  came = [[None] * rounds for _ in range(n)]
  for j, way in enumerate(ways):
    assert sorted(a for a, _ in way) == sorted(b for _, b in way) == list(range(n))
    for a, b in way:
      came[b][j] = has[a][sent[j, a]]
  for s in range(n):
    assert [came[s][j] for j in kept[s]] == [r * n + s for r in range(rounds)]


@needed
@pytest.mark.parametrize(
  'micro, rounds, words',
  [
    (2, 3, 'stage=2 x config.mesh.stage_rounds=3 do not divide the 8 groups'),
    (3, 1, 'stage_micro_batches=3 does not divide the 8 rows'),
    (4, 1, 'stage_micro_batches=4: the 2 rows of each do not divide over 4 devices'),
    (1, 2, 'stage_micro_batches=1: with config.mesh.stage_rounds=2 at least as many as stages, 2'),
  ],
)
def test_what_does_not_divide_is_refused(micro, rounds, words):
  params, x, rows = inputs()
  with jax.set_mesh(_meshes.make(stage=2, data=4)), pytest.raises(ValueError, match=words):
    pipeline.run(
      layers,
      params,
      x,
      rows,
      groups=GROUPS,
      micro=micro,
      rounds=rounds,
      names=('layers', None, None),
    )

"""8-bit optimizer states on TPUs, without one: a step in one pass, interpreted, lowered and
compiled, equals the step as written.
"""

import functools

import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

import _meshes
import _table
from lmjax import registry
from lmjax.kernels import choice
from lmjax.kernels.blockwise_update import elementwise
from lmjax.kernels.blockwise_update import mosaic
from lmjax.optim import _blocks
from lmjax.planning import hlo
from lmjax.planning import work
from lmjax.parallel.facts import Fact

FACTS = dict(
  stacked=Fact(('layers', 'embed', 'mlp'), ('embed',)),
  matrix=Fact(('embed', 'mlp'), ('embed',)),
  short=Fact(('embed', 'mlp'), ('embed',)),
  small=Fact(('embed',), ()),
)
SHAPES = dict(stacked=(2, 32, 512), matrix=(96, 256), short=(40, 200), small=(8,))
ADAM = 'adam()'
SPECS = {
  ADAM: 'eight_bit(inner=adam(), block=128, min_size=100)',
  'nesterov': 'eight_bit(inner=adam(nesterov=True, b2=0.9), block=256, min_size=100)',
  'lion()': 'eight_bit(inner=lion(), block=128, min_size=100)',
  'momentum': 'eight_bit(inner=sgd(momentum=0.9), block=128, min_size=100)',
}


def make(spec, names=SHAPES):
  return registry.make('optim', spec, facts={k: FACTS[k] for k in names})()


def grads(n, names=SHAPES):
  """Gradients with outliers, and a block of zeros."""
  out = {}
  for i, k in enumerate(names):
    g = np.random.default_rng(7 * n + i).normal(size=SHAPES[k]) ** 3
    g[..., :128] *= k != 'matrix'
    out[k] = jnp.asarray(g, jnp.float32)
  return out


def steps(spec, name, count=3):
  """(updates of the last step, state in float32)."""
  tx = make(spec)
  state = jax.jit(tx.init)(grads(0))
  with choice.using(platform='tpu', blockwise_update=name), pltpu.force_tpu_interpret_mode(True):
    run = jax.jit(lambda g, s: tx.update(g, s, grads(0)))
    for n in range(count):
      updates, state = run(grads(n), state)
  return updates, state


@pytest.mark.parametrize(
  'case', [c if c == 'adam()' else pytest.param(c, marks=pytest.mark.slow) for c in SPECS]
)
def test_one_pass_equals_the_step_as_written(case, monkeypatch):
  monkeypatch.setattr(mosaic, 'WIDE', 256)  # several tiles in a row, several blocks in a tile
  (got, got_state), (want, want_state) = (steps(SPECS[case], n) for n in ('mosaic', 'xla'))
  _table.trees_close(got, want, 1e-5)
  coded = 0
  for a, b in zip(*map(jax.tree.leaves, (got_state, want_state))):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim > 1 and a.shape in SHAPES.values():
      coded += 1
      assert np.max(np.abs(a - b)) <= 1 and np.mean(a != b) < 1e-3  # roundings on the edge
    else:
      np.testing.assert_allclose(a, b, rtol=1e-5)
  assert coded == (6 if 'adam' in SPECS[case] else 3)


def kernels(spec):
  tx = make(spec)
  traced = jax.make_jaxpr(lambda g, s: tx.update(g, s, g))(
    grads(0), jax.eval_shape(tx.init, grads(0))
  )
  return str(traced).count('pallas_call[')


def test_which_parameters_are_done():
  """Those whose blocks divide rows; `short` has rows of 200, `small` is not coded."""
  assert kernels(SPECS[ADAM]) == 0
  with choice.using(platform='tpu'):
    assert kernels(SPECS[ADAM]) == 2
    with jax.set_mesh(_meshes.make(data=8)):
      assert kernels(SPECS[ADAM]) == 0
    with choice.using(blockwise_update='xla'):
      assert kernels(SPECS[ADAM]) == 0


REFUSED = {
  'runs on TPUs, this is for a cpu': (SPECS[ADAM], 'cpu'),
  'none is so': ('eight_bit(inner=adam(), block=200, min_size=100)', 'tpu'),
  'steps on single elements': ('eight_bit(inner=stable_adamw(), block=128, min_size=100)', 'tpu'),
}


@pytest.mark.parametrize('why', REFUSED)
def test_refused(why):
  spec, platform = REFUSED[why]
  with choice.using(platform=platform):
    assert kernels(spec) == 0
    with choice.using(blockwise_update='mosaic'), pytest.raises(ValueError, match=why):
      kernels(spec)


@pytest.mark.parametrize('single', [jnp.sqrt, jnp.abs, lambda x: jnp.cumsum(x, 1), jnp.flipud])
def test_what_works_on_single_elements(single):
  """Not all that keeps the shape of an array does."""
  x, sizes = jnp.ones((32, 128)), jnp.ones(32)
  blocks = _blocks.Blocks(FACTS['matrix'], x.shape, 128)
  step = lambda g, s: (dict(w=single(g['w']) + s['w']), s)
  path = jax.tree.leaves_with_path(dict(w=x))[0][0]
  given = dict(w=x), dict(w=x.astype(jnp.uint8)), dict(w=sizes)
  found = elementwise.plans(step, *given, {path: blocks})
  assert len(found) == (single in (jnp.sqrt, jnp.abs))


def test_a_mesh_is_refused():
  with choice.using(platform='tpu', blockwise_update='mosaic'):
    with jax.set_mesh(_meshes.make(data=8)), pytest.raises(ValueError, match='without a mesh'):
      kernels(SPECS[ADAM])


def on_a_tpu(spec, shape, name='mosaic', **more):
  tx = registry.make('optim', spec, facts=dict(w=FACTS['stacked']))()
  like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, **more)
  g = dict(w=jax.ShapeDtypeStruct(shape, jnp.float32))
  g, state = jax.tree.map(like, (g, jax.eval_shape(tx.init, g)))
  run = jax.jit(lambda g, s: tx.update(g, s, g), donate_argnums=1)
  with choice.using(platform='tpu', blockwise_update=name):
    return run.trace(g, state)


@pytest.mark.parametrize('case', SPECS)
def test_lowered_for_a_tpu(case):
  traced = on_a_tpu(SPECS[case], (2, 32, 512))
  text = traced.lower(lowering_platforms=('tpu',)).as_text()
  assert text.count('tpu_custom_call') == 1


@pytest.mark.slow
@pytest.mark.parametrize('block', [256, 2048])
def test_compiles_for_tpus_and_reads_all_once(block, one_tpu):
  shape = 2, 4096, 8192
  compiled = functools.partial(on_a_tpu, f'eight_bit(inner=adam(), block={block})', shape)
  program = compiled(sharding=one_tpu).lower().compile()
  counted = hlo.parse(program.as_text())
  assert work.opaque(counted) == []
  least = 2 * 4096 * 8192 * (4 + 4 + 4)
  assert least <= work.memory_traffic(counted) < 1.1 * least
  assert program.memory_analysis().temp_size_in_bytes < 0.1 * least

"""Which implementation runs: the first that can, or the one that was asked for and no other."""

import jax
import jax.numpy as jnp
import pytest

from lmjax import build
from lmjax import config
from lmjax import kernels
from lmjax.config import ConfigError
from lmjax.kernels import choice
from lmjax.kernels.choice import Implementation

KNOWN = {
  'fast': Implementation(
    lambda: 'fast', lambda platform, size: f'{size} is odd' if size % 2 else ''
  ),
  'gpu': Implementation(
    lambda: 'gpu', lambda platform, size: '' if platform == 'gpu' else 'no GPU'
  ),
  'plain': Implementation(lambda: 'plain'),
}


@pytest.fixture(autouse=True)
def an_operation(monkeypatch):
  real = choice.implementations
  monkeypatch.setattr(choice, 'implementations', lambda op: KNOWN if op == 'op' else real(op))


def picked(name=None, size=2):
  return choice.pick('op', KNOWN, name, size=size)()


def test_the_first_that_can_runs():
  assert picked() == 'fast'
  assert picked(size=1) == 'plain'
  with choice.using('gpu'):
    assert picked(size=1) == 'gpu'


def test_what_is_asked_for_runs_or_is_refused():
  assert picked('plain') == 'plain'
  with choice.using(op='plain'):
    assert picked() == 'plain' and picked('fast') == 'fast'
    with choice.using(op='auto'):
      assert picked() == 'fast'
  with choice.using(op='fast'):
    with pytest.raises(ValueError, match=r"config.kernels.op='fast': 1 is odd; plain can"):
      picked(size=1)
  with pytest.raises(ValueError, match="config.kernels.op='plan'.*did you mean 'plain'"):
    picked('plan')


def test_a_jitted_function_follows_the_context():
  f = jax.jit(lambda: jnp.float32(len(picked())))
  assert float(f()) == 4
  with choice.using(op='plain'):
    assert float(f()) == 5
  assert float(f()) == 4


@pytest.mark.parametrize('operation', kernels.OPERATIONS)
def test_every_operation_has_one_that_never_refuses(operation):
  """Else `auto` could end without any."""
  known = choice.implementations(operation)
  assert len(known) > 1
  assert any(i.refuses is choice._never for i in known.values())


def test_the_config_is_checked():
  resolved = config.resolve(config.load('quickstart', [('kernels.attention', 'referenze')]))
  with pytest.raises(ValueError, match="config.kernels.attention=.*did you mean 'reference'"):
    build.build(resolved)


def test_a_run_uses_what_its_config_asks_for():
  """Seen in the program, where only the reference has no gradient of its own."""
  text = {}
  for name in ('auto', 'reference'):
    run = build.build(config.resolve(config.load('quickstart', [('kernels.attention', name)])))
    batch = jax.tree.map(
      lambda a: jax.ShapeDtypeStruct((2, *a.shape[1:]), a.dtype), run.batch_shapes()
    )
    loss = lambda p, b, run=run: run.objective.loss(p, {}, b, jax.random.key(0)).sum
    with run.choices():
      text[name] = str(jax.make_jaxpr(loss)(run.shapes['params'], batch))
  assert 'custom_vjp_call' in text['auto'] and text['auto'] != text['reference']


def test_what_cannot_run_is_refused_before_any_data():
  from lmjax import mesh_checks
  from lmjax.parallel import mesh as mesh_lib

  more = [
    ('kernels.linear_cross_entropy', 'chunked'),
    ('mesh.data', '2'),
    ('mesh.mode', 'explicit'),
  ]
  run = build.build(config.resolve(config.load('quickstart', more)))
  with pytest.raises(ConfigError, match="config.kernels.linear_cross_entropy='chunked'.*whole can"):
    mesh_checks.devices(run, mesh_lib.abstract(run.config['mesh']))


def test_kernels_of_the_optimizer_are_refused_as_early():
  from lmjax import mesh_checks

  more = [('kernels.blockwise_update', 'mosaic'), ('optim', 'eight_bit()')]
  run = build.build(config.resolve(config.load('quickstart', more)))
  with pytest.raises(ConfigError, match="config.kernels.blockwise_update='mosaic'.*xla can"):
    mesh_checks.devices(run, None)

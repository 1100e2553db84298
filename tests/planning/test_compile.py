import pytest

from lmjax import build
from lmjax import config
from lmjax import exits
from lmjax import main as main_lib
from lmjax.planning import compile as compile_lib
from lmjax.planning import planned
from lmjax.planning import topologies

needs_libtpu = pytest.mark.skipif(not compile_lib.available(), reason='needs libtpu')


def test_messages_about_memory():
  said = (
    'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries '
    '(45.04G) exceeds available HBM (15.75G).'
  )
  assert compile_lib.exceeded(said, 2.0**30) == pytest.approx(46.04 * 2**30)
  said = 'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 17.3G of 15.75G hbm. Exceeded'
  assert compile_lib.exceeded(said, 2.0**30) == pytest.approx(17.3 * 2**30)
  assert compile_lib.exceeded('UNIMPLEMENTED: something else', 1.0) is None


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(
  'name, mesh',
  [
    ('v5e-1', []),
    ('v5e-4', [('mesh.data', '4')]),
    ('v4-8', [('mesh.data', '2'), ('mesh.tensor', '2')]),
    ('2*v5e-4', [('mesh.replica', '2'), ('mesh.data', '4')]),
  ],
)
def test_compiled_plans_agree_with_estimates(name, mesh):
  c = config.resolve(config.load('quickstart', [*mesh, ('model.unroll', '1')]))
  run, where = build.build(c), topologies.parse(name)
  guess = planned.estimated(run, where)
  found = planned.compiled(run, where, guess, 300)
  assert found.source == 'compiled' and found.fits and found.seconds > 1
  assert found.flops == pytest.approx(guess.flops, rel=0.05)
  assert found.peak < 2 * guess.peak  # what is so small lies in the cores' own memory
  sent = lambda p: sum(r['wire'] for r in p.collectives)
  assert sent(found) == pytest.approx(sent(guess), rel=0.5) or where.chips == 1
  networks = {'DCN', 'ICI'} if where.slices > 1 else {'ICI'} if where.chips > 1 else set()
  assert set(found.times.networks) == networks


@pytest.mark.slow
@needs_libtpu
def test_loops_whose_turns_depend_on_data_are_named():
  few = [('model.depth', '1'), ('batch_tokens', '1024'), ('micro_batches', '1')]
  c = config.load('quickstart', [('model.ffn', 'base_layers(experts=2)'), *few])
  run, where = build.build(config.resolve(c)), topologies.parse('v5e-1')
  found = planned.compiled(run, where, planned.estimated(run, where), 300)
  assert found.flops > 0 and any('base_layers' in n or '/ffn/' in n for n in found.loops)


@pytest.mark.slow
@needs_libtpu
def test_a_step_that_is_too_large_says_by_how_much(capsys):
  words = ['--config=quickstart', '--config.batch_tokens=33554432', '--config.micro_batches=1']
  words += ['--plan', '--topology=v5e-1', '--plan_seconds=300']
  assert main_lib.main(words) == exits.USER
  out = capsys.readouterr()
  assert 'does not fit' in out.out
  assert 'has 15.75 for programs' in out.err and out.err.count('\n') == 1


@pytest.mark.slow
@needs_libtpu
def test_compiling_is_bounded():
  c = config.resolve(config.load('quickstart', [('mesh.data', '4')]))
  run, where = build.build(c), topologies.parse('v5e-4')
  with pytest.raises(ValueError, match=r'within 1 s \(--plan_seconds\)'):
    planned.compiled(run, where, planned.estimated(run, where), 1.0)

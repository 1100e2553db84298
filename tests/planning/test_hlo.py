"""Reading compiled programs: instructions, and how often computations run.

The files in `hlo/` are texts of real programs, compiled ahead of time for eight TPU v5e (libtpu
0.0.42.1) and H200 (XLA of jax 0.10.2); source positions and tuning records are cut out of them.
`combined` is put together by hand from lines of such programs.
"""

import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from lmjax.planning import hlo
from lmjax.planning import loops

FILES = pathlib.Path(__file__).parent / 'hlo'


def stored(name: str) -> hlo.Program:
  return hlo.parse((FILES / f'{name}.txt').read_text())


def compiled(f, *args) -> str:
  return jax.jit(f).lower(*args).compile().as_text()


def runs(program: hlo.Program, word: str) -> int:
  """How often the instruction runs that comes from this operation."""
  found = [
    n
    for name, n in hlo.trips(program).items()
    for i in program.computations[name].instructions.values()
    if i.op_name.endswith(word)
  ]
  return max(found)


def test_instructions():
  program = stored('tpu_ring')
  assert program.partitions == 8 and program.replicas == 1 and program.tiled
  body = program.computations['wide.region_0.1_spmd.sunk']
  i = body.instructions['collective-permute-start']
  assert (i.opcode, i.operands, i.is_root) == (
    'collective-permute-start',
    ['get-tuple-element.36'],
    False,
  )
  one = hlo.Shape('bf16', (16, 128), 1)
  assert i.shapes == (one, one, hlo.Shape('u32', (), 2), hlo.Shape('u32', (), 2))
  assert i.shapes[0].bytes == 16 * 128 * 2
  assert i.attribute('channel_id') == '1' and i.attribute('no_such') is None
  assert i.attribute('source_target_pairs').startswith('{{0,2},{2,4}')
  assert i.op_name == 'jit(ring)/shard_map/while/body/closed_call/ppermute'
  assert body.root.opcode == 'tuple' and len(body.root.operands) == 3
  loop = program.computations[program.entry].instructions['while.10']
  assert loop.called == {'condition': ['wide.region_1.2_spmd'], 'body': [body.name]}
  assert program.fused == {'fused_computation.clone.1'}


def test_attributes_that_hold_newlines_and_comments():
  entry = (program := stored('tpu_kernels')).computations[program.entry]
  assert [i.opcode for i in entry.instructions.values()] == ['parameter'] + 2 * ['custom-call']
  first = entry.instructions['shard_map.12']
  assert first.op_name.endswith('pallas_call') and 'xprof_metadata' in first.attributes
  entry = (program := stored('tpu_zero3')).computations[program.entry]
  assert len(entry.instructions['fusion.6'].shapes) == 11  # with /*index=5*/ between them
  assert len(entry.instructions['fusion.6'].operands) == 11


@pytest.mark.parametrize(
  'shape, size',
  [
    ('f32[]', 4),
    ('pred[3]{0}', 3),
    ('s4[5]{0:E(4)}', 3),
    ('f8e4m3fn[2,8]{1,0}', 16),
    ('bf16[<=4,8]{1,0:T(8,128)(2,1)S(1)}', 64),
    ('((f32[2], u32[]), token[], c64[2]{0})', 8 + 4 + 16),
  ],
)
def test_bytes(shape, size):
  text = f'HloModule m\n\nENTRY %e () -> f32[] {{\n  ROOT %a = {shape} custom-call()\n}}\n'
  program = hlo.parse(text)
  assert program.computations['e'].root.bytes == size


def test_what_is_no_program_is_refused():
  with pytest.raises(ValueError, match='not the text of an XLA program'):
    hlo.parse('module @jit_f {')
  with pytest.raises(ValueError, match='no ENTRY'):
    hlo.parse('HloModule m\n\n%f (a: f32[]) -> f32[] {\n  ROOT %a = f32[] parameter(0)\n}\n')
  odd = hlo.parse('HloModule m\n\nENTRY %e () -> q3[] {\n  ROOT %a = q3[] custom-call()\n}\n')
  with pytest.raises(ValueError, match='q3: the size of this element type is not known'):
    _ = odd.computations['e'].root.bytes


# ---- how often things run


def test_a_tpu_says_no_trip_counts():
  program = stored('tpu_ring')
  assert 'known_trip_count' not in (FILES / 'tpu_ring.txt').read_text()
  counts = hlo.trips(program)
  assert counts['wide.region_0.1_spmd.sunk'] == counts['fused_computation.clone.1'] == 7
  assert counts['wide.region_1.2_spmd'] == 8 and counts[program.entry] == 1


def nested(x):
  def inner(_, c):
    return jnp.sin(c)

  def middle(c, _):
    return jnp.cos(jax.lax.fori_loop(2, 7, inner, c)), None

  def outer(c):
    return c[0] * 3, jnp.tan(jax.lax.scan(middle, c[1], None, length=3)[0])

  return jax.lax.while_loop(lambda c: c[0] < 80, outer, (1, x))[1]  # 1, 3, 9, 27, 81


@pytest.mark.parametrize('told', [True, False])
def test_nested_loops(told):
  """With XLA's counts (of two of the loops; the outer one multiplies) and without them."""
  text = compiled(nested, jnp.ones(64))
  assert text.count('known_trip_count') >= 2
  if not told:
    text = re.sub(r'"known_trip_count":\{"n":"\d+"\}', '', text)
  program = hlo.parse(text)
  assert runs(program, '/tan') == 4
  assert runs(program, '/cos') == 4 * 3
  assert runs(program, '/sin') == 4 * 3 * 5


def test_a_loop_whose_turns_are_data():
  program = hlo.parse(
    compiled(lambda x, n: jax.lax.fori_loop(0, n, lambda _, c: jnp.sin(c), x), jnp.ones(64), 5)
  )
  with pytest.raises(ValueError, match=r'the loop while\S* in \S+ \(.*/while\): how often'):
    hlo.trips(program)
  each = (i for c in program.computations.values() for i in c.instructions.values())
  loop = next(i for i in each if i.opcode == 'while')
  counts = hlo.trips(program, default=4)
  assert counts[loop.called['body'][0]] == 4 and counts[loop.called['condition'][0]] == 5
  (name,) = loops.unknown(program)
  assert name.endswith('/while') and not loops.unknown(hlo.parse(compiled(jnp.sin, jnp.ones(8))))


def test_a_loop_that_never_ends_is_not_played_for_ever(monkeypatch):
  monkeypatch.setattr(loops, 'LONGEST', 50)
  two = lambda c: (c[0] + 2, jnp.sin(c[1]))
  for last, ends in ((40, True), (39, False)):
    f = lambda x, last=last: jax.lax.while_loop(lambda c: c[0] != last, two, (0, x))
    text = re.sub(r'"known_trip_count":\{"n":"\d+"\}', '', compiled(f, jnp.ones(8)))
    if ends:
      assert runs(hlo.parse(text), '/sin') == 20
    else:
      with pytest.raises(ValueError, match='how often it turns'):
        hlo.trips(hlo.parse(text))


def test_what_a_counter_depends_on_is_followed():
  """i: 0, 1, 3, 6, 10, 15, since j grows by k."""
  turn = lambda c: (c[0] + c[1], c[1] + c[2], c[2], jnp.sin(c[3]))
  f = lambda x: jax.lax.while_loop(lambda c: c[0] < 12, turn, (0, 1, 1, x))[3]
  assert runs(hlo.parse(compiled(f, jnp.ones(8))), '/sin') == 5


def test_the_largest_branch_counts():
  counts = hlo.trips(program := stored('tpu_branches'))
  assert counts['region_1.0_spmd'] == 1  # a matrix product
  assert 'region_0.0_spmd' not in counts  # a sum, of more bytes inside its fusion
  assert set(program.computations) - set(counts) == {'region_0.0_spmd', 'fused_computation'}


def test_reducers_do_not_run_by_themselves():
  counts = hlo.trips(stored('tpu_reduce_scatter'))
  assert not [name for name in counts if name.startswith('region')]
  assert counts['all-reduce-scatter'] == 1

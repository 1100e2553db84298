"""The profile of a step: its rows add up, bear the right names, FLOPs and times, and bad input gets
one sentence.
"""

import collections
import gzip
import json
import pathlib

from jax.profiler import ProfileData
import pytest

from lmjax import profile
from lmjax.planning import hlo
from lmjax.profiling import events
from lmjax.profiling import measure
from lmjax.profiling import parts
from lmjax.profiling import table

TOKENS, WIDTH, DEPTH = 512, 64, 2
TINY = [
  '--config=quickstart',
  f'--config.model.width={WIDTH}',
  f'--config.model.depth={DEPTH}',
  '--config.model.unroll=1',
  '--config.model.mixer.head_dim=16',
  '--config.data.length=64',
  f'--config.batch_tokens={TOKENS}',
]
RATES = table.Rates(1e12, 1e11, 'a test')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('profile')


@pytest.fixture(scope='module')
def small():
  """Small arrays tell the roofs as well, for a test."""
  real, measure.rates = measure.rates, lambda dtype: RATES
  yield
  measure.rates = real


@pytest.fixture(scope='module')
def found(folder, small):
  file = folder / 'found.json'
  assert profile.main([*TINY, '--steps=3', f'--out={folder}', f'--json={file}']) == 0
  return json.loads(file.read_text())


def seconds(rows):
  return sum(r['seconds'] for r in rows)


def row(rows, name):
  return next(r for r in rows if r['name'] == name)


def test_the_rows_add_up_to_the_step(found):
  traced = found['traced']
  for rows in (found['operations'], found['parts'], found['kinds']):
    assert seconds(rows) == pytest.approx(traced['device'], rel=1e-6)
    assert sum(r['share'] for r in rows) == pytest.approx(1.0)
  assert 0.3 * traced['wall'] < traced['device'] < 1.02 * traced['wall']
  assert traced['found'] == traced['steps'] == 3


def test_the_step_is_as_long_as_in_the_trace_for_perfetto(found):
  """The same by another file, of which another program wrote the times."""
  file = next(pathlib.Path(found['trace']).parent.glob('*.trace.json.gz'))
  runs = collections.defaultdict(list)
  for e in json.loads(gzip.decompress(file.read_bytes()))['traceEvents']:
    if 'hlo_op' in e.get('args', {}):
      runs[e['args']['run_id']].append((e['ts'], e['ts'] + e['dur']))
  assert len(runs) == 3
  spans = [max(end for _, end in r) - min(start for start, _ in r) for r in runs.values()]
  assert found['traced']['device'] == pytest.approx(sum(spans) / 3e6, rel=0.05)


def test_everything_is_matched_and_has_a_source(found):
  names = {r['name'] for r in found['parts']}
  assert table.UNMATCHED not in names
  assert {'mixer', 'mixer, backward', 'ffn', 'ffn, backward', 'norm', 'head, loss', 'optimizer',
          'norms', 'embed', 'residual'} <= names  # fmt: skip
  unknown = [r for r in found['parts'] if r['name'] == parts.UNKNOWN]
  assert seconds(unknown) < 0.1 * found['traced']['device']


def test_matrix_products_have_their_flops(found):
  one = 2.0 * TOKENS * WIDTH * 4 * WIDTH  # forward, of one layer
  up = [
    r
    for r in found['operations']
    if r['path'].endswith('ffn/up/dot_general') and r['part'] == 'ffn'
  ]
  assert sum(r['flops'] for r in up) == DEPTH * one
  assert sum(r['calls'] for r in up if r['flops']) == DEPTH
  assert row(found['parts'], 'ffn')['flops'] == 2 * DEPTH * one
  assert row(found['parts'], 'ffn, backward')['flops'] == 4 * DEPTH * one
  assert row(found['kinds'], 'matrix product')['flops'] == sum(
    r['flops'] for r in found['operations']
  )
  for r in up:
    assert r['flops_per_second'] == pytest.approx(r['flops'] / r['seconds'])
    assert r['bound'] in ('compute', 'memory')
    assert r['least'] == max(r['flops'] / RATES.flops, r['bytes'] / RATES.bytes)


def test_the_whole_step_is_told(found):
  assert found['donated']['arrays'] == found['donated']['of'] > 20
  assert found['tokens_per_second'] == pytest.approx(TOKENS / found['step']['median'])
  assert found['step']['least'] <= found['step']['median'] <= found['step']['most']
  assert found['memory']['peak'] > found['memory']['temp'] > 0
  assert found['model_flops']['full'] > found['model_flops']['causal'] > 0
  assert found['mfu'] == {}  # no one knows the peak of a CPU
  assert found['compile']['compiling'] > 0 and found['config']['model']['width'] == WIDTH


def test_a_slow_part_shows(folder, small, capsys, found):
  file = folder / 'slow.json'
  slow = '--config.model.ffn=tests.outside.slow_ffn:Slow(turns=4000)'
  words = [*TINY, slow, '--steps=2', f'--out={folder}', f'--json={file}', '--by=op', '--top=3']
  assert profile.main(words) == 0
  told, slow = capsys.readouterr().out, json.loads(file.read_text())
  share = row(slow['parts'], 'ffn')['share']
  assert share > 0.5 > row(found['parts'], 'ffn')['share']
  assert slow['parts'][0]['name'] == 'ffn'
  first = slow['operations'][0]  # the sine, or the loop around it where that is one kernel
  assert 'ffn' in first['path'] and first['calls'] in (DEPTH, 4000 * DEPTH)
  assert f'{len(slow["operations"]) - 3} more' in told and '100.0%' in told
  for word in ('tokens/s', 'donated', 'roofline', 'temporaries', 'trace:', 'compiled in'):
    assert word in told


@pytest.mark.parametrize(
  'words, text',
  [
    (['--steps=0'], '--steps=0'),
    (['--top=0'], '--top=0'),
    (['--stepz=3'], '--stepz=3'),
    (['--by=color'], 'color'),
    (['--config.model.wdth=3'], "did you mean 'model.width'"),
    (['--config.steps'], '--config.steps needs a value'),
    (['--config.mesh.data=64'], 'mesh'),
    (['--config.model.width=65536', '--config.model.depth=4096'], 'the state alone needs'),
    (['--out=gs://bucket/x'], 'a local folder'),
    (['--json=no/such/folder/x.json'], '--json=no/such/folder/x.json'),
    (['--json=.'], '--json=. is a folder'),
  ],
)
def test_what_cannot_be_used_is_told_in_a_sentence(words, text, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  try:
    status = profile.main([*TINY, *words])
  except SystemExit as e:
    status = e.code
  said = capsys.readouterr().err
  assert status == 2 and text in said and 'Traceback' not in said
  assert not list(tmp_path.glob('profile/plugins'))


def test_a_config_is_needed(capsys):
  assert profile.main([]) == 2
  assert '--config=RECIPE' in capsys.readouterr().err


def test_a_step_that_does_not_fit_is_told(monkeypatch, capsys, tmp_path):
  monkeypatch.setattr(measure, 'room', lambda: 2**21)
  assert profile.main([*TINY, f'--out={tmp_path}']) == 2
  assert 'the step needs' in capsys.readouterr().err


@pytest.mark.parametrize(
  'path, part',
  [
    ('jit(step)/jvp(Transformer)/closed_call/segment_0/0_block/0_block.mix/mixer/q/dot_general',
     'mixer'),
    ('jit(step)/transpose(jvp(Transformer))/while/body/closed_call/segment_0/1_local/norm_ffn/mul',
     'norm, backward'),
    ('jit(step)/transpose(jvp(Transformer))/closed_call/segment_0/0_block/0_block.feed/ffn/'
     'segment_0/0_block/0_block.feed/ffn/checkpoint/rematted_computation/tanh', 'ffn, recomputed'),
    ('jit(step)/jvp(Transformer)/closed_call/segment_0/0_block/add', 'residual'),
    ('jit(step)/transpose(jvp(Transformer))/while/body/dynamic_slice', 'stack, backward'),
    ('jit(step)/jvp(Transformer)/while/body/closed_call/dynamic_slice', 'stack'),
    ('jit(step)/jvp(Transformer)/while/body/jit(dynamic_index_in_dim)/dynamic_slice', 'stack'),
    ('jit(step)/jvp(Transformer)/final_norm/mul', 'norm'),
    ('jit(step)/jvp()/dot_general', 'head, loss'),
    ('jit(step)/optimizer/jvp(Transformer)/embed/mul', 'optimizer'),
    ('jit(step)/norms/mul', 'norms'),
    ('jit(step)/mul', 'step'),
    ("state.params['embed']", parts.MOVES),
    ('', parts.UNKNOWN),
  ],
)  # fmt: skip
def test_parts_by_path(path, part):
  assert parts.of(path) == part


PROGRAM = """HloModule jit_step, is_scheduled=true

%body (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  ROOT %loop_add.1 = f32[8,8]{1,0} add(%p, %p), metadata={op_name="jit(step)/optimizer/add"}
}

%condition (q: f32[8,8]) -> pred[] {
  %q = f32[8,8]{1,0} parameter(0)
  ROOT %more = pred[] constant(true)
}

ENTRY %main (a: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  %dot.5 = f32[8,8]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %while.2 = f32[8,8]{1,0} while(%dot.5), body=%body, condition=%condition
}
"""


def plane(name: str, lines: dict[str, list[tuple[str, int, int, dict]]]) -> str:
  """A plane of a trace as text: {line: [(event, from, to, stats)]}, in microseconds."""
  names, stats, out = [], [], []
  number = lambda known, x: known.index(x) + 1 if x in known else known.append(x) or len(known)
  for line, found in lines.items():
    out.append(f'lines {{ name: "{line}"')
    for event, start, end, said in found:
      out.append(f'events {{ metadata_id: {number(names, event)}')
      out.append(f'offset_ps: {start * 10**6} duration_ps: {(end - start) * 10**6}')
      for key, value in said.items():
        out.append(f'stats {{ metadata_id: {number(stats, key)} str_value: "{value}" }}')
      out.append('}')
    out.append('}')
  for kind, known in (('event', names), ('stat', stats)):
    for n, x in enumerate(known, 1):
      out.append(f'{kind}_metadata {{ key: {n} value {{ id: {n} name: "{x}" }} }}')
  return f'planes {{ name: "{name}" {" ".join(out)} }}'


def rows_of(text: str, steps: int):
  devices = events.read(ProfileData.from_text_proto(text), 'jit_step')
  costs = table.Costs(hlo.parse(PROGRAM), {e.name for d in devices.values() for e in d.events})
  spent = [events.spent(d, steps, costs.above) for d in devices.values()]
  return {r.name: r for r in table.rows(costs, spent, RATES)}, spent


def test_a_trace_of_a_tpu():
  full = '%dot.5 = f32[8,8]{1,0} dot(%a, %a), lhs_contracting_dims={1}'
  ops = []
  for at in (0, 1000):
    ops += [(full, at, at + 40, {}), ('%while.2 = f32[8,8] while(%dot.5)', at + 50, at + 90, {})]
    ops += [('%loop_add.1 = f32[8,8] add(%p, %p)', at + 50 + 10 * i, at + 60 + 10 * i, {})
            for i in range(3)]  # fmt: skip
  modules = [('jit_step(123)', at, at + 100, {}) for at in (0, 1000)]
  lines = {'XLA Modules': modules, 'XLA Ops': ops, 'Steps': [('1', 0, 2000, {})]}
  rows, spent = rows_of(plane('/device:TPU:0', lines) + plane('/host:CPU', {}), 2)
  us = {name: pytest.approx(1e6 * r.seconds) for name, r in rows.items()}
  assert us == {'dot.5': 40, 'loop_add.1': 30, 'while.2': 10, table.IDLE: 20}
  assert rows['loop_add.1'].calls == 3 and rows['loop_add.1'].part == 'optimizer'
  assert rows['dot.5'].flops == 2 * 8**3 and rows['dot.5'].kind == 'matrix product'
  assert rows['loop_add.1'].bytes == 3 * 3 * 8 * 8 * 4
  assert spent[0].total == pytest.approx(1e-4) and spent[0].steps == 2


def test_a_loop_that_is_one_kernel_costs_what_it_runs():
  """A call inside of a loop, of which nothing but itself is seen, as XLA makes of small loops."""
  turns = 'body=%body, backend_config={"known_trip_count":{"n":"4"}}'
  text = PROGRAM.replace('body=%body', turns).replace('ENTRY %main (a', '%small (a') + (
    '\nENTRY %main (b: f32[8,8]) -> f32[8,8] {\n  %b = f32[8,8]{1,0} parameter(0)\n'
    '  ROOT %call.1 = f32[8,8]{1,0} call(%b), to_apply=%small\n}\n'
  )
  program = hlo.parse(text)
  costs = table.Costs(program, {'call.1'})
  both = costs.row('call.1', 1e-6, 2, RATES)
  assert both.flops == 2 * 2 * 8**3 and both.bytes == 2 * (1 + 4) * 3 * 8 * 8 * 4
  split = table.Costs(program, {'call.1', 'while.2', 'dot.5', 'loop_add.1'})
  assert split.row('call.1', 1e-6, 2, RATES).flops == 0
  marks = [('call.1', 0, 100), ('while.2', 10, 90), ('loop_add.1', 20, 50), ('other', 95, 99)]
  found = [events.Event(1e3 * a, 1e3 * b, name) for name, a, b in marks]
  spent = events.spent(events.Device(found, [(0.0, 1e5)]), 1, split.above)
  us = {name: pytest.approx(1e6 * s) for name, s in spent.seconds.items()}
  assert us == {'call.1': 16, 'while.2': 50, 'loop_add.1': 30, 'other': 4}
  inner = events.spent(events.Device(found[:2], [(0.0, 1e5)]), 1, split.above)
  assert inner.seconds == {'call.1': pytest.approx(2e-5), 'while.2': pytest.approx(8e-5)}


def test_a_joined_product_is_of_the_parts_that_read_it():
  """XLA joins products of one input, and forgets where they come from."""
  reader = '  %{} = f32[8,4]{{1,0}} slice(%dot.5), slice={{{}}}, metadata={{op_name="{}"}}\n'
  block = 'jit(step)/jvp(T)/segment_0/0_block/'
  sliced = reader.format('s.1', '[0:8], [0:4]', block + '0_block.mix/mixer/q/slice')
  sliced += reader.format('s.2', '[0:8], [4:8]', block + '0_block.feed/ffn/jit(f)/up/slice')
  program = hlo.parse(PROGRAM.replace('  ROOT %while.2', sliced + '  ROOT %while.2'))
  assert table.Costs(program, {'dot.5'}).row('dot.5', 1.0, 1, RATES).part == 'ffn + mixer'
  alone = table.Costs(hlo.parse(PROGRAM), {'dot.5'})
  assert alone.row('dot.5', 1.0, 1, RATES).part == parts.UNKNOWN


def test_a_trace_of_a_gpu():
  """Kernels bear their instruction's name or one like it; what is neither has a row of its own; two
  streams share what they do at the same time.
  """
  first = [
    ('ampere_sgemm_32x32', 0, 40, {'hlo_op': 'dot.5', 'hlo_module': 'jit_step'}),
    ('loop_add_1', 40, 56, {}),
  ]
  second = [('MemcpyD2D', 50, 60, {}), ('fusion', 70, 84, {'hlo_module': 'other'})]
  lines = {'Stream #13(Compute)': first, 'Stream #14(MemcpyD2D)': second}
  rows, _ = rows_of(plane('/device:GPU:0', lines), 1)
  us = {name: pytest.approx(1e6 * r.seconds) for name, r in rows.items()}
  assert us == {'dot.5': 40, 'loop_add.1': 13, 'MemcpyD2D': 7, 'other/fusion': 14, table.IDLE: 10}
  assert rows['MemcpyD2D'].part == rows['other/fusion'].part == table.UNMATCHED
  assert table.by(list(rows.values()), 'part')[1].name == table.UNMATCHED

"""The command: a run becomes a run directory in fewer bits, that is evaluated, sampled and exported
like any other; layers in order; what is refused, and leaves nothing behind.
"""

import functools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from lmjax import build
from lmjax import config
from lmjax import lm
from lmjax import main as main_lib
from lmjax import quantize
from lmjax import restore
from lmjax import sample
from lmjax.checkpoint import manifest
from lmjax.checkpoint import tool
from lmjax.quantizers import _layers

pytestmark = pytest.mark.slow  # minutes of compiling

SMALL = (
  ('model.width', '32'),
  ('model.depth', '3'),
  ('model.stack', ''),
  ('model.mixer', 'gqa(head_dim=8, kv_heads=2)'),
  ('model.ffn', 'swiglu(hidden=48, bias=True)'),
  ('data.length', '32'),
  ('batch_tokens', '256'),
  ('eval.batches', '4'),
  ('report', 'False'),
  ('tensorboard', 'False'),
)


def built(*changes):
  return build.build(config.resolve(config.load('quickstart', [*SMALL, *changes])))


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """A run directory with a checkpoint whose matrices are far from their first values."""
  path, run = tmp_path_factory.mktemp('runs') / 'run', built()
  params = run.init(jax.random.key(0)).params
  rng = np.random.default_rng(0)
  louder = lambda a: np.asarray(a) + 0.1 * rng.normal(size=a.shape).astype(np.float32)
  quantize.write(path, run.config, dict(params=jax.tree.map(louder, params), vars={}), 7)
  return path


@pytest.fixture(scope='module')
def four(source, tmp_path_factory):
  """(directory, what the command found) of gptq in four bits."""
  out = tmp_path_factory.mktemp('runs') / 'four'
  return out, quantize.quantize(str(source), 'gptq(bits=4, group=16)', str(out), rows=16)


def test_what_it_says_is_what_is_stored(source, four):
  out, found = four
  leaves = lambda path: manifest.read(next((path / 'checkpoints').glob('7')))['leaves']
  size = lambda path: sum(
    np.prod(e['shape']) * np.dtype(e['dtype']).itemsize for e in leaves(path).values()
  )
  assert [size(source), size(out)] == found['bytes']
  stored = {k: e for k, e in leaves(out).items() if k.startswith('vars/')}
  assert {k.rpartition('/')[2]: e['dtype'] for k, e in stored.items()} == dict(
    codes='uint8', scale='float16', zero='uint8'
  )
  matrices = 3 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48)
  assert found['matrices']['numbers'] == matrices
  assert found['matrices']['bytes'] == [4 * matrices, matrices * (4 + 20 / 16) / 8]
  assert json.loads((out / quantize.FILE).read_text()) == found
  names = {'/'.join(k) for k in [('mixer', n) for n in ('q', 'k', 'v', 'out')]}
  names |= {f'ffn/{n}' for n in ('up', 'gate', 'down')}
  assert [set(e) for e in found['errors']] == [names] * 3
  assert all(1e-6 < v < 0.05 for e in found['errors'] for v in e.values())


def test_a_table_is_printed(four):
  text = quantize.table(four[1])
  lines = text.splitlines()
  assert lines[0].split() == ['before', 'after']
  assert f'{four[1]["bytes"][1]:,}' in text and 'validation perplexity' in text
  assert any(line.split()[:1] == ['2'] and line.count('e-') == 7 for line in lines)
  assert 'outlier' not in text
  assert 'emergent outlier features: 3, 9' in quantize.table({**four[1], 'outliers': [3, 9]})
  assert 'emergent outlier features: none' in quantize.table({**four[1], 'outliers': []})


def test_the_directory_is_evaluated_sampled_and_exported(four, tmp_path, capsys):
  out = tmp_path / 'copy'
  shutil.copytree(four[0], out)
  text = tmp_path / 'x.txt'
  text.write_text('To be, or not to be, that is the question. ' * 5)
  assert main_lib.main([f'--workdir={out}', f'--eval=perplexity(path={str(text)!r})']) == 0
  scores = [json.loads(x) for x in (out / 'metrics.jsonl').read_text().splitlines()]
  nll = next(s['value'] for s in scores if s.get('name', '').startswith('nll'))
  assert 0 < nll < 20
  assert sample.main([f'--workdir={out}', '--prompt=ROMEO', '--tokens=8']) == 0
  assert 'ROMEO' in capsys.readouterr().out
  assert tool.main(['export', str(out), '--out', str(tmp_path / 'w.safetensors')]) == 0
  run, params, vars, step = restore.load(out)
  assert step == 7 and run.config['model']['linear'].startswith('quantized(bits=4, group=16')
  codes = vars['vars']['segment_0']['0_block']['ffn']['down']['codes']
  assert codes.dtype == np.uint8 and codes.shape == (3, 48, 16)


def test_the_loss_that_is_told_is_that_of_the_directory(source, four):
  """The model of the directory, by itself, on text: nearly that of the source, and not the same."""
  ids = np.frombuffer(b'First Citizen: Before we proceed any further, hear me speak.', np.uint8)

  def score(path):
    run, params, vars, _ = restore.load(path)
    net = lm.LM(run.architecture, {'params': params, **vars}, run.tokenizer, length=run.length)
    return -net.rolling(ids.tolist()).mean()

  before, after = score(source), score(four[0])
  assert 1e-5 < abs(before - after) < 0.1 * before
  told = [x['loss'] for x in four[1]['loss']]
  assert 1e-5 < abs(told[0] - told[1]) < 0.1 * told[0]
  run, params, vars, _ = restore.load(four[0])
  feed = quantize.feed_of(run, four[0], four[0])
  again = quantize.held_out(run, params, vars, feed)
  assert again['loss'] == pytest.approx(told[1], rel=1e-6)


# ------------------------------------------------------------------ calibration


class Recorder:
  """A quantizer part that remembers its inputs and rounds as another one does."""

  def __init__(self, part):
    self._part, self.seen = part, []

  def fact(self, key):
    return True

  def __call__(self):
    return self

  def quantize(self, kernel, inputs):
    self.seen.append(inputs)
    return self._part().quantize(kernel, inputs)


@functools.cache
def passed(method):
  """(run, params, tokens, the new run, inputs by matrix, Result) of one pass."""
  run = built()
  params = jax.tree.map(lambda a: a * 4, run.init(jax.random.key(0)).params)
  part = quantize.registry.make('quantizer', method)
  new = build.build(quantize.quantized_config(run.config, part().linear))
  rng, segments = np.random.default_rng(0), np.ones((6, 33), np.int32)
  segments[2, 20:] = 0
  tokens = rng.integers(0, 256, (6, 33)).astype(np.int32)
  rows = dict(tokens=tokens, segments=segments, positions=np.cumsum(segments, 1, np.int32) - 1)
  recorder = Recorder(part)
  result = _layers.Pass(run, new, recorder)(params, {}, rows)
  return run, params, rows, new, recorder.seen, result


def inputs_of(run, variables, rows, path):
  """What a matrix of the whole model sees, (tokens, inputs), padding left out."""
  found = {}

  def see(module, x, y):
    if module.path == path:
      module.put_variable('vars', 'seen', x)

  cut = {k: v[:, :32] for k, v in rows.items()}
  ctx = _layers.kinds.Ctx(cut['positions'], cut['segments'])
  with _layers._watching(run.model.scheme.linear.obj, see):
    _, after = run.architecture.apply(variables, cut['tokens'], ctx, mutable=['vars'])
  found = after['vars']
  for key in path:
    found = found[key]
  x = np.float64(found['seen'])  # (layers, B, T, ...)
  return x.reshape(*x.shape[:3], -1)[:, cut['segments'] > 0]


def test_inputs_come_from_the_layers_before_as_quantized():
  """Statistics of the last layer are those of the quantized model, not of the one that was given;
  those of the first are the same in both. Padding is left out.
  """
  run, params, rows, new, seen, result = passed('rtn(bits=2)')
  path = ('segment_0', '0_block', 'mixer', 'q')
  old = inputs_of(run, {'params': params}, rows, path)
  made = {'params': result.params, **result.vars}
  got = inputs_of(new, made, rows, path)
  assert np.abs(got[2] - old[2]).max() > 0.1 * np.abs(old[2]).max()
  count = len(seen) // 3
  order = [p[2:] for p in _layers.matrices(run, params)]
  for layer in range(3):
    x = got[layer]
    inputs = seen[layer * count + order.index(('mixer', 'q'))]
    np.testing.assert_allclose(inputs.hessian_II, 2 / len(x) * x.T @ x, rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(inputs.largest_I, np.abs(x).max(axis=0), rtol=1e-3)
  assert len(x) == 6 * 32 - 12


def test_the_error_is_that_of_the_matrix_on_its_inputs():
  run, params, rows, new, seen, result = passed('rtn(bits=2)')
  path = ('segment_0', '0_block', 'ffn', 'down')
  order = [p[2:] for p in _layers.matrices(run, params)]
  kernel = np.float64(params['segment_0']['0_block']['ffn']['down']['kernel'])
  module = new.model.scheme.linear(
    ins=(('mlp', 48),), outs=(('embed', 32),), role='residual', bias=False, parent=None,
    scheme=new.model.scheme,
  )  # fmt: skip
  stored = result.vars['vars']['segment_0']['0_block']['ffn']['down']
  for layer in range(3):
    h = seen[layer * len(order) + order.index(path[2:])].hessian_II
    off = kernel[layer] - np.float64(module.matrix(jax.tree.map(lambda a: a[layer], stored)))  # noqa: B023
    want = np.sum(off * (h @ off)) / np.sum(kernel[layer] * (h @ kernel[layer]))
    assert result.errors[layer]['ffn/down'] == pytest.approx(want, rel=5e-3)


def test_calibration_never_sees_the_validation_set(source, tmp_path):
  run, *_ = restore.load(source)
  feed = quantize.feed_of(run, source, tmp_path / 'out')
  rows = quantize.rows_of(feed, 11)
  assert rows['tokens'].shape == (11, 33)
  held = np.concatenate([np.asarray(b['tokens']).ravel() for b in feed.valid()]).tobytes()
  assert not any(r[5:25].tobytes() in held for r in rows['tokens'])
  first = np.asarray(next(iter(feed.train(0)))['tokens'])
  assert np.array_equal(rows['tokens'][: len(first)], first[:11])


# ------------------------------------------------------------------ runs that weigh their sources


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  """Three files of a few lines."""
  folder = tmp_path_factory.mktemp('texts')
  for name in 'abc':
    (folder / name).write_text(f'{name} cat sat on a mat and saw a dog, {name}!\n' * 40)
  return [f'text(path="{folder / name}")' for name in 'abc']


def weighing(folder, texts, *changes):
  """A run directory with the first values of a run over two sources."""
  both = ' + '.join(texts[:2])
  run = built(('data.train', both), ('data.valid', both), ('model.depth', '1'), *changes)
  state = run.init(jax.random.key(0))
  quantize.write(folder, run.config, dict(params=state.params, vars=state.vars), 7)
  return folder


@pytest.mark.parametrize('data', [False, True])
@pytest.mark.parametrize(
  'changes',
  [
    [('data.mixture', 'single(source="text")')],
    [('data.mixture', 'aioli(update_steps=32)')],
    [('objective', 'doge()')],
    [('objective', 'doremi(reference="nowhere")')],
  ],
)
def test_calibration_needs_no_losses_and_no_second_source(texts, tmp_path, changes, data):
  """More rows than the first step has, from both sources or from one other."""
  source = weighing(tmp_path / 'run', texts, *changes)
  given = dict(data=texts[2]) if data else {}
  found = quantize.quantize(str(source), 'rtn(bits=8)', str(tmp_path / 'o'), rows=20, **given)
  assert found['rows'] == 20 and set(found['errors'][0]) >= {'mixer/q', 'ffn/up'}
  assert found['loss'][0]['loss'] == pytest.approx(found['loss'][1]['loss'], rel=0.01)
  run, _, vars, _ = restore.load(tmp_path / 'o')
  assert run.config['objective'].startswith('clm(') and set(vars) == {'vars'}


def test_without_the_weights_that_a_proxy_learnt_other_data_are_taken(texts, tmp_path, capsys):
  source = weighing(tmp_path / 'run', texts, ('data.mixture', 'learned(run="nowhere")'))
  how = [str(source), '--method=rtn(bits=8)', f'--out={tmp_path / "o"}', '--rows=4']
  refused(how, 'nowhere', capsys)
  assert quantize.main([*how, f'--data={texts[2]}']) == 0


def test_several_networks_are_refused_before_anything_is_read(tmp_path, capsys):
  run = built(('objective', 'electra()'), ('model.mixer', 'gqa(head_dim=8, causal=False)'))
  folder = tmp_path / 'run'
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(run.config))  # there is no checkpoint
  how = [str(folder), '--method=rtn(bits=8)', f'--out={tmp_path / "o"}']
  refused(how, 'trains several networks; a run of one network is expected', capsys)
  assert not (tmp_path / 'o').exists()


# ------------------------------------------------------------------ refusals


def refused(argv, said, capsys):
  assert quantize.main(argv) == 2
  err = capsys.readouterr().err
  assert err.startswith('lmjax: ') and err.count('\n') == 1 and said in err, err


@pytest.mark.parametrize(
  'method, said',
  [
    ('awq(bits=4)', "no quantizer named 'awq'"),
    ('rtn(bits=9)', 'bits=9: from 2 to 8 is expected'),
    ('rtn()', "rtn needs the argument 'bits'"),
    ('rtn(bits=4, group=5)', 'group=5 does not divide the 32 inputs of'),
    ('rtn(bits=4', 'config.quantizer'),
  ],
)
def test_a_method_that_cannot_be_used(source, tmp_path, capsys, method, said):
  refused([str(source), f'--method={method}', f'--out={tmp_path / "o"}'], said, capsys)
  assert not (tmp_path / 'o').exists()


def test_a_directory_that_is_not_empty_is_left_alone(source, tmp_path, capsys):
  (tmp_path / 'mine').write_text('x')
  refused([str(source), '--method=rtn(bits=4)', f'--out={tmp_path}'], 'not empty', capsys)
  assert [p.name for p in tmp_path.iterdir()] == ['mine']
  (tmp_path / 'mine').rename(tmp_path / 'tokens')  # what an earlier try may leave
  quantize.check_free(tmp_path)


def test_runs_that_cannot_be_read(source, tmp_path, capsys):
  how = ['--method=rtn(bits=4)', f'--out={tmp_path / "o"}']
  refused([str(tmp_path / 'none'), *how], 'is not a run directory', capsys)
  bare = tmp_path / 'bare'
  bare.mkdir()
  shutil.copy(source / 'config.json', bare / 'config.json')
  refused([str(bare), *how], 'no complete checkpoint', capsys)
  assert not (tmp_path / 'o').exists()


def test_rows_and_data(source, tmp_path, capsys):
  out = f'--out={tmp_path / "o"}'
  refused([str(source), '--method=gptq(bits=4)', out, '--rows=0'], 'needs calibration rows', capsys)
  refused([str(source), '--method=rtn(bits=4)', out, '--rows=-1'], '--rows=-1', capsys)
  valid = restore.load(source)[0].config['data']['valid']
  refused(
    [str(source), '--method=gptq(bits=4)', out, f'--data={valid}'], 'config.data.valid', capsys
  )
  refused(
    [str(source), '--method=gptq(bits=4)', out, '--data=text(path="no.txt")'], 'no.txt', capsys
  )


@pytest.mark.parametrize('linear', ['low_rank(rank=2)', 'quantized(bits=4)', 'int8()'])
def test_other_linear_parts_cannot_be_read(linear):
  run = built(('model.linear', linear))
  with pytest.raises(ValueError, match=r'config\.model\.linear=.* its matrix cannot be read'):
    _layers.matrices(run, run.shapes['params'])


def test_shared_layers_and_weights_that_are_not_finite_are_refused():
  with pytest.raises(ValueError, match='config.model.stack: a segment that shares its weights'):
    _layers.layers(built(('model.stack', 'shared(block)*3')).model)
  run = built()
  params = jax.tree.map(np.array, run.init(jax.random.key(0)).params)
  params['segment_0']['0_block']['mixer']['v']['kernel'][1] = np.nan
  part = quantize.registry.make('quantizer', 'rtn(bits=4)')
  new = build.build(quantize.quantized_config(run.config, part().linear))
  with pytest.raises(ValueError, match='layer 1, mixer/v: the matrix holds numbers that are not'):
    _layers.Pass(run, new, part)(params, {}, {})


def test_without_rows_nothing_is_compared(source, tmp_path):
  found = quantize.quantize(str(source), 'rtn(bits=8)', str(tmp_path / 'o'), rows=0)
  assert found['rows'] == 0 and found['errors'] == [{}, {}, {}] and found['loss'][1]
  assert 'squared error' not in quantize.table(found)
  assert pathlib.Path(tmp_path / 'o' / 'checkpoints' / '7').is_dir()

"""python -m lmjax.checkpoint on real checkpoints: what it prints, how it exits, what it imports."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lmjax.checkpoint import Checkpointer
from lmjax.checkpoint import compare
from lmjax.checkpoint import manifest
from lmjax.checkpoint import show
from lmjax.checkpoint import tool
from lmjax.interop import safetensors


def _state(step):
  params = {
    'embed': {'table': (jnp.arange(12.0).reshape(4, 3) + step).astype(jnp.bfloat16)},
    'layer': {'a/b': jnp.ones((2, 3)) / 3, 'bits': jnp.arange(3, dtype=jnp.uint8)},
  }
  return {
    'step': jnp.int32(step),
    'params': params,
    'opt': {'mu': jnp.zeros((4, 3))},
    'vars': {},
    'rng': jax.random.key(0),
  }


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  run = tmp_path_factory.mktemp('saved') / 'run'
  with Checkpointer(run / 'checkpoints', keep_last=0) as c:
    for s in (100, 200):
      c.save(s, _state(s), {'step': s, 'plan': {'seed': 1}}, {'loss': 100 / s})
  return run


@pytest.fixture
def run(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'run')
  return tmp_path / 'run'


@pytest.fixture
def call(capsys):
  def call(*argv):
    """(exit status, standard output, standard error)"""
    try:
      status = tool.main(list(map(str, argv)))
    except SystemExit as e:  # argparse
      status = e.code
    return status, *capsys.readouterr()

  return call


def _flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


# ------------------------------------------------------------------ inspect


def test_inspect_lists_the_steps_of_a_run(run, call):
  checkpoints = run / 'checkpoints'
  shutil.copytree(checkpoints / '200', checkpoints / '300')
  (checkpoints / '400').mkdir()
  for path in (run, checkpoints):
    status, out, err = call('inspect', path)
    assert (status, err) == (0, '')
    head, titles, *rows, _ = out.splitlines()
    assert head == str(checkpoints)
    assert titles.split() == ['step', 'saved', 'bytes', 'arrays', 'scores', 'state']
    for step, row, end in ((100, rows[0], '1 +whole'), (200, rows[1], '0.5 +whole, best loss')):
      files = manifest.read(checkpoints / str(step))['files'].values()
      total = show.size(sum(f['size'] for f in files))
      saved_at = r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d'
      assert re.fullmatch(f' {step}  {saved_at}  {total} +6  loss {end}', row)
    assert re.fullmatch(
      f' 300 .* damaged: {checkpoints}/300/manifest.json is of step 200.*', rows[2]
    )
    assert re.fullmatch(' 400 .*an unfinished save, which is not used', rows[3]) and len(rows) == 4


@pytest.mark.parametrize('how', ['step', 'flag', 'elsewhere'])
def test_inspect_shows_the_arrays_of_a_step(run, call, tmp_path, how):
  where = run / 'checkpoints' / '200'
  if how == 'elsewhere':
    where = where.rename(tmp_path / 'kept')
  args = (run, '--step=200') if how == 'flag' else (where,)
  status, out, err = call('inspect', *args)
  assert (status, err) == (0, '')
  lines = [line.rstrip() for line in out.splitlines()]
  assert lines[:2] == [str(where), 'step     200']
  assert f'jax {jax.__version__}' in lines[2] and 'by lmjax ' in lines[2]
  assert lines[4:6] == ['scores   loss 0.5', 'cursor   {"step": 200, "plan": {"seed": 1}}']
  rows = {cells[0]: cells[1:] for line in lines[7:] if (cells := re.split('  +', line.strip()))}
  assert rows['params/'] == ['3 arrays', '21', '51 B']
  assert rows['embed/'] == [] and rows['table'] == ['bfloat16[4,3]', '12', '24 B']
  assert rows['a%2Fb'] == ['float32[2,3]', '6', '24 B'] and rows['bits'] == ['uint8[3]', '3', '3 B']
  assert rows['opt/'] == ['1 array', '12', '48 B'] and rows['vars/'] == ['0 arrays', '0', '0 B']
  assert rows['rng'] == ['key<fry>[]', '1', '8 B'] and rows['step'] == ['int32[]', '1', '4 B']
  assert rows['total'] == ['6 arrays', '35', '111 B']


def test_inspect_says_what_is_damaged(run, call):
  where = run / 'checkpoints' / '200'
  (where / 'state' / '_METADATA').unlink()
  _flip(where / 'cursor' / 'metadata')
  status, out, _ = call('inspect', where)
  assert status == 0 and f'damaged  {where}/state/_METADATA is missing\n' in out
  assert re.search(f'cursor   .*{where}/cursor/metadata does not match its checksum', out)


def test_nothing_in_a_file_reaches_the_terminal_as_a_command(run, call):
  where = run / 'checkpoints' / '200'
  body = manifest.read(where)
  body['leaves']['params/\x1b[2J'] = {'shape': [2], 'dtype': 'float32'}
  manifest.put(where, body | {'scores': {'\x1b]0;x\x07': 1.0}, 'lmjax': 'a\nb\u202e'})
  for path in (where, run):
    status, out, _ = call('inspect', path)
    assert status == 0 and '\\x1b' in out and all(c.isprintable() or c == '\n' for c in out)
  assert 'a\\nb\\u202e' in call('inspect', where)[1]


# ------------------------------------------------------------------ verify


def test_verify_reads_every_file_of_every_step(run, call):
  checkpoints = run / 'checkpoints'
  (checkpoints / '300').mkdir()
  good = 'every file is what was saved'
  unfinished = f'{checkpoints}/300: an unfinished save, which is not used\n'
  status, out, err = call('verify', run)
  assert (status, err) == (0, '')
  assert out == f'{checkpoints}/100: {good}\n{checkpoints}/200: {good}\n{unfinished}'
  _flip(checkpoints / '100' / 'cursor' / 'metadata')
  (checkpoints / '100' / 'mine').write_text('')
  bad = (
    f'{checkpoints}/100: damaged\n  {checkpoints}/100/cursor/metadata does not match its checksum\n'
    f'  {checkpoints}/100/mine is not in the manifest; move it out of the checkpoint\n'
  )
  assert call('verify', checkpoints) == (1, f'{bad}{checkpoints}/200: {good}\n{unfinished}', '')
  assert call('verify', run, '--step', 100) == (1, bad, '')
  assert call('verify', run, '--step=200') == (0, f'{checkpoints}/200: {good}\n', '')
  assert call('verify', checkpoints / '200')[0] == 0
  status, out, _ = call('verify', checkpoints / '300')
  assert status == 1 and 'manifest.json does not exist: the save did not finish' in out


# ------------------------------------------------------------------ diff


def test_diff_of_equal_steps_says_so(run, call, tmp_path):
  with Checkpointer(tmp_path / 'b') as c:  # other files, another time, the same bits
    c.save(100, _state(100), {'plan': {'seed': 1}, 'step': 100})
  a, b = run / 'checkpoints' / '100', tmp_path / 'b' / '100'
  want = f'A  {a}\nB  {b}\nall 6 arrays are bit-equal; the cursors are equal\n'
  assert call('diff', a, b) == (0, want, '')
  assert call('diff', run, tmp_path / 'b', '--step=100') == (0, want, '')


def test_diff_names_what_differs(run, call, tmp_path):
  other = _state(100)
  other['params']['layer']['bits'] = jnp.array([0, 9, 2], jnp.uint8)
  other['params']['layer']['new'] = jnp.ones(2)
  other['opt']['mu'] = jnp.zeros((3, 4))
  del other['step']
  with Checkpointer(tmp_path / 'b') as c:
    c.save(100, other, {'step': 101, 'plan': {}})
  status, out, _ = call('diff', run / 'checkpoints' / '100', tmp_path / 'b')
  assert status == 1
  assert out.splitlines()[2:] == [
    'opt/mu  float32[4,3] and float32[3,4]',
    'params/layer/new  only in B: float32[2]',
    'step  only in A: int32[]',
    'params/layer/bits  uint8[3]: 1 of 3 elements differ, max |a - b| = 8',
    'cursor.plan: absent and {}',
    'cursor.plan.seed: 1 and absent',
    'cursor.step: 100 and 101',
    '4 of 7 arrays differ; the cursors differ',
  ]


def test_a_cursor_alone_makes_a_difference(run, call, tmp_path):
  with Checkpointer(tmp_path / 'b') as c:
    c.save(100, _state(100), {'step': 100, 'plan': {'seed': 2}})
  status, out, _ = call('diff', run / 'checkpoints' / '100', tmp_path / 'b')
  assert status == 1 and 'cursor.plan.seed: 1 and 2\n' in out and 'all 6 arrays are bit-eq' in out


def test_diff_takes_the_newest_steps_and_refuses_damaged_ones(run, call):
  checkpoints = run / 'checkpoints'
  status, out, _ = call('diff', run, checkpoints / '200')
  assert status == 0 and out.startswith(f'A  {checkpoints}/200\nB  {checkpoints}/200\n')
  _flip(checkpoints / '200' / 'cursor' / 'metadata')
  status, _, err = call('diff', run, checkpoints / '100')
  assert status == 2 and f'checkpoint {checkpoints}/200 is damaged: ' in err


NAN, INF = float('nan'), float('inf')
BF16 = ml_dtypes.bfloat16


@pytest.mark.parametrize(
  'a, b, count, largest',
  [
    (np.array([0.0, 1, 2]), np.array([-0.0, 1, 2.5]), 2, 0.5),
    (np.array([NAN, 1]), np.array([1, 1.0]), 1, NAN),
    (np.array([INF, 1]), np.array([INF, 3]), 1, 2),
    (np.array([INF, 1]), np.array([-INF, 3]), 2, NAN),
    (np.array([-(2**63), 0]), np.array([2**63 - 1, 0]), 1, 2.0**64 - 1),
    (np.array([2**64 - 1], np.uint64), np.array([0], np.uint64), 1, 2.0**64 - 1),
    (np.array([-128, 5], np.int8), np.array([127, 5], np.int8), 1, 255),
    (np.array([True, False]), np.array([False, False]), 1, 1),
    (np.array([1 + 1j]), np.array([1 - 2j]), 1, 3),
    (np.array([1, 2], BF16), np.array([1, 2.5], BF16), 1, 0.5),
    (np.array(1.0, np.float16), np.array(2.0, np.float16), 1, 1),
    (np.float32([[3e38]]), np.float32([[-3e38]]), 1, 6e38),
  ],
)
def test_elements_counts_bits_and_measures_values(a, b, count, largest):
  found = compare.elements(a, b)
  assert found[0] == count and found[1] == pytest.approx(largest, rel=1e-6, nan_ok=True)
  assert compare.elements(a, a.copy()) is None


def test_nans_of_other_bits_differ_by_nothing():
  a = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
  assert compare.elements(a, a[::-1]) == (2, 0.0)
  assert compare.elements(np.zeros((0, 3)), np.zeros((0, 3))) is None


# ------------------------------------------------------------------ export


def test_export_writes_what_was_saved(run, call, tmp_path):
  out = tmp_path / 'w.safetensors'
  status, text, err = call('export', run, f'--out={out}', '--only=all')
  assert (status, err) == (0, '') and text == f'{out}: 6 arrays, 111 B, step 200\n'
  found = safetensors.read(out)
  assert sorted(found) == [
    'opt/mu',
    'params/embed/table',
    'params/layer/a%2Fb',
    'params/layer/bits',
    'rng',
    'step',
  ]
  want = Checkpointer(run / 'checkpoints').restore_params(200)
  table = found['params/embed/table']
  assert table.dtype == BF16 and table.tobytes() == want['params']['embed']['table'].tobytes()
  np.testing.assert_array_equal(found['params/layer/a%2Fb'], want['params']['layer']['a/b'])
  assert found['step'].shape == () and found['step'] == 200 and found['rng'].tolist() == [0, 0]
  version = manifest.read(run / 'checkpoints' / '200')['lmjax']
  assert version and safetensors.header(out).metadata == {'step': '200', 'lmjax': version}


def test_export_writes_the_weights_unless_told_otherwise(run, call, tmp_path):
  out = tmp_path / 'w.safetensors'
  assert call('export', run, f'--out={out}')[0] == 0
  assert {k.split('/')[0] for k in safetensors.read(out)} == {'params'}
  with Checkpointer(tmp_path / 'c') as c:
    c.save(1, dict(params={'w': jnp.ones(2)}, vars={'m': jnp.ones(3)}, opt=jnp.ones(4)), {})
  assert call('export', tmp_path / 'c', f'--out={out}2')[0] == 0
  assert sorted(safetensors.read(f'{out}2')) == ['params/w', 'vars/m']


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_export_casts_the_floating_point_arrays_only(run, call, tmp_path, dtype):
  out = tmp_path / 'w'
  args = ('export', run, '--step=100', '--only=params,step', '--out', out, '--dtype', dtype)
  assert call(*args)[0] == 0
  found = safetensors.read(out)
  want = {
    'params/embed/table': _state(100)['params']['embed']['table'].astype(dtype),
    'params/layer/a%2Fb': _state(100)['params']['layer']['a/b'].astype(dtype),
    'params/layer/bits': _state(100)['params']['layer']['bits'],
    'step': jnp.int32(100),
  }
  assert found.keys() == want.keys()
  for name, array in want.items():
    assert found[name].dtype == array.dtype and found[name].tobytes() == np.asarray(array).tobytes()


def test_export_refuses_to_lose_anything(run, call, tmp_path):
  out = tmp_path / 'w'
  out.write_text('mine')
  status, text, err = call('export', run, f'--out={out}')
  assert (status, text) == (2, '') and f'{out} exists; name a file that does not' in err
  assert out.read_text() == 'mine'
  with Checkpointer(tmp_path / 'c') as c:
    c.save(1, {'params': {'w': jnp.array([1.0, 70000.0, INF])}}, {})
  status, _, err = call('export', tmp_path / 'c', f'--out={out}2', '--dtype=float16')
  assert status == 2 and '--dtype=float16: params/w has numbers beyond its range' in err
  assert call('export', tmp_path / 'c', f'--out={out}2', '--dtype=bfloat16')[0] == 0
  _flip(max((run / 'checkpoints/200/state/d').iterdir()))
  status, _, err = call('export', run, f'--out={out}3')
  assert status == 2 and 'checkpoints/200 is damaged' in err and not (tmp_path / 'w3').exists()


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize('command', ['inspect', 'verify', 'diff', 'export'])
def test_every_command_explains_itself(call, command):
  status, out, _ = call(command, '--help')
  assert status == 0 and 'a run directory, its `checkpoints`, or one step' in out


@pytest.mark.parametrize(
  'args, message',
  [
    (('inspect', '{t}/none'), 'none: no such directory'),
    (('verify', '{t}/none'), 'none: no such directory'),
    (('inspect', '{t}'), 'no checkpoint in '),
    (('verify', '{t}'), 'no checkpoint in '),
    (('inspect', '{r}', '--step=7'), '--step=7: .* has no such step; it has 100, 200'),
    (('inspect', '{r}/checkpoints/100', '--step=200'), '--step=200: .* is one step already, 100'),
    (('inspect', '{r}/checkpoints/5'), 'manifest.json does not exist: the save did not finish'),
    (('export', '{r}', '--out={t}/none/w'), 'there is no folder .*/none'),
    (('export', '{r}', '--out={t}/w', '--only=nets'), "'nets' is not in .*it has opt, params, rng"),
    (('export', '{t}/empty', '--out={t}/w'), 'no checkpoint in'),
    (('export', '{r}', '--out={t}/w', '--dtype=int8'), 'invalid choice'),
    (('inspect', '{r}', '--step=x'), 'invalid int value'),
    (('frob',), 'invalid choice'),
    ((), 'required'),
  ],
)
def test_bad_input_ends_with_a_sentence(run, call, tmp_path, args, message):
  (run / 'checkpoints' / '5').mkdir()
  (tmp_path / 'empty').mkdir()
  if 'has no such step' in message:
    (run / 'checkpoints' / '5').rmdir()
  status, out, err = call(*(a.format(t=tmp_path, r=run) for a in args))
  assert status == 2 and out == '' and re.search(message, err.splitlines()[-1])
  assert not (tmp_path / 'w').exists()


# ------------------------------------------------------------------ as a program


def test_the_tool_needs_one_cpu_and_no_training_code(run, tmp_path):
  """A machine with nothing but files: all commands, then what was imported for them."""
  code = f"""
      import runpy, sys, json
      def call(*argv):
        sys.argv = ['checkpoint', *argv]
        try:
          runpy.run_module('lmjax.checkpoint', run_name='__main__')
        except SystemExit as e:
          assert e.code == 0, (argv, e.code)
      run = {str(run)!r}
      call('inspect', run)
      call('inspect', run, '--step=100')
      call('verify', run)
      call('diff', run, run)
      call('export', run, '--out', run + '/w')
      import jax
      print(json.dumps([sorted(sys.modules), jax.default_backend(), jax.device_count()]))
      """
  env = {k: v for k, v in os.environ.items() if k not in ('JAX_PLATFORMS', 'XLA_FLAGS')}
  command = [sys.executable, '-c', textwrap.dedent(code)]
  out = subprocess.run(command, capture_output=True, text=True, env=env)
  assert out.returncode == 0, out.stderr
  modules, backend, devices = json.loads(out.stdout.splitlines()[-1])
  assert {'lmjax.checkpoint.tool', 'orbax.checkpoint', 'safetensors'} <= set(modules)
  banned = ('flax', 'optax', 'torch', 'tensorflow', 'grain', 'ml_collections')
  banned += tuple(
    f'lmjax.{m}' for m in 'train build config models optim data loop run kinds'.split()
  )
  found = [m for m in modules for b in banned if m == b or m.startswith(f'{b}.')]
  assert not found
  assert (backend, devices) == ('cpu', 1)


def test_output_to_a_pipe_is_plain_and_may_be_cut(run):
  command = f'{sys.executable} -m lmjax.checkpoint'
  for tail in ('', ' | head -c 20'):
    done = subprocess.run(
      f'{command} inspect {run} --step=200{tail}', shell=True, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == ''
    assert '\x1b' not in done.stdout and done.stdout.startswith(str(run)[:20])
  done = subprocess.run(f'{command} inspect {run}/none', shell=True, capture_output=True, text=True)
  assert (
    done.returncode == 2 and done.stderr == f'lmjax.checkpoint: {run}/none: no such directory\n'
  )


def test_a_program_that_calls_it_logs_as_before(run, call):
  log = logging.getLogger('lmjax')
  assert log.isEnabledFor(logging.WARNING)
  assert call('rewind', run, '--step=100')[0] == 0
  assert log.isEnabledFor(logging.WARNING)

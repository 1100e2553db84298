"""What experiments/perf/gpu.sh runs on a GPU, smaller than small on a CPU: what is written is whole
and adds up, and what fails is named.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PERF = ROOT / 'experiments' / 'perf'
PIECES = ('step124m', 'step1b', 'step8b', 'attention', 'loss', 'optim', 'decode')


def gpu_sh(folder, *words: str, python=sys.executable, small: str = '1'):
  env = dict(JAX_PLATFORMS='cpu', SMALL=small, OUT=str(folder), PYTHON=str(python))
  env |= dict(XLA_FLAGS='--xla_backend_optimization_level=0')  # one device, compiled fast
  command = ['bash', PERF / 'gpu.sh', *words]
  return subprocess.run(command, env=os.environ | env, capture_output=True, text=True)


def report(folder, piece: str) -> dict:
  done = gpu_sh(folder, piece)
  assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
  assert '| --- |' in done.stdout and f'== {piece}: exit status 0' in done.stdout
  found = json.loads((folder / f'{piece}.json').read_text())
  assert {'command', 'device', 'jax', 'lmjax', 'python'} <= set(found)
  return found


def here(found: dict, names, folder: str = 'contestants'):
  """The contestants of lmjax and PyTorch: measured, or PyTorch is not installed."""
  assert set(found[folder]) | set(found['missing']) >= set(names)
  for name in names:
    assert name in found[folder] or found['missing'][name] == 'torch absent'
  return found[folder]


@pytest.mark.slow
@pytest.mark.parametrize('piece', ['step124m', 'step8b'])  # all alive at once; one at a time
def test_steps(piece, tmp_path):
  found = report(tmp_path, piece)
  rows = here(found, ['lmjax', 'torch'])
  turn = found['turns']['lmjax'][-1]
  assert rows['lmjax']['tokens_per_second'] == pytest.approx(2 * 128 / turn['wall'])
  for row in rows.values():  # random bytes, parameters as drawn; to PyTorch all 384 rows are words
    assert np.log(260) - 0.3 < row['first_losses'][0] < np.log(384) + 0.3
  if 'torch' in rows:
    base = found['turns']['torch'][-1]['wall']
    assert rows['lmjax']['ratio'] == pytest.approx(base / turn['wall'])
    assert rows['lmjax']['params'] == rows['torch']['params']


@pytest.mark.slow
def test_a_contestant_that_cannot_run_is_named(tmp_path):
  out, wrong = tmp_path / 'out.json', 'lmjax model.remat=wrong'
  command = [sys.executable, PERF / 'train_step.py', '--recipe=gpt2:tiny', '--rows=1', '--steps=1']
  command += ['--rounds=1', f'--out={out}', '--contestants', wrong]
  env = os.environ | dict(JAX_PLATFORMS='cpu', PYTHONPATH=str(ROOT))
  done = subprocess.run(command, env=env, capture_output=True, text=True)
  assert done.returncode == 1 and f'no result of {wrong}' in done.stderr
  found = json.loads(out.read_text())
  assert not found['contestants'] and 'names(...)' in found['missing'][wrong]


@pytest.mark.slow
def test_attention(tmp_path):
  found = report(tmp_path, 'attention')['lengths']['64']
  assert {'cudnn', 'cudnn, documents', 'splash'} <= set(found['missing'])  # not on a CPU
  rows = here(found, ['xla', 'xla, documents', 'reference', 'torch flash'])
  for row in rows.values():
    assert row['error'] < 1e-5
    assert row['both']['flops'] == pytest.approx(
      3.5 * 4 * 64**2 / 2 * 16 * 2 / row['both']['seconds']
    )


@pytest.mark.slow
def test_loss(tmp_path):
  rows = here(report(tmp_path, 'loss'), ['whole', 'chunked', 'torch', 'torch compiled'])
  assert set(rows['whole']['of_whole']) == {1.0}


@pytest.mark.slow
def test_optim(tmp_path):
  found = report(tmp_path, 'optim')
  row = found['optimizers']['adamw']
  assert row['update_of_a_billion'] == pytest.approx(row['update'] / row['params'] * 1e9)
  floor = 4 * (3 + 2 * 2) * row['params'] / found['bandwidth']  # gradients; parameters, moments x 2
  assert row['update_floor'] == pytest.approx(floor, rel=1e-3)


@pytest.mark.slow
def test_decode(tmp_path):
  found = report(tmp_path, 'decode')
  whole, half = found['steps']
  cache = 4 * 2 * 80 * 128 * 4  # layers, keys and values, 16 + 64 places, width, float32
  read = [r['floor'] * found['bandwidth'] for r in (whole, half)]
  places = 4 * 2 * 80  # of the cache, which says where each key stands
  assert read[0] - read[1] == pytest.approx((read[0] - cache - places * 4) / 2, rel=0.02)


def test_what_fails_is_named(tmp_path):
  done = gpu_sh(tmp_path, 'loss', 'optim', python='false')
  assert done.returncode == 1 and 'FAILED: loss (1) optim (1)' in done.stderr
  done = gpu_sh(tmp_path, 'los')
  assert done.returncode == 2 and "no piece 'los'" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize('piece', PIECES)
def test_flags_for_a_gpu_are_known(piece, tmp_path):
  """With one more flag that none knows: it is the only one that is refused."""
  python = tmp_path / 'python'
  python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@" --nobody-knows-this\n')
  python.chmod(0o755)
  done = gpu_sh(tmp_path, piece, python=python, small='')
  assert 'error: unrecognized arguments: --nobody-knows-this\n' in done.stdout, done.stdout[-2000:]


@pytest.mark.parametrize(
  'recipe, more',
  [
    ('gpt2:tiny', dict(model__embed='tied()')),  # no words beyond the vocabulary
    ('llama:tiny', {}),
    ('llama:tiny', dict(model__embed='untied()')),
  ],
)
def test_pytorch_computes_the_same_model(recipe, more, monkeypatch):
  """Loss and gradient of the contestant at lmjax's parameters, biases and all."""
  torch = pytest.importorskip('torch', reason='PyTorch is not installed')
  monkeypatch.syspath_prepend(str(PERF))
  import _step
  import torch_gpt

  run = _step.make(recipe, 2, model__depth='2', **more)
  state, batch, key = run.init(jax.random.key(0)), _step.drawn(run, 1)[0], jax.random.key(1)
  noise = lambda a: a + 0.02 * jax.random.normal(jax.random.key(a.size), a.shape)
  params = jax.tree.map(noise, state.params)

  def loss(params):
    out = run.objective.loss(params, state.vars, jax.device_put(batch), key)
    return out.sum / out.weight

  ours, grads = jax.jit(jax.value_and_grad(loss))(params)
  model = torch_gpt.fill(torch_gpt.Gpt(torch_gpt.shape(run)), params)
  theirs = model(torch.from_numpy(batch['tokens']).long())
  theirs.backward()
  norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
  assert theirs.item() == pytest.approx(float(ours), rel=1e-5)
  assert norm.item() == pytest.approx(float(optax.tree.norm(grads)), rel=1e-4)


def test_pytorch_refuses_other_models(monkeypatch):
  pytest.importorskip('torch', reason='PyTorch is not installed')
  monkeypatch.syspath_prepend(str(PERF))
  import _step
  import torch_gpt

  run = _step.make('llama:tiny', 1, model__mixer='deltanet(head_dim=32)', model__position='none()')
  with pytest.raises(ValueError, match='deltanet'):
    torch_gpt.shape(run)

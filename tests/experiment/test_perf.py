"""Benchmarks of experiments/perf run as they are, smaller than small: what they write is whole and
adds up. No figure of such a run says anything about speed.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOADER = '--data= --batches=2 --steps=1 --rounds=1 --restarts=0,1000'.split()
COMPILE = '--depths=1,2 --width=8 --head=8 --length=8 --rows=2 --rounds=1'.split()
GROWTH = '--length=16,32 --width= --depth= --vocab= --experts=2,4 --rounds=1 --steps=1'.split()
GROWTH += '--base=length:16,width:8,depth:1,vocab:300,experts:2 --head=8 --rows=2'.split()
TINY_LOSS = '--tokens=256', '--vocab=300'


def run(folder, script: str, *flags: str) -> dict:
  """The report of a script."""
  out = folder / 'report.json'
  command = [sys.executable, ROOT / 'experiments' / 'perf' / script, *flags, f'--out={out}']
  env = os.environ | {'PYTHONPATH': str(ROOT)}
  done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  report = json.loads(out.read_text())
  assert script in report['command'] and {'jax', 'lmjax', 'python', 'device'} <= set(report)
  assert done.stdout.count('| --- |') >= 1, done.stdout
  return report


@pytest.mark.slow
def test_loader(tmp_path):
  found = run(tmp_path, 'loader.py', '--feeds=quickstart|gpt2:124M, best fit', *LOADER)
  assert set(found['speeds']) == {'the step', 'quickstart', 'gpt2:124M, best fit'}
  for own in found['speeds'].values():
    assert own['a_core'] > 0 and own['over_step'] > 0
    assert own['over_h100'] == pytest.approx(own['a_core'] / 463_000)
  for own in found['restarts'].values():
    assert set(own) == {'0', '1000'} and own['0']['ratio'] == own['0']['cpu_ratio'] == 1


@pytest.mark.slow
def test_compile_time(tmp_path):
  found = run(tmp_path, 'compile_time.py', *COMPILE)
  for kind in ('scanned', 'unrolled'):
    by_depth = found['kinds'][kind]
    assert set(by_depth) == {'1', '2'}
    for own in by_depth.values():
      assert own['total'] == pytest.approx(own['trace'] + own['lower'] + own['compile'])
    assert 'exponent' in found['growth'][kind]['total']
    assert found['cache'][kind]['warm']['compile'] < found['cache'][kind]['cold']['compile']


@pytest.mark.slow
def test_growth(tmp_path):
  """Counted FLOPs grow as they must: with length, and not at all with experts."""
  found = run(tmp_path, 'growth.py', *GROWTH)['axes']
  p = {axis: own['exponents'] for axis, own in found.items()}
  assert set(p) == {'length', 'experts'} and all('seconds' in own for own in p.values())
  for axis, own in p.items():
    assert own['counted'] == pytest.approx(own['compiled'], abs=0.2), axis
  assert abs(p['experts']['counted']) < 0.1 and p['experts']['bytes'] > 0.1
  assert 1 < p['length']['counted'] < 2 and p['length']['bytes'] == 0


@pytest.mark.slow  # libtpu is there with the slow tests
def test_loss_layer_compiled(tmp_path):
  """Five products in the kernels of TPUs, and what is not for TPUs says so."""
  pytest.importorskip('libtpu')
  found = run(tmp_path, 'loss_layer_compiled.py', '--chips=v5e', *TINY_LOSS, '--widths=16')
  by_name = {f['name']: f for f in found['contestants']}
  assert set(by_name) == {'chunked', 'whole', 'mosaic'}
  assert 'triton runs on NVIDIA GPUs' in found['missing']['triton, v5e']
  product = 2 * 256 * 300 * 16
  assert by_name['mosaic']['flops'] >= 5 * product > by_name['whole']['flops'] > 0
  assert all(f['scratch'] >= 0 and f['bytes'] > 256 * 16 for f in by_name.values())


@pytest.mark.slow
def test_loss_layer(tmp_path):
  """Also against PyTorch, which compiles for a while, where it is installed."""
  out = tmp_path / 'report.json'
  script = ROOT / 'experiments' / 'perf' / 'loss_layer.py'
  flags = [*TINY_LOSS, '--width=16', '--rounds=2', f'--out={out}']
  env = os.environ | {'PYTHONPATH': str(ROOT)}
  done = subprocess.run([sys.executable, script, *flags], env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(out.read_text())['contestants']
  assert {'chunked', 'whole'} <= set(found) and not {'mosaic', 'triton'} & set(found)
  assert 'mosaic runs on TPUs' in done.stdout
  for own in found.values():
    assert own['seconds'] > 0 and len(own['of_whole']) == 2
  assert set(found['whole']['of_whole']) == {1.0} and found['whole']['scratch'] > 0


@pytest.mark.slow  # libtpu is there with the slow tests
def test_fusions(tmp_path):
  """Both ways to make a product are there, and no program does with less than its arguments."""
  pytest.importorskip('libtpu')
  found = run(tmp_path, 'fusions.py', '--small', '--chips=v5e-1', '--only=quant_matmul')
  cases = found['cases']
  assert set(cases['quant_matmul, int4, groups of 64, 8 rows']) == {'mosaic', 'xla'}
  assert set(cases['quant_matmul, int8, 8 rows']) == {'xla'}
  for own in cases.values():
    for r in own.values():
      assert r['v5e-1']['ratio'] == pytest.approx(r['v5e-1']['bytes'] / r['v5e-1']['least'])
      assert 0.99 < r['v5e-1']['ratio'] < 1.5

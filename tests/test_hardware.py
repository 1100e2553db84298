"""Whether only the CPU can compute, told before jax is imported."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys

import pytest

from lmjax import hardware
from lmjax.planning import chips


SHARE = 'XLA_PYTHON_CLIENT_MEM_FRACTION'


@pytest.fixture
def machine(monkeypatch, tmp_path):
  """A machine with these plugins and PCI vendors, whatever this one has."""

  def made(libtpu=False, plugins=(), vendors=()):
    for name in ('JAX_PLATFORMS', SHARE):  # and what a test sets is undone
      monkeypatch.setenv(name, '')
      monkeypatch.delenv(name)
    monkeypatch.setattr(importlib.metadata, 'entry_points', lambda group: plugins)
    found = {'libtpu': libtpu or None, 'jax_plugins': None}
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: found[name])
    for i, vendor in enumerate(vendors):
      (tmp_path / str(i)).mkdir()
      (tmp_path / str(i) / 'vendor').write_text(f'{vendor}\n')
    return str(tmp_path)

  return made


def test_a_machine_without_accelerators(machine):
  assert hardware.cpu_only(machine(vendors=['0x8086']))


def test_libtpu_for_plans_is_no_tpu(machine):
  assert hardware.cpu_only(machine(libtpu=True, vendors=['0x8086', '0x1af4']))


def test_a_tpu(machine):
  assert not hardware.cpu_only(machine(libtpu=True, vendors=['0x8086', '0x1ae0']))


def test_libtpu_where_no_bus_can_be_read(machine):
  assert not hardware.cpu_only(machine(libtpu=True) + '/none')


def test_the_plugin_of_a_gpu(machine):
  assert not hardware.cpu_only(machine(libtpu=True, plugins=['xla_cuda12'], vendors=['0x8086']))


@pytest.mark.parametrize('asked, expected', [('cpu', True), ('tpu', False), ('cuda,cpu', False)])
def test_what_was_asked_for_counts(machine, monkeypatch, asked, expected):
  devices = machine(vendors=['0x8086'])
  monkeypatch.setenv('JAX_PLATFORMS', asked)
  assert hardware.cpu_only(devices) == expected
  hardware.settle(devices)
  assert os.environ['JAX_PLATFORMS'] == asked


def test_jax_is_told(machine, monkeypatch):
  devices = machine(libtpu=True, vendors=['0x8086'])
  monkeypatch.setenv('JAX_PLATFORMS', '')
  monkeypatch.setattr(hardware.heap, 'keep', lambda: None)
  monkeypatch.delenv('JAX_PLATFORMS')
  hardware.settle(devices)
  assert os.environ.pop('JAX_PLATFORMS') == 'cpu'


@pytest.mark.parametrize('given', ['', '0.5'])
def test_a_gpu_gives_what_plans_count_on(machine, monkeypatch, given):
  devices = machine(plugins=['xla_cuda12'], vendors=['0x8086'])
  if given:
    monkeypatch.setenv(SHARE, given)
  hardware.settle(devices)
  assert float(os.environ[SHARE]) == float(given or 0.92)
  h100 = chips.CHIPS['h100']
  assert h100.usable == pytest.approx(0.92 * h100.hbm)


@pytest.mark.parametrize('module', ['main', 'sample', 'profile'])
def test_commands_import_no_jax_before(module):
  code = f'import lmjax.{module}, sys; sys.exit("jax" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0

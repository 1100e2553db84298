"""Tests run on the CPU with eight simulated devices, compiled without optimization; all this must
be said before jax starts.

Tests compile much and compute little: without LLVM's optimizer they take about half the time, and
without XLA's newer emitters of fusions half of that again; jaxlib 0.12 has no others.
What XLA_FLAGS says already is kept.

Files of real text, tokenizers and checkpoints that some tests compare with lie in the folder that
LMJAX_TEST_DATA names.
"""

import gc
import importlib.metadata
import os
import pathlib
import sys

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
FLAGS = dict(
  xla_force_host_platform_device_count=8,
  xla_backend_optimization_level=0,
  xla_cpu_parallel_codegen_split_count=1,
)
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  FLAGS |= dict(xla_cpu_use_fusion_emitters='false')
for flag, value in FLAGS.items():
  if flag not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --{flag}={value}'.strip()
for folder in (
  'contracts',
  'reliability',
  'experiment',
  'launch',
  'interop',
):  # for `_table`, `_runs`, `_fake`, `_hf_folders`
  sys.path.insert(0, str(pathlib.Path(__file__).parent / folder))

import pytest  # noqa: E402


def pytest_collection_finish(session):
  """What is imported stays; it need not be looked through in each collection of garbage."""
  gc.collect()
  gc.freeze()


@pytest.fixture(scope='session')
def test_data() -> pathlib.Path:
  """The folder of test data; skips where it is not given."""
  folder = os.environ.get('LMJAX_TEST_DATA', '')
  if not folder:
    pytest.skip('LMJAX_TEST_DATA is not set: it names the folder of test data')
  path = pathlib.Path(folder)
  assert path.is_dir(), f'LMJAX_TEST_DATA={folder} is not a folder'
  return path


@pytest.fixture(params=['v5e-1', 'v5p:1x1x1', 'v6e-1'])
def one_tpu(request, monkeypatch):
  """The placement on a TPU that is not here, for libtpu's compiler."""
  pytest.importorskip('libtpu')
  monkeypatch.setenv('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  monkeypatch.setenv('TPU_SKIP_MDS_QUERY', '1')
  import jax

  from lmjax.planning import compile as compile_lib
  from lmjax.planning import topologies

  device = compile_lib.devices(topologies.parse(request.param))[0]
  return jax.sharding.SingleDeviceSharding(device)


@pytest.fixture(scope='module', autouse=True)
def _programs_go():
  """What one file compiled serves no other; kept, it would be gigabytes in the end."""
  yield
  if 'jax' in sys.modules:
    sys.modules['jax'].clear_caches()
    gc.collect()

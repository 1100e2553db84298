"""A real pretrained model in fewer bits: perplexity of TinyStories before and after each method,
and with planted outlier features. The decomposition of LLM.int8() takes off nearly all that they
cost; what int8 rounds away of their own weights remains, unless those are kept beside the codes.
"""

import importlib.util
import lzma
import math
import pathlib

import numpy as np
import pytest

from lmjax import quantize
from lmjax.interop import llama2c

pytestmark = pytest.mark.slow
SCRIPT = pathlib.Path(__file__).parents[2] / 'experiments' / 'quantization' / 'stories15m.py'

STORIES = 35  # of 140 of the validation text; all have a loss of 1.5119, these of 1.622

# method -> least and largest change of the perplexity, percent
PLAIN = {
  'rtn(bits=8)': (-0.5, 0.5),
  'rtn(bits=4)': (10, 32),
  'gptq(bits=4)': (2, 16),
  'llm_int8()': (-0.5, 0.5),
}


@pytest.fixture(scope='module')
def script():
  spec = importlib.util.spec_from_file_location('stories15m_script', SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope='module')
def data(test_data, tmp_path_factory):
  """The test data with the first stories of the validation text alone."""
  out = tmp_path_factory.mktemp('data')
  for name in ('checkpoints', 'tokenizers'):
    (out / name).symlink_to(test_data / name)
  stories = out / 'lm' / 'tinystories'
  stories.mkdir(parents=True)
  (stories / 'train.txt.xz').symlink_to(test_data / 'lm' / 'tinystories' / 'train.txt.xz')
  text = lzma.open(test_data / 'lm' / 'tinystories' / 'valid.txt.xz', 'rt').read()
  end = '<|endoftext|>'
  (stories / 'valid.txt.xz').write_bytes(
    lzma.compress(end.join(text.split(end)[:STORIES]).encode())
  )
  return out


@pytest.fixture(scope='module')
def changes(script, data, tmp_path_factory):
  """Runs methods: (source, methods) -> {method: (change in percent, what was found)}."""

  def run(planted, methods):
    source, before, out = tmp_path_factory.mktemp('stories') / 'run', None, {}
    script.run_directory(data, source, planted=planted)
    (source / 'tokens').mkdir()
    for i, method in enumerate(methods):
      target = source.with_name(str(i))
      found = quantize.quantize(str(source), method, str(target), rows=32, before=before)
      before, after = found['loss']
      out[method] = 100 * math.expm1(after['nll'] - before['nll']), found
      print(f'{method}: {before["nll"]:.4f} -> {after["nll"]:.4f} nats, {out[method][0]:+.2f} %')
    return out

  return run


def test_perplexity_before_and_after(changes):
  found = changes(False, PLAIN)
  for method, (least, most) in PLAIN.items():
    assert least <= found[method][0] <= most, method
  assert abs(found['rtn(bits=8)'][1]['loss'][0]['nll'] - 1.622) < 0.01
  assert found['gptq(bits=4)'][0] < 0.7 * found['rtn(bits=4)'][0]
  errors = [found[f'{m}(bits=4)'][1]['errors'] for m in ('gptq', 'rtn')]
  mean = [np.mean([v for e in x for v in e.values()]) for x in errors]
  assert mean[0] < 0.75 * mean[1]
  before, after = found['rtn(bits=4)'][1]['bytes']
  matrices = 6 * (4 * 288 * 288 + 3 * 288 * 768)
  assert before - after > matrices * (4 - 0.51)


def test_planted_outliers_change_nothing_but_the_numbers(script, test_data):
  _, variables = llama2c.load(str(test_data / 'checkpoints' / 'stories15M'))
  old, new = variables['params'], script.plant(variables['params'])
  old, new = (p['segment_0']['0_block'] for p in (old, new))
  for norm, part, name in (('norm_mixer', 'mixer', 'k'), ('norm_ffn', 'ffn', 'gate')):
    gains = new[norm]['scale'] / old[norm]['scale']
    assert sorted(np.unique(np.round(gains, 3)).tolist()) == [1.0, 50.0]
    products = [
      np.einsum('nd,nd...->nd...', p[norm]['scale'], p[part][name]['kernel']) for p in (new, old)
    ]
    np.testing.assert_allclose(*products, rtol=1e-5)


def test_planted_outliers_cost_least_where_their_weights_are_kept(changes):
  """Planted outliers have weights a fiftieth of the others: a change of at most 0.5 % needs those,
  taking the features apart in the product is not enough.
  """
  methods = ('llm_int8(keep=8)', 'llm_int8()', 'llm_int8(tau=None)')
  found = changes(True, methods)
  kept, apart, plain = (found[m][0] for m in methods)
  assert abs(kept) < 0.5 < apart < 1.0
  assert plain > 5
  outliers = found['llm_int8(keep=8)'][1]['outliers']
  assert {7, 100, 250} <= set(outliers) and len(outliers) < 30

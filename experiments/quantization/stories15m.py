"""stories15M in fewer bits: loss and bytes before and after each method, into stories15m.json and
README.md of this folder.

command: python experiments/quantization/stories15m.py --data=$LMJAX_TEST_DATA
  --methods 'rtn(bits=4)'      some methods only; the others keep their records
  --rows 64                    calibration rows of 256 tokens, of the training text

The model is llama2.c's stories15M (6 layers, 288 wide) with the weights that are stored in float16,
calibrated on the training part of TinyStories and scored on its validation part. `planted` repeats
some methods on the same function with outlier features: three coordinates of the gain of every norm
before attention and feed-forward times 50, the weights that read them divided by 50.
"""

import argparse
import json
import math
import pathlib
import tempfile

import jax
import numpy as np

from lmjax import build
from lmjax import config
from lmjax import progress
from lmjax import quantize
from lmjax.interop import llama2c

HERE = pathlib.Path(__file__).resolve().parent
COMMAND = 'python experiments/quantization/stories15m.py --data=$LMJAX_TEST_DATA'
METHODS = (
  'rtn(bits=8)',
  'rtn(bits=4)',
  'rtn(bits=3)',
  'rtn(bits=3, group=96)',
  'gptq(bits=4)',
  'gptq(bits=3)',
  'gptq(bits=3, group=96)',
  'llm_int8()',
  'llm_int8(tau=None)',
  'llm_int8(tau=None, scaling="tensor")',
)
PLANTED = (
  'llm_int8()',
  'llm_int8(keep=8)',
  'llm_int8(tau=None)',
  'llm_int8(tau=None, scaling="tensor")',
)
FACTOR, FEATURES = 50.0, (7, 100, 250)


def run_directory(data: pathlib.Path, out: pathlib.Path, planted: bool = False) -> None:
  """stories15M as a run directory: TinyStories to calibrate on and to score."""
  resolved, variables = llama2c.load(str(data / 'checkpoints' / 'stories15M'))
  stories = data / 'lm' / 'tinystories'
  text = 'text(path={!r}, separator="<|endoftext|>")'
  tokenizer = str(data / 'tokenizers' / 'llama2_32k' / 'tokenizer.bin.xz')
  resolved['data'] |= dict(
    tokenizer=f'sentencepiece(path={tokenizer!r})',
    train=text.format(str(stories / 'train.txt.xz')),
    valid=text.format(str(stories / 'valid.txt.xz')),
  )
  resolved['batch_tokens'] = 2048  # logits of 32,000 words are large
  resolved = config.resolve(resolved)
  build.build(resolved)
  params = plant(variables['params']) if planted else variables['params']
  quantize.write(out, resolved, dict(params=params, vars={}), step=0)


def plant(params: dict) -> dict:
  """The same function with three outlier features before attention and feed-forward."""
  scale = np.ones(params['final_norm']['scale'].shape, np.float32)
  scale[list(FEATURES)] = FACTOR
  layer = jax.tree.map(np.array, params['segment_0']['0_block'])
  for norm, part, names in (('norm_mixer', 'mixer', 'qkv'), ('norm_ffn', 'ffn', ('gate', 'up'))):
    layer[norm]['scale'] = layer[norm]['scale'] * scale
    for name in names:
      kernel = layer[part][name]['kernel']
      layer[part][name]['kernel'] = kernel / scale.reshape(1, -1, *[1] * (kernel.ndim - 2))
  return {**params, 'segment_0': {'0_block': layer}}


def measure(source: pathlib.Path, method: str, rows: int, before: dict | None) -> tuple[dict, dict]:
  """(what one method does to the model, the scores of the model as it was)."""
  with tempfile.TemporaryDirectory() as out:
    found = quantize.quantize(str(source), method, out, rows=rows, before=before)
  m, (before, after) = found['matrices'], found['loss']
  record = dict(
    method=method,
    rows=found['rows'],
    bits=8 * m['bytes'][1] / m['numbers'],
    bytes=found['bytes'],
    nll=[before['nll'], after['nll']],
    error=float(np.mean([v for e in found['errors'] for v in e.values()])),
    outliers=found['outliers'],
  )
  return record, before


def markdown(records: dict) -> str:
  """README.md, from the records alone."""
  text = [
    '# stories15M in fewer bits',
    '',
    'Written by `stories15m.py`; every number is in `stories15m.json`. Command:',
    '',
    f'    {COMMAND}',
    '',
    __doc__.split('\n\n')[-1].strip(),
    '',
    'bits: of the stored codes and scales, a number of the matrices in layers. MB: of all arrays,',
    'the embedding (float32) included. change: of the perplexity. error: mean over matrices of the',
    'squared error of their outputs over their squares, on calibration rows.',
  ]
  for part, title in (('plain', 'As trained'), ('planted', 'With planted outlier features')):
    rows = records.get(part, [])
    if not rows:
      continue
    before = rows[0]
    text += [
      '',
      f'## {title}',
      '',
      f'Before: {before["bytes"][0] / 1e6:.1f} MB, {before["nll"][0]:.4f} nats a token, perplexity '
      f'{math.exp(before["nll"][0]):.4f}; calibration and comparison on {before["rows"]} rows.',
      '',
      '| method | bits | MB | nats a token | perplexity | change | error | outlier features |',
      '| --- | --- | --- | --- | --- | --- | --- | --- |',
    ]
    text += [_line(r) for r in rows]
  return '\n'.join(text) + '\n'


def _line(r: dict) -> str:
  change = math.expm1(r['nll'][1] - r['nll'][0])
  outliers = '' if r['outliers'] is None else f'{len(r["outliers"])}'
  return (
    f'| `{r["method"]}` | {r["bits"]:.3f} | {r["bytes"][1] / 1e6:.2f} | {r["nll"][1]:.4f} | '
    f'{math.exp(r["nll"][1]):.4f} | {100 * change:+.2f} % | {r["error"]:.2e} | {outliers} |'
  )


def main() -> None:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--data', required=True, type=pathlib.Path, help='the folder of test data')
  p.add_argument('--methods', nargs='*', help='all by default')
  p.add_argument('--rows', type=int, default=64)
  flags = p.parse_args()
  file = HERE / 'stories15m.json'
  records = json.loads(file.read_text()) if file.is_file() else {}
  for part, methods in (('plain', METHODS), ('planted', PLANTED)):
    before = None
    with tempfile.TemporaryDirectory() as source:
      run_directory(flags.data, pathlib.Path(source), planted=part == 'planted')
      (pathlib.Path(source) / 'tokens').mkdir()  # tokenized once for all methods
      for method in methods:
        if flags.methods and method not in flags.methods:
          continue
        progress.say(f'{part}: {method}')
        found = {r['method']: r for r in records.get(part, [])}
        found[method], before = measure(pathlib.Path(source), method, flags.rows, before)
        records[part] = [found[m] for m in methods if m in found]
        file.write_text(json.dumps(records, indent=1) + '\n')
        (HERE / 'README.md').write_text(markdown(records))


if __name__ == '__main__':
  main()

"""Bytes written a second: MEGABYTE against a flat model of equal FLOPs a byte.

command: python experiments/perf/megabyte.py --size=large --out=megabyte.json        (a GPU)
  python experiments/perf/megabyte.py --size=tiny --tokens=64 --prompt=16 --rows=2   (tries it, CPU)

Weights as they are initialized, prompts at random, greedy decoding through `lmjax.generate`, prompt
included. Contestants take turns, `--rounds` times after one round that compiles; ratios are of one
round each, their median is reported. The prompt has `--prompt` bytes, after it `--tokens` are
written in each of `--rows` rows. The paper reports 8192 bytes about 1.4 times as fast as a flat
model of 350 M parameters, with a larger model.

Equal FLOPs: matrices and allowed pairs of attention at rows of prompt + tokens bytes, as
`lmjax/flops.py` counts them; large at 8192 bytes, tiny at 512. `flops` in the result tells them.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

import jax
import numpy as np

from lmjax import build
from lmjax import config
from lmjax import flops as flops_lib
from lmjax import generate
from lmjax.parallel import facts as facts_lib


# name -> (model.width, model.depth, model.architecture)
SIZES = {
  'tiny': {
    'flat': (128, 2, 'transformer()'),
    'patch_4': (256, 2, 'megabyte(patch=4, local_width=96, local_stack="block")'),
    'patch_8': (256, 3, 'megabyte(patch=8, local_width=96, local_stack="block*2")'),
  },
  'large': {
    'flat': (1024, 24, 'transformer()'),
    'patch_4': (1536, 38, 'megabyte(patch=4, local_width=1024, local_stack="block*16")'),
    'patch_8': (2048, 46, 'megabyte(patch=8, local_width=1024, local_stack="block*16")'),
  },
}
HEAD = {'tiny': '32', 'large': '64'}


def flops(run: build.Run) -> float:
  """Forward FLOPs a byte, of matrices and allowed pairs."""
  found = flops_lib.per_token(run)
  return found.matrices + found.mixing_causal


class Contestant:
  """A model with its first weights."""

  def __init__(self, size: str, name: str, length: int, dtype: str):
    width, depth, architecture = SIZES[size][name]
    changes = {
      'model.width': str(width),
      'model.depth': str(depth),
      'model.architecture': architecture,
      'model.mixer.head_dim': HEAD[size],
      'model.unroll': '1',
      'model.dtype': dtype,
      'model.param_dtype': dtype,
      'data.length': str(length),
      'batch_tokens': str(length),
    }
    self.run = build.build(config.resolve(config.load('quickstart', list(changes.items()))))
    batch = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), self.run.batch_shapes())
    init = lambda key: facts_lib.unbox(self.run.objective.init(key, batch))
    self.variables = jax.block_until_ready(jax.jit(init)(jax.random.key(0)))

  def write(self, prompts, tokens: int) -> float:
    """Seconds."""
    began = time.monotonic()
    new = generate.generate(self.run.architecture, self.variables, prompts, max_tokens=tokens)
    assert all(len(n) == tokens for n in new)
    return time.monotonic() - began


def main() -> int:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--size', choices=SIZES, default='tiny')
  p.add_argument('--rows', type=int, default=8)
  p.add_argument('--prompt', type=int, default=256)
  p.add_argument('--tokens', type=int, default=1024)
  p.add_argument('--rounds', type=int, default=5)
  p.add_argument('--dtype', default='float32')
  p.add_argument('--only', default='flat,patch_4,patch_8', help='flat and at least one other')
  p.add_argument('--out', help='a JSON file for the result')
  flags = p.parse_args()
  names = flags.only.split(',')
  if 'flat' not in names or set(names) - set(SIZES[flags.size]) or flags.rounds < 1:
    p.error(f'--only: flat and others of {", ".join(SIZES[flags.size])}; --rounds: at least 1')

  length = -(-(flags.prompt + flags.tokens) // 8) * 8
  rng = np.random.default_rng(0)
  prompts = [rng.integers(0, 256, flags.prompt).tolist() for _ in range(flags.rows)]
  made = {n: Contestant(flags.size, n, length, flags.dtype) for n in names}
  for name, c in made.items():
    print(
      f'{name:8} {flops(c.run) / 1e6:.3f} MFLOP a byte, {build.counts(c.run)["total"]:,} parameters'
    )
    c.write(prompts, flags.tokens)
  times = {n: [] for n in names}
  for _ in range(flags.rounds):
    for name, c in made.items():
      times[name].append(c.write(prompts, flags.tokens))
  rows = {}
  for name, own in times.items():
    ratios = [b / a for a, b in zip(own, times['flat'])]
    rows[name] = dict(
      flops=flops(made[name].run),
      parameters=build.counts(made[name].run)['total'],
      bytes_per_second=flags.rows * flags.tokens / statistics.median(own),
      over_flat=statistics.median(ratios),
      ratios=ratios,
    )
    rate, ratio = rows[name]['bytes_per_second'], rows[name]['over_flat']
    span = f'{min(ratios):.2f} to {max(ratios):.2f}'
    print(f'{name:8} {rate:.0f} bytes/s, x{ratio:.2f} of flat ({span})')
  device = jax.devices()[0]
  report = dict(
    command=' '.join(sys.argv),
    device=device.device_kind,
    jax=jax.__version__,
    length=length,
    models=rows,
  )
  if flags.out:
    pathlib.Path(flags.out).write_text(json.dumps(report, indent=1) + '\n', encoding='utf-8')
  return 0


if __name__ == '__main__':
  sys.exit(main())

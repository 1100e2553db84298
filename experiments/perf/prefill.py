"""Reading ragged prompts: padded, sorted into batches of like length, and several to a row
(prepacking; Zhao et al., 2024, arXiv:2404.09529).

  python experiments/perf/prefill.py --out=experiments/perf/prefill.json          two minutes
  python experiments/perf/prefill.py --width=1024 --depth=24 --dtype=bfloat16 --rounds=20        GPU
  python experiments/perf/prefill.py --prompts=4 --longest=32 --width=32 --rounds=1      (tries it)

`--prompts` prompts whose lengths are log-normal between 8 and `--longest`. Each way fills the same
caches; contestants take turns, compiling apart, and ratios are of one round against padding, as
`generate` did before it packed. FLOPs are the compiled program's, which has no loop here.
"""

import argparse
import sys
import time

from lmjax import hardware

hardware.settle()  # before jax is imported, as `lmjax.main` does

import jax  # noqa: E402
import numpy as np  # noqa: E402

import _report  # noqa: E402
import _step  # noqa: E402
from lmjax import generate  # noqa: E402
from lmjax import padding  # noqa: E402
from lmjax import prompts as prompts_lib  # noqa: E402
from lmjax import registry  # noqa: E402

WAYS = ('padded', 'sorted', 'packed')


def texts(flags) -> list:
  rng = np.random.default_rng(flags.seed)
  sizes = np.exp(rng.normal(np.log(flags.longest / 6), 0.9, flags.prompts)).astype(int)
  sizes = np.clip(sizes, 8, flags.longest)
  sizes[0] = flags.longest
  return [prompts_lib.plain(rng.integers(0, 256, n).tolist()) for n in sizes]


class Contestant:
  """The batches of one way to read all prompts."""

  def __init__(self, way: str, run, variables, flags):
    asked = texts(flags)
    parts = [asked]
    if way == 'sorted':
      asked = sorted(asked, key=lambda p: len(p.text))
      parts = [asked[i : i + flags.prompts // 4] for i in range(0, len(asked), flags.prompts // 4)]
    self.variables, self.net = variables, generate.Fixed(run.architecture)
    self.kind = registry.make('cache', 'full()')
    self.batches = []
    for part in parts:
      given = generate.inputs(part, padding.power_of_two(len(part)), [], pack=way == 'packed')
      given = [a if a is None else jax.device_put(a) for a in given]
      self.batches.append((given, flags.longest + 64))

  def tokens(self) -> int:
    """Places that are computed."""
    return sum(given[0].size for given, _ in self.batches)

  def flops(self) -> float:
    found = (
      generate.prefill.lower(self.net, self.variables, *given, kind=self.kind, length=length)
      for given, length in self.batches
    )
    return sum(f.compile().cost_analysis()['flops'] for f in found)

  def seconds(self) -> float:
    began = time.monotonic()
    for given, length in self.batches:
      slot = generate.prefill(self.net, self.variables, *given, kind=self.kind, length=length)
      jax.block_until_ready(slot)
    return time.monotonic() - began


COLUMNS = ('', 'places read', 'FLOPs of padded', 'times as fast')


def main() -> int:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--prompts', type=int, default=32)
  p.add_argument('--longest', type=int, default=512)
  p.add_argument('--width', type=int, default=256)
  p.add_argument('--depth', type=int, default=4)
  p.add_argument('--dtype', default='float32')
  p.add_argument('--rounds', type=int, default=7)
  p.add_argument('--seed', type=int, default=0)
  p.add_argument('--out', help='a JSON file for the result')
  flags = p.parse_args()
  run = _step.make(
    'quickstart',
    1,
    data__length=str(flags.longest),
    batch_tokens=str(flags.longest),
    model__width=str(flags.width),
    model__depth=str(flags.depth),
    model__unroll=str(flags.depth),
    model__dtype=flags.dtype,
  )
  state = run.init(jax.random.key(0))
  variables = {'params': state.params, **state.vars}
  made = {way: Contestant(way, run, variables, flags) for way in WAYS}
  found = {way: dict(tokens=c.tokens(), flops=c.flops(), seconds=[]) for way, c in made.items()}
  for c in made.values():
    c.seconds()  # compiles
  for _ in range(flags.rounds):
    for way, c in made.items():
      found[way]['seconds'].append(c.seconds())
  real = sum(len(p.text) - 1 for p in texts(flags))
  rows = []
  for way, f in found.items():
    rounds = [a / b for a, b in zip(found['padded']['seconds'], f['seconds'])]
    f['times_as_fast'] = rounds
    flops = f['flops'] / found['padded']['flops']
    read = f'{f["tokens"]:,} for {real:,} tokens'
    rows.append((way, read, f'{flops:.2f}', _report.spread(rounds)))
  print(_report.table(COLUMNS, rows))
  _report.write(_report.head(flags) | dict(ways=found), flags.out)
  return 0


if __name__ == '__main__':
  sys.exit(main())

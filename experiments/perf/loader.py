"""How fast the data path delivers, against what training consumes, and how soon a restart begins.

  python experiments/perf/loader.py --out=experiments/perf/loader.json    4 minutes on two cores;
      with LMJAX_TEST_DATA set GPT-2 reads ten domains in its own ids, else the bundled text
  python experiments/perf/loader.py --step=gpt2:124M --step-rows=32 --out=loader.json    a GPU
  python experiments/perf/loader.py --data= --feeds=quickstart --batches=4 --steps=2 --rounds=1 \\
      --restarts=0,1000                                                   tries it

The path is `feed.Feed.train`, as the loop reads it, on a prepared store: plan, packing, reading
threads, prefetch, arrays in the host's memory. Recipes keep their own packing, rows and batch;
`gpt2:124M, best fit` packs whole documents instead and masks them. In each round every feed is
opened and read from step 0, as many tokens as `--batches` of the largest batch, and `--steps` steps
of `--step` run. What is read ahead at the end counts, so rates are low rather than high.

  tokens/s      of wall time
  a core        tokens a second of CPU time, all threads included; that stands a shared machine
  x the step    against what the step consumes, both by CPU time (an accelerator: by wall time)
  x an H100     a core against `--h100` tokens/s; 463,000 is llm.c's GPT-2 124M, 10 billion tokens
                in 45 minutes on 8 H100s (KellerJordan/modded-nanogpt, README, record 1)

Restart: from opening the feed (stores checked, epochs planned) to the first batch of step N, in
turns, `config.steps` being above N; medians, and of ratios to step 0. grain was imported before.
"""

import argparse
import collections
import itertools
import math
import os
import pathlib
import statistics
import sys
import tempfile
import time

from lmjax import hardware

hardware.settle()  # before jax is imported, as `lmjax.main` does

import jax  # noqa: E402

import _report  # noqa: E402
import _step  # noqa: E402
from lmjax import build  # noqa: E402
from lmjax import config  # noqa: E402
from lmjax import feed as feed_lib  # noqa: E402
from lmjax.data import prepare  # noqa: E402

GOAL = 10
BEST_FIT = {'data.pack': 'best_fit()', 'data.mask_documents': 'True'}
FEEDS = {  # recipe, changes
  'quickstart': ('quickstart', {}),
  'gpt2:124M': ('gpt2:124M', {}),
  'gpt2:124M, best fit': ('gpt2:124M', BEST_FIT),
}
SPEED = 'feed', 'store, tokens', 'batch', 'tokens/s', 'a core', 'x the step', 'x an H100'
RESTART = 'feed', 'first step', 'seconds', 'CPU-s', 'x step 0', 'by CPU time'


def timed(fn) -> tuple[float, float]:
  """(wall, CPU) seconds of a call."""
  began = time.monotonic(), time.process_time()
  jax.block_until_ready(fn())
  return time.monotonic() - began[0], time.process_time() - began[1]


def store(folder: pathlib.Path, larger: bool, data: str) -> dict:
  """Changes of a config that read a prepared store, made where it is missing."""
  source, tok = 'shakespeare(split="train")', 'bytes()'
  if larger:
    source = f'jsonl(path="{data}/lm/domains/*.train.jsonl.xz")'
    tok = f'bpe(path="{data}/tokenizers/gpt2")'
  out = folder / ('domains' if larger else 'shakespeare')
  if not out.exists():
    prepare.prepare(source, tok, out, progress=False)
  return {'data.train': f'tokens(path="{out}")', 'data.tokenizer': tok, 'data.valid': ''}


class Feed:
  """A recipe on its store."""

  def __init__(self, name: str, folder: pathlib.Path, flags):
    recipe, changes = FEEDS[name]
    given = {'mesh.data': '1', 'micro_batches': '1', 'steps': str(max(flags.restarts) + 10_000)}
    given |= changes | store(folder, bool(flags.data) and recipe.startswith('gpt2'), flags.data)
    self.run = build.build(config.resolve(config.load(recipe, list(given.items()))))
    self.folder, self.tokens = folder, self.run.rows * self.run.length
    self.about = self.open().describe().split()[0], f'{self.tokens:,}'
    self.first(0)  # imports grain

  def open(self) -> feed_lib.Feed:
    return feed_lib.Feed(self.run, self.folder)

  def first(self, step: int):
    """The batch of a step, of a feed that is opened for it."""
    return next(self.open().train(step))

  def turn(self, tokens: int) -> list[float]:
    """(wall, CPU) seconds a token of at least so many."""
    n, batches = -(-tokens // self.tokens), self.open().train(0)
    read = lambda: collections.deque(itertools.islice(batches, n), maxlen=1)[0]
    return [s / (n * self.tokens) for s in settled(read)]


def settled(fn) -> tuple[float, float]:
  """Times it on the host; what it reads ahead ends outside of the turns of others."""
  with jax.default_device(jax.local_devices(backend='cpu')[0]):
    out = timed(fn)
  time.sleep(0.5)
  return out


class Step:
  """What consumes."""

  def __init__(self, flags):
    self.run, self.n = _step.make(flags.step, flags.step_rows), flags.steps
    self.state, self.batches = self.run.init(jax.random.key(0)), _step.batches(self.run, 4)
    self._step = jax.jit(self.run.step, donate_argnums=0)
    self.turn(0)  # compiles

  def turn(self, _) -> list[float]:
    """(wall, CPU) seconds a token."""
    return [s / (self.n * self.run.rows * self.run.length) for s in timed(self._steps)]

  def _steps(self):
    for i in range(self.n):
      self.state, _ = self._step(self.state, self.batches[i % 4], jax.random.key(1))
    return self.state


def speeds(feeds: dict, flags) -> dict:
  made, tokens = {'the step': Step(flags), **feeds}, max(f.tokens for f in feeds.values())
  rounds = [
    {k: m.turn(flags.batches * tokens) for k, m in made.items()} for _ in range(flags.rounds)
  ]
  by, out = int(jax.devices()[0].platform == 'cpu'), {}
  for name in made:
    wall, cpu = (1 / statistics.median(r[name][i] for r in rounds) for i in (0, 1))
    over = [r['the step'][by] / r[name][by] for r in rounds]
    out[name] = dict(tokens_per_second=wall, a_core=cpu, over_step=statistics.median(over))
    out[name] |= dict(over_step_rounds=over, over_h100=cpu / flags.h100)
  return out


def restarts(feed: Feed, flags) -> dict:
  """{first step: median seconds and ratios to the first of them}."""
  turns = [
    [settled(lambda n=n: feed.first(n)) for n in flags.restarts] for _ in range(flags.rounds)
  ]
  out = {}
  for k, n in enumerate(flags.restarts):
    wall, cpu = (statistics.median(t[k][i] for t in turns) for i in (0, 1))
    ratios = (statistics.median(t[k][i] / t[0][i] for t in turns) for i in (0, 1))
    out[n] = dict(zip(('seconds', 'cpu', 'ratio', 'cpu_ratio'), (wall, cpu, *ratios)))
  return out


def page(report: dict, feeds: dict) -> str:
  rows = []
  for name, r in report['speeds'].items():
    about = feeds[name].about if name in feeds else ('', '')
    h100 = f'{r["over_h100"]:.1f}' if name.startswith('gpt2') else ''
    rates = (f'{r[k]:,.0f}' for k in ('tokens_per_second', 'a_core'))
    rows.append((name, *about, *rates, f'{r["over_step"]:.3g}', h100))
  own = [(k, n, r) for k, found in report['restarts'].items() for n, r in found.items()]
  cells = lambda r: (
    f'{r["seconds"]:.3f}',
    f'{r["cpu"]:.3f}',
    *(f'{x:.2f}' for x in list(r.values())[2:]),
  )
  again = [(k, f'{n:,}', *cells(r)) for k, n, r in own]
  return f'{_report.table(SPEED, rows)}\n\n{_report.table(RESTART, again)}\n\n{report["goal"]}'


def flags_of():
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--feeds', default='|'.join(FEEDS), help='names with | between')
  p.add_argument('--data', default=os.environ.get('LMJAX_TEST_DATA', ''), help="'' = bundled text")
  p.add_argument('--stores', help='a folder that keeps the prepared stores')
  p.add_argument('--batches', type=int, default=20, help='of the largest feed, a turn')
  p.add_argument('--step', default='quickstart', help='the recipe that consumes')
  p.add_argument('--step-rows', type=int, default=16)
  p.add_argument('--steps', type=int, default=20, help='of a turn')
  p.add_argument('--rounds', type=int, default=5)
  p.add_argument('--restarts', default='0,1000,1000000')
  p.add_argument('--h100', type=float, default=463_000.0, help='tokens/s of GPT-2 124M')
  p.add_argument('--out', help='a JSON file for the result')
  flags = p.parse_args()
  flags.restarts = [int(n) for n in flags.restarts.split(',')]
  flags.feeds = flags.feeds.split('|')
  return flags


def main() -> int:
  flags, report = flags_of(), {}
  report |= _report.head(flags)
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(flags.stores or folder)
    feeds = {name: Feed(name, folder, flags) for name in flags.feeds}
    report['speeds'] = found = speeds(feeds, flags)
    report['restarts'] = {name: restarts(f, flags) for name, f in feeds.items()}
  least = {'the step': min(found[n]['over_step'] for n in feeds)}
  for name in feeds:
    if name.startswith('gpt2'):
      least['an H100'] = min(found[name]['over_h100'], least.get('an H100', math.inf))
  report['goal'] = {f'{GOAL} x {k}': n >= GOAL for k, n in least.items()}
  print(page(report, feeds))
  _report.write(report, flags.out)
  return 0


if __name__ == '__main__':
  sys.exit(main())

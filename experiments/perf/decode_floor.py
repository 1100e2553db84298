"""Tokens a second in decoding beside the floor that memory bandwidth sets.

  python experiments/perf/decode_floor.py --recipe=llama:1B --out=decode_floor.json          a GPU
  python experiments/perf/decode_floor.py --recipe=gpt2:tiny --prompt=17 --tokens=64 --rows=1,2 \\
      --rounds=1                                                             (tries it on a CPU)

Greedy, parameters drawn at random, stored in float32 as training leaves them and in bfloat16. A
step's seconds are the difference between writing `--tokens` and 63 fewer, which the same program
does with the same cache, so that neither the prefill nor the start counts. The floor of a step:
every matrix that it multiplies with and the whole cache read once, at the bandwidth of a long sum
or a long addition on the same device. Contestants take turns; medians are reported.
"""

import argparse
import functools
import math
import statistics
import sys

from lmjax import hardware

hardware.settle()  # before jax is imported, as `lmjax.main` does

import jax  # noqa: E402
import numpy as np  # noqa: E402

import _report  # noqa: E402
import _step  # noqa: E402
import decoding  # noqa: E402
import optim_step  # noqa: E402
from lmjax import build  # noqa: E402
from lmjax import generate  # noqa: E402
from lmjax import padding  # noqa: E402
from lmjax import registry  # noqa: E402
from lmjax.parallel import facts  # noqa: E402

LESS = 63  # tokens; programs are made for multiples of 64
COLUMNS = 'rows', 'parameters', 'tokens/s', 'tokens/s with prefill', 'ms a step', 'floor, ms'
COLUMNS += ('step / floor',)
DTYPES = 'float32', 'bfloat16'


def read_bytes(run, dtype: str, rows: int, length: int) -> int:
  """Bytes that a step must read: matrices that it multiplies with, and the cache."""
  tied, size = run.model.embed.fact('tied'), np.dtype(dtype).itemsize
  looked_up = lambda fact: fact.role == 'position' or (fact.role == 'embed' and not tied)
  items = facts.items(run.facts['params'], run.shapes['params'])
  total = sum(size * math.prod(shape) for _, fact, shape in items if not looked_up(fact))
  kind = registry.make('cache', 'full()')
  make = lambda: run.architecture.init_cache(kind, rows, length)
  return total + build.nbytes(jax.eval_shape(make))


def measured(flags, run, bandwidth: float) -> list[dict]:
  state, rng = run.init(jax.random.key(0)), np.random.default_rng(0)
  params, vars, found = state.params, state.vars, []
  words = run.config['model']['vocab'] or run.tokenizer.vocab_size
  for dtype in DTYPES:
    params = jax.tree.map(functools.partial(jax.numpy.asarray, dtype=dtype), params)
    for rows in flags.rows:
      prompts = rng.integers(0, words, (rows, flags.prompt)).tolist()
      models = [(run.architecture, {'params': params, **vars})]
      ask = functools.partial(generate.decoded, models, prompts, rule='greedy()')
      counts = dict(all=flags.tokens, less=flags.tokens - LESS)
      contestants = {k: functools.partial(ask, max_tokens=n) for k, n in counts.items()}
      turns, given = decoding.race(contestants, flags.rounds)
      assert int(given['all'][2][0]) == flags.tokens  # no end token: all rows go to the end
      steps = [(a['wall'] - b['wall']) / LESS for a, b in zip(turns['all'], turns['less'])]
      length = padding.power_of_two(flags.prompt - 1, generate.SMALLEST_PROMPT) + flags.tokens
      row = dict(rows=rows, dtype=dtype, step=statistics.median(steps), steps=steps)
      row |= dict(floor=read_bytes(run, dtype, rows, length) / bandwidth)
      row |= dict(whole=statistics.median(t['wall'] for t in turns['all']))
      found.append(row | dict(over_floor=row['step'] / row['floor']))
  return found


def table(found: list[dict], tokens: int) -> str:
  rows = []
  for r in found:
    if r['step'] <= 0:  # shorter than what a clock on a busy machine tells apart
      rows.append((r['rows'], r['dtype'], *['not measured: too short'] * 5))
      continue
    rates = r['rows'] / r['step'], r['rows'] * tokens / r['whole']
    times = f'{1e3 * r["step"]:.3f}', f'{1e3 * r["floor"]:.3f}', f'{r["over_floor"]:.2f}'
    rows.append((r['rows'], r['dtype'], *(f'{x:,.0f}' for x in rates), *times))
  return _report.table(COLUMNS, rows)


def main() -> int:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--recipe', default='llama:1B')
  p.add_argument('--rows', default='1,8,64', help='decoded at a time')
  p.add_argument('--prompt', type=int, default=129, help='tokens')
  p.add_argument('--tokens', type=int, default=256, help='written; a multiple of 64')
  p.add_argument('--rounds', type=int, default=5)
  p.add_argument('--out', help='a JSON file for the result')
  flags = p.parse_args()
  flags.rows = [int(n) for n in flags.rows.split(',')]
  if flags.tokens % generate.TOKENS_MULTIPLE:
    p.error(f'--tokens={flags.tokens}: a multiple of {generate.TOKENS_MULTIPLE} is expected')
  on_cpu = jax.devices()[0].platform == 'cpu'
  bandwidth = optim_step.bandwidth_of(2**28 if on_cpu else 2**31)
  run = _step.make(flags.recipe, 1, optim='sgd()')
  with run.choices():
    found = measured(flags, run, bandwidth)
  print(table(found, flags.tokens))
  print(f'floor: {bandwidth / 1e9:,.0f} GB/s')
  _report.write(_report.head(flags) | dict(bandwidth=bandwidth, steps=found), flags.out)
  return 0


if __name__ == '__main__':
  sys.exit(main())

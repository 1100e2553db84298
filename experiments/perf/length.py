"""What a token costs at each length of rows, in training and in decoding: attention, attention with
a window, DeltaNet. Writes length.json and length.md.

  python experiments/perf/length.py                                       4 minutes on two cores
  python experiments/perf/length.py --width=1024 --depth=12 --head=128 --dtype=bfloat16 \\
      --tokens=65536 --lengths=256,1024,4096,16384,65536 --steps=5          a GPU
  python experiments/perf/length.py --lengths=16,32 --window=8 --tokens=64 --new=4 --rounds=2 \\
      --out=FOLDER                                                          tries it

All steps of training take equally many tokens, in fewer and longer rows, so that matrices cost the
same at each length. Decoding is greedy: the last `--new` tokens of each of `--rows` rows; those
before are read without the clock. The cache has room for the row, and its bytes are given for one
row. The window keeps its tokens in a ring (cache `window()`), DeltaNet its state.

Contestants take turns, `--rounds` times after one round that compiles. Ratios are of one round,
against the same mixer at the first length, a token; medians are reported.
"""

import argparse
import pathlib
import statistics
import sys
import textwrap
import time

from lmjax import hardware

hardware.settle()  # before jax is imported, as `lmjax.main` does

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import _report  # noqa: E402
import _step  # noqa: E402
from lmjax import build  # noqa: E402
from lmjax import decode_loop  # noqa: E402
from lmjax import registry  # noqa: E402
from lmjax.experiment import tables  # noqa: E402

# name -> (mixer, what decoding keeps of it)
MIXERS = {
  'gqa': ('gqa(head_dim={head}, position=rope())', 'full()'),
  'gqa, window': ('gqa(head_dim={head}, window={window}, position=rope())', 'window()'),
  'deltanet': ('deltanet(head_dim={head})', 'full()'),
}
SHARES = ('step', 'decode')
COLUMNS = 'mixer', 'T', 'step, us a token', 'x first', 'decode, us a token', 'x first', 'cache, KiB'


class Contestant:
  """A mixer at a length. The state of training is its mixer's, of whatever length."""

  def __init__(self, flags, mixer: str, length: int):
    spec, cache = MIXERS[mixer]
    self.length, self.flags = length, flags
    self.run = _step.make(
      'quickstart',
      flags.tokens // length,
      data__length=str(length),
      batch_tokens=str(flags.tokens),
      model__width=str(flags.width),
      model__depth=str(flags.depth),
      model__unroll='1',
      model__dtype=flags.dtype,
      model__position='none()',
      model__mixer=spec.format(head=flags.head, window=flags.window),
    )
    self.batch = _step.batches(self.run, 1)[0]
    self._step = jax.jit(self.run.step, donate_argnums=0)
    self._kind = registry.make('cache', cache)
    self._decode = jax.jit(self._written)

  def cache_bytes(self) -> int:
    """Of one row."""
    make = lambda: self.run.architecture.init_cache(self._kind, 1, self.length)
    return build.nbytes(jax.eval_shape(make))

  def train(self, state):
    """(state, seconds a token)."""
    jax.block_until_ready(state)
    began = time.monotonic()
    for _ in range(self.flags.steps):
      state, _ = self._step(state, self.batch, jax.random.key(1))
    jax.block_until_ready(state)
    return state, (time.monotonic() - began) / (self.flags.steps * self.flags.tokens)

  def fill(self, state):
    """Reads all but the last tokens of the rows."""
    rows, read = self.flags.rows, self.length - self.flags.new
    tokens = np.random.default_rng(0).integers(0, 256, (rows, read), dtype=np.int32)
    places = np.broadcast_to(np.arange(read, dtype=np.int32), tokens.shape)
    net = decode_loop.Fixed(self.run.architecture)
    how = dict(kind=self._kind, length=self.length)
    text = tokens, np.ones_like(tokens), places
    self._slot = decode_loop.prefill(net, _variables(state), *text, **how)

  def decode(self, state) -> float:
    """Seconds a token of a row."""
    first_B = jnp.zeros(self.flags.rows, jnp.int32)
    jax.block_until_ready((self._slot, first_B))
    began = time.monotonic()
    jax.block_until_ready(self._decode(_variables(state), self._slot, first_B))
    return (time.monotonic() - began) / (self.flags.new * self.flags.rows)

  def _written(self, variables, slot, first_B):
    """int32 (tokens, rows)."""
    step = decode_loop.Steps(self.run.architecture, variables, self.run.tokenizer.vocab_size)

    def one(carry, _):
      slot, tokens_B = carry
      logits_BV, slot = step(slot, tokens_B)
      tokens_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
      return (slot, tokens_B), tokens_B

    return jax.lax.scan(one, (slot, first_B), length=self.flags.new)[1]


def _variables(state) -> dict:
  return {'params': state.params, **state.vars}


def race(flags) -> dict:
  """{mixer: {length: {step, decode: seconds a token of every round, cache_bytes}}}."""
  made = {m: [Contestant(flags, m, n) for n in flags.lengths] for m in MIXERS}
  found = {m: {} for m in MIXERS}
  states = {m: own[0].run.init(jax.random.key(0)) for m, own in made.items()}
  for mixer, own in made.items():
    for c in own:
      c.fill(states[mixer])
      found[mixer][c.length] = dict(step=[], decode=[], cache_bytes=c.cache_bytes())
  for turn in range(-1, flags.rounds):
    for mixer, own in made.items():
      for c in own:
        states[mixer], step = c.train(states[mixer])
        decode = c.decode(states[mixer])
        if turn < 0:
          print(f'compiled: {mixer}, {c.length} tokens', flush=True)
          continue
        found[mixer][c.length]['step'].append(step)
        found[mixer][c.length]['decode'].append(decode)
    print(f'round {turn + 1} of {flags.rounds}', flush=True)
  return found


def summed(found: dict) -> dict:
  """Medians of the rounds, and of their ratios to the same mixer's first length."""
  out = {}
  for mixer, lengths in found.items():
    first = next(iter(lengths.values()))
    out[mixer] = {}
    for n, own in lengths.items():
      row = out[mixer][n] = dict(cache_bytes=own['cache_bytes'])
      for key in SHARES:
        row[key] = statistics.median(own[key])
        ratios = [a / b for a, b in zip(own[key], first[key])]
        row[f'{key}_ratio'] = statistics.median(ratios)
        row[f'{key}_ratios'] = ratios
  return out


def table(medians: dict) -> str:
  lines = [tables.row(*COLUMNS), tables.row(*['---'] * len(COLUMNS))]
  for mixer, lengths in medians.items():
    for n, r in lengths.items():
      shares = [x for k in SHARES for x in (f'{1e6 * r[k]:.3g}', f'{r[f"{k}_ratio"]:.2f}')]
      lines.append(tables.row(mixer, n, *shares, f'{r["cache_bytes"] / 1024:.4g}'))
  return '\n'.join(lines)


def page(report: dict) -> str:
  s = report['settings']
  about = (
    f'{s["depth"]} layers of {s["width"]}, heads of {s["head"]}, window {s["window"]}, '
    f'{s["dtype"]}; steps of {s["tokens"]} tokens, {s["rows"]} rows decoded at a time; medians of '
    f"{s['rounds']} rounds in turns, ratios to the same mixer's first length, cache bytes of one "
    f'row. {report["device"]}, {report["cores"]} cores, Python {report["python"]}, jax '
    f'{report["jax"]}, lmjax {report["lmjax"]}. Generated by the following, which says how it is '
    'measured:'
  )
  command = textwrap.indent(report['command'], '    ')
  lines = ['# Cost of a token by length', textwrap.fill(about, 100), command]
  return '\n\n'.join([*lines, table(report['mixers'])]) + '\n'


def flags_of(argv=None):
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--lengths', default='256,512,1024,2048,4096,8192')
  p.add_argument('--width', type=int, default=64)
  p.add_argument('--depth', type=int, default=2)
  p.add_argument('--head', type=int, default=32, help='size of a head')
  p.add_argument('--window', type=int, default=256)
  p.add_argument('--dtype', default='float32', help='of activations and matrix products')
  p.add_argument('--tokens', type=int, default=8192, help='of a training step')
  p.add_argument('--steps', type=int, default=1, help='of a turn')
  p.add_argument('--rows', type=int, default=8, help='decoded at a time')
  p.add_argument('--new', type=int, default=64, help='tokens decoded in a row')
  p.add_argument('--rounds', type=int, default=5)
  here = pathlib.Path(__file__).parent
  p.add_argument('--out', type=pathlib.Path, default=here, help='a folder for the two files')
  flags = p.parse_args(argv)
  try:
    flags.lengths = [int(n) for n in flags.lengths.split(',')]
  except ValueError:
    p.error(f'--lengths={flags.lengths}: whole numbers with commas are expected')
  least = min(
    flags.width, flags.depth, flags.head, flags.window, flags.steps, flags.rows, flags.new
  )
  if min(least, flags.rounds) < 1:
    p.error('sizes, steps, rows, tokens and rounds: at least 1 is expected')
  if not flags.out.is_dir():
    p.error(f'--out={flags.out}: a folder that exists is expected')
  if min(flags.lengths) <= flags.new or any(flags.tokens % n for n in flags.lengths):
    p.error(
      f'--lengths: longer than --new={flags.new} and dividing --tokens={flags.tokens} is expected'
    )
  return flags


def main() -> int:
  flags = flags_of()
  medians = summed(race(flags))
  report = _report.head(flags) | dict(mixers=medians)
  text = page(report)
  _report.write(report, flags.out / 'length.json')
  (flags.out / 'length.md').write_text(text, encoding='utf-8')
  print(text)
  return 0


if __name__ == '__main__':
  sys.exit(main())

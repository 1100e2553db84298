"""What a headless step saves: time and memory against next-token prediction, by vocabulary.

  python experiments/perf/headless.py --out=experiments/perf/headless.json
  python experiments/perf/headless.py --vocab=1000,4000 --width=32 --depth=1 --rounds=1   (tries it)

A decoder of `--depth` layers, `--width` wide, tied embedding, one batch of `--rows` rows of
`--length` random tokens. Contestants: `clm()`, and `headless_cwt()`, whose scores are between the
targets of the batch. Two things are measured of each vocabulary:

  memory  scratch that the compiler of this machine plans for loss and gradient, beside arguments
          and results: activations, logits, gradients of the table that are made and thrown away
  time    whole training steps, interleaved, the median of ratios of one round each

Chunks of the vocabulary could save memory of clm, at more work; here its loss is as it comes.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

import jax

import _step

OBJECTIVES = {'clm': 'clm()', 'headless': 'headless_cwt()'}


class Contestant:
  """One objective at one vocabulary."""

  def __init__(self, objective: str, vocab: int, flags):
    self.run = _step.make(
      'quickstart',
      flags.rows,
      data__length=str(flags.length),
      batch_tokens=str(flags.rows * flags.length),
      model__vocab=str(vocab),
      model__width=str(flags.width),
      model__depth=str(flags.depth),
      model__unroll=str(flags.depth),
      model__dtype=flags.dtype,
      model__embed='tied()',
      objective=objective,
    )
    self.state = self.run.init(jax.random.key(0))
    self.batches = _step.batches(self.run, 2)
    self._step = jax.jit(self.run.step, donate_argnums=0)

  def scratch(self) -> int:
    """Bytes beside arguments and results of loss and gradient."""
    r, key = self.run, jax.random.key(0)

    def both(params, vars, batch):
      return jax.value_and_grad(lambda p: r.objective.loss(p, vars, batch, key).sum)(params)

    shapes = self.run.state_shapes
    made = jax.jit(both).lower(shapes.params, shapes.vars, r.batch_shapes()).compile()
    return made.memory_analysis().temp_size_in_bytes

  def steps(self, n: int) -> float:
    """Seconds a step over n of them."""
    jax.block_until_ready(self.state)
    began = time.monotonic()
    for i in range(n):
      self.state, _ = self._step(self.state, self.batches[i % 2], jax.random.key(1))
    jax.block_until_ready(self.state)
    return (time.monotonic() - began) / n


def measured(vocab: int, flags) -> dict:
  """One vocabulary."""
  made = {name: Contestant(spec, vocab, flags) for name, spec in OBJECTIVES.items()}
  out = {'scratch': {name: c.scratch() for name, c in made.items()}}
  for c in made.values():
    c.steps(1)  # compiles
  times = {name: [] for name in made}
  for _ in range(flags.rounds):
    for name, c in made.items():
      times[name].append(c.steps(flags.steps))
  out['step'] = {name: statistics.median(own) for name, own in times.items()}
  out['rounds'] = [a / b for a, b in zip(times['clm'], times['headless'])]
  out['times_faster'] = statistics.median(out['rounds'])
  out['times_less_scratch'] = out['scratch']['clm'] / out['scratch']['headless']
  return out


def main() -> int:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--vocab', default='512,8192,32768,65536', help='sizes, with commas')
  p.add_argument('--width', type=int, default=256)
  p.add_argument('--depth', type=int, default=4)
  p.add_argument('--rows', type=int, default=8)
  p.add_argument('--length', type=int, default=128)
  p.add_argument('--steps', type=int, default=2, help='of a round')
  p.add_argument('--rounds', type=int, default=3)
  p.add_argument('--dtype', default='float32')
  p.add_argument('--out', help='a JSON file for the result')
  flags = p.parse_args()
  rows = {}
  for vocab in map(int, flags.vocab.split(',')):
    r = rows[vocab] = measured(vocab, flags)
    print(
      f'{vocab} tokens: {r["times_faster"]:.2f} times as fast ({min(r["rounds"]):.2f} to '
      f'{max(r["rounds"]):.2f}), scratch {r["scratch"]["clm"] / 2**20:.1f} against '
      f'{r["scratch"]["headless"] / 2**20:.1f} MiB, {r["times_less_scratch"]:.1f} times less',
      flush=True,
    )
  report = dict(
    command=' '.join(sys.argv),
    device=jax.devices()[0].device_kind,
    jax=jax.__version__,
    settings=vars(flags),
    vocabularies=rows,
  )
  if flags.out:
    pathlib.Path(flags.out).write_text(json.dumps(report, indent=1) + '\n')
  return 0


if __name__ == '__main__':
  raise SystemExit(main())

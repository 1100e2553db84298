"""How the cost of a training step grows along each axis, against the growth of its counted FLOPs.

  python experiments/perf/growth.py --out=experiments/perf/growth.json       12 minutes on two cores
  python experiments/perf/growth.py --length=1024,4096,16384,65536 --width=512,1024,2048,4096 \\
      --rows=8 --base=length:2048,width:1024,depth:4,vocab:8192,experts:8 --head=128 \\
      --dtype=bfloat16 --steps=5 --out=growth.json                           a GPU
  python experiments/perf/growth.py --length=16,32 --width=16,32 --depth=1,2 --vocab=300,600 \\
      --experts=2,4 --base=length:16,width:16,depth:1,vocab:300,experts:2 --head=8 --rows=2 \\
      --rounds=1                                                             tries it

A scanned decoder with attention (rope), GELU and a tied table, AdamW, on random tokens. Each axis
takes its sizes while the others stay at `--base`; `experts` are those of `base_layers()` in place
of GELU, one of them for each token. Every axis keeps `--rows` rows: a longer row is more tokens.
Steps are timed in turns, `--rounds` of `--steps`; seconds are CPU time where the CPU computes, all
threads included, wall time elsewhere; medians.

  exponent   p of seconds ~ size^p between the two largest sizes
  expected   the same p of counted FLOPs at the same sizes, so that base settings weigh as they do:
             `flops.py` counts the model's products from the facts of its parameters, attention
             over the pairs that are allowed (`counted`); `planning.work` counts the products of
             the compiled program, recomputation included (`compiled`; loops whose turns are no
             constants, those of an assignment of experts, once)
  bytes      the same p of the state, which the optimizer reads and writes whole in each step,
             however few its tokens; what it costs is in no count of FLOPs

The goal is an exponent of at most the larger of `counted` and `compiled`, plus 0.1: a step costs no
more than the work in it. One far below says that fixed costs still count at these sizes.
"""

import argparse
import statistics
import sys
import time

from lmjax import hardware

hardware.settle()  # before jax is imported, as `lmjax.main` does

import jax  # noqa: E402

import _report  # noqa: E402
import _step  # noqa: E402
from lmjax import build  # noqa: E402
from lmjax import flops  # noqa: E402
from lmjax.planning import hlo  # noqa: E402
from lmjax.planning import work  # noqa: E402

AXES = {
  'length': '512,1024,2048,4096',
  'width': '64,128,256,512',
  'depth': '2,4,8,16',
  'vocab': '512,4096,16384,65536',
  'experts': '2,4,8,16',
}
BASE = 'length:256,width:128,depth:2,vocab:512,experts:4'
WORKS = 'counted', 'compiled', 'bytes'
COLUMNS = 'axis', 'size', 'CPU-s a step', 'counted GFLOP', 'compiled GFLOP', 'state, MB'
EXPONENTS = 'axis', 'sizes', 'exponent', *WORKS, 'goal met'
SLACK = 0.1


class Point:
  """One size of an axis."""

  def __init__(self, flags, axis: str, size: int):
    s, self.steps = flags.base | {axis: size}, flags.steps
    experts = f'base_layers(experts={s["experts"]})' if axis == 'experts' else 'gelu()'
    run = _step.make(
      'quickstart',
      flags.rows,
      data__length=str(s['length']),
      batch_tokens=str(flags.rows * s['length']),
      model__width=str(s['width']),
      model__depth=str(s['depth']),
      model__vocab=str(s['vocab']),
      model__unroll='1',
      model__dtype=flags.dtype,
      model__mixer=f'gqa(head_dim={flags.head})',
      model__ffn=experts,
    )
    self.state, self.batches = run.init(jax.random.key(0)), _step.batches(run, 2)
    lowered = jax.jit(run.step, donate_argnums=0).lower(self.state, self.batches[0], self._key())
    self._step = lowered.compile()
    self.found = dict(
      counted=flops.per_token(run).step_causal * run.rows * run.length,
      compiled=work.flops(hlo.parse(self._step.as_text()), default=1),
      bytes=build.nbytes(run.state_shapes),
    )
    self.turn()

  @staticmethod
  def _key():
    return jax.random.key(1)

  def turn(self) -> float:
    """Seconds a step."""
    clock = time.process_time if jax.devices()[0].platform == 'cpu' else time.monotonic
    jax.block_until_ready(self.state)
    began = clock()
    for i in range(self.steps):
      self.state, _ = self._step(self.state, self.batches[i % 2], self._key())
    jax.block_until_ready(self.state)
    return (clock() - began) / self.steps


def measured(flags, axis: str, sizes) -> dict:
  """{size: seconds and work} of an axis, and its exponents."""
  points = {n: Point(flags, axis, n) for n in sizes}
  turns = [{n: p.turn() for n, p in points.items()} for _ in range(flags.rounds)]
  found = {
    n: dict(seconds=statistics.median(t[n] for t in turns), rounds=[t[n] for t in turns], **p.found)
    for n, p in points.items()
  }
  p = {k: _report.exponent(sizes, [r[k] for r in found.values()]) for k in ('seconds', *WORKS)}
  rounds = [_report.exponent(sizes, list(t.values())) for t in turns]
  met = p['seconds'] <= max(p['counted'], p['compiled']) + SLACK
  return dict(sizes=found, exponents=p, exponent_rounds=[min(rounds), max(rounds)], met=met)


def page(axes: dict) -> str:
  rows, last = [], []
  for axis, own in axes.items():
    for n, r in own['sizes'].items():
      work_done = (f'{r[k] / 1e9:.3g}' for k in ('counted', 'compiled'))
      rows.append((axis, f'{n:,}', f'{r["seconds"]:.3f}', *work_done, f'{r["bytes"] / 1e6:.3g}'))
    p, (low, high) = own['exponents'], own['exponent_rounds']
    sizes = ' to '.join(f'{n:,}' for n in list(own['sizes'])[-2:])
    seconds = f'{p["seconds"]:.2f} ({low:.2f} to {high:.2f})'
    last.append((axis, sizes, seconds, *(f'{p[k]:.2f}' for k in WORKS), own['met']))
  return f'{_report.table(COLUMNS, rows)}\n\n{_report.table(EXPONENTS, last)}'


def flags_of():
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for axis, sizes in AXES.items():
    p.add_argument(f'--{axis}', default=sizes, help="'' leaves the axis out")
  p.add_argument('--base', default=BASE, help='sizes of the axes that stay')
  p.add_argument('--rows', type=int, default=4)
  p.add_argument('--head', type=int, default=32, help='size of a head')
  p.add_argument('--dtype', default='float32')
  p.add_argument('--steps', type=int, default=2, help='of a turn')
  p.add_argument('--rounds', type=int, default=5)
  p.add_argument('--out', help='a JSON file for the result')
  flags = p.parse_args()
  flags.base = {k: int(n) for k, n in (part.split(':') for part in flags.base.split(','))}
  flags.axes = {k: [int(n) for n in v.split(',')] for k in AXES if (v := getattr(flags, k))}
  return flags


def main() -> int:
  flags, axes = flags_of(), {}
  for axis, sizes in flags.axes.items():
    axes[axis] = measured(flags, axis, sizes)
    print(axis, axes[axis]['exponents'], flush=True)
  print(page(axes))
  _report.write(_report.head(flags) | dict(axes=axes), flags.out)
  return 0


if __name__ == '__main__':
  sys.exit(main())

"""What each optimizer costs: the whole step against AdamW's, and the update against the floor that
memory bandwidth sets.

  python experiments/perf/optim_step.py --recipe=gpt2:124M --rows=32 --out=optim_step.json
  python experiments/perf/optim_step.py --recipe=gpt3:1.3B --rows=1 --alone --only=adamw,eight_bit
  python experiments/perf/optim_step.py --recipe=gpt2:tiny --rows=4 --rounds=2   (tries a CPU)

All steps are compiled first; then each optimizer in turn makes `--steps` steps (a multiple of
Sophia's interval of 10, so that its Hessian's share is right), `--rounds` times. Ratios are of one
round each, their median is reported. The floor of an update counts every byte once: gradients,
parameters and state read, parameters and state written; the bandwidth is that of a long addition in
place or a long sum on the same device, whichever is faster. Projections of galore, fira and soap
are made anew every `gap` steps, which the few steps here do not show. With `--alone` updates are
all that is timed, of one optimizer after another, for models whose states do not fit beside each
other; an update of a billion parameters is in proportion.
"""

import argparse
import statistics
import sys
import time

from lmjax import hardware

hardware.settle()  # before jax is imported, as `lmjax.main` does

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402

import _report  # noqa: E402
import _step  # noqa: E402
from lmjax import build  # noqa: E402
from lmjax import registry  # noqa: E402

ADAM = 'adam(b2=0.99)'
OPTIMS = {
  'adamw': f'clip() | {ADAM} | decay(rate=0.1)',
  'lion': 'clip() | lion() | decay(rate=0.5)',
  'sophia_g': 'clip() | sophia_g(every=10) | decay(rate=0.2)',
  'sophia_h': 'clip() | sophia_h(every=10) | decay(rate=0.2)',
  'muon': f'clip() | split(matrix=muon(), rest={ADAM}) | decay(rate=0.1)',
  'scale': 'scale()',
  'adagc': f'adagc() | {ADAM} | decay(rate=0.1)',
  'adamp': 'clip() | adamp(decay=decay(rate=0.1))',
  'eight_bit': f'clip() | eight_bit(inner={ADAM}) | decay(rate=0.1)',
  'stable_adamw': 'stable_adamw() | decay(rate=0.1)',
  'stable_spam': 'stable_spam() | decay(rate=0.1)',
  'apollo': 'clip() | apollo(rank=64)',
  'schedule_free': 'clip() | schedule_free(inner=rmsprop(b2=0.99) | decay(rate=0.1))',
}
UPDATES = 20  # of a timing of the update alone
COLUMNS = 'optimizer', 'state, GiB', 'update, ms', 'of 1B parameters, ms', 'update / floor'
COLUMNS += ('step of adamw',)


def bandwidth_of(nbytes: int) -> float:
  """Bytes a second of the faster of a long sum, which reads, and a long addition in place, which
  reads and writes.
  """
  x = jnp.arange(nbytes // 4, dtype=jnp.float32)
  add, read = jax.jit(lambda x: x + 1.0, donate_argnums=0), jax.jit(jnp.sum)
  added, was_read = [], []
  for _ in range(11):  # the first compiles
    began = time.monotonic()
    x = jax.block_until_ready(add(x))
    between = time.monotonic()
    jax.block_until_ready(read(x))
    added.append(between - began)
    was_read.append(time.monotonic() - between)
  return nbytes * max(2 / statistics.median(added[1:]), 1 / statistics.median(was_read[1:]))


class Contestant:
  """One optimizer on the recipe: its compiled step, its state, and its update alone."""

  def __init__(self, recipe: str, rows: int, optim: str):
    self.run = _step.make(recipe, rows, model__embed='untied()', optim=optim)
    self.state = self.run.init(jax.random.key(0))
    self._step = jax.jit(self.run.step, donate_argnums=0)

  def steps(self, batches, n: int) -> float:
    """Seconds a step over n of them."""
    jax.block_until_ready(self.state)
    began = time.monotonic()
    for i in range(n):
      self.state, _ = self._step(self.state, batches[i % len(batches)], jax.random.key(1))
    jax.block_until_ready(self.state)
    return (time.monotonic() - began) / n

  def update(self) -> tuple[float, int] | None:
    """Seconds of an update of parameters and state alone, and its bytes; None for an optimizer that
    differentiates by itself.
    """
    optim = registry.make_chain('optim', self.run.config['optim'], facts=self.run.facts['params'])
    if any(part.fact('needs') for _, part in optim.items()):
      return None
    params, opt = self.state.params, self.state.opt
    grads = jax.tree.map(lambda p: 1e-3 * jax.random.normal(jax.random.key(2), p.shape), params)

    def one(params, opt, grads):
      updates, opt = self.run.tx.update(grads, opt, params)
      return optax.apply_updates(params, jax.tree.map(lambda u: -1e-4 * u, updates)), opt

    step = jax.jit(one, donate_argnums=(0, 1))
    self.state = None  # given away
    both = step(params, opt, grads)
    times = []
    for _ in range(3):
      jax.block_until_ready(both)
      began = time.monotonic()
      for _ in range(UPDATES):
        both = step(*both, grads)
      jax.block_until_ready(both)
      times.append((time.monotonic() - began) / UPDATES)
    params, opt = both
    moved = build.nbytes(grads) + 2 * build.nbytes(params) + 2 * build.nbytes(opt)
    return statistics.median(times), moved


def main() -> int:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--recipe', default='gpt2:124M')
  p.add_argument('--rows', type=int, default=32)
  p.add_argument('--steps', type=int, default=10, help='of a round; a multiple of 10')
  p.add_argument('--rounds', type=int, default=5)
  p.add_argument('--only', default=','.join(OPTIMS), help='names, adamw among them')
  p.add_argument('--alone', action='store_true', help='updates, one optimizer after another')
  p.add_argument('--out', help='a JSON file for the result')
  flags = p.parse_args()
  names = flags.only.split(',')
  if flags.steps % 10 or flags.steps < 10 or 'adamw' not in names or set(names) - set(OPTIMS):
    p.error(f'--steps: a multiple of 10; --only: adamw and others of {", ".join(OPTIMS)}')

  on_cpu = jax.devices()[0].platform == 'cpu'
  bandwidth = bandwidth_of(2**28 if on_cpu else 2**31)
  updates = {name: updated(flags, name, bandwidth) for name in names}
  steps = {} if flags.alone else race(flags, names)
  rows = {name: updates[name] | steps.get(name, {}) for name in names}
  print(table(rows))
  print(f'floor: {bandwidth / 1e9:,.0f} GB/s')
  _report.write(_report.head(flags) | dict(bandwidth=bandwidth, optimizers=rows), flags.out)
  return 0


def updated(flags, name: str, bandwidth: float) -> dict:
  """What the update alone costs."""
  c = Contestant(flags.recipe, flags.rows, OPTIMS[name])
  out = {'state_bytes': build.state_bytes(c.run)['total']}
  if alone := c.update():
    seconds, moved = alone
    floor, params = moved / bandwidth, build.counts(c.run)['total']
    out |= dict(update=seconds, update_floor=floor, update_over_floor=seconds / floor)
    out |= dict(params=params, update_of_a_billion=seconds / params * 1e9)
  return out


def race(flags, names) -> dict:
  """Whole steps of all, in turns."""
  made, times = {}, {name: [] for name in names}
  for name in names:
    made[name] = c = Contestant(flags.recipe, flags.rows, OPTIMS[name])
    batches = _step.batches(c.run, 4)
    c.steps(batches, 11)  # compiled, both branches of an interval seen
  for _ in range(flags.rounds):
    for name, c in made.items():
      times[name].append(c.steps(batches, flags.steps))
  ratios = {name: [a / b for a, b in zip(own, times['adamw'])] for name, own in times.items()}
  return {
    name: dict(step=statistics.median(own), step_over_adamw=statistics.median(ratios[name]))
    | dict(ratios=ratios[name])
    for name, own in times.items()
  }


def table(rows: dict) -> str:
  lines = []
  for name, r in rows.items():
    cells = [name, f'{r["state_bytes"] / 2**30:.2f}', '', '', '']
    if 'update' in r:
      cells[2:] = (f'{1e3 * r[k]:.2f}' for k in ('update', 'update_of_a_billion'))
      cells.append(f'{r["update_over_floor"]:.2f}')
    lines.append([*cells, _report.spread(r['ratios'], 3) if 'ratios' in r else ''])
  return _report.table(COLUMNS, lines)


if __name__ == '__main__':
  sys.exit(main())

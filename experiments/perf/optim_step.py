"""What each optimizer costs: the whole step against AdamW's, and the update against the floor that
memory bandwidth sets.

  python experiments/perf/optim_step.py --recipe=gpt2:124M --rows=32 --out=optim_step.json
  python experiments/perf/optim_step.py --recipe=gpt2:tiny --rows=4 --rounds=2   (tries a CPU)

All steps are compiled first; then each optimizer in turn makes `--steps` steps (a multiple of
Sophia's interval of 10, so that its Hessian's share is right), `--rounds` times. Ratios are of one
round each, their median is reported. The floor of an update counts every byte once: gradients,
parameters and state read, parameters and state written; the bandwidth is that of a long copy on the
same device (2 bytes moved for each byte copied). Projections of galore, fira and soap are made anew
every `gap` steps, which the few steps here do not show.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import optax

import _step
from lmjax import build
from lmjax import registry

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


def copies(nbytes: int) -> float:
  """Bytes a second that a long copy moves, read and written."""
  x = jnp.arange(nbytes // 4, dtype=jnp.float32)
  copy = jax.jit(lambda x: x + 1.0)
  jax.block_until_ready(copy(x))
  times = []
  for _ in range(10):
    began = time.monotonic()
    jax.block_until_ready(copy(x))
    times.append(time.monotonic() - began)
  return 2 * nbytes / statistics.median(times)


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
    both = step(*jax.tree.map(jnp.copy, (params, opt)), grads)
    times = []
    for _ in range(3):
      jax.block_until_ready(both)
      began = time.monotonic()
      for _ in range(UPDATES):
        both = step(*both, grads)
      jax.block_until_ready(both)
      times.append((time.monotonic() - began) / UPDATES)
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
  p.add_argument('--out', help='a JSON file for the result')
  flags = p.parse_args()
  names = flags.only.split(',')
  if flags.steps % 10 or flags.steps < 10 or 'adamw' not in names or set(names) - set(OPTIMS):
    p.error(f'--steps: a multiple of 10; --only: adamw and others of {", ".join(OPTIMS)}')

  device = jax.devices()[0]
  bandwidth = copies(2**28 if device.platform == 'cpu' else 2**31)
  made, rows = {}, {}
  for name in names:
    made[name] = c = Contestant(flags.recipe, flags.rows, OPTIMS[name])
    batches = _step.batches(c.run, 4)
    c.steps(batches, 11)  # compiled, both branches of an interval seen
    rows[name] = {'state_bytes': build.state_bytes(c.run)['total']}
    if alone := c.update():
      floor = alone[1] / bandwidth
      rows[name] |= dict(update=alone[0], update_floor=floor, update_over_floor=alone[0] / floor)
    print(name, json.dumps(rows[name]), flush=True)
  times = {name: [] for name in names}
  for _ in range(flags.rounds):
    for name, c in made.items():
      times[name].append(c.steps(batches, flags.steps))
  for name, own in times.items():
    ratios = [a / b for a, b in zip(own, times['adamw'])]
    rows[name] |= dict(step=statistics.median(own), step_over_adamw=statistics.median(ratios))
    rows[name] |= dict(ratios=ratios)
  report = dict(
    command=' '.join(sys.argv),
    device=device.device_kind,
    jax=jax.__version__,
    bandwidth=bandwidth,
    optimizers=rows,
  )
  for name, r in rows.items():
    over = r.get('update_over_floor')
    print(f'{name:14} step x{r["step_over_adamw"]:.3f}  update / floor {over and round(over, 2)}')
  if flags.out:
    pathlib.Path(flags.out).write_text(json.dumps(report, indent=1) + '\n', encoding='utf-8')
  return 0


if __name__ == '__main__':
  sys.exit(main())

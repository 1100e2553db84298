"""The unembedding with its cross-entropy, forward and backward: time and memory of lmjax's
implementations against the naive form and PyTorch.

  python experiments/perf/loss_layer.py --out=experiments/perf/loss_layer.json       three minutes
  python experiments/perf/loss_layer.py --tokens=32768 --width=768 --dtype=bfloat16 --steps=20   GPU
  python experiments/perf/loss_layer.py --tokens=64 --vocab=300 --width=16 --rounds=1     (tries it)

One call gives the sum over `--tokens` random tokens and its gradients into the hidden vectors and
the matrix, which stays float32. Contestants take turns; ratios are of one round, against `whole`,
the naive form compiled by XLA, which keeps all logits. Memory is scratch beside arguments and
results: of XLA what the compiler plans, of PyTorch what its allocator held at most (GPUs only). An
implementation that cannot run here says why.
"""

import argparse
import importlib.util
import math
import os
import statistics
import sys
import time

from lmjax import hardware

hardware.settle()  # before jax is imported, as `lmjax.main` does
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # PyTorch wants memory too

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import _report  # noqa: E402
from lmjax import versions  # noqa: E402
from lmjax.kernels import linear_cross_entropy as op  # noqa: E402

TORCH = {'torch': False, 'torch compiled': True}
COLUMNS = '', 'ms', 'time of `whole`', 'CPU time of `whole`', 'scratch, MiB', 'of `whole`'
COLUMNS += 'time of the best torch', 'scratch of `torch`'


def arrays(flags):
  """(x, W, y) as NumPy arrays."""
  rng = np.random.default_rng(0)
  rows = (max(1, flags.tokens // 1024), -1)
  x = rng.normal(size=(flags.tokens, flags.width)).astype(np.float32)
  w = rng.normal(size=(flags.vocab, flags.width)).astype(np.float32) * flags.width**-0.5
  y = rng.integers(0, flags.vocab, flags.tokens).astype(np.int32)
  return x.reshape(*rows, flags.width), w, y.reshape(rows)


class Ours:
  """An implementation of lmjax."""

  def __init__(self, name: str, flags):
    x, w, y = arrays(flags)
    weights = jnp.ones(y.shape, jnp.float32)

    def both(x, w, y):
      total = lambda x, w: op.linear_cross_entropy(x, w, y, weights, implementation=name).total
      return jax.value_and_grad(total, (0, 1))(x, w)

    self.given = jnp.asarray(x, flags.dtype), jnp.asarray(w), jnp.asarray(y)
    self.run = jax.jit(both).lower(*self.given).compile()
    self.scratch = self.run.memory_analysis().temp_size_in_bytes

  def call(self) -> float:
    """The sum."""
    return float(jax.block_until_ready(self.run(*self.given))[0])


class Torch:
  """The naive form in PyTorch, perhaps compiled."""

  def __init__(self, compiled: bool, flags):
    import torch

    x, w, y = arrays(flags)
    self.torch, self.gpu = torch, torch.cuda.is_available()
    device, dtype = 'cuda' if self.gpu else 'cpu', getattr(torch, flags.dtype)
    self.x = torch.tensor(
      x.reshape(-1, flags.width), device=device, dtype=dtype, requires_grad=True
    )
    self.w = torch.tensor(w, device=device, requires_grad=True)
    y = torch.tensor(y.reshape(-1), device=device, dtype=torch.long)

    def loss(x, w):
      logits = (x @ w.to(dtype).T).float()
      return torch.nn.functional.cross_entropy(logits, y, reduction='sum')

    self.loss, self.scratch = torch.compile(loss) if compiled else loss, None
    self.call()
    if self.gpu:
      torch.cuda.reset_peak_memory_stats()
      before = torch.cuda.memory_allocated()
      self.call()
      held = sum(p.numel() * p.element_size() for p in (self.x, self.w))
      self.scratch = torch.cuda.max_memory_allocated() - before - held

  def call(self) -> float:
    """The sum."""
    self.x.grad = self.w.grad = None
    out = self.loss(self.x, self.w)
    out.backward()
    if self.gpu:
      self.torch.cuda.synchronize()
    return float(out.detach())


def contestants(flags):
  """({name: contestant}, {name: why it cannot run})."""
  made, missing = {}, {}
  for name in (*op.IMPLEMENTATIONS, *TORCH):
    if name in TORCH and importlib.util.find_spec('torch') is None:
      missing[name] = 'torch absent'
      continue
    try:
      made[name] = Torch(TORCH[name], flags) if name in TORCH else Ours(name, flags)
      made[name].call()  # also warm
    except (ValueError, NotImplementedError, RuntimeError) as e:  # refused, or out of memory
      made.pop(name, None)
      missing[name] = (str(e).strip().splitlines() or [type(e).__name__])[0][:300]
  return made, missing


def measured(flags):
  """({name: seconds, CPU seconds, ratios of each round, scratch}, {name: why there is nothing})."""
  made, missing = contestants(flags)
  if 'whole' not in made:
    raise SystemExit(f'whole, against which all are measured: {missing["whole"]}')
  sums = {name: c.call() for name, c in made.items()}
  tolerance = 1e-2 if flags.dtype != 'float32' else 1e-5
  for name, s in sums.items():
    if not math.isclose(s, sums['whole'], rel_tol=tolerance):
      raise SystemExit(f'{name} gives {s}, whole gives {sums["whole"]}')
  wall, cpu = ({name: [] for name in made} for _ in range(2))
  for _ in range(flags.rounds):
    for name, c in made.items():
      began, used = time.monotonic(), time.process_time()
      for _ in range(flags.steps):
        c.call()
      wall[name].append((time.monotonic() - began) / flags.steps)
      cpu[name].append((time.process_time() - used) / flags.steps)
  against = lambda times, name, base: [a / b for a, b in zip(times[name], times[base])]
  median = lambda name: statistics.median(wall[name])
  best = min((n for n in made if n in TORCH), key=median, default=None)
  found = {
    name: dict(
      seconds=statistics.median(wall[name]),
      cpu_seconds=statistics.median(cpu[name]),
      of_whole=against(wall, name, 'whole'),
      cpu_of_whole=against(cpu, name, 'whole'),
      scratch=c.scratch,
    )
    | ({'best_torch': best, 'of_best_torch': against(wall, name, best)} if best else {})
    for name, c in made.items()
  }
  return found, missing


def table(found: dict, missing: dict) -> str:
  naive, rows = found.get('torch', {}).get('scratch'), []
  share = lambda whole, own: f'1/{whole / own:.1f}' if whole and own else ''
  for name, r in found.items():
    memory = '' if r['scratch'] is None else f'{r["scratch"] / 2**20:,.0f}'
    cells = [
      name,
      f'{1e3 * r["seconds"]:.2f}',
      _report.spread(r['of_whole']),
      _report.spread(r['cpu_of_whole']),
    ]
    cells += [memory, share(found['whole']['scratch'], r['scratch'])]
    cells.append(_report.spread(r['of_best_torch']) if 'of_best_torch' in r else '')
    rows.append([*cells, share(naive, r['scratch'])])
  rows += [(name, why, *[''] * (len(COLUMNS) - 2)) for name, why in missing.items()]
  return _report.table(COLUMNS, rows)


def main() -> int:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--tokens', type=int, default=4096)
  p.add_argument('--vocab', type=int, default=50_304)
  p.add_argument('--width', type=int, default=256)
  p.add_argument('--dtype', default='float32')
  p.add_argument('--steps', type=int, default=1, help='of a round')
  p.add_argument('--rounds', type=int, default=5)
  p.add_argument('--out', help='a JSON file for the result')
  flags = p.parse_args()
  found, missing = measured(flags)
  print(table(found, missing))
  report = _report.head(flags) | dict(torch=versions.package('torch'))
  _report.write(report | dict(contestants=found, missing=missing), flags.out)
  return 0


if __name__ == '__main__':
  sys.exit(main())

"""Causal attention on the accelerator at hand, forward and with its gradient: lmjax's
implementations against PyTorch's.

  python experiments/perf/attention.py --out=attention.json                                a GPU
  python experiments/perf/attention.py --lengths=128 --tokens=128 --heads=2 --size=16 \\
      --dtype=float32 --steps=1 --rounds=1                                   (tries it on a CPU)

`--tokens` tokens in rows of each length, one where it is longer. `NAME, documents` is the same with
the documents of each row given, as in training; all tokens are of one. PyTorch's are backends of
`scaled_dot_product_attention(is_causal=True)`, which knows no documents. `reference` keeps all
logits and runs at the first length alone. Contestants take turns; ratios are of one round, against
the fastest of PyTorch's (above 1 is faster), medians are reported. FLOP/s count half of all pairs
of tokens: 4 T^2 K / 2 for a head forward, 3.5 times that with the gradient. The error is that of
outputs and gradients of two heads against `xla` in float32, |a - b| / |b|.
"""

import argparse
import functools
import importlib.util
import os
import statistics
import sys

os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # PyTorch wants memory too

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import _report  # noqa: E402
import decoding  # noqa: E402
from lmjax import flops  # noqa: E402
from lmjax.kernels import attention as op  # noqa: E402

BACKENDS = {'torch flash': 'FLASH_ATTENTION', 'torch cudnn': 'CUDNN_ATTENTION'}
DOCUMENTS = ', documents'
PASSES = {'forward': 1.0, 'both': 3.5}
COLUMNS = ['T', 'contestant', 'error', 'scratch, MiB']
COLUMNS += [f'{p}, {what}' for p in PASSES for what in ('ms', 'TFLOP/s', 'x best torch')]


def drawn(flags, length: int):
  """q, k, v and the gradient of the output, float32 (B, T, H, K)."""
  rng = np.random.default_rng(0)
  shape = max(1, flags.tokens // length), length, flags.heads, flags.size
  return [rng.standard_normal(shape, np.float32) for _ in range(4)]


def part(x_BTHK):
  """What is compared: two heads of a row."""
  return x_BTHK[:1, :, :2]


class Ours:
  """An implementation of lmjax."""

  def __init__(self, name: str, arrays, dtype: str):
    name, documents, _ = name.partition(DOCUMENTS)
    rows, length = arrays[0].shape[:2]
    places = jnp.tile(jnp.arange(length, dtype=jnp.int32), (rows, 1))

    def forward(q, k, v, places):
      ones = jnp.ones_like(places) if documents else None
      where = dict(q_positions=places, k_positions=places, q_segments=ones, k_segments=ones)
      return op.attention(q, k, v, **where, implementation=name)

    def both(q, k, v, dy, places):
      y, back = jax.vjp(lambda q, k, v: forward(q, k, v, places), q, k, v)
      return y, *back(dy)

    *qkv, dy = (jnp.asarray(a, dtype) for a in arrays)
    given = dict(forward=(*qkv, places), both=(*qkv, dy, places))
    compiled = {
      n: jax.jit(f).lower(*given[n]).compile() for n, f in dict(forward=forward, both=both).items()
    }
    self.scratch = compiled['both'].memory_analysis().temp_size_in_bytes
    self.runs = {n: lambda n=n: compiled[n](*given[n]) for n in compiled}

  def call(self, what: str, steps: int):
    for _ in range(steps):
      out = self.runs[what]()
    return jax.block_until_ready(out)

  def numbers(self):
    return [np.asarray(part(a), np.float32) for a in self.call('both', 1)]


class Torch:
  """A backend of PyTorch."""

  scratch = None

  def __init__(self, name: str, arrays, dtype: str):
    import torch

    self.torch, self.gpu = torch, torch.cuda.is_available()
    self.backend = getattr(torch.nn.attention.SDPBackend, BACKENDS[name])
    how = dict(device='cuda' if self.gpu else 'cpu', dtype=getattr(torch, dtype))
    of = lambda a: torch.tensor(a.swapaxes(1, 2), **how)
    self.qkv, self.dy = [of(a).requires_grad_() for a in arrays[:3]], of(arrays[3])
    self.call('both', 1)

  def call(self, what: str, steps: int):
    sdpa = self.torch.nn.functional.scaled_dot_product_attention
    with self.torch.nn.attention.sdpa_kernel(self.backend):
      for _ in range(steps):
        with self.torch.set_grad_enabled(what == 'both'):
          out = [sdpa(*self.qkv, is_causal=True)]
        if what == 'both':
          out += self.torch.autograd.grad(out[0], self.qkv, self.dy)
    if self.gpu:
      self.torch.cuda.synchronize()
    return out

  def numbers(self):
    given = (a.detach().transpose(1, 2) for a in self.call('both', 1))
    return [part(a).float().cpu().numpy() for a in given]


def wanted(flags, length: int) -> list[str]:
  """Names of contestants at a length."""
  ours = [n for n in op.IMPLEMENTATIONS if n != 'reference' or length == flags.lengths[0]]
  return flags.only or [*ours, *(n + DOCUMENTS for n in ours if n != 'reference'), *BACKENDS]


def contestants(flags, length: int):
  """({name: contestant}, {name: why it cannot}, {name: error})."""
  arrays, made, missing, errors = drawn(flags, length), {}, {}, {}
  right = Ours('xla', [part(a) for a in arrays], 'float32').numbers()
  for name in wanted(flags, length):
    if name in BACKENDS and importlib.util.find_spec('torch') is None:
      missing[name] = 'torch absent'
      continue
    try:
      made[name] = (Torch if name in BACKENDS else Ours)(name, arrays, flags.dtype)
      got = made[name].numbers()
    except (ValueError, NotImplementedError, RuntimeError) as e:  # refused, or out of memory
      made.pop(name, None)
      missing[name] = (str(e).strip().splitlines() or [type(e).__name__])[0][:300]
      continue
    errors[name] = max(
      float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(got, right, strict=True)
    )
  return made, missing, errors


def measured(flags, length: int) -> dict:
  made, missing, errors = contestants(flags, length)
  out = {n: dict(error=errors[n], scratch=c.scratch) for n, c in made.items()}
  rows = max(1, flags.tokens // length)
  work = 2.0 * length**2 * flags.size * flags.heads * rows  # half of the pairs
  for what, times in PASSES.items():
    run = {n: functools.partial(c.call, what, flags.steps) for n, c in made.items()}
    turns, _ = decoding.race(run, flags.rounds)
    medians = {n: statistics.median(t['wall'] for t in own) for n, own in turns.items()}
    base = min((n for n in turns if n in BACKENDS), key=medians.get, default=None)
    for name in made:
      seconds = medians[name] / flags.steps
      out[name][what] = dict(seconds=seconds, flops=times * work / seconds)
      if base:
        ratio = [b['wall'] / a['wall'] for a, b in zip(turns[name], turns[base])]
        out[name][what] |= dict(base=base, ratio=ratio)
  return dict(contestants=out, missing=missing)


def table(lengths: dict) -> str:
  rows = []
  for length, found in lengths.items():
    for name, r in found['contestants'].items():
      scratch = '' if r['scratch'] is None else f'{r["scratch"] / 2**20:,.0f}'
      cells = [length, name, f'{r["error"]:.1e}', scratch]
      for what in PASSES:
        ratio = r[what].get('ratio')
        cells += [f'{1e3 * r[what]["seconds"]:.3f}', f'{r[what]["flops"] / 1e12:.1f}']
        cells.append(_report.spread(ratio) if ratio else '')
      rows.append(cells)
    rows += [(length, n, why, *[''] * (len(COLUMNS) - 3)) for n, why in found['missing'].items()]
  return _report.table(COLUMNS, rows)


def main() -> int:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--lengths', default='2048,8192,32768,4096,16384')
  p.add_argument('--tokens', type=int, default=16_384)
  p.add_argument('--heads', type=int, default=16)
  p.add_argument('--size', type=int, default=128, help='of a head')
  p.add_argument('--dtype', default='bfloat16')
  p.add_argument('--steps', type=int, default=10, help='of a turn')
  p.add_argument('--rounds', type=int, default=7)
  p.add_argument('--only', action='append', metavar='CONTESTANT', help='may be given several times')
  p.add_argument('--out', help='a JSON file for the result')
  flags = p.parse_args()
  flags.lengths = [int(n) for n in flags.lengths.split(',')]
  known = [*op.IMPLEMENTATIONS, *(n + DOCUMENTS for n in op.IMPLEMENTATIONS), *BACKENDS]
  if odd := set(flags.only or ()) - set(known):
    p.error(f'--only={sorted(odd)[0]!r}: one of {", ".join(known)} is expected')
  device = jax.devices()[0].device_kind
  report = _report.head(flags) | dict(peak=flops.peak(device), lengths={})
  for length in flags.lengths:
    report['lengths'][length] = measured(flags, length)
    _report.write(report, flags.out)
  print(table(report['lengths']))
  most = 1e-4 if flags.dtype == 'float32' else 3e-2
  found = [(n, c) for n, l in report['lengths'].items() for c in l['contestants'].items()]
  wrong = [f'{name} at {n}' for n, (name, c) in found if not c['error'] < most]
  if wrong:
    print(f'wrong by more than {most}: {", ".join(wrong)}', file=sys.stderr)
  return int(bool(wrong) or not found)


if __name__ == '__main__':
  sys.exit(main())

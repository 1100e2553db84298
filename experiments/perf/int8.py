"""Products in int8 against bfloat16 on the accelerator at hand, square matrices of several sizes.

command: python experiments/perf/int8.py --out=experiments/perf/int8.json
  python experiments/perf/int8.py --sizes 64 128 --rows 64 --repeats 2 --rounds 2   (tries a CPU)

Contestants, each compiled by itself, in turns for `--rounds` rounds:
  bfloat16      x W
  int8          x8 W8 summed in int32, both given: the product alone
  vector        x rounded by rows, the product, scales: the linear part int8(tau=None)
  llm_int8      the linear part int8(tau=6): two products, in int8 and in bfloat16
  quantized     the linear part quantized(bits=4, group=64): W made in the product
Times are seconds of one product, the median over rounds; ratios are to bfloat16 in the same round,
their median is given. Every product feeds the next one, so that none can be left out; the outliers
are gone after the first, which changes no time, since shapes are static.
"""

import argparse
import json
import math
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp

from lmjax import progress
from lmjax import registry

PARTS = {
  'vector': ('int8(tau=None)', 'llm_int8(tau=None)'),
  'llm_int8': ('int8(tau=6.0)', 'llm_int8(tau=6.0)'),
  'quantized': ('quantized(bits=4, group=64)', 'rtn(bits=4, group=64)'),
}


def contestants(size: int) -> dict:
  """{name: (function, operands)}; a function is (x, operands) -> y, like x."""
  w = jax.random.normal(jax.random.key(0), (size, size)) / math.sqrt(size)
  times = lambda x, codes: jax.lax.dot_general(
    x, codes, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32
  )
  codes = jnp.round(w / jnp.max(jnp.abs(w)) * 127).astype(jnp.int8)
  out = {
    'bfloat16': (lambda x, w: x @ w, w.astype(jnp.bfloat16)),
    'int8': (lambda x, c: (times(x, c) >> 8).astype(jnp.int8), codes),
  }
  for name, (linear, method) in PARTS.items():
    module = registry.make('linear', linear)(
      ins=(('embed', size),), outs=(('mlp', size),), role='hidden', scheme=None, bias=False,
      parent=None,
    )  # fmt: skip
    stored = module.stored(registry.make('quantizer', method)().quantize(w, None))
    apply = lambda x, v, module=module: module.apply({'vars': v}, x[None])[0]
    out[name] = apply, stored
  return out


def inputs(name: str, rows: int, size: int):
  """x; three features are outliers."""
  x = jax.random.normal(jax.random.key(1), (rows, size)).at[:, :3].multiply(20.0)
  if name == 'int8':
    return jnp.clip(jnp.round(x * 30), -127, 127).astype(jnp.int8)
  return x.astype(jnp.bfloat16)


def chained(function, repeats: int):
  """The function applied again and again to what it gave. What is made of the operands is made each
  time: the barrier hides that they stay the same.
  """

  def body(_, carry):
    y, operands = jax.lax.optimization_barrier(carry)
    return function(y, operands), operands

  return jax.jit(lambda x, operands: jax.lax.fori_loop(0, repeats, body, (x, operands))[0])


def measure(rows: int, size: int, repeats: int, rounds: int) -> dict[str, dict[str, float]]:
  made = {
    name: (chained(f, repeats), inputs(name, rows, size), v)
    for name, (f, v) in contestants(size).items()
  }
  for run, x, v in made.values():
    jax.block_until_ready(run(x, v))
  times: dict[str, list[float]] = {name: [] for name in made}
  for _ in range(rounds):
    for name, (run, x, v) in made.items():
      began = time.perf_counter()
      jax.block_until_ready(run(x, v))
      times[name].append((time.perf_counter() - began) / repeats)
  base = times['bfloat16']
  return {
    name: dict(
      seconds=statistics.median(t),
      tera_operations=2 * rows * size * size / statistics.median(t) / 1e12,
      speed_up=statistics.median(b / s for b, s in zip(base, t)),
    )
    for name, t in times.items()
  }


def main() -> None:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--sizes', type=int, nargs='+', default=[1024, 2048, 4096, 8192])
  p.add_argument('--rows', type=int, default=4096)
  p.add_argument('--repeats', type=int, default=50)
  p.add_argument('--rounds', type=int, default=7)
  p.add_argument('--out', type=pathlib.Path, help='a JSON file for the result')
  flags = p.parse_args()
  device = jax.devices()[0].device_kind
  report = dict(device=device, jax=jax.__version__, rows=flags.rows, sizes={})
  for size in flags.sizes:
    found = measure(flags.rows, size, flags.repeats, flags.rounds)
    report['sizes'][size] = found
    for name, f in found.items():
      progress.say(
        f'{size:6} {name:10} {1e6 * f["seconds"]:10.1f} us  {f["tera_operations"]:8.2f} T/s  '
        f'{f["speed_up"]:5.2f} x bfloat16'
      )
  if flags.out:
    flags.out.write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
  main()

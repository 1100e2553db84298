"""What XLA makes of operations that other codebases have kernels for: bytes to and from main memory
against the least, compiled for TPUs that are not here.

  python experiments/perf/fusions.py --out=experiments/perf/fusions.json       ten minutes, libtpu
  python experiments/perf/fusions.py --only=quant_matmul --chips=v5e-1
  python experiments/perf/fusions.py --small                                   (tries it)

The least is inputs once and results once. Bytes are `planning.work.memory_traffic` of the optimized
program: each instruction that is left reads its operands and writes its results, what XLA keeps in
the core's own memory costs nothing, a kernel what it states. Temporaries are what the compiler
allocates beside arguments and results. Nothing is timed. Where lmjax has several implementations
(`config.kernels`) there is a row for each.
"""

import argparse
import importlib.metadata
import math
import os
import sys
import time

os.environ |= dict(JAX_PLATFORMS='cpu', TPU_SKIP_MDS_QUERY='1', ALLOW_MULTIPLE_LIBTPU_LOAD='1')

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

import _report  # noqa: E402
from lmjax import registry  # noqa: E402
from lmjax.kernels import choice  # noqa: E402
from lmjax.kernels import delta_rule  # noqa: E402
from lmjax.models.linears import int8  # noqa: E402
from lmjax.models.norms import rms_norm  # noqa: E402
from lmjax.nn import params  # noqa: E402
from lmjax.nn import short_conv  # noqa: E402
from lmjax.parallel.facts import Fact  # noqa: E402
from lmjax.planning import compile as compile_lib  # noqa: E402
from lmjax.planning import hlo  # noqa: E402
from lmjax.planning import topologies  # noqa: E402
from lmjax.planning import work  # noqa: E402

BF16, F32 = jnp.bfloat16, jnp.float32
like = jax.ShapeDtypeStruct


def linear(spec: str, wide: int, rows: int):
  """(function, its arguments) of a matrix of codes and `rows` tokens."""
  module = registry.make('linear', spec)(
    ins=(('embed', wide),),
    outs=(('mlp', 7 * wide // 2),),
    role='hidden',
    bias=False,
    scheme=None,
    parent=None,
  )
  variables = {k: like(shape, dtype) for k, (shape, dtype, _) in module.layout().items()}
  return lambda x, v: module.apply({'vars': v}, x), (like((rows, 1, wide), BF16), variables)


def adam(wide: int, block: int):
  tx = registry.make('optim', f'eight_bit(inner=adam(), block={block})', facts=_matrix())()
  p = dict(w=like((wide, 7 * wide // 2), F32))

  def step(p, g, state):
    updates, state = tx.update(g, state, p)
    return jax.tree.map(lambda p, u: p - 1e-3 * (u + 0.1 * p), p, updates), state

  return step, (p, p, jax.eval_shape(tx.init, p))


def _matrix():
  return dict(w=Fact(('embed', 'mlp'), ('embed',)))


def delta(steps: int, heads: int, backward: bool, forward: bool = True):
  x = like((4, steps, heads, 128), BF16)
  given = x, x, x, like(x.shape[:3], F32)
  if not backward:
    return delta_rule.delta_rule, given

  def run(do, ds, *given):
    found, pull = jax.vjp(delta_rule.delta_rule, *given)
    return (found, pull((do, ds))) if forward else pull((do, ds))

  return run, (x, like((4, heads, 128, 128), F32), *given)


def joined(x, y, g):
  r = x + y
  return r, rms_norm.rms_norm(r, g, 1e-6)


def between(x, w, r, g, v):
  """A residual and a norm where they stand in a model: behind a product and before one."""
  y, n = joined(r, x @ w, g)
  return y, n @ v


def quantized(x, g):
  n = rms_norm.rms_norm(x, g, 1e-6).astype(F32)
  steps = int8.step(n, -1)
  return int8.rounded(n, steps), steps


def conv(steps: int, heads: int, backward: bool):
  module = short_conv.ShortConv(4, ('heads', 'head_dim'), parent=None)
  scheme = params.Scheme(None, None, None)
  x = like((4, steps, heads, 128), BF16)
  more = like((4, steps + 3), jnp.int32), like((4, 3, heads, 128), BF16)

  def run(x, w, segments, before):
    ctx = argparse.Namespace(scheme=scheme)
    return module.apply({'params': dict(kernel=w)}, x, segments, ctx, before)

  given = x, like((4, heads, 128), F32), *more
  if not backward:
    return run, given
  slope = lambda dy, x, w, *more: jax.vjp(lambda x, w: run(x, w, *more), x, w)[1](dy)
  return slope, (x, *given)


def fft_conv(x, h):
  """y_t = sum_i h_i x_{t-i} over all i, by way of the FFT."""
  n = 2 * x.shape[1]
  wide = jnp.fft.rfft(x.astype(F32), n=n, axis=1) * jnp.fft.rfft(h, n=n, axis=0)
  return jnp.fft.irfft(wide, n=n, axis=1)[:, : x.shape[1]].astype(x.dtype)


def cases(small: bool) -> dict:
  """name -> (operation of config.kernels or '', (function, arguments), donated arguments)."""
  wide, steps, heads = (512, 256, 2) if small else (4096, 4096, 16)
  x = like((2, 128, wide) if small else (8, 2048, wide), BF16)
  g, w = like((wide,), F32), like((wide, wide), BF16)
  codes = {
    'int8': 'quantized(bits=8, symmetric=True)',
    'int8, groups of 128': 'quantized(bits=8, group=128)',
    'int4, groups of 64': 'quantized(bits=4, group=64)',
    'int4': 'quantized(bits=4)',
    'ternary (2 bits)': 'quantized(bits=2, symmetric=True, per="tensor")',
  }
  out = {
    f'quant_matmul, {k}, 8 rows': ('quant_matmul', linear(v, wide, 8), ()) for k, v in codes.items()
  }
  prefill = 16 if small else 512
  out[f'quant_matmul, int4, groups of 64, {prefill} rows'] = (
    'quant_matmul',
    linear(codes['int4, groups of 64'], wide, prefill),
    (),
  )
  out['int8 product (llm_int8), 8 rows'] = '', linear('int8()', wide, 8), ()
  out['int8 product without outliers, 8 rows'] = '', linear('int8(tau=None)', wide, 8), ()
  for block in (256,) if small else (256, 2048):
    out[f'blockwise_adam, blocks of {block}'] = 'blockwise_update', adam(wide, block), (0, 2)
  out['delta_rule'] = 'delta_rule', delta(steps, heads, False), ()
  out['delta_rule, gradient'] = 'delta_rule', delta(steps, heads, True, forward=False), ()
  out['delta_rule, both'] = 'delta_rule', delta(steps, heads, True), ()
  out['norm_residual'] = '', (joined, (x, x, g)), ()
  pulled = lambda dr, dn, *given: jax.vjp(joined, *given)[1]((dr, dn))
  out['norm_residual, gradient'] = '', (pulled, (x, x, x, x, g)), ()
  out['norm_residual between products'] = '', (between, (x, w, x, g, w)), ()
  out['norm_quant'] = '', (quantized, (x, g)), ()
  out['short_conv'] = '', conv(steps, heads, False), ()
  out['short_conv, gradient'] = '', conv(steps, heads, True), ()
  some = (2, 256, 128) if small else (4, 1024, 1024)  # takes the compiler longest
  out['fft_conv'] = '', (fft_conv, (like(some, BF16), like(some[1:], F32))), ()
  return out


def size(tree) -> int:
  return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def compiled(operation: str, name: str, made, donated, chip: str) -> dict:
  """bytes, the least of them, and bytes of temporaries."""
  f, given = made
  place = jax.sharding.SingleDeviceSharding(compile_lib.devices(topologies.parse(chip))[0])
  placed = jax.tree.map(lambda x: like(x.shape, x.dtype, sharding=place), given)
  asked = {operation: name} if operation else {}
  began = time.monotonic()
  with choice.using(platform='tpu', **asked):
    program = jax.jit(lambda *a: f(*a), donate_argnums=donated).trace(*placed).lower().compile()
    least = size(given) + size(jax.eval_shape(f, *given))
  counted = hlo.parse(program.as_text())
  traffic = work.memory_traffic(counted)
  return dict(
    bytes=traffic,
    least=least,
    ratio=traffic / least,
    temp=program.memory_analysis().temp_size_in_bytes,
    seconds=time.monotonic() - began,
  )


def implementations(operation: str, made) -> list[str]:
  """Those that take it, but for references."""
  f, given = made
  names = [n for n in choice.implementations(operation) if n != 'reference'] if operation else ['']
  able = []
  for name in names:
    try:
      with choice.using(platform='tpu', **({operation: name} if operation else {})):
        jax.eval_shape(f, *given)
    except ValueError:  # refused
      continue
    able.append(name)
  return able


def measured(flags) -> dict:
  """By case, implementation and chip."""
  out = {}
  for case, (operation, made, donated) in cases(flags.small).items():
    if flags.only and not case.startswith(tuple(flags.only.split(','))):
      continue
    for name in implementations(operation, made):
      chips = {c: compiled(operation, name, made, donated, c) for c in flags.chips.split(',')}
      out.setdefault(case, {})[name or 'xla'] = chips
      print(case, name, {c: round(r['ratio'], 2) for c, r in chips.items()}, file=sys.stderr)
  return out


def table(found: dict, chips: list[str]) -> str:
  head = ['', 'implementation', 'least, MB', *(f'{c}: of it' for c in chips)]
  head += [f'{c}: temporaries, MB' for c in chips]
  rows = []
  for case, own in found.items():
    for name, r in own.items():
      least = f'{r[chips[0]]["least"] / 1e6:,.1f}'
      ratios = [f'{r[c]["ratio"]:.2f}' for c in chips]
      rows.append([case, name, least, *ratios, *(f'{r[c]["temp"] / 1e6:,.0f}' for c in chips)])
  return _report.table(head, rows)


def main() -> int:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--chips', default='v5e-1,v5p:1x1x1,v6e-1')
  p.add_argument('--only', default='', help='beginnings of names, between commas')
  p.add_argument('--small', action='store_true', help='small arrays, which say nothing')
  p.add_argument('--out', help='a JSON file for the result')
  flags = p.parse_args()
  if not compile_lib.available():
    print(f'skipped: {compile_lib.MISSING.split(":")[0]}', file=sys.stderr)
    return 0
  found = measured(flags)
  print(table(found, flags.chips.split(',')))
  _report.write(
    _report.head(flags) | dict(libtpu=importlib.metadata.version('libtpu'), cases=found), flags.out
  )
  return 0


if __name__ == '__main__':
  sys.exit(main())

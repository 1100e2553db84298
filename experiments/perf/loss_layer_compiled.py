"""The unembedding with its cross-entropy, forward and backward, compiled for accelerators that are
not here: memory, FLOPs and bytes of each implementation.

  python experiments/perf/loss_layer_compiled.py                       TPUs; needs the extra [tpu]
  python experiments/perf/loss_layer_compiled.py --chips=h100,h200     needs the extra [cuda], 5 GB
  python experiments/perf/loss_layer_compiled.py --chips=v5e --tokens=256 --vocab=300 --widths=16

Minutes on two cores. One call gives the sum over `--tokens` tokens and its gradients into the
hidden vectors (`--dtype`) and the matrix (float32). Scratch is beside arguments and results, as the
compiler lays it out. FLOPs are those of products, as kernels state them; bytes to and from memory
are a rough estimate (`lmjax.planning.work.memory_traffic`), of GPUs with each operand of a kernel
read once. The last two columns divide both by what the data sheet of the chip promises: bounds, no
times. Nothing is run.
"""

import argparse
import os
import sys
import time

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')

import jax  # noqa: E402
from jax.experimental import topologies as described  # noqa: E402
import jax.numpy as jnp  # noqa: E402

import _gpu_target  # noqa: E402
import _report  # noqa: E402
from lmjax.kernels import choice  # noqa: E402
from lmjax.kernels import linear_cross_entropy as op  # noqa: E402
from lmjax.planning import chips  # noqa: E402
from lmjax.planning import compile as compile_lib  # noqa: E402
from lmjax.planning import hlo  # noqa: E402
from lmjax.planning import topologies  # noqa: E402
from lmjax.planning import walk as walk_lib  # noqa: E402
from lmjax.planning import work  # noqa: E402

TPUS = {'v5e': 'v5e-1', 'v5p': 'v5p:1x1x1', 'v6e': 'v6e-1'}
GPUS = 'h100', 'h200'
COLUMNS = 'chip', 'width', '', 'scratch, MiB', 'of `whole`', 'TFLOP', 'GB moved'
COLUMNS += 'products, ms at least', 'memory, ms at least'


def device(chip: str):
  if chip in TPUS:
    return compile_lib.devices(topologies.parse(TPUS[chip]))[0]
  how = dict(platform='cuda', target_config=_gpu_target.target(chip), topology='1x1x1')
  return described.get_topology_desc(chip, **how).devices[0]


def both(name: str):
  """The sum of the losses and its gradients, by an implementation."""

  def run(x, w, y, weights):
    total = lambda x, w: op.linear_cross_entropy(x, w, y, weights, implementation=name).total
    return jax.value_and_grad(total, (0, 1))(x, w)

  return run


def compiled(chip: str, width: int, name: str, flags) -> dict:
  """Raises ValueError where the implementation refuses the chip."""
  place = jax.sharding.SingleDeviceSharding(device(chip))
  of = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=place)
  rows = max(1, flags.tokens // 1024), min(flags.tokens, 1024)
  given = of(flags.dtype, *rows, width), of(jnp.float32, flags.vocab, width)
  began = time.monotonic()
  with choice.using(platform='tpu' if chip in TPUS else 'gpu'):
    traced = jax.jit(both(name)).trace(*given, of(jnp.int32, *rows), of(jnp.float32, *rows))
  program = traced.lower().compile()
  counted, memory = hlo.parse(program.as_text()), program.memory_analysis()
  flops = work.flops(counted) if chip in TPUS else walked(traced, chip)
  moved, sheet = work.memory_traffic(counted), chips.CHIPS[chip]
  return dict(
    chip=chip,
    width=width,
    name=name,
    seconds=time.monotonic() - began,
    scratch=memory.temp_size_in_bytes,
    flops=flops,
    bytes=moved,
    products_ms=1e3 * flops / sheet.bf16,
    memory_ms=1e3 * moved / sheet.bandwidth,
  )


def walked(traced, chip: str) -> float:
  """FLOPs of the trace: programs of GPUs do not carry what kernels state."""
  walk = walk_lib.Walk({}, {}, chips.CHIPS[chip])
  given = [walk.value(a, ((),) * len(a.shape)) for a in traced.jaxpr.in_avals]
  walk.run(traced.jaxpr.jaxpr, given, 1)
  return walk.flops


def measured(flags):
  """(what was compiled, {implementation: why it is not for a chip})."""
  found, missing = [], {}
  for chip in flags.chips:
    for width in flags.widths:
      for name in op.IMPLEMENTATIONS:
        try:
          found.append(compiled(chip, width, name, flags))
        except ValueError as e:
          missing[f'{name}, {chip}'] = str(e).splitlines()[0]
  return found, missing


def table(found: list) -> str:
  naive = {(f['chip'], f['width']): f['scratch'] for f in found if f['name'] == 'whole'}
  rows = []
  for f in found:
    share = naive[f['chip'], f['width']] / max(f['scratch'], 1)
    cells = [f['chip'], f['width'], f['name'], f'{f["scratch"] / 2**20:,.0f}', f'1/{share:.1f}']
    cells += [f'{f["flops"] / 1e12:.2f}', f'{f["bytes"] / 1e9:.1f}']
    rows.append((*cells, f'{f["products_ms"]:.1f}', f'{f["memory_ms"]:.1f}'))
  return _report.table(COLUMNS, rows)


def main() -> int:
  known = (*TPUS, *GPUS)
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--chips', default=','.join(TPUS), help=f'of {", ".join(known)}')
  p.add_argument('--tokens', type=int, default=32_768)
  p.add_argument('--vocab', type=int, default=50_304)
  p.add_argument('--widths', default='768,4096')
  p.add_argument('--dtype', default='bfloat16', choices=('bfloat16', 'float16', 'float32'))
  p.add_argument('--out', help='a JSON file for the result')
  flags = p.parse_args()
  flags.chips = flags.chips.split(',')
  flags.widths = list(map(int, flags.widths.split(',')))
  if unknown := set(flags.chips) - set(known):
    p.error(f'--chips: {", ".join(sorted(unknown))}: some of {", ".join(known)} are expected')
  found, missing = measured(flags)
  print(table(found))
  for name, why in missing.items():
    print(f'{name}: {why}')
  _report.write(_report.head(flags) | dict(contestants=found, missing=missing), flags.out)
  return 0


if __name__ == '__main__':
  sys.exit(main())

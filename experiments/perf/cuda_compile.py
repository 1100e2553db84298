"""The training step compiled for NVIDIA GPUs that are not here: whether it compiles, the memory
that it takes, and the kernels that it calls.

  python experiments/perf/cuda_compile.py --out=FILE         five minutes on two shared cores
  python experiments/perf/cuda_compile.py --gpu=h200 --recipe=gpt3:1.3B --rows=8 \\
      --set=model.remat=none --set=model.unroll=24

Needs the extra `[cuda]` (several GB of wheels) and no GPU. The compiler is told of the GPU's
hardware. Nothing is tuned, hence products run as they come and this says nothing of speed; cuDNN
builds its kernels when a program starts, hence they are called here, not made.
"""

import argparse
import collections
import json
import os
import re
import sys
import time
from unittest import mock

os.environ['JAX_PLATFORMS'] = 'cpu'

import jax  # noqa: E402
from jax.experimental import topologies  # noqa: E402

import _gpu_target  # noqa: E402
import _report  # noqa: E402
import _step  # noqa: E402
from lmjax.kernels.attention import cudnn  # noqa: E402
from lmjax.planning import compile as compile_lib  # noqa: E402

# (recipe, rows, settings): what `gpu.sh` times, Llama with documents
STEPS = (
  ('gpt2:124M', 32, {'kernels.attention': 'cudnn'}),
  ('gpt2:124M', 32, {'kernels.attention': 'xla'}),
  ('gpt3:1.3B', 8, {'kernels.attention': 'cudnn'}),
  ('llama:8B', 1, {'kernels.attention': 'cudnn', 'model.depth': '8'}),
)
COLUMNS = 'step', 'state, GiB', 'scratch, GiB', 'compiled in, s', 'bf16 arrays', 'kernels called'


def compiled(gpu: str, recipe: str, rows: int, changes: dict) -> dict:
  """What the compiler says of a step. Raises ValueError where the GPU cannot do what is asked."""
  how = dict(platform='cuda', target_config=_gpu_target.target(gpu), topology='1x1x1')
  device = topologies.get_topology_desc(gpu, **how).devices[0]
  run = _step.make(recipe, rows, **changes)
  given, results, _ = compile_lib.arguments(run, None, device)
  began = time.monotonic()
  # The GPU that the kernel's rules ask for is not here.
  with mock.patch.object(cudnn, 'device', lambda: ('', 256)), run.choices('gpu'):
    step = jax.jit(run.step, donate_argnums=0, out_shardings=results)
    program = step.trace(*given).lower().compile()
  memory, text = program.memory_analysis(), program.as_text()
  calls = re.findall(r'custom_call_target="([^"]+)"', text)
  return dict(
    gpu=gpu,
    recipe=recipe,
    rows=rows,
    settings=changes,
    seconds=time.monotonic() - began,
    state=memory.argument_size_in_bytes,
    scratch=memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
    bfloat16=len(re.findall(r'\bbf16\[', text)),
    calls=dict(collections.Counter(calls)),
  )


def table(found: list) -> str:
  rows = []
  for f in found:
    settings = ' '.join(f'{k}={v}' for k, v in f['settings'].items())
    sizes = [f'{f[k] / 2**30:.1f}' for k in ('state', 'scratch')]
    called = ', '.join(f'{n} {k}' for k, n in f['calls'].items()) or 'none'
    name = f'{f["recipe"]}, {f["rows"]} rows, {f["gpu"]} {settings}'.strip()
    rows.append((name, *sizes, f'{f["seconds"]:.0f}', f['bfloat16'], called))
  return _report.table(COLUMNS, rows)


def main() -> int:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--gpu', choices=('h100', 'h200'), default='h100')
  p.add_argument('--recipe', help='one step instead of those of gpu.sh')
  p.add_argument('--rows', type=int, default=1, help='of a step of --recipe')
  p.add_argument('--set', action='append', default=[], metavar='KEY=VALUE')
  p.add_argument('--out', help='a JSON file for the result')
  flags = p.parse_args()
  if not cudnn.installed():
    p.error("cuDNN is not installed: pip install 'lmjax[cuda]' is expected")
  asked = [(flags.recipe, flags.rows, {})] if flags.recipe else STEPS
  more = dict(s.split('=', 1) for s in flags.set)
  found = []
  for recipe, rows, changes in asked:
    found.append(compiled(flags.gpu, recipe, rows, changes | more))
    print(json.dumps(found[-1]), flush=True)
    _report.write(_report.head(flags) | dict(cudnn=cudnn.installed(), steps=found), flags.out)
  print(table(found))
  return 0


if __name__ == '__main__':
  sys.exit(main())

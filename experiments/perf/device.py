"""The training step on the accelerator at hand: time, MFU, memory, and what determinism costs.

command: python experiments/perf/device.py --recipe=gpt2:124M --rows=32 --out=device.json
  python experiments/perf/device.py --recipe=gpt2:tiny --rows=8 --steps=5     (tries it on a CPU)

Runs the real step on random tokens in child processes that take turns: as it is, and with
`--deterministic`, `--rounds` times each. Equal losses, to the last bit, from one process to the
next are what determinism means; the ratio of the times is its cost.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

MODES = ('as it is', 'deterministic')


def child(flags) -> dict:
  """One process: seconds a step and losses as hexadecimal text."""
  from lmjax import main

  if flags.child == 'deterministic':
    main.deterministic()
  import jax

  import _step
  from lmjax import flops

  jax.config.update('jax_compilation_cache_dir', None)  # so that autotuning happens anew
  run = _step.make(flags.recipe, flags.rows)
  state, step = run.init(jax.random.key(0)), jax.jit(run.step, donate_argnums=0)
  batches, losses = _step.batches(run, 4), []
  with run.choices():  # what config.kernels asks for
    for i in range(flags.steps + 3):
      if i == 3:  # compiled, and warm
        jax.block_until_ready(state)
        began = time.monotonic()
      state, metrics = step(state, batches[i % 4], jax.random.key(1))
      losses.append(metrics['loss'][0])
    jax.block_until_ready(state)
  seconds = (time.monotonic() - began) / flags.steps
  device = jax.devices()[0]
  rate = run.rows * run.length / seconds
  return dict(
    seconds=seconds,
    tokens_per_second=rate,
    **flops.mfu(rate, flops.per_token(run), 1, device.device_kind),
    peak_bytes=(device.memory_stats() or {}).get('peak_bytes_in_use'),
    losses=[float(x).hex() for x in jax.device_get(losses)],
    device=device.device_kind,
    jax=jax.__version__,
  )


def main() -> int:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--recipe', default='gpt2:124M')
  p.add_argument('--rows', type=int, default=32)
  p.add_argument('--steps', type=int, default=30)
  p.add_argument('--rounds', type=int, default=3)
  p.add_argument('--out', help='a JSON file for the result')
  p.add_argument('--child', choices=MODES, help=argparse.SUPPRESS)
  flags = p.parse_args()
  if flags.child:
    print(json.dumps(child(flags)))
    return 0
  found: dict[str, list] = {m: [] for m in MODES}
  env = os.environ | {'PYTHONPATH': str(pathlib.Path(__file__).resolve().parents[2])}
  for _ in range(flags.rounds):
    for mode, results in found.items():
      command = [sys.executable, *sys.argv, f'--child={mode}']
      out = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
      results.append(json.loads(out.splitlines()[-1]))
  report = {'command': ' '.join(sys.argv), **{k: found[MODES[0]][0][k] for k in ('device', 'jax')}}
  for mode, results in found.items():
    times = [r['seconds'] for r in results]
    report[mode] = {k: v for k, v in results[-1].items() if k not in ('losses', 'device', 'jax')}
    report[mode] |= dict(seconds=statistics.median(times), all_seconds=times)
    report[mode]['bit_equal'] = len({tuple(r['losses']) for r in results}) == 1
  pairs = zip(*(found[m] for m in MODES))
  report['cost of determinism'] = statistics.median(b['seconds'] / a['seconds'] for a, b in pairs)
  print(json.dumps(report, indent=1))
  if flags.out:
    pathlib.Path(flags.out).write_text(json.dumps(report, indent=1) + '\n')
  return 0


if __name__ == '__main__':
  sys.exit(main())

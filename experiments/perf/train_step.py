"""The training step on the accelerator at hand: lmjax against PyTorch on the same model, batches
and device, in turns. Tokens a second, MFU, memory.

  python experiments/perf/train_step.py --recipe=gpt2:124M --rows=32 --out=step.json
  python experiments/perf/train_step.py --recipe=gpt3:1.3B --rows=8 --alone --out=step.json
  python experiments/perf/train_step.py --recipe=gpt2:tiny --rows=2 --steps=1 --rounds=1 \\
      --contestants lmjax torch                                        (tries it on a CPU)

Contestants, each a process: `lmjax`, its real step (documents masked, metrics, the guard against
updates that are not finite), perhaps with settings behind it, as in 'lmjax model.remat=none'; and
those of `torch_gpt.py`, which have none of the three: `torch` (eager), `torch compiled`, and `torch
compiled, narrow`, in which bfloat16 flows between the layers as it does in lmjax. `--set` changes
the model of all. Ratios are of one round, medians of them are reported, against the fastest of
PyTorch's. With `--alone` one process is there at a time and begins anew each round, for models that
take the whole memory; programs are compiled once and kept.

MFU counts three times the forward pass, recomputation not: `full` with all pairs of tokens in
attention (nanoGPT's accounting), `causal` with those that are allowed (about half).
"""

import argparse
import contextlib
import functools
import importlib.util
import math
import os
import statistics
import sys
import tempfile

import _turns

KINDS = {
  'torch': dict(compiled=False, narrow=False),
  'torch compiled': dict(compiled=True, narrow=False),
  'torch compiled, narrow': dict(compiled=True, narrow=True),
}
ABSENT = 'torch absent'
COLUMNS = (
  'contestant',
  'tokens/s',
  'x best torch (min to max)',
  'MFU full, %',
  'MFU causal, %',
  'peak, GiB',
  'first step, s',
  'loss',
)
THEIRS = dict(os.environ)
WARM = 3  # steps of a process that do not count


def pairs(words) -> dict[str, str]:
  return dict(w.split('=', 1) for w in words)


def worker(flags):
  """Serves one contestant."""
  name, *words = flags.worker.split(' ') if flags.worker.startswith('lmjax') else [flags.worker]
  if name not in KINDS:
    from lmjax import hardware

    hardware.settle()  # before jax is imported, as `lmjax.main` does
  import jax

  import _step

  run = _step.make(flags.recipe, flags.rows, **pairs([*flags.set, *words]))
  if name in KINDS:
    import torch_gpt

    one, said, more = torch_gpt.stepper(run, _step.drawn(run, 4), **KINDS[name])
    return _turns.serve(lambda: (one, said), more)
  device = jax.devices()[0]
  stats = lambda: (device.memory_stats() or {}).get('peak_bytes_in_use')
  with run.choices():
    return _turns.serve(functools.partial(ours, run, device), lambda: dict(peak_bytes=stats()))


def ours(run, device):
  import jax

  import _step
  from lmjax import build

  state, batches, calls = run.init(jax.random.key(0)), _step.batches(run, 4), [0]
  step, key = jax.jit(run.step, donate_argnums=0), jax.random.key(1)

  def one():
    nonlocal state
    state, metrics = step(state, batches[calls[0] % 4], key)
    calls[0] += 1
    return metrics['loss'][0] / metrics['loss'][1]

  said = dict(params=build.counts(run)['total'], device=device.device_kind)
  return one, said | dict(jax=jax.__version__)


def start(name: str, flags, cache: str) -> _turns.Live:
  """A live contestant. Raises _turns.Missing, which says why there is none."""
  env = THEIRS | dict(JAX_COMPILATION_CACHE_DIR=f'{cache}/jax')
  env |= dict(TORCHINDUCTOR_CACHE_DIR=f'{cache}/torch')
  if name in KINDS:
    if importlib.util.find_spec('torch') is None:
      raise _turns.Missing(ABSENT)
    env['JAX_PLATFORMS'] = 'cpu'  # it builds the recipe for its shape alone
  elif not flags.alone:
    env.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  else:
    env.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.92')
  command = [sys.executable, __file__, f'--worker={name}', f'--recipe={flags.recipe}']
  return _turns.Live([*command, f'--rows={flags.rows}', *(f'--set={s}' for s in flags.set)], env)


def race(flags, cache: str):
  """(what each contestant said, why others are missing, its turns round by round)."""
  said, missing, turns, live = {}, {}, {}, {}
  with contextlib.ExitStack() as stack:
    for n in range(flags.rounds):
      for name in flags.contestants:
        if name in missing:
          continue
        try:
          if name not in live:
            live[name] = stack.enter_context(contextlib.closing(start(name, flags, cache)))
            said.setdefault(name, live[name].said)
            live[name].turn(WARM)
          turns.setdefault(name, []).append(live[name].turn(flags.steps))
        except _turns.Missing as e:
          missing[name] = str(e)
          live.pop(name, None)
          print(f'{name}: left out, {e}', flush=True)
          continue
        print(f'round {n}: {name} {turns[name][-1]["wall"] / flags.steps:.4f} s', flush=True)
        if flags.alone:
          live.pop(name).close()
      yield said, missing, {k: t for k, t in turns.items() if k not in missing}


def summary(run, flags, said, turns) -> dict:
  """By contestant what the table says."""
  from lmjax import flops

  tokens, counted = flags.steps * run.rows * run.length, flops.per_token(run)
  least = {k: statistics.median(x['wall'] for x in t) for k, t in turns.items()}
  base = min((k for k in turns if k in KINDS), key=least.get, default=None)
  out = {}
  for name, own in turns.items():
    rate = tokens / least[name]
    out[name] = row = dict(tokens_per_second=rate, loss=own[-1]['loss'], **said[name])
    row |= flops.mfu(rate, counted, 1, said[name]['device'])
    row['peak_bytes'] = own[-1].get('peak_bytes')
    if base:
      ratios = [b['wall'] / a['wall'] for a, b in zip(own, turns[base])]
      row |= dict(base=base, ratio=statistics.median(ratios), ratios=ratios)
  return out


def table(found: dict, missing: dict) -> str:
  import _report

  rows = []
  for name, r in found.items():
    mfu = [f'{100 * r[k]:.1f}' if k in r else '' for k in ('mfu_full', 'mfu_causal')]
    ratio = _report.spread(r['ratios'], 3) if 'ratios' in r else ''
    memory = f'{r["peak_bytes"] / 2**30:.1f}' if r['peak_bytes'] else ''
    rows.append((name, f'{r["tokens_per_second"]:,.0f}', ratio, *mfu, memory))
    rows[-1] += (r['first_step_s'], f'{r["loss"]:.4f}')
  rows += [(name, why, *[''] * (len(COLUMNS) - 2)) for name, why in missing.items()]
  return _report.table(COLUMNS, rows)


def main() -> int:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--recipe', default='gpt2:124M')
  p.add_argument('--rows', type=int, default=32, help='of a step')
  p.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', help='for all')
  p.add_argument('--contestants', nargs='+', default=['lmjax', *KINDS])
  p.add_argument('--alone', action='store_true', help='one process at a time')
  p.add_argument('--steps', type=int, default=20, help='of a turn')
  p.add_argument('--rounds', type=int, default=5)
  p.add_argument('--out', help='a JSON file for the result')
  p.add_argument('--worker', help=argparse.SUPPRESS)
  flags = p.parse_args()
  if flags.worker:
    return worker(flags)
  if odd := [c for c in flags.contestants if c not in KINDS and c.split(' ')[0] != 'lmjax']:
    p.error(f'--contestants {odd[0]!r}: lmjax, perhaps with settings, or {", ".join(KINDS)}')
  os.environ['JAX_PLATFORMS'] = 'cpu'  # the device is left to the contestants
  import _report
  import _step

  run = _step.make(flags.recipe, flags.rows, **pairs(flags.set))
  with tempfile.TemporaryDirectory(prefix='lmjax_race') as cache:
    for said, missing, turns in race(flags, cache):
      found = summary(run, flags, said, turns)
      report = _report.head(flags) | dict(contestants=found, missing=missing, turns=turns)
      report['device'] = next((r['device'] for r in found.values()), None)
      _report.write(report, flags.out)
  print(table(found, missing))
  lost = [name for name, r in found.items() if not math.isfinite(r['loss'])]
  lost += [name for name, why in missing.items() if why != ABSENT]
  if lost:
    print(f'no result of {", ".join(lost)}', file=sys.stderr)
  return int(bool(lost))


if __name__ == '__main__':
  sys.exit(main())

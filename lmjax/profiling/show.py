"""The report of a profile: as lines and a table, and as JSON."""

import dataclasses
import json
import pathlib
import platform
import statistics
from typing import Any, Sequence

import jax
from rich.table import Table

from lmjax import flops as flops_lib
from lmjax.plan import size
from lmjax.profiling import events as events_lib
from lmjax.profiling import measure
from lmjax.profiling import table


def record(
  step: measure.Step,
  seconds: Sequence[float],
  wall: Sequence[float],
  spent: Sequence[events_lib.Spent],
  rates: table.Rates,
  rows: Sequence[table.Row],
) -> dict[str, Any]:
  """All of a profile as plain values; seconds, FLOPs and bytes of rows are of one device and one
  step.
  """
  run = step.run
  each, tokens = flops_lib.per_token(run), run.config['batch_tokens']
  took = measure.spread(list(seconds))
  rate, devices = tokens / took['median'], len(spent)
  kind = jax.devices()[0].device_kind
  device = statistics.fmean(s.total for s in spent)
  return dict(
    config=run.config,
    versions=dict(python=platform.python_version(), jax=jax.__version__),
    device=kind,
    devices=devices,
    tokens=tokens,
    compile=dict(tracing=step.tracing, compiling=step.compiling, cached=step.cached),
    donated=dict(arrays=step.donated[0], of=step.donated[1], bytes=step.memory['alias']),
    memory=dict(step.memory, peak=step.peak, most_in_use=measure.used()),
    step=took,
    traced=dict(
      steps=len(wall),
      found=min(s.steps for s in spent),
      wall=statistics.fmean(wall),
      device=device,
      idle=statistics.fmean(s.idle for s in spent),
    ),
    tokens_per_second=rate,
    model_flops=dict(full=each.step_full * tokens, causal=each.step_causal * tokens),
    mfu=flops_lib.mfu(rate, each, devices, kind),
    rates=dataclasses.asdict(rates),
    operations=[r.record(device) for r in table.by(rows, 'op')],
    parts=[r.record(device) for r in table.by(rows, 'part')],
    kinds=[r.record(device) for r in table.by(rows, 'kind')],
  )


def save(file: str, found: dict[str, Any]):
  try:
    pathlib.Path(file).write_text(json.dumps(found, indent=1) + '\n')
  except OSError as e:
    raise ValueError(f'--json={file} cannot be written: {e.strerror or e}') from e


def lines(found: dict[str, Any]) -> list[str]:
  """What is said of the whole step."""
  c, s, t, m, d = (found[k] for k in ('compile', 'step', 'traced', 'memory', 'donated'))
  ms = lambda x: f'{1e3 * x:.4g} ms'
  full, causal = found['model_flops']['full'], found['model_flops']['causal']
  busy = t['device'] - t['idle']
  out = [
    f'{found["devices"]} {found["device"]} device(s); random tokens, {found["tokens"]:,} a step',
    f'compiled in {c["compiling"]:.2f} s'
    + (', from the compilation cache' if c['cached'] else '')
    + f', after {c["tracing"]:.2f} s of tracing',
    f'step {ms(s["median"])} (median; {ms(s["least"])} to {ms(s["most"])}), '
    f'{found["tokens_per_second"]:,.0f} tokens/s',
    f'model FLOPs of a step: {size(full, "FLOP")} with all pairs of positions, '
    f'{size(causal, "FLOP")} with the allowed ones; '
    f'{size(full / s["median"], "FLOP/s")} and {size(causal / s["median"], "FLOP/s")}',
    'MFU '
    + (
      f'{found["mfu"]["mfu_full"]:.1%} and {found["mfu"]["mfu_causal"]:.1%}'
      if found['mfu']
      else f'is not known: the peak of {found["device"]!r} is not'
    ),
    f'memory of one device: {size(m["peak"])} at the peak by the compiler, {size(m["temp"])} of it '
    'temporaries' + ('' if m['most_in_use'] is None else f'; {size(m["most_in_use"])} were in use'),
    f'donated: {d["arrays"]} of the {d["of"]} arrays of the state, {size(d["bytes"])}',
    f'roofline: {size(found["rates"]["flops"], "FLOP/s")}, {size(found["rates"]["bytes"], "B/s")}: '
    f'{found["rates"]["source"]}',
    f'traced {t["steps"]} steps: {ms(t["wall"])} a step by the clock, {ms(t["device"])} from its '
    f'first to its last operation on a device, {ms(busy)} of that in operations',
  ]
  if t['found'] != t['steps']:
    out.append(f'the trace tells {t["found"]} of the {t["steps"]} steps apart')
  return out


def rows_table(found: dict[str, Any], by: str, top: int) -> Table:
  """The rows of 'op', 'part' or 'kind'; all beyond the first `top` as one."""
  rows = found[{'op': 'operations', 'part': 'parts', 'kind': 'kinds'}[by]]
  total = found['traced']['device']
  out = Table(box=None, title='one step on one device', title_justify='left')
  for name in ('operation' if by == 'op' else by, *(('part', 'kind') if by == 'op' else ())):
    out.add_column(name)
  for name in ('time', 'share', 'calls', 'FLOP', 'bytes', 'FLOP/s', 'B/s'):
    out.add_column(name, justify='right')
  out.add_column('bound')
  out.add_column('of it', justify='right')
  for r in rows[:top]:
    names = (r['name'], r['part'], r['kind']) if by == 'op' else (r['name'],)
    out.add_row(*names, *_cells(r))
  rest = rows[top:]
  if rest:
    names = (f'{len(rest)} more', '', '')[: 3 if by == 'op' else 1]
    sums = {k: sum(r[k] for r in rest) for k in ('seconds', 'share', 'calls', 'flops', 'bytes')}
    more = dict(sums, flops_per_second=None, bytes_per_second=None, bound='', of_roofline=None)
    out.add_row(*names, *_cells(more))
  out.add_section()
  names = ('sum', '', '')[: 3 if by == 'op' else 1]
  sums = {k: sum(r[k] for r in rows) for k in ('seconds', 'calls', 'flops', 'bytes')}
  rates = {f'{k}_per_second': sums[k] / total for k in ('flops', 'bytes')}
  out.add_row(
    *names, *_cells(dict(sums, **rates, share=sums['seconds'] / total, bound='', of_roofline=None))
  )
  return out


def _cells(r: dict[str, Any]) -> list[str]:
  rate = lambda x, unit: size(x, unit) if x else '-'
  return [
    f'{1e3 * r["seconds"]:.3f} ms',
    f'{r["share"]:.1%}',
    f'{r["calls"]:,.4g}' if r['calls'] else '-',
    rate(r['flops'], 'FLOP'),
    rate(r['bytes'], 'B'),
    rate(r['flops_per_second'], 'FLOP/s'),
    rate(r['bytes_per_second'], 'B/s'),
    r['bound'] or '-',
    '-' if r['of_roofline'] is None else f'{r["of_roofline"]:.0%}',
  ]

"""--plan --topology=NAME: what a step would take on accelerators that are not here, printed.

See `planned` for where the figures come from, `roofline` for the times.
"""

import dataclasses
import json
import platform
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from lmjax import build as build_lib
from lmjax import files
from lmjax.parallel import mesh as mesh_lib
from lmjax.plan import console
from lmjax.plan import named_tensors
from lmjax.plan import size
from lmjax.planning import compile as compile_lib
from lmjax.planning import planned
from lmjax.planning import search
from lmjax.planning import topologies

GiB = 2**30


def show(resolved: dict, topology: str, *, json_file: str, seconds: float) -> int:
  """Prints the plan of a config on a topology. Raises ValueError where they do not fit together,
  the step does not fit into memory, or the compiler is missing (then behind the estimated plan).
  """
  where, run = topologies.parse(topology), build_lib.build(resolved)
  guess = search.first(run, where)
  missing = where.chip.tpu and not compile_lib.available()
  plan, out = guess, console()
  if where.chip.tpu and not missing:
    try:
      plan = planned.compiled(run, where, guess, seconds)
    except ValueError as e:
      write(out, run, guess)
      if json_file:
        save(json_file, guess, reason=str(e))
      kept = 'printed and written' if json_file else 'printed'
      raise ValueError(f'{e}; what is {kept} is the estimate') from None
  write(out, run, plan)
  out.print(named_tensors(run, mesh_lib.abstract(run.config['mesh'] | plan.mesh)))
  if json_file:
    save(json_file, plan, reason=compile_lib.MISSING if missing else '')
  if not plan.fits:
    raise ValueError(search.excess(run, plan, seconds))
  if missing:
    raise ValueError(compile_lib.MISSING)
  return 0


def save(file: str, *plans: planned.Plan, reason: str = '') -> None:
  """Plans as JSON: one, or a list of several. reason: why what could be compiled was not. Raises
  exits.Ended where the file cannot be written.
  """
  found = [record(p) for p in plans]
  versions = dict(python=platform.python_version(), jax=jax.__version__)
  text = dict(versions=versions, plan=found[0]) if len(found) == 1 else dict(plans=found)
  text |= dict(reason=reason) if reason else {}
  path = files.path_of(files.expanded(file))
  with files.kept(path):
    path.write_text(json.dumps(text, indent=1) + '\n')


def record(plan: planned.Plan) -> dict[str, Any]:
  """A plan as plain values; seconds, bytes and FLOPs are of one chip and one step."""
  t = plan.times
  out = {f.name: getattr(plan, f.name) for f in dataclasses.fields(plan)}
  axes = [dict(network=n, axes=a, seconds=s) for (n, a), s in t.axes.items()]
  out |= dict(
    topology=str(plan.topology),
    chips=plan.topology.chips,
    peak=plan.peak,
    usable=plan.topology.chip.usable,
    fits=plan.fits,
    times=dict(compute=t.compute, memory=t.memory, work=t.work, interconnect=axes, bound=t.bound),
    step=dict(optimistic=t.optimistic, expected=t.step, pessimistic=t.pessimistic),
    mfu_full=plan.mfu(t.step)[0],
    mfu_causal=plan.mfu(t.step)[1],
    tokens_per_second=plan.tokens_per_second(t.step),
  )
  return out


def shape_of(mesh: dict[str, int]) -> str:
  return ' x '.join(f'{a} {n}' for a, n in mesh.items()) or 'one chip'


def write(out: Console, run: build_lib.Run, plan: planned.Plan) -> None:
  where, c = plan.topology, run.config
  say = lambda text='': out.print(text, markup=False)
  say(
    f'{where}: {where.chips} chips on {where.hosts} host{"s" * (where.hosts > 1)}'
    + (f' in {where.slices} slices' if where.slices > 1 else '')
    + f'; mesh {shape_of(plan.mesh)}; remat {c["model"]["remat"]}; {c["micro_batches"]} '
    f'micro-batches; {plan.tokens:,} tokens a step'
  )
  if plan.source == 'compiled':
    say(f'compiled in {plan.seconds:.0f} s; bytes moved, times and kept activations are estimated')
  else:
    say('estimated from the trace, not compiled; parameters, optimizer and batch are exact')
  say()
  memory(out, plan)
  say()
  work(out, plan)
  collectives(out, plan)
  say()
  times(out, plan)


def memory(out: Console, plan: planned.Plan) -> None:
  chip = plan.topology.chip
  table = Table('memory of one chip', 'GiB', box=None)
  row = lambda name, n: table.add_row(name, f'{n / GiB:.3f}')
  for name, n in plan.state.items():
    row({'optimizer': 'optimizer state', 'other': 'other state'}.get(name, name), n)
  row('temporaries', plan.temporaries)
  row('  of them gradients', plan.gradients)
  row('peak', plan.peak)
  if plan.host:
    row("in its host's memory", plan.host)
  row(f'for programs, of {chip.hbm / GiB:.4g}', chip.usable)
  out.print(table)
  out.print(f'activations that loops keep for the backward pass: {size(plan.kept)} (estimated)')
  out.print(f'the step {"fits" if plan.fits else "does not fit"}: {plan.peak / chip.usable:.1%}')


def work(out: Console, plan: planned.Plan) -> None:
  say = lambda text: out.print(text, markup=False)
  say(
    f'FLOPs of one chip: model {size(plan.model_full, "FLOP")} with all pairs of positions, '
    f'{size(plan.model_causal, "FLOP")} with the allowed ones; hardware '
    f'{size(plan.flops, "FLOP")} ({plan.source})'
  )
  if plan.opaque:
    say(f'kernels whose FLOPs and bytes are not counted: {", ".join(plan.opaque)}')
  if plan.loops:
    say(f'loops whose turns depend on data, counted once: {", ".join(plan.loops)}')
  say(f'bytes moved to and from the memory of one chip: {size(plan.bytes)} (estimated)')


def collectives(out: Console, plan: planned.Plan) -> None:
  if not plan.collectives:
    out.print('no collectives')
    return
  table = Table('collective', 'axes', 'type', 'a step', 'payload', 'sent by a chip', box=None)
  for r in plan.collectives:
    axes = '?' if r['axes'] is None else ' x '.join(r['axes'])
    table.add_row(
      r['kind'], axes, r['dtype'], f'{r["count"]:,}', size(r['payload']), size(r['wire'])
    )
  out.print(table)


def times(out: Console, plan: planned.Plan) -> None:
  t, where = plan.times, plan.topology
  say = lambda text: out.print(text, markup=False)
  say(f'roofline: compute {t.compute:.4g} s, memory {t.memory:.4g} s')
  for (network, axes), seconds in t.axes.items():
    say(f'  {network} over {axes}: {seconds:.4g} s')
  say(f'bound by {t.bound}')
  ends = t.optimistic, t.step, t.pessimistic
  rates = [plan.tokens_per_second(s) for s in ends]
  full, causal = zip(*(plan.mfu(s) for s in ends))
  days = [s * plan.steps / 86400 for s in ends]
  between = lambda values, form: (
    f'{form.format(values[1])} ({form.format(values[0])} if all overlaps, '
    f'{form.format(values[2])} if nothing does)'
  )
  whole = '{:,.0f} days' if days[0] >= 100 else '{:.3g} days'
  say(f'step: {between(ends, "{:.4g} s")}')
  say(f'tokens/s: {between(rates, "{:,.0f}")}; a chip {rates[1] / where.chips:,.0f}')
  say(
    f'MFU: {between(full, "{:.1%}")} with all pairs, {between(causal, "{:.1%}")} with the allowed'
  )
  say(
    f'the run, {plan.steps:,} steps of {plan.tokens:,} tokens: {between(days, whole)}, '
    f'{days[1] * 24 * where.chips:,.0f} chip-hours'
  )

"""What logging, saving, evaluating and sampling cost the training loop on the CPU.

command: python experiments/perf/hooks.py   (writes hooks.json beside this file)

The quickstart recipe is trained by `lmjax.run.train`, as the command line does it, in four live
processes, each with one more hook:

  bare   no logging, saving, evaluation, sampling or TensorBoard
  log    log_every=10, metrics.jsonl and TensorBoard
  save   and a checkpoint every EVERY steps
  eval   and the validation set and a sample every EVERY steps

They stop after each turn of EVERY steps, half way between two events, and take turns; rounds in
which other programs used the machine do not count (see `cpu_step.py`). A turn has one event of each
sort, ten times as many as the quickstart has, so that its cost stands out; shares are for the
quickstart's 600 steps. The seconds within a save, an evaluation and a sample are taken apart, once
the step before them is done: those of the last two are their own work, not the loop's. So are the
seconds within the tracker, since the difference of two processes cannot show less than a few
percent on a machine that others use.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from cpu_contestants import cores
from cpu_step import quiet, ratio, turn, versions, words

RECIPE_EVERY = 600
BARE = dict(
  steps=1_000_000, log_every=1_000_000, checkpoint_every=0, tensorboard=False, report=False
) | {'eval.every': 0, 'sample.every': 0}
PARTS = ('write', 'save', 'evaluate', 'sample')


def settings(kind: str, every: int) -> dict:
  out = dict(BARE)
  if kind != 'bare':
    out |= dict(log_every=10, tensorboard=True)
  if kind in ('save', 'eval'):
    out |= dict(checkpoint_every=every)
  if kind == 'eval':
    out |= {'eval.every': every, 'sample.every': every}
  return out


KINDS = ('bare', 'log', 'save', 'eval')


class Turns:
  """Counts the steps of a process and answers for each number of steps read from standard input."""

  def __init__(self, say, warm: int):
    self.say, self.left, self.done, self.begun = say, warm, 0, None
    self.parts: dict[str, float] = {}

  def after_step(self, state):
    import jax

    self.left, self.done = self.left - 1, self.done + 1
    if self.left:
      return
    jax.block_until_ready(state)
    now = time.monotonic(), time.process_time()
    said = dict(warm_steps=self.done)
    if self.begun:
      said = dict(wall=now[0] - self.begun[0], cpu=now[1] - self.begun[1], **self.parts)
    print(json.dumps(said), file=self.say, flush=True)
    line = sys.stdin.readline()
    if not line:
      raise SystemExit(0)
    self.left, self.parts = int(line), dict.fromkeys(PARTS, 0.0)
    self.begun = time.monotonic(), time.process_time()

  def timed(self, part: str, fn):
    """fn with its seconds counted, not those of the step whose state or parameters it gets."""
    import jax

    def inner(first, *args, **kwargs):
      jax.block_until_ready(first)
      begun = time.monotonic()
      out = fn(first, *args, **kwargs)
      self.parts[part] = self.parts.get(part, 0.0) + time.monotonic() - begun
      return out

    return inner


def worker(kind: str, every: int, workdir: str):
  say = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  os.environ['JAX_PLATFORMS'] = 'cpu'
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
  from lmjax import hardware

  hardware.settle()
  from lmjax import config
  from lmjax import loop
  from lmjax import run

  turns = Turns(say, every + every // 2)

  class Trainer(loop.Trainer):
    def __init__(self, *args, **kwargs):
      super().__init__(*args, **kwargs)
      step = self.step_fn

      def step_fn(*args):
        out = step(*args)
        turns.after_step(out)
        return out

      self.step_fn = step_fn
      self.tracker.log = turns.timed('write', self.tracker.log)
      self.save = turns.timed('save', self.save)
      self.evaluate = turns.timed('evaluate', self.evaluate)
      self.sampler = turns.timed('sample', self.sampler)

  loop.Trainer = Trainer
  overrides = [(k, str(v)) for k, v in settings(kind, every).items()]
  run.train(config.resolve(config.load('quickstart', overrides)), workdir)


def race(flags, folder: pathlib.Path):
  """The turns of each process, round by round, until enough rounds were quiet for all."""
  live = {}
  with contextlib.ExitStack() as stack:
    for kind in KINDS:
      command = [sys.executable, __file__, '--worker', kind, '--cores', str(flags.cores)]
      command += ['--every', str(flags.every), '--workdir', str(folder / kind)]
      process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=open(folder / f'{kind}.log', 'w'),
        text=True,
      )
      stack.callback(process.wait)
      stack.callback(process.stdin.close)
      if not process.stdout.readline():
        raise SystemExit(f'{kind} stopped: {(folder / f"{kind}.log").read_text()[-2000:]}')
      live[kind] = process
    turns = {kind: [] for kind in live}
    one_turn = argparse.Namespace(steps=flags.every)
    for n in range(flags.most_rounds):
      for kind, process in live.items():
        try:
          turns[kind].append(turn(process, one_turn))
        except (ValueError, OSError):  # no answer
          log = (folder / f'{kind}.log').read_text()[-2000:]
          raise SystemExit(f'{kind} ended in round {n} with {process.wait()}: {log}') from None
      text = '  '.join(f'{k} {t[-1]["wall"] / flags.every:.4f} s' for k, t in turns.items())
      print(f'round {n}: {text}', flush=True)
      if len(quiet(turns, *KINDS)) >= flags.rounds:
        break
  return turns


def data_wait(workdir: pathlib.Path, every: int) -> float:
  """Share of the steps' time spent waiting for a batch; lines over a pause between turns left
  out.
  """
  lines = [json.loads(l) for l in (workdir / 'metrics.jsonl').read_text().splitlines()]
  lines = [l for l in lines if 'data_wait' in l and l['step'] > 2 * every]
  kept = [l for l in lines if abs(l['step'] % every - every // 2) > 10]
  return sum(l['data_wait'] for l in kept) / sum(l['step_time'] for l in kept)


def summary(turns, every: int, waited: float) -> dict:
  """Shares of the run at the quickstart's rates; medians over the rounds that count."""
  kept = quiet(turns, *KINDS)
  kept = kept if len(kept) >= 3 else range(len(turns['bare']))

  def median(fn):
    found = [fn({k: turns[k][n] for k in KINDS}) for n in kept]
    return statistics.median(found)

  interval = median(lambda t: t['bare']['wall']) / every * RECIPE_EVERY
  cpu_interval = median(lambda t: t['bare']['cpu']) / every * RECIPE_EVERY
  own = lambda t: t['eval']['evaluate'] + t['eval']['sample']
  seconds = dict(
    save_blocks=median(lambda t: t['save']['save']),
    save_in_all=median(lambda t: t['save']['wall'] - t['log']['wall']),
    evaluation=median(lambda t: t['eval']['evaluate']),
    sample=median(lambda t: t['eval']['sample']),
    around_them=median(lambda t: t['eval']['wall'] - own(t) - t['save']['wall']),
  )
  times = {
    f'{b} / {a}, {k}': ratio(turns, a, b, k)
    for a, b in (('bare', 'log'), ('log', 'save'))
    for k in ('wall', 'cpu')
  }
  save_cpu = median(lambda t: t['save']['cpu'] - t['log']['cpu'])
  run = interval + seconds['evaluation'] + seconds['sample']
  return dict(
    step_seconds=interval / RECIPE_EVERY,
    step_cpu_seconds=cpu_interval / RECIPE_EVERY,
    times=times,
    event_seconds=seconds,
    save_cpu_seconds=save_cpu,
    shares=dict(
      data_wait=waited,
      tracker=median(lambda t: t['log']['write'] / t['log']['wall']),
      logging=times['log / bare, wall']['median'] - 1,
      logging_cpu=times['log / bare, cpu']['median'] - 1,
      save_blocks=seconds['save_blocks'] / interval,
      save_in_all=seconds['save_in_all'] / interval,
      save_cpu=save_cpu / cpu_interval,
      around_evaluation_and_sample=seconds['around_them'] / interval,
      evaluation=seconds['evaluation'] / run,
      sample=seconds['sample'] / run,
    ),
    rounds_that_count=len(kept),
  )


def show(table):
  print(f'\nstep {table["step_seconds"]:.4f} s, {table["step_cpu_seconds"]:.4f} CPU-s')
  for key, row in table['times'].items():
    print(f'{key}: {words(row)}')
  for key, s in table['event_seconds'].items():
    print(f'{key:30s} {s:7.3f} s')
  for key, share in table['shares'].items():
    print(f'{key:30s} {100 * share:7.2f} %')


def main():
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--every', type=int, default=60, help='steps of a turn and between events')
  p.add_argument('--rounds', type=int, default=7, help='quiet ones')
  p.add_argument('--most-rounds', type=int, default=20, help='quiet or not')
  p.add_argument('--cores', type=int, default=cores())
  p.add_argument('--out', default=str(pathlib.Path(__file__).with_name('hooks.json')))
  p.add_argument('--worker', help=argparse.SUPPRESS)
  p.add_argument('--workdir', help=argparse.SUPPRESS)
  flags = p.parse_args()
  if flags.worker:
    if hasattr(os, 'sched_setaffinity'):
      os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.cores])
    return worker(flags.worker, flags.every, flags.workdir)
  if flags.every < 40 or flags.every % 20:
    p.error(f'--every={flags.every}: a multiple of 20 from 40 on is accepted')
  load = os.getloadavg()
  with tempfile.TemporaryDirectory() as folder:
    turns = race(flags, pathlib.Path(folder))
    table = summary(turns, flags.every, data_wait(pathlib.Path(folder) / 'log', flags.every))
  show(table)
  if flags.out:
    result = dict(
      versions=versions(),
      cores=flags.cores,
      every=flags.every,
      load_average=dict(before=load, after=os.getloadavg()),
      table=table,
      turns=turns,
    )
    pathlib.Path(flags.out).write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
  main()

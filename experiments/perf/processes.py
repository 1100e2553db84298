"""What the bookkeeping of several processes costs: life signs, the relay and the vote on stopping.

command: python experiments/perf/processes.py   (writes processes.json beside this file)

Two processes on loopback train the quickstart recipe over both of their devices, as the command
line does it. Two measurements:

  idle   joined processes that do nothing else: their CPU time, gRPC's threads included, with life
         signs and without. This is the whole cost of a second, whatever the step takes
  steps  in training, windows of WINDOW steps with bookkeeping and without (no request, no vote) in
         turns, within the same processes: wall and CPU time of a step, medians over pairs of
         neighbouring windows; and the time that the loop itself spends in the vote

The second cannot show less than its own noise on a machine that others use; the first can.
"""

import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time

from cpu_step import versions

WINDOW, WARM = 20, 20


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


class Switch:
  """Turns the bookkeeping of this process off and on."""

  def __init__(self):
    from lmjax.parallel import alive
    from lmjax.parallel import processes

    self.on, self.votes, self.voting = True, 0, 0.0
    exchange, vote = alive.Alive._exchange, processes.StopVote.__call__

    def exchanged(one, mark):
      if self.on:
        exchange(one, mark)

    def voted(one, done, wanted):
      if not self.on:
        return wanted
      before = time.perf_counter()
      found = vote(one, done, wanted)
      self.voting += time.perf_counter() - before
      self.votes += 1
      return found

    alive.Alive._exchange, processes.StopVote.__call__ = exchanged, voted


def idle(index: int, port: int, seconds: float, out: pathlib.Path):
  from lmjax.parallel import cluster
  from lmjax.parallel import processes

  switch, found = Switch(), {'with': [], 'without': []}
  place = cluster.Place(f'127.0.0.1:{port}', 2, index, None, 'flags')
  with processes.joined(place, 120, 1e5):  # nobody is missed while it is off
    time.sleep(3)
    for turn in range(8):
      switch.on = turn % 2 == 0
      time.sleep(1.5)
      before = time.process_time(), time.monotonic()
      time.sleep(seconds / 8)
      cpu, wall = time.process_time() - before[0], time.monotonic() - before[1]
      found['with' if switch.on else 'without'].append(cpu / wall)
    out.write_text(json.dumps({k: statistics.median(v) for k, v in found.items()}))
  processes.leave(0)


def steps(index: int, port: int, count: int, out: pathlib.Path, workdir: str):
  from lmjax import loop
  from lmjax import main

  switch, marks = Switch(), []
  due = loop.Trainer._due

  def counted(trainer, done):
    if done >= WARM and (done - WARM) % WINDOW == 0:
      trainer._fetch()  # what was dispatched before is done
      marks.append((switch.on, time.monotonic(), time.process_time()))
      switch.on = not switch.on
    return due(trainer, done)

  loop.Trainer._due = counted
  total = WARM + count // (2 * WINDOW) * 2 * WINDOW
  off = ['checkpoint_every=0', 'eval.every=0', 'sample.every=0', 'sample.tokens=0']
  off += ['tensorboard=false', 'report=false', 'log_every=10', 'data.valid=']
  words = [f'--config.{w}' for w in [*off, f'steps={total + 1}', 'mesh.data=2']]
  join = [f'--coordinator=127.0.0.1:{port}', '--processes=2', f'--process={index}']
  status = main.main(
    ['--config=quickstart', f'--workdir={workdir}', '--lost_timeout=10000', *words, *join]
  )
  windows = [
    (not a[0], (b[1] - a[1]) / WINDOW, (b[2] - a[2]) / WINDOW) for a, b in zip(marks, marks[1:])
  ]
  out.write_text(json.dumps(dict(windows=windows, vote=switch.voting / switch.votes)))
  from lmjax.parallel import processes

  processes.leave(status)


def pairs(windows, which: int) -> dict[str, float]:
  """With against without, over neighbouring windows."""
  found = []
  for a, b in zip(windows[::2], windows[1::2]):
    on, off = (a, b) if a[0] else (b, a)
    found.append(on[which] / off[which])
  middle = statistics.median(found)
  error = 1.25 * statistics.stdev(found) / len(found) ** 0.5
  return dict(median=middle, standard_error=error, pairs=len(found))


def both(kind: str, *args: str) -> list[dict]:
  with tempfile.TemporaryDirectory() as folder:
    port = free_port()
    outs = [pathlib.Path(folder) / f'{i}.json' for i in range(2)]
    running = [
      subprocess.Popen(
        [sys.executable, __file__, kind, str(i), str(port), *args, str(outs[i]), folder + '/w'],
        env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1'},
      )
      for i in range(2)
    ]
    assert [p.wait() for p in running] == [0, 0]
    return [json.loads(o.read_text()) for o in outs]


def main():
  p = argparse.ArgumentParser(description=__doc__)
  p.add_argument('--seconds', type=float, default=80)
  p.add_argument('--steps', type=int, default=1000)
  p.add_argument('--out', default=str(pathlib.Path(__file__).with_name('processes.json')))
  flags = p.parse_args()
  load = os.getloadavg()
  still, trained = both('idle', str(flags.seconds)), both('steps', str(flags.steps))
  table = []
  for i in range(2):
    w = trained[i]['windows']
    wall = statistics.median(x[1] for x in w)
    cpu = statistics.median(x[2] for x in w)
    rate = still[i]['with'] - still[i]['without']
    table.append(
      dict(
        process=i,
        idle_cpu_seconds_a_second=still[i],
        step_seconds=wall,
        step_cpu_seconds=cpu,
        vote_microseconds=1e6 * trained[i]['vote'],
        cpu_share_of_a_step=rate * wall / cpu,
        vote_share_of_a_step=trained[i]['vote'] / wall,
        wall_with_against_without=pairs(w, 1),
        cpu_with_against_without=pairs(w, 2),
      )
    )
  found = dict(
    command=' '.join(['python', 'experiments/perf/processes.py', *sys.argv[1:]]),
    versions=versions(),
    load_average=dict(before=load, after=os.getloadavg()),
    window=WINDOW,
    table=table,
  )
  pathlib.Path(flags.out).write_text(json.dumps(found, indent=1) + '\n')
  print(json.dumps(table, indent=1))


if __name__ == '__main__':
  if len(sys.argv) > 1 and sys.argv[1] in ('idle', 'steps'):
    kind, index, port, amount, out, workdir = sys.argv[1:]
    if kind == 'idle':
      idle(int(index), int(port), float(amount), pathlib.Path(out))
    else:
      steps(int(index), int(port), int(amount), pathlib.Path(out), workdir)
  else:
    main()

"""python -m lmjax.main --config=RECIPE --workdir=DIR [--config.key=value ...]

Trains a model, or goes on with the run that DIR holds. Also: --plan, --eval, --list, --explain.

examples:
  python -m lmjax.main --config=quickstart --workdir=runs/q
  python -m lmjax.main --config=quickstart --workdir=runs/lion \\
      --config.optim='clip() | lion()'
  python -m lmjax.main --config=llama:8B --plan --topology=v5p-128 \\
      --config.mesh.data=64
  python -m lmjax.main --workdir=runs/q --eval=lambada,blimp
  python -m lmjax.main --explain mixer:gqa
"""

import os
import re
import signal
import sys
import time
import traceback

from lmjax import exits

STARTED = time.monotonic()


HELP = f"""{__doc__}
--config RECIPE      a recipe name, file.py or file.py:argument
--workdir DIR        the run directory; made if absent, resumed if it has a run
--config.KEY=VALUE   sets one key, as in --config.optim.adam.b2=0.99
--list [KIND]        the kinds of parts, or the parts of one kind
--explain KIND:NAME  a part: arguments, facts, documentation
--eval NAMES         scores the best checkpoint: lambada,blimp or specs
--plan [search]      cost without a device; --topology=NAME: of accelerators
--help_all           all flags: resuming, plans, several processes

{exits.TRAINING}"""


def parser():
  """The parser of the flags; `--config.key` is read by `parse`."""
  import argparse  # not above: until `command` runs, Ctrl-C ends in a traceback

  class Help(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
      print(HELP)
      parser.exit()

  class Parser(argparse.ArgumentParser):
    def error(self, message):
      self.exit(exits.USER, f'lmjax: {message}\n')

  p = Parser(
    prog='python -m lmjax.main',
    description=__doc__,
    epilog=exits.TRAINING,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
    add_help=False,
  )
  p.add_argument('-h', '--help', action=Help, nargs=0, help='what is used most, on one screen')
  p.add_argument('--help_all', action='help', help='this')
  p.add_argument('--config', help='a recipe name, or a file, or file.py:argument')
  p.add_argument(
    '--workdir', help='the run directory; made if absent, resumed if it holds this run'
  )
  p.add_argument(
    '--init_from',
    help='run directory whose parameters start this run (the same as --config.init_from)',
  )
  p.add_argument(
    '--eval',
    metavar='NAMES',
    help='run evals on the best checkpoint: lambada,blimp or specs joined by |',
  )
  _plans(p.add_argument_group('plans (no device is used)'))
  p.add_argument(
    '--list',
    nargs='?',
    const='',
    metavar='KIND',
    help='the kinds of parts, or the parts of one kind',
  )
  p.add_argument('--explain', metavar='KIND:NAME', help='a part: arguments, facts, documentation')
  p.add_argument(
    '--allow_config_change',
    action='store_true',
    help='resume although the config means another computation',
  )
  resume = p.add_argument_group('resuming')
  resume.add_argument(
    '--skip_batches', default='', metavar='LIST', help="leave batches out, as in '1200:1400, 1512'"
  )
  resume.add_argument(
    '--allow_older_checkpoint',
    action='store_true',
    help='where the newest checkpoint is damaged, go on from the newest whole one',
  )
  p.add_argument(
    '--allow_code',
    action='store_true',
    help="with --eval: import the modules that the directory's config names",
  )
  p.add_argument(
    '--deterministic',
    action='store_true',
    help='GPU: only programs that give the same bits every time; slower, see the README',
  )
  _several(p.add_argument_group('several processes (the same command on each)'))
  return p


def _plans(group):
  group.add_argument(
    '--plan',
    nargs='?',
    const='show',
    choices=('show', 'search'),
    help='shapes, parameters, FLOPs and memory; with --topology all of a step on it; search: the '
    'best mesh, remat and micro-batches for it',
  )
  group.add_argument(
    '--topology', metavar='NAME', help='v5e:16x16, v5p-512, 2*v5e:16x16, h100:8x2 ...'
  )
  group.add_argument('--plan_json', default='', metavar='FILE', help='the plan as JSON as well')
  group.add_argument(
    '--plan_seconds', type=float, default=600.0, metavar='S', help='for compiling and searching'
  )


def _several(group):
  group.add_argument(
    '--distributed',
    default='auto',
    metavar='HOW',
    help='auto: where Slurm, Open MPI or a TPU slice started several; on, off; slurm, openmpi, '
    'tpu, k8s, mpi4py',
  )
  group.add_argument('--coordinator', metavar='HOST:PORT', help='an address of process 0')
  group.add_argument('--processes', type=int, default=1, metavar='N')
  group.add_argument('--process', type=int, default=0, metavar='I', help='from 0')
  group.add_argument(
    '--join_timeout', type=float, default=300, metavar='S', help='seconds for all to come (300)'
  )
  group.add_argument(
    '--lost_timeout',
    type=float,
    default=100,
    metavar='S',
    help='seconds of silence after which a process is lost and all end (100)',
  )


def parse(argv: list[str]):
  """(parser, flags, overrides)."""
  rest, overrides = split(argv)
  p = parser()
  flags, unknown = p.parse_known_args(rest)
  if unknown:
    p.error(_unknown(unknown[0], p))
  if flags.init_from:
    overrides.append(('init_from', flags.init_from))
  if flags.topology == '':
    p.error('--topology= is empty: a name such as v5e:16x16, v5p-512 or h100:8x2 is expected')
  if flags.topology and not flags.plan:
    p.error(f'--topology={flags.topology} belongs to --plan')
  if flags.processes > 1 and not flags.coordinator:
    p.error(f'--processes={flags.processes} needs --coordinator=HOST:PORT')
  if flags.process and not flags.coordinator:
    p.error(f'--process={flags.process} needs --coordinator=HOST:PORT and --processes=N')
  if not 1 <= flags.plan_seconds <= 1e6:
    p.error(f'--plan_seconds={flags.plan_seconds:g}: 1 to 1,000,000 seconds are expected')
  for name in ('join_timeout', 'lost_timeout'):
    if not 5 <= getattr(flags, name) <= 1e6:
      p.error(f'--{name}={getattr(flags, name):g}: 5 seconds or more are expected')
  return p, flags, overrides


def _unknown(word: str, p) -> str:
  """What to say of a word that is no flag: often one of the config, or of its nearest name."""
  from lmjax import config
  from lmjax import groups
  from lmjax import specs
  from lmjax.registry import nearest

  name = word.removeprefix('--').removeprefix('config.').partition('=')[0]
  keys = [*groups.flat(config.default()), *(f'model.{part}' for part in config.BLOCK_PARTS)]
  if name in keys:
    return f'{specs.brief(word)} is no flag; --config.{name}=VALUE sets that key'
  flags = [f for action in p._actions for f in action.option_strings]
  near = nearest(word.partition('=')[0], flags, '.') if word.startswith('-') else '.'
  return f'{specs.brief(word)} is no flag{near} --help shows the flags'


def split(argv: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
  """(other words, overrides): `--config.a.b=v` and `--config.a.b v` are overrides, in order."""
  overrides, rest, i = [], [], 0
  while i < len(argv):
    word = argv[i]
    if word.startswith('--config.'):
      key, eq, value = word[len('--config.') :].partition('=')
      if not eq:
        i += 1
        if i == len(argv):
          print(f'lmjax: {word} needs a value, as in {word}=1', file=sys.stderr)
          raise SystemExit(exits.USER)
        value = argv[i]
      overrides.append((key, value))
    else:
      rest.append(word)
    i += 1
  return rest, overrides


def main(argv: list[str] | None = None) -> int:
  """Returns the exit status, see `exits`."""
  p, flags, overrides = parse(sys.argv[1:] if argv is None else argv)
  from lmjax import bucket

  try:
    with bucket.told(exits.DiskError):
      return run(p, flags, overrides)
  except BrokenPipeError:  # `--list | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exits.RETRY if flags.workdir else 0
  except KeyboardInterrupt:
    print('lmjax: interrupted; the last checkpoint is whole', file=sys.stderr)
    return 128 + signal.SIGINT
  # What the user gave cannot be used, or the run ended for a reason of its own; everything else is
  # our fault and keeps its traceback.
  except (ValueError, exits.DiskError, exits.Ended) as e:
    if os.environ.get('LMJAX_TRACEBACK'):
      raise
    print(f'lmjax: {e}', file=sys.stderr)
    return getattr(e, 'status', exits.USER)


def run(p, flags, overrides) -> int:
  if flags.list is not None:
    from lmjax import explain

    return explain.list_parts(flags.list)
  if flags.explain:
    from lmjax import explain

    return explain.explain(flags.explain)
  if not flags.config and not (flags.eval and flags.workdir):
    from lmjax import config

    recipes = ', '.join(config.recipes())
    raise ValueError(f'--config=RECIPE is needed, one of {recipes}, or a file; --help says more')
  if flags.plan:
    return planned(flags, _resolved(flags, overrides))
  if not flags.workdir:
    if flags.config:
      _resolved(flags, overrides)
    raise ValueError(
      '--workdir=DIR is needed: the directory that receives checkpoints, metrics and the report'
    )
  simulated()
  if flags.deterministic:
    deterministic()
  if flags.eval:
    from lmjax import run as run_lib

    if flags.config:
      _resolved(flags, overrides)
    return run_lib.evaluate(flags.workdir, flags.eval, allow_code=flags.allow_code)
  return _train(flags, overrides)


def _resolved(flags, overrides):
  from lmjax import config

  return config.resolve(config.load(flags.config, overrides))


def simulated() -> None:
  """Gives XLA:CPU more threads than it simulates devices. They wait for each other in the threads
  that also compute, and where there were no more of these some programs waited for ever.
  """
  asked = re.search(r'host_platform_device_count=(\d+)', os.environ.get('XLA_FLAGS', ''))
  if asked and int(asked[1]) > 1:
    os.environ.setdefault('NPROC', str(2 * int(asked[1]) + (os.cpu_count() or 1)))


def _train(flags, overrides) -> int:
  from lmjax import restore
  from lmjax import run as run_lib
  from lmjax.parallel import alike
  from lmjax.parallel import cluster
  from lmjax.parallel import processes

  place = cluster.find(
    flags.distributed, flags.coordinator, flags.processes, flags.process, flags.join_timeout
  )
  # First of all, so that a process which refuses its config can tell the others so.
  with processes.joined(place, flags.join_timeout, flags.lost_timeout):
    resolved = _resolved(flags, overrides)
    same = ('allow_config_change', 'skip_batches', 'allow_older_checkpoint', 'deterministic')
    given = {k: getattr(flags, k) for k in same}
    processes.agree('command', lambda: alike.facts(resolved, given))
    return run_lib.train(
      resolved,
      flags.workdir,
      allow_config_change=flags.allow_config_change,
      choice=restore.Choice(flags.allow_older_checkpoint, flags.skip_batches),
      started=STARTED,
    )


def planned(flags, resolved: dict) -> int:
  """--plan, alone or on a topology."""
  if not flags.topology:
    if flags.plan == 'search' or flags.plan_json:
      raise ValueError('--plan=search and --plan_json need --topology=NAME, as in v5e:16x16')
    from lmjax import plan

    return plan.show(resolved)
  from lmjax.planning import search
  from lmjax.planning import show

  how = search if flags.plan == 'search' else show
  return how.show(resolved, flags.topology, json_file=flags.plan_json, seconds=flags.plan_seconds)


def deterministic() -> None:
  """Sets XLA's flags, which are read when the first device is asked for."""
  flags = '--xla_gpu_deterministic_ops=true --xla_gpu_exclude_nondeterministic_ops=true'
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flags}'.strip()


def command() -> int:
  """main() as a process: a signal means 'start again' from the first moment to the last."""
  heard = [signal.SIGINT, signal.SIGTERM]
  if hasattr(signal, 'SIGHUP') and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
    heard.append(signal.SIGHUP)
  for s in heard:
    signal.signal(s, _stopped_early)
  from lmjax import hardware

  hardware.settle()
  try:
    status = main()
  except Exception:  # a bug, with its traceback; others may wait for this process
    status = 1
    traceback.print_exc()
  for s in heard:
    signal.signal(s, signal.SIG_IGN)  # it is ending
  _leave(status)
  return status


def _stopped_early(number, frame):
  """Ends the process at once: there is nothing to save yet, and an exception could be swallowed."""
  text = f'lmjax: stopped by {signal.Signals(number).name}; there was nothing to save\n'
  try:
    os.write(2, text.encode())
  finally:
    os._exit(exits.RETRY)


def _leave(status: int):
  """Says goodbye to the other processes, and leaves without the threads of a failed save or of a
  tracker that hangs, which wait minutes for what will not come.
  """
  processes = sys.modules.get('lmjax.parallel.processes')
  if processes is not None:
    processes.leave(status)
  if status == exits.DISK:
    _at_once(status)
  channels = sys.modules.get('lmjax.channels')
  if channels is not None and channels.stuck():
    _at_once(status)


def _at_once(status: int):
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


if __name__ == '__main__':
  sys.exit(command())

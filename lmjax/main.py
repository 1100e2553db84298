"""python -m lmjax.main --config=RECIPE --workdir=DIR [--config.key=value ...]

Trains a model, or goes on with the run that DIR holds. Also: --plan, --eval, --list, --explain.

examples:
  python -m lmjax.main --config=quickstart --workdir=/tmp/quickstart
  python -m lmjax.main --config=quickstart --workdir=/tmp/q2 --config.optim='clip() | lion()'
  python -m lmjax.main --config=gpt2 --plan
  python -m lmjax.main --config=quickstart --workdir=/tmp/quickstart --eval=lambada,blimp
  python -m lmjax.main --list mixer
  python -m lmjax.main --explain mixer:gqa
"""

import os
import signal
import sys
import time

from lmjax import exits

STARTED = time.monotonic()


def parser():
  """The parser of the flags; `--config.key` is read by `parse`."""
  import argparse  # not above: until `command` runs, Ctrl-C ends in a traceback

  p = argparse.ArgumentParser(
    prog='python -m lmjax.main',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
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
  p.add_argument(
    '--plan', action='store_true', help='shapes, parameters, FLOPs and memory; no device is used'
  )
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
  several = p.add_argument_group('several processes (the same command on each, and)')
  several.add_argument('--coordinator', metavar='HOST:PORT', help='an address of process 0')
  several.add_argument('--processes', type=int, default=1, metavar='N')
  several.add_argument('--process', type=int, default=0, metavar='I', help='from 0')
  return p


def parse(argv: list[str]):
  """(parser, flags, overrides): `--config.a.b=v` and `--config.a.b v` are overrides, in order."""
  overrides, rest, i = [], [], 0
  while i < len(argv):
    word = argv[i]
    if word.startswith('--config.'):
      key, eq, value = word[len('--config.') :].partition('=')
      if not eq:
        i += 1
        if i == len(argv):
          raise SystemExit(f'lmjax: {word} needs a value, as in {word}=1')
        value = argv[i]
      overrides.append((key, value))
    else:
      rest.append(word)
    i += 1
  p = parser()
  flags = p.parse_args(rest)
  if flags.init_from:
    overrides.append(('init_from', flags.init_from))
  if flags.processes > 1 and not flags.coordinator:
    p.error(f'--processes={flags.processes} needs --coordinator=HOST:PORT')
  return p, flags, overrides


def main(argv: list[str] | None = None) -> int:
  """Returns the exit status, see `exits`."""
  p, flags, overrides = parse(sys.argv[1:] if argv is None else argv)
  try:
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
    p.print_usage()
    raise ValueError(
      '--config=RECIPE is needed; --list shows the parts, and configs/ holds the recipes'
    )
  from lmjax import config as config_lib

  if flags.config:
    resolved = config_lib.resolve(config_lib.load(flags.config, overrides))
  if flags.plan:
    from lmjax import plan

    return plan.show(resolved)
  if not flags.workdir:
    raise ValueError(
      '--workdir=DIR is needed: the directory that receives checkpoints, metrics and the report'
    )
  if flags.deterministic:
    deterministic()
  from lmjax import restore
  from lmjax import run as run_lib

  if flags.eval:
    return run_lib.evaluate(flags.workdir, flags.eval, allow_code=flags.allow_code)
  if flags.coordinator:
    from lmjax.parallel import processes

    processes.start(flags.coordinator, flags.processes, flags.process)
  return run_lib.train(
    resolved,
    flags.workdir,
    allow_config_change=flags.allow_config_change,
    choice=restore.Choice(flags.allow_older_checkpoint, flags.skip_batches),
    started=STARTED,
  )


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
  from lmjax import heap

  heap.keep()
  status = main()
  for s in heard:
    signal.signal(s, signal.SIG_IGN)  # it is ending
  if status == exits.DISK:
    _end(status)
  return status


def _stopped_early(number, frame):
  """Ends the process at once: there is nothing to save yet, and an exception could be swallowed."""
  text = f'lmjax: stopped by {signal.Signals(number).name}; there was nothing to save\n'
  try:
    os.write(2, text.encode())
  finally:
    os._exit(exits.RETRY)


def _end(status: int):
  """Leaves without the threads of a failed save, which wait minutes for what will not come."""
  from lmjax.parallel import processes

  processes.leave()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


if __name__ == '__main__':
  sys.exit(command())

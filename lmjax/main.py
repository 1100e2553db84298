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

import argparse
import os
import sys
import time

STARTED = time.monotonic()
EXIT_USER = 2


def parse(argv: list[str]):
  """(flags, overrides): `--config.a.b=v` and `--config.a.b v` are overrides, in order."""
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
  flags = p.parse_args(rest)
  if flags.init_from:
    overrides.append(('init_from', flags.init_from))
  return p, flags, overrides


def main(argv: list[str] | None = None) -> int:
  """Returns the exit status: 0 done, 2 bad input, 75 stopped by a signal and worth starting
  again.
  """
  parser, flags, overrides = parse(sys.argv[1:] if argv is None else argv)
  try:
    return run(parser, flags, overrides)
  except BrokenPipeError:  # `--list | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except (
    ValueError
  ) as e:  # what the user gave cannot be used; everything else is our fault and keeps its traceback
    if os.environ.get('LMJAX_TRACEBACK'):
      raise
    print(f'lmjax: {e}', file=sys.stderr)
    return EXIT_USER


def run(parser, flags, overrides) -> int:
  if flags.list is not None:
    from lmjax import explain

    return explain.list_parts(flags.list)
  if flags.explain:
    from lmjax import explain

    return explain.explain(flags.explain)
  if not flags.config and not (flags.eval and flags.workdir):
    parser.print_usage()
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
  from lmjax import run as run_lib

  if flags.eval:
    return run_lib.evaluate(flags.workdir, flags.eval)
  return run_lib.train(
    resolved, flags.workdir, allow_config_change=flags.allow_config_change, started=STARTED
  )


if __name__ == '__main__':
  from lmjax import heap

  heap.keep()
  sys.exit(main())

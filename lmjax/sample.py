"""python -m lmjax.sample --workdir=DIR --prompt=TEXT: text from a run's best checkpoint."""

import argparse
import sys

from lmjax import bucket
from lmjax import exits
from lmjax import hardware
from lmjax import progress


def main(argv: list[str] | None = None) -> int:
  p = argparse.ArgumentParser(
    prog='python -m lmjax.sample',
    formatter_class=argparse.RawDescriptionHelpFormatter,
    description=__doc__,
    epilog="example:\n  python -m lmjax.sample --workdir=runs/quickstart --prompt='ROMEO:' "
    f"\\\n      --rule='top_k(k=40) | temperature(t=0.8)'\n\n{exits.PLAIN}",
  )
  p.add_argument('--workdir', required=True, help='a run directory')
  p.add_argument(
    '--prompt', action='append', help="may be given several times; the run's own prompt by default"
  )
  p.add_argument('--tokens', type=int, default=200, help='at most this many new tokens')
  p.add_argument(
    '--rule',
    default='top_p(p=0.9)',
    help='filters such as greedy(), temperature(t=), top_k(k=), top_p(p=), min_p(p=), joined by '
    "'|'; or a rule of its own: mirostat(tau=), superposed_decoding(k=, ngrams=), and with a "
    'second model contrastive_decoding(), speculative_decoding(gamma=, rule=)',
  )
  p.add_argument(
    '--with',
    dest='others',
    action='append',
    default=[],
    metavar='RUN',
    help='the run directory of a second model (amateur, draft) of the same tokenizer; may be given '
    'several times',
  )
  p.add_argument('--seed', type=int, default=0)
  p.add_argument(
    '--allow_code',
    action='store_true',
    help="import the modules that the directory's config names",
  )
  flags = p.parse_args(argv)
  try:
    with bucket.told(ValueError):
      return sample(flags)
  except ValueError as e:
    print(f'lmjax: {e}', file=sys.stderr)
    return 2


def sample(flags) -> int:
  from lmjax import generate
  from lmjax import restore
  from lmjax import run as run_lib

  if flags.tokens < 1:
    raise ValueError(f'--tokens={flags.tokens}: at least 1 is expected')
  run_lib.compilation_cache()
  run, params, vars, step = restore.load(flags.workdir, allow_code=flags.allow_code)
  progress.say(f'step {step} of {flags.workdir}')
  others = []
  for folder in flags.others:
    other, other_params, other_vars, step = restore.load(folder, allow_code=flags.allow_code)
    progress.say(f'step {step} of {folder}')
    others.append((other, {'params': other_params, **other_vars}))
  prompts = flags.prompt or [run.config['sample']['prompt']]
  found = generate.sample_texts(
    run,
    {'params': params, **vars},
    prompts,
    max_tokens=flags.tokens,
    rule=flags.rule,
    seed=flags.seed,
    others=others,
  )
  shown = progress.plain if sys.stdout.isatty() else str
  for prompt, texts in zip(prompts, found):
    for n, (text, perplexity, joined) in enumerate(texts, 1):
      if perplexity is not None:
        print(f'draft {n}, perplexity {perplexity:.3g} by its own scores:')
      print(shown(prompt + text if joined else f'{prompt}\n{text}'))
    print('-' * 20 if len(prompts) > 1 else '', end='\n' if len(prompts) > 1 else '')
  return 0


if __name__ == '__main__':
  hardware.settle()
  sys.exit(main())

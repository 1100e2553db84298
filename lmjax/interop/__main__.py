"""python -m lmjax.interop import|export|lm_eval: models of other libraries as run directories, and
back; runs in lm-evaluation-harness.

  import FOLDER --out=RUN     config.json, safetensors and tokenizer.json, as Hugging Face's
                              libraries write them; RUN is for --eval, lmjax.sample, lmjax.quantize
                              and config.init_from
  import FILE.gguf --out=RUN  the same of a GGUF file of Llama's architecture, as float32
  export RUN --out=FOLDER     the best checkpoint of a run in the same layout
  lm_eval RUN --tasks=A,B     scores of the best checkpoint on tasks of lm-evaluation-harness

examples:
  python -m lmjax.interop import downloads/SmolLM-135M --out=runs/smollm
  python -m lmjax.sample --workdir=runs/smollm --prompt='Once upon a time'
  python -m lmjax.main --config=runs/smollm/recipe.py --workdir=runs/tuned --config.steps=1000
  python -m lmjax.interop export runs/tuned --out=exports/tuned --dtype=bfloat16
  python -m lmjax.interop lm_eval runs/tuned --tasks=my_task --include_path=my_tasks --limit=100
"""

import argparse
import re
import sys

from lmjax import exits
from lmjax import hardware
from lmjax import progress

UNITS = {'': 1, 'K': 10**3, 'M': 10**6, 'G': 10**9, 'KI': 2**10, 'MI': 2**20, 'GI': 2**30}


def main(argv: list[str] | None = None) -> int:
  flags = parser().parse_args(argv)
  try:
    if flags.action == 'lm_eval':
      print(harnessed(flags))
      return 0
    told = importing(flags) if flags.action == 'import' else exporting(flags)
    progress.say(told)
    return 0
  except (ValueError, exits.DiskError, exits.Ended) as e:
    print(f'lmjax: {e}', file=sys.stderr)
    return getattr(e, 'status', exits.USER)


def parser() -> argparse.ArgumentParser:
  p = argparse.ArgumentParser(
    prog='python -m lmjax.interop',
    formatter_class=argparse.RawDescriptionHelpFormatter,
    description=__doc__,
    allow_abbrev=False,
  )
  actions = p.add_subparsers(dest='action', required=True, metavar='import|export|lm_eval')
  a = actions.add_parser('import', allow_abbrev=False)
  a.add_argument('source', metavar='FOLDER')
  a.add_argument('--out', required=True, help='the run directory to write; absent, or empty')
  a.add_argument('--tokenizer', default='', help="a spec in place of the folder's tokenizer")
  a.add_argument('--length', type=int, default=0, help='tokens in a row; by default all positions')
  a.add_argument('--dtype', default='float32', help='of the parameters of the run')
  a.add_argument(
    '--ignore', default='', help='fields of config.json to leave out of account, as in a,b'
  )
  b = actions.add_parser('export', allow_abbrev=False)
  b.add_argument('source', metavar='RUN')
  b.add_argument('--out', required=True, help='the folder to write; absent, or empty')
  b.add_argument('--dtype', default='float32', help='float32, bfloat16 or float16')
  b.add_argument('--shard_size', default='5GB', help='bytes of one file at most, as in 200MB')
  b.add_argument('--tokenizer', default='run', choices=('run', 'none'), help='none: left out')
  b.add_argument('--model_type', default='', help='the architecture, where several fit')
  c = actions.add_parser('lm_eval', allow_abbrev=False)
  c.add_argument('source', metavar='RUN')
  c.add_argument('--tasks', required=True, help='names of tasks or groups, as in a,b')
  c.add_argument('--include_path', default='', help='a folder with further tasks, as YAML files')
  c.add_argument('--limit', type=limit, help='rows of each task, or a share of them below 1')
  c.add_argument('--num_fewshot', type=int, help="examples in a prompt; the task's own by default")
  c.add_argument(
    '--gen_kwargs',
    default='',
    help='for generate_until, as in max_gen_toks=64,do_sample=True,top_p=0.9,seed=1',
  )
  c.add_argument(
    '--apply_chat_template',
    nargs='?',
    const='default',
    default='',
    metavar='NAME',
    help="prompts as chats, by the template that the run's tokenizer came with, or one of several",
  )
  c.add_argument(
    '--prefix',
    default='run',
    choices=('run', 'bos', 'eos'),
    help='the token before a text without context; run: what began texts in training, else bos, '
    'else eos',
  )
  c.add_argument('--out', default='', help='a JSON file for results and samples')
  for reads_a_run in (b, c):
    reads_a_run.add_argument(
      '--allow_code', action='store_true', help="import the modules that the run's config names"
    )
  return p


def limit(text: str) -> float:
  """Rows, or a share of them below 1."""
  value = float(text)
  if not value > 0 or (value > 1 and value != int(value)):
    raise ValueError(text)
  return int(value) if value >= 1 else value


def harnessed(flags) -> str:
  from lmjax.interop import harness

  return harness.command(flags)


def importing(flags) -> str:
  from lmjax.interop.hf import _importing

  found = _importing.to_run(
    flags.source,
    flags.out,
    tokenizer=flags.tokenizer,
    length=flags.length,
    dtype=flags.dtype,
    ignore=[f for f in flags.ignore.split(',') if f],
  )
  return (
    f'{found["model_type"]}: {found["parameters"]:,} parameters of {found["tensors"]} tensors, '
    f'{found["length"]:,} tokens in a row, {found["tokenizer"]}; run directory {flags.out}'
  )


def exporting(flags) -> str:
  from lmjax.interop.hf import _exporting

  found = _exporting.to_folder(
    flags.source,
    flags.out,
    dtype=flags.dtype,
    shard_size=size(flags.shard_size),
    tokenizer=flags.tokenizer == 'run',
    model_type=flags.model_type,
    allow_code=flags.allow_code,
  )
  return (
    f'step {found["step"]} of {flags.source} as {found["model_type"]}: {found["tensors"]} tensors, '
    f'{found["bytes"]:,} bytes in {flags.out}: {", ".join(found["files"])}, config.json'
  )


def size(text: str) -> int:
  """Bytes: '5GB' -> 5 * 10**9. Raises ValueError."""
  found = re.fullmatch(r'(\d+)([KMG]I?|)B?', text.strip().upper())
  if found is None or not int(found[1]):
    raise ValueError(f'--shard_size={text}: a number of bytes is expected, as in 200MB or 5GB')
  return int(found[1]) * UNITS[found[2]]


if __name__ == '__main__':
  hardware.settle()
  sys.exit(main())

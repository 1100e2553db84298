"""Trains and tries tokenizers.

  python -m lmjax.tokenize train bpe --files a.txt --vocab-size 4096 --out t.json
  python -m lmjax.tokenize encode --tokenizer='bpe(path="t.json")' "some text"
  python -m lmjax.tokenize decode --tokenizer='bpe(path="t.json")' 12 7 300

A tokenizer can be trained if its part has a classmethod `train(texts, vocab_size, ...) -> bytes`,
the content of the file that the part loads; the further arguments become options. `--out` is never
overwritten. Wrong input ends with one sentence and status 2.
"""

import argparse
import inspect
import os
import pathlib
import sys
import typing
from typing import Callable, Iterable, Iterator, Sequence

from lmjax import exits
from lmjax import progress as progress_lib
from lmjax import registry
from lmjax.tokenizers import _files


def main(argv: Sequence[str] | None = None) -> int:
  args = _parser().parse_args(argv)
  try:
    args.run(args)
  except (ValueError, OSError) as e:
    print(f'lmjax.tokenize: {e}', file=sys.stderr)
    return 2
  return 0


def _trainers() -> dict[str, Callable]:
  parts = {name: registry.get('tokenizer', name).obj for name in registry.names('tokenizer')}
  return {name: obj.train for name, obj in parts.items() if hasattr(obj, 'train')}


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m lmjax.tokenize',
    description=__doc__.split('A tokenizer can be trained')[0].rstrip(),
    epilog=f'`train bpe --help` and the like say more\n{exits.PLAIN}',
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(required=True)
  train = commands.add_parser('train', help='makes a vocabulary from text files')
  names = train.add_subparsers(required=True, metavar='tokenizer')
  for name, trainer in _trainers().items():
    sub = names.add_parser(name, help=_first_line(trainer), description=_first_line(trainer))
    sub.add_argument('--files', nargs='+', required=True, help='UTF-8 text, plain or xz')
    sub.add_argument(
      '--vocab-size', type=int, required=True, help='entries of the vocabulary, specials included'
    )
    sub.add_argument('--out', required=True, help='the file to write; it must not exist')
    options = _add_options(sub, trainer)
    sub.set_defaults(run=_train, name=name, trainer=trainer, options=options)
  encode = commands.add_parser('encode', help='prints the ids of a text')
  encode.add_argument('--tokenizer', required=True, help='a spec such as bytes()')
  encode.add_argument('text', help='the text; - reads standard input')
  encode.set_defaults(run=_encode)
  decode = commands.add_parser('decode', help='prints the text of ids')
  decode.add_argument('--tokenizer', required=True, help='a spec such as bytes()')
  decode.add_argument('ids', type=int, nargs='*')
  decode.set_defaults(run=_decode)
  return parser


def _first_line(obj: Callable) -> str:
  return (inspect.getdoc(obj) or '').split('\n')[0].replace('%', '%%')


def _add_options(sub: argparse.ArgumentParser, trainer: Callable) -> list[str]:
  """One option for each argument of `train` past texts and vocab_size."""
  found = [
    p
    for p in inspect.signature(trainer).parameters.values()
    if p.name not in ('texts', 'vocab_size')
  ]
  for p in found:
    is_choice = typing.get_origin(p.annotation) is typing.Literal
    sub.add_argument(
      '--' + p.name.replace('_', '-'),
      type=str if is_choice else p.annotation,
      choices=typing.get_args(p.annotation) if is_choice else None,
      default=p.default,
      help=f'default {p.default}',
    )
  return [p.name for p in found]


def _train(args: argparse.Namespace):
  out = pathlib.Path(args.out)
  if out.exists():
    raise ValueError(f'--out={out} exists; name a file that does not')
  if not out.absolute().parent.is_dir():
    raise ValueError(f'--out={out}: there is no folder {out.absolute().parent}')
  for path in args.files:  # before minutes of reading the others
    if not pathlib.Path(path).is_file():
      raise ValueError(f'--files: no file {path}')
  options = {name: getattr(args, name) for name in args.options}
  with _Progress(args.files) as progress:
    data = args.trainer(progress.count(_files.texts(args.files)), args.vocab_size, **options)
  partial = out.with_name(out.name + '.partial')
  partial.write_bytes(data)
  os.replace(partial, out)
  spec = f'{args.name}(path={str(out)!r})'
  made = registry.make('tokenizer', spec)()
  print(
    f'{spec}: {made.vocab_size} entries from {progress.characters:,} characters, '
    f'fingerprint {made.fingerprint()[:16]}'
  )


class _Progress:
  """Shows on a terminal how much text was read."""

  def __init__(self, files: Sequence[str]):
    self.characters = 0
    packed = any(f.endswith('.xz') for f in files)
    total = None if packed else sum(os.path.getsize(f) for f in files)
    self._count = progress_lib.Count('reading', total, 'bytes')

  def __enter__(self):
    self._count.__enter__()
    return self

  def __exit__(self, *error):
    self._count.__exit__()

  def count(self, texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
      self.characters += len(text)
      self._count.add(len(text.encode()))
      yield text
    self._count.add(0, 'making the vocabulary ')


def _encode(args: argparse.Namespace):
  tokenizer = registry.make('tokenizer', args.tokenizer)()
  text = sys.stdin.buffer.read() if args.text == '-' else os.fsencode(args.text)
  print(*tokenizer.encode(text).tolist())


def _decode(args: argparse.Namespace):
  tokenizer = registry.make('tokenizer', args.tokenizer)()
  if hasattr(tokenizer, 'decode_bytes'):
    sys.stdout.buffer.write(tokenizer.decode_bytes(args.ids) + b'\n')
  else:
    print(tokenizer.decode(args.ids))


if __name__ == '__main__':
  sys.exit(main())

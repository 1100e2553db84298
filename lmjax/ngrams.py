"""python -m lmjax.ngrams --store=DIR --out=FILE: counts n-grams for decoding that asks for them.

DIR is a token store, as `lmjax.data.store` writes it (a run keeps its own in `tokens/` of its
directory, or where `config.data.cache` says). The file holds counts and the fingerprint of the
store's tokenizer, and is refused beside a model of another one.
"""

import argparse
import pathlib
import sys

from lmjax import progress
from lmjax.data import store as store_lib
from lmjax.decoding import _ngrams


def main(argv: list[str] | None = None) -> int:
  p = argparse.ArgumentParser(
    prog='python -m lmjax.ngrams',
    formatter_class=argparse.RawDescriptionHelpFormatter,
    description=__doc__,
  )
  p.add_argument('--store', required=True, help='the directory of a token store')
  p.add_argument('--out', required=True, help='the .npz file to write; it must not exist')
  p.add_argument('--order', type=int, default=6, help='tokens of the longest n-gram')
  p.add_argument('--documents', type=int, default=0, help='the first so many only; 0 for all')
  flags = p.parse_args(argv)
  try:
    return count(flags)
  except (ValueError, OSError) as e:
    print(f'lmjax: {e}', file=sys.stderr)
    return 2


def count(flags) -> int:
  out = pathlib.Path(flags.out)
  if out.exists():
    raise ValueError(f'--out={out} exists; name a file that does not')
  if not out.absolute().parent.is_dir():
    raise ValueError(f'--out={out}: there is no folder {out.absolute().parent}')
  if flags.documents < 0:
    raise ValueError(f'--documents={flags.documents}: 0 for all, or a positive number, is expected')
  store = store_lib.TokenStore.open(flags.store)
  offsets = store.offsets[: flags.documents + 1] if flags.documents else store.offsets
  arrays = _ngrams.build(store.tokens[: offsets[-1]], offsets, flags.order)
  _ngrams.save(out, arrays, store.meta.get('tokenizer') or '')
  nodes = ', '.join(f'{len(arrays[f"tokens_{n}"]):,}' for n in range(1, flags.order + 1))
  progress.say(f'{out}: {offsets[-1]:,} tokens, different n-grams by length: {nodes}')
  return 0


if __name__ == '__main__':
  sys.exit(main())

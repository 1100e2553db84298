"""Tokenizes text to a folder of ids, in parallel, with a progress bar; `tokens(path=FOLDER)` reads
it.

The result does not depend on the number of workers: documents go out and come back in order.
"""

import argparse
import collections
import concurrent.futures
import multiprocessing
import pathlib
import sys
import time

from lmjax import exits
from lmjax import registry
from lmjax.data import store as store_lib
from lmjax.data import writer

EXAMPLES = """examples:
  python -m lmjax.data.prepare --source='jsonl(path="pile/*.jsonl.zst")' \\
      --tokenizer='bytes()' --out=tokens/pile --workers=8

then, in a config:
  config.data.train = 'tokens(path="tokens/pile")'
"""

_tokenizer = None  # of a worker process


def prepare(
  source: str,
  tokenizer: str,
  out,
  *,
  workers: int = 1,
  bos: bool = False,
  eos: bool = True,
  progress: bool = True,
) -> store_lib.TokenStore:
  """Writes the token store `out` from two specs.

  Args: workers: processes that tokenize; 1 does it in this one. bos, eos: see `store.stored`.
  Raises: ValueError when `out` exists (nothing is overwritten), on wrong specs and on text that
    cannot be read.
  """
  source_part, part = registry.make('source', source), registry.make('tokenizer', tokenizer)
  if source_part.fact('tokens') and hasattr(source_part.obj, 'store'):
    raise ValueError(f'{source} holds ids already; name it in config.data.train as it is')
  if workers < 1:
    raise ValueError(f'workers={workers}: at least 1 is expected')
  docs, tok = source_part(), part()
  meta = dict(
    source=docs.fingerprint(),
    source_spec=str(source_part),
    tokenizer=tok.fingerprint(),
    tokenizer_spec=str(part),
    bos=bos and tok.bos is not None,
    eos=eos and tok.eos is not None,
  )
  with writer.StoreWriter(out, vocab_size=tok.vocab_size, **meta) as store:
    with writer.Watch(docs, str(source_part), progress) as watch:
      jobs = ((batch, bos, eos) for batch in writer.chunks(docs))
      for ids, lengths, size, words in _in_order(jobs, str(part), tok, workers):
        store.append(ids, lengths, bytes=size, words=words)
        watch.update(store)
    if not store.tokens:
      raise ValueError(
        f'{source}: no text in it; at least one document that is not empty is expected'
      )
  return store_lib.TokenStore.open(out)


def _in_order(jobs, spec: str, tok, workers: int):
  """Results in the order of jobs, at most four waiting for each worker, so that memory stays
  bounded.
  """
  if workers == 1:
    yield from (writer.encode(batch, tok, bos=bos, eos=eos) for batch, bos, eos in jobs)
    return
  # Processes are spawned: forking one that runs threads (as JAX does) can deadlock.
  pool = concurrent.futures.ProcessPoolExecutor(
    workers, multiprocessing.get_context('spawn'), _start, (spec,)
  )
  try:
    waiting = collections.deque()
    for job in jobs:
      waiting.append(pool.submit(_work, job))
      if len(waiting) >= 4 * workers:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)


def _start(spec: str):
  global _tokenizer
  _tokenizer = registry.make('tokenizer', spec)()


def _work(job):
  batch, bos, eos = job
  return writer.encode(batch, _tokenizer, bos=bos, eos=eos)


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(
    prog='python -m lmjax.data.prepare',
    description=__doc__.split('\n\n')[0],
    epilog=EXAMPLES + exits.PLAIN,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--source', required=True, help='a source, as in config.data.train')
  parser.add_argument('--tokenizer', required=True, help='a tokenizer, as in config.data.tokenizer')
  parser.add_argument(
    '--out', required=True, type=pathlib.Path, help='folder to write; must not exist'
  )
  parser.add_argument('--workers', type=int, default=1, help='processes that tokenize (default 1)')
  parser.add_argument(
    '--bos', action='store_true', help='put the beginning-of-text id before each document'
  )
  parser.add_argument(
    '--no-eos', action='store_true', help='leave out the end-of-text id after each document'
  )
  args = parser.parse_args(argv)
  start = time.monotonic()
  try:
    store = prepare(
      args.source, args.tokenizer, args.out, workers=args.workers, bos=args.bos, eos=not args.no_eos
    )
  except (ValueError, OSError) as e:
    print(f'error: {e}', file=sys.stderr)
    return 2
  took = time.monotonic() - start
  ratio = '' if store.bytes_per_token is None else f', {store.bytes_per_token:.3f} bytes/token'
  print(
    f'{args.out}: {len(store):,} documents, {len(store.tokens):,} tokens, '
    f'{len(store.tokens) / took:,.0f} tokens/s{ratio}'
  )
  return 0


if __name__ == '__main__':
  sys.exit(main())

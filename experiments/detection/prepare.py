"""The tokenizer of this experiment, 4,096 pieces of its training text, into $LMJAX_DETECTION.

  python experiments/detection/prepare.py

One that is there stays.
"""

import os
import pathlib
import sys

from lmjax import files
from lmjax import registry
from lmjax.experiment import checks

HERE = pathlib.Path(__file__).resolve().parent
PIECES = 4096


def main() -> int:
  if not os.environ.get('LMJAX_DETECTION'):
    print('LMJAX_DETECTION is not set: it names the folder of the tokenizer', file=sys.stderr)
    return 2
  into = pathlib.Path(os.environ['LMJAX_DETECTION']).expanduser() / 'tokenizer.json'
  if not into.exists():
    texts = registry.make('source', checks.load(HERE).changes['data.train'])()
    trained = registry.get('tokenizer', 'bpe').obj.train(iter(texts), PIECES)
    into.parent.mkdir(parents=True, exist_ok=True)
    files.write(into, trained.decode())
  print(into)
  return 0


if __name__ == '__main__':
  raise SystemExit(main())

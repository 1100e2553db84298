"""An optimizer's step on states that are kept as codes of a byte, block by block (`eight_bit`):

  state = decode(codes, scales);  update, new = step(gradient, state);  scales, codes = encode(new)

  mosaic  TPUs, one device: one pass, no state in float32 reaches main memory. For parameters whose
          blocks divide rows, where the step works on single elements; the others are xla's
  xla     everything, anywhere: as written

Compiled for a TPU, `xla` writes the new state in float32, turns it and reads it twice, for scales
and for codes, and spreads scales to all elements in main memory (`experiments/perf/fusions.py`).
"""

import functools

from lmjax.kernels import choice
from lmjax.kernels.blockwise_update import elementwise
from lmjax.kernels.blockwise_update import mosaic
from lmjax.kernels.choice import Implementation


def _xla(whole, plans, code):
  del plans, code
  return whole()


IMPLEMENTATIONS = {
  'mosaic': Implementation(mosaic.update, mosaic.refuses),
  'xla': Implementation(_xla),
}


def blockwise_update(whole, step, updates, codes, scales, known: dict, code, implementation=None):
  """What `whole()` gives: (updates, (codes, scales) of the new state).

  Args:
    whole: as written, all in float32.
    step: (updates, state in float32) -> (updates, new state).
    updates, codes, scales: trees; scales are None where the state is no code.
    known: path of a parameter -> its blocks: size, shape and whether they are `plain`, runs of the
      parameter's own order.
    code: has decode(codes, scales) and encode(values, scales), element by element.
    implementation: a name in IMPLEMENTATIONS; None for what config.kernels.blockwise_update says.
  """
  plans = functools.cache(lambda: elementwise.plans(step, updates, codes, scales, known))
  run = choice.pick('blockwise_update', IMPLEMENTATIONS, implementation, plans=plans)
  return run(whole, plans, code)

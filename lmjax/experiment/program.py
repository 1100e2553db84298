"""What a trial computes, as a digest: its programs as XLA gets them.

`carry` runs this file on two states of the code, so it needs nothing that is not there in both:
  python -P program.py FOLDER SCALE < [[arm, point, seed, steps], ...]
with the package to be looked at on PYTHONPATH; it prints one JSON line for each trial.
"""

import functools
import hashlib
import json
import re
import sys
from typing import Any

import jax

from lmjax import build
from lmjax import evaluate
from lmjax.experiment import code
from lmjax.experiment import checks
from lmjax.experiment import trials


def digest(resolved: dict[str, Any]) -> str:
  """16 hex digits over the programs of initialization, step and evaluation, and over the syntax of
  the parts that no program shows: data, tokenizer, evals.
  """
  return _digest(json.dumps(resolved | dict(seed=0), sort_keys=True, default=str))


@functools.cache
def _digest(text: str) -> str:
  resolved = json.loads(text)
  run = build.build(resolved)
  key, batch, state = jax.random.key(0), run.batch_shapes(), run.state_shapes
  evaluation = evaluate.make_eval_step(run)
  programs = (
    jax.jit(run.objective.init).lower(key, batch),
    jax.jit(run.tx.init).lower(state.params),
    jax.jit(run.step, donate_argnums=0).lower(state, batch, key),
    evaluation.lower(state.params, state.vars, batch, key),
  )
  whole = [normal(p.as_text()) for p in programs]
  shown = {k: v for k, v in resolved.items() if k != 'sample'}  # which changes no result
  whole.append(code.fingerprint(shown, traced=False))
  jax.clear_caches()
  return hashlib.sha256('\n'.join(whole).encode()).hexdigest()[:16]


def normal(text: str) -> str:
  """A program without the names of its functions, which are those of Python's."""
  names: dict[str, str] = {}
  text = re.sub(r'@[\w.$-]+', lambda m: names.setdefault(m[0], f'@{len(names)}'), text)
  return re.sub(r'"<[^"]*>"|0x[0-9a-f]{6,}', '_', text)


def main(folder: str, scale: str) -> None:
  e = checks.load(folder)
  arms = {a.name: a for a in e.arms}
  for arm, point, seed, steps in json.load(sys.stdin):
    try:
      t = trials.trial(e, scale, arms[arm], point, seed, steps)
      chain = t.chain() if hasattr(t, 'chain') else [t]
      found = ' '.join(digest(trials.resolve(x.base, x.changes)) for x in chain)
      line = dict(identity=t.identity, code=t.code, program=found)
    except (KeyError, ValueError) as error:
      line = dict(error=str(error))
    print(json.dumps(line), flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])

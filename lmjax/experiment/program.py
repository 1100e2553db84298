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


# Whose parts show in the programs, from wherever they are; `sample` changes no result.
IN_PROGRAMS = ('model', 'objective', 'optim', 'schedule', 'guard', 'sample')


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
  whole = [dataflow(p.compiler_ir()) for p in programs]
  rest = {k: v for k, v in resolved.items() if k not in IN_PROGRAMS}
  whole.append(code.fingerprint(rest, traced=False))
  jax.clear_caches()
  return hashlib.sha256('\n'.join(whole).encode()).hexdigest()[:16]


def dataflow(program) -> str:
  """A digest of what a program's results are computed by. Names, the order in which operations
  stand that do not need each other, and what is computed twice or for nothing are no part of it.
  """
  found = _Dataflow({op.attributes['sym_name'].value: op for op in program.body.operations})
  main = found.functions['main']
  outside = [str(main.attributes[x]) for x in ('arg_attrs', 'res_attrs') if x in main.attributes]
  return _hash(outside, found.block(main.regions[0].blocks[0], {}, 'main'), found.effects)


class _Dataflow:
  def __init__(self, functions):
    self.functions, self.effects = functions, []

  def block(self, block, outer, name, given=None) -> list[str]:
    """The digests of what it ends with. outer: {value: digest} of what surrounds it."""
    values = dict(outer)
    for i, x in enumerate(block.arguments):
      values[x] = given[i] if given else _hash(name, i, x.type)
    for op in block.operations:
      operands = [values[x] for x in op.operands]
      if op.operation.name in ('func.return', 'stablehlo.return'):
        return operands
      if op.operation.name == 'func.call':
        body = self.functions[op.attributes['callee'].value].regions[0].blocks[0]
        results = self.block(body, {}, name, operands)
      else:
        results = self._results(op, operands, values, name)
      values |= zip(op.results, results, strict=True)
    raise AssertionError(f'a block of {name} that does not end')

  def _results(self, op, operands, values, name) -> list[str]:
    names = sorted(getattr(a, 'name', a) for a in op.attributes)
    attributes = [(a, self._attribute(str(op.attributes[a]), name)) for a in names]
    inner = [
      self.block(b, values, f'{name} {i}') for i, r in enumerate(op.regions) for b in r.blocks
    ]
    types = [x.type for x in op.results]
    if op.operation.name in ('stablehlo.case', 'stablehlo.if'):  # in whatever order they end with
      return [_hash('case', attributes, operands, x) for x in zip(*inner, strict=True)]
    made = _hash(op.operation.name, attributes, operands, inner, types)
    if not types or 'true' in str(dict(attributes).get('has_side_effect')):
      self.effects.append(made)
    return [_hash(made, i) for i in range(len(types))]

  def _attribute(self, text: str, name) -> str:
    """Its text, with what is named there in the place of the name."""

    def named(m):
      op = self.functions[m[1] or m[2]]
      if op.operation.name != 'func.func':
        return normal(str(op))
      return _hash(self.block(op.regions[0].blocks[0], {}, name))

    return re.sub(r'@(?:"([^"]+)"|([\w.$-]+))', named, normal(text))


def _hash(*what) -> str:
  return hashlib.sha256(repr([str(x) for x in what]).encode()).hexdigest()


def normal(text: str) -> str:
  """Without addresses in memory."""
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

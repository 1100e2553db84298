"""Metrics of the first two steps of one recipe of each family, in small, on a fixed batch.

`python tests/golden/golden.py` shows what changed; with `--write` it refreshes metrics.json. A
change of a number here is a change of the
mathematics: say why in the commit that refreshes it.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from lmjax import build
from lmjax import config
from lmjax import metrics as metrics_lib

FILE = pathlib.Path(__file__).parent / 'metrics.json'
RECIPES = ('quickstart', 'gpt2:tiny', 'llama:tiny', 'bert_tiny', 'palm:tiny', 'gpt3:tiny')
SMALL = [
  ('model.width', '32'),
  ('model.depth', '2'),
  ('data.length', '16'),
  ('batch_tokens', '128'),
  ('model.mixer.head_dim', '8'),
]
# Matrix products round differently on other processors and compilers; a wrong sign, mask or factor
# moves far more.
TOLERANCE = 2e-4


def batch(rows: int, tokens: int):
  """Two documents and some padding in each row, the same on every machine."""
  rng = np.random.default_rng(0)
  split = tokens // 3
  segments = np.ones((rows, tokens), np.int32)
  segments[:, split:] = 2
  segments[:, -2:] = 0
  positions = np.tile(np.r_[0:split, 0 : tokens - split].astype(np.int32), (rows, 1))
  return {
    k: jnp.asarray(v)
    for k, v in dict(
      tokens=rng.integers(0, 256, (rows, tokens)).astype(np.int32),
      segments=segments,
      positions=positions,
    ).items()
  }


def measure(recipe: str) -> dict[str, dict[str, float]]:
  """{'step 1': {metric: value}, 'step 2': ...}."""
  run = build.build(config.resolve(config.load(recipe, SMALL)))
  state = run.init(jax.random.key(0))
  step = jax.jit(run.step, donate_argnums=0)
  out = {}
  for i in (1, 2):
    state, metrics = step(state, batch(run.rows, run.length + run.lookahead), jax.random.key(1))
    out[f'step {i}'] = {
      k: float(f'{v:.7g}') for k, v in metrics_lib.means(jax.device_get(metrics)).items()
    }
  return out


def differences(old: dict, new: dict) -> list[str]:
  """One line for each value that differs by more than the tolerance, or is not in both."""
  lines = []
  for step in sorted(old.keys() | new.keys()):
    a, b = old.get(step, {}), new.get(step, {})
    for key in sorted(a.keys() | b.keys()):
      x, y = a.get(key), b.get(key)
      if x is None or y is None or abs(x - y) > TOLERANCE * max(abs(x), abs(y), 1e-6):
        lines.append(f'{step} {key}: {x} -> {y}')
  return lines


def main():
  old = json.loads(FILE.read_text()) if FILE.exists() else {}
  new = {r: measure(r) for r in RECIPES}
  for r in RECIPES:
    for line in differences(old.get(r, {}), new[r]):
      print(r, line)
  if '--write' in sys.argv:
    FILE.write_text(json.dumps(new, indent=1) + '\n')


if __name__ == '__main__':
  main()

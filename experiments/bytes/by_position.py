"""Held-out bits a byte of a run of `megabyte` by the place of the predicted byte in its patch, once
and with strided inference.

command: python experiments/bytes/by_position.py runs/experiments/.../run --out=by_position.json

The paper finds bytes late in a patch to be predicted worse, and strided inference to remove most of
that. Reproduced if the mean of the second half exceeds that of the first by more than twice its
standard error over rows, and if strided inference takes away more than half of the excess. Reads
the newest checkpoint; nothing is trained.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from lmjax import feed as feed_lib
from lmjax import kinds
from lmjax import restore
from lmjax.nn import embedding


def losses(net, variables, batch) -> np.ndarray:
  """Bits (rows, T) of the next byte, NaN where a row has none."""

  @jax.jit
  def f(tokens, segments, positions):
    ctx = kinds.Ctx(positions_BT=positions[:, :-1], segments_BT=segments[:, :-1])
    logp = jax.nn.log_softmax(embedding.logits(net.apply(variables, tokens[:, :-1], ctx)))
    nll = -jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1)[..., 0] / math.log(2)
    real = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return jnp.where(real, nll, jnp.nan)

  return np.asarray(f(batch['tokens'], batch['segments'], batch['positions']), np.float64)


def by_place(bits_RT: np.ndarray, patch: int) -> tuple[list[float], float, float]:
  """(mean bits of each place, excess of the second half over the first, its standard error)."""
  by_RP = np.nanmean(bits_RT.reshape(len(bits_RT), -1, patch), axis=1)
  excess_R = by_RP[:, patch // 2 :].mean(1) - by_RP[:, : patch // 2].mean(1)
  error = excess_R.std(ddof=1) / math.sqrt(len(excess_R)) if len(excess_R) > 1 else math.nan
  return by_RP.mean(0).tolist(), float(excess_R.mean()), float(error)


def main() -> int:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('run', help='a run directory')
  p.add_argument('--out', help='a JSON file for the result')
  flags = p.parse_args()
  run, params, vars, step = restore.load(pathlib.Path(flags.run))
  net = run.architecture
  if not hasattr(net, 'strided_inference') or net.patch % 2:
    p.error(f'{flags.run}: a run of megabyte with an even patch is expected')
  feed = feed_lib.Feed(run, pathlib.Path(flags.run))
  batches, report = list(feed.valid()), dict(command=' '.join(sys.argv), step=int(step))
  for name, strided in (('once', False), ('strided', True)):
    model = dataclasses.replace(net, strided_inference=strided)
    found = [losses(model, {'params': params, **vars}, jax.device_get(b)) for b in batches]
    bits_RT = np.concatenate(found)
    bits_RT = bits_RT[~np.isnan(bits_RT).any(1)]
    places, excess, error = by_place(bits_RT, net.patch)
    report[name] = dict(bits=places, mean=float(np.mean(places)), excess=excess, error=error)
    print(name, json.dumps(report[name]))
  once, strided = report['once'], report['strided']
  report['rises'] = once['excess'] > 2 * once['error']
  report['strided_removes'] = 1 - strided['excess'] / once['excess'] if once['excess'] else 0.0
  print(f'rises {report["rises"]}, strided inference removes {report["strided_removes"]:.0%}')
  if flags.out:
    pathlib.Path(flags.out).write_text(json.dumps(report, indent=1) + '\n', encoding='utf-8')
  return 0


if __name__ == '__main__':
  sys.exit(main())

"""Held-out loss: every row of the validation set once, sums kept in float64 on the host, divided
once.
"""

from typing import Any

import jax
import numpy as np

from lmjax import metrics as metrics_lib


def make_eval_step(run: Any):
  """(params, vars, batch, key) -> (metrics as sums, sums over rows); compiled once."""

  @jax.jit
  def step(params, vars, batch, key):
    out = run.objective.loss(params, vars, batch, key, train=False)
    rows = {} if out.rows is None else metrics_lib.row_sums(*out.rows)
    return dict(loss=(out.sum, out.weight), **out.metrics), rows

  return step


def held_out(
  step,
  params,
  vars,
  batches,
  *,
  bytes_per_token: float | None,
  stop=lambda: False,
  moved=lambda i: None,
) -> dict[str, float]:
  """Scores of the validation set.

  Args:
    step: from `make_eval_step`. batches: iterable of batches on the device.
    bytes_per_token: UTF-8 bytes of the original text for each token, or None where unknown.
    stop: asked before each batch; once it says yes there are no scores, since a part of the set
      would be another number. moved: told the number of each batch that is done.

  Returns:
    loss (as trained), nll (nats a token) with its standard error over rows, perplexity = exp(nll),
    bits_per_byte = nll / (ln 2 x bytes a token), and `tokens` scored.
  """
  total: dict[str, Any] = {}
  sums: dict[str, Any] = {}
  for i, batch in enumerate(batches):
    if stop():
      return {}
    # The key depends on the place alone, so that objectives that draw at random score the same draw
    # every time.
    found, rows = jax.device_get(step(params, vars, batch, jax.random.key(i)))
    found, rows = jax.tree.map(np.float64, (found, rows))
    total = metrics_lib.merge(total, found)
    sums = metrics_lib.add_sums(sums, rows) if sums else rows
    moved(i)
  if not total:
    return {}
  out = metrics_lib.means(total)
  if 'nll' in out:
    out['perplexity'] = metrics_lib.perplexity(out['nll'])
    out['tokens'] = float(total['nll'][1])
    if sums:
      out['nll_stderr'] = metrics_lib.ratio_stderr(sums)
    if bytes_per_token:
      out['bits_per_byte'] = metrics_lib.bits_per_byte(out['nll'], bytes_per_token)
  return out

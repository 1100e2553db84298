"""Steps whose update was refused: what is recorded of them, and when the run goes back.

`bad_steps.jsonl` of the run directory gets one line a refused step: the step, the batch of the
stream, loss, gradient norm of each group, and the documents of the batch. The file is only added
to; a step that is done again after a restart stands there twice.

After `limit` refused steps in a row the state cannot be trusted (everything that this batch, or the
next, does to it is refused). With `rewind` the run goes back to `rewind` steps before the first of
them and leaves out `skip` batches from there on, as PaLM did by hand (arXiv:2204.02311, section
5.1: about 100 steps back, 200 to 500 batches left out). Otherwise it ends.
"""

import dataclasses
import json
from typing import Any, Mapping

from lmjax import exits
from lmjax import files
from lmjax import progress
from lmjax import tracking
from lmjax.data import skips as skips_lib
from lmjax.parallel import processes

FILE = 'bad_steps.jsonl'


@dataclasses.dataclass
class Rewind(Exception):
  """Asks the loop to go back to the state after `step` updates."""

  step: int


class BadSteps:
  """Records refused steps of a run and decides what follows.

  Args:
    settings: `config.bad_steps`. feed: gives `documents(update)` and `skips`. active: False on all
      processes but the first, which write nothing.
  """

  def __init__(self, settings: Mapping[str, Any], workdir: Any, feed: Any, *, active: bool = True):
    self._settings, self._workdir = settings, files.path_of(workdir)
    self._feed, self._active = feed, active

  def record(self, done: int, values: Mapping[str, float]) -> None:
    """Notes the refused step `done`. Raises Rewind or exits.Ended after too many in a row."""
    batch = self._feed.skips.batch(done - 1)
    progress.say(
      f'step {done}: loss {values["loss"]:.4g}, gradient norm {values["grad_norm"]:.4g}: no '
      f'update was made; batch {batch} is described in {FILE}'
    )
    norms = {k: v for k, v in values.items() if k.startswith('grad_norm')}
    line = dict(step=done, batch=batch, loss=values['loss'], streak=int(values['streak']), **norms)
    line = tracking.jsonable(line) | dict(documents=self._feed.documents(done - 1))
    if self._active:
      path = self._workdir / FILE
      with files.kept(path):
        files.append(path, json.dumps(line) + '\n')
    if values['streak'] >= self._settings['limit']:
      self._enough(done, int(values['streak']))

  def _enough(self, done: int, streak: int) -> None:
    s = self._settings
    entries = processes.from_primary(lambda: skips_lib.entries(self._workdir))
    rewinds = sum(str(e.get('why')).startswith(skips_lib.REWIND) for e in entries)
    if not s['rewind'] or rewinds >= s['times']:
      after = f' after {rewinds} rewinds' if rewinds else ''
      raise exits.Ended(
        exits.BROKEN,
        f'step {done}: the last {streak} updates were refused{after} (config.bad_steps.limit='
        f'{s["limit"]}), so training ends; the checkpoints before them are whole. {FILE} '
        'tells what the batches held; `python -m lmjax.checkpoint rewind`, then --skip_batches or '
        'another config, may lead on',
      )
    step = max(0, done - streak - s['rewind'])
    first = self._feed.skips.batch(step)
    why = f'{skips_lib.REWIND} to step {step} after {streak} refused updates up to step {done}'
    progress.say(f'{why}; batches {first} to {first + s["skip"] - 1} are left out')
    add = lambda: skips_lib.add(self._workdir, [(first, first + s['skip'])], why).ranges
    self._feed.skips = skips_lib.Skips.of(map(tuple, processes.from_primary(add)))
    raise Rewind(step)

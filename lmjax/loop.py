"""The loop: data -> step -> log -> evaluate -> save -> stop.

Invariants.
  1. The state after k updates has seen the first k batches that are not skipped; batch i is a pure
     function of (seed, i). A checkpoint holds the state, the fingerprint of the data plan and the
     skips; nothing else is needed to go on exactly.
  2. The metrics of a step are fetched after the next step was dispatched, so that the device never
     waits for logging; all of them before anything is saved, so that no refused step is missed.
     Between steps nothing else moves from or to the host but the next batch.
  3. Evaluation and sampling read the state and never change it.
  4. The last step is evaluated, saved and reported; what a stop left of that, a resume does. A run
     stopped by a signal is saved. A save that failed is tried again or ends the run.
  5. A step is saved before it is evaluated and sampled from, so that neither can cost it.
"""

import math
import signal
import time
from types import MappingProxyType
from typing import Any, Callable, Mapping

import jax

from lmjax import bad_steps
from lmjax import build as build_lib
from lmjax import evaluate
from lmjax import exits
from lmjax import flops as flops_lib
from lmjax import metrics as metrics_lib
from lmjax import mixing
from lmjax import progress
from lmjax import recompute
from lmjax.checkpoint import CheckpointError
from lmjax.checkpoint import Checkpointer
from lmjax.parallel import processes
from lmjax.stop import Stop
from lmjax.tracking import TrackingError
from lmjax.watchdog import Watchdog


UNSEEN = 100  # steps whose metrics may wait on the device, however seldom they are logged
SLOW_SAVE = 10.0  # seconds of waiting for a save that are worth a word


def step_fn(run: build_lib.Run):
  """The step as it is compiled: it takes the state's memory for the next one."""
  shardings = run.shardings()
  out = None if shardings is None else (shardings, None)
  return jax.jit(run.step, donate_argnums=0, out_shardings=out)


class Trainer:
  """One run from its first or restored state to its last step.

  Args:
    restore: step -> the state of the newest checkpoint up to that step, else the first state.
    workdir: where refused steps and skips are written.
  """

  def __init__(
    self,
    run: build_lib.Run,
    feed: Any,
    tracker: Any,
    checkpoints: Checkpointer,
    *,
    restore: Callable[[int], Any],
    workdir: Any,
    sampler=None,
    started=None,
  ):
    self.run, self.feed, self.tracker, self.checkpoints = run, feed, tracker, checkpoints
    self.config, self.sampler, self.restore = run.config, sampler, restore
    self.started = time.monotonic() if started is None else started
    self.key = jax.random.fold_in(jax.random.key(self.config['seed']), 1)
    self.step_fn = step_fn(run)
    self.recompute = recompute.Recompute(self.step_fn)
    self.eval_fn = evaluate.make_eval_step(mixing.by_source(run, feed.valid_names))
    self.flops = flops_lib.per_token(run)
    self.bad = bad_steps.BadSteps(
      self.config['bad_steps'], workdir, feed, active=jax.process_index() == 0
    )
    w = self.config['watchdog']
    self.watchdog = Watchdog(w['seconds'], end=w['exit'], process=jax.process_index())
    self.scores: dict[str, float] = {}
    self.evaluated = False
    self.last_time: float | None = None  # of the last logged step
    self.failed_saves, self.failed_lines = 0, 0  # in a row
    self.completed = None  # the last save that was

  def train(self, state, stop: Stop, undone: Mapping[str, Any] = MappingProxyType({})):
    """Runs to `config.steps` or until stopped; returns the last state. Every save is complete on
    return.

    Args:
      undone: where `state` is that of the last step already: whether `eval` and `sample` are still
        to be done.

    Raises exits.Ended where training broke down or a checkpoint cannot be written.
    """
    vote = processes.StopVote()
    size = dict(
      parameters=build_lib.counts(self.run)['total'],
      state_bytes=build_lib.state_bytes(self.run)['total'],  # of the optimizer, a parameter
      flops_per_token=self.flops.step_full,
    )
    self._track('model', int(state.step), size)
    self.devices = len(state.step.sharding.device_set)  # others may be there, and idle
    with progress.Bar(self.config['steps'], int(state.step)) as self.bar, self.watchdog:
      while True:
        try:
          state = self._stretch(state, stop, vote)
          break
        except bad_steps.Rewind as e:
          state = self.restore(e.step)
          self.tracker.resumed(int(state.step))
          self.bar.say(f'resumed at step {int(state.step)}')
      if undone:
        self._periodic(int(state.step), state, {'save': False, **undone}, stop)
      self._finish(state, stop)
    return state

  def _stretch(self, state, stop: Stop, vote):
    """Steps without a break in their order."""
    start, skipped = jax.device_get((state.step, state.skipped))
    start, steps = int(start), self.config['steps']
    self.skipped = int(skipped)
    self.waited, self.last_time, self.last_step = 0.0, None, None
    self.pending: list[tuple[int, Any]] = []  # steps whose metrics are still on the device
    batches = iter(())
    for done in range(start + 1, steps + 1):
      before = time.monotonic()
      batch = next(batches, None)
      if batch is None:
        batches = self._draw(state, done - 1)
        before = time.monotonic()
        batch = next(batches)
      self.waited += time.monotonic() - before
      self._begin(f'step {done}', first=done == start + 1)
      state, metrics = self._advance(state, batch, done)
      self.watchdog.beat(f'step {done} was dispatched')
      stopping = vote(done, stop.signal is not None)
      if self.pending and (self._logged(self.pending[-1][0]) or len(self.pending) >= UNSEEN):
        self._fetch()
      self.pending.append((done, metrics))
      due = self._due(done)
      first = done == start + 1  # its loss is shown at once
      if first or stopping or any(due.values()):
        self._fetch(log=first)
      self._periodic(done, state, due, stop)
      if stopping:
        stop.signal = stop.signal or signal.SIGTERM  # it may be another process that was told
        break
    vote.publish(steps)
    self._fetch()
    return state

  def _draw(self, state, done: int):
    """Batches behind step `done`, as far as the weights of the sources are known. Where they follow
    validation losses, those are looked at first.
    """
    if self.feed.looks(done):
      self._fetch()  # steps that were refused may lead back
      before = time.monotonic()
      scores = self._held_out(state, done, self.feed.held())
      self._track('mixture', done, self.feed.reweigh(done, scores))
      if self.last_time is not None:
        self.last_time += time.monotonic() - before
    return self.feed.train(done)

  def _advance(self, state, batch, done: int):
    every = self.config['recompute_every']
    if not every or done % every:
      return self.step_fn(state, batch, self.key)
    self._begin(f'step {done}, computed twice', first=not self.recompute.checked)
    state, metrics, wrong = self.recompute(state, batch, self.key)
    if wrong:
      self.bar.say(
        f'step {done}: silent data corruption: computed twice, it differed in {len(wrong)} arrays '
        f'({", ".join(wrong[:3])}); a third run agreed with one of the two, which is kept'
      )
      self._track('corruption', done, dict(arrays=wrong))
    return state, metrics

  def _logged(self, done: int) -> bool:
    return done % self.config['log_every'] == 0 or done == self.config['steps']

  def _due(self, done: int) -> dict[str, bool]:
    c = self.config
    last = done == c['steps']

    def hit(every):
      return last or bool(every) and done % every == 0

    return dict(
      eval=hit(c['eval']['every']) and self.feed.has_valid,
      sample=hit(c['sample']['every']),
      save=hit(c['checkpoint_every']) or 0 < self.failed_saves,
    )

  def _periodic(self, done: int, state, due, stop: Stop):
    if not any(due.values()):
      return
    before = time.monotonic()
    if due['save']:
      self.save(state, done)
    if due['eval']:
      self.scores = self.evaluate(state, done, stop)
      self._saved(lambda: self.checkpoints.score(done, self._scores_of(done)))
    if due['sample'] and not self._leaves(stop):
      self._sample(state, done)
    self.watchdog.beat(f'step {done} was evaluated or saved')
    if self.last_time is not None:  # these seconds are not the step's
      self.last_time += time.monotonic() - before

  def _begin(self, what: str, *, first: bool):
    """Tells the watchdog; what is done for the first time is compiled, which takes its own time."""
    self.watchdog.beat(f'{what}{", to be compiled," if first else ""} was begun', slow=first)

  def _leaves(self, stop: Stop) -> bool:
    """Whether a stop cuts short what only looks at the state. With several processes nobody may
    leave alone what all of them compute.
    """
    return stop.signal is not None and jax.process_count() == 1

  # ---------------------------------------------------------------- saving

  def _scores_of(self, done: int) -> dict[str, float]:
    known = self.scores.get('step') == done and 'nll' in self.scores
    return {'loss': self.scores['nll']} if known else {}

  def save(self, state, done: int):
    self._begin(f'the save of step {done}', first=False)
    before = time.monotonic()
    cursor, scores = self.feed.cursor(done), self._scores_of(done)

    def save():
      self.tracker.flush()  # no checkpoint without the metrics before it
      self.checkpoints.save(done, state, cursor, scores)

    self._saved(save)
    blocked = time.monotonic() - before
    if blocked > SLOW_SAVE:
      self.bar.say(
        f'step {done}: saving kept the loop waiting for {blocked:.0f} s; the disk is slow, or '
        'config.checkpoint_every too small'
      )
    self._track('save', done, dict(blocked=blocked, seconds=self.checkpoints.last_seconds))

  def _saved(self, fn) -> bool:
    """Whether fn(), a save or what follows it, met no failure; too many in a row end the run."""
    try:
      fn()
    except (CheckpointError, TrackingError) as e:
      self.failed_saves += 1
      self._failed(e, self.failed_saves)
      return False
    if self.checkpoints.completed != self.completed:
      self.completed, self.failed_saves = self.checkpoints.completed, 0
    return True

  def _track(self, kind: str, step: int, values):
    """Logs a line of metrics; too many in a row that cannot be written end the run."""
    try:
      self.tracker.log(kind, step, values)
      self.failed_lines = 0
    except TrackingError as e:
      self.failed_lines += 1
      self._failed(e, self.failed_lines)

  def _failed(self, e: Exception, times: int):
    retries = self.config['save_retries']
    if times > retries:
      raise exits.Ended(
        exits.DISK,
        f'{e}; training ends, since what it learns could be lost (config.save_retries={retries})',
      ) from e
    self.bar.say(f'{e}; tried again ({times} of config.save_retries={retries})')

  def _finish(self, state, stop: Stop):
    done = int(state.step)
    if stop.signal is not None:
      self.save(state, done)
    self.watchdog.beat('the last save is awaited', slow=True)
    while not self._saved(self.checkpoints.wait) or self.failed_saves:
      self.save(state, done)
    if stop.signal is not None:
      self.bar.say(
        f'stopped by {signal.Signals(stop.signal).name} at step {done}; the same command goes on '
        'from there'
      )
    skipped = int(state.skipped)
    if skipped:
      self.bar.say(f'{skipped} updates were refused')
    r = self.recompute
    if r.checked:
      self.bar.say(
        f'{r.checked} steps were computed twice, which took {r.seconds:.1f} s; {r.found} differed'
      )

  # ---------------------------------------------------------------- reports

  def evaluate(self, state, done: int, stop: Stop) -> dict[str, float]:
    scores = self._held_out(state, done, self.feed.valid(), lambda: self._leaves(stop))
    if scores:
      line = {**scores, 'loss': scores.get('nll', scores['loss']), 'objective': scores['loss']}
      line['loss_stderr'] = line.pop('nll_stderr', None)
      line['valid_tokens'] = line.pop('tokens', None)
      line.pop('nll', None)
      self._track('eval', done, line | dict(tokens=done * self.config['batch_tokens']))
      self.bar.say(f'step {done}: validation {describe(scores)}')
    return scores | {'step': done}

  def _held_out(self, state, done: int, batches, stop=lambda: False) -> dict[str, float]:
    self._begin(f'the evaluation of step {done}', first=not self.evaluated)
    self.evaluated = True
    return evaluate.held_out(
      self.eval_fn,
      state.params,
      state.vars,
      batches,
      bytes_per_token=self.feed.bytes_per_token,
      stop=stop,
      moved=lambda i: self.watchdog.beat(f'step {done}: batch {i} was evaluated'),
    )

  def _sample(self, state, done: int):
    if self.sampler is None or not self.config['sample']['tokens']:
      return
    self._begin(f'the sample of step {done}', first=True)  # one long program each time
    text = self.sampler(state.params, state.vars, done)
    self._track('sample', done, dict(prompt=self.config['sample']['prompt'], text=text))

  def _fetch(self, *, log: bool = False):
    """Takes the metrics of the pending steps from the device (blocking until the last of them is
    done), looks for refused updates, and logs the last step if it is its turn, or with `log`.
    """
    if not self.pending:
      return
    pending, self.pending = self.pending, []
    done, values = pending[-1][0], metrics_lib.means(jax.device_get(pending[-1][1]))
    self.watchdog.beat(f'step {done} was computed')
    if values['skipped'] > self.skipped:  # rarely: then those of the steps between count as well
      for step, metrics in pending:
        found = metrics_lib.means(jax.device_get(metrics))
        if not found['applied']:
          self.bad.record(step, found)
    self.skipped = values['skipped']
    self._saved(self.checkpoints.poll)
    if log or self._logged(done):
      self._log(done, values)

  def _log(self, done: int, values: dict[str, float]):
    now, c = time.monotonic(), self.config
    out = {**values, 'tokens': done * c['batch_tokens']}
    rate = None
    if self.last_time is not None and done > self.last_step:
      seconds = (now - self.last_time) / (done - self.last_step)
      rate = c['batch_tokens'] / seconds
      device = jax.devices()[0].device_kind
      out |= dict(
        step_time=seconds,
        tokens_per_second=rate,
        data_wait=self.waited / (done - self.last_step),
        **flops_lib.mfu(rate, self.flops, self.devices, device),
      )
    else:
      self.bar.say(f'first loss {values["loss"]:.4f} after {now - self.started:.1f} s')
    self.waited, self.last_time, self.last_step = 0.0, now, done
    self._track('train', done, out)
    left = None if rate is None else (c['steps'] - done) * c['batch_tokens'] / rate
    text = f'loss {values["loss"]:.4f}' + ('' if rate is None else f'  {rate:,.0f} tokens/s')
    self.bar.update(done, text, left)


def describe(scores: dict[str, float]) -> str:
  """'loss 1.5123 +- 0.0021 nats/token, perplexity 4.54, 2.182 bits/byte'."""
  if 'nll' not in scores:
    return f'loss {scores["loss"]:.4f}'
  error = scores.get('nll_stderr', math.nan)
  text = (
    f'loss {scores["nll"]:.4f}' + ('' if math.isnan(error) else f' ± {error:.4f}') + ' nats/token'
  )
  text += f', perplexity {scores["perplexity"]:.3f}'
  return text + (f', {scores["bits_per_byte"]:.4f} bits/byte' if 'bits_per_byte' in scores else '')

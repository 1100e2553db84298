"""The loop: data -> step -> log -> evaluate -> save -> stop.

Invariants.
  1. The state after k updates has seen the batches 0 ... k-1; batch k is a pure function of
     (seed, k). A checkpoint holds the state and the fingerprint of the data plan; nothing else is
     needed to go on exactly.
  2. The metrics of a step are fetched after the next step was dispatched, so that the device never
     waits for logging.
  3. Evaluation and sampling read the state and never change it.
  4. The last step is evaluated, saved and reported. A run stopped by SIGINT or SIGTERM is saved.
"""

import math
import signal
import time
from typing import Any

import jax

from lmjax import evaluate
from lmjax import flops as flops_lib
from lmjax import metrics as metrics_lib
from lmjax import progress
from lmjax.build import Run
from lmjax.checkpoint import Checkpointer


class Stop:
  """Turns the first SIGINT or SIGTERM into a flag; the second one is left to interrupt at once."""

  def __init__(self):
    self.signal: int | None = None

  def __enter__(self):
    self._old = {}
    for s in (signal.SIGINT, signal.SIGTERM):
      try:
        self._old[s] = signal.signal(s, self._catch)
      except ValueError:  # not the main thread: notebooks and tests
        pass
    return self

  def _catch(self, number, frame):
    del frame
    self.signal = number
    signal.signal(number, self._old[number])
    progress.say('stopping after this step; a second signal stops at once')

  def __exit__(self, *_):
    for s, old in self._old.items():
      signal.signal(s, old)


class Trainer:
  """One run from its first or restored state to its last step."""

  def __init__(
    self,
    run: Run,
    feed: Any,
    tracker: Any,
    checkpoints: Checkpointer,
    *,
    sampler=None,
    started=None,
  ):
    self.run, self.feed, self.tracker, self.checkpoints = run, feed, tracker, checkpoints
    self.config, self.sampler = run.config, sampler
    self.started = time.monotonic() if started is None else started
    self.key = jax.random.fold_in(jax.random.key(self.config['seed']), 1)
    shardings = run.shardings()
    self.step_fn = jax.jit(
      run.step, donate_argnums=0, out_shardings=None if shardings is None else (shardings, None)
    )
    self.eval_fn = evaluate.make_eval_step(run)
    self.flops = flops_lib.per_token(run)
    self.waited, self.last_time, self.last_step = 0.0, None, None
    self.scores: dict[str, float] = {}

  def train(self, state, stop: Stop):
    """Runs to `config.steps` or until stopped; returns the last state. Every save is complete on
    return.
    """
    c, start = self.config, int(state.step)
    pending = None
    batches = self.feed.train(start)
    with progress.Bar(c['steps'], start) as self.bar:
      for step in range(start, c['steps']):
        before = time.monotonic()
        batch = next(batches)
        self.waited += time.monotonic() - before
        state, metrics = self.step_fn(state, batch, self.key)
        done = step + 1
        if pending is not None:
          self._log(*pending)
          pending = None
        if done == start + 1 or done % c['log_every'] == 0 or done == c['steps']:
          pending = (done, metrics)
        if done == start + 1:
          self._log(*pending)  # the first loss is shown at once
          pending = None
        due = self._due(done)
        if any(due.values()) and pending is not None:
          self._log(*pending)
          pending = None
        self._periodic(done, state, due)
        if stop.signal is not None:
          break
      if pending is not None:
        self._log(*pending)
      self._finish(state, stop)
    return state

  def _due(self, done: int) -> dict[str, bool]:
    c = self.config
    last = done == c['steps']

    def hit(every):
      return last or bool(every) and done % every == 0

    return dict(
      eval=hit(c['eval']['every']) and self.feed.has_valid,
      sample=hit(c['sample']['every']),
      save=hit(c['checkpoint_every']),
    )

  def _periodic(self, done: int, state, due):
    if not any(due.values()):
      return
    before = time.monotonic()
    if due['eval']:
      self.scores = self.evaluate(state, done)
    if due['sample'] and self.sampler is not None and self.config['sample']['tokens']:
      self._sample(state, done)
    if due['save']:
      self.save(state, done)
    if self.last_time is not None:  # these seconds are not the step's
      self.last_time += time.monotonic() - before

  def save(self, state, done: int):
    scores = (
      {'loss': self.scores['nll']}
      if self.scores.get('step') == done and 'nll' in self.scores
      else {}
    )
    self.checkpoints.save(done, state, self.feed.cursor(done), scores)

  def evaluate(self, state, done: int) -> dict[str, float]:
    scores = evaluate.held_out(
      self.eval_fn,
      state.params,
      state.vars,
      self.feed.valid(),
      bytes_per_token=self.feed.bytes_per_token,
    )
    if scores:
      line = {**scores, 'loss': scores.get('nll', scores['loss']), 'objective': scores['loss']}
      line['loss_stderr'] = line.pop('nll_stderr', None)
      line['valid_tokens'] = line.pop('tokens', None)
      line.pop('nll', None)
      self.tracker.log('eval', done, line | dict(tokens=done * self.config['batch_tokens']))
      self.bar.say(f'step {done}: validation {describe(scores)}')
    return scores | {'step': done}

  def _sample(self, state, done: int):
    text = self.sampler(state.params, state.vars, done)
    self.tracker.log('sample', done, dict(prompt=self.config['sample']['prompt'], text=text))

  def _log(self, done: int, metrics):
    """Fetches the metrics of a step (blocking until it is done) and writes them."""
    self.checkpoints.poll()
    values = metrics_lib.means(jax.device_get(metrics))
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
        **flops_lib.mfu(rate, self.flops, jax.device_count(), device),
      )
    else:
      self.bar.say(f'first loss {values["loss"]:.4f} after {now - self.started:.1f} s')
    self.waited, self.last_time, self.last_step = 0.0, now, done
    self.tracker.log('train', done, out)
    if not values['applied']:
      self.bar.say(
        f'step {done}: loss {values["loss"]}, gradient norm {values["grad_norm"]}: not finite, no '
        'update was made'
      )
    left = None if rate is None else (c['steps'] - done) * c['batch_tokens'] / rate
    text = f'loss {values["loss"]:.4f}' + ('' if rate is None else f'  {rate:,.0f} tokens/s')
    self.bar.update(done, text, left)

  def _finish(self, state, stop: Stop):
    done = int(state.step)
    if stop.signal is not None:
      self.save(state, done)
      self.bar.say(
        f'stopped by {signal.Signals(stop.signal).name} at step {done}; the same command goes on '
        'from there'
      )
    skipped = int(state.skipped)
    if skipped:
      self.bar.say(f'{skipped} steps were not finite and changed nothing')
    self.checkpoints.wait()


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

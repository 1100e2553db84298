"""Fine-tuning a model on labelled rows: AdamW with bias correction, warm-up, then down to 0.

The step, the optimizer and the schedule are those of pretraining (`train.make_step`, the parts
adam, decay, clip and linear). Parameters are trained in float32 whatever the run keeps them in. A
last batch that is not full counts its rows alone. Rows are padded to a power of two from 32 up to
the longest length, so that few programs are compiled. Matrices decay, but for positions.

The same seed gives the same result: it draws the head, the order of the rows in each epoch, and
what dropout leaves out.
"""

import dataclasses
from typing import Any, Callable, NamedTuple, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
import numpy as np
import optax

from lmjax import kinds
from lmjax import registry
from lmjax import train as train_lib
from lmjax.evals import _classifier
from lmjax.parallel import facts as facts_lib
from lmjax.parallel import shard

SMALLEST, EVAL_ROWS = 32, 64
REFUSED = 0.1  # share of updates that may be refused, being not finite


class Diverged(ValueError):
  """A fine-tuning whose numbers are not finite."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a model is fine-tuned; see `GlueFinetuning`."""

  length: int
  epochs: int
  warmup: float
  decay: float
  b1: float
  b2: float
  eps: float
  clip: float
  layer_decay: float
  dropout: float
  head: str
  keep: str

  @property
  def optim(self) -> str:
    """The optimizer's spec."""
    clip = f'clip(norm={self.clip!r}) | ' if self.clip else ''
    adam = f'adam(b1={self.b1!r}, b2={self.b2!r}, eps={self.eps!r})'
    return f'{clip}{adam} | decay(rate={self.decay!r})'


class Rows(NamedTuple):
  """ids: int32 arrays, at least one token each. labels: classes, or float numbers."""

  ids: list[np.ndarray]
  labels: np.ndarray


def chain(spec: str, facts):
  """The optimizer of a spec. Raises ValueError naming the part's argument."""
  made = ((n, part()) for n, part in registry.make_chain('optim', spec, facts=facts).items())
  return optax.named_chain(*((n, optax.with_extra_args_support(t)) for n, t in made))


def factors(steps: int, warmup: float) -> np.ndarray:
  """Factors of the peak rate at each update, float32; a warm-up of at least one update less than
  all.
  """
  warm = min(int(warmup * steps + 0.5), steps - 1)
  schedule = registry.make('schedule', f'linear(warmup={warm})', steps=steps)()
  return np.asarray(schedule(jnp.arange(steps)))


def bucket(tokens: int, longest: int) -> int:
  """The padded length of rows: a power of two from SMALLEST on, at most `longest`."""
  return min(longest, max(SMALLEST, 1 << (tokens - 1).bit_length()))


def batch(rows: Rows, chosen: Sequence[int], size: int, longest: int) -> dict[str, np.ndarray]:
  """`size` rows, of which the last ones are empty and weigh 0 where fewer are chosen."""
  ids = [rows.ids[i] for i in chosen]
  steps = bucket(max(map(len, ids)), longest)
  tokens = np.zeros((size, steps), np.int32)
  segments, last = np.zeros_like(tokens), np.zeros(size, np.int32)
  labels, weights = np.zeros(size, rows.labels.dtype), np.zeros(size, np.float32)
  for r, (i, x) in enumerate(zip(chosen, ids)):
    tokens[r, : len(x)], segments[r, : len(x)], last[r] = x, 1, len(x) - 1
    labels[r], weights[r] = rows.labels[i], 1
  positions = np.broadcast_to(np.arange(steps, dtype=np.int32), tokens.shape)
  found = dict(tokens=tokens, segments=segments, positions=positions)
  return placed(found | dict(last=last, labels=labels, weights=weights))


def placed(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
  """The arrays with their rows divided over the current mesh; as they are without one."""
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    return arrays

  def put(x):
    where = NamedSharding(mesh, shard.spec(('batch', 'time')[: x.ndim]))
    return jax.make_array_from_callback(x.shape, where, lambda i: x[i])

  return {k: put(x) for k, x in arrays.items()}


def rounded(rows: int) -> int:
  """Rows, rounded up to what the current mesh divides them over."""
  pieces = shard.sharing(shard.mesh().shape)
  return -(-rows // pieces) * pieces


class Tuner:
  """Fine-tunes one model, from the same start each time, for one kind of output.

  Args:
    architecture, variables: the model; never changed. outputs: of the head. numbers: whether the
      labels are numbers and not classes.
  """

  def __init__(self, architecture, variables, settings: Settings, outputs: int, numbers: bool):
    model, s = architecture.model, settings
    self._settings = s
    self._params = variables['params']
    self._vars = {k: v for k, v in variables.items() if k != 'params'}
    head = _classifier.Head(outputs, s.head == 'tanh', s.dropout, model.scheme)
    self._classifier = _classifier.Classifier(architecture, head, numbers)
    one = np.zeros((rounded(1), 1), np.int32)
    ctx = kinds.Ctx(positions_BT=one, segments_BT=one)
    boxed = jax.eval_shape(architecture.init, jax.random.key(0), one, ctx)['params']
    facts = dict(body=facts_lib.facts(boxed))
    facts['head'] = facts_lib.facts(jax.eval_shape(self._head, jax.random.key(0)))
    self._tx = chain(s.optim, facts)
    of_body = _classifier.lr_factors(model, facts['body'], facts_lib.unbox(boxed), s.layer_decay)
    of_head = jax.tree.map(lambda _: 1.0, facts['head'], is_leaf=facts_lib.is_fact)
    self._lr_factors = dict(body=of_body, head=of_head)
    self._first = jax.jit(self._start)
    self._step = jax.jit(self._update, donate_argnums=0)
    self._predict = jax.jit(self._outputs)

  def _head(self, rng):
    return self._classifier.init_head(rng, rounded(1))

  def _start(self, params, vars, rng):
    head = facts_lib.unbox(self._head(rng))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    return train_lib.init_state(dict(params=dict(body=wide, head=head), **vars), self._tx)

  def _update(self, state, batch, key, lr):
    step = train_lib.make_step(
      self._classifier,
      self._tx,
      lambda _: 1.0,
      peak_lr=lr,
      lr_factors=self._lr_factors,
    )
    return step(state, batch, key)[0]

  def _outputs(self, params, vars, batch):
    z_BC, _, _ = self._classifier.apply(params, vars, batch, None, False)
    return shard.shard(z_BC, None, None)  # every process reads all of it

  def tune(self, rows: Rows, *, lr: float, size: int, seed: int, judge: Callable) -> Any:
    """What `judge(predict)` says of the model after the last epoch, or of that after the best one
    (keep='best'), the first of equals by `.key`; predict(list of ids) gives z.

    Raises Diverged where more than a tenth of the updates are not finite.
    """
    key = jax.random.key(seed)
    state = self._first(self._params, self._vars, jax.random.fold_in(key, 0))
    n, drop, best = len(rows.ids), jax.random.fold_in(key, 1), None
    each = -(-n // size)
    rates = lr * factors(self._settings.epochs * each, self._settings.warmup)
    for epoch in range(self._settings.epochs):
      order = np.random.default_rng((seed, epoch)).permutation(n)
      for i in range(each):
        chosen = order[i * size : (i + 1) * size]
        given = batch(rows, chosen, rounded(size), self._settings.length)
        state = self._step(state, given, drop, rates[epoch * each + i])
      if self._settings.keep == 'best' or epoch == self._settings.epochs - 1:
        found = judge(lambda ids, state=state: self.predict(state, ids))
        best = found if best is None or found.key > best.key else best
    refused = int(jax.device_get(state.skipped))
    if refused > REFUSED * len(rates):
      raise Diverged(f'{refused} of {len(rates)} updates were not finite')
    return best

  def predict(self, state, ids: Sequence[np.ndarray]) -> np.ndarray:
    """The outputs of each row, float32 (rows, outputs). Raises Diverged where they are not
    finite.
    """
    rows = Rows(list(ids), np.zeros(len(ids), np.int32))
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    size, out = rounded(EVAL_ROWS), [None] * len(ids)
    for start in range(0, len(order), size):
      mine = order[start : start + size]
      given = batch(rows, mine, size, self._settings.length)
      found = np.asarray(jax.device_get(self._predict(state.params, state.vars, given)))
      for i, z in zip(mine, found):
        out[i] = z
    z = np.stack(out)
    if not np.isfinite(z).all():
      raise Diverged('the outputs are not finite')
    return z

"""Contracts of the parts that train."""

from typing import Any, NamedTuple, Protocol

import jax


class Loss(NamedTuple):
  """Sums, never means: the step divides once by all weights. `metrics`: name -> (sum, weight).

  `rows` is (negative log-likelihood, weight) of each row, for standard errors, or None where rows
  do not stand alone.
  """

  sum: jax.Array
  weight: jax.Array
  metrics: dict[str, tuple[jax.Array, jax.Array]]
  vars: Any
  rows: tuple[jax.Array, jax.Array] | None = None


class Objective(Protocol):
  """Owns its networks. A batch: `tokens`, `segments`, `positions`, int32 (B, T + lookahead), and
  what `data/fields.py` lists.

  Collections of variables:
    params: trained by the optimizer.
    backward: state of backward passes. Each leaf, floating, enters a `jax.custom_vjp`, and what
      that returns as its cotangent is the leaf's new value, not a gradient; the step differentiates
      the loss with respect to it and puts the cotangent in its place. A leaf must be used exactly
      once in `loss`: cotangents of several uses would be added, and that of none is 0. `loss` reads
      the collection and returns it as it was.
    vars, and any other: what a training pass changes, such as running statistics, and returns.
  All but `params` are the argument `vars`. Each micro-batch of a step begins with what the one
  before it left; a refused step puts all of them back. Passes other than those of the step itself
  (train=False, an optimizer's obj_fn and sample_fn) read them, and what they return is dropped.

  Facts: couples = 'none' (the loss of a batch is the sum over its rows), 'micro' (rows of a
    micro-batch belong together, so that their number is a setting of the method) or 'global';
    lookahead = tokens needed beyond the inputs; causal = the causality demanded of the model, or
    None; reads = fields of the batch that it cannot do without; weights = whether it honours those
    that a batch may have; holds = {collection: directory of a run}, whose variables become that
    collection before the first step, to stay as they are; memory = collections that are what it
    remembers of this run, and begin anew in a run that begins from it; used_as = the objective, a
    part, whose loss its own is where train=False and whose variables are all but those of `holds`
    and `memory`, None for itself; twice = False where its gradient is handed over as a constant, so
    that there is no second derivative.

  Context: sources = names of the sources in the order of `source`; learning_rate = step -> its
    value.
  """

  def init(self, rng, batch) -> dict[str, Any]:
    """Variables, boxed with their facts: a dictionary of collections."""

  def loss(self, params, vars, batch, rng, train: bool = True) -> Loss: ...

  def variables(self, params, vars) -> tuple[Any, Any]:
    """(params, vars) of the network that is kept, as `config.model.architecture` takes them;
    optional, of objectives with more than one.
    """

  def passes(self, steps: int, source: int) -> list[Any]:
    """As `Architecture.passes`, of all its networks; optional: else those of the architecture."""

  def places(self, batch, rng) -> Any:
    """(inputs, targets_BT, weights_BT), for objectives that do something else at the same places;
    optional. `of_places` names the arguments that it depends on.
    """


class Optim(Protocol):
  """`part(...)` returns an Optax transformation whose update is subtracted after scaling by lr.

  The step passes value (the loss), rng, obj_fn(params, one_in=1) -> the loss, and
  sample_fn(params, rng, one_in=1) -> (sum, weight) of the objective's `sample`, both over one in
  `one_in` rows of the batch. Its field `metrics`, {name: scalar}, is logged as `optim/<part>/...`.

  Facts: needs = which of these it asks for; owns_lr = not scaled by the schedule; gradient_at =
    (its state -> the update that leads to where the gradient is taken), of a part that averages;
    retract = ((its new state, parameters, facts) -> parameters behind the step), of one that
    factorizes anew; moments = False where it keeps a basis, which may have a parameter's shape.
  """


class Schedule(Protocol):
  """`part(steps=)` returns a function. `extendable`: more steps leave past factors as they were."""

  def __call__(self, step) -> jax.Array: ...


class Guard(Protocol):
  """Traced. What it remembers is in the state, and moves on where the step is refused as well."""

  def init(self) -> Any: ...

  def judge(self, state, loss, grad_norm) -> tuple[jax.Array, Any]:
    """(whether the update may be made, the new state)."""


class Stage(NamedTuple):
  """A run as surgery sees it.

  config: resolved. model: `models.Model`. network: (params, vars) -> those that the architecture
    takes. variables, facts: by collection.
  """

  config: dict[str, Any]
  model: Any
  network: Any
  variables: dict[str, Any]
  facts: dict[str, Any]


class Surgery(Protocol):
  """`config.init_from='part(run="DIR", ...)'`: a run that begins from what another one learnt.

  The part has a field `run`, the run directory (or one of its checkpoints) to begin from.
  """

  run: str

  def __call__(self, old: Stage, new: Stage, rng) -> dict[str, Any]:
    """This run's variables by collection; `new` has its initial ones. Shapes are checked behind it.
    Raises ValueError for two runs that it does not suit.
    """

  def optimizer(self, old: Stage, new: Stage, old_opt: Any, new_opt: Any, rng) -> Any:
    """This run's optimizer state; optional: without it the optimizer begins anew."""


class TrackerSession(Protocol):
  """A run of a tracker. `id` is what `open` takes to go on with it."""

  id: str

  def log(self, step: int, time: float, numbers: dict[str, float], texts: dict[str, str]) -> None:
    """Numbers, NaN and infinities among them, and texts by tag, such as 'train/loss'; time is in
    seconds since the epoch. After a resume steps begin again below the last one.
    """

  def close(self) -> None: ...


class Tracker(Protocol):
  """`part(...)` returns an object that opens sessions. It works in a thread of its own, and may
  raise whatever it likes: a tracker that fails is told once and left out (`lmjax/channels.py`).

  Facts: package = the module that it cannot do without, which the extra of the same name installs.
  """

  def suits(self, workdir: Any) -> None:
    """Optional: raises ValueError for a run directory that it cannot be used with; asked before
    training begins.
    """

  def open(self, workdir: Any, config: dict[str, Any], run: str | None) -> TrackerSession:
    """Begins a run, or goes on with `run`; config is flat, keys with dots."""

"""A resolved config -> the objects of a run, all checked before a device does any work."""

import dataclasses
import functools
import math
from typing import Any, Callable, NamedTuple, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P, SingleDeviceSharding
import optax

from lmjax import checks
from lmjax import config as config_lib
from lmjax import registry
from lmjax import specs
from lmjax import train
from lmjax.data import fields as fields_lib
from lmjax.kernels import choice
from lmjax.models import model as model_lib
from lmjax.parallel import facts as facts_lib
from lmjax.parallel import mesh as mesh_lib
from lmjax.parallel import offload
from lmjax.parallel import shard

ConfigError = config_lib.ConfigError
named = config_lib.named


class Placement(NamedTuple):
  """Where a leaf lies on a mesh: its partition spec and the shape of one piece."""

  spec: P
  piece: tuple[int, ...]


class Transform(NamedTuple):
  """A transform of rows: its name in the chain, the function, whether validation rows pass it, and
  whether it makes one example of a whole row.
  """

  name: str
  fn: Callable
  task: bool
  joins: bool


def is_placement(x) -> bool:
  return isinstance(x, Placement)


@dataclasses.dataclass(frozen=True)
class Run:
  """What a config means.

  config: resolved. model: settings; architecture: the Linen module.
  lookahead: tokens that a row of the batch has beyond the inputs; data_lookahead: those that a row
    of data has beyond `length`, before transforms. rows: of a batch over all hosts; transforms: of
    rows; fields: of a row behind them, abstract.
  facts, shapes: of the variables. schedule: step -> factor. tx: the named optimizer chain. step:
    (state, batch, key) -> (state, metrics), not jitted. guard: refuses updates, or None.
  """

  config: dict[str, Any]
  tokenizer: Any
  model: model_lib.Model
  architecture: Any
  objective: Any
  lookahead: int
  data_lookahead: int
  rows: int
  transforms: tuple[Transform, ...]
  fields: dict[str, jax.ShapeDtypeStruct]
  facts: Any
  shapes: Any
  schedule: Callable
  tx: Any
  lr_factors: Any
  guard: Any
  step: Callable

  @property
  def length(self) -> int:
    """Tokens in a row of data, before transforms."""
    return self.config['data']['length']

  def network(self, params, vars) -> tuple[Any, Any]:
    """(params, vars) as the architecture takes them: those of the network that is kept."""
    own = getattr(self.objective, 'variables', None)
    return (params, vars) if own is None else own(params, vars)

  def batch_shapes(self):
    """The abstract global batch."""
    return fields_lib.batch(self.rows, self.fields)

  def init(self, key) -> train.State:
    """The first state; under a mesh it is created sharded."""

    def make(key):
      batch = fields_lib.ones(self.rows, self.fields)
      variables = facts_lib.unbox(self.objective.init(key, batch))
      return train.init_state(variables, self.tx, self.guard)

    shardings = self.shardings()
    return (
      jax.jit(make, out_shardings=shardings)(key) if shardings is not None else jax.jit(make)(key)
    )

  @functools.cached_property
  def state_shapes(self) -> train.State:
    """The abstract state."""
    return jax.eval_shape(lambda v: train.init_state(v, self.tx, self.guard), self.shapes)

  def choices(self, platform: str = ''):
    """A context in which operations run as the config says, as if on this platform."""
    return choice.using(platform, **self.config['kernels'])

  def placements(self, mesh):
    """The state with a `Placement` for each leaf on a mesh; moments lie like their parameters.

    Raises ValueError naming a parameter that does not divide.
    """
    by_path = {}
    for (_, *keys), fact, shape in facts_lib.items(self.facts, self.shapes):
      placement = Placement(*shard.pieces(mesh, fact.names, shape, '/'.join(keys)))
      by_path[tuple(keys)] = shape, placement

    def place(path, leaf):
      keys = tuple(getattr(k, 'key', None) for k in path)
      for n in range(len(keys)):
        found = by_path.get(keys[n:])
        if found is not None and found[0] == leaf.shape:
          return found[1]
      return Placement(P(), leaf.shape)

    return jax.tree_util.tree_map_with_path(place, self.state_shapes)

  def shardings(self):
    """Shardings of the state on the current mesh; without one None, unless some of it lies on the
    host.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty and not self.config['offload']:
      return None
    if mesh.empty:
      device = jax.local_devices()[0]
      found = jax.tree.map(lambda _: SingleDeviceSharding(device), self.state_shapes)
    else:
      at = lambda p: NamedSharding(mesh, p.spec)
      found = jax.tree.map(at, self.placements(mesh), is_leaf=is_placement)
    if not self.config['offload']:
      return found
    return found.replace(opt=offload.placed(found.opt, self.state_shapes.opt))


def tokenizer(resolved: dict):
  """The tokenizer of a config. Raises ConfigError naming the key."""
  return named(
    'data.tokenizer', lambda: registry.make('tokenizer', resolved['data']['tokenizer'])()
  )


def transforms(c: dict, tok) -> tuple[Transform, ...]:
  """The transforms of `config.data.transforms`. Raises ConfigError naming the key."""
  d = c['data']
  if not d['transforms']:
    return ()
  chain = registry.make_chain('transform', d['transforms'], tokenizer=tok, length=d['length'])
  for name, part in chain.items():
    if part.fact('joins') and d['mask_documents']:
      raise ConfigError(
        f'config.data.transforms: {name} makes one example of all documents of a row, which '
        'config.data.mask_documents=True keeps apart; set it to False (and config.data.pack to '
        'pad() for one document a row)'
      )
  make = lambda part: named('data.transforms', part)
  facts = lambda part: (part.fact('task'), part.fact('joins'))
  return tuple(Transform(name, make(part), *facts(part)) for name, part in chain.items())


def data_lookahead(lookahead: int, made: Sequence[Transform]) -> int:
  """Tokens of a row of data beyond its length: none where a transform makes one example of the row,
  which has targets of its own, so that each token lies in one row.
  """
  return 0 if any(t.joins for t in made) else lookahead


def fields_of(length: int, made: Sequence[Transform], objective: registry.Part):
  """The fields of a row of the batch."""
  return fields_lib.of(length, [(t.name, t.fn) for t in made], objective.fact('reads'))


def model_length(fields: dict[str, jax.ShapeDtypeStruct], lookahead: int) -> int:
  """Tokens that the longest of the model's inputs has."""
  encoder = fields.get('encoder_tokens')
  return max(fields['tokens'].shape[0] - lookahead, 0 if encoder is None else encoder.shape[0])


def vocabulary(c: dict, tok) -> int:
  """Ids that the model knows. Raises ConfigError where the tokenizer has more."""
  vocab = c['model']['vocab'] or tok.vocab_size
  if vocab < tok.vocab_size:
    raise ConfigError(
      f'config.model.vocab={vocab}: config.data.tokenizer={c["data"]["tokenizer"]!r} has '
      f'{tok.vocab_size} ids; give at least that, or 0 to follow it'
    )
  return vocab


def build(resolved: dict) -> Run:
  """Builds and checks everything but the data, abstractly. Raises ConfigError (or ValueError)
  naming the key.
  """
  c, m, d = resolved, resolved['model'], resolved['data']
  checks.places(c)
  tok = tokenizer(c)
  rows = checks.batch_rows(c)
  asked = registry.make('objective', c['objective'])
  lookahead, made = asked.fact('lookahead'), transforms(c, tok)
  ahead = data_lookahead(lookahead, made)
  fields = named('data.transforms', lambda: fields_of(d['length'] + ahead, made, asked))
  how = named('mesh', lambda: mesh_lib.how(c['mesh']))
  given = vocabulary(c, tok), model_length(fields, lookahead), how, not d['mask_documents']
  model = named('model', lambda: model_lib.resolve(m, *given))
  architecture = registry.make('architecture', m['architecture'], model=model)()
  objective_part = registry.make(
    'objective',
    c['objective'],
    model=architecture,
    tokenizer=tok,
    sources=tuple(specs.weighted(d['train'])),
    learning_rate=lambda step: c['peak_lr'] * schedule(step),  # made below
  )
  checks.parts(c, model, objective_part)
  checks.fields(fields, model, asked)
  objective = named('objective', objective_part)

  one = fields_lib.batch(1, fields)
  boxed = named('model', lambda: jax.eval_shape(objective.init, jax.random.key(0), one))
  facts, shapes = facts_lib.facts(boxed), facts_lib.unbox(boxed)
  optim = registry.make_chain('optim', c['optim'], facts=facts['params'])
  tx = chain(c, optim, objective)
  schedule = named('schedule', registry.make('schedule', c['schedule'], steps=c['steps']))
  if any(part.fact('owns_lr') for _, part in optim.items()):
    schedule = lambda step: jnp.ones(())
  lr_factors = jax.tree.map(
    lambda f, s: model.scheme.init.lr(f, s.shape),
    facts['params'],
    shapes['params'],
    is_leaf=facts_lib.is_fact,
  )
  guard = registry.make('guard', c['guard'])() if c['guard'] else None
  groups = jax.tree_util.tree_map_with_path(lambda path, _: group(path), shapes['params'])
  step = train.make_step(
    objective,
    tx,
    schedule,
    peak_lr=c['peak_lr'],
    lr_factors=lr_factors,
    groups=groups,
    micro=c['micro_batches'],
    gradient_at=gradient_at(optim),
    retract=retract(optim, facts['params']),
    guard=guard,
    far=far(c, optim),
  )
  run = Run(
    c,
    tok,
    model,
    architecture,
    objective,
    lookahead,
    ahead,
    rows,
    made,
    fields,
    facts,
    shapes,
    schedule,
    tx,
    lr_factors,
    guard,
    step,
  )
  named(
    'model', lambda: jax.eval_shape(step, run.state_shapes, run.batch_shapes(), jax.random.key(0))
  )
  return run


def chain(c: dict, parts: registry.Chain, objective):
  """The optimizer: a named Optax chain, so that its state is a dictionary by part."""
  for name, part in parts.items():
    for need in part.fact('needs'):
      if need == 'sample_fn' and not hasattr(objective, 'sample'):
        raise ConfigError(
          f'config.optim: {name} needs sampled labels, which objective {c["objective"]!r} does not '
          'give'
        )
      if need == 'obj_fn' and not registry.make('objective', c['objective']).fact('twice'):
        raise ConfigError(
          f'config.optim: {name} needs second derivatives, which objective {c["objective"]!r} does '
          'not have'
        )
  made = [(name, named('optim', part)) for name, part in parts.items()]
  return optax.named_chain(*((n, optax.with_extra_args_support(t)) for n, t in made))


def gradient_at(parts: registry.Chain):
  """Where gradients are taken, see `kinds.Optim`: the optimizer's state -> an update, or None."""
  found = {n: at for n, part in parts.items() if (at := part.fact('gradient_at')) is not None}
  if len(found) > 1:
    raise ConfigError(
      f'config.optim: {" and ".join(found)} each take the gradient elsewhere than at the '
      'parameters; at most one such part is expected'
    )
  return next((functools.partial(_at, *item) for item in found.items()), None)


def _at(name: str, where, opt):
  return where(opt[name])


def retract(parts: registry.Chain, facts):
  """How parameters are moved behind the step: (optimizer's state, parameters) -> parameters, or
  None.
  """
  found = [(n, f) for n, part in parts.items() if (f := part.fact('retract')) is not None]

  def moved(opt, params):
    for name, fn in found:
      params = fn(opt[name], params, facts)
    return params

  averaging = [n for n, part in parts.items() if part.fact('gradient_at') is not None]
  if found and averaging:
    raise ConfigError(
      f'config.optim: {found[0][0]} moves the parameters behind the step, and {averaging[0]} keeps '
      'an average of them that would not follow; one of the two is expected'
    )
  return moved if found else None


def far(c: dict, parts: registry.Chain):
  """How the optimizer runs where `config.offload` keeps its state on the host, or None. Raises
  ConfigError where a part needs its state outside of the update.
  """
  for name, part in parts.items() if c['offload'] else ():
    for fact in ('gradient_at', 'retract'):
      if part.fact(fact) is not None:
        raise ConfigError(
          f"config.offload={c['offload']!r}: config.optim's {name} needs its state outside of the "
          "update, where it is on the host; '' or another optimizer is expected"
        )
  return offload.update if c['offload'] else None


def group(path) -> str:
  """The group that a parameter counts to: the part of a layer it belongs to, or its own module."""
  keys = [k.key for k in path]
  return '/'.join(keys[:3] if keys[0].startswith('segment') else keys[:1])


def counts(run: Run) -> dict[str, int]:
  """Parameters by group, and the total."""
  out: dict[str, int] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(run.shapes['params']):
    out[group(path)] = out.get(group(path), 0) + math.prod(leaf.shape)
  return out | {'total': sum(out.values())}


def nbytes(tree) -> int:
  """Bytes of abstract arrays."""
  return sum(math.prod(s.shape) * s.dtype.itemsize for s in jax.tree.leaves(tree))


def state_bytes(run: Run) -> dict[str, float]:
  """Bytes of optimizer state a parameter, by part, and the total."""
  n = counts(run)['total']
  out = {name: nbytes(state) / n for name, state in run.state_shapes.opt.items()}
  return out | {'total': sum(out.values())}


def mesh(resolved: dict):
  return mesh_lib.make(resolved['mesh'])

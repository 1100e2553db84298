"""Whether one model can be grown into another: what differs but in size is refused."""

import jax
import jax.numpy as jnp

from lmjax import build as build_lib
from lmjax.parallel import facts as facts_lib

SIZES = ('heads', 'kv_heads', 'hidden', 'mult', 'multiple_of')  # arguments of parts that may grow


def check(old, new):
  """Raises ValueError where two stages (`kinds.Stage`) differ in more than size."""
  for where, a, b in _parts(old, new):
    if _unsized(a) != _unsized(b):
      raise ValueError(f'{where} is {_word(a)} there and {_word(b)} here: {LIKE}')
  _constants(old, new)
  _layers(old.model, new.model)
  same_vocabulary(old, new)
  for stage, where in ((old, 'there'), (new, 'here')):
    for name, tree in stage.variables.items():
      if name != 'params' and jax.tree.leaves(tree):
        raise ValueError(
          f'the model {where} has variables beside its parameters ({name}), and how they grow is '
          'not known: parts without masks and running statistics are expected'
        )


def same_vocabulary(old, new):
  """Raises ValueError where two stages do not read the same tokens."""
  fingerprint = lambda stage: build_lib.tokenizer(stage.config).fingerprint()
  if old.model.vocab != new.model.vocab or fingerprint(old) != fingerprint(new):
    raise ValueError(
      f'config.data.tokenizer={old.config["data"]["tokenizer"]!r} there has {old.model.vocab} ids '
      f'and {new.config["data"]["tokenizer"]!r} here {new.model.vocab}: the same vocabulary is '
      'expected'
    )


LIKE = 'models that differ in width, hidden units and numbers of heads and layers are expected'


def _parts(old, new):
  """(key, part there, part here) of all that must be of one kind."""
  a, b = old.model, new.model
  key = 'config.model.architecture'
  yield key, old.config['model']['architecture'], new.config['model']['architecture']
  for name in ('embed', 'position', 'embed_norm', 'final_norm'):
    yield f'config.model.{name}', getattr(a, name), getattr(b, name)
  yield 'config.model.linear', a.scheme.linear, b.scheme.linear
  blocks = dict(a.blocks), dict(b.blocks)
  for name in sorted(a.used() | b.used()):
    layers = [found.get(name) for found in blocks]
    yield f'config.model.blocks.{name}.residual', *layers
    inner = [dict(layer.context) for layer in layers]
    for part in ('mixer', 'ffn', 'norm'):
      yield f'config.model.blocks.{name}.{part}', *(found[part] for found in inner)
  yield 'config.model.cap', a.cap, b.cap


def _unsized(part):
  """A part without its sizes; anything else as it is."""
  if not hasattr(part, 'args'):
    return part
  return part.name, tuple((k, str(v)) for k, v in part.args if k not in SIZES)


def _word(part) -> str:
  return 'nothing' if part is None else str(part)


def _constants(old, new):
  """What depends on sizes and is no parameter."""
  a, b = old.model, new.model
  scales = [[m.scheme.init.attention_scale(size) for size in (1, 2)] for m in (a, b)]
  if scales[0] != scales[1]:
    raise ValueError(
      f'config.model.init={a.init} there and {b.init} here scale the logits of attention '
      f'differently: {LIKE}'
    )
  table = any(fact.role == 'position' for fact in flat(old.facts['params']).values())
  if a.width != b.width and a.position.fact('added') and not table:
    raise ValueError(
      f'config.model.position={a.position} adds numbers that depend on the width, which no mapping '
      'of parameters repeats: rotated positions, or a table of them, are expected'
    )


def biased_by_head(model) -> str:
  """The position part that gives heads a bias by their number, or ''."""
  places = jnp.zeros((1, 1), jnp.int32)
  own = (dict(m.args).get('position') for _, m in model.mixers() + model.mixers(encoders=True))
  for part in (model.position, *own):
    if part is not None and part(parent=None).bias(2, places, places) is not None:
      return str(part)
  return ''


def _layers(a, b):
  """Stacks of the same layers in the same order; the only segment of the first may be longer."""
  for (name, ours), (_, theirs) in zip(
    (('', a.segments), *a.stacks), (('', b.segments), *b.stacks), strict=True
  ):
    kinds = lambda found: [(s.pattern, s.shared) for s in found]
    if kinds(ours) != kinds(theirs):
      raise ValueError(
        f'the layers are {stack(ours)} there and {stack(theirs)} here: the same kinds of layers '
        'in the same order are expected'
      )
    repeats = [[s.repeats for s in found] for found in (ours, theirs)]
    if repeats[0] == repeats[1]:
      continue
    if name or len(ours) > 1:
      raise ValueError(
        f'the layers are {stack(ours)} there and {stack(theirs)} here: only a stack of one '
        'segment can grow in depth'
      )
    if repeats[0] > repeats[1]:
      raise ValueError(
        f'{stack(ours)} layers there and {stack(theirs)} here: at least as many are expected'
      )


def stack(segments) -> str:
  text = lambda s: f'{"shared" if s.shared else ""}({", ".join(s.pattern)})*{s.repeats}'
  return ' + '.join(map(text, segments))


def flat(tree) -> dict:
  """Leaves of nested dictionaries by their keys."""
  found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=facts_lib.is_fact)
  return {tuple(k.key for k in path): leaf for path, leaf in found}


def same_names(old: dict, new: dict):
  """Raises ValueError where one has a parameter that the other has not."""
  for ours, others, where in ((old, new, 'there'), (new, old, 'here')):
    only = sorted(ours.keys() - others.keys())
    if only:
      raise ValueError(f'{"/".join(only[0])} is a parameter {where} alone: {LIKE}')

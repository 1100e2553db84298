"""A model's resolved settings, and how a config gives them. Parts are handles here; the
architecture builds them.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from lmjax import kinds
from lmjax import specs
from lmjax.nn.params import Scheme
from lmjax.parallel import mesh as mesh_lib
from lmjax.parallel import remat
from lmjax.registry import LARGEST, Part, make, nearest

WRITTEN = 256  # blocks that a stack may name one by one
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16, 'float16': jnp.float16}


@dataclasses.dataclass(frozen=True)
class Model:
  """What an architecture needs to know.

  segments: groups of blocks, scanned over their repeats. stacks: those of further stacks that the
    architecture has; encoders: which of them read the source. blocks: name -> residual part (the
    layer, holding its mixer, ffn, norm).
  length: tokens in a row of training data; unroll: layers per step of the scan over layers.
  init: the part that `scheme` holds built. joined: rows of training data are one document, with
  padding only behind it. how: mesh axes are used, see `parallel.mesh`.
  """

  width: int
  vocab: int
  length: int
  segments: tuple[specs.Segment, ...]
  stacks: tuple[tuple[str, tuple[specs.Segment, ...]], ...]
  encoders: tuple[str, ...]
  blocks: tuple[tuple[str, Part], ...]
  embed: Part
  position: Part
  final_norm: Part | None
  embed_norm: Part | None
  scheme: Scheme
  init: Part
  dtype: Any
  unroll: int
  remat: str
  cap: float | None
  dropout: float
  how: mesh_lib.How = mesh_lib.AS_IT_IS
  joined: bool = False

  @property
  def depth(self) -> int:
    return sum(len(s.pattern) * s.repeats for s in self.segments)

  def stack(self, name: str) -> 'Model':
    """This model with one of its further stacks; what is made for the number of layers is made
    anew.
    """
    one = dataclasses.replace(self, segments=dict(self.stacks)[name], stacks=(), encoders=())
    return one.sized(one.width, one.length)

  def sized(self, width: int, length: int) -> 'Model':
    """This model at another width, with rows of another length; what is made for a width, or for
    the number of layers, is made anew.
    """
    init = made_for(self.init, depth=self.depth, width=width)
    return dataclasses.replace(
      self,
      width=width,
      length=length,
      blocks=tuple((n, made_for(b, depth=self.depth)) for n, b in self.blocks),
      embed=made_for(self.embed, width=width),
      init=init,
      scheme=dataclasses.replace(self.scheme, init=init()),
    )

  def used(self) -> set[str]:
    """The blocks that any stack uses."""
    return {n for _, found in (('', self.segments), *self.stacks) for s in found for n in s.pattern}

  def block(self, name: str) -> Part:
    return dict(self.blocks)[name]

  def mixer(self, name: str) -> Part:
    """The mixer of one kind of block."""
    return dict(self.block(name).context)['mixer']

  def mixers(self, encoders: bool = False) -> list[tuple[str, Part]]:
    """The mixer of every kind of block that the stacks use: those that predict, or encoders."""
    own = [('', self.segments)] if not encoders else []
    own += [(n, s) for n, s in self.stacks if (n in self.encoders) == encoders]
    used = {n for _, found in own for s in found for n in s.pattern}
    return [(name, self.mixer(name)) for name, _ in self.blocks if name in used]

  def require(self, fact: str, otherwise: str):
    """Raises kinds.Unsupported, ending in `otherwise`, where a mixer lacks a fact."""
    for name, mixer in self.mixers():
      if not mixer.fact(fact):
        raise kinds.Unsupported(f'config.model.blocks.{name}.mixer={mixer} {otherwise}')


def made_for(part: Part, **context) -> Part:
  """The part with these of its context instead, as far as it has them."""
  own = tuple((k, context[k] if k in context else v) for k, v in part.context)
  return dataclasses.replace(part, context=own)


def positive(**values):
  for key, value in values.items():
    if value < 1:
      raise ValueError(f'config.{key}={value}: a positive number is expected')


def dtype(key: str, name: str):
  if name not in DTYPES:
    raise ValueError(
      f'config.{key}={specs.brief(name)}: one of {", ".join(DTYPES)} is expected'
      f'{nearest(name, DTYPES)}'
    )
  return DTYPES[name]


def segments(m: dict) -> tuple[specs.Segment, ...]:
  """The stack: `config.model.stack`, or `config.model.depth` times the only block."""
  if not m['stack']:
    names = list(m['blocks'])
    if len(names) != 1:
      raise ValueError(
        f'config.model.stack is empty: with {len(names)} blocks ({", ".join(names)}) it must say '
        'their order, as in "full + (local, full)*3"'
      )
    positive(**{'model.depth': m['depth']})
    return (specs.Segment((names[0],), m['depth']),)
  return written(f'config.model.stack={specs.brief(m["stack"])}', m['stack'], list(m['blocks']))


def written(where: str, text: str, names: list[str]) -> tuple[specs.Segment, ...]:
  """A stack in words; ValueError, that begins with `where`."""
  try:
    found = specs.segments(text)
  except specs.SpecError as e:
    raise ValueError(f'{where}: {e}') from None
  for s in found:
    for n in s.pattern:
      if n not in names:
        raise ValueError(
          f'{where}: no block {specs.brief(n)}{nearest(n, names)} config.model.blocks has '
          f'{", ".join(names)}'
        )
  n = sum(len(s.pattern) for s in found)
  if n > WRITTEN:  # each is traced and compiled by itself
    raise ValueError(
      f'{where}: {n} blocks are written out, at most {WRITTEN} are accepted; repeat a group, '
      'as in (local, full)*3'
    )
  depth = sum(len(s.pattern) * s.repeats for s in found)
  if depth > LARGEST[int]:
    raise ValueError(f'{where}: {specs.brief(depth)} layers, at most {LARGEST[int]} are accepted')
  return found


def resolve(
  m: dict,
  vocab: int,
  length: int,
  how: mesh_lib.How = mesh_lib.AS_IT_IS,
  joined: bool = False,
) -> Model:
  """`config.model` as a plain dict -> Model. Raises ValueError or SpecError naming the key."""
  positive(**{'model.width': m['width'], 'model.unroll': m['unroll'], 'data.length': length})
  if not 0 <= m['dropout'] < 1:
    raise ValueError(f'config.model.dropout={m["dropout"]}: at least 0 and below 1 is expected')
  if m['cap'] < 0:
    raise ValueError(f'config.model.cap={m["cap"]}: a positive number, or 0 for none, is expected')
  remat.policy(m['remat'])
  stack = segments(m)
  depth = sum(len(s.pattern) * s.repeats for s in stack)
  further, names = make('architecture', m['architecture']), list(m['blocks'])
  stacks = {
    name: written(f'config.model.architecture: {further.name}.{name}={text!r}', text, names)
    for name, text in further.fact('stacks').items()
  }
  compute = dtype('model.dtype', m['dtype'])
  position = make('position', m['position'], length=length)
  init = make('init', m['init'], depth=depth, width=m['width'])
  scheme = Scheme(
    init=init(),
    linear=make('linear', m['linear']),
    position=position(parent=None),
    param_dtype=dtype('model.param_dtype', m['param_dtype']),
  )
  blocks = []
  for name, b in m['blocks'].items():
    inner = {k: make(k, b[k]) for k in ('mixer', 'ffn', 'norm')}
    blocks.append((name, make('residual', b['residual'], depth=depth, **inner)))
  return Model(
    width=m['width'],
    vocab=vocab,
    length=length,
    segments=stack,
    stacks=tuple(stacks.items()),
    encoders=further.fact('encoders'),
    blocks=tuple(blocks),
    embed=make('embed', m['embed'], vocab=vocab, width=m['width'], dtype=compute, length=length),
    position=position,
    final_norm=make('norm', m['final_norm']) if m['final_norm'] else None,
    embed_norm=make('norm', m['embed_norm']) if m['embed_norm'] else None,
    scheme=scheme,
    init=init,
    dtype=compute,
    unroll=m['unroll'],
    remat=m['remat'],
    cap=m['cap'] or None,
    dropout=m['dropout'],
    how=how,
    joined=joined,
  )

"""The model of a folder as a config, and the model of a run as one sees it from outside.

A view has every part with what it computes: numbers of heads and hidden units in place of factors,
without what only training or memory knows of (initial values, dropout, rows that tables are rounded
up to, arguments that another argument turns off). Two models with equal views are one function of
their weights.
"""

import dataclasses
from typing import Any, Mapping

from ml_collections import ConfigDict

from lmjax import config as config_lib
from lmjax import registry
from lmjax.interop.hf import _rope
from lmjax.models.ffn import _sized
from lmjax.models import model as model_lib
from lmjax.registry import Part


@dataclasses.dataclass(frozen=True)
class Settings:
  """A model in lmjax's words; blocks: parts of the kinds of layers, `stack` their order. embed: at
  first tied() or untied(). objective, transforms: what it learns by, at first those of all configs,
  as for init.
  """

  width: int
  depth: int
  vocab: int
  length: int
  tied: bool
  position: str
  final_norm: str
  blocks: dict[str, dict[str, str]]
  stack: str = ''
  embed: str = ''
  embed_norm: str = ''
  architecture: str = 'transformer()'
  objective: str = ''
  transforms: str = ''
  init: str = ''


def block(mixer: str, ffn: str, norm: str, residual: str = 'pre()') -> dict[str, str]:
  return dict(mixer=mixer, ffn=ffn, norm=norm, residual=residual)


def config(s: Settings):
  """A config of the model; its training settings are the defaults. Raises ValueError for rows of
  less than two tokens.
  """
  if s.length < 2:
    raise ValueError(f'config.json: rows of {s.length} tokens; at least 2 positions are expected')
  c = config_lib.default()
  m = c.model
  m.width, m.depth, m.vocab, m.stack = s.width, s.depth, s.vocab, s.stack
  m.embed = s.embed or ('tied()' if s.tied else 'untied()')
  m.position, m.embed_norm, m.final_norm = s.position, s.embed_norm, s.final_norm
  m.architecture, m.init = s.architecture, s.init or m.init
  c.objective = s.objective or c.objective
  c.data.transforms = s.transforms or c.data.transforms
  m.blocks = ConfigDict(s.blocks)
  c.data.length = s.length
  c.batch_tokens = max(c.batch_tokens // s.length, 1) * s.length
  return c


# ------------------------------------------------------------------ views


@dataclasses.dataclass(frozen=True)
class Seen:
  """A part as its view has it."""

  name: str
  args: Mapping[str, Any]

  def __str__(self) -> str:
    return f'{self.name}({", ".join(f"{k}={v}" for k, v in self.args.items())})'

  def get(self, key: str) -> Any:
    """An argument, None where the part has none of this name."""
    return self.args.get(key)

  def inner(self) -> 'Seen':
    """The part within, of one that wraps another of its kind."""
    found = self.args.get('inner')
    return found.inner() if isinstance(found, Seen) else self


@dataclasses.dataclass(frozen=True)
class View:
  """parts: of the model; layers: the parts of each by kind; keys: the config's key of each. stacks:
  the layers of further stacks.
  """

  width: int
  vocab: int
  length: int
  tied: bool
  parts: Mapping[str, Any]
  layers: tuple[Mapping[str, Seen], ...]
  keys: tuple[str, ...]
  stacks: Mapping[str, 'tuple[Mapping[str, Seen], ...]']

  def all_layers(self) -> 'tuple[Mapping[str, Seen], ...]':
    """Those of all stacks, as `keys` has them."""
    return sum(self.stacks.values(), self.layers)

  def layer(self, kind: str) -> Seen:
    """A part of the first layer."""
    return self.layers[0][kind]


def view(resolved: Mapping[str, Any], model: model_lib.Model) -> View:
  """The view of a run's model."""
  ordered = lambda segments: [n for s in segments for _ in range(s.repeats) for n in s.pattern]
  order, further = ordered(model.segments), {k: ordered(s) for k, s in model.stacks}
  of = lambda part: None if part is None else _seen(part, model)
  kinds = lambda b: {k: v for k, v in b.context if k in ('mixer', 'ffn', 'norm')}
  seen = {n: {k: of(p) for k, p in (('residual', b), *kinds(b).items())} for n, b in model.blocks}
  parts = dict(
    architecture=_seen(registry.make('architecture', resolved['model']['architecture']), model),
    linear=resolved['model']['linear'],
    embed=of(model.embed),
    position=of(model.position),
    embed_norm=of(model.embed_norm),
    final_norm=of(model.final_norm),
    cap=model.cap,
    init=f'logits times {model.scheme.init.logit_scale()}',
  )
  return View(
    width=model.width,
    vocab=model.vocab,
    length=model.length,
    tied=bool(model.embed.fact('tied')),
    parts=parts,
    layers=tuple(seen[n] for n in order),
    keys=tuple(f'model.blocks.{n}' for n in sum(further.values(), order)),
    stacks={k: tuple(seen[n] for n in names) for k, names in further.items()},
  )


def _seen(part: Part, model: model_lib.Model) -> Seen:
  args = dict(part.args)
  if part.kind == 'mixer' and {'heads', 'kv_heads', 'scale'} <= set(args):
    args['heads'], args['kv_heads'] = part(parent=None).sizes(model.width)
    args['scale'] = args['scale'] or model.scheme.init.attention_scale(args['head_dim'])
    args['position'] = args.get('position') or model.position
  if part.kind == 'ffn' and 'hidden' in args and 'mult' in args:
    args['hidden'] = _sized.size(part(parent=None), model.width)
    del args['mult'], args['multiple_of']
  if part.kind == 'position' and args.get('scaling') in _rope.READ:
    args = {k: v for k, v in args.items() if k in _rope.READ[args['scaling']]}
  silent = {'embed': {'multiple_of'}, 'residual': {'dropout'}}.get(part.kind, set())
  if part.kind == 'architecture':  # stacks in words: `View.stacks` has their layers
    silent = set(part.fact('stacks'))
  args = {k: _seen(v, model) if isinstance(v, Part) else v for k, v in args.items()}
  args = {k: v for k, v in args.items() if k not in silent}
  return Seen(part.name, args)


def _depths(own: View, other: View) -> dict[str, tuple[str, str]]:
  """Layers of further stacks in both models."""
  of = lambda view, name: f'{len(view.stacks.get(name, ()))} layers'
  return {k: (of(own, k), of(other, k)) for k in {**own.stacks, **other.stacks}}


def differences(own: View, other: View) -> list[str]:
  """What a model has and another one has not, in the config's words."""
  out = [
    f'config.{key}={a}'
    for key, a, b in (
      ('model.width', own.width, other.width),
      ('model.vocab', own.vocab, other.vocab),
      ('model.depth', len(own.layers), len(other.layers)),
      *((f'model.architecture.{k}', *n) for k, n in _depths(own, other).items()),
    )
    if a != b
  ]
  for key, part in own.parts.items():
    if part != other.parts[key]:
      out.append(f'config.model.{key}={part}')
  for key, a, b in zip(own.keys, own.all_layers(), other.all_layers()):
    out += [f'config.{key}.{k}={v}' for k, v in a.items() if v != b.get(k)]
  return list(dict.fromkeys(out))

"""Overrides: `--config.path=value`, also below a spec (`--config.optim.adam.b2=0.99`)."""

import ast

from ml_collections import ConfigDict

from lmjax import config as config_lib
from lmjax import specs
from lmjax.config import ConfigError
from lmjax.registry import nearest


def apply(config: ConfigDict, key: str, text: str):
  """Sets one leaf, or one argument of a spec, from text. Raises ConfigError."""
  parts = _place(config, key.split('.'))
  node = config
  for i, name in enumerate(parts):
    path = '.'.join(parts[: i + 1])
    if name not in node:
      have = list(config_lib.flat(config))
      raise ConfigError(
        f'--config.{specs.shown(key)}: no such key{nearest(key, have, ";")} '
        f'config{"." if i else ""}{".".join(parts[:i])} has '
        f'{", ".join(node)}'
      )
    value = node[name]
    if isinstance(value, ConfigDict):
      node = value
      continue
    rest = parts[i + 1 :]
    if not rest:
      node[name] = _parse(key, text, value)
    elif config_lib.kind_of(path) is None or not value:
      raise ConfigError(
        f'--config.{specs.shown(key)}: config.{path} is {specs.brief(value)} and has nothing below '
        'it'
      )
    else:
      try:
        node[name] = specs.rewrite(value, rest, _literal(text))
      except specs.SpecError as e:
        raise ConfigError(f'--config.{specs.shown(key)}={specs.shown(text)}: {e}') from None
    return
  raise ConfigError(
    f'--config.{key}={specs.shown(text)}: this is a group; set one of {", ".join(node)}'
  )


def _place(config, parts: list[str]) -> list[str]:
  """Expands `model.mixer` to its only block, and adds a block that is named for the first time."""
  blocks = config.model.blocks
  if parts[0] == 'model' and len(parts) > 1 and parts[1] in config_lib.BLOCK_PARTS:
    if len(blocks) != 1:
      raise ConfigError(
        f'--config.{specs.shown(".".join(parts))}: this model has the blocks {", ".join(blocks)}; '
        f'name one, as in --config.model.blocks.{next(iter(blocks))}.{parts[1]}'
      )
    return ['model', 'blocks', next(iter(blocks)), *parts[1:]]
  if (
    parts[:2] == ['model', 'blocks']
    and len(parts) > 3
    and parts[2] not in blocks
    and parts[3] in config_lib.BLOCK_PARTS
  ):
    with config.unlocked():
      blocks[parts[2]] = ConfigDict(dict(next(iter(blocks.values()))))
  return parts


def _literal(text: str):
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
    return specs.call(text) if '(' in text else text
  return specs.checked(value)


def _parse(key: str, text: str, old):
  """Text to the type of the leaf; `1e3` and `1_000` pass for whole numbers."""
  wanted = {bool: 'true or false', int: 'a whole number', float: 'a number'}.get(type(old))
  try:
    if isinstance(old, bool):
      return {'true': True, 'false': False, '1': True, '0': False}[text.lower()]
    if isinstance(old, int):
      number = float(text)
      if not number.is_integer():
        raise ValueError
      return (
        int(text.replace('_', '')) if text.replace('_', '').lstrip('+-').isdigit() else int(number)
      )
    if isinstance(old, float):
      return float(text)
    if isinstance(old, str):
      return text
  except (ValueError, KeyError, OverflowError):
    raise ConfigError(
      f'--config.{key}={specs.shown(text)}: {wanted} is expected (it is {old!r} now)'
    ) from None
  raise ConfigError(f'--config.{key}: a leaf of type {type(old).__name__} cannot be set here')

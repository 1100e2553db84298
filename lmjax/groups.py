"""A config as nested groups: its leaves by dotted path, and the shape that groups must have."""

import keyword
from typing import Any

from lmjax import specs


class ConfigError(ValueError):
  """A config that cannot be used; the message names the key, the value and what is accepted."""


def flat(config: Any) -> dict[str, Any]:
  """Leaves by dotted path, of a `ConfigDict` or of nested dictionaries."""
  out = {}
  for key, value in config.items():
    if hasattr(value, 'items'):
      out.update({f'{key}.{k}': v for k, v in flat(value).items()})
    else:
      out[key] = value
  return out


def plain(group: Any, path: tuple[str, ...] = ()) -> dict[str, Any]:
  """A copy of nested groups. Raises ConfigError where a key is no name, or a group is empty."""
  if not isinstance(group, dict):
    raise ConfigError(f'the config is {specs.brief(group)}: groups of settings are expected')
  out = {}
  for key, value in group.items():
    where = '.'.join((*path, str(key)))
    if not isinstance(key, str) or not key.isprintable() or '.' in key or len(path) > 3:
      raise ConfigError(f'config.{specs.shown(where)}: no such key')
    if isinstance(value, dict) and not value:
      raise ConfigError(f'config.{specs.shown(where)} is empty: a value is expected')
    out[key] = plain(value, (*path, key)) if isinstance(value, dict) else value
  return out


def blocks(config: dict[str, Any]) -> list[str]:
  """Names of the blocks of layers. Raises ConfigError where there are none, or one is no name."""
  model = config.get('model')
  found = model.get('blocks') if isinstance(model, dict) else None
  if not isinstance(found, dict):
    raise ConfigError('config.model.blocks is missing: at least one block is expected')
  for name, parts in found.items():
    where = f'config.model.blocks.{specs.shown(name)}'
    if not name.isidentifier() or keyword.iskeyword(name) or len(name) > 64:  # names parameters
      raise ConfigError(f'{where}: a block is named by a word, such as local')
    if not isinstance(parts, dict):
      raise ConfigError(f'{where}={specs.brief(parts)}: a group of parts is expected')
  return list(found)

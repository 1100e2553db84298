"""Rotary positions as config.json gives them, and the part `rope`.

  rope_theta, rope_scaling, partial_rotary_factor     beside each other, or
  rope_parameters                                     all in one object

Scalings: default, linear, llama3; others are refused by name.
"""

from typing import Any, Mapping

FIELDS = ('rope_theta', 'rope_scaling', 'rope_parameters', 'partial_rotary_factor')
SCALINGS = {
  'default': {},
  'linear': {'factor': 'factor'},
  'llama3': {
    'factor': 'factor',
    'low': 'low_freq_factor',
    'high': 'high_freq_factor',
    'original': 'original_max_position_embeddings',
  },
}
# Arguments that the part `rope` reads, by its scaling.
READ = {
  {'default': 'none'}.get(kind, kind): ('base', 'pairs', 'fraction', 'scaling', *args)
  for kind, args in SCALINGS.items()
}
_TYPE = ('rope_type', 'type')


def spec(h: Mapping[str, Any], theta: float = 10_000.0, fraction: float = 1.0) -> str:
  """The position part of checked fields. Raises ValueError naming the field."""
  given: dict[str, Any] = {}
  for name in ('rope_scaling', 'rope_parameters'):
    if not isinstance(h.get(name, {}), dict):
      raise ValueError(f'config.json: {name}={h[name]!r}: an object is expected')
    given |= {k: v for k, v in h.get(name, {}).items() if v is not None}
  kind = next((given[k] for k in _TYPE if k in given), 'default')
  if not isinstance(kind, str) or kind not in SCALINGS:
    raise ValueError(
      f'config.json: rope_type={kind!r}: this scaling is not supported, only {", ".join(SCALINGS)}'
    )
  args = dict(
    base=given.pop('rope_theta', h.get('rope_theta', theta)),
    fraction=given.pop('partial_rotary_factor', h.get('partial_rotary_factor', fraction)),
  )
  for key, field in SCALINGS[kind].items():
    if field not in given:
      raise ValueError(f'config.json: rope_type={kind!r} needs {field}')
    args[key] = given.pop(field)
  for key, value in args.items():
    if type(value) not in (int, float):
      raise ValueError(f'config.json: {key} of rope is {value!r}; a number is expected')
  unknown = sorted(set(given) - set(_TYPE))
  if unknown:
    raise ValueError(f'config.json: rope_type={kind!r} has no {unknown[0]}={given[unknown[0]]!r}')
  args['original'] = int(args.get('original', 8192))
  scaling = 'none' if kind == 'default' else kind
  told = ', '.join(f'{k}={v!r}' for k, v in args.items())
  return f'rope({told}, scaling={scaling!r})'


def fields(args: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of config.json for the arguments of a part; {} where it is not `rope`."""
  if 'base' not in args:
    return {}
  kind = {'none': 'default'}.get(args['scaling'], args['scaling'])
  out = dict(rope_theta=args['base'], partial_rotary_factor=args['fraction'])
  out = {k: v for k, v in out.items() if k == 'rope_theta' or v != 1}
  if kind == 'default':
    return out
  scaling = {field: args[key] for key, field in SCALINGS.get(kind, {}).items()}
  return out | dict(rope_scaling=dict(rope_type=kind, **scaling))

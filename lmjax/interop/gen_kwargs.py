"""What a request of lm-evaluation-harness says of the text to write: `generation_kwargs` of a task,
with `--gen_kwargs` over them.

  until                   texts that end it, left out of it
  max_gen_toks            tokens at most, by any of its names
  do_sample, temperature  samples where do_sample is true, or is not said and temperature is
                          above 0; softmax(z / temperature), 1 where it is not said
  top_k, top_p, min_p     of samples: filters after the temperature, in this order, each of them off
                          where it is not said; 0 and 1 (top_p) are off too
  seed                    of samples, 0 at first

The rule is made of the decoding parts. Samples follow from the seed, the prompt and how often it
was asked before: neither other requests nor batches matter. The library of Hugging Face draws with
a top_k of 50 where nothing is said, and from a state that all rows of a batch share.
"""

from typing import Any, Mapping, NamedTuple

from lmjax import registry

MAX_GEN_TOKS = 256  # of requests that do not say, as the harness's own models have it
LIMITS = ('max_gen_toks', 'max_new_tokens', 'max_tokens', 'max_completion_tokens')  # names of it
GREEDY = 'greedy()'
# Of samples: the part and its argument, and the value that changes nothing.
FILTERS = {
  'temperature': ('temperature(t={})', 1),
  'top_k': ('top_k(k={})', 0),
  'top_p': ('top_p(p={})', 1),
  'min_p': ('min_p(p={})', 0),
}
SEEDS = 2**31


class Settings(NamedTuple):
  """most: tokens; until: texts that end it; rule: a decoding spec; seed: of its draws."""

  most: int
  until: tuple[str, ...]
  rule: str
  seed: int


def read(given: Mapping[str, Any], length: int) -> Settings:
  """Of a request to a model that sees `length` tokens. Raises ValueError naming a setting that is
  not known, or whose value cannot be honoured.
  """
  s = {k: v for k, v in given.items() if v is not None}
  until = s.pop('until', ())
  until = [until] if isinstance(until, str) else until
  if not isinstance(until, list | tuple) or not all(isinstance(u, str) for u in until):
    raise ValueError(f'generate_until: until={until!r}: a text, or a list of texts, is expected')
  found = [_number(k, s.pop(k), int) for k in LIMITS if k in s]
  most = found[0] if found else MAX_GEN_TOKS
  seed = _number('seed', s.pop('seed', 0), int)
  if not 0 <= seed < SEEDS:
    raise ValueError(f'generate_until: seed={seed}: from 0 to {SEEDS - 1} is expected')
  rule = _rule(s)
  if s:
    raise ValueError(
      f'generate_until: {", ".join(s)}: not known; until, {LIMITS[0]}, do_sample, '
      f'{", ".join(FILTERS)} and seed are accepted'
    )
  if not 1 <= most < length:
    raise ValueError(
      f'generate_until: {LIMITS[0]}={most}, and the model sees {length} tokens: from 1 to '
      f'{length - 1} is expected, as in --gen_kwargs={LIMITS[0]}={max(1, length // 2)}'
    )
  greedy = rule == GREEDY
  return Settings(most, tuple(until), rule, seed * (not greedy))


def _rule(s: dict[str, Any]) -> str:
  """The decoding spec; takes its settings out of `s`."""
  values = {k: _number(k, s.pop(k), int if k == 'top_k' else float) for k in FILTERS if k in s}
  samples = s.pop('do_sample', values.get('temperature', 0) > 0)
  if not isinstance(samples, bool):
    raise ValueError(f'generate_until: do_sample={samples!r}: True or False is expected')
  if not samples:
    return GREEDY
  if values.get('temperature') == 0:
    raise ValueError(
      'generate_until: do_sample=True with temperature=0: a temperature above 0, or '
      'do_sample=False, is expected'
    )
  used = {k: v for k, v in values.items() if v != FILTERS[k][1]}
  for key, value in used.items():
    try:
      registry.make_chain('decoding', FILTERS[key][0].format(value))
    except ValueError as e:
      raise ValueError(f'generate_until: {key}={value}: {e}') from None
  return ' | '.join(FILTERS[k][0].format(used[k]) for k in FILTERS if k in used) or 'temperature()'


def _number(key: str, value: Any, kind: type) -> Any:
  try:
    found = kind(value)
    if isinstance(value, bool) or found != float(value):
      raise ValueError
  except (TypeError, ValueError, OverflowError):
    what = 'a whole number' if kind is int else 'a number'
    raise ValueError(f'generate_until: {key}={value!r}: {what} is expected') from None
  return found

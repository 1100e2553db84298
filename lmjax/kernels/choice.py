"""Which implementation of an operation runs: the one that was asked for, or the first that can.

Each room of `lmjax.kernels.OPERATIONS` has IMPLEMENTATIONS, in order of preference. A config asks
by `config.kernels.<operation>`, a program by `with choice.using(attention='reference')`, as for
matmul precision; both count where a function is traced, and `jax.jit` traces again where they
differ.
"""

import contextlib
import importlib
from typing import Any, Callable, Mapping, NamedTuple

import jax

from lmjax.registry import nearest
from lmjax.specs import brief

AUTO = 'auto'
_ASKED = jax.make_user_context(default_value=())


def _never(**facts) -> str:
  del facts
  return ''


class Implementation(NamedTuple):
  """refuses: (platform, and what the operation knows of a call) -> why it cannot do it, or ''."""

  run: Callable
  refuses: Callable[..., str] = _never


def implementations(operation: str) -> dict[str, Implementation]:
  return importlib.import_module(f'lmjax.kernels.{operation}').IMPLEMENTATIONS


def check(settings: Mapping[str, Any]):
  """Raises ValueError naming the key of an operation that has no such implementation."""
  for operation, name in settings.items():
    known = (AUTO, *implementations(operation))
    if name not in known:
      raise ValueError(
        f'config.kernels.{operation}={brief(name)}: one of {", ".join(known)} is expected'
        f'{nearest(name, known)}'
      )


@contextlib.contextmanager
def using(platform: str = '', twice: bool = False, **asked: str):
  """Implementations by operation, `auto` for the first that can; platform: cpu, gpu or tpu where it
  is not that of this process, as in a plan. twice: what is traced inside is differentiated twice.
  """
  given = dict(_ASKED.value)
  given |= {k: v for k, v in dict(asked, platform=platform, twice=twice).items() if v}
  with _ASKED(tuple(sorted(given.items()))):
    yield


def platform() -> str:
  return dict(_ASKED.value).get('platform') or jax.default_backend()


def twice() -> bool:
  return dict(_ASKED.value).get('twice', False)


def asked(operation: str) -> str:
  return dict(_ASKED.value).get(operation, AUTO)


def pick(operation: str, known: Mapping[str, Implementation], name: str | None = None, **facts):
  """What runs. name: None for what `using` says. Raises ValueError where what was asked for is
  unknown, or cannot do this.
  """
  name = name or asked(operation)
  check({operation: name})
  why = {n: i.refuses(platform=platform(), **facts) for n, i in known.items()}
  able = [n for n in known if not why[n]]
  if why.get(name):
    raise ValueError(f'config.kernels.{operation}={name!r}: {why[name]}; {" or ".join(able)} can')
  return known[able[0] if name == AUTO else name].run

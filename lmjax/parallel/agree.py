"""What must be the same on all processes of a run, and which of them differs in what.

Facts (`parallel.alike`) are compared by process 0, through the coordinator's store and never on a
device: where they differ, the devices would wait for each other for ever.
"""

import collections
import json
from typing import Any, Mapping

from lmjax import specs

_SHOWN = 3
_ABSENT = 'nothing'


def check(together, topic: str, mine: Mapping[str, Any]) -> None:
  """Raises ValueError on all processes, in one sentence, where `mine` is not the same on all.

  Args:
    together: store, alive, index and count of `processes`; it ends this process where another one
      is lost or ends before it has said its facts.
    topic: names the comparison; once per run.
  """
  store = together.store
  store.set(f'agree-{topic}/{together.index}', json.dumps([together.host, mine], default=str))
  if together.index == 0:
    while len(found := store.under(f'agree-{topic}')) < together.count:
      together.pause()
    said = [json.loads(found[str(i)]) for i in range(together.count)]
    together.alive.hosts = {i: host for i, (host, _) in enumerate(said)}
    store.set(f'agreed/{topic}', json.dumps([together.host, differences(said)]))
  host, wrong = json.loads(store.wait(f'agreed/{topic}'))
  together.alive.hosts[0] = host
  if wrong:
    raise ValueError(wrong)


def differences(said: list[tuple[str, Mapping[str, Any]]]) -> str:
  """One sentence about the processes that differ from most (from process 0 where no value has
  most), '' where none does.

  Args:
    said: host and facts of each process.
  """
  wrong: dict[int, list[str]] = collections.defaultdict(list)
  keys = list(dict.fromkeys(k for _, mine in said for k in mine))
  for key in keys:
    values = [json.dumps(mine[key], sort_keys=True) if key in mine else '' for _, mine in said]
    counts = collections.Counter(values)
    usual = max(counts, key=lambda v: (counts[v], v == values[0]))
    with_it = values.index(usual)
    for i, value in enumerate(values):
      if value != usual:
        others = f' and {counts[usual] - 1} more' if counts[usual] > 1 else ''
        wrong[i].append(
          f'{key} is {_shown(value)} there, and {_shown(usual)} on process {with_it} '
          f'({said[with_it][0]}){others}'
        )
  if not wrong:
    return ''
  each = [
    f'process {i} ({said[i][0]}): ' + '; '.join(what[:_SHOWN]) + _more(len(what) - _SHOWN)
    for i, what in list(sorted(wrong.items()))[:_SHOWN]
  ]
  return (
    'the processes of a run must have the same command, config, data and code, but '
    + ' | '.join(each)
    + (f' | and {len(wrong) - _SHOWN} more processes differ' if len(wrong) > _SHOWN else '')
  )


def _more(n: int) -> str:
  return f'; and {n} more' if n > 0 else ''


def _shown(value: str) -> str:
  return specs.cut(value, 120) if value else _ABSENT

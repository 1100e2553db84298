"""What a proxy run has learnt, from its directory."""

from lmjax import files
from lmjax import rundir
from lmjax import tracking
from lmjax.data.mixtures import _match

KEY = 'mean_weight/'


def read(run: str, where: str) -> tuple[dict[str, str], dict[str, float]]:
  """({name: spec}, {name: average weight}) of a finished proxy run. Raises ValueError."""
  run = files.expanded(run)
  config = rundir.read_config(run)
  sources = _match.sources(config['data']['train'])
  lines = [x for x in tracking.read_metrics(rundir.local(run)) if x['kind'] == 'train']
  last = lines[-1] if lines else {'step': 0}
  if last['step'] < config['steps']:
    raise ValueError(
      f'{where}: it has {last["step"]} of its {config["steps"]} steps; a finished run is expected'
    )
  missing = [n for n in sources if KEY + n not in last]
  if missing:
    raise ValueError(
      f'{where}: it learnt no weights (config.objective={config["objective"]!r}); a run with an '
      'objective that does is expected, such as doremi(...) or doge()'
    )
  return sources, {n: float(last[KEY + n]) for n in sources}

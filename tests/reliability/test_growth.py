"""What must not grow: memory with the number of saves, the time to restart with the step."""

import gc
import time

import _processes
import _runs
import numpy as np
import pytest

from lmjax import build
from lmjax import config
from lmjax import feed
from lmjax.data import plan as plan_lib


def resident(pid: int) -> int:
  """Bytes of memory that a process holds."""
  with open(f'/proc/{pid}/statm') as f:
    return int(f.read().split()[1]) * 4096


@pytest.mark.slow
def test_memory_is_flat_over_fifty_saves(tmp_path):
  """8 MB of state a save: a leak of one copy in ten saves would show."""
  train = _runs.texts(tmp_path)
  how = dict(
    steps=1000, checkpoint_every=5, model__width=192, model__mixer__head_dim=32, log_every=1
  )
  seen = []
  with _processes.Process(_runs.words(tmp_path / 'w', train, **how), tmp_path / 'w') as p:
    for save in range(6, 66):
      p.until_step(5 * save + 2)
      seen.append(resident(p.process.pid))
  size = sum(f.stat().st_size for f in (tmp_path / 'w/checkpoints').rglob('*') if f.is_file()) / 3
  assert size > 4e6
  slope = np.polyfit(np.arange(len(seen)), seen, 1)[0]
  assert slope < 0.1 * size, f'{slope / 1e3:.0f} kB a save of {size / 1e6:.1f} MB; {seen}'


@pytest.mark.slow
def test_restart_takes_as_long_at_any_step(tmp_path, monkeypatch):
  """The first batch at step 10 and at step ten million: as many plans of packing, and as fast."""
  words = _runs.words(tmp_path / 'w', _runs.texts(tmp_path))
  pairs = [w[len('--config.') :].split('=', 1) for w in words if w.startswith('--config.')]
  run = build.build(config.resolve(config.load('quickstart', [tuple(p) for p in pairs])))
  feed.Feed(run, tmp_path)  # tokenizes once
  made = []
  original = plan_lib.Plan._epoch
  monkeypatch.setattr(plan_lib.Plan, '_epoch', lambda *a: made.append(a[1:]) or original(*a))

  def first_batch(step):
    data = feed.Feed(run, tmp_path)
    gc.collect()
    made.clear()
    began = time.process_time()
    batch = data._loader[data.skips.batch(step)]
    return time.process_time() - began, len(set(made)), batch

  near, far = ([first_batch(s) for _ in range(5)] for s in (10, 10_000_000))
  assert min(f[0] for f in far) < 3 * min(n[0] for n in near) + 0.02
  assert far[0][1] <= near[0][1] + 3  # an epoch of each source, and at most one border more
  assert not np.array_equal(near[0][2]['tokens'], far[0][2]['tokens'])

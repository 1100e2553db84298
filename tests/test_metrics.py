"""Sums and weights, standard errors, and metrics.jsonl with its TensorBoard twin."""

import json
import logging
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import metrics
from lmjax import tracking


def test_merge_weighs_by_tokens_not_by_batch():
  a, b = {'loss': (6.0, 2.0)}, {'loss': (3.0, 6.0), 'z': (1.0, 1.0)}
  assert metrics.means(metrics.merge(a, b)) == {'loss': 9 / 8, 'z': 1.0}
  assert a == {'loss': (6.0, 2.0)}


def test_merge_is_traceable_and_nothing_weighed_is_nan():
  out = jax.jit(metrics.merge)(
    {'x': (jnp.ones(()), jnp.zeros(()))}, {'x': (jnp.ones(()), jnp.zeros(()))}
  )
  assert math.isnan(metrics.means(out)['x'])


def test_stderr_equals_numpy():
  x = np.random.default_rng(0).normal(3.0, 2.0, 50)
  want = x.std(ddof=1) / np.sqrt(50)
  assert metrics.stderr(x.sum(), (x * x).sum(), 50) == pytest.approx(want, rel=1e-9)
  assert math.isnan(metrics.stderr(1.0, 1.0, 1))


def test_ratio_stderr_matches_the_spread_of_repeated_draws():
  """Rows share a level, so that counting tokens as independent would understate the error about
  fivefold.
  """
  rng, found, means = np.random.default_rng(0), [], []
  for _ in range(400):
    w = rng.integers(10, 50, 40).astype(float)
    l = w * rng.normal(2.0, 0.5, 40)
    half = [metrics.row_sums(l[i], w[i]) for i in (slice(0, 15), slice(15, 40))]
    found.append(metrics.ratio_stderr(metrics.add_sums(*half)))
    means.append(l.sum() / w.sum())
  assert np.mean(found) == pytest.approx(np.std(means), rel=0.08)


def test_ratio_stderr_equals_its_formula():
  l, w = np.array([2.0, 4.0, 7.0, 1.0]), np.array([1.0, 2.0, 2.0, 3.0])
  want = np.sqrt(4 / 3 * ((l - 14 / 8 * w) ** 2).sum()) / 8
  assert metrics.ratio_stderr(metrics.row_sums(l, w)) == pytest.approx(want, rel=1e-12)
  assert math.isnan(metrics.ratio_stderr(metrics.row_sums(l[:1], w[:1])))


def test_rows_of_padding_do_not_count():
  l, w = np.array([2.0, 4.0, 7.0]), np.array([1.0, 2.0, 2.0])
  padded = metrics.row_sums(np.append(l, 0.0), np.append(w, 0.0))
  assert metrics.ratio_stderr(padded) == metrics.ratio_stderr(metrics.row_sums(l, w))


def test_perplexity_and_bits():
  assert metrics.perplexity(math.log(7)) == pytest.approx(7)
  assert metrics.perplexity(1e6) == math.inf
  assert metrics.bits_per_byte(8 * math.log(2), 4) == pytest.approx(2)


# ------------------------------------------------------------------ metrics.jsonl


def _lines(path):
  return [
    json.loads(t, parse_constant=lambda c: pytest.fail(f'{c} is not JSON'))
    for t in (path / 'metrics.jsonl').read_text().splitlines()
  ]


def test_numbers_are_kept_in_full_and_odd_ones_stay_json(tmp_path):
  with tracking.Tracker(tmp_path, tensorboard=False) as t:
    t.log(
      'train',
      1,
      {
        'loss': 0.1 + 0.2,
        'a': math.nan,
        'b': np.float32(math.inf),
        'c': -math.inf,
        'n': np.int64(2**60),
        'bf': jnp.bfloat16(1.5),
        'x': [1.0, math.nan],
      },
    )
    t.log('sample', 1, {'text': 'NaN'})
  raw = _lines(tmp_path)[0]
  assert raw['loss'] == 0.1 + 0.2 and raw['n'] == 2**60 and raw['bf'] == 1.5
  assert [raw[k] for k in 'abc'] == ['NaN', 'Infinity', '-Infinity']
  line, sample = tracking.read_metrics(tmp_path)
  assert (
    math.isnan(line['a'])
    and (line['b'], line['c']) == (math.inf, -math.inf)
    and math.isnan(line['x'][1])
  )
  assert sample['text'] == 'NaN'


def test_half_a_line_costs_only_itself(tmp_path):
  with tracking.Tracker(tmp_path, tensorboard=False) as t:
    t.log('train', 1, {'loss': 1.0})
    t.log('train', 2, {'loss': 2.0})
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(path.read_bytes()[:-9])
  with tracking.Tracker(tmp_path, tensorboard=False) as t:
    t.log('train', 3, {'loss': 3.0})
  assert [x['step'] for x in tracking.read_metrics(tmp_path)] == [1, 3]


def test_foreign_bytes_are_skipped_and_kept(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'\xff\xfe\n[1]\n{"step": []}\n{"kind": [], "step": 1}\n\n')
  with tracking.Tracker(tmp_path, tensorboard=False) as t:
    t.log('train', 1, {'loss': 1.0})
  assert [x['loss'] for x in tracking.read_metrics(path)] == [1.0]
  assert path.read_bytes().startswith(b'\xff\xfe\n[1]\n')


def test_a_resume_hides_what_the_killed_run_logged_later(tmp_path):
  with tracking.Tracker(tmp_path, tensorboard=False) as t:
    for s in (1, 2, 3, 4):
      t.log('train', s, {'loss': float(s)})
    t.log('eval', 4, {'loss': 4.0})
  with tracking.Tracker(tmp_path, tensorboard=False, resume_step=2) as t:
    t.log('train', 3, {'loss': 33.0})
  assert [(x['kind'], x['step'], x['loss']) for x in tracking.read_metrics(tmp_path)] == [
    ('train', 1, 1.0),
    ('train', 2, 2.0),
    ('train', 3, 33.0),
  ]
  assert len(_lines(tmp_path)) == 7  # nothing is removed from the file


def test_last_line_of_a_step_wins_but_prompts_and_names_differ(tmp_path):
  with tracking.Tracker(tmp_path, tensorboard=False) as t:
    t.log('train', 1, {'loss': 1.0})
    t.log('train', 1, {'loss': 2.0})
    t.log('sample', 1, {'prompt': 'a', 'text': 'x'})
    t.log('sample', 1, {'prompt': 'b', 'text': 'y'})
  assert [x.get('loss', x.get('text')) for x in tracking.read_metrics(tmp_path)] == [2.0, 'x', 'y']


def test_every_line_is_on_disk_at_once(tmp_path):
  with tracking.Tracker(tmp_path, tensorboard=False) as t:
    t.log('train', 1, {'loss': 1.0})
    assert len(_lines(tmp_path)) == 1


def test_inactive_writes_nothing(tmp_path):
  with tracking.Tracker(tmp_path, active=False, resume_step=3) as t:
    t.log('train', 1, {'loss': 1.0})
  assert not os.listdir(tmp_path)
  assert tracking.read_metrics(tmp_path) == []


def test_arrays_are_refused(tmp_path):
  with tracking.Tracker(tmp_path, tensorboard=False) as t:
    with pytest.raises(ValueError, match='a metric is a number'):
      t.log('train', 1, {'w': object()})
  assert _lines(tmp_path) == []


# ------------------------------------------------------------------ TensorBoard


def _events(path):
  accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
  out = accumulator.EventAccumulator(str(path / 'tb'))
  out.Reload()
  return out


def test_tensorboard_reads_the_events_of_a_resumed_run(tmp_path):
  """Two writers within one second must not erase each other's file."""
  with tracking.Tracker(tmp_path) as t:
    for s in (1, 2, 3):
      t.log('train', s, {'loss': float(s), 'tokens': s * 10, 'flag': True})
    t.log('sample', 2, {'text': 'hello'})
    t.log('eval', 2, {'name': 'lambada', 'acc': 0.5})
  with tracking.Tracker(tmp_path, resume_step=1) as t:
    t.log('train', 2, {'loss': 22.0})
  events = _events(tmp_path)
  assert [(e.step, e.value) for e in events.Scalars('train/loss')] == [(1, 1.0), (2, 22.0)]
  assert set(events.Tags()['scalars']) == {'train/loss', 'train/tokens', 'eval/lambada/acc'}
  assert not events.Scalars('eval/lambada/acc')  # of the killed run, after the step resumed from


def test_a_failing_tensorboard_warns_once_and_training_goes_on(tmp_path, caplog):
  (tmp_path / 'tb').write_text('a file in the way')
  with caplog.at_level(logging.WARNING), tracking.Tracker(tmp_path) as t:
    for s in (1, 2, 3):
      t.log('train', s, {'loss': 1.0})
  assert len([r for r in caplog.records if 'TensorBoard' in r.message]) == 1
  assert len(_lines(tmp_path)) == 3


def test_a_disk_that_fills_up_later_warns_once_too(tmp_path, caplog, monkeypatch):
  with caplog.at_level(logging.WARNING), tracking.Tracker(tmp_path) as t:
    t.log('train', 1, {'loss': 1.0})

    def full(event):
      raise OSError(28, 'No space left on device')

    monkeypatch.setattr(t._tb._writer, 'write_event', full)
    t.log('train', 2, {'loss': 1.0})
    t.log('train', 3, {'loss': 1.0})
  assert len([r for r in caplog.records if 'No space left' in r.message]) == 1
  assert len(_lines(tmp_path)) == 3

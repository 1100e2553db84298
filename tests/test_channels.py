"""A tracker that raises, hangs, exits or is slow is told once and left out; training goes on."""

import dataclasses
import json
import logging
import threading
import time
from typing import Any

import pytest

from lmjax import channels
from lmjax import registry
from lmjax import tracking


@dataclasses.dataclass
class Fake:
  """A tracker that goes wrong at a place: open, log, or close."""

  wrong: dict[str, Any] = dataclasses.field(default_factory=dict)
  heard: list = dataclasses.field(default_factory=list)
  id: str = 'one'

  def _at(self, place):
    self.heard.append(place)
    if place in self.wrong:
      self.wrong[place]()

  def open(self, workdir, config, run):
    self._at('open')
    return self

  def log(self, step, time, numbers, texts):
    self._at('log')

  def close(self):
    self._at('close')


def _fail():
  raise ConnectionError('no route')


def _exit():
  raise SystemExit(1)


def _run(path, trackers, steps=3):
  with tracking.Tracker(path, tensorboard=False, trackers=trackers) as t:
    for s in range(steps):
      t.log('train', s, {'loss': 1.0})
      time.sleep(0.02)
  return [json.loads(x)['step'] for x in (path / 'metrics.jsonl').read_text().splitlines()]


@pytest.fixture(autouse=True)
def short(monkeypatch):
  monkeypatch.setattr(channels, 'CLOSING', 0.5)
  monkeypatch.setattr(channels, '_STUCK', [])


@pytest.mark.parametrize('place', ['open', 'log', 'close'])
@pytest.mark.parametrize('wrong', [_fail, _exit])
def test_one_that_raises_is_told_once_and_the_others_go_on(tmp_path, caplog, place, wrong):
  bad, good = Fake({place: wrong}), Fake()
  with caplog.at_level(logging.WARNING):
    assert _run(tmp_path, {'bad': bad, 'good': good}) == [0, 1, 2]
  told = [r.getMessage() for r in caplog.records]
  assert len(told) == 1 and told[0].startswith('tracker bad is left out'), told
  assert good.heard == ['open', 'log', 'log', 'log', 'close'] and not channels.stuck()


@pytest.mark.parametrize('place', ['open', 'log', 'close'])
def test_one_that_hangs_costs_no_step_and_a_bounded_end(tmp_path, caplog, place):
  release = threading.Event()
  begun = time.monotonic()
  with caplog.at_level(logging.WARNING):
    assert _run(tmp_path, {'slow': Fake({place: release.wait})}) == [0, 1, 2]
  assert time.monotonic() - begun < 5 and channels.stuck() == ['slow']
  assert len([r for r in caplog.records if 'tracker slow is left out' in r.getMessage()]) == 1
  release.set()


def test_silence_is_told_while_training(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(channels, 'SILENT', 0.01)
  release = threading.Event()
  with caplog.at_level(logging.WARNING):
    _run(tmp_path, {'slow': Fake({'open': release.wait})})
  assert 'no answer for' in caplog.text and caplog.text.count('left out') == 1
  release.set()


def test_lines_that_wait_are_bounded(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(channels, 'LINES', 2)
  release = threading.Event()
  with caplog.at_level(logging.WARNING):
    _run(tmp_path, {'slow': Fake({'log': release.wait})}, steps=6)
  assert '2 lines behind' in caplog.text
  release.set()


def test_ids_are_kept_beside_each_other(tmp_path):
  _run(tmp_path, {'a': Fake(id='x'), 'b': Fake(id='y')})
  assert json.loads((tmp_path / channels.FILE).read_text()) == {'a': 'x', 'b': 'y'}


def test_a_damaged_file_of_ids_begins_no_second_run(tmp_path, caplog):
  (tmp_path / channels.FILE).write_text('{"a":')
  fake = Fake()
  with caplog.at_level(logging.WARNING):
    _run(tmp_path, {'a': fake})
  assert fake.heard == [] and channels.FILE in caplog.text


def test_other_processes_open_none(tmp_path):
  fake = Fake()
  with tracking.Tracker(tmp_path, trackers={'a': fake}, active=False) as t:
    t.log('train', 1, {'loss': 1.0})
  assert fake.heard == []


class Elsewhere:
  """A tracker that is no part of lmjax."""

  def __init__(self, where: str = 'here'):
    self.where = where


def test_a_tracker_from_elsewhere_needs_no_package(tmp_path):
  spec = f'{__name__}:Elsewhere()'
  assert registry.make('tracker', spec).fact('package') == ''
  assert isinstance(next(iter(channels.parts(spec, tmp_path).values())), Elsewhere)

"""The contract of trackers, run over every registered part with a stand-in for its library.

ROWS has, by part: the stand-in's modules, and how to read back what it was told, as
{'run', 'config', 'points': [(step, tag, value)], 'texts': [(step, tag, text)], 'ended'}. A part
without an entry fails. The real libraries are tried by the slow tests.
"""

import importlib.util
import math
import sys
import types

import pytest

from lmjax import channels
from lmjax import registry
from lmjax import tracking
from lmjax.groups import ConfigError
from lmjax.specs import SpecError


def _module(name, **members):
  made = types.ModuleType(name)
  made.__spec__ = types.SimpleNamespace(origin='a stand-in')
  vars(made).update(members)
  return made


def _wandb(told):
  class Run:
    def __init__(self, **options):
      told.update(run=options['id'] or 'w1', config=options['config'], options=options)
      self.id = told['run']

    def define_metric(self, pattern, step_metric):
      assert (pattern, step_metric) == ('*', 'step')

    def log(self, line):
      step = line.pop('step')
      for k, v in line.items():
        told['texts' if isinstance(v, str) else 'points'].append((step, k, v))

    def finish(self):
      told['ended'] = True

  return {'wandb': _module('wandb', init=Run, Settings=lambda **options: options)}


def _mlflow(told):
  class Client:
    def __init__(self, uri):
      told['uri'] = uri

    def get_experiment_by_name(self, name):
      return None

    def create_experiment(self, name, artifact_location):
      return '7'

    def create_run(self, experiment, run_name):
      told.update(run='m1', config={})
      return types.SimpleNamespace(info=types.SimpleNamespace(run_id='m1'))

    def update_run(self, run, status):
      told['run'] = run

    def log_batch(self, run, metrics=(), params=()):
      assert run == told['run'] and len(params) <= 100
      told['config'] |= dict(params)
      told['points'] += [(step, k, v) for k, v, _, step in metrics]

    def log_text(self, run, text, path):
      tag, _, file = path.rpartition('/')
      told['texts'].append((int(file.removesuffix('.txt')), tag, text))

    def set_terminated(self, run):
      told['ended'] = True

  entities = _module('mlflow.entities', Metric=lambda *a: a, Param=lambda *a: a)
  return {'mlflow': _module('mlflow', MlflowClient=Client), 'mlflow.entities': entities}


def _aim(told):
  class Run:
    def __init__(self, run_hash, **_):
      self.hash = told['run'] = run_hash or 'a1'

    def __setitem__(self, key, value):
      told[key] = value

    def track(self, value, name, step):
      if isinstance(value, tuple):
        told['texts'].append((step, name, value[0]))
      else:
        assert math.isfinite(value)
        told['points'].append((step, name, value))

    def close(self):
      told['ended'] = True

  repo = types.SimpleNamespace(from_path=lambda path, init: path)
  return {'aim': _module('aim', Run=Run, Repo=repo, Text=lambda text: (text,))}


ROWS = {'aim': _aim, 'mlflow': _mlflow, 'wandb': _wandb}


@pytest.fixture
def told(request, monkeypatch):
  """What a tracker's stand-in heard."""
  heard = dict(points=[], texts=[], config={}, ended=False)
  for name, module in ROWS[request.param](heard).items():
    monkeypatch.setitem(sys.modules, name, module)
  return heard


def _run(name, path, steps, **more):
  trackers = channels.parts(f'{name}()', path)
  config = {'steps': 9, 'model': {'width': 8}}
  with tracking.Tracker(path, tensorboard=False, trackers=trackers, config=config, **more) as t:
    for s in steps:
      t.log('train', s, {'loss': float(s), 'norm': math.inf, 'flag': True})
    t.log('sample', steps[-1], {'prompt': 'p', 'text': 'a text'})


def test_every_tracker_has_an_entry():
  assert set(registry.names('tracker')) == set(ROWS)


@pytest.mark.parametrize('told, name', [(n, n) for n in ROWS], indirect=['told'])
def test_what_is_logged_arrives_and_a_resume_goes_on_in_the_same_run(told, name, tmp_path):
  _run(name, tmp_path, [1, 2])
  assert {k: str(v) for k, v in told['config'].items()} == {'steps': '9', 'model.width': '8'}
  points = [p for p in told['points'] if math.isfinite(p[2])]
  assert points == [(1, 'train/loss', 1.0), (2, 'train/loss', 2.0)] and told['ended']
  assert told['texts'] == [(2, 'sample/text', 'a text')]
  first, told['ended'] = told.pop('run'), False
  _run(name, tmp_path, [2, 3], resume_step=1)
  assert told['run'] == first and told['ended'] and (3, 'train/loss', 3.0) in told['points']


@pytest.mark.parametrize('name', ROWS)
def test_a_missing_package_is_one_sentence_before_training(name, monkeypatch, tmp_path):
  find, package = importlib.util.find_spec, registry.get('tracker', name).facts['package']
  spec = None
  known = lambda n, *more: spec if n == package else find(n, *more)
  monkeypatch.setattr(importlib.util, 'find_spec', known)
  with pytest.raises(ConfigError, match=rf"not installed: pip install 'lmjax\[{name}\]'"):
    channels.parts(f'{name}()', tmp_path)
  # A folder of that name where the command is run is no package.
  spec = types.SimpleNamespace(origin=None)
  with pytest.raises(ConfigError, match='not installed'):
    channels.parts(f'{name}()', tmp_path)


@pytest.mark.parametrize('told, name', [(n, n) for n in ROWS], indirect=['told'])
def test_a_run_in_a_store_needs_a_place(told, name):
  with pytest.raises(ConfigError, match=f'config.trackers: {name}: .* in an object store'):
    channels.parts(f'{name}()', 'gs://bucket/run')


@pytest.mark.parametrize('spec', ['wandb(mode="somewhere")', 'mlflow(url="x")', 'aim(repo=3)'])
def test_bad_arguments_are_refused(spec):
  with pytest.raises(SpecError, match=spec.partition('(')[0]):
    registry.make('tracker', spec)


# ------------------------------------------------------------------ the libraries themselves


@pytest.mark.slow
@pytest.mark.parametrize('name', ROWS)
def test_the_library_itself_keeps_one_run_over_a_resume(name, tmp_path, caplog):
  pytest.importorskip(name, reason=f'{name} is not installed')
  if name == 'aim' and not _aim_reads_what_it_wrote(tmp_path / 'control'):
    pytest.skip('this installation of Aim does not find its own records, without lmjax either')
  _run(name, tmp_path, [1, 2])
  _run(name, tmp_path, [2, 3], resume_step=1)
  assert not [r for r in caplog.records if 'left out' in r.message] and not channels.stuck()
  found = globals()[f'_read_{name}'](tmp_path)
  assert len(found) == 1 and set(found[0]) >= {(1, 1.0), (2, 2.0), (3, 3.0)}, found


def _read_mlflow(path):
  from mlflow import MlflowClient

  client = MlflowClient(f'sqlite:///{path}/mlflow.db')
  runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
  assert runs[0].data.params['model.width'] == '8' and runs[0].info.status == 'FINISHED'
  history = lambda r: client.get_metric_history(r.info.run_id, 'train/loss')
  return [[(m.step, m.value) for m in history(r)] for r in runs]


def _aim_reads_what_it_wrote(path):
  import aim

  path.mkdir()
  run = aim.Run(repo=aim.Repo.from_path(str(path), init=True), system_tracking_interval=None)
  run.track(1.0, name='x', step=1)
  run.close()
  return bool(list(aim.Repo.from_path(str(path)).iter_runs()))


def _read_aim(path):
  import aim

  out = []
  for run in aim.Repo.from_path(str(path)).iter_runs():
    loss = next(m for m in run.metrics() if m.name == 'train/loss')
    out.append(list(zip(*loss.values.sparse_list())))
  return out


def _read_wandb(path):
  """From the records of the offline runs, which share an id."""
  import json

  from wandb.proto import wandb_internal_pb2

  runs = {}
  for file in sorted(path.glob('wandb/offline-run-*/run-*.wandb')):
    for data in _records(file.read_bytes()[7:], 7):
      record = wandb_internal_pb2.Record()
      record.ParseFromString(data)
      item = {(i.key or '/'.join(i.nested_key)): i.value_json for i in record.history.item}
      if 'train/loss' in item:
        point = json.loads(item['step']), json.loads(item['train/loss'])
        runs.setdefault(file.stem, []).append(point)
  return list(runs.values())


def _records(data, begun):
  """Records of LevelDB's log format: CRC (4 bytes), length (2), type (1), in blocks of 32 KiB."""
  at, whole = 0, b''
  while at + 7 <= len(data):
    left = 32768 - (at + begun) % 32768
    if left < 7:
      at += left
      continue
    size, kind = int.from_bytes(data[at + 4 : at + 6], 'little'), data[at + 6]
    whole += data[at + 7 : at + 7 + size]
    at += 7 + size
    if kind in (1, 4):  # whole, or the last piece
      yield whole
      whole = b''


@pytest.mark.parametrize('name', ROWS)
def test_a_run_can_be_given_a_title(name):
  """`name` would be the registry's own."""
  assert registry.make('tracker', f'{name}(title="mine")')().title == 'mine'

"""The command line as a person uses it: a run, its resume, its samples and evals, and what bad
input gets.
"""

import json
import pathlib

import pytest

from lmjax import loop
from lmjax import main as main_lib
from lmjax import sample
from lmjax.tracking import read_metrics

TINY = [
  '--config.model.width=16',
  '--config.model.depth=2',
  '--config.model.mixer.head_dim=8',
  '--config.data.length=16',
  '--config.batch_tokens=64',
  '--config.eval.batches=2',
  '--config.sample.tokens=8',
  '--config.steps=6',
  '--config.checkpoint_every=2',
  '--config.eval.every=3',
  '--config.log_every=1',
  '--config.sample.every=3',
  '--config.tensorboard=false',
]


def run(workdir, *more, config='quickstart'):
  return main_lib.main([f'--config={config}', f'--workdir={workdir}', *TINY, *more])


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A complete tiny run on a text file."""
  folder = tmp_path_factory.mktemp('run')
  text = folder / 'text.txt'
  text.write_text('To be, or not to be, that is the question.\n' * 60)
  source = f'--config.data.train=text(path="{text}")'
  held = f'--config.data.valid=text(path="{text}")'
  assert run(folder / 'w', source, held) == 0
  return folder / 'w', (source, held)


def lines(workdir, kind):
  return [m for m in read_metrics(pathlib.Path(workdir) / 'metrics.jsonl') if m['kind'] == kind]


def test_run_directory_holds_what_it_should(finished):
  workdir, _ = finished
  have = {p.name for p in workdir.iterdir()}
  assert {
    'config.json',
    'fingerprint.txt',
    'command.txt',
    'versions.json',
    'metrics.jsonl',
    'checkpoints',
    'report.html',
  } <= have
  assert [m['step'] for m in lines(workdir, 'train')] == [1, 2, 3, 4, 5, 6]
  assert [m['step'] for m in lines(workdir, 'eval')] == [3, 6]
  assert len(lines(workdir, 'sample')) == 2
  train = lines(workdir, 'train')
  assert train[-1]['loss'] < train[0]['loss']
  assert {
    'lr',
    'grad_norm',
    'update_norm',
    'param_norm',
    'tokens',
    'tokens_per_second',
    'data_wait',
  } <= set(train[-1])
  config = json.loads((workdir / 'config.json').read_text())
  assert config['optim'].startswith('clip(norm=1.0) | adam(b1=')


def test_finished_run_is_left_alone(finished, capsys):
  workdir, data = finished
  before = (workdir / 'metrics.jsonl').read_text()
  assert run(workdir, *data) == 0
  assert 'complete' in capsys.readouterr().err
  assert (workdir / 'metrics.jsonl').read_text() == before


def test_stopped_and_resumed_equals_straight(finished, tmp_path, monkeypatch):
  """Stopping after step 3 and starting again gives the straight run's metrics, bit for bit."""
  workdir, data = finished
  original = loop.Trainer._periodic

  def stop_at_3(self, done, state, due, *rest):
    original(self, done, state, due, *rest)
    if done == 3 and self.config['steps'] == 6:
      self.stop.signal = 15

  original_train = loop.Trainer.train

  def train(self, state, stop):
    self.stop = stop
    return original_train(self, state, stop)

  monkeypatch.setattr(loop.Trainer, 'train', train)
  monkeypatch.setattr(loop.Trainer, '_periodic', stop_at_3)
  assert run(tmp_path / 'w', *data) == 75
  monkeypatch.setattr(loop.Trainer, '_periodic', original)
  assert run(tmp_path / 'w', *data) == 0
  keys = ('step', 'loss', 'grad_norm', 'update_norm', 'param_norm', 'lr', 'tokens')

  def pick(w):
    return [{k: m[k] for k in keys} for m in lines(w, 'train')]

  assert pick(tmp_path / 'w') == pick(workdir)
  evals = lambda w: [(m['step'], m['loss'], m['bits_per_byte']) for m in lines(w, 'eval')]
  assert evals(tmp_path / 'w') == evals(workdir)


def test_changed_data_is_refused_on_resume(tmp_path, capsys):
  text = tmp_path / 'text.txt'
  text.write_text('abcdefgh ' * 200)
  source = [f'--config.data.train=text(path="{text}")', '--config.data.valid=']
  assert run(tmp_path / 'w', *source, '--config.steps=2', '--config.schedule=constant()') == 0
  text.write_text('hgfedcba ' * 200)
  assert run(tmp_path / 'w', *source, '--config.steps=4', '--config.schedule=constant()') == 2
  assert 'was trained on other data' in capsys.readouterr().err


def test_longer_run_where_the_schedule_allows(tmp_path):
  more = ['--config.schedule=constant()', '--config.data.valid=']
  assert run(tmp_path / 'w', *more, '--config.steps=2') == 0
  assert run(tmp_path / 'w', *more, '--config.steps=4') == 0
  assert [m['step'] for m in lines(tmp_path / 'w', 'train')] == [1, 2, 3, 4]


def test_init_from(finished, tmp_path, capsys):
  workdir, data = finished
  assert run(tmp_path / 'w', *data, f'--config.init_from={workdir}', '--config.peak_lr=0.0') == 0
  first, last = lines(tmp_path / 'w', 'train')[0], lines(workdir, 'train')[-1]
  assert abs(first['param_norm'] - last['param_norm']) < 0.05 * last['param_norm']
  assert first['loss'] < lines(workdir, 'train')[0]['loss']
  assert run(tmp_path / 'x', *data, f'--config.init_from={workdir}', '--config.model.width=32') == 2
  assert 'embed/table has shape (260, 16)' in capsys.readouterr().err
  absent = f'--config.init_from={tmp_path / "absent"}'
  assert run(tmp_path / 'y', absent, '--config.data.train=text(path="not read yet")') == 2
  assert f'config.init_from: {tmp_path / "absent"}: no such directory' in capsys.readouterr().err


def test_sample_and_perplexity_of_a_file(finished, tmp_path, capsys):
  workdir, _ = finished
  assert (
    sample.main([f'--workdir={workdir}', '--prompt=To be', '--tokens=5', '--rule=greedy()']) == 0
  )
  out = capsys.readouterr().out
  assert out.startswith('To be') and len(out) > 6
  text = tmp_path / 'mine.txt'
  text.write_text('To be, or not to be.\n' * 3)
  assert main_lib.main([f'--workdir={workdir}', f'--eval=perplexity(path="{text}")']) == 0
  assert 'bits_per_byte' in capsys.readouterr().err.replace(' ', '_')


def test_plan_list_explain(capsys):
  assert main_lib.main(['--config=gpt2:124M', '--plan']) == 0
  out = capsys.readouterr().out
  assert '124,475,904' in out and 'optimizer state' in out
  assert main_lib.main(['--list']) == 0 and main_lib.main(['--list', 'mixers']) == 0
  assert 'gqa' in capsys.readouterr().out
  assert main_lib.main(['--explain', 'mixer:gqa']) == 0
  assert 'kv_heads = None' in capsys.readouterr().out


BAD = {
  'misspelt key': ('--config.model.widht=3', "did you mean 'model.width'"),
  'misspelt part': ('--config.model.mixer=gqqa()', "did you mean 'gqa'"),
  'misspelt argument': ('--config.model.mixer.kv_head=2', "did you mean 'kv_heads'"),
  'misspelt part in a chain': ('--config.optim.adm.b2=0.9', 'clip, adam, decay'),
  'wrong type': ('--config.seed=1.5', 'a whole number is expected'),
  'wrong argument type': ('--config.optim.adam.b2=high', 'float is expected'),
  'out of range': ('--config.model.depth=0', 'at least 1'),
  'heads do not divide': ('--config.model.mixer.head_dim=7', 'does not divide'),
  'rows do not divide': ('--config.data.length=7', 'does not divide'),
  'micro-batches do not divide': ('--config.micro_batches=3', 'do not divide'),
  'a causal mixer for mlm': ('--config.objective=mlm()', 'looks both ways'),
  'code instead of a spec': ('--config.objective=__import__("os").system("true")', 'expected name'),
  'a group as a leaf': ('--config.model=3', 'this is a group'),
  'no such file': ('--config.data.train=text(path="/no/such/file.txt")', '/no/such/file.txt'),
  'weight of zero': ('--config.data.train=0.0*shakespeare() + 1.0*shakespeare()', 'positive'),
  'negative weight': (
    '--config.data.train=-1.0*shakespeare() + 1.0*shakespeare()',
    'config.data.train',
  ),
  'remat of no tensor': ('--config.model.remat=names(mixer_outt)', 'mixer_out'),
  'too many devices': ('--config.mesh.data=7', 'config.mesh asks for 7 devices'),
}


@pytest.mark.parametrize('what', BAD)
def test_bad_input_is_one_sentence(what, tmp_path, capsys):
  argument, expected = BAD[what]
  assert run(tmp_path / 'w', argument) == 2
  err = capsys.readouterr().err
  assert expected in err, err
  assert 'Traceback' not in err and len(err.strip().split('\n')) == 1, err
  assert not (tmp_path / 'w' / 'checkpoints').exists()


@pytest.mark.parametrize(
  'content, expected',
  [(b'', 'is empty'), (b'\xff\xfe bad', 'is not utf-8 text'), (b'short', 'do not fill one row')],
)
def test_bad_files(content, expected, tmp_path, capsys):
  (tmp_path / 'x.txt').write_bytes(content)
  assert run(tmp_path / 'w', f'--config.data.train=text(path="{tmp_path}/x.txt")') == 2
  err = capsys.readouterr().err
  assert expected in err and 'x.txt' in err, err
  assert not (tmp_path / 'w' / 'config.json').exists(), (
    'a run that never began must not claim its directory'
  )


def test_workdir_of_another_config(finished, capsys):
  workdir, data = finished
  before = sorted((str(p), p.stat().st_mtime_ns) for p in workdir.rglob('*') if p.is_file())
  assert run(workdir, *data, '--config.peak_lr=0.5') == 2
  assert 'peak_lr is 0.003 there and 0.5 here' in capsys.readouterr().err
  assert sorted((str(p), p.stat().st_mtime_ns) for p in workdir.rglob('*') if p.is_file()) == before


def test_workdir_that_is_a_file(tmp_path, capsys):
  (tmp_path / 'f').write_text('mine')
  assert run(tmp_path / 'f') == 2
  assert str(tmp_path / 'f') in capsys.readouterr().err
  assert (tmp_path / 'f').read_text() == 'mine'


@pytest.mark.skipif(
  not pathlib.Path('/proc/self').exists(), reason='needs a folder that nobody may write to'
)
def test_unwritable_workdir(capsys):
  assert run('/proc/self/run') == 2
  err = capsys.readouterr().err
  assert '/proc/self/run' in err and 'cannot be written' in err and 'Traceback' not in err, err

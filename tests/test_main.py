"""The command line as a person uses it: a run, its resume, its samples and evals, and what bad
input gets.
"""

import importlib.util
import json
import pathlib
import re
import shutil
import sys
import types

import jax
import pytest

from lmjax import exits
from lmjax import flops
from lmjax import loop
from lmjax import main as main_lib
from lmjax import restore
from lmjax import run as run_lib
from lmjax import sample
from lmjax.checkpoint import Checkpointer
from lmjax.tracking import read_metrics
from lmjax.tracking import Tracker
from lmjax.tracking import TrackingError

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


class _Heard:
  """Stands in for the package wandb, of which it has what is called; `wrong` is what `log` does."""

  def __init__(self, wrong=None):
    self.lines, self.options, self.ended, self.wrong = [], [], 0, wrong
    self.__spec__ = types.SimpleNamespace(origin='a stand-in')

  def Settings(self, **options):
    return options

  def init(self, **options):
    self.options.append(options)
    return self

  id = 'w1'

  def define_metric(self, *_, **__):
    pass

  def log(self, line):
    if self.wrong:
      raise self.wrong
    self.lines.append(line)

  def finish(self):
    self.ended += 1


def test_scores_of_eval_reach_the_trackers_of_the_run(finished, tmp_path, monkeypatch, caplog):
  """In the tracker's same run, each once; one that fails or is not installed changes nothing."""
  workdir = tmp_path / 'w'
  shutil.copytree(finished[0], workdir)
  config = json.loads((workdir / 'config.json').read_text())
  (workdir / 'config.json').write_text(json.dumps(config | {'trackers': 'aim() | wandb()'}))
  (workdir / 'trackers.json').write_text('{"wandb": "w1"}')
  (tmp_path / 'text').write_text('A horse, a horse!\n')
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, 'find_spec', lambda n, *p: find(n, *p) if n != 'aim' else None
  )
  scores = []
  for wrong in (None, ConnectionError('no route')):
    heard = _Heard(wrong)
    monkeypatch.setitem(sys.modules, 'wandb', heard)
    caplog.clear()
    ask = [f'--workdir={workdir}', f'--eval=perplexity(path="{tmp_path / "text"}")']
    assert main_lib.main(ask) == 0
    told = [r.getMessage() for r in caplog.records if 'left out' in r.getMessage()]
    assert 'aim needs the package' in told[0] and len(told) == (1 if wrong is None else 2)
    assert [o['id'] for o in heard.options] == ['w1']
    if wrong is None:
      scores = [{k: v for k, v in line.items() if k != 'step'} for line in heard.lines]
      steps = {line['step'] for line in heard.lines}
      assert heard.ended == 1
  kept = lines(workdir, 'task')
  shown = lambda m: {f'task/{m["name"]}/{k}': m[k] for k in ('value', 'stderr') if m[k] is not None}
  assert scores == [shown(m) for m in kept] and steps == {m['step'] for m in kept} and scores
  raw = (workdir / 'metrics.jsonl').read_text().count('"kind": "task"')
  assert raw == 2 * len(kept)  # two evals
  assert json.loads((workdir / 'trackers.json').read_text()) == {'wandb': 'w1'}


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

  def train(self, state, stop, *rest):
    self.stop = stop
    return original_train(self, state, stop, *rest)

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


def task(text):
  return f'--config.eval.tasks=perplexity(path="{text}")'


@pytest.mark.parametrize('when', ['evaluate', '_sample', 'score'])
def test_what_a_stop_left_of_the_end_is_done(finished, tmp_path, monkeypatch, capsys, when):
  """Stopped after the last save: the same command evaluates, samples, scores and reports."""
  workdir, data = tmp_path / 'w', [*finished[1], task(finished[0].parent / 'text.txt')]
  place = run_lib if when == 'score' else loop.Trainer
  original = getattr(place, when)

  def stopped(*args, **kw):
    if when == 'score' or args[2] == 6:
      assert (workdir / 'checkpoints/6').exists() or when != 'score'
      raise exits.Ended(exits.RETRY, 'stopped by a signal')
    return original(*args, **kw)

  monkeypatch.setattr(place, when, stopped)
  assert run(workdir, *data) == 75
  monkeypatch.setattr(place, when, original)
  assert not lines(workdir, 'task')
  (workdir / 'report.html').unlink()
  assert run(workdir, *data) == 0
  err = capsys.readouterr().err
  assert 'resumed at step 6' in err and 'sample:' in err
  assert [m['step'] for m in lines(workdir, 'train')] == [1, 2, 3, 4, 5, 6]
  assert [(m['step'], m['loss']) for m in lines(workdir, 'eval')] == [
    (m['step'], m['loss']) for m in lines(finished[0], 'eval')
  ]
  assert [m['step'] for m in lines(workdir, 'sample')] == [3, 6]
  assert {m['task'] for m in lines(workdir, 'task')} == {'perplexity'}
  assert (workdir / 'report.html').exists()
  scores = Checkpointer(workdir / 'checkpoints').scores(6)
  assert scores == {'loss': lines(workdir, 'eval')[-1]['loss']}
  before = (workdir / 'metrics.jsonl').read_text()
  assert run(workdir, *data) == 0 and (workdir / 'metrics.jsonl').read_text() == before


def test_what_only_looks_cannot_cost_the_step(finished, tmp_path, monkeypatch):
  """Out of memory in a sample of the last step: it is saved."""

  def exhausted(*_):
    raise MemoryError('a sample of 10^9 tokens')

  monkeypatch.setattr(loop.Trainer, '_sample', exhausted)
  with pytest.raises(MemoryError):
    run(tmp_path / 'w', *finished[1], '--config.sample.every=0', '--config.checkpoint_every=0')
  assert Checkpointer(tmp_path / 'w/checkpoints').steps() == [6]


def test_a_task_without_its_file_is_told_before_training(tmp_path, capsys):
  assert run(tmp_path / 'w', task('/no/such/file.txt')) == 2
  err = capsys.readouterr().err
  assert 'config.eval.tasks=' in err and "'/no/such/file.txt': no such file" in err
  assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize(
  'config, eval_, said',
  [
    ('bert_tiny', 'perplexity(path="{}/text.txt")', 'perplexity: .*looks ahead'),
    (
      'ul2_tiny:encoder_decoder',
      'glue_finetuning(tasks="rte", path="{}")',
      'glue_finetuning: .*takes a model of one stack',
    ),
    (
      'ul2_tiny:causal',
      'glue_finetuning(tasks="rte", path="{}")',
      'glue_finetuning: rows of sentences are plain text, which a model .* ul2 never saw',
    ),
  ],
)
def test_a_model_that_an_eval_cannot_score_is_told_before_training(
  tmp_path, capsys, config, eval_, said
):
  for name in ('text.txt', 'RTE.train.tsv', 'RTE.dev.tsv'):
    (tmp_path / name).write_text('a')
  words = [f'--workdir={tmp_path / "w"}', f'--config.eval.tasks={eval_.format(tmp_path)}']
  assert main_lib.main([f'--config={config}', *words]) == 2
  err = capsys.readouterr().err
  assert re.search(f'config.eval.tasks: {said}', err), err
  assert not (tmp_path / 'w').exists()


def test_fewer_steps_than_there_are(finished, capsys):
  constant = ['--config.schedule=constant()', '--config.data.valid=']
  assert run(finished[0].parent / 'c', *constant, '--config.steps=2') == 0
  assert run(finished[0].parent / 'c', *constant, '--config.steps=1') == 0
  assert 'it has 2 steps, config.steps=1' in capsys.readouterr().err


def test_a_home_directory_is_one_directory(tmp_path, monkeypatch):
  """`--workdir='~/x'` in quotes: skips, tokens and checkpoints are all found below HOME."""
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  (tmp_path / 'here').mkdir()
  monkeypatch.chdir(tmp_path / 'here')
  more = ['--config.data.valid=', '--config.steps=2', '--skip_batches=1']
  assert run('~/w', *more) == 0
  assert (tmp_path / 'w/skips.json').exists() and not list((tmp_path / 'here').iterdir())
  (tmp_path / 'w/checkpoints/2').rename(tmp_path / 'w/2')
  (tmp_path / 'w/metrics.jsonl').unlink()
  assert run('~/w', *more[:-1]) == 0
  a, b = (Checkpointer(tmp_path / 'w').restore_params(2), None)
  b = Checkpointer(tmp_path / 'w/checkpoints').restore_params(2)
  assert a['params']['embed']['table'].tobytes() == b['params']['embed']['table'].tobytes()
  (tmp_path / 'here/text').write_text('To be')
  assert main_lib.main(['--workdir=~/w', '--eval=perplexity(path="text")']) == 0


@pytest.mark.skipif(jax.device_count() < 2, reason='needs several devices')
@pytest.mark.parametrize('devices', [1, jax.device_count()])
def test_devices_that_compute_count_and_idle_ones_are_told(tmp_path, capsys, monkeypatch, devices):
  counted = []
  monkeypatch.setattr(flops, 'mfu', lambda rate, found, n, kind: counted.append(n) or {})
  more = [
    '--config.data.valid=',
    '--config.steps=2',
    f'--config.mesh.data={devices}',
    '--config.batch_tokens=128',
  ]
  assert run(tmp_path / 'w', *more) == 0
  err = ' '.join(capsys.readouterr().err.split())
  assert f'on {devices} cpu device(s)' in err and counted == [devices]
  idle = f'{jax.device_count() - 1} more are idle; --config.mesh.data=-1 computes on all'
  assert (idle in err) == (devices == 1)


def test_a_config_that_is_no_recipe_is_refused_in_a_sentence(finished, tmp_path, capsys):
  status = main_lib.main([f'--config={finished[0]}/config.json', f'--workdir={tmp_path / "w"}'])
  err = capsys.readouterr().err
  assert status == 2 and 'config.json: a recipe is a .py file with get_config()' in err


def test_a_refused_change_of_config_changes_nothing(tmp_path, capsys):
  more = ['--config.data.valid=', '--config.steps=2']
  assert run(tmp_path / 'w', *more) == 0
  refused = {
    '--config.model.width=32': 'does not fit',
    '--config.seed=7': 'config.seed',
    '--config.batch_tokens=128': 'config.batch_tokens',
  }
  for change, why in refused.items():
    assert run(tmp_path / 'w', *more, change, '--allow_config_change') == 2
    assert why in capsys.readouterr().err
    assert run(tmp_path / 'w', *more) == 0
    assert 'this run is complete' in capsys.readouterr().err
  assert run(tmp_path / 'w', *more, '--config.peak_lr=0.5', '--allow_config_change') == 0
  assert run(tmp_path / 'w', *more, '--config.peak_lr=0.5') == 0
  assert json.loads((tmp_path / 'w/config.1.json').read_text())['peak_lr'] == 0.003


@pytest.mark.parametrize('what', ['a full disk', 'a directory'])
def test_metrics_that_cannot_be_written_end_the_run(tmp_path, capsys, monkeypatch, what):
  more = ['--config.data.valid=', '--config.steps=4']
  workdir, file = tmp_path / 'w', tmp_path / 'w/metrics.jsonl'
  assert run(workdir, *more) == 0
  (workdir / 'checkpoints/4').rename(workdir / '4')
  if what == 'a directory':
    file.rename(workdir / 'kept')
    file.mkdir()
  else:
    full = lambda path, mode, **how: HalfFull() if 'a' in mode else open(path, mode, **how)
    monkeypatch.setattr('lmjax.tracking.open', full, raising=False)
  assert run(workdir, *more) == 74
  assert f'{file} cannot be written' in capsys.readouterr().err
  (tmp_path / 'text').write_text('To be')
  score = f'--eval=perplexity(path="{tmp_path / "text"}")'
  assert main_lib.main([f'--workdir={workdir}', score]) == 74
  assert f'{file} cannot be written' in capsys.readouterr().err


def test_half_a_line_of_metrics_spoils_no_other(tmp_path):
  """A disk that was full for a moment: what was written of the line is ended, and skipped."""
  with Tracker(tmp_path, tensorboard=False) as tracker:
    lines = tracker._file
    file, lines._file = lines._file, HalfFull()
    with pytest.raises(TrackingError, match='metrics.jsonl cannot be written: No space left'):
      tracker.log('train', 1, {'loss': 1.0})
    file.write(lines._file.got)
    lines._file = file
    tracker.log('train', 2, {'loss': 2.0})
  assert [m['step'] for m in read_metrics(tmp_path)] == [2]


class HalfFull:
  """A file on a disk with room for ten bytes."""

  got = b''

  def write(self, data):
    if self.got:
      raise OSError(28, 'No space left on device')
    self.got = bytes(data[:10])
    return 10

  def close(self):
    raise OSError(28, 'No space left on device')


def test_odd_lines_of_metrics_do_no_harm(finished, tmp_path):
  more = [*finished[1], '--config.steps=2']
  assert run(tmp_path / 'w', *more) == 0
  odd = ['{"kind":"train","step":"abc"}', 'null', '{"kind":5,"step":1}', '[' * 9999, '1']
  odd += ['{"kind":"train","step":1e999}', '{"kind":"train","step":%d}' % 10**400, '{"step":1}']
  odd += ['{"kind":"train","step":2,"loss":{"a":[1]},"time":"x","tokens":"y"}']
  with open(tmp_path / 'w/metrics.jsonl', 'a') as f:
    f.write('\n'.join(odd))
  (tmp_path / 'w/checkpoints/2').rename(tmp_path / 'w/2')
  assert run(tmp_path / 'w', *more) == 0
  assert (tmp_path / 'w/report.html').exists()


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
  assert run(tmp_path / 'x', *data, f'--config.init_from={workdir}') == 0  # it is free again
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
  'a huge window': ('--config.guard=spikes(window=1000000000)', 'at most 1000000 steps'),
  'a huge sample': ('--config.sample.tokens=1000000000', 'at most 100000 is expected'),
  'batches without end': ('--config.data.prefetch=1000000000', 'at most 10000 is expected'),
  'a tower': ('--config.model.depth=1000000', 'at most 10000 is expected'),
  'a huge batch to skip': ('--skip_batches=5:99999999999999999999', '--skip_batches=5:999'),
  'no such port': ('--coordinator=127.0.0.1:99999', 'a port from 1 to 65535'),
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
  'arguments, expected',
  [
    ('--cofnig=quickstart', "'--cofnig=quickstart' is no flag; did you mean '--config'?"),
    ('--config=quickstart --work_dir=w', "did you mean '--workdir'?"),
    ('--config=quickstart --zzzzzz', 'is no flag. --help'),
    ('--config=quickstart --steps=60', '--config.steps=VALUE sets that key'),
    ('--config=quickstart config.steps=60', '--config.steps=VALUE sets that key'),
    ('--config=quickstart --model.mixer=gqa()', '--config.model.mixer=VALUE sets that key'),
    ('--config=quickstart steps', '--config.steps=VALUE'),
    ('--config=quickstart --workdir', 'argument --workdir: expected one argument'),
    ('', '--config=RECIPE is needed, one of bert_tiny, '),
    ('--config=missing/file.py', 'nor a recipe of that name. Recipes: '),
  ],
)
def test_a_word_that_is_no_flag_is_one_sentence(arguments, expected, capsys):
  try:
    status = main_lib.main(arguments.split())
  except SystemExit as e:
    status = e.code
  out, err = capsys.readouterr()
  assert status == 2 and not out
  assert expected in err and err.startswith('lmjax: ') and err.count('\n') == 1, err


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


@pytest.mark.parametrize('name', ['20261123', '3'])
def test_a_run_may_be_named_by_a_number(finished, tmp_path, name):
  """As a date; a folder of a step has a number too."""
  folder = tmp_path / name
  shutil.copytree(finished[0], folder)
  want = restore.find_checkpoint(str(finished[0]))[1]
  assert restore.find_checkpoint(str(folder))[1] == want
  assert restore.find_checkpoint(str(folder / 'checkpoints' / str(want)))[1] == want

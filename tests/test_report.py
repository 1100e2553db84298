"""The report is one file that needs nothing else, and whatever a run wrote is text on it."""

import html.parser
import io
import json
import math
import re
import time

import numpy as np
import pytest

from lmjax import progress
from lmjax import report
from lmjax import report_curves
from lmjax import report_data
from lmjax import tracking

EVIL = '</script><script>alert("owned")</script><img src=x onerror=alert(1)> & <!-- ]]>'


class Page(html.parser.HTMLParser):
  """Elements with their attributes, text, and a check that tags close in order."""

  VOID = {'meta', 'input', 'br', 'img', 'link'}

  def __init__(self, text):
    super().__init__()
    self.tags, self.open, self.texts = [], [], {}
    self.feed(text)
    assert not self.open, self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open and self.open.pop() == tag, tag

  def handle_data(self, data):
    if self.open:
      self.texts[self.open[-1]] = self.texts.get(self.open[-1], '') + data

  def all(self, tag):
    return [a for t, a in self.tags if t == tag]


def _log(path, steps, *, eval_every=4, **more):
  path.mkdir(exist_ok=True)
  with tracking.Tracker(path, tensorboard=False) as t:
    for s in steps:
      t.log(
        'train',
        s,
        {
          'tokens': s * 100,
          'time': 1e9 + 2.0 * s,
          'loss': 3.0 + 1 / s,
          'lr': 1e-3,
          'grad_norm': 1.0,
          'aux/z': 0.5,
          'tokens_per_second': 50.0,
          'step_time': 2.0,
          'data_wait': 0.01,
        }
        | more,
      )
      if s % eval_every == 0:
        t.log(
          'eval',
          s,
          {'loss': 3.0 + 1 / s, 'loss_stderr': 0.0125, 'perplexity': 20.5, 'bits_per_byte': 2.25},
        )


def _page(path):
  text = report.write_report(path).read_text(encoding='utf-8')
  page = Page(text)
  return text, page, json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', text, re.S)[1])


def test_one_file_without_network(tmp_path):
  _log(tmp_path / 'run', range(1, 9))
  text, page, data = _page(tmp_path / 'run')
  assert not page.all('link') and not any('src' in a for a in page.all('script'))
  assert not re.search(r'url\(|@import|fetch\(|XMLHttpRequest|WebSocket', text)
  assert "default-src 'none'" in text
  assert len(text) < 150_000
  assert any(
    a.get('name') == 'viewport' and 'width=device-width' in a['content'] for a in page.all('meta')
  )
  assert page.all('html')[0]['lang'] == 'en' and len(page.all('title')) == 1
  run = data['runs'][0]
  assert run['train']['step'] == list(range(1, 9)) and run['train']['seconds'] == [
    2.0 * i for i in range(8)
  ]
  assert run['train']['tokens'][-1] == 800 and run['train']['aux/z'] == [0.5] * 8
  assert run['evals']['validation']['step'] == [4, 8] and run['evals']['validation']['seconds'] == [
    6.0,
    14.0,
  ]


def test_headline_numbers(tmp_path):
  _log(tmp_path / 'run', range(1, 9))
  (tmp_path / 'run' / 'config.json').write_text('{"steps": 8, "model": {"mixer": "gqa(x=1)"}}')
  text, _, _ = _page(tmp_path / 'run')
  plain = ' '.join(re.sub(r'<[^>]+>', ' ', text.split('<main>')[1].split('</main>')[0]).split())
  for part in (
    'finished',
    '8 of 8 steps',
    '800 tokens',
    '14 s',
    'best validation loss 3.1250 ± 0.0125 at step 8',
    'perplexity 20.5',
    'bits per byte 2.25',
    'tokens/s 50',
    'data wait 0.5%',
    'model.mixer gqa(x=1)',
  ):
    assert part in plain, (part, plain)


def test_the_best_evaluation_is_not_the_last(tmp_path):
  path = tmp_path / 'run'
  _log(path, [1, 2])
  with tracking.Tracker(path, tensorboard=False) as t:
    for s, loss in ((3, 2.0), (4, 2.5), (5, math.nan)):
      t.log('eval', s, {'loss': loss})
  facts = report_data.load(path).facts
  assert facts['best']['step'] == 3 and facts['last']['step'] == 4
  text, _, _ = _page(path)
  assert '2.0000' in text and 'last validation loss' in text


@pytest.mark.parametrize(
  'place',
  ['sample', 'prompt', 'config', 'command', 'metric', 'eval name', 'kind', 'version', 'run name'],
)
def test_what_a_run_wrote_is_only_text(tmp_path, place):
  path = tmp_path / ('<img src=x onerror=alert(1)>' if place == 'run name' else 'run')
  _log(path, range(1, 5))
  with tracking.Tracker(path, tensorboard=False) as t:
    t.log(
      'sample',
      2,
      {'text': EVIL if place == 'sample' else 'x', 'prompt': EVIL if place == 'prompt' else ''},
    )
    t.log('train', 5, {EVIL if place == 'metric' else 'm': 1.0, 'loss': 1.0})
    t.log('eval', 5, {'name': EVIL if place == 'eval name' else 'v', 'loss': 1.0})
    t.log(EVIL if place == 'kind' else 'note', 5, {'a': 1})
  (path / 'config.json').write_text(json.dumps({EVIL: EVIL} if place == 'config' else {}))
  (path / 'command.txt').write_text(EVIL if place == 'command' else '')
  (path / 'versions.json').write_text(
    json.dumps([{EVIL: EVIL} if place == 'version' else {'a': 1}])
  )
  text, page, data = _page(path)
  assert len(page.all('script')) == 3 and not page.all('img')
  assert '<img' not in text and 'alert("owned")</script>' not in text
  assert 'alert' in text  # it is shown, as text


@pytest.mark.parametrize('state', ['empty', 'no metrics', 'torn', 'only samples'])
def test_any_state_of_a_run_directory(tmp_path, state):
  path = tmp_path / 'run'
  path.mkdir()
  if state != 'empty':
    (path / 'config.json').write_text('{"steps": 5}' if state != 'torn' else '{"ste')
    (path / 'versions.json').write_text('[]' if state != 'torn' else '[{')
  if state == 'torn':
    (path / 'metrics.jsonl').write_text('{"kind": "tra')
  if state == 'only samples':
    with tracking.Tracker(path, tensorboard=False) as t:
      t.log('sample', 0, {'text': 'once'})
  text, _, data = _page(path)
  assert 'No training step has been logged yet' in text
  assert data['runs'][0]['train']['step'] == []
  assert ('once' in text) == (state == 'only samples')


def test_nan_is_counted_not_drawn(tmp_path):
  path = tmp_path / 'run'
  _log(path, [1, 2, 3])
  _log(path, [4], loss=math.nan, grad_norm=math.inf, eval_every=99)
  text, _, data = _page(path)
  assert '1 logged step holds NaN' in text
  assert (
    data['runs'][0]['train']['loss'][3] is None and data['runs'][0]['train']['grad_norm'][3] is None
  )
  assert data['runs'][0]['train']['lr'][3] == 1e-3


def test_everything_nan(tmp_path):
  path = tmp_path / 'run'
  _log(path, [1, 2], loss=math.nan, tokens=math.nan, eval_every=99)
  _, _, data = _page(path)
  assert 'loss' not in data['runs'][0]['train'] and data['runs'][0]['train']['tokens'] == [
    None,
    None,
  ]


def test_a_long_run_stays_small_and_keeps_its_spikes(tmp_path):
  path = tmp_path / 'run'
  path.mkdir()
  with open(path / 'metrics.jsonl', 'w', encoding='utf-8') as f:
    for s in range(1, 30001):
      f.write(
        json.dumps(
          {'kind': 'train', 'step': s, 'time': s, 'loss': 99.0 if s == 17003 else 2 + 1 / s}
        )
        + '\n'
      )
  text, _, data = _page(path)
  train = data['runs'][0]['train']
  assert len(train['step']) <= report_curves.MAX_POINTS + 2 and len(text) < 300_000
  assert max(train['loss']) == 99.0 and train['step'][train['loss'].index(99.0)] == 17003
  assert (train['step'][0], train['step'][-1]) == (1, 30000)


def test_a_pause_between_kill_and_resume_is_not_training_time(tmp_path):
  path = tmp_path / 'run'
  path.mkdir()
  with tracking.Tracker(path, tensorboard=False) as t:
    for s, at in ((1, 0), (2, 2), (3, 4), (4, 90_000), (5, 90_002)):
      t.log('train', s, {'time': 1e9 + at, 'loss': 1.0})
  assert report_data.load(path).facts['seconds'] == 8.0


def test_states(tmp_path):
  path = tmp_path / 'run'
  _log(path, [1, 2])
  (path / 'config.json').write_text('{"steps": 9}')
  assert report_data.load(path).facts['state'] == 'stopped'
  with tracking.Tracker(path, tensorboard=False) as t:
    t.log('train', 3, {'loss': 1.0})
  assert report_data.load(path).facts['state'] == 'running'
  assert report_data.load(path, 'finished').facts['state'] == 'finished'


def _several(tmp_path, n, **more):
  for i in range(n):
    _log(tmp_path / f'run_{i}', range(1, 9), **more)
    config = {'steps': 8, 'optim': {'peak_lr': 1e-3 * (i + 1)}, 'notes': None}
    (tmp_path / f'run_{i}' / 'config.json').write_text(json.dumps(config))
  return [str(tmp_path / f'run_{i}') for i in range(n)]


def _data(text):
  return json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', text, re.S)[1])


def test_comparison(tmp_path, capsys):
  """The page of several runs stands beside them and takes nobody's own."""
  runs = _several(tmp_path, 2)
  with tracking.Tracker(runs[1], tensorboard=False) as t:
    t.log('task', 8, {'task': 'lambada', 'name': 'accuracy', 'value': 0.25, 'stderr': 0.01})
    t.log('model', 8, {'flops_per_token': 600.0})
  assert report.main(runs) == 0
  assert capsys.readouterr().out.strip() == str(tmp_path / 'report.html')
  text = (tmp_path / 'report.html').read_text(encoding='utf-8')
  data = _data(text)
  assert '2 runs compared' in Page(text).texts['h1']
  assert data['keys'] == ['optim.peak_lr']  # and neither steps nor notes
  assert [data['values'][0][r['config'][0]] for r in data['runs']] == ['0.001', '0.002']
  found = dict((data['scores'][k], (v, e)) for k, v, e in data['runs'][1]['scores'])
  assert found['lambada: accuracy'] == (0.25, 0.01)
  assert found['validation: loss'] == (3.125, 0.0125)
  assert [r['flops'] for r in data['runs']] == [None, 600.0]
  assert not (tmp_path / 'run_0' / 'report.html').exists()
  # `runs/*` the second time
  assert report.main([str(tmp_path / 'report.html'), *runs]) == 0
  assert capsys.readouterr().err == ''
  assert 'Left out' not in (tmp_path / 'report.html').read_text(encoding='utf-8')


def test_reading_of_many_runs_is_counted_on_a_terminal_alone(tmp_path, capsys, monkeypatch):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  runs = _several(tmp_path, 3)
  monkeypatch.setattr(report_data, 'load', lambda *a, f=report_data.load: time.sleep(0.3) or f(*a))
  seen = Terminal()
  console = progress._Console(file=seen, force_terminal=True, width=100, legacy_windows=False)
  for where, words in ((console, '2/3 runs'), (progress.CONSOLE, '')):
    monkeypatch.setattr(progress, 'CONSOLE', where)
    assert report.main(runs) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(tmp_path / 'report.html') and err == ''
    assert words in seen.getvalue() and ('reading' in seen.getvalue()) == bool(words)
    seen.truncate(0)


def test_a_page_links_to_the_pages_of_its_runs(tmp_path):
  runs = _several(tmp_path, 2)
  report.write_report(runs[1])
  out = report.write_report(runs[0], others=runs[1:], out=tmp_path / 'pages of mine.html')
  assert [r['href'] for r in _data(out.read_text())['runs']] == [None, 'run_1/report.html']


def test_what_is_no_run_is_left_out_and_said(tmp_path, capsys):
  runs = _several(tmp_path, 2)
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'notes.txt').write_text('x')
  (tmp_path / 'only_config').mkdir()
  (tmp_path / 'only_config' / 'config.json').write_text('{}')
  broken = tmp_path / 'broken'
  (broken / 'metrics.jsonl').mkdir(parents=True)
  others = [str(tmp_path / n) for n in ('empty', 'notes.txt', 'only_config', 'none', 'broken')]
  assert report.main([*runs, *others]) == 0
  told = capsys.readouterr().err
  for part in ("empty' holds no run", 'notes.txt', "none' is not a directory", 'broken/metrics'):
    assert part in told
  assert 'Traceback' not in told
  text = (tmp_path / 'report.html').read_text()
  assert [r['name'] for r in _data(text)['runs']] == ['run_0', 'run_1', 'only_config']
  assert [r['state'] for r in _data(text)['runs']] == ['finished', 'finished', 'not started']
  assert 'Left out: ' in text and 'holds no run' in text
  assert report.main([str(tmp_path / 'empty'), str(tmp_path / 'none')]) == 2
  assert capsys.readouterr().err.count('error: no run to report') == 1


def test_lines_that_cannot_be_read_are_counted_and_stay(tmp_path):
  path = tmp_path / 'run'
  _log(path, range(1, 5))
  damaged = (path / 'metrics.jsonl').read_bytes() + b'\xff\xfe\n[1]\n\n{"kind": "tra'
  (path / 'metrics.jsonl').write_bytes(damaged)
  text, _, data = _page(path)
  assert '3 lines of metrics.jsonl could not be read' in text
  assert data['runs'][0]['train']['step'] == [1, 2, 3, 4]
  assert (path / 'metrics.jsonl').read_bytes() == damaged


def test_other_metric_names_are_drawn_too(tmp_path):
  path = tmp_path / 'run'
  path.mkdir()
  with tracking.Tracker(path, tensorboard=False) as t:
    for s in range(5000):
      t.log('train', s, {'reward': 100.0 if s == 4321 else 1.0, 'constructor': 1.0})
  _, _, data = _page(path)
  train = data['runs'][0]['train']
  assert max(train['reward']) == 100.0 and train['step'][train['reward'].index(100.0)] == 4321
  assert 'constructor' in train and len(train['step']) <= report_curves.MAX_POINTS


def test_spikes_of_every_curve_stay_in_their_stretch():
  n = 30_001
  x = np.arange(n, dtype=float)
  table = {k: x.copy() for k in ('step', 'tokens', 'seconds')}
  rng = np.random.default_rng(0)
  table |= {k: rng.normal(size=n) for k in ('loss', 'norm')}
  table['norm'][777], table['loss'][20_000], table['loss'][1000:3000] = 99.0, -99.0, math.nan
  out = report_curves.thinned(table, 2000)
  assert {len(v) for v in out.values()} == {len(out['step'])} and len(out['step']) <= 2000
  assert (np.diff(out['step']) > 0).all() and (out['step'][0], out['step'][-1]) == (0, n - 1)
  assert out['step'][out['loss'] == -99.0].tolist() == [20_000]
  assert abs(out['step'][out['norm'] == 99.0] - 777).max() < 2 * n / 1000
  for most in (4, 5, 9):
    small = report_curves.thinned({k: v[:11] for k, v in table.items()}, most)
    assert len(small['step']) <= most and small['step'][-1] == 10


def test_many_curves_or_few_numbers_keep_the_main_ones(tmp_path):
  rows = [
    {'kind': 'train', 'step': s, 'loss': 1.0, **{f'm{i}': 1.0 for i in range(40)}}
    for s in range(99)
  ]
  clock = report_curves.clock(rows)
  kept, hidden = report_curves.columns(rows, clock, 1000)
  assert 'loss' in kept and len(hidden) == 40
  kept, hidden = report_curves.columns(rows, clock, 10_000)
  assert len(kept) == 44 and not hidden


def test_a_reader_of_few_lines_takes_them_from_everywhere(tmp_path):
  """Evaluations, resumes, the first and the last step are among them."""
  _log(tmp_path / 'run', range(1, 101))
  found = tracking.read(tmp_path / 'run', 10)
  train = [x['step'] for x in found.lines if x['kind'] == 'train']
  assert train == [1, 12, 23, 34, 45, 56, 67, 78, 89, 100] and found.passed == 90
  assert len([x for x in found.lines if x['kind'] == 'eval']) == 25


def test_samples_are_spread_over_the_run(tmp_path):
  path = tmp_path / 'run'
  path.mkdir()
  with tracking.Tracker(path, tensorboard=False) as t:
    for s in range(100):
      t.log('sample', s, {'text': 'x' * (9000 if s == 99 else 5)})
  samples = report_data.load(path).samples
  assert len(samples) == report_data.SAMPLES and samples[0][0] == 0 and samples[-1][0] == 99
  assert samples[-1][2].endswith('[...]') and len(samples[-1][2]) < 5000
  assert '20 of 100, spread over the run' in _page(path)[0]


def test_a_thousand_runs_are_one_small_page(tmp_path):
  rows = lambda i: [
    {'kind': 'train', 'step': s, 'time': s, 'loss': 1 + i / s, 'lr': 1.0} for s in range(1, 60)
  ]
  for i in range(1000):
    (tmp_path / f'r{i}').mkdir()
    text = '\n'.join(json.dumps(x) for x in rows(i)) + '\n'
    (tmp_path / f'r{i}' / 'metrics.jsonl').write_text(text)
  runs = [str(tmp_path / f'r{i}') for i in range(1000)]
  text = report.write_report(runs[0], others=runs[1:]).read_text()
  assert len(_data(text)['runs']) == 1000 and len(text) < 5_000_000


def test_runs_of_one_name_are_told_apart(tmp_path):
  for p in ('x', 'y'):
    (tmp_path / p).mkdir()
    _log(tmp_path / p / 'run', [1, 2])
  text = report.write_report(tmp_path / 'x' / 'run', others=[tmp_path / 'y' / 'run']).read_text()
  assert str(tmp_path / 'x' / 'run') in text and str(tmp_path / 'y' / 'run') in text


def test_a_missing_workdir_is_one_sentence(tmp_path, capsys):
  assert report.main([str(tmp_path / 'none')]) == 2
  err = capsys.readouterr().err
  assert err.startswith('error: ') and 'is not a directory' in err and err.count('\n') == 1


@pytest.mark.parametrize('out', ['', 'a\0b', '.'])
def test_a_target_without_a_name_is_one_sentence(tmp_path, capsys, out):
  assert report.main([str(tmp_path), f'--out={out}']) == 2
  err = capsys.readouterr().err
  assert err.startswith('error: --out=') and err.count('\n') == 1

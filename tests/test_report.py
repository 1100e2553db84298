"""The report is one file that needs nothing else, and whatever a run wrote is text on it."""

import html.parser
import json
import math
import re
import shutil
import subprocess

import pytest

from lmjax import report
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
  assert not re.search(r'url\(|@import|fetch\(|XMLHttpRequest', text)
  assert len(text) < 200_000
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
  assert len(train['step']) <= report_data.MAX_POINTS + 2 and len(text) < 300_000
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


def test_comparison(tmp_path, capsys):
  for name, lr in (('a', 1e-3), ('b_2', 2e-3)):
    _log(tmp_path / name, range(1, 9))
    (tmp_path / name / 'config.json').write_text(json.dumps({'steps': 8, 'optim': {'peak_lr': lr}}))
  out = tmp_path / 'cmp.html'
  assert report.main([str(tmp_path / 'a'), str(tmp_path / 'b_2'), f'--out={out}']) == 0
  assert capsys.readouterr().out.strip() == str(out)
  text = out.read_text(encoding='utf-8')
  page = Page(text)
  assert '2 runs compared' in page.texts['h1'] and '>b_2</th>' in text
  assert 'optim.peak_lr</td>' in text and '<td>steps</td>' not in text
  assert not (tmp_path / 'a' / 'report.html').exists()


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


def test_the_script_parses(tmp_path):
  node = shutil.which('node')
  if node is None:
    pytest.skip('node is not installed')
  source = report.importlib.resources.files('lmjax') / 'assets' / 'report' / 'report.js'
  assert subprocess.run([node, '--check', str(source)], capture_output=True).returncode == 0


def test_the_script_draws_in_a_browser(tmp_path):
  """Every control, both with one run and with two; an exception would leave its mark."""
  browser = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
  )
  if browser is None:
    pytest.skip('no chromium is installed')
  for name in ('a', 'b'):
    _log(tmp_path / name, range(1, 9))
  for others in ([], [tmp_path / 'b']):
    out = report.write_report(tmp_path / 'a', others=others)
    probe = """<script>window.onerror = (m) => { document.title = 'ERROR ' + m; };</script>"""
    drive = """<script>
      for (const axis of ['tokens', 'seconds', 'step']) for (const log of [true, false]) {
      document.querySelector('input[value=' + axis + ']').checked = true;
      document.getElementById('logy').checked = log;
      document.getElementById('smooth').value = log ? 0 : 0.9;
      document.querySelector('.controls').dispatchEvent(new Event('input')); }
      document.getElementById('more').open = true; document.getElementById('theme').click();
      document.body.dataset.drawn = document.querySelectorAll('canvas').length;</script>"""
    text = out.read_text().replace('<body>', '<body>' + probe).replace('</body>', drive + '</body>')
    out.write_text(text)
    dom = subprocess.run(
      [
        browser,
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        f'--user-data-dir={tmp_path}/profile',
        '--dump-dom',
        f'file://{out}',
      ],
      capture_output=True,
      text=True,
      timeout=120,
    ).stdout
    assert 'ERROR' not in re.search('<title>(.*?)</title>', dom)[1]
    drawn = re.search('data-drawn="([0-9]+)"', dom)
    assert drawn and int(drawn[1]) == 7, drawn
    assert 'aria-label="Loss (nats per token) by steps: ' in dom

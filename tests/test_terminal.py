"""Commands on a terminal, off it and with NO_COLOR, by a pseudo-terminal; --help on a screen."""

import importlib
import os
import pathlib
import pty
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
COUNTING = """
import sys, time
from lmjax import progress
for i in progress.track(range(40), 'reading it', unit='files'):
  time.sleep(0.03)
  if i == 20:
    print('a result', flush=True)
with progress.Count('of unknown length', unit='tokens') as count:
  for i in range(5):
    count.add(1000)
    time.sleep(0.1)
with progress.Bar(2, 0) as bar:
  bar.update(1, 'loss 1.0')
  for _ in progress.track(range(3), 'within the bar'):
    time.sleep(0.1)
  bar.update(2, 'loss 0.5')
"""
COLOUR = re.compile(rb'\x1b\[[0-9;]*(3[0-8]|4[0-8]|9[0-7])(;[0-9;]*)?m')


def terminal(*command, stdout_too=False, **env):
  """(what came to the terminal, standard output where it is a pipe, exit status)."""
  ours, theirs = pty.openpty()
  env = {k: v for k, v in os.environ.items() if k not in ('NO_COLOR', 'FORCE_COLOR')} | {
    'TERM': 'xterm-256color',
    'COLUMNS': '120',
    'PYTHONPATH': str(ROOT),
    **env,
  }
  process = subprocess.Popen(
    [sys.executable, *command],
    env=env,
    stdin=theirs,
    stdout=theirs if stdout_too else subprocess.PIPE,
    stderr=theirs,
  )
  os.close(theirs)
  seen = b''
  try:
    while block := os.read(ours, 65536):
      seen += block
  except OSError:  # the other end is closed
    pass
  os.close(ours)
  out = b'' if stdout_too else process.stdout.read()
  return seen, out, process.wait()


def test_on_a_terminal_there_is_a_bar_with_rate_and_time_left():
  seen, out, status = terminal('-c', COUNTING)
  assert status == 0
  text = seen.decode()
  assert 'reading it' in text and re.search(r'\d+/40 files  \d+/s', text) and ' left ' in text
  assert re.search(r'of unknown length.*000 tokens  [\d,]+/s', text)
  assert '1/2' in text and 'loss 1.0' in text and 'within the bar' not in text
  assert COLOUR.search(seen)
  assert out == b'a result\n', 'what is printed goes where standard output goes'


def test_no_color_leaves_the_bar_and_takes_the_colours():
  seen, _, _ = terminal('-c', COUNTING, NO_COLOR='1')
  assert b'reading it' in seen and not COLOUR.search(seen)


@pytest.mark.parametrize('how', ['pipe', 'forced', 'dumb'])
def test_elsewhere_it_is_quiet(how):
  if how == 'dumb':  # a terminal that cannot move its cursor
    seen, out, _ = terminal('-c', COUNTING, TERM='dumb')
    seen = seen.replace(b'\r\n', b'\n')
  else:
    env = {**os.environ, 'PYTHONPATH': str(ROOT)} | (
      {'FORCE_COLOR': '1'} if how == 'forced' else {}
    )
    ran = subprocess.run([sys.executable, '-c', COUNTING], capture_output=True, env=env)
    seen, out = ran.stderr, ran.stdout
  assert out == b'a result\n'
  assert b'\x1b' not in seen and b'reading' not in seen
  assert seen.decode().splitlines()[-1].startswith('step 2/2  loss 0.5')


def test_prepare_tells_tokens_and_time_left_on_a_terminal_only(tmp_path):
  (tmp_path / 'x.txt').write_text('To be, or not to be, that is the question.\n' * 20_000)
  command = ['-m', 'lmjax.data.prepare', f'--source=text(path="{tmp_path}/x.txt", separator="\\n")']
  command += ['--tokenizer=bytes()']
  seen, out, status = terminal(*command, f'--out={tmp_path}/a')
  assert (
    status == 0
    and re.search(rb'left.* tokens  [\d,]+ tokens/s', seen)
    and b'20,001 documents' in out
  )
  env = {**os.environ, 'PYTHONPATH': str(ROOT)}
  ran = subprocess.run(
    [sys.executable, *command, f'--out={tmp_path}/b'], capture_output=True, env=env, text=True
  )
  assert ran.returncode == 0 and not ran.stderr and ran.stdout.count('\n') == 1


COMMANDS = (
  'main',
  'sample',
  'tokenize',
  'quantize',
  'profile',
  'data.prepare',
  'checkpoint.tool',
  'experiment.__main__',
  'new',
)


@pytest.mark.parametrize('name', COMMANDS)
def test_help_fits_a_screen_and_shows_examples_and_exit_statuses(name, capsys, monkeypatch):
  monkeypatch.setenv('COLUMNS', '80')
  with pytest.raises(SystemExit) as end:
    importlib.import_module(f'lmjax.{name}').main(['--help'])
  text = capsys.readouterr().out
  rows = sum(max(1, -(-len(line) // 80)) for line in text.splitlines())
  assert end.value.code == 0 and rows <= 30, f'{rows} rows of 80 columns'
  where = f'python -m lmjax.{name.removesuffix(".tool").removesuffix(".__main__")}'
  assert text.count(where) >= 2, 'an example'
  assert 'exit status' in text.lower()


def test_all_flags_are_told_when_asked_for(capsys):
  from lmjax import main

  for words, there in ((['--help'], False), (['--help_all'], True)):
    with pytest.raises(SystemExit):
      main.main(words)
    assert ('--lost_timeout' in capsys.readouterr().out) == there

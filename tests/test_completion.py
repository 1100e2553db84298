"""What the shells themselves make of a line when Tab is pressed."""

import os
import pty
import re
import select
import shutil
import subprocess
import time

import pytest

from lmjax import completion
from lmjax import main as main_lib

BEGIN = dict(
  bash=['bash', '--norc', '--noprofile', '-i'],
  zsh=['zsh', '-f', '-i'],
)
BEFORE = dict(bash='', zsh='autoload -U compinit; compinit -u -D; ')


def typed(shell: str, folder, keys: str) -> str:
  """The line that a shell has after these keys, in a folder of its own."""
  here, there = pty.openpty()
  process = subprocess.Popen(
    BEGIN[shell],
    stdin=there,
    stdout=there,
    stderr=there,
    cwd=folder,
    env=os.environ | dict(TERM='dumb', PS1='> ', HOME=str(folder), COLUMNS='300'),
    start_new_session=True,
  )
  os.close(there)
  seen = b''

  def until(pattern: bytes):
    nonlocal seen
    end = time.monotonic() + 30
    while not (found := re.search(pattern, seen)):
      assert time.monotonic() < end, seen
      if select.select([here], [], [], 0.1)[0]:
        seen += os.read(here, 1 << 16)
    return found

  try:
    os.write(here, f'{BEFORE[shell]}. ./script; echo REA""DY\n'.encode())
    until(rb'READY\r?\n')
    # Tab, then the line becomes an argument of echo.
    os.write(here, keys.encode() + b'\t')
    time.sleep(0.3)
    os.write(here, b"\x05'\x01echo 'GOT\n")
    return until(rb'\nGOT([^\r\n]*)')[1].decode()
  finally:
    process.kill()
    process.wait()
    os.close(here)


@pytest.mark.parametrize(
  'keys, line',
  [
    ('python -m lmjax.mai', 'python -m lmjax.main '),
    ('python -m lmjax.main --config=quicks', 'python -m lmjax.main --config=quickstart '),
    ('python3 -m lmjax.main --config.opti', 'python3 -m lmjax.main --config.optim='),
    ('python -m lmjax.main --x=1 --determ', 'python -m lmjax.main --x=1 --deterministic '),
    ('python -m lmjax.main --workdir=som', 'python -m lmjax.main --workdir=some_file '),
    ('python som', 'python some_file '),
    ('python -m json.tool som', 'python -m json.tool some_file '),
  ],
)
@pytest.mark.parametrize('shell', BEGIN)
def test_tab_completes_what_it_knows_and_files_elsewhere(shell, keys, line, tmp_path):
  if shutil.which(shell) is None:
    pytest.skip(f'{shell} is not installed')
  (tmp_path / 'script').write_text(completion.script(shell))
  (tmp_path / 'some_file').touch()
  # zsh takes the space away again when a quotation mark follows.
  assert typed(shell, tmp_path, keys) == (line if shell == 'bash' else line.rstrip())


def test_words_are_those_of_the_command(capsys):
  found = completion.words()
  for word in (
    '--config=quickstart',
    '--config.steps=',
    '--config.model.mixer=',
    '--eval=lambada',
    '--list=mixer',
    '--plan',
  ):
    assert word in found
  assert {'--plan=show', '--plan=search', '--workdir=', '--allow_code', '--help'} <= set(found)
  assert not {'--plan=', '--allow_code=', '--workdir'} & set(found)
  assert not [w for w in found if not re.fullmatch(r'--[\w.]+(=[\w.]*)?', w)]  # none needs quotes
  assert 'lmjax.main' in completion.modules() and 'lmjax.interop' in completion.modules()
  for flag in (w for w in found if w.endswith('=') and '.' not in w):
    assert main_lib.parse([f'{flag}7', '--plan', '--coordinator=a:1'])[1] is not None
  assert completion.main(['bash']) == 0
  assert capsys.readouterr().out == completion.script('bash')

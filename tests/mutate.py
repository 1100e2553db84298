"""Breaks the code in one place at a time and checks that the tests notice.

  python tests/mutate.py            every mutation (minutes)
  python tests/mutate.py mlm rope   those whose file or text contains a word

Works on a copy of the package in a temporary folder; the checkout is never touched. Prints the
mutations that no test noticed and fails if there are any, if a text to be replaced is not there, or
if tests fail without any mutation.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from _mutants import MUTATIONS  # noqa: E402
from _mutants_meshes import MESHES  # noqa: E402
from _mutants_methods import METHODS  # noqa: E402
from _mutants_methods import MORE  # noqa: E402


def run(home: pathlib.Path, tests: str) -> bool:
  """Whether the tests pass on the copy."""
  env = {**os.environ, 'PYTHONPATH': str(home), 'PYTHONDONTWRITEBYTECODE': '1'}
  return (
    subprocess.run(
      [sys.executable, '-m', 'pytest', '-x', '-q', '-m', '', '-p', 'no:cacheprovider', tests],
      cwd=home,
      env=env,
      capture_output=True,
    ).returncode
    == 0
  )


def main(words: list[str]) -> int:
  unseen, sound = [], {}
  with tempfile.TemporaryDirectory() as folder:
    home = pathlib.Path(folder) / 'copy'
    shutil.copytree(
      ROOT, home, ignore=shutil.ignore_patterns('.git', '__pycache__', '.venv*', 'runs')
    )
    for file, old, new, tests in MUTATIONS + METHODS + MORE + MESHES:
      title = f'{file}: {old!r} -> {new!r}'
      if words and not any(w in title + tests for w in words):
        continue
      path = home / 'lmjax' / file
      text = path.read_text()
      if old not in text:
        unseen.append(f'{title}: the text is not there')
      else:
        if tests not in sound:  # a test that fails by itself notices nothing
          sound[tests] = run(home, tests)
          if not sound[tests]:
            unseen.append(f'{tests} fails without any mutation')
        path.write_text(text.replace(old, new, 1))
        if run(home, tests):
          unseen.append(f'{title}: {tests} passes all the same')
        path.write_text(text)
      print('unseen' if unseen and unseen[-1].startswith(title) else 'seen  ', title, flush=True)
  print(*unseen, sep='\n')
  return 1 if unseen else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))

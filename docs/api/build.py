"""Writes the API reference from the docstrings: python docs/api/build.py FOLDER (extra `docs`).

Any warning is an error: a module that cannot be imported, a type that cannot be read.
"""

import pathlib
import sys
import warnings

import pdoc

HERE = pathlib.Path(__file__).parent


def main(folder: str) -> int:
  warnings.filterwarnings('error', module='pdoc')
  pdoc.render.configure(template_directory=HERE, show_source=False, footer_text='lmjax')
  pdoc.pdoc('lmjax', r'!.*\._', '!lmjax.assets', output_directory=pathlib.Path(folder))
  pages = len(list(pathlib.Path(folder).rglob('*.html')))
  print(f'{folder}: {pages} pages')
  return 0


if __name__ == '__main__':
  if len(sys.argv) != 2:
    sys.exit('usage: python docs/api/build.py FOLDER')
  sys.exit(main(sys.argv[1]))

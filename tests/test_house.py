"""The rules of the house, checked on the source itself: imports point one way, the core names no
method, files stay small, sources are named.
"""

import ast
import collections
import functools
import pathlib
import re
import statistics
import subprocess

import pytest

import lmjax
from _mutants import MUTATIONS
from _mutants_meshes import MESHES
from _mutants_methods import METHODS
from _mutants_methods import MORE
from lmjax import config
from lmjax import kinds
from lmjax import registry

HOME = pathlib.Path(lmjax.__file__).parent
ROOT = HOME.parent
FILES = sorted(p for p in HOME.rglob('*.py') if '_configs' not in p.parts)
PART_FOLDERS = {k.folder for k in kinds.KINDS.values()}
PARTS = {
  f'{k.folder}.{n}': (kind, n) for kind, k in kinds.KINDS.items() for n in registry.names(kind)
}


def module(path: pathlib.Path) -> str:
  return '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')


@functools.cache
def tree(path: pathlib.Path) -> ast.Module:
  return ast.parse(path.read_text(), str(path))


def imports(path: pathlib.Path) -> set[str]:
  """Full names of what a file imports, anywhere in it; `from a import b` counts as a.b."""
  out = set()
  for node in ast.walk(tree(path)):
    if isinstance(node, ast.Import):
      out |= {a.name for a in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: imports are absolute'
      out |= {f'{node.module}.{a.name}' for a in node.names}
  return out


def is_core(path: pathlib.Path) -> bool:
  where = path.relative_to(HOME).parts
  return len(where) == 1 or where[0] in ('parallel', 'nn', 'checkpoint')


def parts_in(names: set[str]) -> set[str]:
  """The part modules among imported names (a name in a part module counts as the module)."""
  return {p for p in PARTS for n in names if n == p or n.startswith(p + '.')}


CORE = [p for p in FILES if is_core(p)]


def test_the_scan_sees_the_house():
  assert len(CORE) > 15 and len(PARTS) > 40 and HOME / 'train.py' in CORE
  assert parts_in({'lmjax.models.mixers.gqa.Gqa'}) == {'lmjax.models.mixers.gqa'}
  assert 'lmjax.kernels.attention.attention' in imports(HOME / 'models/mixers/gqa.py')


@pytest.mark.parametrize('path', CORE, ids=module)
def test_the_core_imports_no_part(path):
  assert not parts_in(imports(path))


@pytest.mark.parametrize('name', PARTS)
def test_parts_import_no_other_part_and_no_other_room(name):
  folder = name.rpartition('.')[0]
  path = ROOT / (name.replace('.', '/') + '.py')
  mine = {n for n in imports(path) if n.startswith('lmjax.')}
  assert not parts_in(mine) - {name}
  room = folder.split('.')[1]
  for n in mine:
    foreign = n.split('.')[1]
    assert foreign == room or foreign in (
      'kinds',
      'specs',
      'registry',
      'nn',
      'parallel',
      'kernels',
      'metrics',
      'lm',
      'config',
      'files',
    ), f'{name} imports {n}; what two rooms share belongs into lmjax.nn, lmjax.parallel or the core'


def test_nothing_in_the_house_imports_configs_experiments_or_tests():
  for path in FILES:
    outside = {
      n for n in imports(path) if n.split('.')[0] in ('configs', 'experiments', 'tests', 'conftest')
    }
    assert not outside, (path, outside)
  for path in sorted((ROOT / 'configs').glob('*.py')):
    assert {n.split('.')[0] for n in imports(path)} <= {
      'lmjax',
      'dataclasses',
      'ml_collections',
      'math',
    }, path
    assert not parts_in(imports(path)), path


# Part names that are ordinary words of the core too: file -> words that it may compare with, each
# for what it means there.
ORDINARY = {
  'lmjax.kinds': {'linear'},  # a kind
  'lmjax.parallel.remat': {'none', 'full'},  # policies
  'lmjax.events': {'text'},  # what a model wrote, in a record
}


def compared(path: pathlib.Path):
  """String constants on which a file may branch: compared with, keys of a dictionary literal, cases
  of a match.
  """
  for node in ast.walk(tree(path)):
    found = []
    if isinstance(node, ast.Compare):
      sides = [node.left, *node.comparators]
      found = [
        e for s in sides for e in (s.elts if isinstance(s, (ast.Tuple, ast.List, ast.Set)) else [s])
      ]
    elif isinstance(node, ast.Dict):
      found = node.keys
    elif isinstance(node, ast.MatchValue):
      found = [node.value]
    for e in found:
      if isinstance(e, ast.Constant) and isinstance(e.value, str):
        yield e.value, e.lineno


def test_the_scan_for_names_finds_them(tmp_path):
  file = tmp_path / 'x.py'
  file.write_text(
    'def f(name, k):\n  if name == "gqa" or k in ("adam",):\n    return {"rope": 1}\n  match k:\n  '
    '  case "lion": pass\n'
  )
  assert {w for w, _ in compared(file)} == {'gqa', 'adam', 'rope', 'lion'}


BATCH_FIELDS = {'tokens'}  # the field of a batch, and a source of that name


@pytest.mark.parametrize('path', CORE, ids=module)
def test_the_core_names_no_method(path):
  names = {n for _, n in PARTS.values()} - BATCH_FIELDS - ORDINARY.get(module(path), set())
  found = [f'line {line}: {word!r}' for word, line in compared(path) if word in names]
  assert not found, (
    f'{module(path)} branches on the names of parts: {", ".join(found)}; ask a fact instead'
  )


def test_defaults_live_in_signatures_and_in_default_only():
  """No `config.get(key, fallback)`: a second default would drift from the first."""
  holders = re.compile(r'(^|\.)(c|m|d|cfg|config|resolved|settings|plain)(\[.*\])?$')
  for path in FILES:
    for node in ast.walk(tree(path)):
      if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ('get', 'setdefault', 'pop')
        and len(node.args) + len(node.keywords) > 1
      ):
        assert not holders.search(ast.unparse(node.func.value)), (
          f'{path}:{node.lineno}: {ast.unparse(node)}'
        )


UNPICKLERS = {'pickle', '_pickle', 'cloudpickle', 'dill', 'joblib', 'marshal', 'shelve'}
EXECUTES = {'eval', 'exec', 'os.system', 'os.popen', 'torch.load', 'pandas.read_pickle'}


def unsafe(path: pathlib.Path) -> list[str]:
  """Lines that could run what a file says: pickle in any dress, eval, a shell. Modules are known by
  the names that the file gives them.
  """
  known, found = {}, []
  for node in ast.walk(tree(path)):
    if isinstance(node, ast.Import):
      known |= {a.asname or a.name: a.name for a in node.names}
    elif isinstance(node, ast.ImportFrom):
      known |= {a.asname or a.name: f'{node.module}.{a.name}' for a in node.names}
  for name in known.values():
    if name.split('.')[0] in UNPICKLERS:
      found.append(f'import {name}')
  for node in ast.walk(tree(path)):
    if isinstance(node, ast.Call) and not _safe_call(node, known):
      found.append(f'line {node.lineno}: {ast.unparse(node)}')
  return found


def _safe_call(node: ast.Call, known: dict[str, str]) -> bool:
  called = ast.unparse(node.func)
  head, dot, rest = called.partition('.')
  called = known.get(head, head) + dot + rest
  named = {k.arg: k.value for k in node.keywords}
  pickles = named.get('allow_pickle')
  if pickles is not None and not (isinstance(pickles, ast.Constant) and pickles.value is False):
    return False
  if called == 'numpy.load':  # allow_pickle is its third argument; say it by name
    return pickles is not None and len(node.args) < 3 and None not in named
  if called in ('importlib.import_module', '__import__') and node.args:
    first = node.args[0]
    if isinstance(first, ast.Constant) and str(first.value).split('.')[0] in UNPICKLERS:
      return False
  return called not in EXECUTES and 'shell' not in named


@pytest.mark.parametrize(
  'line',
  [
    'import pickle',
    'import joblib as j',
    'from dill import loads',
    'def f():\n  import shelve',
    'import importlib\nimportlib.import_module("marshal")',
    '__import__("pickle")',
    'import numpy as np\nnp.load("x")',
    'import numpy\nnumpy.load("x", allow_pickle=True)',
    'from numpy import load as l\nl("x")',
    'import numpy as np\nnp.load("x", None, True, allow_pickle=False)',
    'import numpy as np\nnp.save("x", 1, allow_pickle=True)',
    'f(allow_pickle=g)',
    'import torch\ntorch.load("x")',
    'from torch import load\nload("x")',
    'import torch as t\nt.load("x", weights_only=True)',
    'eval("1")',
    'exec("1")',
    'import os\nos.system("ls")',
    'import subprocess\nsubprocess.run("ls", shell=True)',
  ],
)
def test_the_scan_for_unsafe_lines_finds_them(tmp_path, line):
  (tmp_path / 'x.py').write_text(line)
  assert unsafe(tmp_path / 'x.py')


def test_nothing_is_unpickled_or_executed(tmp_path):
  fine = 'import numpy as np\nnp.load("x", allow_pickle=False)\nmodel.eval()\njson.load(f)\n'
  (tmp_path / 'x.py').write_text(fine)
  for path in [*FILES, tmp_path / 'x.py']:
    assert not unsafe(path), (path, unsafe(path))


def test_files_and_functions_stay_small():
  lines = {module(p): len(p.read_text().splitlines()) for p in FILES}
  long = {m: n for m, n in lines.items() if n > 400}
  assert not long
  assert statistics.median(n for n in lines.values() if n) <= 150
  for path in FILES:
    for node in ast.walk(tree(path)):
      if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        assert node.end_lineno - node.lineno < 80, (
          f'{module(path)}.{node.name} has {node.end_lineno - node.lineno + 1} lines'
        )


SOURCE = re.compile(r'arXiv:\d{4}\.\d{4,5}|https?://|\b(18|19|20)\d\d\b|RFC \d+')
NEEDS_SOURCE = (
  'norm',
  'residual',
  'mixer',
  'ffn',
  'init',
  'position',
  'objective',
  'optim',
  'schedule',
  'decoding',
)
ELEMENTARY = {'constant', 'greedy'}  # no one's invention


@pytest.mark.parametrize('name', PARTS)
def test_every_part_says_what_it_is_and_where_it_comes_from(name):
  kind, part = PARTS[name]
  text = ast.get_docstring(tree(ROOT / (name.replace('.', '/') + '.py'))) or ''
  assert len(text) > 60, f'{name}: its docstring says too little'
  assert len(text.splitlines()[0]) <= 140, f'{name}: the first line is what --list shows'
  if kind in NEEDS_SOURCE and part not in ELEMENTARY:
    assert SOURCE.search(text), f'{name}: name the paper (arXiv:..., or author and year)'


@pytest.mark.parametrize('path', FILES, ids=module)
def test_every_module_has_a_docstring(path):
  assert not path.read_text().strip() or ast.get_docstring(tree(path)), module(path)


def texts():
  """Text files of the project: what git tracks, or everything where there is no git."""
  try:
    out = subprocess.run(
      ['git', 'ls-files'],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=True,
    ).stdout
    paths = [ROOT / line for line in out.splitlines()]
  except (OSError, subprocess.CalledProcessError):
    paths = [p for p in ROOT.rglob('*') if p.suffix in ('.py', '.md', '.toml', '.yml')]
  return [
    p
    for p in paths
    if p.is_file()
    and p.suffix in ('.py', '.md', '.toml', '.yml', '.yaml', '.css', '.cfg', '.sh', '.ipynb')
  ]


def test_no_file_knows_the_machine_it_was_written_on():
  places = ['/' + 'work/', '/' + 'root/', '/' + 'home/', '/' + 'Users/', '/' + 'mnt/data']
  for path in texts():
    text = path.read_text()
    for place in places:
      assert not re.search(rf'(?<![\w.]){re.escape(place)}', text), (
        f'{path.relative_to(ROOT)} mentions {place}'
      )


def test_every_recipe_has_its_header():
  for recipe in config.recipes():
    text = ast.get_docstring(tree(config.folder() / f'{recipe}.py')) or ''
    for word in ('command: python -m lmjax.main', 'expect:', 'time:'):
      assert word in text, f'configs/{recipe}.py: the header lacks {word!r}'


def test_no_two_test_files_share_a_name():
  """pytest imports them by name; the second one would not be collected."""
  names = collections.Counter(p.name for p in (ROOT / 'tests').rglob('*.py'))
  assert not [n for n, times in names.items() if times > 1]


def test_every_promise_names_tests_that_exist():
  rows = re.findall(r'^\|.*\.py`.*\|$', (ROOT / 'README.md').read_text(), re.MULTILINE)
  named = {n for row in rows for n in re.findall(r'`([\w/]*test_\w+\.py)`', row)}
  assert len(named) > 10, named
  for name in named:
    assert (ROOT / 'tests' / name).is_file(), f'README.md: there is no tests/{name}'


@pytest.mark.parametrize('kind', kinds.KINDS)
def test_every_kind_has_parts_and_a_suite(kind):
  assert registry.names(kind), kind
  assert (ROOT / f'tests/contracts/test_{kind}.py').is_file(), f'no contract suite for {kind}'


def test_every_mutation_finds_its_text():
  """Else `tests/mutate.py` would try fewer than it lists."""
  for file, text, other, tests in (*MUTATIONS, *METHODS, *MORE, *MESHES):
    assert text in (ROOT / 'lmjax' / file).read_text(), f'{file} has no {text!r}'
    assert text != other and (ROOT / tests.split('::')[0]).exists(), (file, tests)

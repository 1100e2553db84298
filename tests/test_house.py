"""The rules of the house, checked on the source itself: imports point one way, the core names no
method, files stay small, sources are named.
"""

import ast
import functools
import pathlib
import re
import statistics
import subprocess

import pytest

import lmjax
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
  return len(where) == 1 or where[0] in ('parallel', 'nn')


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
  'lmjax.build': {'none'},  # the fact `couples`
  'lmjax.kinds': {'linear'},  # a kind
  'lmjax.parallel.remat': {'none', 'full'},  # policies
  'lmjax.tracking': {'text'},  # a sort of record
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


def test_nothing_is_unpickled_or_executed():
  for path in FILES:
    names = {n.split('.')[0] for n in imports(path)}
    assert not names & {'pickle', 'dill', 'cloudpickle', 'joblib', 'shelve', 'marshal'}, path
    for node in ast.walk(tree(path)):
      if isinstance(node, ast.keyword) and node.arg == 'allow_pickle':
        assert isinstance(node.value, ast.Constant) and node.value.value is False, (
          f'{path}:{node.value.lineno}'
        )
      if isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        assert called not in ('eval', 'exec', 'torch.load', 'os.system'), (
          f'{path}:{node.lineno}: {called}'
        )
        assert not any(k.arg == 'shell' for k in node.keywords), f'{path}:{node.lineno}: shell'


def test_arrays_are_read_without_pickle():
  for path in FILES:
    for node in ast.walk(tree(path)):
      if isinstance(node, ast.Call) and ast.unparse(node.func) in ('np.load', 'numpy.load'):
        assert any(k.arg == 'allow_pickle' for k in node.keywords), (
          f'{path}:{node.lineno}: say allow_pickle=False'
        )


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


@pytest.mark.parametrize('kind', kinds.KINDS)
def test_every_kind_has_parts_and_a_suite(kind):
  assert registry.names(kind), kind
  assert (ROOT / f'tests/contracts/test_{kind}.py').is_file(), f'no contract suite for {kind}'

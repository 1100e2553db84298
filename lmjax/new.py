"""The files of a new method, with a working stub.

Written are the part, its rows for the contract suite, a test of its own, and
for methods that train otherwise an experiment. The contract suite passes at
once; the part's own test fails until the checks of the method are written.

examples:
  python -m lmjax.new mixer my_mixer                        in a checkout of lmjax
  python -m lmjax.new optim my_optim --outside=my_package   in your own package
  python -m lmjax.new --list                                the kinds
Then: docs/add_a_method.md.
"""

import argparse
import dataclasses
import importlib.resources
import keyword
import pathlib
import re
import string
import sys
import textwrap

from lmjax import exits


@dataclasses.dataclass(frozen=True)
class How:
  """What the files of a kind need.

  room: the folder of tests/ that takes the part's own test. key: the config's. value: of the key,
    with {} for the spec. function: whether the part is a function. file: its spec takes the path of
    a file. field: what arms of an experiment differ in; '' for parts that change no training.
  """

  room: str
  key: str
  value: str = '{}()'
  function: bool = False
  file: bool = False
  field: str = ''


def _block(key: str) -> How:
  return How('models', f'model.{key}', field=f'model.blocks.*.{key}')


HOW = {
  'mixer': _block('mixer'),
  'ffn': _block('ffn'),
  'norm': _block('norm'),
  'residual': _block('residual'),
  'position': How('models', 'model.position', field='model.position'),
  'objective': How('objectives', 'objective', field='objective'),
  'optim': How('optim', 'optim', 'clip() | {}() | decay(rate=0.1)', function=True, field='optim'),
  'schedule': How('schedules', 'schedule', function=True, field='schedule'),
  'transform': How('data', 'data.transforms', field='data.transforms'),
  'source': How('data', 'data.train', '{}(path="FILE")', file=True),
  'eval': How('evals', 'eval.tasks', '{}(path="FILE")', file=True),
  'decoding': How('decoding', 'sample.rule'),
}


@dataclasses.dataclass(frozen=True)
class Place:
  """Where the files go. `module` is the importable name of the part's file; `spec` its name in a
  config.
  """

  root: pathlib.Path
  module: str
  spec: str
  part: pathlib.Path
  rows: pathlib.Path
  test: pathlib.Path
  experiment: pathlib.Path


def main(argv: list[str] | None = None) -> int:
  p = argparse.ArgumentParser(
    prog='python -m lmjax.new',
    description=__doc__,
    epilog=exits.PLAIN,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  p.add_argument('kind', nargs='?', metavar='KIND', help='see --list')
  p.add_argument('name', nargs='?', metavar='NAME', help='the name in configs, as in my_mixer')
  p.add_argument('--outside', metavar='FOLDER', help='a Python package; made if absent')
  p.add_argument('--list', action='store_true', help='the kinds that there are templates for')
  flags = p.parse_args(argv)
  if flags.list:
    print('\n'.join(HOW))
    return 0
  try:
    if flags.kind is None or flags.name is None:
      raise ValueError('KIND and NAME are needed, as in: python -m lmjax.new mixer my_mixer')
    print(told(*make(flags.kind, flags.name, flags.outside)))
    return 0
  except BrokenPipeError:  # all is written
    return 0
  except (ValueError, OSError) as e:
    print(f'lmjax.new: {e}', file=sys.stderr)
    return exits.USER


def make(kind: str, name: str, outside: str | None = None) -> tuple[str, Place, list[pathlib.Path]]:
  """Writes the files of a part; (kind, where, the files). Raises ValueError on names that cannot
  be, and where a file is there already; then nothing is written.
  """
  check(kind, name)
  place = _outside(kind, name, outside) if outside else _inside(kind, name)
  texts = written(kind, name, place)
  for path in texts:
    if path.exists():
      raise ValueError(f'{path} exists; nothing is overwritten')
  if outside:
    texts.setdefault(place.root / '__init__.py', '')
  for path, text in texts.items():
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
      path.write_text(text, 'utf-8')
  return kind, place, list(texts)


def check(kind: str, name: str) -> None:
  """Raises ValueError for kinds without a template and for names that cannot be."""
  from lmjax import kinds
  from lmjax import registry

  if kind not in HOW:
    known = kind in kinds.KINDS
    raise ValueError(
      f'{kind}: there is no template for this kind, write it after a neighbour in '
      f'{kinds.KINDS[kind].folder}; templates: {", ".join(HOW)}'
      if known
      else f'no kind {kind!r}{registry.nearest(kind, HOW, ".")} Kinds: {", ".join(HOW)}'
    )
  if not re.fullmatch(r'[a-z][a-z0-9_]*', name) or keyword.iskeyword(name) or len(name) > 30:
    raise ValueError(
      f'{name!r} is no name of a part: small letters, digits and _ are expected, a letter first, '
      'at most 30, and no word of Python'
    )
  for other in kinds.KINDS if name not in registry.names(kind) else (kind,):
    if name in registry.names(other):
      raise ValueError(f'there is a part {other}:{name}; another name is expected')


def _inside(kind: str, name: str) -> Place:
  from lmjax import kinds

  root = pathlib.Path(__file__).parents[1]
  if not (root / 'tests' / 'contracts').is_dir():
    raise ValueError(
      'lmjax is installed without its repository; --outside=FOLDER writes into a package of yours'
    )
  taken = [p for p in (root / 'tests').rglob(f'test_{name}.py')]
  if taken:
    raise ValueError(f'{taken[0].relative_to(root)} exists; another name is expected')
  module = f'{kinds.KINDS[kind].folder}.{name}'
  return Place(
    root,
    module,
    name,
    root / (module.replace('.', '/') + '.py'),
    root / 'tests' / 'contracts' / 'rows' / f'rows_{kind}_{name}.py',
    root / 'tests' / HOW[kind].room / f'test_{name}.py',
    root / 'experiments' / name / 'experiment.py',
  )


def _outside(kind: str, name: str, folder: str) -> Place:
  """Of a package: `folder`, and those around it that are packages."""
  root = pathlib.Path(folder).expanduser().absolute()
  if root.exists() and not root.is_dir():
    raise ValueError(f'--outside={folder}: a folder is expected')
  words, top = [root.name], root.parent
  while (top / '__init__.py').is_file():
    words, top = [top.name, *words], top.parent
  for word in words:
    if not word.isidentifier() or keyword.iskeyword(word):
      raise ValueError(f'--outside={folder}: {word!r} cannot be the name of a Python package')
  if words[0] in sys.stdlib_module_names or words[0] in ('lmjax', 'jax', 'flax', 'optax'):
    raise ValueError(f'--outside={folder}: {words[0]!r} is the name of another package')
  module = '.'.join([*words, name])
  return Place(
    root,
    module,
    f'{module}:{name if HOW[kind].function else camel(name)}',
    root / f'{name}.py',
    root / f'rows_{kind}_{name}.py',
    root / f'test_{name}.py',
    root / 'experiments' / name / 'experiment.py',
  )


def camel(name: str) -> str:
  return ''.join(w[:1].upper() + w[1:] for w in name.split('_'))


def written(kind: str, name: str, place: Place) -> dict[pathlib.Path, str]:
  """The text of each file."""
  how, sections = HOW[kind], _sections(_template(kind))
  value = how.value.format(place.spec)
  words = dict(
    kind=kind,
    name=name,
    Name=camel(name),
    spec=place.spec,
    key=how.key,
    field=how.field,
    value=value,
    folder=f'experiments/{name}' if place.spec == name else place.experiment.parent,
  )
  fill = lambda text: string.Template(text).substitute(words)
  head = (
    f'"""What the contract suite asks of the {kind} {name}: see tests/contracts/_rows.py."""\n\n'
  )
  head += f"KIND, NAME = '{kind}', '{place.spec}'\n"
  rows = fill(sections['rows'])
  if rows.startswith(('import', 'from')):  # imports stand before KIND
    imports, _, rows = rows.partition('\n\n')
    head = head.replace('\n\n', f'\n\n{imports}\n\n', 1)
  if rows.startswith('def'):
    head += '\n\n'
  out = {
    place.part: fill(sections['part']),
    place.rows: head + rows,
    place.test: string.Template(_template('test')).substitute(words | _own(how, value, sections)),
  }
  if how.field:
    out[place.experiment] = fill(_template('experiment'))
  return out


def _own(how: How, value: str, sections: dict[str, str]) -> dict[str, str]:
  """What the part's own test says."""
  wanted = f'Wanted: {sections["checks"].strip()}. Flip a sign, a mask or an axis of the part: one '
  wanted += 'of the tests must fail.'
  quoted = f"'{value}'"
  if how.file:
    quoted = 'f' + quoted.replace('FILE', '{tmp_path / "x.txt"}')
  return dict(
    wanted=textwrap.fill(wanted, 96, initial_indent='  ', subsequent_indent='  ').strip(),
    fixture='tmp_path' if how.file else '',
    setup="  (tmp_path / 'x.txt').write_text('To be, or not to be. ' * 100)\n" if how.file else '',
    override=quoted,
  )


def _template(name: str) -> str:
  return (importlib.resources.files('lmjax') / 'templates' / f'{name}.txt').read_text('utf-8')


def _sections(text: str) -> dict[str, str]:
  parts = re.split(r'^=== (\w+)\n', text, flags=re.MULTILINE)[1:]
  return dict(zip(parts[::2], parts[1::2]))


def told(kind: str, place: Place, files: list[pathlib.Path]) -> str:
  """What the command prints: the files, and what comes next."""
  how, inside = HOW[kind], ':' not in place.spec
  shown = lambda p: p.relative_to(place.root) if inside else p
  rows = f"""LMJAX_CONTRACT_ROWS='{place.root}' """ if not inside else ''
  where = '' if inside else '   # in a checkout of lmjax'
  lines = [
    *(f'wrote {shown(p)}' for p in files),
    '',
    'try it:     python -m lmjax.main --config=quickstart --workdir=runs/new '
    f"--config.{how.key}='{how.value.format(place.spec)}'",
    f'contract:   {rows}python -m pytest tests/contracts/test_{kind}.py{where}',
    f'its tests:  python -m pytest {shown(place.test)}   # one fails until you write its checks',
  ]
  if how.field:
    folder = shown(place.experiment.parent)
    lines.append(f'compare:    python -m lmjax.experiment run {folder} --scale=cpu --dry_run')
  if not inside:
    top = place.root
    while (top / '__init__.py').is_file():
      top = top.parent
    lines.append(f'run these with {top} on PYTHONPATH, or install your package')
  return '\n'.join(lines)


if __name__ == '__main__':
  sys.exit(main())

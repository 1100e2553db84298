"""The fingerprint of parts: of their syntax, of their helpers, of nothing else."""

import pathlib
import textwrap

import pytest

import _fake
from lmjax import specs
from lmjax.experiment import code
from lmjax.experiment import trials


def resolved(**changes):
  return trials.resolve('quickstart', (_fake.TINY | changes).items())


def test_parts_are_found_wherever_specs_name_them():
  c = resolved(optim='clip() | split(matrix=galore(inner=lion()), rest=sgd()) | decay()')
  found = {m.rpartition('.')[2] for m in code.parts(c) if '.optim.' in m}
  assert found == {'clip', 'split', 'galore', 'lion', 'sgd', 'decay'}
  assert {'lmjax.models.mixers.gqa', 'lmjax.objectives.clm'} <= code.parts(c)


def test_helpers_of_a_room_count_and_the_core_does_not():
  found = code._modules('lmjax.optim.galore')
  assert {'lmjax.optim.galore', 'lmjax.optim._lowrank', 'lmjax.optim._base'} <= found
  assert not [m for m in found if m.startswith(('lmjax.train', 'lmjax.registry', 'lmjax.parallel'))]


def test_a_library_is_not_the_file_of_its_name():
  """`kernels/attention/tokamax.py` imports a package of that name."""
  found = code._modules('lmjax.models.mixers.gqa')
  assert 'lmjax.kernels.attention.tokamax' in found
  assert all(m.startswith('lmjax.') for m in found)


def test_a_library_that_is_not_installed_is_none_either(tmp_path, monkeypatch):
  room = tmp_path / 'own_room'
  room.mkdir()
  (room / 'absent_library.py').write_text('import absent_library\n')
  monkeypatch.syspath_prepend(tmp_path)
  assert code._modules('own_room.absent_library') == {'own_room.absent_library'}


def test_names_in_specs_of_any_form():
  assert specs.names('0.5*text(path="a(b)") + 0.5*jsonl(path="c")') == ['text', 'jsonl']
  assert set(specs.names('a(x=m.n:P(y=b()))')) == {'a', 'm.n:P', 'b'}


@pytest.fixture
def part(tmp_path, monkeypatch):
  """write(text) -> fingerprint of a config that uses a part of that text."""
  monkeypatch.syspath_prepend(tmp_path)

  def write(body: str, doc: str = 'A part.'):
    code.forget()
    (tmp_path / 'own_part.py').write_text(
      f'"""{doc}"""\nimport optax\n\n\ndef own(rate: float = 1.0):\n' + textwrap.indent(body, '  ')
    )
    return code.fingerprint(resolved(optim='own_part:own()'))

  yield write
  code.forget()


def test_comments_and_docstrings_make_nothing_stale(part):
  first = part('return optax.scale(rate)\n')
  assert part('# why\nreturn optax.scale(rate)\n', doc='Other words.') == first
  assert part('"""Words."""\nreturn optax.scale(rate)\n') != part('return optax.scale(2 * rate)\n')
  assert part('return optax.scale(2 * rate)\n') != first


def test_another_part_gives_another_fingerprint():
  assert code.fingerprint(resolved(optim='sgd()')) != code.fingerprint(resolved(optim='lion()'))
  assert code.fingerprint(resolved(optim='sgd()')) == code.fingerprint(
    resolved(optim='sgd(momentum=0.5)')
  )
  assert pathlib.Path(code.__file__).exists()


def test_the_fingerprint_is_the_same_on_every_python(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / 'fixed_part.py').write_text(
    '"""Doc."""\nfrom typing import Any\n\n\ndef f(x: Any = 1, *, y=(2.5, None), **z) -> str:\n'
    "  match x:\n    case 1 | 2:\n      return f'{x!r:>{y[0]}}' + b'a'.hex()\n"
    '  return [i for i in x if not z] or (lambda q: q @ x)(...)\n'
  )
  assert code._syntax('fixed_part')[:16] == 'e6f393a0c5ad25e2'

"""Parts by name: checked arguments, nearest names, context, nested parts, parts from outside,
facts.
"""

import dataclasses
from typing import Annotated, Literal
import sys

import pytest

from lmjax import kinds
from lmjax import registry
from lmjax import specs
from lmjax.specs import SpecError

ALL = [(kind, name) for kind in kinds.KINDS for name in registry.names(kind)]
HERE = __name__
ONE_OF = {('linear', 'structured_ffn'), ('decoding', 'superposed_decoding')}  # no defaults alone


@pytest.mark.parametrize('kind, name', ALL)
def test_every_file_registers_the_part_of_its_name(kind, name):
  entry = registry.get(kind, name)
  assert (entry.kind, entry.name) == (kind, name)
  assert set(entry.facts) == set(kinds.KINDS[kind].facts)
  for key in registry.signature(entry):
    assert key not in kinds.KINDS[kind].context


def example(kind, name):
  """The handle with its defaults, or None where an argument, or one of several, is required."""
  required = [
    k for k, p in registry.signature(registry.get(kind, name)).items() if p.default is p.empty
  ]
  if required or (kind, name) in ONE_OF:
    return None
  return registry.make(kind, f'{name}()')


@pytest.mark.parametrize('kind, name', ALL)
def test_the_resolved_spec_gives_the_same_part(kind, name):
  part = example(kind, name)
  if part is None:
    with pytest.raises(SpecError, match='needs the argument|is expected|expects'):
      registry.make(kind, f'{name}()')
    return
  assert registry.make(kind, str(part)) == part and str(registry.make(kind, str(part))) == str(part)
  assert hash(part) == hash(registry.make(kind, str(part)))
  for key in kinds.KINDS[kind].facts:
    part.fact(key)


@pytest.mark.parametrize('kind, name', ALL)
def test_every_part_refuses_an_argument_that_it_does_not_have(kind, name):
  with pytest.raises(SpecError, match=f'{name} has no argument .zzz'):
    registry.make(kind, f'{name}(zzz=1)')


@pytest.mark.parametrize(
  'spec, words',
  [
    ('gqq()', "no mixer named 'gqq'; did you mean 'gqa'\\?.*There are: "),
    ('gqa(kvheads=2)', "did you mean 'kv_heads'\\?.*It takes: head_dim"),
    ('gqa(head_dim="64")', "gqa.head_dim='64' is not accepted: int is expected"),
    ('gqa(head_dim=64.5)', 'int is expected'),
    ('gqa(head_dim=True)', 'int is expected'),
    ('gqa(causal=1)', 'bool is expected'),
    ('gqa(window=(1, 2))', 'int or None is expected'),
    ('gqa(position=3)', 'a position is expected'),
    ('gqa(zzzzz=2)', "no argument 'zzzzz'\\. It takes: head_dim"),
    ('gqa(position=ropy())', "did you mean 'rope'"),
    ('gqa(position=rope(bas=1.0))', "did you mean 'base'"),
    ('gqa(position=rope(pairs="thirds"))', "'half' or 'interleaved' is expected"),
    ('gqa(position=alibi() | rope())', 'one position is expected'),
    ('gqa(position=rope(pairs=half))', 'write text in quotes'),
  ],
)
def test_faults_are_named_with_the_nearest_right_word(spec, words):
  with pytest.raises(SpecError, match=words):
    registry.make('mixer', spec)


def test_unknown_kinds_are_refused():
  with pytest.raises(SpecError, match="did you mean 'mixer'"):
    registry.make('mixr', 'gqa()')


def test_integral_floats_pass_for_integers_and_integers_for_floats():
  args = dict(registry.make('mixer', 'gqa(head_dim=1e2, cap=3)').args)
  assert (
    args['head_dim'] == 100
    and type(args['head_dim']) is int
    and args['cap'] == 3.0
    and type(args['cap']) is float
  )
  assert '1e2' not in str(registry.make('mixer', 'gqa(head_dim=1e2)'))


def test_context_is_given_by_the_framework_only():
  with pytest.raises(SpecError, match="'length' is set by the config around it"):
    registry.make('position', 'learned(length=3)')
  assert registry.make('position', 'learned()', length=7)(parent=None).length == 7
  with pytest.raises(AssertionError, match='no context'):
    registry.make('norm', 'rms_norm()', length=7)
  # Under jit a part is static: parts of different context must not share a program.
  assert registry.make('position', 'learned()', length=7) != registry.make(
    'position', 'learned()', length=8
  )


def test_chains_are_named():
  chain = registry.make_chain('optim', 'clip() | adam() | clip(norm=2.0)')
  assert [k for k, _ in chain.items()] == ['clip', 'adam', 'clip_2']
  assert registry.make_chain('optim', str(chain)) == chain


# ---- parts from outside


@dataclasses.dataclass(frozen=True)
class Outside:
  """A part that lives in this file."""

  size: int
  how: Literal['a', 'b'] = 'a'
  inner: Annotated[registry.Part | registry.Chain | None, 'optim'] = None

  @staticmethod
  def check(size, **_):
    if size < 0:
      raise ValueError(f'size={size}: at least 0 is expected')


def test_a_part_from_another_package_is_checked_alike():
  part = registry.make('norm', f'{HERE}:Outside(size=3)')
  assert part() == Outside(3) and part.fact('scale_invariant') is False
  assert (
    str(part) == f"{HERE}:Outside(size=3, how='a', inner=None)"
    and registry.make('norm', str(part)) == part
  )
  for bad, words in (
    ('Outside()', 'needs the argument'),
    ('Outside(size=-1)', 'size=-1'),
    ('Outsider(size=1)', "did you mean 'Outside'"),
    ('Outside(size=1, how="c")', "'a' or 'b'"),
    ('Outside(size=1, hwo="a")', "did you mean 'how'"),
  ):
    with pytest.raises(SpecError, match=words):
      registry.make('norm', f'{HERE}:{bad}')
  with pytest.raises(SpecError, match='cannot import no_such_module'):
    registry.make('norm', 'no_such_module:Part()')


def test_nested_chains():
  part = registry.make('norm', f'{HERE}:Outside(size=3, inner=clip(norm=2.0) | adam())')
  inner = dict(part.args)['inner']
  assert isinstance(inner, registry.Chain) and [k for k, _ in inner.items()] == ['clip', 'adam']
  assert registry.make('norm', str(part)) == part
  with pytest.raises(SpecError, match='an? optim is expected'):
    registry.make('norm', f'{HERE}:Outside(size=3, inner=4)')


def test_none_is_refused_where_a_part_is_needed():
  for kind, spec in (
    ('optim', 'schedule_free(inner=None)'),
    ('optim', 'split(matrix=None)'),
    ('embed', 'stable(norm=None)'),
  ):
    with pytest.raises(SpecError, match='=None: an? .* is expected'):
      registry.make(kind, spec)
  assert dict(registry.make('mixer', 'gqa(qk_norm=None)').args)['qk_norm'] is None


def test_registering():
  @registry.register('norm', scale_invariant=lambda a: a['size'] > 1)
  @dataclasses.dataclass(frozen=True)
  class Declared:
    size: int = 1

  vars(sys.modules[HERE])['Declared'] = Declared
  try:
    assert registry.make('norm', f'{HERE}:Declared(size=2)').fact('scale_invariant') is True
    assert registry.make('norm', f'{HERE}:Declared()').fact('scale_invariant') is False
    with pytest.raises(ValueError, match='no fact'):
      registry.register('norm', colour='red')
    other = type('Declared', (), {'__module__': HERE, '__qualname__': 'Other.Declared'})
    with pytest.raises(ValueError, match='registered twice'):
      registry.register('norm')(other)
  finally:
    registry._PARTS.pop(('norm', f'{HERE}:Declared'), None)


def test_nothing_is_imported_but_what_is_named():
  import subprocess

  code = (
    'import sys; from lmjax import registry; registry.names("mixer"); '
    'registry.make("norm", "rms_norm()"); rooms = "lmjax.models.norms.", "lmjax.models.mixers."; '
    'print([m for m in sys.modules if m.startswith(rooms) and "._" not in m])'
  )
  out = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    check=True,
    cwd=registry.__file__.rsplit('/', 2)[0],
  )
  assert out.stdout.strip() == "['lmjax.models.norms.rms_norm']"


def test_specs_that_are_calls_already_are_accepted():
  assert registry.make('norm', specs.call('rms_norm(eps=0.5)')) == registry.make(
    'norm', 'rms_norm(eps=0.5)'
  )

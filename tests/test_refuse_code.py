"""A config of unknown origin imports no code unless it is asked to: `config.refuse_code`."""

from hypothesis import given
from hypothesis import strategies as st
import pytest

from _mutations import examples
from _mutations import FREE
from _mutations import LARGE
from _mutations import ODD
from _mutations import readable
from _mutations import recipe_of
from _mutations import TINY
from lmjax import config

PARTS = st.sampled_from(
  [
    'm:P',
    'm:P()',
    'a.b.c:P(x=1)',
    'm : P()',
    'gqa(position=m:P())',
    '(m:P(y=(1, 2)))',
    'seqio_task(task="t", module="m")',
    'other(inner=seqio_task(task="t", module="m"))',
  ]
)


@examples(100)
@given(PARTS, st.sampled_from(['', 'clip() | ', '0.5*a() + ', '0.3*']), st.booleans())
def test_parts_from_outside_are_found_wherever_they_stand(part, front, behind):
  for key in config.flat(recipe_of('quickstart')):
    c = recipe_of('quickstart')
    value = front + part + (' | b()' if behind and '*' not in front else '')
    config._set(c, key, value)
    if not config.is_spec(key, value):
      config.refuse_code(c, 'runs/x')
      continue
    with pytest.raises(config.ConfigError) as e:
      config.refuse_code(c, 'runs/x')
    readable(e.value, f'runs/x: config.{key}=')
    assert 'would import code of ' in str(e.value) and '--allow_code' in str(e.value)


@pytest.mark.parametrize(
  'value, code',
  [
    ('m:P(run="runs/a")', True),
    (' m:P(run="runs/a") ', True),
    ('add_head(run="runs/a", x=m:P())', True),
    ('runs/a (1)', False),
    ('runs/a(1)', False),
    ('runs/m:P(1)/checkpoints/10', False),
  ],
)
def test_a_directory_to_begin_from_is_no_part(value, code):
  c = recipe_of('quickstart')
  c['init_from'] = value
  if not code:
    return config.refuse_code(c, 'here')
  with pytest.raises(config.ConfigError, match='config.init_from=.*would import code of m;'):
    config.refuse_code(c, 'here')


def test_the_module_is_named_and_not_imported(tmp_path, monkeypatch):
  (tmp_path / 'evil_part.py').write_text(f'open({str(tmp_path / "touched")!r}, "w")')
  monkeypatch.syspath_prepend(tmp_path)
  for spec in (
    'gelu(mult=2.0) | evil_part:P()',
    'evil_part:P(inner=gelu())',
    'split(a=clip() | b(c=evil_part:P()))',
  ):
    c = recipe_of('quickstart')
    c['model']['blocks']['block']['ffn'] = spec
    with pytest.raises(
      config.ConfigError,
      match=r"runs/x: config.model.blocks.block.ffn='.*' would import code of evil_part; give "
      '--allow_code if you trust it',
    ):
      config.refuse_code(c, 'runs/x')
  assert not (tmp_path / 'touched').exists()
  with pytest.raises(ValueError):  # `resolve` would
    config.resolve(c)
  c['model']['blocks']['block']['ffn'] = 'evil_part:P()'
  with pytest.raises(ValueError):
    config.resolve(c)
  assert (tmp_path / 'touched').exists()


@pytest.mark.parametrize('recipe', TINY + LARGE)
def test_recipes_of_our_own_parts_pass(recipe):
  config.refuse_code(recipe_of(recipe), 'here')
  config.refuse_code(config.resolve(recipe_of(recipe)), 'here')


def test_colons_in_strings_are_no_parts():
  c = recipe_of('quickstart')
  c['data']['train'] = 'text(path="C:x", separator="a:b()")'
  c['sample']['prompt'] = 'm:P()'
  config.refuse_code(c, 'here')


@examples(60)
@given(FREE | st.sampled_from(ODD))
def test_any_text_is_refused_or_names_no_part(value):
  c = recipe_of('quickstart')
  c['optim'] = value
  try:
    config.refuse_code(c, 'here')
  except ValueError as e:
    readable(e, 'config.optim')


def test_a_spec_that_cannot_be_read_does_not_pass():
  c = recipe_of('quickstart')
  c['optim'] = 'a(m:P()'
  with pytest.raises(config.ConfigError, match="runs/x: config.optim='a.m:P..': cannot read"):
    config.refuse_code(c, 'runs/x')

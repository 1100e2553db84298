"""Configs that are changed at random either build, or are refused by one sentence that names the
key: before any device works, soon, and in little memory.
"""

import copy
import zlib

from hypothesis import given
from hypothesis import strategies as st
import pytest

from _mutations import bounded
from _mutations import builds_or_refuses
from _mutations import commands
from _mutations import examples
from _mutations import FREE
from _mutations import LARGE
from _mutations import LITERALS
from _mutations import mutations
from _mutations import readable
from _mutations import recipe_of
from _mutations import settle
from _mutations import TINY
from lmjax import config
from lmjax import overrides
from lmjax import registry


def one_leaf(mutation, as_config: bool = False):
  """`as_config`: as a recipe gives it, not as config.json does."""
  recipe, key, value = mutation

  def change():
    c = recipe_of(recipe)
    config._set(c, key, value)
    settle(config.ConfigDict(c) if as_config else c)

  builds_or_refuses(change, key)


@examples(250)
@given(mutations(TINY), st.booleans())
def test_a_changed_leaf_builds_or_is_refused(mutation, as_config):
  one_leaf(mutation, as_config)


@examples(25)
@given(mutations(LARGE))
def test_a_changed_leaf_of_a_large_shape_builds_or_is_refused(mutation):
  one_leaf(mutation)


@pytest.mark.slow
@examples(300)
@given(mutations(TINY + LARGE), st.booleans())
def test_changed_leaves_build_or_are_refused_at_length(mutation, as_config):
  one_leaf(mutation, as_config)


def arguments():
  """(key, spec): every argument of every part that a leaf may name, with every literal."""
  for key in config.flat(recipe_of('quickstart')):
    kind = (config.kind_of(key) or (None,))[0]
    for name in registry.names(kind) if kind else ():
      params = registry.signature(registry.get(kind, name))
      needed = {k: '"x"' for k, p in params.items() if p.default is p.empty}
      for a in params:
        for literal in LITERALS:
          args = {**needed, a: literal}
          yield key, f'{name}({", ".join(f"{k}={v}" for k, v in args.items())})'


@pytest.mark.slow
@pytest.mark.parametrize('part', range(4))  # which two workers share
def test_arguments_of_every_part_build_or_are_refused(part):
  tried = 0
  for key, spec in arguments():
    # All of them take hours. A new part leaves the choice among those of others as it is.
    if zlib.crc32(f'{key}={spec}'.encode()) % 120 != part:
      continue
    both_ways = spec.startswith('mlm') or 'causal=False' in spec
    one_leaf(('bert_tiny' if both_ways else 'quickstart', key, spec))
    tried += 1
  assert tried > 70


@pytest.mark.parametrize(
  'key, value',
  [
    ('model.depth', 10**9),
    ('model.stack', 'block*1000000000'),
    ('model.stack', 'shared(block)*1000000000'),
    ('model.stack', '(block, block)*1000000000'),
    ('model.width', 2**31 - 1),
    ('model.width', 2**30),
    ('model.vocab', 2**31 - 1),
    ('model.unroll', 10**9),
    ('micro_batches', 10**9),
    ('data.length', 10**9),
    ('batch_tokens', 128 * 10**7),
    ('steps', 2**31 - 1),
    ('model.blocks.block.mixer', 'gqa(head_dim=65536, heads=65536)'),
    ('model.blocks.block.mixer', 'gqa(head_dim=1000000000, heads=1)'),
    ('model.blocks.block.mixer', 'gqa(head_dim=32, window=2147483647)'),
    ('model.blocks.block.ffn', 'gelu(hidden=2147483647)'),
    ('model.blocks.block.ffn', 'swiglu(mult=1e30)'),
    ('model.embed', 'untied(multiple_of=2147483647)'),
    ('schedule', 'wsd(warmup=1e30, decay=1e30)'),
    ('mesh.tensor', 10**9),
    ('mesh.data', 10**400),
    ('sample.tokens', 10**9),
  ],
)
def test_huge_sizes_take_neither_time_nor_memory(key, value):
  one_leaf(('quickstart', key, value))


@pytest.mark.parametrize(
  'key, value, words',
  [
    ('model.init', f'gpt2(sigma=1{"0" * 400})', 'a number of 1329 bits is not accepted'),
    ('model.embed', f'tied(scale=0x{"f" * 5000})', 'a number of 20000 bits is not accepted'),
    ('schedule', 'cosine(end=1e999)', 'cosine.end=.*: a number is too large for a float'),
    ('data.train', '1e999*shakespeare()', 'a weight is a number'),
    ('data.train', '0*shakespeare()', 'weight 0.0 of shakespeare: a positive number is expected'),
    ('optim', 'a.b:c()()', "expected name or name.arg=1., got 'a.b:c...."),
    ('optim', 'adam(b1=' + '-' * 3000 + '1)', 'adam.b1=.* is not a literal|cannot read the spec'),
    ('optim', 'not ' * 900 + 'a', 'got|cannot read the spec'),
    ('optim', 'a:' * 20_000 + 'b', 'cannot read the spec'),
    ('optim', 'a.' * 45_000 + 'b', 'got|cannot read the spec'),
    ('optim', 'adam()' + ' ' * 10**6 + 'x', 'a spec of 1,000,007 characters is not read'),
    ('optim', '\ud800', 'half a surrogate pair'),
    ('optim', 'math:pi', 'a class or function written in Python is expected, not float'),
    ('optim', 'builtins:int', 'a class or function written in Python is expected, not type'),
    ('optim', '.os:path()', 'cannot read the spec'),
    ('schedule', 'lmjax.optim.adam:adam()', 'this part is registered as optim'),
    ('model.blocks.block.ffn', 'gelu(hidden=2147483648)', 'at most 2147483647 in size'),
    ('model.blocks.block.ffn', 'gelu(mult=1e39)', 'at most 3.4e.38 in size'),
    ('model.blocks.block.ffn', 'gelu(mult=1e30)', 'hidden units .*at most 2147483647'),
    ('model.blocks.block.mixer', 'gqa(head_dim=65537)', 'at most 65536 is expected'),
    ('model.embed', 'tied(multiple_of=2147483646)', None),
    ('model.position', 'rope(original=0)', 'original=0: a positive number of tokens'),
    ('model.position', 'sinusoidal(base=0)', 'base=0.0: a number above 1'),
    ('model.final_norm', 'layer_norm(eps=-1)', 'eps=-1.0: at least 0'),
    ('model.stack', 'block + ' * 300 + 'block', '301 blocks are written out, at most 256'),
    ('model.stack', '(block, block)*2147483647', '4294967294 layers, at most 2147483647'),
    ('model.stack', 'block*True', r'config.model.stack=.*a segment repeats'),
    ('model.stack', 'a.b:block', "no block 'a.b:block'"),
    ('steps', 2**31, 'at most 2147483647'),
    ('peak_lr', 10**400, 'float is expected'),
    ('peak_lr', 1e39, 'at most 3.4e.38'),
    ('model.depth', 1e308, 'at most 10000 is expected'),
    ('mesh.data', 0, 'config.mesh.data=0: a positive number of devices'),
    ('data.tokenizer', 'bpe(path="/dev/zero")', 'is not a regular file'),
  ],
)
def test_faults_that_were_found_are_named(key, value, words):
  c = recipe_of('quickstart')
  config._set(c, key, value)
  if words is None:
    with bounded():
      return settle(c)
  with bounded(), pytest.raises(ValueError, match=words) as e:
    settle(c)
  readable(e.value, f'config.{key}', key.split('.')[-1])


def test_a_table_of_too_many_rows():
  c = recipe_of('quickstart')
  c['model'].update(vocab=2**31 - 1, embed='tied(multiple_of=128)')
  with bounded(), pytest.raises(ValueError, match='2147483648 rows, at most 2147483647'):
    settle(c)


@pytest.mark.parametrize(
  'key, text, words',
  [
    ('optim.adam.b2', '{[]: 1}', 'write text in quotes|is not accepted'),
    ('optim.adam.b2', '{1: 2}', 'dictionaries and sets are not accepted'),
    ('optim.adam.b2', '0x' + 'f' * 5000, 'a number of 20000 bits'),
    ('optim.adam.b2', '-' * 5000 + '1', 'is not accepted|literal|cannot read'),
    ('optim.adam.b2', '1\n2', r"'1\\\\n2'"),
    ('steps', 'x' * 10_000, 'a whole number is expected'),
    ('nothing\nhere', '1', 'no such key'),
  ],
)
def test_commands_that_were_found_are_named(key, text, words):
  with pytest.raises(ValueError, match=words) as e:
    config.resolve(config.load('quickstart', [(key, text)]))
  readable(e.value, key.split('.')[-1], repr(key))


@pytest.mark.parametrize('key', ['seed', 'peak_lr', 'mesh.data', 'optim'])
def test_a_number_of_more_digits_than_python_writes(key):
  one_leaf(('quickstart', key, 10**5000))


def test_positions_that_are_constants_stay_small():
  """Many heads: the slopes of ALiBi are an array of the host."""
  c = recipe_of('quickstart')
  c['model'].update(position='alibi()', width=2**30)
  c['model']['blocks']['block']['mixer'] = 'gqa(head_dim=1)'
  with bounded(), pytest.raises(ValueError, match='model.width=1073741824.*at most 65536'):
    settle(c)


# ---- keys


def groups_of(c, path=()):
  yield path, c
  for key, value in c.items():
    if isinstance(value, dict):
      yield from groups_of(value, (*path, key))


KEYS = st.sampled_from(
  ['stepz', 'a.b', 'model.width', '', ' ', 'é', '\n', 'x' * 100_000, 'items', 'shared', 'block2', 3]
)


def one_new_key(data):
  c = recipe_of(data.draw(st.sampled_from(TINY)))
  path, group = data.draw(st.sampled_from(list(groups_of(c))))
  key = data.draw(KEYS | FREE)
  if key in group:
    return
  group[key] = data.draw(st.sampled_from((1, None, {}, {'a': 1}, {'a': {}}, 'gqa()', [])))
  with bounded(), pytest.raises(ValueError) as e:
    settle(c)
  where = '.'.join((*path, str(key)))
  readable(e.value, f'config.{where[:40]}', repr(where)[1:40], 'config.model.blocks')


@examples(60)
@given(st.data())
def test_a_new_key_is_refused(data):
  one_new_key(data)


@pytest.mark.slow
@examples(400)
@given(st.data())
def test_new_keys_are_refused_at_length(data):
  one_new_key(data)


def test_a_removed_key_is_refused_unless_it_changes_no_result():
  whole = recipe_of('bert_tiny')
  for path, group in list(groups_of(whole)):
    for key in group:
      c = copy.deepcopy(whole)
      parent = c
      for p in path:
        parent = parent[p]
      del parent[key]
      lost = set(config.flat(whole)) - set(config.flat(c))
      if all(config._matches(k, config.OUTSIDE_FINGERPRINT) for k in lost):
        settle(c)
        continue
      with pytest.raises(ValueError) as e:
        settle(c)
      readable(e.value, '.'.join((*path, key)), f'config.{".".join(path)} is empty')


@pytest.mark.parametrize('name', ['a b', 'a/b', '..', '', '1', 'class', 'é é', 'x\n', 'x' * 65])
def test_a_block_is_named_by_a_word(name):
  c = recipe_of('quickstart')
  c['model']['blocks'] = {name: c['model']['blocks']['block']}
  with pytest.raises(ValueError, match='no such key|a block is named by a word'):
    settle(c)


@pytest.mark.parametrize('whole', [[], None, 3, 'x', [{'steps': 1}]])
def test_what_is_no_config_is_refused(whole):
  with pytest.raises(config.ConfigError, match='groups of settings are expected'):
    config.resolve(whole)


# ---- the command line


def one_command(command):
  recipe, key, text = command

  def change():
    c = config.load(recipe)
    with c.unlocked():
      overrides.apply(c, key, text)
    settle(c)

  with bounded():
    try:
      change()
    except ValueError as e:
      places = [p for p in key.split('.') if p.isidentifier()]
      readable(e, f'config.{key}', repr(key)[1:40], *places)


@examples(150)
@given(commands())
def test_an_override_builds_or_is_refused(command):
  one_command(command)


@pytest.mark.slow
@examples(300)
@given(commands())
def test_overrides_build_or_are_refused_at_length(command):
  one_command(command)

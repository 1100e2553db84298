"""The manifest names every damaged file, and deletion touches only what it lists."""

import json
import math
import os

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.checkpoint import manifest
from lmjax.checkpoint import tree as tree_lib


@pytest.fixture
def step_dir(tmp_path):
  path = tmp_path / '7'
  (path / 'state' / 'd').mkdir(parents=True)
  (path / 'state' / 'd' / 'a').write_bytes(bytes(range(256)) * 40)
  (path / 'cursor').write_text('{}')
  manifest.write(
    path,
    7,
    leaves={'x': tree_lib.describe(np.zeros((2, 3)))},
    scores={'loss': 1.0},
    version='1',
  )
  return path


def test_an_untouched_checkpoint_has_no_problems(step_dir):
  assert manifest.verify(step_dir) == []
  body = manifest.read(step_dir)
  assert body['step'] == 7 and body['lmjax'] == '1' and body['scores'] == {'loss': 1.0}
  assert body['leaves'] == {'x': {'shape': [2, 3], 'dtype': 'float64'}}
  assert (
    sorted(body['files']) == ['cursor', 'state/d/a'] and body['files']['state/d/a']['size'] == 10240
  )


def _flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def test_each_kind_of_damage_is_named(step_dir):
  _flip(step_dir / 'state/d/a')
  assert manifest.verify(step_dir, checksums=False) == []
  assert manifest.verify(step_dir) == [f'{step_dir}/state/d/a does not match its checksum']
  (step_dir / 'state/d/a').write_bytes(b'short')
  assert manifest.verify(step_dir) == [f'{step_dir}/state/d/a has 5 bytes, 10240 were saved']
  (step_dir / 'state/d/a').unlink()
  (step_dir / 'cursor').write_text('[]')
  assert manifest.verify(step_dir) == [
    f'{step_dir}/state/d/a is missing',
    f'{step_dir}/cursor does not match its checksum',
  ]


def test_files_that_were_not_saved_are_named(step_dir):
  """Whoever reads the arrays might read them; for what may be offered or deleted they do not
  count.
  """
  (step_dir / 'state' / 'd' / 'b').write_text('mine')
  os.symlink('/', step_dir / 'all')
  assert manifest.verify(step_dir, checksums=False) == []
  assert manifest.verify(step_dir) == [
    f'{step_dir}/all is not in the manifest; move it out of the checkpoint',
    f'{step_dir}/state/d/b is not in the manifest; move it out of the checkpoint',
  ]
  assert manifest.verify(step_dir, below='cursor') == []


def test_a_kill_while_scores_are_added_leaves_no_problem(step_dir):
  (step_dir / 'manifest.json.partial').write_text('{"form')
  assert manifest.verify(step_dir) == []
  manifest.put(step_dir, manifest.read(step_dir) | {'scores': {'loss': 2.0}})
  assert manifest.read(step_dir)['scores'] == {'loss': 2.0}
  (step_dir / 'manifest.json.partial').write_text('{"form')
  manifest.remove(step_dir)
  assert not step_dir.exists()


def test_nothing_is_written_through_a_link(step_dir, tmp_path):
  (tmp_path / 'precious').write_text('x')
  os.symlink(tmp_path / 'precious', step_dir / 'manifest.json.partial')
  manifest.put(step_dir, manifest.read(step_dir))
  assert (tmp_path / 'precious').read_text() == 'x' and manifest.verify(step_dir) == []


def test_a_flipped_byte_anywhere_in_the_manifest_is_seen(step_dir):
  """Values, not only syntax: a changed shape would otherwise be believed."""
  path = step_dir / manifest.NAME
  whole = path.read_bytes()
  missed = []
  for i in range(0, len(whole), 3):
    path.write_bytes(whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :])
    if not manifest.verify(step_dir, checksums=False):
      missed.append(i)
  # Only layout may differ without consequence: spaces between tokens are not part of what the
  # manifest says.
  assert all(whole[i : i + 1].isspace() for i in missed), [
    whole[max(0, i - 9) : i + 9] for i in missed
  ]
  path.write_bytes(whole[:-20])
  with pytest.raises(manifest.ManifestError, match='cannot be read'):
    manifest.read(step_dir)


EVIL = ('../../etc/passwd', '/etc/passwd', 'a/../../b', 'a//b', './a', '', 'C:a', 'a\\b', 'a\0b')
EVIL += ('\ud800', manifest.NAME, manifest.DOOMED)


@pytest.mark.parametrize('evil', EVIL, ids=ascii)
def test_paths_out_of_the_directory_are_refused(step_dir, evil):
  body = manifest.read(step_dir)
  manifest.put(step_dir, body | {'files': {evil: {'size': 1, 'sha256': '0' * 64}}})
  for use in (manifest.read, manifest.remove):
    with pytest.raises(manifest.ManifestError, match=f'^{step_dir}/manifest.json lists.* outside'):
      use(step_dir)
  assert manifest.verify(step_dir) and (step_dir / 'state/d/a').exists()


def test_a_deletion_follows_no_path_out_of_the_directory(step_dir, tmp_path):
  """A half-finished deletion is a manifest like any other: from outside."""
  (tmp_path / 'precious').write_text('x')
  body = manifest.read(step_dir)
  manifest.put(step_dir, body | {'files': {'../precious': {'size': 1, 'sha256': '0' * 64}}})
  (step_dir / manifest.NAME).rename(step_dir / manifest.DOOMED)
  with pytest.raises(manifest.ManifestError, match=f'{manifest.DOOMED} lists a file outside'):
    manifest.remove(step_dir)
  assert (tmp_path / 'precious').exists()


FILE = {'size': 1, 'sha256': '0' * 64}
LEAF = {'shape': [2], 'dtype': 'float32'}


@pytest.mark.parametrize(
  'change',
  [
    {'step': '7'},
    {'step': 7.0},
    {'step': True},
    {'step': -1},
    {'step': 8},  # the directory is 7
    {'step': None},
    {'time': 'now'},
    {'lmjax': 1},
    {'empty': {}},
    {'empty': [1]},
    {'empty': ['a//b']},
    {'scores': []},
    {'scores': {'loss': '1'}},
    {'scores': {'loss': True}},
    {'scores': {'loss': 10**400}},
    {'versions': {'jax': 1}},
    {'files': []},
    {'files': {'a': 1}},
    {'files': {'a': FILE | {'size': -1}}},
    {'files': {'a': FILE | {'size': 1.5}}},
    {'files': {'a': FILE | {'size': True}}},
    {'files': {'a': {'size': 1}}},
    {'files': {'a': FILE | {'sha256': 'x' * 64}}},
    {'files': {'a': FILE | {'sha256': None}}},
    {'leaves': []},
    {'leaves': {'w': []}},
    {'leaves': {'w': LEAF | {'shape': [2.0]}}},
    {'leaves': {'w': LEAF | {'shape': [-2]}}},
    {'leaves': {'w': LEAF | {'shape': 2}}},
    {'leaves': {'w': LEAF | {'dtype': 4}}},
    {'leaves': {'w': LEAF | {'dtype': '(2,)f4,O'}}},
    {'leaves': {'w': LEAF | {'impl': 1}}},
    {'leaves': {'w': LEAF, 'w/x': LEAF}},
    {'leaves': {'': LEAF}},
  ],
  ids=ascii,
)
def test_wrong_types_are_refused(step_dir, change):
  """With a checksum of its own: a manifest may have been made to deceive."""
  manifest.put(step_dir, manifest.read(step_dir) | change)
  with pytest.raises(manifest.ManifestError, match=f'^{step_dir}/manifest.json '):
    manifest.read(step_dir)


@pytest.mark.parametrize('field', ['step', 'time', 'scores', 'leaves', 'empty', 'files', 'lmjax'])
def test_missing_fields_are_refused(step_dir, field):
  manifest.put(step_dir, {k: v for k, v in manifest.read(step_dir).items() if k != field})
  with pytest.raises(manifest.ManifestError, match=f'has {field}=None; .* is accepted'):
    manifest.read(step_dir)


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
  lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(), x, max_size=3),
  max_leaves=8,
)


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(st.data())
def test_any_content_is_read_or_refused_by_name(tmp_path_factory, data):
  """Any JSON in any place, under a valid checksum: all that follows a successful read must hold."""
  where = tmp_path_factory.mktemp('m')
  good = {'format': 1, 'lmjax': '', 'versions': {}, 'step': 7, 'time': 1.0, 'scores': {'a': 1.0}}
  good |= {'leaves': {'w': LEAF, 'k': LEAF}, 'empty': ['v'], 'files': {'a': FILE, 'b/c': FILE}}
  field = data.draw(st.sampled_from(sorted(set(good) - {'format'})))
  value = data.draw(JSON)
  if isinstance(good[field], dict) and data.draw(st.booleans()):
    value = good[field] | {data.draw(st.text() | st.sampled_from(['a', 'w', 'w/x'])): value}
  manifest.put(where, good | {field: value})
  try:
    body = manifest.read(where)
  except manifest.ManifestError as e:
    assert str(e).startswith(f'{where}/manifest.json')
  else:
    assert all(isinstance(p, str) for p in manifest.verify(where))
    (
      math.isnan(body['scores'].get('a', 0)),
      tree_lib.nest(body['leaves'] | dict.fromkeys(body['empty'])),
    )
    manifest.remove(where)


@pytest.mark.parametrize('content', [b'', b'[]', b'1', b'\xff', b'{"self": 1', b'[' * 10**5])
def test_what_is_no_manifest_is_refused(step_dir, content):
  (step_dir / manifest.NAME).write_bytes(content)
  with pytest.raises(manifest.ManifestError, match=f'^{step_dir}/manifest.json cannot be read'):
    manifest.read(step_dir)


@pytest.mark.parametrize('kind', ['directory', 'fifo', 'link'])
def test_a_manifest_that_is_no_file_is_refused(step_dir, tmp_path, kind):
  """A pipe would keep the reader waiting for ever."""
  path = step_dir / manifest.NAME
  path.rename(tmp_path / 'elsewhere')
  make = {'directory': path.mkdir, 'fifo': lambda: os.mkfifo(path)}
  make.get(kind, lambda: os.symlink(tmp_path / 'elsewhere', path))()
  with pytest.raises(manifest.ManifestError, match='is not a file|symbolic link'):
    manifest.read(step_dir)
  assert manifest.exists(step_dir)


@pytest.mark.parametrize('kind', ['directory', 'fifo', 'link', 'link above'])
def test_a_listed_file_that_is_no_file_is_refused(step_dir, tmp_path, kind):
  """Neither a link to the same bytes nor one further up is followed."""
  path = step_dir / ('state' if kind == 'link above' else 'state/d/a')
  path.rename(tmp_path / 'elsewhere')
  make = {'directory': path.mkdir, 'fifo': lambda: os.mkfifo(path)}
  make.get(kind, lambda: os.symlink(tmp_path / 'elsewhere', path))()
  for checksums in (False, True):
    (problem, *_) = manifest.verify(step_dir, checksums=checksums)
    assert problem.startswith(f'{path} is ') and ('link' in problem) == ('link' in kind)


def test_a_file_that_cannot_be_read_is_named(step_dir, monkeypatch):
  def broken(*_):
    raise OSError(5, 'Input/output error')

  monkeypatch.setattr(manifest, '_digest', broken)
  assert f'{step_dir}/cursor cannot be read (Input/output error)' in manifest.verify(step_dir)


def test_removal_leaves_foreign_files(step_dir):
  (step_dir / 'state' / 'mine.txt').write_text('mine')
  manifest.remove(step_dir)
  assert sorted(manifest.walk(manifest.epath.Path(step_dir))) == ['state/mine.txt']


def test_removal_of_only_ours_leaves_nothing(step_dir):
  manifest.remove(step_dir)
  assert not step_dir.exists()


def test_removal_does_not_follow_links(step_dir, tmp_path):
  (tmp_path / 'precious').mkdir()
  (tmp_path / 'precious' / 'file').write_text('x')
  os.symlink(tmp_path / 'precious', step_dir / 'link')
  assert sorted(manifest.walk(manifest.epath.Path(step_dir))) == [
    'cursor',
    'link',
    'manifest.json',
    'state/d/a',
  ]
  manifest.remove(step_dir)
  assert (tmp_path / 'precious' / 'file').exists() and os.path.islink(step_dir / 'link')


def test_removal_does_not_delete_through_a_link(step_dir, tmp_path):
  """The folder of a listed file was replaced by a link to another with a file of that name."""
  (step_dir / 'state').rename(tmp_path / 'moved')
  os.symlink(tmp_path / 'moved', step_dir / 'state')
  manifest.remove(step_dir)
  assert (tmp_path / 'moved/d/a').exists() and os.listdir(step_dir) == ['state']


def test_an_interrupted_removal_can_be_finished(step_dir, monkeypatch):
  calls = []

  def killed(self, missing_ok=False):
    calls.append(self)
    raise KeyboardInterrupt

  with monkeypatch.context() as m:
    m.setattr(type(manifest.epath.Path(step_dir)), 'unlink', killed)
    with pytest.raises(KeyboardInterrupt):
      manifest.remove(step_dir)
  assert (
    calls and not (step_dir / manifest.NAME).exists()
  )  # never offered again, and still known to be ours
  manifest.remove(step_dir)
  assert not step_dir.exists()


def test_nothing_is_removed_without_a_manifest_to_trust(step_dir):
  _flip(step_dir / manifest.NAME)
  with pytest.raises(manifest.ManifestError):
    manifest.remove(step_dir)
  assert (step_dir / 'state/d/a').exists()


def test_a_future_format_is_refused(step_dir):
  manifest.put(step_dir, manifest.read(step_dir) | {'format': 2})
  with pytest.raises(manifest.ManifestError, match='format 2; this version reads format 1'):
    manifest.read(step_dir)


def test_names_do_not_depend_on_classes():
  import optax

  params = {'a/b': jnp.zeros(2), 'c': (jnp.zeros(3), [jnp.zeros(4)]), 'n': None, 'e': {}}
  state = optax.chain(optax.clip(1.0), optax.trace(0.9)).init({'w': jnp.zeros(5)})
  names = tree_lib.named_leaves({'p': params, 'o': state})
  assert list(names) == ['o/1/trace/w', 'p/a%2Fb', 'p/c/0', 'p/c/1/0']
  assert tree_lib.empties({'p': params}) == ['p/e']


class Pair:
  """A pytree whose two children say the same name."""


jax.tree_util.register_pytree_with_keys(
  Pair,
  lambda p: (((jax.tree_util.GetAttrKey('x'), 1), (jax.tree_util.GetAttrKey('x'), 2)), None),
  lambda *_: Pair(),
)


@pytest.mark.parametrize('tree', [jnp.zeros(1), {'p': Pair()}])
def test_leaves_without_a_name_of_their_own_are_refused(tree):
  with pytest.raises(ValueError, match='two leaves named'):
    tree_lib.named_leaves(tree)


def test_differences_name_path_and_both_values():
  d = lambda *shape, dtype='float32': tree_lib.describe(jax.ShapeDtypeStruct(shape, dtype))
  out = tree_lib.differences(
    {'a': d(2), 'b': d(2), 'c': d(2), 'same': d()},
    {'a': d(3), 'b': d(2, dtype='bfloat16'), 'new': d(1), 'same': d()},
  )
  assert out == [
    'a is float32[2] in the checkpoint and float32[3] here',
    'b is float32[2] in the checkpoint and bfloat16[2] here',
    'c is float32[2] in the checkpoint and absent here',
    'new is float32[1] here and absent from the checkpoint',
  ]


def test_what_could_not_be_read_again_is_not_written(step_dir):
  """A file of such a name, or a step in the wrong place, would make a damaged checkpoint."""
  before = (step_dir / manifest.NAME).read_bytes()
  with pytest.raises(manifest.ManifestError, match='could not be read again: it is of step 8'):
    manifest.write(step_dir, 8, leaves={}, scores={})
  (step_dir / 'a:b').write_text('')
  with pytest.raises(manifest.ManifestError, match='could not be read again: it lists .*outside'):
    manifest.write(step_dir, 7, leaves={}, scores={})
  assert (step_dir / manifest.NAME).read_bytes() == before


def test_the_manifest_is_plain_json(step_dir):
  assert json.loads((step_dir / manifest.NAME).read_text())['format'] == 1
  assert not (step_dir / f'{manifest.NAME}.partial').exists()

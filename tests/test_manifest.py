"""The manifest names every damaged file, and deletion touches only what it lists."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import checkpoint_tree
from lmjax import manifest


@pytest.fixture
def step_dir(tmp_path):
  path = tmp_path / '7'
  (path / 'state' / 'd').mkdir(parents=True)
  (path / 'state' / 'd' / 'a').write_bytes(bytes(range(256)) * 40)
  (path / 'cursor').write_text('{}')
  manifest.write(
    path,
    7,
    leaves={'x': checkpoint_tree.describe(np.zeros((2, 3)))},
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


def test_extra_files_are_no_problem(step_dir):
  (step_dir / 'notes.txt').write_text('mine')
  assert manifest.verify(step_dir) == []


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


def test_paths_out_of_the_directory_are_refused(step_dir):
  body = manifest.read(step_dir)
  for evil in ('../../etc/passwd', '/etc/passwd', 'a/../../b'):
    manifest.put(step_dir, body | {'files': {evil: {'size': 1, 'sha256': ''}}})
    with pytest.raises(manifest.ManifestError, match='outside'):
      manifest.remove(step_dir)


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
  names = checkpoint_tree.named_leaves({'p': params, 'o': state})
  assert list(names) == ['o/1/trace/w', 'p/a%2Fb', 'p/c/0', 'p/c/1/0']
  assert checkpoint_tree.empties({'p': params}) == ['p/e']


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
    checkpoint_tree.named_leaves(tree)


def test_differences_name_path_and_both_values():
  d = lambda *shape, dtype='float32': checkpoint_tree.describe(jax.ShapeDtypeStruct(shape, dtype))
  out = checkpoint_tree.differences(
    {'a': d(2), 'b': d(2), 'c': d(2), 'same': d()},
    {'a': d(3), 'b': d(2, dtype='bfloat16'), 'new': d(1), 'same': d()},
  )
  assert out == [
    'a is float32[2] in the checkpoint and float32[3] here',
    'b is float32[2] in the checkpoint and bfloat16[2] here',
    'c is float32[2] in the checkpoint and absent here',
    'new is float32[1] here and absent from the checkpoint',
  ]


def test_the_manifest_is_plain_json(step_dir):
  assert json.loads((step_dir / manifest.NAME).read_text())['format'] == 1
  assert not (step_dir / f'{manifest.NAME}.partial').exists()

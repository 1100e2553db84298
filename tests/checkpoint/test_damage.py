"""Damage of every kind: restores are refused with the file named, no run goes on from an older step
unasked, good steps are not deleted for damaged ones, and nothing foreign is deleted.
"""

import logging
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.checkpoint import Checkpointer
from lmjax.checkpoint import manifest
from lmjax.checkpoint import scan


def _state(step):
  return {'params': {'w': jnp.full((20, 30), step, jnp.bfloat16)}, 'step': jnp.int32(step)}


LIKE = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _state(0))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Steps 1, 2 and 3; the loss is lowest at 3."""
  directory = tmp_path_factory.mktemp('saved')
  with Checkpointer(directory, keep_last=0) as c:
    for s in (1, 2, 3):
      c.save(s, _state(s), {'step': s}, {'loss': 1 / s})
  return directory


@pytest.fixture
def folder(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'c')
  return tmp_path / 'c'


def _files(step_dir):
  return sorted(p for p in step_dir.rglob('*') if p.is_file())


def _flip(path, at=None):
  data = bytearray(path.read_bytes())
  data[len(data) // 2 if at is None else at] ^= 1
  path.write_bytes(data)


def _array_file(step_dir):
  return max(_files(step_dir / 'state'), key=lambda p: p.stat().st_size)


def _restores(directory, step):
  """Both ways of reading, by an object of its own."""
  c = Checkpointer(directory)
  return lambda: c.restore(step, LIKE), lambda: c.restore_params(step)


# ------------------------------------------------------------------ what is refused


def test_whole_steps_are_restored(folder):
  for step in (1, 2, 3):
    state, cursor = Checkpointer(folder).restore(step, LIKE)
    assert (np.asarray(state['params']['w']) == step).all() and cursor == {'step': step}
  assert Checkpointer(folder).latest_whole() == 3


def test_a_flipped_byte_in_any_file_is_refused_by_name(folder):
  files = _files(folder / '3')
  assert len(files) > 10 and folder / '3' / manifest.NAME in files
  for file in files:
    whole = file.read_bytes()
    for at in {0, len(whole) // 2, len(whole) - 1}:
      _flip(file, at)
      for read in _restores(folder, 3):
        with pytest.raises(ValueError, match=f'checkpoint {folder}/3 is damaged: {file} '):
          read()
      file.write_bytes(whole)
  assert manifest.verify(folder / '3') == []


@pytest.mark.parametrize('damage', ['truncated', 'deleted', 'grown'])
def test_missing_bytes_are_offered_and_refused_by_name(folder, damage):
  """Without the offer a resume would go on from step 2 and nobody would know."""
  for file in _files(folder / '3'):
    if file.name == manifest.NAME and damage != 'truncated':
      continue  # deleted: a save that was interrupted; grown: white space
    whole = file.read_bytes()
    if damage == 'deleted':
      file.unlink()
    else:
      file.write_bytes(whole[:-1] if damage == 'truncated' else whole + b' ')
    c = Checkpointer(folder)
    assert c.latest() == 3 and c.offered() == [1, 2, 3] and c.steps() == [1, 2]
    assert c.latest_whole() == 2 and c.best() == 2
    hints = (
      '; --allow_older_checkpoint would use step 2, the newest whole one$',
      '; the newest whole step is 2$',
    )
    for read, hint in zip(_restores(folder, 3), hints):
      with pytest.raises(ValueError, match=f'{folder}/3 is damaged: {file} .*{hint}'):
        read()
    file.write_bytes(whole)
  assert Checkpointer(folder).latest_whole() == 3


def test_without_any_whole_step_the_refusal_says_so(folder):
  for step in (1, 2, 3):
    _flip(_array_file(folder / str(step)))
  c = Checkpointer(folder)
  with pytest.raises(ValueError, match='does not match its checksum; no other step is whole$'):
    c.restore(3, LIKE)
  assert c.latest() == 3 and c.latest_whole() is None


def test_an_older_damaged_step_names_the_newest_whole_one(folder):
  """The flag would not help here: it is not what a resume would take."""
  _flip(_array_file(folder / '1'))
  with pytest.raises(ValueError, match='; the newest whole step is 3$'):
    Checkpointer(folder).restore(1, LIKE)


@pytest.mark.parametrize('place', ['notes.txt', 'state/d/extra', 'cursor/.hidden', 'new/folder/x'])
def test_foreign_files_are_refused_by_name_and_stay(folder, place):
  file = folder / '3' / place
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text('mine')
  for read in _restores(folder, 3):
    with pytest.raises(ValueError, match=f'{folder}/3 is damaged: {file} is not in the manifest'):
      read()
  with Checkpointer(folder, keep_last=1, keep_best=False) as c:
    c.save(4, _state(4), {})
  assert c.steps() == [4] and file.read_text() == 'mine'
  assert [p for p in (folder / '3').rglob('*') if p.is_file()] == [file]


@pytest.mark.parametrize('place', ['state', 'cursor/metadata', 'state/d', manifest.NAME])
def test_links_in_a_step_are_refused_even_to_the_same_bytes(folder, tmp_path, place):
  path = folder / '3' / place
  path.rename(tmp_path / 'outside')
  os.symlink(tmp_path / 'outside', path)
  assert Checkpointer(folder).latest() == 3 and Checkpointer(folder).steps() == [1, 2]
  for read in _restores(folder, 3):
    with pytest.raises(ValueError, match=f'{path} is a symbolic link, which is not followed'):
      read()


def test_a_step_under_another_number_is_refused(folder):
  (folder / '3').rename(folder / '9')
  c = Checkpointer(folder)
  assert c.latest() == 9 and c.steps() == [1, 2]
  with pytest.raises(ValueError, match=f"{folder}/9/manifest.json is of step 3; .* is '9'"):
    c.restore(9, LIKE)


def test_the_cursor_is_not_read_from_a_damaged_file(folder):
  _flip(folder / '3' / 'cursor' / 'metadata')
  with pytest.raises(ValueError, match='cursor/metadata does not match.*_older_checkpoint.*step 2'):
    Checkpointer(folder).cursor(3)


def test_what_orbax_cannot_read_is_refused_in_a_sentence(folder):
  """Checksums hold, since whoever wrote the file wrote the manifest too."""
  (folder / '3' / 'state' / '_METADATA').write_text('{"tree_metadata": 3}')
  manifest.write(folder / '3', 3, **_kept(manifest.read(folder / '3')))
  for read in _restores(folder, 3):
    with pytest.raises(ValueError, match=f'checkpoint {folder}/3 cannot be read'):
      read()


@pytest.mark.parametrize('lie', [{'dtype': 'float16'}, {'shape': [30, 20]}, {'shape': [20, 31]}])
def test_arrays_that_are_not_what_the_manifest_says_are_refused(folder, lie):
  kept = _kept(manifest.read(folder / '3'))
  kept['leaves']['params/w'] |= lie
  manifest.write(folder / '3', 3, **kept)
  with pytest.raises(ValueError, match=r'params/w is bfloat16\[20,30\], its manifest says'):
    Checkpointer(folder).restore_params(3)


def _kept(body):
  return {k: body[k] for k in ('leaves', 'scores', 'empty', 'versions')} | {
    'version': body['lmjax']
  }


# ------------------------------------------------------------------ what is offered


def test_an_interrupted_save_is_not_offered_and_warned_of_once(folder, caplog):
  (folder / '3' / manifest.NAME).unlink()
  c = Checkpointer(folder)
  with caplog.at_level(logging.WARNING):
    assert c.latest() == 2 and c.steps() == [1, 2] and c.latest_whole() == 2 and c.best() == 2
    c.latest()
  (record,) = caplog.records
  assert f'{folder}/3 is incomplete and not used' in record.getMessage()
  with pytest.raises(ValueError, match='no complete checkpoint of step 3 .*complete steps: 1, 2'):
    c.restore(3, LIKE)


def test_a_damaged_step_is_warned_of_once(folder, caplog):
  (folder / '3' / manifest.NAME).write_text('{')
  c = Checkpointer(folder)
  with caplog.at_level(logging.WARNING):
    for _ in range(2):
      assert c.best() == 2 and c.latest() == 3
  (record,) = caplog.records
  assert f'checkpoint {folder}/3 is damaged: {folder}/3/manifest.json cannot' in record.getMessage()


def test_names_that_are_no_steps_are_left_alone(folder):
  for name in ('07', '²', '٣', '-1', '1.0', 'best', '5 '):
    (folder / name).mkdir()
  (folder / '8').write_text('a file')
  c = Checkpointer(folder)
  assert c.steps() == [1, 2, 3] and c.latest() == 3
  assert [scan.number(n) for n in ('0', '7', '10')] == [0, 7, 10]


def test_a_step_whose_deletion_was_begun_is_not_hidden_by_a_stray_file(folder):
  (folder / '3' / manifest.DOOMED).write_text('{}')
  c = Checkpointer(folder)
  assert c.latest() == 3
  with pytest.raises(ValueError, match=f'{manifest.DOOMED} is not in the manifest'):
    c.restore(3, LIKE)


def test_a_directory_that_cannot_be_listed_is_refused(folder, monkeypatch):
  def forbidden(_):
    raise PermissionError(13, 'Permission denied')

  c = Checkpointer(folder)
  monkeypatch.setattr(type(c.directory), 'iterdir', forbidden)
  with pytest.raises(ValueError, match=f'{folder} cannot be read .Permission denied'):
    c.latest()


# ------------------------------------------------------------------ what is kept


def test_good_steps_are_not_deleted_for_damaged_ones(folder):
  """Of 2 steps to keep, the damaged 3 is none; nor is it the best."""
  _array_file(folder / '3').unlink()
  with Checkpointer(folder, keep_last=2) as c:
    c.save(4, _state(4), {}, {'loss': 9.0})
    c.wait()
    assert c.steps() == [2, 4] and c.best() == 2
  assert (folder / '3').exists() and not (folder / '1').exists()


def test_a_run_that_passed_over_damaged_steps_goes_on_from_what_it_saves(folder):
  """Step 3 has a flipped byte, which only checksums show; 5 is a copy of it."""
  shutil.copytree(folder / '3', folder / '5')
  _flip(_array_file(folder / '3'))
  with Checkpointer(folder, keep_last=1, keep_best=False) as c:
    assert c.latest() == 5
    assert c.latest_whole() == 2
    state, cursor = c.restore(2, LIKE)
    c.save(2, state, cursor)  # as it is there already, nothing moves
    assert (folder / '3').exists()
    c.save(4, _state(4), {})
    c.wait()
    assert c.latest() == 4 and c.steps() == [4]
  assert Checkpointer(folder).latest() == 4
  assert sorted(os.listdir(folder)) == ['3', '4', 'damaged-5-0']  # 3 is in nobody's way


def test_a_newer_step_with_a_flipped_byte_is_put_aside_by_who_passed_over_it(folder):
  _flip(_array_file(folder / '3'))
  (folder / '2').rename(folder / 'mine')
  with Checkpointer(folder) as c:
    assert c.latest_whole() == 1
    c.restore(1, LIKE)
    c.save(2, _state(2), {})
  assert sorted(os.listdir(folder)) == ['1', '2', 'damaged-3-0', 'mine']
  assert Checkpointer(folder).latest() == 2


def test_a_damaged_step_that_is_saved_anew_is_kept_aside(folder):
  file = _array_file(folder / '3')
  file.unlink()
  with Checkpointer(folder) as c:
    c.restore(2, LIKE)
    c.save(3, _state(7), {})
  assert sorted(os.listdir(folder)) == ['2', '3', 'damaged-3-0']
  assert Checkpointer(folder).restore_params(3)['step'] == 7
  assert (folder / 'damaged-3-0' / manifest.NAME).exists()


def test_a_linked_step_is_read_and_never_deleted(folder, tmp_path):
  """A person may keep a step elsewhere; the files there are not ours to delete."""
  (folder / '1').rename(tmp_path / '1')
  os.symlink(tmp_path / '1', folder / '1')
  Checkpointer(folder).restore(1, LIKE)
  with Checkpointer(folder, keep_last=1, keep_best=False) as c:
    c.save(4, _state(4), {})
  assert c.steps() == [1, 4] and manifest.verify(tmp_path / '1') == []


def test_a_half_deleted_step_that_lies_stays_and_saves_go_on(folder, tmp_path, caplog):
  precious = tmp_path / 'precious'
  precious.write_text('x')
  kept = manifest.read(folder / '1')
  manifest.put(folder / '1', kept | {'files': {'../../precious': kept['files']['cursor/metadata']}})
  (folder / '1' / manifest.NAME).rename(folder / '1' / manifest.DOOMED)
  with Checkpointer(folder) as c:
    c.save(4, _state(4), {})
    c.save(5, _state(5), {})
  assert c.latest_whole() == 5 and precious.exists() and (folder / '1' / 'state').exists()
  said = [r.getMessage() for r in caplog.records if 'half deleted' in r.getMessage()]
  assert len(said) == 1 and 'lists a file outside' in said[0]

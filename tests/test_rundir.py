"""The run directory records what is needed to repeat a run, and never takes what is not its own."""

import json
import os
import subprocess
import sys

import pytest

from lmjax import rundir
from lmjax import versions

CONFIG = {'steps': 10, 'model': {'width': 8, 'window': None}, 'shape': (1, 2), 'log_every': 5}


def _open(path, config=CONFIG, fingerprint='aa', **kw):
  out = rundir.open_rundir(path, config, fingerprint, **kw)
  out.close()
  return out


def test_a_fresh_directory_holds_config_command_and_versions(tmp_path):
  run = _open(tmp_path / 'a' / 'b', command=['python', '-m', 'x', '--config.a=two words'])
  assert not run.resumed and run.checkpoints == run.path / 'checkpoints'
  assert (
    json.loads((run.path / 'config.json').read_text())
    == CONFIG | {'shape': [1, 2]}
    == rundir.read_config(run.path)
  )
  assert (run.path / 'fingerprint.txt').read_text() == 'aa\n'
  assert (
    (run.path / 'command.txt').read_text().rstrip().endswith("python -m x '--config.a=two words'")
  )
  versions = json.loads((run.path / 'versions.json').read_text())[-1]
  import jax

  assert versions['jax'] == jax.__version__ and versions['device'] and 'commit' in versions


def test_a_resume_keeps_the_config_and_adds_the_command(tmp_path):
  _open(tmp_path)
  run = _open(tmp_path, CONFIG | {'log_every': 7})
  assert run.resumed and run.config['log_every'] == 5
  assert len((tmp_path / 'command.txt').read_text().splitlines()) == 2
  assert len(json.loads((tmp_path / 'versions.json').read_text())) == 1


def test_new_versions_are_appended(tmp_path, monkeypatch):
  _open(tmp_path)
  monkeypatch.setattr(versions, 'record', lambda: {'jax': 'next'})
  _open(tmp_path)
  assert [v['jax'] == 'next' for v in json.loads((tmp_path / 'versions.json').read_text())] == [
    False,
    True,
  ]


def test_another_config_is_refused_with_both_values(tmp_path):
  _open(tmp_path)
  before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
  other = CONFIG | {'model': {'width': 16}, 'extra': 1, 'log_every': 9}
  with pytest.raises(ValueError) as e:
    _open(tmp_path, other, 'bb', ignore=('log_every',))
  text = str(e.value)
  assert 'model.width is 8 there and 16 here' in text and 'extra is absent there and 1 here' in text
  assert 'log_every' not in text and '--workdir' in text and '--config.init_from' in text
  assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_at_most_five_keys_are_named(tmp_path):
  _open(tmp_path, {f'k{i}': 0 for i in range(9)})
  with pytest.raises(ValueError, match='k4 is 0 there and 1 here; and 4 more'):
    _open(tmp_path, {f'k{i}': 1 for i in range(9)}, 'bb')


def test_force_keeps_the_old_config(tmp_path):
  """The directory changes hands once the caller says that the checkpoint fits, not before."""
  _open(tmp_path)
  run = _open(tmp_path, {'steps': 99}, 'bb', force=True)
  assert _open(tmp_path).config['steps'] == 10 and not (tmp_path / 'config.1.json').exists()
  run.adopt()
  assert run.config == {'steps': 99} and rundir.read_config(tmp_path) == {'steps': 99}
  assert json.loads((tmp_path / 'config.1.json').read_text())['steps'] == 10
  assert _open(tmp_path, {'steps': 99}, 'bb').resumed


def test_a_kill_between_the_first_two_files_is_no_obstacle(tmp_path):
  _open(tmp_path)
  (tmp_path / 'config.json').unlink()
  assert _open(tmp_path).config['steps'] == 10


def test_foreign_files_stay_and_ours_are_not_taken(tmp_path):
  (tmp_path / 'notes.txt').write_text('mine')
  _open(tmp_path / '.')
  assert (tmp_path / 'notes.txt').read_text() == 'mine'


@pytest.mark.parametrize('name', ['config.json', 'metrics.jsonl', 'checkpoints', 'report.html'])
def test_a_directory_of_another_program_is_refused(tmp_path, name):
  (tmp_path / name).write_text('theirs')
  with pytest.raises(ValueError, match=f'holds {name} but no lmjax run'):
    _open(tmp_path)
  assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_text() == 'theirs'


@pytest.mark.parametrize(
  'bad, why',
  [
    ('', 'is empty'),
    ('s3://bucket/run', 'gs:// is the only object store that works here'),
    ('/dev/null', 'is a file'),
    ('a\\b', 'without a backslash'),
    ('/dev/null/run', 'is a file'),
    ('a' * 300, "workdir 'aaa.* is no path: File name too long"),
    ('a\0b', r"workdir 'a.x00b' is no path: embedded null byte"),
    ('~nobody-of-this-name/x', 'workdir .* is no path'),
  ],
)
def test_unusable_paths_get_one_sentence(bad, why):
  with pytest.raises(ValueError, match=why) as e:
    _open(bad)
  assert '\n' not in str(e.value)


def test_the_home_directory_is_meant_everywhere(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert _open('~/x').path == tmp_path / 'x'
  assert rundir.read_config('~/x')['steps'] == 10


@pytest.mark.parametrize('content', [b'', b'\xff\xfe', b'a b', b'"', None])
def test_a_damaged_fingerprint_is_named(tmp_path, content):
  _open(tmp_path)
  mark = tmp_path / 'fingerprint.txt'
  mark.unlink()
  mark.mkdir() if content is None else mark.write_bytes(content)
  for force in (False, True):
    with pytest.raises(ValueError, match='fingerprint.txt'):
      _open(tmp_path, force=force)


@pytest.mark.parametrize('content', [b'[1]', b'{"a": 1}', b'\xff', b'[' * 100_000, b'null'])
def test_unreadable_versions_are_kept_as_text(tmp_path, content):
  _open(tmp_path)
  (tmp_path / 'versions.json').write_bytes(content)
  _open(tmp_path)
  old, new = json.loads((tmp_path / 'versions.json').read_text())
  assert old['unreadable'] == content.decode('utf-8', 'replace') and 'jax' in new


@pytest.mark.parametrize('content', ['[' * 100_000, '[1]', '{'])
def test_an_unreadable_config_is_named(tmp_path, content):
  (tmp_path / 'config.json').write_text(content)
  with pytest.raises(ValueError, match='config.json') as e:
    rundir.read_config(tmp_path)
  assert len(str(e.value)) < 400


def test_a_directory_that_cannot_be_written(tmp_path, monkeypatch):
  def refused(*_, **__):
    raise PermissionError(13, 'Permission denied', str(tmp_path))

  monkeypatch.setattr(rundir, '_append_command', refused)
  with pytest.raises(ValueError, match='cannot be written: Permission denied'):
    _open(tmp_path)


def test_other_processes_only_check(tmp_path):
  _open(tmp_path / 'a', write=False)
  assert not (tmp_path / 'a').exists()
  _open(tmp_path / 'a')
  with pytest.raises(ValueError, match='another config'):
    _open(tmp_path / 'a', fingerprint='bb', write=False)


def test_two_processes_cannot_share_a_directory(tmp_path):
  held = rundir.open_rundir(tmp_path, CONFIG, 'aa')
  code = f'from lmjax import rundir; rundir.open_rundir({str(tmp_path)!r}, {CONFIG!r}, "aa")'

  def other():
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)

  refused = other()
  assert refused.returncode and f'in use by process {os.getpid()} on' in refused.stderr
  held.close()
  assert other().returncode == 0


def test_processes_of_equal_names_cannot_share_a_directory(tmp_path):
  """As in two containers: both are process 1 on a host of the same name."""
  held = rundir.open_rundir(tmp_path, CONFIG, 'aa')
  code = f'import os\nos.getpid = lambda: {os.getpid()}\nfrom lmjax import rundir\n'
  code += f'rundir.open_rundir({str(tmp_path)!r}, {CONFIG!r}, "aa")'
  other = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
  assert other.returncode and f'in use by process {os.getpid()} on' in other.stderr
  again = rundir.open_rundir(tmp_path, CONFIG, 'aa')  # this process may
  again.close()
  held.close()


def test_the_commit_is_that_of_this_code(tmp_path):
  subprocess.run(['git', 'init', '-q', str(tmp_path)], check=True)
  (tmp_path / '__init__.py').write_text('')
  git = ['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=a@b']
  subprocess.run([*git, 'add', '.'], check=True)
  subprocess.run([*git, 'commit', '-qm', 'x'], check=True)
  clean = versions._commit(tmp_path)
  assert len(clean['commit']) == 40 and clean['dirty'] is False
  (tmp_path / '__init__.py').write_text('changed')
  assert versions._commit(tmp_path)['dirty'] is True
  (tmp_path / 'site').mkdir()
  (tmp_path / 'site' / '__init__.py').write_text('')  # an installed copy inside somebody's checkout
  assert versions._commit(tmp_path / 'site') == {'commit': None, 'dirty': None}

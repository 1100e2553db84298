"""An imported run that is moved or copied goes on with its own tokenizer, and with no other."""

import json
import shutil

import jax
import numpy as np
import pytest

import _hf_folders as _tiny
import _tokenizers
from lmjax import build as build_lib
from lmjax import config as config_lib
from lmjax import main as main_lib
from lmjax import own_files
from lmjax import quantize
from lmjax import restore
from lmjax import rundir
from lmjax import sample
from lmjax.interop import __main__ as command
from lmjax.interop import chat
from lmjax.interop.hf import _importing
from lmjax.interop.hf import _tokenizer

PROMPT = ('--prompt=the cat', '--tokens=3', '--rule=greedy()')


def run_of(tmp_path, vocab_size=155, made=_tokenizers.unigram):
  """The run directory `run` of a folder that is gone."""
  folder = _tiny.folder(tmp_path / 'in', vocab_size=vocab_size, eos_token_id=1)
  made(folder)
  _importing.to_run(str(folder), str(tmp_path / 'run'))
  shutil.rmtree(folder)
  return tmp_path / 'run'


@pytest.fixture(scope='module')
def moved(tmp_path_factory):
  """(where the run was, where it is, what its files were)."""
  at = tmp_path_factory.mktemp('moved')
  old, new = run_of(at), at / 'other' / 'place'
  before = {p.name: p.read_bytes() for p in old.iterdir() if p.is_file()}
  new.parent.mkdir()
  shutil.move(old, new)
  return old, new, before


def test_the_config_and_its_identity_stay(moved):
  old, new, before = moved
  told = rundir.read_config(new)['data']['tokenizer']
  assert str(old / 'tokenizer.json') in told
  seen = own_files.config(new)
  assert seen['data']['tokenizer'] == told.replace(str(old), str(new))
  written = config_lib.fingerprint(config_lib.resolve(rundir.read_config(new)))
  assert written == (new / 'fingerprint.txt').read_text().strip()
  rest = lambda c: c | dict(data=c['data'] | dict(tokenizer=''))
  assert rest(seen) == rest(rundir.read_config(new))
  assert {p.name: p.read_bytes() for p in new.iterdir() if p.name in before} == before


def test_its_recipe_is_read_at_a_path_of_any_name(tmp_path, monkeypatch):
  at = tmp_path / 'a: "quoted" \'path\' """'
  run = run_of(at)
  monkeypatch.setenv('HOME', str(at))
  for path in (str(run / 'recipe.py'), '~/run/recipe.py'):
    assert config_lib.load(path).init_from == str(run)


def test_it_is_sampled_from_scored_and_exported(moved, tmp_path, capsys):
  new = moved[1]
  assert sample.main([f'--workdir={new}', *PROMPT]) == 0, capsys.readouterr().err
  assert 'the cat' in capsys.readouterr().out
  (tmp_path / 'text').write_text(_tokenizers.TEXT[:300])
  score = f'--eval=perplexity(path="{tmp_path / "text"}")'
  assert main_lib.main([f'--workdir={new}', score]) == 0, capsys.readouterr().err
  assert command.main(['export', str(new), f'--out={tmp_path / "out"}']) == 0
  assert (tmp_path / 'out' / 'tokenizer.json').read_bytes() == (new / 'tokenizer.json').read_bytes()
  for source in (new, new / 'checkpoints' / '0'):
    assert str(new) in restore.built(str(source)).config['data']['tokenizer']


def test_its_recipe_begins_from_it(moved):
  new = moved[1]
  c = config_lib.resolve(config_lib.load(str(new / 'recipe.py')))
  assert c['init_from'] == str(new)
  assert c['data']['tokenizer'] == restore.resolved(new)['data']['tokenizer']
  run = build_lib.build(c)
  begun = restore.begin(run, run.init(jax.random.key(0)))
  jax.tree.map(np.testing.assert_array_equal, begun.params, restore.load(new)[1])


@pytest.mark.slow
def test_its_recipe_is_trained_with(moved, tmp_path, capsys):
  new, on = moved[1], tmp_path / 'on'
  flags = ['--config.steps=1', '--config.batch_tokens=48', '--config.sample.tokens=0']
  flags += ['--config.data.valid=', '--config.report=False', '--config.tensorboard=False']
  assert main_lib.main([f'--config={new}/recipe.py', f'--workdir={on}', *flags]) == 0, (
    capsys.readouterr().err
  )
  begun = restore.load(on)
  assert begun[3] == 1 and begun[0].config['init_from'] == str(new)
  text = 'the cat'
  theirs = restore.resolved(new)['data']['tokenizer']
  assert begun[0].config['data']['tokenizer'] == theirs
  assert begun[0].tokenizer.encode(text).tolist() == _tokenizers.make(theirs).encode(text).tolist()


def test_what_is_quantized_from_it_stands_alone(tmp_path, capsys):
  def chats(folder):
    _tokenizers.unigram(folder)
    (folder / 'additional_chat_templates').mkdir()
    (folder / 'additional_chat_templates' / 'rag.jinja').write_text('{{ messages[0].content }}')
    (folder / 'chat_template.jinja').write_text('{{ messages[0].content }}!')

  old, small = run_of(tmp_path, made=chats), tmp_path / 'small'
  text = (old / 'tokenizer.json').read_bytes()
  told = quantize.main([str(old), '--method=rtn(bits=8)', f'--out={small}', '--rows=0'])
  assert told == 0, capsys.readouterr().err
  assert str(small) in rundir.read_config(small)['data']['tokenizer']
  shutil.rmtree(old)
  new = tmp_path / 'new'
  shutil.move(small, new)
  assert sample.main([f'--workdir={new}', *PROMPT]) == 0, capsys.readouterr().err
  assert 'the cat' in capsys.readouterr().out
  assert (new / 'tokenizer.json').read_bytes() == text
  texts = dict(rag='{{ messages[0].content }}', default='{{ messages[0].content }}!')
  assert chat.templates(new) == texts


def test_a_copy_reads_its_own_file_though_the_other_is_there(tmp_path):
  old = run_of(tmp_path)
  shutil.copytree(old, tmp_path / 'copy')
  (old / 'tokenizer.json').write_text('another one')  # as where a second model was put there
  assert str(tmp_path / 'copy') in restore.resolved(tmp_path / 'copy')['data']['tokenizer']
  restore.built(str(tmp_path / 'copy'))
  with pytest.raises(ValueError, match=f'{old}/tokenizer.json is not the file that this run'):
    restore.built(str(old))


def test_another_name_of_the_directory_is_no_move(tmp_path):
  run = run_of(tmp_path)
  (tmp_path / 'link').symlink_to(run)
  assert own_files.config(tmp_path / 'link') == rundir.read_config(run)


def test_a_changed_or_missing_file_is_named(tmp_path, capsys):
  old, new = run_of(tmp_path), tmp_path / 'new'
  shutil.move(old, new)
  file = new / 'tokenizer.json'
  spec = json.loads(file.read_text())
  spec['model']['vocab'][9][1] -= 1.0
  file.write_text(json.dumps(spec))
  assert sample.main([f'--workdir={new}', *PROMPT]) == 2
  told = capsys.readouterr().err.strip().splitlines()[-1]
  assert f'{file} is not the file that this run was made with' in told
  file.unlink()
  assert sample.main([f'--workdir={new}', *PROMPT]) == 2
  assert f'no file {file}' in capsys.readouterr().err
  assert command.main(['export', str(new), f'--out={tmp_path / "out"}']) == 2
  assert f'no file {file}' in capsys.readouterr().err and not (tmp_path / 'out').exists()


def test_a_pair_of_files_is_found_by_its_folder(tmp_path, monkeypatch):
  monkeypatch.setattr(_tokenizer, 'PAIRED', ('llama',))

  def pair(folder):
    _tokenizers.pair(folder)
    (folder / 'encoder.json').rename(folder / 'vocab.json')
    (folder / 'vocab.bpe').rename(folder / 'merges.txt')

  old, new = run_of(tmp_path, 300, pair), tmp_path / 'new'
  want = restore.built(str(old)).tokenizer
  shutil.move(old, new)
  got = restore.built(str(new))
  assert got.tokenizer.fingerprint() == want.fingerprint()
  assert f"path='{new}'" in got.config['data']['tokenizer']
  (new / 'merges.txt').write_text('#version: 0.2\n')
  with pytest.raises(ValueError, match=f'{new}/merges.txt is not the file'):
    restore.built(str(new))


def test_words_that_were_made_into_a_tokenizer_json_move_too(tmp_path):
  def words(folder):
    spec = json.loads(_tokenizers.wordpiece(folder).read_text())
    (folder / 'tokenizer.json').unlink()
    (folder / 'vocab.txt').write_text('\n'.join(spec['model']['vocab']) + '\n')

  from test_hf_encoder_folders import CONFIGS
  from test_hf_encoder_folders import tensors

  config = CONFIGS['bert']
  words(_tiny.folder(tmp_path / 'in', config, tensors(config)))
  told = _importing.to_run(str(tmp_path / 'in'), str(tmp_path / 'run'))['tokenizer']
  assert told.endswith('(tokenizer.json was made of vocab.txt)')
  ids = restore.built(str(tmp_path / 'run')).tokenizer.encode('The cat')
  shutil.rmtree(tmp_path / 'in')
  shutil.move(tmp_path / 'run', tmp_path / 'new')
  again = restore.built(str(tmp_path / 'new')).tokenizer
  np.testing.assert_array_equal(again.encode('The cat'), ids)
  assert (again.bos, again.mask) == (2, 4)


def test_paths_elsewhere_stay(tmp_path):
  """Only what the import wrote down is the run's own."""
  other = _tokenizers.unigram(tmp_path)
  _tiny.folder(tmp_path / 'in', vocab_size=155)
  spec = f'unigram(path="{other}")'
  _importing.to_run(str(tmp_path / 'in'), str(tmp_path / 'run'), tokenizer=spec)
  assert not (tmp_path / 'run' / own_files.FILE).exists()
  shutil.move(tmp_path / 'run', tmp_path / 'new')
  shutil.copy(other, tmp_path / 'new')
  assert str(other) in restore.resolved(tmp_path / 'new')['data']['tokenizer']
  other.unlink()
  with pytest.raises(ValueError, match=f'no file {other}'):
    restore.built(str(tmp_path / 'new'))


@pytest.mark.parametrize(
  'text',
  [
    '[]',
    '{',
    '{"folder": 3, "files": {}}',
    '{"folder": "/x", "files": {"../a": ""}}',
    '{"files": 1}',
    '{"folder": "/x", "files": {}, "beside": ["../../a"]}',
    '{"folder": "/x", "files": {}, "beside": ["/etc/passwd"]}',
    '{"folder": "/x", "files": {}, "beside": [3]}',
  ],
)
def test_a_damaged_record_is_named(tmp_path, text):
  (tmp_path / 'config.json').write_text('{}')
  (tmp_path / own_files.FILE).write_text(text)
  with pytest.raises(ValueError, match=own_files.FILE) as e:
    own_files.config(tmp_path)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize(
  'data', [3, {}, dict(tokenizer=3), dict(tokenizer='('), dict(tokenizer='')]
)
def test_an_odd_config_is_left_for_its_reader(tmp_path, data):
  (tmp_path / 'config.json').write_text(json.dumps(dict(data=data)))
  (tmp_path / own_files.FILE).write_text('{"folder": "/gone", "files": {"a": ""}}')
  assert own_files.config(tmp_path)['data'] == data

"""Folders of encoders without the library that makes them: round trips, older spellings, what is
left out, and every field that is refused.
"""

import json

import numpy as np
import pytest

import _hf_folders as _tiny
import _tokenizers
from lmjax import build as build_lib
from lmjax import config as config_lib
from lmjax import main as main_lib
from lmjax import restore
from lmjax.interop import __main__ as command
from lmjax.interop import hf
from lmjax.interop.hf import _fields
from lmjax.interop.hf import _folder
from lmjax.interop.hf import _importing
from lmjax.interop.hf import _settings
from lmjax.interop.hf import _tensors

SIZES = dict(
  vocab_size=263,
  hidden_size=12,
  intermediate_size=19,
  num_hidden_layers=3,
  num_attention_heads=3,
  max_position_embeddings=24,
)
CONFIGS = {
  'bert': SIZES | dict(model_type='bert', pad_token_id=0),
  'roberta': SIZES | dict(model_type='roberta', type_vocab_size=1, pad_token_id=1),
  'modernbert': SIZES | dict(model_type='modernbert', local_attention=8, num_hidden_layers=6),
}


def tensors(config):
  """Random tensors of every row."""
  family = hf.family(config['model_type'], '')
  h = _fields.checked(config, family.FIELDS, '')
  c = _settings.config(family.to_settings(h))
  c.data.tokenizer = 'bytes()'
  run = build_lib.build(config_lib.resolve(c))
  return _tiny.arrays({p.name: p.shape for p in _tensors.pieces(family.TABLE, run)})


@pytest.mark.parametrize('name', CONFIGS)
def test_a_round_trip_gives_the_same_bytes(tmp_path, name):
  config = CONFIGS[name]
  made = tensors(config)
  _tiny.folder(tmp_path / 'in', config, made)
  run, out = tmp_path / 'run', tmp_path / 'out'
  assert command.main(['import', str(tmp_path / 'in'), f'--out={run}', '--tokenizer=bytes()']) == 0
  assert command.main(['export', str(run), f'--out={out}', '--tokenizer=none']) == 0
  after = _folder.Folder(out)
  assert set(after.shapes) == set(made)
  for key, value in made.items():
    assert after.read(key).tobytes() == value.tobytes(), key
  kept = {k: v for k, v in config.items() if k != 'pad_token_id' or name == 'roberta'}
  assert {k: after.config[k] for k in kept} == kept
  # What the library that reads it, in its older versions, needs beside the list of layers.
  if name == 'modernbert':
    assert after.config['global_attn_every_n_layers'] == 3
    assert after.config['global_rope_theta'] == 160_000
    assert after.config['layer_types'].count('sliding_attention') == 4


def test_older_names_copies_and_other_heads(tmp_path):
  config = CONFIGS['bert']
  made = tensors(config)
  _tiny.folder(tmp_path / 'in', config, made)
  older = {
    k.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta'): x
    for k, x in made.items()
  }
  words = made['bert.embeddings.word_embeddings.weight']
  more = {
    'cls.predictions.decoder.weight': words,
    'cls.predictions.decoder.bias': made['cls.predictions.bias'],
    'cls.seq_relationship.weight': np.ones((2, 12), np.float32),
    'bert.pooler.dense.bias': np.ones(12, np.float32),
  }
  _tiny.folder(tmp_path / 'old', config, older | more)
  load = lambda at: _importing.load(str(tmp_path / at), tokenizer='bytes()')[1]
  for (path, a), (_, b) in zip(
    _tensors.leaves(load('in')), _tensors.leaves(load('old')), strict=True
  ):
    np.testing.assert_array_equal(a, b, err_msg='/'.join(path))
  _tiny.folder(
    tmp_path / 'two', config, older | more | {'cls.predictions.decoder.weight': words + 1}
  )
  with pytest.raises(ValueError, match='decoder.weight and .* differ'):
    load('two')
  bare = {k.removeprefix('bert.'): x for k, x in made.items() if k.startswith('bert.')}
  _tiny.folder(tmp_path / 'bare', config, bare)
  with pytest.raises(ValueError, match='cls.predictions.bias .* is missing'):
    load('bare')


@pytest.mark.parametrize(
  'name, more, words',
  [
    ('bert', dict(is_decoder=True), 'is_decoder=True'),
    ('bert', dict(tie_word_embeddings=False), 'tie_word_embeddings=False'),
    ('bert', dict(position_embedding_type='relative_key'), "'relative_key'"),
    ('bert', dict(hidden_act='relu'), "hidden_act='relu'"),
    ('bert', dict(hidden_size=13), 'hidden_size=13 does not divide'),
    ('bert', dict(type_vocab_size=0), 'types=0'),
    ('roberta', dict(pad_token_id=23), 'max_position_embeddings=24: 24 rows'),
    ('modernbert', dict(layer_types=['full_attention']), 'layer_types='),
    ('modernbert', dict(global_attn_every_n_layers=0), 'global_attn_every_n_layers=0'),
    ('modernbert', dict(rope_parameters=dict(rope_theta=1.0)), 'objects named full_attention'),
    (
      'modernbert',
      dict(rope_parameters=dict(sliding_attention=dict(rope_type='yarn'))),
      "rope_type='yarn'",
    ),
    ('modernbert', dict(classifier_activation='tanh'), "classifier_activation='tanh'"),
  ],
)
def test_what_would_be_another_function_is_refused(tmp_path, capsys, name, more, words):
  config = CONFIGS[name] | more
  _tiny.folder(tmp_path / 'in', config, {'x': np.zeros(1, np.float32)})
  flags = ['import', str(tmp_path / 'in'), f'--out={tmp_path / "run"}', '--tokenizer=bytes()']
  assert command.main(flags) == 2
  err = capsys.readouterr().err
  assert words in err and err.count('\n') == 1 and not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_the_run_learns_on_from_there(tmp_path):
  _tiny.folder(tmp_path / 'in', CONFIGS['bert'], tensors(CONFIGS['bert']))
  run = tmp_path / 'run'
  assert command.main(['import', str(tmp_path / 'in'), f'--out={run}', '--tokenizer=bytes()']) == 0
  flags = [f'--config={run}/recipe.py', f'--workdir={tmp_path / "more"}', '--config.steps=1']
  flags += ['--config.batch_tokens=48', '--config.data.valid=', '--config.report=False']
  flags += ['--config.tensorboard=False']
  assert main_lib.main(flags) == 0


def test_a_wordpiece_tokenizer_comes_along(tmp_path):
  folder = _tiny.folder(tmp_path / 'in', CONFIGS['bert'], tensors(CONFIGS['bert']))
  path = _tokenizers.wordpiece(folder)
  spec = json.loads(path.read_text())
  first, rest = (
    {'SpecialToken': {'id': '[CLS]', 'type_id': 0}},
    {'Sequence': {'id': 'A', 'type_id': 0}},
  )
  spec['post_processor'] = dict(
    type='TemplateProcessing',
    single=[first, rest],
    pair=[first, rest],
    special_tokens={'[CLS]': {'id': '[CLS]', 'ids': [2], 'tokens': ['[CLS]']}},
  )
  path.write_text(json.dumps(spec))
  run, out = tmp_path / 'run', tmp_path / 'out'
  assert command.main(['import', str(folder), f'--out={run}']) == 0
  found = restore.load(run)[0]
  assert found.config['data']['bos'] and found.tokenizer.mask == 4
  assert str(run) in found.config['data']['tokenizer']
  assert command.main(['export', str(run), f'--out={out}']) == 0
  assert json.loads((out / 'tokenizer.json').read_text()) == spec
  settings = json.loads((out / 'tokenizer_config.json').read_text())
  assert settings['mask_token'] == '[MASK]' and settings['bos_token'] == '[CLS]'

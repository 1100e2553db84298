"""Folders in Hugging Face's layout without its libraries: read, used, written again byte for byte;
every way in which one may be wrong.
"""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import _hf_folders as _tiny
from lmjax import kinds
from lmjax import main as main_lib
from lmjax import restore
from lmjax.interop import __main__ as command
from lmjax.interop import hf
from lmjax.interop import safetensors
from lmjax.interop.hf import _axes
from lmjax.interop.hf import _exporting
from lmjax.interop.hf import _folder
from lmjax.interop.hf import _importing
from lmjax.nn import embedding


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
  """(folder, run directory) of the tiny Llama."""
  at = tmp_path_factory.mktemp('hf')
  _tiny.folder(at / 'in')
  assert command.main(['import', str(at / 'in'), f'--out={at / "run"}', '--tokenizer=bytes()']) == 0
  return at / 'in', at / 'run'


def llama(tensors, c, tokens):
  """Logits (T, V) in float64, from the public description of the model."""
  w = {k: v.astype(np.float64) for k, v in tensors.items()}
  n, groups = c['num_attention_heads'], c['num_key_value_heads']
  size = c['hidden_size'] // n
  rms = lambda x, g: x / np.sqrt((x**2).mean(-1, keepdims=True) + c['rms_norm_eps']) * g
  angles = np.arange(len(tokens))[:, None] * c['rope_theta'] ** (-np.arange(0, size, 2) / size)

  def turned(x):
    a, b = np.split(x, 2, -1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

  x = w['model.embed_tokens.weight'][tokens]
  for i in range(c['num_hidden_layers']):
    own = lambda name, at=f'model.layers.{i}.': w[f'{at}{name}.weight']
    y = rms(x, own('input_layernorm'))
    q, k, v = (y @ own(f'self_attn.{p}_proj').T for p in 'qkv')
    out = []
    for h in range(n):
      g = h // (n // groups)
      cut = lambda z, j: z[:, j * size : (j + 1) * size]
      scores = turned(cut(q, h)) @ turned(cut(k, g)).T / np.sqrt(size)
      scores = np.where(np.tri(len(tokens)) > 0, scores, -np.inf)
      p = np.exp(scores - scores.max(-1, keepdims=True))
      out.append(p / p.sum(-1, keepdims=True) @ cut(v, g))
    x = x + np.concatenate(out, -1) @ own('self_attn.o_proj').T
    y = rms(x, own('post_attention_layernorm'))
    gate, up = y @ own('mlp.gate_proj').T, y @ own('mlp.up_proj').T
    x = x + (gate / (1 + np.exp(-gate)) * up) @ own('mlp.down_proj').T
  return rms(x, w['model.norm.weight']) @ w['lm_head.weight'].T


def test_logits_are_those_of_the_description(imported):
  folder, run_dir = imported
  run, params, _, step = restore.load(run_dir)
  tokens = np.random.default_rng(1).integers(0, 263, (2, 11))
  ctx = kinds.Ctx(jnp.broadcast_to(jnp.arange(11), (2, 11)))
  got = embedding.logits(run.architecture.apply({'params': params}, tokens, ctx))
  tensors = safetensors.read(folder / 'model.safetensors')
  for row, one in zip(np.asarray(got), tokens):
    np.testing.assert_allclose(row, llama(tensors, _tiny.LLAMA, one), atol=2e-5)
  assert step == 0 and np.asarray(got).std() > 0.3


@pytest.mark.parametrize('shard_size', ['5GB', '4KB'])
def test_a_round_trip_gives_the_same_bytes(imported, tmp_path, shard_size):
  folder, run_dir = imported
  flags = ['export', str(run_dir), f'--out={tmp_path / "out"}', f'--shard_size={shard_size}']
  assert command.main(flags) == 0
  before, after = _folder.Folder(folder), _folder.Folder(tmp_path / 'out')
  assert before.shapes == after.shapes
  for name in before.shapes:
    assert before.read(name).tobytes() == after.read(name).tobytes(), name
  files = list((tmp_path / 'out').glob('*.safetensors'))
  assert len(files) == 1 if shard_size == '5GB' else len(files) > 5
  for key, value in _tiny.LLAMA.items():
    assert after.config[key] == value, key
  again = _importing.load(str(tmp_path / 'out'))[0]  # with its tokenizer.json
  ids = again.tokenizer.encode('\u00e9t\u00e9 <s>')
  assert ids.tolist() == list('\u00e9t\u00e9 <s>'.encode()) and again.tokenizer.bos == 256


def test_shards_are_read_as_one(imported, tmp_path):
  _tiny.folder(tmp_path / 'in', shards=3)
  params = _importing.load(str(tmp_path / 'in'), tokenizer='bytes()')[1]
  whole = _importing.load(str(imported[0]), tokenizer='bytes()')[1]
  jax.tree.map(np.testing.assert_array_equal, params, whole)


@pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float16])
def test_half_precision_is_read_exactly_and_written(imported, tmp_path, dtype):
  tensors = _tiny.arrays(_tiny.llama_shapes(), dtype)
  folder = _tiny.folder(tmp_path / 'in', tensors=tensors)
  _importing.to_run(str(folder), str(tmp_path / 'run'), tokenizer='bytes()')
  name = np.dtype(dtype).name
  _exporting.to_folder(str(tmp_path / 'run'), str(tmp_path / 'out'), dtype=name)
  after = _folder.Folder(tmp_path / 'out')
  for key, value in tensors.items():
    assert after.read(key).dtype == dtype and after.read(key).tobytes() == value.tobytes()


@pytest.mark.slow
def test_the_run_is_sampled_from_continued_and_quantized(imported, tmp_path, capsys):
  from lmjax import quantize
  from lmjax import sample

  run_dir = imported[1]
  flags = [f'--workdir={run_dir}', '--prompt=a', '--tokens=3', '--rule=greedy()']
  assert sample.main(flags) == 0
  flags = ['--config.steps=1', '--config.batch_tokens=48', '--config.sample.tokens=0']
  flags += ['--config.data.valid=', '--config.report=False', '--config.tensorboard=False']
  flags += [f'--config={run_dir / "recipe.py"}', f'--workdir={tmp_path / "on"}']
  assert main_lib.main(flags) == 0, capsys.readouterr().err
  assert restore.load(tmp_path / 'on')[3] == 1
  quantize.quantize(str(run_dir), 'rtn(bits=8)', str(tmp_path / 'q'), rows=0, before={})


def test_a_folders_tokenizer_comes_along(tmp_path):
  """Trained here, with a template that puts bos in front; the config gives ids of bos and eos."""
  from lmjax.tokenizers import bpe

  text = json.loads(bpe.Bpe.train(['to be or not to be ' * 9], 261))
  text['added_tokens'].append(dict(text['added_tokens'][0], id=261, content='<|first|>'))
  first = {'SpecialToken': {'id': '<|first|>', 'type_id': 0}}
  text['post_processor'] = dict(
    type='TemplateProcessing',
    single=[first, {'Sequence': {'id': 'A', 'type_id': 0}}],
    pair=[first],
    special_tokens={},
  )
  folder = _tiny.folder(tmp_path / 'in', bos_token_id=261, eos_token_id=[0, 3])
  (folder / 'tokenizer.json').write_text(json.dumps(text))
  _importing.to_run(str(folder), str(tmp_path / 'run'))
  (folder / 'tokenizer.json').unlink()  # the run has its own
  run = restore.load(tmp_path / 'run')[0]
  assert (run.tokenizer.bos, run.tokenizer.eos) == (261, 0) and run.config['data']['bos'] is True
  _exporting.to_folder(str(tmp_path / 'run'), str(tmp_path / 'out'))
  assert json.loads((tmp_path / 'out' / 'tokenizer.json').read_text()) == text
  settings = json.loads((tmp_path / 'out' / 'tokenizer_config.json').read_text())
  assert settings['bos_token'] == '<|first|>' and settings['eos_token'] == '<|endoftext|>'


def test_a_tokenizer_that_changes_text_is_taken_as_such(tmp_path):
  from lmjax.tokenizers import bpe

  text = json.loads(bpe.Bpe.train(['to be or not to be ' * 9], 261)) | {
    'normalizer': {'type': 'NFC'}
  }
  folder = _tiny.folder(tmp_path / 'in')
  (folder / 'tokenizer.json').write_text(json.dumps(text))
  run = _importing.load(str(folder))[0]
  assert 'lossless=False' in run.config['data']['tokenizer']
  assert run.tokenizer.encode('e\u0301').tolist() == list(run.tokenizer.encode('\u00e9'))
  text['model']['type'] = 'WordLevel'
  (folder / 'tokenizer.json').write_text(json.dumps(text))
  refused(tmp_path, 'WordLevel.*--tokenizer=SPEC', tokenizer='')


def test_rows_are_as_long_as_asked(tmp_path):
  folder = _tiny.folder(tmp_path / 'in')
  run = _importing.load(str(folder), tokenizer='bytes()', length=10)[0]
  assert run.length == 10 and run.config['batch_tokens'] % 10 == 0
  refused(tmp_path, '--length=1', length=1)


# ------------------------------------------------------------------ refusals


def refused(tmp_path, match, **options):
  options = dict(tokenizer='bytes()') | options
  with pytest.raises(ValueError, match=match) as e:
    _importing.to_run(str(tmp_path / 'in'), str(tmp_path / 'run'), **options)
  assert not (tmp_path / 'run').exists() and '\n' not in str(e.value)
  return str(e.value)


@pytest.mark.parametrize(
  'field, value, words',
  [
    ('model_type', 'mamba', 'model_type=.mamba.*Known are bert, gpt2, gpt_neox, llama'),
    ('model_type', None, 'model_type=None'),
    ('hidden_act', 'relu', "hidden_act='relu'.*'silu'"),
    ('rope_scaling', dict(rope_type='yarn', factor=4.0), "rope_type='yarn'.*default, linear"),
    ('rope_scaling', dict(type='dynamic', factor=4.0), "rope_type='dynamic'"),
    ('rope_scaling', dict(type='linear'), "rope_type='linear' needs factor"),
    ('rope_parameters', dict(rope_type='default', odd=2), 'no odd=2'),
    ('attention_sinks', 4, 'attention_sinks: not known to llama.*--ignore'),
    ('quantization_config', dict(bits=4), 'quantization_config'),
    ('auto_map', dict(AutoModel='x.Y'), 'auto_map.*never run'),
    ('is_encoder_decoder', True, 'is_encoder_decoder=True'),
    ('hidden_size', '12', "hidden_size='12': a whole number from 1"),
    ('num_key_value_heads', 2, 'num_key_value_heads=2 do not divide'),
    ('rms_norm_eps', 'small', "rms_norm_eps='small': float"),
    ('rms_norm_eps', -1.0, 'eps=-1.0'),
    ('rope_theta', 'x', "base of rope is 'x'"),
  ],
)
def test_a_config_that_means_another_function_is_refused(tmp_path, field, value, words):
  _tiny.folder(tmp_path / 'in', tensors=_tiny.arrays(_tiny.llama_shapes()), **{field: value})
  refused(tmp_path, words)


def test_a_field_may_be_left_out_of_account_by_name(tmp_path):
  _tiny.folder(tmp_path / 'in', attention_sinks=4)
  _importing.load(str(tmp_path / 'in'), tokenizer='bytes()', ignore=['attention_sinks'])


def test_a_missing_size_is_named(tmp_path):
  config = {k: v for k, v in _tiny.LLAMA.items() if k != 'intermediate_size'}
  _tiny.folder(tmp_path / 'in', config, _tiny.arrays(_tiny.llama_shapes()))
  refused(tmp_path, 'config.json: intermediate_size is missing')


@pytest.mark.parametrize('value', [np.nan, -np.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path, value):
  tensors = _tiny.arrays(_tiny.llama_shapes())
  tensors['model.layers.1.mlp.up_proj.weight'][3, 4] = value
  _tiny.folder(tmp_path / 'in', tensors=tensors)
  refused(tmp_path, r'model\.layers\.1\.mlp\.up_proj\.weight holds numbers that are not finite')


def test_tensors_that_do_not_fit_are_named_together(tmp_path):
  tensors = _tiny.arrays(_tiny.llama_shapes())
  del tensors['model.norm.weight']
  tensors['model.layers.1.mlp.up_proj.weight'] = np.zeros((19, 13), np.float32)
  tensors['model.layers.1.self_attn.q_proj.bias'] = np.zeros(12, np.float32)
  _tiny.folder(tmp_path / 'in', tensors=tensors)
  told = refused(tmp_path, 'the tensors are not those of config.json')
  assert 'model.norm.weight [12] is missing' in told
  assert 'up_proj.weight has shape [19, 13], [19, 12] is expected' in told
  assert 'q_proj.bias [12] has no place' in told


def test_of_many_wrong_tensors_a_few_are_named(tmp_path):
  _tiny.folder(tmp_path / 'in', tensors=_tiny.arrays({'x': (1,)}))
  told = refused(tmp_path, 'and 23 more$')
  assert len(told) < 1200


def test_buffers_of_old_files_hold_nothing(tmp_path):
  tensors = _tiny.arrays(_tiny.llama_shapes())
  tensors['model.layers.0.self_attn.rotary_emb.inv_freq'] = np.zeros(2, np.float32)
  _tiny.folder(tmp_path / 'in', tensors=tensors)
  _importing.load(str(tmp_path / 'in'), tokenizer='bytes()')


@pytest.mark.parametrize('equal', [True, False])
def test_a_second_copy_of_a_tied_table_must_be_equal(tmp_path, equal):
  tensors = _tiny.arrays(_tiny.llama_shapes())
  if equal:
    tensors['lm_head.weight'] = tensors['model.embed_tokens.weight']
  _tiny.folder(tmp_path / 'in', tensors=tensors, tie_word_embeddings=True)
  if equal:
    _importing.load(str(tmp_path / 'in'), tokenizer='bytes()')
  else:
    refused(tmp_path, 'lm_head.weight and model.embed_tokens.weight differ')


def test_integers_are_no_weights(tmp_path):
  tensors = _tiny.arrays(_tiny.llama_shapes())
  tensors['model.norm.weight'] = np.ones(12, np.int8)
  _tiny.folder(tmp_path / 'in', tensors=tensors)
  refused(tmp_path, 'model.norm.weight is int8; float32, bfloat16, float16')


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'model.pt', 'tf_model.h5'])
def test_a_pickle_is_refused_and_not_opened(tmp_path, name):
  folder = _tiny.folder(tmp_path / 'in')
  (folder / 'model.safetensors').unlink()
  (folder / name).write_bytes(b'cos\nsystem\n')
  (folder / name).chmod(0)
  refused(tmp_path, f'{name} is no safetensors file.*never opened')
  with pytest.raises(ValueError, match='never opened'):
    _folder.Folder(folder / name)


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda w: w.update(x='../model.safetensors'), 'a .safetensors file of the folder'),
    (lambda w: w.update(x='a\0.safetensors'), 'a .safetensors file of the folder'),
    (lambda w: w.update(x='a.bin'), 'a .safetensors file of the folder'),
    (lambda w: w.update(x=3), 'a .safetensors file of the folder'),
    (lambda w: w.update(x='model-00001-of-00002.safetensors'), 'it lacks x'),
    (lambda w: w.update(x='none.safetensors'), 'none.safetensors'),
    (lambda w: w.pop('model.norm.weight'), 'though the index says not, model.norm.weight'),
    (lambda w: w.clear(), 'weight_map is'),
  ],
)
def test_an_index_that_lies_is_refused(tmp_path, change, words):
  index = _tiny.folder(tmp_path / 'in', shards=2) / 'model.safetensors.index.json'
  whole = json.loads(index.read_text())
  change(whole['weight_map'])
  index.write_text(json.dumps(whole))
  refused(tmp_path, words)


def test_folders_without_what_is_needed_are_refused(tmp_path):
  refused(tmp_path, 'there is no such folder')
  folder = _tiny.folder(tmp_path / 'in')
  refused(tmp_path, 'no tokenizer.json.*--tokenizer=SPEC', tokenizer='')
  (folder / 'model.safetensors').write_bytes(b'\x08')
  refused(tmp_path, 'model.safetensors has 1 bytes')
  (folder / 'model.safetensors').unlink()
  refused(tmp_path, 'neither model.safetensors nor')
  (folder / 'config.json').write_text('[')
  refused(tmp_path, 'config.json cannot be read')


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path):
  small = _tiny.LLAMA | dict(vocab_size=200)
  _tiny.folder(tmp_path / 'in', small)
  refused(tmp_path, 'ids up to 259, and the model knows 200')


def test_nothing_is_overwritten(imported, tmp_path, capsys):
  folder, run_dir = imported
  assert command.main(['import', str(folder), f'--out={run_dir}', '--tokenizer=bytes()']) == 2
  assert 'not empty' in capsys.readouterr().err
  (tmp_path / 'x').write_text('')
  assert command.main(['export', str(run_dir), f'--out={tmp_path}']) == 2
  assert 'not empty' in capsys.readouterr().err
  assert command.main(['export', str(run_dir), '--out=y', '--shard_size=big']) == 2
  assert '--shard_size=big' in capsys.readouterr().err


def test_values_beyond_float16_are_refused(tmp_path):
  tensors = _tiny.arrays(_tiny.llama_shapes())
  tensors['model.norm.weight'][3] = 1e6
  _tiny.folder(tmp_path / 'in', tensors=tensors)
  _importing.to_run(str(tmp_path / 'in'), str(tmp_path / 'run'), tokenizer='bytes()')
  with pytest.raises(ValueError, match='model.norm.weight has values up to 1e.06'):
    _exporting.to_folder(str(tmp_path / 'run'), str(tmp_path / 'out'), dtype='float16')


@pytest.mark.parametrize(
  'overrides, words',
  [
    ({}, r'config.model.blocks.block.norm=rms_norm|config.model.blocks.block.ffn=gelu'),
    ({'model.blocks.block.mixer': 'deltanet(head_dim=32)'}, r'mixer=deltanet\('),
    ({'model.blocks.block.residual': 'peri_ln()'}, r'residual=peri_ln\('),
    ({'model.cap': 30.0}, r'config.model.cap=30.0'),
    ({'model.embed_norm': 'rms_norm()'}, r'config.model.embed_norm=rms_norm'),
    ({'model.init': 'mup(base_width=64)'}, r'config.model.init=logits times'),
    ({'model.embed': 'tied(scale=2.0)'}, r'config.model.embed=tied\('),
  ],
)
def test_a_model_without_counterpart_is_refused_by_its_parts(tmp_path, overrides, words):
  from lmjax import build
  from lmjax import config

  c = config.load('llama:tiny' if overrides else 'quickstart', list(overrides.items()))
  run = build.build(config.resolve(c))
  with pytest.raises(ValueError, match=words) as e:
    _exporting.fields(run, '', tmp_path)
  assert 'no architecture of bert, gpt2' in str(e.value)


@pytest.mark.parametrize('recipe, name', [('llama:tiny', 'llama'), ('gpt2:tiny', 'gpt2')])
def test_recipes_have_a_counterpart(tmp_path, recipe, name):
  from lmjax import build
  from lmjax import config

  run = build.build(config.resolve(config.load(recipe)))
  found, fields = _exporting.fields(run, '', tmp_path)
  assert found == name and fields['vocab_size'] == 260


def test_axes_there_and_back():
  x = np.arange(120).reshape(2, 3, 4, 5)
  for text in ('P D H K -> D (P H K)', 'P D H K -> (H P K) D', 'A B C D -> A B C D'):
    y = _axes.outward(x, text)
    assert y.shape == _axes.there(x.shape, text)
    np.testing.assert_array_equal(_axes.inward(y, text, x.shape), x)
  y = _axes.outward(x, 'P D H K -> D (P H K)')
  assert y[2, 1 * 20 + 3 * 5 + 4] == x[1, 2, 3, 4]


def test_every_architecture_is_complete():
  for name in hf.names():
    family = hf.family(name, '')
    assert {'FIELDS', 'TABLE', 'CLASS', 'to_settings', 'to_fields'} <= set(dir(family))
    names = [r.name for r in (*family.TABLE.outer, *family.TABLE.layer)]
    assert len(names) == len(set(names))

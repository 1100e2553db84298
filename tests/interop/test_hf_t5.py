"""T5 here and in `transformers`, its folders, and what is done with one."""

import numpy as np
import pytest

import _hf_folders as _tiny
import _torch
from lmjax import generate
from lmjax import main
from lmjax import quantize
from lmjax import restore
from lmjax import run as run_lib
from lmjax.interop.hf import _exporting
from lmjax.interop.hf import _folder
from lmjax.interop.hf import _importing

SIZES = dict(
  vocab_size=311,
  d_model=24,
  d_kv=5,
  d_ff=37,
  num_layers=3,
  num_heads=4,
  n_positions=48,
  initializer_factor=1.0,
)
TOKENIZER = 'extended(extra=20)'


def source(steps=41):
  """(tokens, segments) of texts, two of them shorter."""
  rng = np.random.default_rng(1)
  lengths = np.array([steps, steps - 7, 3])
  mask = (np.arange(steps) < lengths[:, None]).astype(int)
  return rng.integers(0, 256, (3, steps)) * mask, mask


@pytest.mark.parametrize(
  'more',
  [
    {},
    dict(
      feed_forward_proj='gated-gelu',
      num_decoder_layers=2,
      relative_attention_num_buckets=12,
      relative_attention_max_distance=17,
      layer_norm_epsilon=1e-3,
    ),
    dict(feed_forward_proj='gated-silu', tie_word_embeddings=False, initializer_factor=0.5),
  ],
  ids=['T5', 'gated, other distances', 'logits without a factor'],
)
def test_logits_and_round_trip(tmp_path, more):
  settings = _torch.config('T5Config', **SIZES | more)
  _torch.check(
    tmp_path, settings, 37, 'AutoModelForSeq2SeqLM', source=source(), tokenizer=TOKENIZER
  )


def test_a_matrix_of_its_own_for_the_logits(tmp_path):
  """As the files of T5 1.1 have it, which newer versions of the library tie while they make one."""
  settings = _torch.config(
    'T5Config', **SIZES | dict(tie_word_embeddings=False, initializer_factor=0.2)
  )
  import torch

  net = _torch.model(settings, 'AutoModelForSeq2SeqLM')
  net.lm_head.weight = torch.nn.Parameter(torch.randn_like(net.lm_head.weight) * 0.3)
  tensors = {k: v.numpy() for k, v in net.state_dict().items()}
  table = tensors['shared.weight']
  assert np.array_equal(table, tensors['encoder.embed_tokens.weight'])
  config = settings.to_dict() | dict(tie_word_embeddings=False)
  del config['scale_decoder_outputs']
  _tiny.folder(tmp_path / 'in', config, tensors)
  _importing.to_run(str(tmp_path / 'in'), str(tmp_path / 'run'), tokenizer=TOKENIZER)
  tokens = np.random.default_rng(0).integers(0, 311, (3, 37))
  want = _torch.theirs(net, tokens, source())
  got = _torch.ours(tmp_path / 'run', tokens, source())
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
  _exporting.to_folder(str(tmp_path / 'run'), str(tmp_path / 'out'), tokenizer=False)
  out = _folder.Folder(tmp_path / 'out')
  assert out.config['tie_word_embeddings'] is False
  copies = {'encoder.embed_tokens.weight', 'decoder.embed_tokens.weight'}
  assert set(out.shapes) == set(tensors) - copies
  assert all(out.read(k).tobytes() == tensors[k].tobytes() for k in out.shapes)


def shapes(d=12, heads=3, size=4, hidden=10, vocab=300, buckets=32):
  """Tensors of a T5 of one layer a stack, written down from its public description."""
  out = {'shared.weight': (vocab, d)}
  for stack, parts in (('encoder', ['Self']), ('decoder', ['Self', 'EncDec'])):
    for i, name in enumerate(parts):
      at = f'{stack}.block.0.layer.{i}.'
      own = {x: (heads * size, d) for x in 'qkv'} | {'o': (d, heads * size)}
      out |= {f'{at}{name}Attention.{k}.weight': s for k, s in own.items()}
      out[f'{at}layer_norm.weight'] = (d,)
    bias = f'{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight'
    at = f'{stack}.block.0.layer.{len(parts)}.'
    out |= {
      bias: (buckets, heads),
      f'{at}DenseReluDense.wi.weight': (hidden, d),
      f'{at}DenseReluDense.wo.weight': (d, hidden),
      f'{at}layer_norm.weight': (d,),
      f'{stack}.final_layer_norm.weight': (d,),
    }
  return out


CONFIG = dict(
  model_type='t5',
  vocab_size=300,
  d_model=12,
  d_kv=4,
  d_ff=10,
  num_layers=1,
  num_heads=3,
  n_positions=24,
)


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
  path = tmp_path_factory.mktemp('t5')
  old = 'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'
  tensors = _tiny.arrays(shapes() | {old: (32, 3)})
  for copy in ('lm_head.weight', 'encoder.embed_tokens.weight', 'decoder.embed_tokens.weight'):
    tensors[copy] = tensors['shared.weight']
  _tiny.folder(path / 'in', CONFIG, tensors)
  _importing.to_run(str(path / 'in'), str(path / 'run'), tokenizer=TOKENIZER)
  return path, tensors


def test_tensors_there_and_back_without_the_library(imported, tmp_path):
  path, tensors = imported
  _exporting.to_folder(str(path / 'run'), str(tmp_path / 'out'), tokenizer=False)
  out = _folder.Folder(tmp_path / 'out')
  assert {k: out.shapes[k] for k in out.shapes} == shapes()
  assert all(out.read(k).tobytes() == tensors[k].tobytes() for k in out.shapes)
  same = CONFIG.keys() - {'n_positions'}  # rows were longer or shorter: nothing of the function
  assert {k: out.config[k] for k in same} == {k: CONFIG[k] for k in same}
  # Without it the library neither generates nor makes a decoder's inputs of labels.
  assert out.config['decoder_start_token_id'] == out.config['pad_token_id']


def test_it_answers_prompts_with_what_its_tokenizer_knows(imported):
  """The model has 20 ids more than its tokenizer."""
  run, params, vars, _ = restore.load(imported[0] / 'run')
  assert run.model.vocab == run.tokenizer.vocab_size + 20
  answer = generate.sample_text(
    run, dict(params=params, **vars), 'a <extra_id_0> b', max_tokens=40, rule='temperature(t=9.0)'
  )
  assert isinstance(answer, str) and answer
  model = run_lib.language_model(run, params, vars)
  (logp, _), *_ = model.loglikelihood([('a question', 'its answer')])
  assert -200 < logp < -10
  assert len(model.generate(['a question'], 8)) == 1


def test_it_is_not_quantized(imported, tmp_path):
  with pytest.raises(ValueError, match='reads a source; a model without an encoder is expected'):
    quantize.quantize(str(imported[0] / 'run'), 'rtn(bits=8)', str(tmp_path / 'q'))
  assert not (tmp_path / 'q').exists()


def test_a_folder_whose_decoder_starts_elsewhere_is_refused(tmp_path):
  path = _tiny.folder(
    tmp_path / 'in', CONFIG | dict(decoder_start_token_id=7), _tiny.arrays(shapes())
  )
  with pytest.raises(ValueError, match='decoder_start_token_id=7: the token 25. is expected'):
    run = _importing.load(str(path), tokenizer=TOKENIZER)[0]
    _importing._check_start(run, _folder.Folder(path))


@pytest.mark.slow
def test_training_goes_on_from_it(imported, tmp_path):
  recipe = imported[0] / 'run' / 'recipe.py'
  assert (
    main.main(
      [
        f'--config={recipe}',
        f'--workdir={tmp_path}',
        '--config.steps=2',
        '--config.batch_tokens=96',
      ]
    )
    == 0
  )
  run, params, _, step = restore.load(tmp_path)
  _, before, _, _ = restore.load(imported[0] / 'run')
  table = lambda p: np.asarray(p['encoder']['shared_encoder']['table'])
  assert step == 2 and np.abs(table(params) - table(before)).max() > 0
  assert run.config['data']['transforms'].startswith('span_corruption')


@pytest.mark.parametrize(
  'change, words',
  [
    (dict(feed_forward_proj='gated-relu'), "feed_forward_proj='gated-relu': this is not supported"),
    (dict(is_encoder_decoder=False), 'is_encoder_decoder=False'),
    (dict(scale_decoder_outputs='yes'), "scale_decoder_outputs='yes'"),
    (dict(relative_attention_max_distance=4), 'distance=4'),
    (dict(num_decoder_layers=2), 'decoder.block.1.layer.0.SelfAttention.q.weight'),
    (dict(feed_forward_proj='gated-gelu'), 'wi_0.weight'),
    (dict(num_layers=10**9, num_decoder_layers=1), '1000000001 layers, and the folder has'),
    (dict(n_positions=0), 'rows of 0 tokens'),
    (dict(layer_norm_epsilon=10**400), 'float, as in 1e-06, is expected'),
  ],
)
def test_refusals(tmp_path, change, words):
  _tiny.folder(tmp_path / 'in', CONFIG, _tiny.arrays(shapes()), **change)
  with pytest.raises(ValueError) as e:
    _importing.load(str(tmp_path / 'in'), tokenizer=TOKENIZER)
  assert words in str(e.value)


def test_a_run_of_another_kind_says_what_is_missing(tmp_path):
  _tiny.folder(tmp_path / 'in', tensors=_tiny.arrays(_tiny.llama_shapes()))
  _importing.to_run(str(tmp_path / 'in'), str(tmp_path / 'run'), tokenizer='bytes()')
  with pytest.raises(ValueError, match='has no .*model.architecture'):
    _exporting.to_folder(str(tmp_path / 'run'), str(tmp_path / 'out'), model_type='t5')
  assert not (tmp_path / 'out').exists()

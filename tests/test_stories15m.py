"""A real pretrained model against the outputs of two independent implementations: model, tokenizer,
scoring and decoding together.

llama2.c's stories15M (6 layers, 288 wide) on 140 stories: every log-probability, three greedy
continuations, last-position logits.
"""

import json
import lzma
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import generate
from lmjax import padding
from lmjax import prompts as prompts_lib
from lmjax import kinds
from lmjax import lm as lm_lib
from lmjax import registry
from lmjax.interop import llama2c
from lmjax.nn import embedding


@pytest.fixture(scope='module')
def checkpoint(test_data):
  return test_data / 'checkpoints' / 'stories15M'


@pytest.fixture(scope='module')
def loaded(checkpoint):
  """(architecture, variables)."""
  resolved, variables = llama2c.load(str(checkpoint))
  return llama2c.model(resolved, 32_000), jax.device_put(variables)


@pytest.fixture(scope='module')
def tokenizer(test_data):
  path = test_data / 'tokenizers' / 'llama2_32k' / 'tokenizer.bin.xz'
  return registry.make('tokenizer', f'sentencepiece(path={str(path)!r})')()


@pytest.fixture(scope='module')
def reference(test_data):
  """(ids of each story, their log-probabilities)."""
  with np.load(
    test_data / 'reference' / 'stories15M' / 'tinystories_valid_logprobs.npz', allow_pickle=False
  ) as f:
    ids, offsets, logp = f['ids'].astype(int), f['offsets'], f['logprob']
  return [ids[a:b] for a, b in zip(offsets, offsets[1:])], logp


@pytest.fixture(scope='module')
def prompts(test_data):
  lines = (test_data / 'reference' / 'stories15M' / 'prompts.jsonl').read_text('utf-8').splitlines()
  return [json.loads(x) for x in lines]


@pytest.mark.slow
def test_every_token_of_140_stories_within_a_thousandth(loaded, tokenizer, reference):
  stories, want = reference
  lm = lm_lib.LM(*loaded, tokenizer, length=256)
  assert lm.protocol == dict(length=256, prefix='bos')
  found = lm.loglikelihood_tokens(
    [((), s[1:]) for s in stories]
  )  # an empty context is the bos token
  got = np.concatenate([logp for logp, _ in found])
  assert got.shape == want.shape == (28_156,)
  assert np.max(np.abs(got - want)) < 1e-3
  assert abs(-got.mean() - 1.3700) < 5e-5
  assert abs(-got.mean() - -want.astype(np.float64).mean()) < 1e-6


def test_rolling_scores_a_story_as_one_window_does(loaded, tokenizer, reference):
  stories, want = reference
  lm = lm_lib.LM(*loaded, tokenizer, length=256)
  np.testing.assert_allclose(lm.rolling(stories[0][1:]), want[: len(stories[0]) - 1], atol=1e-3)


@pytest.mark.parametrize(
  'together',
  [
    pytest.param(True, id='ragged batch'),
    pytest.param(False, id='alone', marks=pytest.mark.slow),
  ],
)
def test_greedy_continuations_with_a_cache(loaded, tokenizer, prompts, together):
  wanted = [p['greedy_ids'] for p in prompts]
  groups = [prompts] if together else [[p] for p in prompts]
  got = [
    new
    for g in groups
    for new in generate.generate(
      *loaded, [p['prompt_ids'] for p in g], max_tokens=len(wanted[0]), eos=tokenizer.eos
    )
  ]
  for new, want, p in zip(got, wanted, prompts):
    assert new.tolist() == want
    assert prompts_lib.new_text(tokenizer, p['prompt_ids'], new.tolist()).strip(' ') == p[
      'greedy_text'
    ].strip(' ')


def test_text_in_text_out(loaded, tokenizer, prompts):
  """Through the language model's own encoding: bos in front, the text after the prompt."""
  lm = lm_lib.LM(*loaded, tokenizer, length=256, bos=True)
  got = lm.generate([p['prompt'] for p in prompts], max_tokens=48)
  for text, p in zip(got, prompts):
    assert text.strip(' ') == p['greedy_text'].strip(' ')


def test_last_position_logits(loaded, prompts):
  architecture, variables = loaded
  ids = [p['prompt_ids'] for p in prompts]
  tokens, segments, positions = padding.left_padded(ids, 16, len(ids))
  run = jax.jit(lambda v, x, ctx: embedding.logits(architecture.apply(v, x, ctx))[:, -1])
  found = np.asarray(
    run(variables, jnp.asarray(tokens), kinds.Ctx(positions_BT=positions, segments_BT=segments)),
    np.float64,
  )
  for p, logits in zip(prompts, found):
    top = np.argsort(-logits, kind='stable')[:10]
    assert top.tolist() == [i for i, _ in p['last_logits_top10']]
    np.testing.assert_allclose(logits[top], [x for _, x in p['last_logits_top10']], atol=1e-3)
    assert abs(logits.mean() - p['last_logits_mean']) < 1e-3
    assert (
      abs(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - p['last_logits_logsumexp'])
      < 1e-3
    )


def test_the_tokenizer_gives_the_stored_ids(test_data, tokenizer, reference, prompts):
  text = lzma.open(test_data / 'lm' / 'tinystories' / 'valid.txt.xz', 'rt', encoding='utf8').read()
  stories = [s for s in text.split('<|endoftext|>') if s.strip()]
  assert len(stories) == len(reference[0]) == 140
  for story, want in zip(stories, reference[0]):
    assert [tokenizer.bos, *tokenizer.encode(story.strip('\n'))][:256] == want.tolist()
  for p in prompts:
    assert prompts_lib.prompt_ids(tokenizer, p['prompt'], True) == p['prompt_ids']


@pytest.mark.parametrize(
  'change, named',
  [
    (dict(hidden_dim=767), 'segment_0/0_block/ffn'),
    (dict(n_layers=5), 'segment_0/0_block'),
    (dict(shared_classifier=None), None),
    (dict(n_heads=7), 'n_heads=7'),
  ],
)
def test_a_config_that_does_not_fit_is_named(checkpoint, tmp_path, change, named):
  shutil.copyfile(checkpoint / 'weights_fp16.npz', tmp_path / 'weights_fp16.npz')
  config = json.loads((checkpoint / 'config.json').read_text()) | change
  if named is None:
    named = next(iter(change))
    del config[named]
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match=named):
    llama2c.load(str(tmp_path))


def test_missing_and_cut_off_files_are_named(checkpoint, tmp_path):
  with pytest.raises(ValueError, match='config.json'):
    llama2c.load(str(tmp_path))
  shutil.copyfile(checkpoint / 'config.json', tmp_path / 'config.json')
  with pytest.raises(ValueError, match='weights_fp16.npz'):
    llama2c.load(str(tmp_path))
  weights = (checkpoint / 'weights_fp16.npz').read_bytes()
  (tmp_path / 'weights_fp16.npz').write_bytes(weights[: len(weights) // 2])
  with pytest.raises(ValueError, match='weights_fp16.npz'):
    llama2c.load(str(tmp_path))


@pytest.mark.slow
def test_the_floor_of_its_own_samples(loaded, tokenizer, test_data):
  """The model scores the text that it wrote itself at the known floor, token by token; nothing may
  go below it.
  """
  with np.load(test_data / 'lm' / 'tinystories_synth' / 'valid_ids.npz', allow_pickle=False) as f:
    ids, offsets, want = f['ids'].astype(int), f['offsets'], f['logprob']
  summary = json.loads(
    (test_data / 'lm' / 'tinystories_synth' / 'summary.json').read_text('utf-8')
  )['valid']
  lm = lm_lib.LM(*loaded, tokenizer, length=256)
  found = lm.loglikelihood_tokens([((), ids[a:b]) for a, b in zip(offsets, offsets[1:])])
  got = np.concatenate([logp for logp, _ in found])
  assert got.shape == (summary['tokens'],)
  # The stored weights are the source's rounded to float16, which moves a log-probability by up to a
  # hundredth.
  assert np.max(np.abs(got - want)) < 0.05
  assert abs(-got.mean() - summary['source_model_nll']) < 1e-3

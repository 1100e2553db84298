"""GGUF files of Llama's architecture, seen as a folder: weights as float32, metadata as a
config.json, the vocabulary as a tokenizer.json.

Quantized tensors are read by the `gguf` library, one at a time. Rows of q and k lie there in the
order in which neighbours rotate together; they are put back into halves. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import json
import pathlib
import re
import tempfile
from typing import Any

import numpy as np

from lmjax import kinds
from lmjax.interop.hf import _folder
from lmjax.interop.hf import _tokenizer

SUFFIX = '.gguf'
# Metadata below `llama.`, and the fields of config.json that they are.
FIELDS = {
  'vocab_size': 'vocab_size',
  'block_count': 'num_hidden_layers',
  'context_length': 'max_position_embeddings',
  'embedding_length': 'hidden_size',
  'feed_forward_length': 'intermediate_size',
  'attention.head_count': 'num_attention_heads',
  'attention.head_count_kv': 'num_key_value_heads',
  'attention.key_length': 'head_dim',
  'attention.layer_norm_rms_epsilon': 'rms_norm_eps',
  'rope.freq_base': 'rope_theta',
}
ALIKE = ('attention.value_length', 'rope.dimension_count')  # must be the size of a head
TENSORS = {
  'token_embd.weight': 'model.embed_tokens.weight',
  'output.weight': 'lm_head.weight',
  'output_norm.weight': 'model.norm.weight',
}
LAYER = {
  'attn_norm': 'input_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj',
  'ffn_norm': 'post_attention_layernorm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}
BYTE_LEVEL = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True}
LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r'|\s*[\r\n]+|\s+(?!\S)|\s+'
)
# How texts are cut into words, by the name that the file gives to it.
WORDS = {
  'gpt-2': [{**BYTE_LEVEL, 'use_regex': True}],
  'smollm': [{'type': 'Digits', 'individual_digits': True}, {**BYTE_LEVEL, 'use_regex': True}],
  'llama-bpe': [
    {'type': 'Split', 'pattern': {'Regex': LLAMA3}, 'behavior': 'Isolated', 'invert': False},
    {**BYTE_LEVEL, 'use_regex': False},
  ],
}
CONTROL, USER = 3, 4  # types of tokens that are not made from text by merges


class File:
  """Of the shape of `_folder.Folder`. Raises ValueError naming the file, kinds.Unsupported where
  the library is not installed.
  """

  def __init__(self, path: Any):
    self.path = pathlib.Path(path)
    self._library = _import()
    try:
      self._reader = self._library.GGUFReader(self.path)
      self._data = {k: f.contents() for k, f in self._reader.fields.items()}
    except OSError as e:
      raise ValueError(f'cannot read {self.path}: {e.strerror or e}') from None
    except Exception as e:  # NumPy's and the library's own kinds for a damaged file
      raise ValueError(f'{self.path} is damaged or no GGUF file: {e}') from None
    self.config = self._config()
    self._tensors = {_name(t.name): t for t in self._reader.tensors}
    self.shapes = {k: tuple(int(n) for n in t.shape[::-1]) for k, t in self._tensors.items()}
    self.config['tie_word_embeddings'] = 'lm_head.weight' not in self._tensors

  def _config(self) -> dict[str, Any]:
    kind = self._data.get('general.architecture')
    if kind != 'llama':
      raise ValueError(f'{self.path}: general.architecture={kind!r}: only llama is known')
    own = {k.removeprefix('llama.'): v for k, v in self._data.items() if k.startswith('llama.')}
    out = {FIELDS.get(k, f'llama.{k}'): v for k, v in own.items() if k not in ALIKE}
    for key in ('hidden_size', 'num_attention_heads'):
      if type(out.get(key)) is not int or out[key] < 1:
        raise ValueError(f'{self.path}: llama.{key} is {out.get(key)!r}')
    size = out.get('head_dim') or out['hidden_size'] // out['num_attention_heads']
    for key in ALIKE:
      if own.get(key, size) != size:
        raise ValueError(f'{self.path}: llama.{key}={own[key]}: {size}, as of keys, is expected')
    ids = {k: self._data.get(f'tokenizer.ggml.{k}') for k in ('bos_token_id', 'eos_token_id')}
    out.setdefault('vocab_size', len(self._data.get('tokenizer.ggml.tokens') or ()))
    return dict(model_type='llama', **out, **{k: v for k, v in ids.items() if v is not None})

  def read(self, name: str) -> np.ndarray:
    """A tensor as float32."""
    tensor = self._tensors[name]
    try:
      x = self._library.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
      raise ValueError(
        f'{self.path}: {name} has the type {tensor.tensor_type.name}, which the gguf library '
        'cannot read as numbers'
      ) from None
    x = np.asarray(x, np.float32).reshape(self.shapes[name])
    heads = {'q_proj': 'num_attention_heads', 'k_proj': 'num_key_value_heads'}
    for own, key in heads.items():
      if f'.{own}.' in name:
        n = self.config.get(key) or self.config['num_attention_heads']
        pairs = x.reshape(n, -1, 2, *x.shape[1:])
        x = pairs.swapaxes(1, 2).reshape(x.shape)
    return x

  def tokenizer(self) -> _tokenizer.Found:
    """Its vocabulary as a tokenizer.json, in a temporary folder. Raises ValueError where it is no
    byte-level BPE, or where it is not known how texts are cut into words.
    """
    told = lambda key: self._data.get(f'tokenizer.ggml.{key}')
    if told('model') != 'gpt2' or told('pre') not in WORDS:
      raise ValueError(
        f'{self.path}: tokenizer.ggml.model={told("model")!r}, pre={told("pre")!r}: gpt2 and one '
        f'of {", ".join(WORDS)} are known; --tokenizer=SPEC names a tokenizer'
      )
    self._folder = tempfile.TemporaryDirectory(prefix='lmjax-gguf-')  # as long as this object
    folder = pathlib.Path(self._folder.name)
    tokens, types = told('tokens'), told('token_type')
    apart = {
      t: (i, types[i] == CONTROL) for i, t in enumerate(tokens) if types[i] in (CONTROL, USER)
    }
    vocab = {t: i for i, t in enumerate(tokens)}  # specials too: some readers number others anew
    text = _tokenizer.file(vocab, [m.split(' ') for m in told('merges')], apart)
    # What llama.cpp takes as said there: words that are tokens are not merged, and texts begin with
    # bos where nothing else is told.
    llama3 = told('pre') == 'llama-bpe'
    text['model']['ignore_merges'] = llama3
    text['pre_tokenizer'] = {'type': 'Sequence', 'pretokenizers': WORDS[told('pre')]}
    (folder / _tokenizer.JSON).write_text(json.dumps(text, ensure_ascii=False), 'utf-8')
    bos = told('add_bos_token')
    settings = dict(add_bos_token=llama3 if bos is None else bool(bos))
    if 'tokenizer.chat_template' in self._data:
      settings['chat_template'] = self._data['tokenizer.chat_template']
    (folder / _tokenizer.SETTINGS).write_text(json.dumps(settings), 'utf-8')
    return _tokenizer.find(folder, self.config)


def _name(name: str) -> str:
  """The name in a folder; one that is not known stays as it is, and has no place then."""
  found = re.fullmatch(r'blk\.(\d+)\.(\w+)\.(weight|bias)', name)
  if found and found[2] in LAYER:
    return f'model.layers.{found[1]}.{LAYER[found[2]]}.{found[3]}'
  return TENSORS.get(name, name)


def _import():
  try:
    import gguf
    import gguf.quants

    return gguf
  except ImportError as e:
    raise kinds.Unsupported(
      f"a GGUF file needs the module {e.name}: pip install 'lmjax[gguf]'"
    ) from None


def open_source(path: str) -> 'File | _folder.Folder':
  """A GGUF file, or a folder."""
  return File(path) if path.endswith(SUFFIX) else _folder.Folder(path)

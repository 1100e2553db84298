"""Small instances of every registered tokenizer, shared by the contract suite and by the tests of
each part.
"""

import json
import random
import struct

import hypothesis

from lmjax import registry

_DRAW = random.Random(0)
_SYLLABLES = ('ka', 'lo', 'mi', 'ter', 'sun', 'ing', 'é', 'the')
_WORDS = [''.join(_DRAW.choices(_SYLLABLES, k=_DRAW.randint(1, 4))) for _ in range(400)]
TEXT = ''.join(
  f"The cat no. {i} {' '.join(_DRAW.choices(_WORDS, k=8))}, didn't it?\n\n\tnaïve 北京 café\n"
  for i in range(60)
)
quick = hypothesis.settings(max_examples=60, deadline=None, derandomize=True)


def trained(name, folder, vocab_size, **options):
  path = folder / 'vocabulary'
  path.write_bytes(registry.get('tokenizer', name).obj.train([TEXT], vocab_size, **options))
  return path


def pair(folder):
  """GPT-2's two files, from a trained tokenizer.json."""
  spec = json.loads(trained('bpe', folder, 300).read_text())['model']
  (folder / 'encoder.json').write_text(json.dumps(spec['vocab']))
  merges = ''.join(f'{a} {b}\n' for a, b in spec['merges'])
  (folder / 'vocab.bpe').write_text('#version: 0.2\n' + merges)
  return folder


def rich(folder):
  """A tokenizer.json as from Hugging Face: own pattern, template, truncation, a special and an
  ordinary added token.
  """
  spec = json.loads(trained('bpe', folder, 300).read_text())
  flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
  spec['added_tokens'] += [
    dict(id=300, content='<mask>', special=True, **flags),
    dict(id=301, content='   ', special=False, **flags),
    dict(id=302, content='<|user|>', special=True, **flags),
  ]
  spec['truncation'] = dict(direction='Right', max_length=3, strategy='LongestFirst', stride=0)
  spec['pre_tokenizer'] = dict(
    type='Sequence',
    pretokenizers=[
      dict(
        type='Split',
        pattern=dict(Regex=r'\p{N}{1,3}| ?\p{L}+|\s+'),
        behavior='Isolated',
        invert=False,
      ),
      dict(type='ByteLevel', add_prefix_space=False, trim_offsets=True, use_regex=False),
    ],
  )
  spec['post_processor'] = dict(
    type='TemplateProcessing',
    pair=[],
    single=[
      dict(SpecialToken=dict(id='<mask>', type_id=0)),
      dict(Sequence=dict(id='A', type_id=0)),
    ],
    special_tokens={'<mask>': dict(id='<mask>', ids=[300], tokens=['<mask>'])},
  )
  path = folder / 'tokenizer.json'
  path.write_text(json.dumps(spec))
  return path


def _sentencepiece(folder, **options):
  return trained('sentencepiece', folder, 330, **options)


def llama2c(folder):
  """A tokenizer.bin of llama2.c."""
  rows = [('<unk>', 0.0), ('\n<s>\n', 0.0), ('\n</s>\n', 0.0)]
  rows += [(chr(b), 0.0) for b in range(256)]
  rows += [(' ', -9.0), ('a', -9.0), ('b', -9.0), ('c', -9.0)]
  rows += [('ab', -2.0), (' a', -3.0), ('bc', -1.0), ('  ', -8.0)]
  rows = [(p.encode(), s) for p, s in rows]
  path = folder / 'tokenizer.bin'
  path.write_bytes(
    struct.pack('<i', max(len(p) for p, _ in rows))
    + b''.join(struct.pack('<fi', s, len(p)) + p for p, s in rows)
  )
  return path


def tricky(folder):
  """A model that normalizes and whose mask is user-defined: the library finds that one in text."""
  import sentencepiece

  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXT.split('\n')),
    model_prefix=str(folder / 'sp'),
    vocab_size=400,
    model_type='bpe',
    byte_fallback=True,
    control_symbols=['^'],
    user_defined_symbols=['<mask>'],
    pad_id=3,
    minloglevel=2,
  )
  return folder / 'sp.model'


ROWS = {
  'bytes': {
    'plain': lambda d: 'bytes()',
    'bare': lambda d: 'bytes(specials=False)',
  },
  'extended': {
    'bytes': lambda d: 'extended(extra=5)',
    'bpe': lambda d: f'extended(inner=bpe(path="{trained("bpe", d, 300)}"), extra=40)',
  },
  'bpe': {
    'trained': lambda d: f'bpe(path="{trained("bpe", d, 300)}")',
    'mask': lambda d: f'bpe(path="{trained("bpe", d, 300)}", mask="<mask>")',
    'pair': lambda d: f'bpe(path="{pair(d)}", bos="<|endoftext|>")',
    'rich': lambda d: f'bpe(path="{rich(d)}")',
  },
  'sentencepiece': {
    'bpe': lambda d: f'sentencepiece(path="{_sentencepiece(d, model_type="bpe")}")',
    'unigram': lambda d: f'sentencepiece(path="{_sentencepiece(d)}", mask="<mask>")',
    'llama2c': lambda d: f'sentencepiece(path="{llama2c(d)}")',
    'tricky': lambda d: f'sentencepiece(path="{tricky(d)}")',
  },
}
ALL = [(name, variant) for name in ROWS for variant in ROWS[name]]


def make(spec):
  return registry.make('tokenizer', spec)()

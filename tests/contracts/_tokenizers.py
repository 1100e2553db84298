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


def without(folder):
  """A tokenizer.json without the bytes 0 and 0xff."""
  spec = json.loads(trained('bpe', folder, 300).read_text())
  vocab = spec['model']['vocab']
  made = {a + b for a, b in spec['model']['merges']}
  for letter in ('Ā', 'ÿ'):
    free, last = vocab.pop(letter), max(vocab, key=vocab.get)
    assert last in made
    vocab[last] = free  # so that ids have no gap
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


def wordpiece(folder, **normalizer):
  """A tokenizer.json of BERT's kind, of all letters of `TEXT` and some words."""
  letters = sorted(set(''.join(TEXT.split())) | set('abcdefghijklmnopqrstuvwxyz'))
  specials = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
  pieces = [*specials, *letters, *(f'##{c}' for c in letters), 'cat', 'the', '##ing', '##ter']
  flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
  spec = dict(
    version='1.0',
    truncation=None,
    padding=None,
    added_tokens=[dict(id=i, content=n, **flags) for i, n in enumerate(specials)],
    normalizer=dict(
      type='BertNormalizer',
      clean_text=True,
      handle_chinese_chars=True,
      strip_accents=None,
      lowercase=False,
    )
    | normalizer,
    pre_tokenizer=dict(type='BertPreTokenizer'),
    post_processor=None,
    decoder=dict(type='WordPiece', prefix='##', cleanup=True),
    model=dict(
      type='WordPiece',
      unk_token='[UNK]',
      continuing_subword_prefix='##',
      max_input_chars_per_word=100,
      vocab={p: i for i, p in enumerate(pieces)},
    ),
  )
  path = folder / 'tokenizer.json'
  path.write_text(json.dumps(spec))
  return path


def unigram(folder, byte_fallback=False, extra=5, size=150, **other):
  """A tokenizer.json of T5's kind: <pad>, </s> and <unk> in front, sentinels last, the first one
  with the last id.
  """
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

  library = Tokenizer(models.Unigram())
  library.pre_tokenizer = pre_tokenizers.Metaspace()
  library.decoder = decoders.Metaspace()
  trainer = trainers.UnigramTrainer(
    vocab_size=size,
    special_tokens=['<pad>', '</s>', '<unk>'],
    unk_token='<unk>',
    initial_alphabet=list('abcdefghijklmnopqrstuvwxyz'),
    show_progress=False,
  )
  library.train_from_iterator([TEXT], trainer)
  spec = json.loads(library.to_str())
  model = spec['model']
  if byte_fallback:
    steps = [
      dict(type='Replace', pattern=dict(String='▁'), content=' '),
      dict(type='ByteFallback'),
      dict(type='Fuse'),
      dict(type='Strip', content=' ', start=1, stop=0),
    ]
    spec['decoder'] = dict(type='Sequence', decoders=steps)
    model |= dict(byte_fallback=True)
    model['vocab'] += [[f'<0x{b:02X}>', 0.0] for b in range(256)]
  names = [f'<extra_id_{n}>' for n in reversed(range(extra))]
  flags = dict(spec['added_tokens'][0])
  n = len(model['vocab'])
  spec['added_tokens'] += [flags | dict(id=n + i, content=x) for i, x in enumerate(names)]
  path = folder / 'tokenizer.json'
  path.write_text(json.dumps(spec | other, ensure_ascii=False), 'utf-8')
  return path


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
  'bpe_without': {
    'two': lambda d: f'bpe_without(path="{without(d)}", eos="<|endoftext|>")',
  },
  'sentencepiece': {
    'bpe': lambda d: f'sentencepiece(path="{_sentencepiece(d, model_type="bpe")}")',
    'unigram': lambda d: f'sentencepiece(path="{_sentencepiece(d)}", mask="<mask>")',
    'llama2c': lambda d: f'sentencepiece(path="{llama2c(d)}")',
    'tricky': lambda d: f'sentencepiece(path="{tricky(d)}")',
  },
  'unigram': {
    't5': lambda d: f'unigram(path="{unigram(d)}")',
    'fallback': lambda d: f'unigram(path="{unigram(d, byte_fallback=True)}", pad=None)',
  },
  'wordpiece': {
    'cased': lambda d: f'wordpiece(path="{wordpiece(d)}")',
    'unmarked': lambda d: f'wordpiece(path="{wordpiece(d, lowercase=True)}", mask=None)',
  },
}
ALL = [(name, variant) for name in ROWS for variant in ROWS[name]]


def make(spec):
  return registry.make('tokenizer', spec)()

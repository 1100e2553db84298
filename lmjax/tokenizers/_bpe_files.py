"""Reads byte-level BPE vocabularies: a tokenizer.json, or GPT-2's pair encoder.json and vocab.bpe.

Byte-level BPE writes each byte as one printable character (Radford et al., 2019,
`bytes_to_unicode`): printable Latin-1 stands for itself, the other bytes become U+0100, U+0101, ...
in order.
"""

import dataclasses
import pathlib
import re
from typing import Any, Mapping

from lmjax import files as files_lib
from lmjax import kinds
from lmjax.tokenizers import _files

PAIRS = (('encoder.json', 'vocab.bpe'), ('vocab.json', 'merges.txt'))
PRE_TOKENIZER = {
  'type': 'ByteLevel',
  'add_prefix_space': False,
  'trim_offsets': True,
  'use_regex': True,
}
_MARKED = re.compile(r'[<\[].+[>\]]')


def alphabet() -> list[str]:
  """The character of each of the 256 bytes."""
  own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = (chr(0x100 + i) for i in range(68))
  return [chr(b) if b in own else next(others) for b in range(256)]


@dataclasses.dataclass
class Vocabulary:
  """A byte-level BPE as read from its files.

  Attributes:
    model: the `model` of a tokenizer.json, its `vocab` without the added tokens.
    added: content -> (id, the entry of `added_tokens`); a special one never comes from text.
    data: the bytes that define it, for the fingerprint.
  """

  path: str
  model: dict[str, Any]
  added: dict[str, tuple[int, Mapping[str, Any]]]
  pre_tokenizer: Mapping[str, Any]
  normalizer: Mapping[str, Any] | None
  data: tuple[bytes, ...]


def load(path: str) -> Vocabulary:
  """Reads and checks. Raises ValueError (or Unsupported) naming the file."""
  where = pathlib.Path(files_lib.expanded(path))
  vocab = _load_pair(where) if where.is_dir() else _load_json(where)
  _check_ids(vocab)
  return vocab


def _load_pair(folder: pathlib.Path) -> Vocabulary:
  for names in PAIRS:
    vocab_path, merges_path = (_files.find(folder, [n]) for n in names)
    if vocab_path and merges_path:
      break
  else:
    wanted = ' nor '.join(f'{a} and {b}' for a, b in PAIRS)
    raise ValueError(f'{folder} has neither {wanted} (each may be .xz)')
  vocab_text, merges_text = _files.read_text(vocab_path), _files.read_text(merges_path)
  vocab = _files.parse_json(vocab_text, vocab_path)
  merges = _merges(merges_text, merges_path, vocab)
  made = {a + b for a, b in merges} | set(alphabet())
  added = {}
  for piece in [p for p in vocab if p not in made]:
    if not _MARKED.fullmatch(piece):
      raise ValueError(
        f'{vocab_path}: no line of {merges_path} makes the entry {piece!r}; one of '
        f'the files may be cut off'
      )
    added[piece] = (vocab.pop(piece), {'content': piece, 'special': True})
  model = {'type': 'BPE', 'vocab': vocab, 'merges': merges}
  data = vocab_text.encode(), merges_text.encode()
  return Vocabulary(str(folder), model, added, PRE_TOKENIZER, None, data)


def _merges(text: str, path: pathlib.Path, vocab: Mapping[str, Any]) -> list[tuple[str, str]]:
  out = []
  for number, line in enumerate(text.split('\n'), start=1):
    line = line.rstrip('\r')
    if not line or (number == 1 and line.startswith('#version')):
      continue
    pair = tuple(line.split(' '))
    if len(pair) != 2 or not all(pair):
      raise ValueError(
        f'{path} line {number} is {line!r}, not two pieces with a space between; '
        f'the file may be cut off'
      )
    for piece in (*pair, ''.join(pair)):
      if piece not in vocab:
        raise ValueError(
          f'{path} line {number} uses {piece!r}, which the vocabulary beside it does not have'
        )
    out.append(pair)
  return out


def _load_json(path: pathlib.Path) -> Vocabulary:
  text = _files.read_text(path)
  spec = _files.parse_json(text, path)
  model = spec.get('model')
  if not isinstance(model, dict) or not isinstance(model.get('vocab'), dict | list):
    raise ValueError(
      f'{path} is not a tokenizer.json: it has no model with a vocab; '
      "GPT-2's encoder.json and vocab.bpe are named by their folder"
    )
  _check_model(path, model)
  added = {}
  for entry in spec.get('added_tokens') or ():
    content = entry.get('content') if isinstance(entry, dict) else None
    if not isinstance(content, str) or not content:
      raise ValueError(f'{path}: added_tokens has an entry without content: {entry!r}')
    i = entry.get('id')
    if model['vocab'].get(content, i) != i:
      raise ValueError(
        f'{path}: {content!r} is id {i} in added_tokens and {model["vocab"][content]} in the vocab'
      )
    added[content] = (i, entry)
  model = model | {'vocab': {k: v for k, v in model['vocab'].items() if k not in added}}
  pre = _pre_tokenizer(path, spec)
  return Vocabulary(str(path), model, added, pre, spec.get('normalizer'), (text.encode(),))


def _check_model(path: pathlib.Path, model: Mapping[str, Any]):
  if model.get('type', 'BPE') != 'BPE' or not isinstance(model['vocab'], dict):
    raise kinds.Unsupported(f'{path} holds a {model.get("type")} model; bpe reads byte-level BPE')
  for key in ('dropout', 'continuing_subword_prefix', 'end_of_word_suffix'):
    if model.get(key):
      raise kinds.Unsupported(
        f'{path}: model.{key}={model[key]!r} is not supported by bpe, only none'
      )


def _pre_tokenizer(path: pathlib.Path, spec: Mapping[str, Any]) -> Mapping[str, Any]:
  pre = spec.get('pre_tokenizer') or {}
  types = [p.get('type') for p in steps(pre)]
  if types.count('ByteLevel') != 1 or types[-1] != 'ByteLevel':
    raise kinds.Unsupported(
      f'{path} is not byte-level (pre_tokenizer: '
      f'{" then ".join(map(str, types))}); '
      'vocabularies of SentencePiece are read from their own .model file by '
      'sentencepiece(path=...)'
    )
  return pre


def steps(pre: Mapping[str, Any]) -> list[Mapping[str, Any]]:
  """The steps of a pre-tokenizer."""
  return list(pre.get('pretokenizers') or ()) if pre.get('type') == 'Sequence' else [pre]


def loses(vocab: Vocabulary) -> str | None:
  """What in the file keeps ids from giving the bytes back, in words, or None."""
  if vocab.normalizer:
    return f'its normalizer {vocab.normalizer.get("type")} changes the text'
  for step in steps(vocab.pre_tokenizer):
    if step.get('add_prefix_space'):
      return 'its pre_tokenizer adds a space in front (add_prefix_space)'
    keeps = step.get('type') in ('ByteLevel', 'Split', 'Digits', 'Punctuation')
    if not keeps or step.get('behavior') == 'Removed':
      return f'its pre_tokenizer {step.get("type")} may drop characters'
  for content, (_, entry) in vocab.added.items():
    if not entry.get('special') and (entry.get('lstrip') or entry.get('rstrip')):
      return f'its added token {content!r} takes the white space around it (lstrip, rstrip)'
  return None


def _check_ids(vocab: Vocabulary):
  missing = [b for b, c in enumerate(alphabet()) if c not in vocab.model['vocab']]
  if missing:
    raise kinds.Unsupported(
      f'{vocab.path}: {len(missing)} of the 256 bytes have no token, such '
      f'as 0x{missing[0]:02x}; '
      'byte-level BPE needs them all'
    )
  pieces: dict[int, str] = {}
  for piece, i in [*vocab.model['vocab'].items(), *((k, v[0]) for k, v in vocab.added.items())]:
    if type(i) is not int:
      raise ValueError(f'{vocab.path}: the id of {piece!r} is {i!r}, a whole number is expected')
    if i in pieces:
      raise ValueError(f'{vocab.path}: id {i} is given twice, to {pieces[i]!r} and {piece!r}')
    pieces[i] = piece
  gap = next((i for i in range(len(pieces)) if i not in pieces), None)
  if gap is not None:
    raise ValueError(
      f'{vocab.path}: no entry has id {gap}, though ids go up to {max(pieces)}; '
      f'the file may be damaged'
    )

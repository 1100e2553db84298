"""BERT's vocab.txt, a piece a line, as the tokenizer.json that it means.

Case, accents and Chinese characters are treated as tokenizer_config.json says: lower case where it
says nothing. What the two files do not say is BERT's (Devlin et al., 2018, arXiv:1810.04805).
"""

import io
import json
import pathlib
from typing import Any, Mapping

from lmjax.tokenizers import _files

FILE, MODEL_TYPE = 'vocab.txt', 'bert'
SETTINGS = ('special_tokens_map.json', 'tokenizer_config.json')  # the later one wins
MORE = 'added_tokens.json'
CLASSES = (None, 'BertTokenizer', 'BertTokenizerFast')
SPECIALS = {'pad': '[PAD]', 'unk': '[UNK]', 'cls': '[CLS]', 'sep': '[SEP]', 'mask': '[MASK]'}
ACCEPTED = {  # of the settings; the first is what holds where there is none
  'do_lower_case': (True, False),
  'tokenize_chinese_chars': (True, False),
  'strip_accents': (None, True, False),
  'do_basic_tokenize': (True,),
  'never_split': (None, []),
}
ROLES = {'bos': 'cls', 'eos': 'sep', 'pad': 'pad', 'mask': 'mask'}
OTHER = '; --tokenizer=SPEC names another one, as \'wordpiece(path="FILE")\' of a tokenizer.json'


def read(folder: pathlib.Path) -> tuple[str, dict[str, str | None]]:
  """(the text of a tokenizer.json, arguments of `wordpiece` that are not its defaults). Raises
  ValueError naming the file, and the line or the setting.
  """
  pieces, settings = _pieces(folder / FILE), _settings(folder)
  names = _specials(folder, settings)
  if names['unk'] not in pieces:
    raise ValueError(f'{folder / FILE}: it has no {names["unk"]}, the piece of unknown words')
  extra = sorted(_further(folder, settings) - set(pieces) - set(names.values()))
  if extra:
    raise ValueError(
      f'{folder}: the token {extra[0]!r} is not in {FILE}, and no other has a place{OTHER}'
    )
  roles = {role: names[of] if names[of] in pieces else None for role, of in ROLES.items()}
  return (
    _made(pieces, names, settings),
    {k: v for k, v in roles.items() if v != SPECIALS[ROLES[k]]},
  )


def _pieces(path: pathlib.Path) -> dict[str, int]:
  lines = io.StringIO(_files.read_text(path), newline=None).read().split('\n')
  lines = lines[:-1] if not lines[-1] else lines
  if not lines:
    raise ValueError(f'{path} is empty; a piece a line is expected')
  out: dict[str, int] = {}
  for i, piece in enumerate(lines):
    if piece in out:
      raise ValueError(f'{path}: {piece!r} stands in line {out[piece] + 1} and in line {i + 1}')
    out[piece] = i
  return out


def _settings(folder: pathlib.Path) -> dict[str, Any]:
  found: dict[str, Any] = {key: accepted[0] for key, accepted in ACCEPTED.items()}
  for name in SETTINGS:
    path = folder / name
    found |= _files.parse_json(_files.read_text(path), path) if path.is_file() else {}
  where, kind = folder / SETTINGS[-1], found.get('tokenizer_class')
  if kind not in CLASSES:
    raise ValueError(f'{where}: tokenizer_class={kind!r}: {CLASSES[1]} is known{OTHER}')
  for key, accepted in ACCEPTED.items():
    value = found[key]
    if not any(type(value) is type(a) and value == a for a in accepted):
      wanted = ' or '.join(map(str, accepted))
      raise ValueError(f'{where}: {key}={str(value)[:80]}: {wanted} is expected{OTHER}')
  return found


def _specials(folder: pathlib.Path, settings: Mapping[str, Any]) -> dict[str, str]:
  out = {}
  for key, usual in SPECIALS.items():
    found = settings.get(f'{key}_token')
    found = found.get('content') if isinstance(found, dict) else found
    if found is not None and not isinstance(found, str):
      raise ValueError(f'{folder / SETTINGS[-1]}: {key}_token is {found!r}; text is expected')
    out[key] = usual if found is None else found
  return out


def _further(folder: pathlib.Path, settings: Mapping[str, Any]) -> set[str]:
  """Names of tokens that the folder adds to its vocabulary."""
  path = folder / MORE
  out = set(_files.parse_json(_files.read_text(path), path)) if path.is_file() else set()
  for key in ('additional_special_tokens', 'extra_special_tokens', 'added_tokens_decoder'):
    found = settings.get(key) or []
    found = list(found.values()) if isinstance(found, dict) else found
    if not isinstance(found, list):
      raise ValueError(f'{folder / SETTINGS[-1]}: {key} is {found!r}; names of tokens are expected')
    out |= {str(e.get('content') if isinstance(e, dict) else e) for e in found}
  return out


def _made(pieces: dict[str, int], names: Mapping[str, str], settings: Mapping[str, Any]) -> str:
  from tokenizers import Tokenizer
  from tokenizers import decoders
  from tokenizers import models
  from tokenizers import normalizers
  from tokenizers import pre_tokenizers

  library = Tokenizer(models.WordPiece(pieces, unk_token=names['unk']))
  library.normalizer = normalizers.BertNormalizer(
    clean_text=True,
    handle_chinese_chars=settings['tokenize_chinese_chars'],
    strip_accents=settings['strip_accents'],
    lowercase=settings['do_lower_case'],
  )
  library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  library.decoder = decoders.WordPiece(prefix='##')
  library.add_special_tokens([n for n in names.values() if n in pieces])
  spec = json.loads(library.to_str())
  if names['cls'] in pieces and names['sep'] in pieces:
    spec['post_processor'] = _template(pieces, names['cls'], names['sep'])
  return json.dumps(spec, ensure_ascii=False)


def _template(pieces: Mapping[str, int], cls: str, sep: str) -> dict[str, Any]:
  """cls A sep, or cls A sep B sep."""
  special = lambda name, i: dict(SpecialToken=dict(id=name, type_id=i))
  text = lambda name, i: dict(Sequence=dict(id=name, type_id=i))
  single = [special(cls, 0), text('A', 0), special(sep, 0)]
  return dict(
    type='TemplateProcessing',
    single=single,
    pair=[*single, text('B', 1), special(sep, 1)],
    special_tokens={n: dict(id=n, ids=[pieces[n]], tokens=[n]) for n in (cls, sep)},
  )

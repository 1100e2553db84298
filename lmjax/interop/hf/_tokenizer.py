"""The tokenizer of a folder as a spec, and the tokenizer of a run as files.

Read: a byte-level tokenizer.json, or GPT-2's vocab.json and merges.txt, by `bpe`; one of WordPiece
by `wordpiece`, of Unigram by `unigram`; else a tokenizer.model or spiece.model that holds all
tokens of the folder by `sentencepiece`; for T5, which adds sentinels to it, spiece.model, and for
BERT vocab.txt, as a tokenizer.json that is made of it. Written: what was read, or a tokenizer.json,
and tokenizer_config.json.
"""

import dataclasses
import json
import pathlib
import tempfile
from typing import Any, Mapping

from lmjax import files
from lmjax import kinds
from lmjax import registry
from lmjax.interop.hf import _spiece
from lmjax.interop.hf import _words
from lmjax.tokenizers import _bpe_files
from lmjax.tokenizers import _files
from lmjax.tokenizers import _llama2c

JSON, MODEL, SETTINGS = 'tokenizer.json', 'tokenizer.model', 'tokenizer_config.json'
SPIECE = _spiece.FILE
PAIR = ('vocab.json', 'merges.txt')
PAIRED = ('gpt2',)  # whose pair says all: others cut words otherwise, and add tokens to it
ADDED = 'added_tokens.json'
# Parts whose file is a tokenizer.json, which is written as it was read.
FILED = ('bpe_without', 'unigram', 'wordpiece')
SPECIALS = ('<s>', '</s>', '<pad>', '<mask>')  # of `bytes`, which has no names for them


@dataclasses.dataclass(frozen=True)
class Found:
  """A tokenizer part with its arguments but `path`; files: those it reads, which go along. bos:
  whether texts begin with that token. told: what a person should know. held: keeps files that were
  made.
  """

  part: str
  args: Mapping[str, Any]
  files: tuple[pathlib.Path, ...]
  bos: bool
  told: str = ''
  held: Any = None

  def spec(self, folder: pathlib.Path) -> str:
    """With the files in this folder."""
    path = folder if len(self.files) > 1 else folder / self.files[0].name
    args = ', '.join(f'{k}={v!r}' for k, v in dict(path=str(path), **self.args).items())
    return f'{self.part}({args})'

  def made(self):
    """Built from the files where they are. Raises ValueError."""
    return registry.make('tokenizer', self.spec(self.files[0].parent))()

  def copy(self, folder: pathlib.Path):
    for file in self.files:
      files.copy(file, folder / file.name)


def find(folder: pathlib.Path, config: Mapping[str, Any]) -> Found:
  """The tokenizer of a folder with this config.json. Raises ValueError where there is none, or none
  that can be read.
  """
  known = folder / JSON
  pieces = _pieces(folder)
  if known.is_file():
    return _of_json(known, config, pieces)
  kind = config.get('model_type')
  if kind in PAIRED and all((folder / n).is_file() for n in PAIR):
    return Found('bpe', {}, tuple(folder / n for n in PAIR), False)
  if pieces is not None:
    t5 = kind == _spiece.MODEL_TYPE and pieces.files[0].name == SPIECE
    # Its sentinels are not in the file.
    made = lambda: _made(_spiece.read(folder), 'unigram', {}, False, SPIECE)
    return made() if t5 else _whole(pieces, config)
  if (folder / _words.FILE).is_file() and kind == _words.MODEL_TYPE:
    text, roles = _words.read(folder)
    return _made(text, 'wordpiece', roles, roles.get('bos', '') is not None, _words.FILE)
  raise ValueError(
    f'{folder}: it has no {JSON}, {MODEL} or {SPIECE} (nor, for {" and ".join(PAIRED)}, '
    f'{" and ".join(PAIR)}, for {_words.MODEL_TYPE}, {_words.FILE}); --tokenizer=SPEC names a '
    'tokenizer, such as \'bpe(path="FILE")\''
  )


def _pieces(folder: pathlib.Path) -> Found | None:
  """The file of SentencePiece, where there is one; the first name is Llama's, whose texts begin
  with bos.
  """
  for name, begins in ((MODEL, True), (SPIECE, False)):
    if (folder / name).is_file():
      return Found('sentencepiece', {}, (folder / name,), _adds_bos(folder, begins))
  return None


def _whole(pieces: Found, config: Mapping[str, Any]) -> Found:
  """The same. Raises ValueError where the folder adds tokens to that file, or ends texts by another
  one: they would never be written.
  """
  folder, tok = pieces.files[0].parent, pieces.made()
  known = config.get('vocab_size') or 0
  more = {i: t for t, i in _added(folder).items() if tok.vocab_size <= i < known}
  name = pieces.files[0].name
  anyway = f"--tokenizer='{pieces.spec(folder)}' does without"
  if more:
    some = ', '.join(f'{more[i]} ({i})' for i in sorted(more)[:3]) + ', ...' * (len(more) > 3)
    raise ValueError(f'{folder}: {name} lacks tokens that the folder adds: {some}; {anyway}')
  for role, own in (('bos', tok.bos), ('eos', tok.eos)):
    given = config.get(f'{role}_token_id')
    if given not in (None, own) and not (isinstance(given, list) and own in given):
      raise ValueError(
        f'{folder}: {role}_token_id={str(given)[:80]} in config.json is not that of {name}, {own}; '
        f'{anyway}'
      )
  return pieces


def _added(folder: pathlib.Path) -> dict[str, int]:
  """The tokens that a folder adds to a vocabulary, by any of three files."""
  out = {e['content']: e['id'] for e in _object(folder / JSON).get('added_tokens') or ()}
  for i, e in (said(folder).get('added_tokens_decoder') or {}).items():
    if i.isdecimal() and isinstance(e, dict):
      out[str(e.get('content'))] = int(i)
  return out | {t: i for t, i in _object(folder / ADDED).items() if type(i) is int}


def _of_json(known: pathlib.Path, config: Mapping[str, Any], pieces: Found | None) -> Found:
  text = _files.parse_json(_files.read_text(known), known)
  _check_shape(text, known)
  found = lambda part, args, bos: Found(
    part, args, (known,), _adds_bos(known.parent, _begins(text, bos))
  )
  kind, args = text['model'].get('type'), _named(text, config, known.parent)
  if kind == 'WordPiece':
    return found('wordpiece', {}, '[CLS]')
  of = found('unigram' if kind == 'Unigram' else 'bpe', args, args.get('bos'))
  try:
    if kind == 'Unigram':
      of.made()
      return of
    return _lossless(of, text)
  except kinds.Unsupported as e:
    if pieces is not None:
      return _whole(pieces, config)
    raise ValueError(f'{e}; --tokenizer=SPEC names another one') from None


def _made(text: str, part: str, args: Mapping[str, Any], bos: bool, of: str) -> Found:
  """A tokenizer.json that was made of another file, which has this name."""
  held = tempfile.TemporaryDirectory(prefix='lmjax-tokenizer-')
  made = pathlib.Path(held.name) / JSON
  made.write_text(text, 'utf-8')
  return Found(part, args, (made,), bos, f'{JSON} was made of {of}', held)


def _check_shape(text: Mapping[str, Any], path: pathlib.Path):
  """Raises ValueError where a tokenizer.json is something else, or was damaged by hand."""
  added, pre = text.get('added_tokens') or [], text.get('pre_tokenizer') or {}
  groups = (text.get('model'), pre, text.get('normalizer') or {})
  shaped = isinstance(added, list) and all(isinstance(g, dict) for g in groups)
  shaped = shaped and isinstance(text['model'].get('unk_token'), str | None)
  steps = pre.get('pretokenizers') or [] if shaped else []
  shaped = shaped and isinstance(steps, list) and all(isinstance(s, dict) for s in steps)
  named = lambda e: isinstance(e.get('content'), str) and type(e.get('id')) is int
  if not shaped or not all(isinstance(e, dict) and named(e) for e in added):
    raise ValueError(
      f'{path}: a model, a list of added_tokens with content and id, a normalizer, and steps of a '
      'pre_tokenizer are expected; it is another file, or damaged'
    )


def _lossless(found: Found, text: Mapping[str, Any]) -> Found:
  """The same, or with lossless=False where the files change the text; another part where bytes have
  no token.
  """
  pieces = (text.get('model') or {}).get('vocab')
  if isinstance(pieces, dict) and set(_bpe_files.alphabet()) - set(pieces):
    found = dataclasses.replace(found, part='bpe_without')
    found.made()
    return found
  vocab = _bpe_files.load(str(found.files[0]))
  if _bpe_files.loses(vocab):
    found = dataclasses.replace(found, args={**found.args, 'lossless': False})
  return found


def _named(
  text: Mapping[str, Any], config: Mapping[str, Any], folder: pathlib.Path
) -> dict[str, str]:
  """bos and eos of the config by the names that the file has for their ids; of several, the one
  that tokenizer_config.json names (a chat's end of turn), else the first.
  """
  names = {e['id']: e['content'] for e in text.get('added_tokens') or ()}
  out, settings = {}, said(folder)
  for role in ('bos', 'eos'):
    given = config.get(f'{role}_token_id')
    given = given if isinstance(given, list) else [given]
    found = [names.get(i) for i in given if isinstance(i, int)]
    own = settings.get(f'{role}_token')
    own = own.get('content') if isinstance(own, dict) else own
    found = own if own in found else found[0] if found else None
    if isinstance(found, str):
      out[role] = found
  return out


def _begins(text: Mapping[str, Any], bos: str | None) -> bool:
  """Whether the file's own template puts bos in front of a text."""
  post = text.get('post_processor')
  post = post if isinstance(post, dict) else {}
  steps = post.get('processors') or [post]
  for step in steps if isinstance(steps, list) else ():
    step = step if isinstance(step, dict) else {}
    cls, single = step.get('cls'), step.get('single')  # of RoBERTa's own kind; of a template
    first = single[0] if isinstance(single, list) and single else None
    token = first.get('SpecialToken') if isinstance(first, dict) else None
    names = (cls[:1] if isinstance(cls, list) else []) + (
      [token.get('id')] if isinstance(token, dict) else []
    )
    if bos is not None and bos in names:
      return True
  return False


def _adds_bos(folder: pathlib.Path, otherwise: bool) -> bool:
  """What tokenizer_config.json says."""
  found = said(folder).get('add_bos_token')
  return found if isinstance(found, bool) else otherwise


def said(folder: pathlib.Path) -> Mapping[str, Any]:
  """tokenizer_config.json, where there is one. Raises ValueError where it is something else."""
  return _object(folder / SETTINGS)


def _object(path: pathlib.Path) -> Mapping[str, Any]:
  found = _files.parse_json(_files.read_text(path), path) if path.is_file() else {}
  if not isinstance(found, dict):
    raise ValueError(f'{path} holds no JSON object')
  return found


# ------------------------------------------------------------------ writing


def write(folder: pathlib.Path, resolved: Mapping[str, Any], tokenizer: Any) -> list[str]:
  """Writes the tokenizer of a run; returns the names of the files. Raises ValueError where it has
  no counterpart.
  """
  spec = resolved['data']['tokenizer']
  part = registry.make('tokenizer', spec)
  args = dict(part.args)
  if part.name == 'sentencepiece' and not _llama2c.is_bin(data := _files.read(args['path'])):
    t5 = pathlib.Path(args['path']).name == SPIECE
    name = SPIECE if t5 else MODEL
    with files.kept(folder / name):
      (folder / name).write_bytes(data)
    llama = dict(tokenizer_class='LlamaTokenizer', add_bos_token=resolved['data']['bos'])
    return [name, *_settings(folder, dict(tokenizer_class='T5Tokenizer') if t5 else llama)]
  if part.name == 'bytes':
    text = _dumped(_of_bytes(tokenizer, resolved['data']['bos']))
  elif part.name == 'bpe':
    text = _of_bpe(_bpe_files.load(args['path']))
  elif part.name in FILED:
    text = _files.read_text(args['path'])
  else:
    raise ValueError(
      f'config.data.tokenizer={spec}: this tokenizer has no counterpart; --tokenizer=none leaves '
      'it out'
    )
  names = {e['id']: e['content'] for e in json.loads(text).get('added_tokens') or ()}
  named = {f'{k}_token': names.get(getattr(tokenizer, k)) for k in ('bos', 'eos', 'pad', 'mask')}
  settings = dict(
    tokenizer_class='PreTrainedTokenizerFast',
    model_max_length=resolved['data']['length'],
    clean_up_tokenization_spaces=False,
    **{k: v for k, v in named.items() if v is not None},
  )
  with files.kept(folder / JSON):
    files.write(folder / JSON, text)
  return [JSON, *_settings(folder, settings)]


def _settings(folder: pathlib.Path, settings: dict[str, Any]) -> list[str]:
  with files.kept(folder / SETTINGS):
    files.write(folder / SETTINGS, json.dumps(settings, indent=2) + '\n')
  return [SETTINGS]


def _dumped(spec: dict[str, Any]) -> str:
  return json.dumps(spec, ensure_ascii=False) + '\n'


def _of_bpe(vocab: _bpe_files.Vocabulary) -> str:
  if len(vocab.data) == 1:  # it was a tokenizer.json
    return vocab.data[0].decode()
  added = {k: (i, True) for k, (i, _) in vocab.added.items()}
  return _dumped(file(vocab.model['vocab'], vocab.model['merges'], added))


def _of_bytes(tokenizer: Any, bos: bool) -> dict[str, Any]:
  ids = [i for i in (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.mask) if i is not None]
  added = {k: (i, True) for k, i in zip(SPECIALS, ids)}
  out = file({c: b for b, c in enumerate(_bpe_files.alphabet())}, [], added)
  out['pre_tokenizer'] = {**_bpe_files.PRE_TOKENIZER, 'use_regex': False}
  if bos and ids:
    first = {'SpecialToken': {'id': SPECIALS[0], 'type_id': 0}}
    rest = {'Sequence': {'id': 'A', 'type_id': 0}}
    more = {'Sequence': {'id': 'B', 'type_id': 1}}
    special = {SPECIALS[0]: {'id': SPECIALS[0], 'ids': [ids[0]], 'tokens': [SPECIALS[0]]}}
    out['post_processor'] = dict(
      type='TemplateProcessing',
      single=[first, rest],
      pair=[first, rest, more],
      special_tokens=special,
    )
  return out


def file(vocab: Mapping[str, int], merges: Any, added: Mapping[str, tuple[int, bool]]):
  """A tokenizer.json of byte-level BPE."""
  flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
  return dict(
    version='1.0',
    truncation=None,
    padding=None,
    added_tokens=[dict(id=i, content=k, **flags, special=s) for k, (i, s) in added.items()],
    normalizer=None,
    pre_tokenizer=dict(_bpe_files.PRE_TOKENIZER),
    post_processor=None,
    decoder=dict(_bpe_files.PRE_TOKENIZER),
    model=dict(
      type='BPE',
      dropout=None,
      unk_token=None,
      continuing_subword_prefix=None,
      end_of_word_suffix=None,
      fuse_unk=False,
      byte_fallback=False,
      vocab=dict(vocab),
      merges=[list(m) for m in merges],
    ),
  )

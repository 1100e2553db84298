"""Chat templates: messages as the text that a model was tuned on.

A template stands beside the file of a run's tokenizer, where `import` keeps it:

  chat_template.jinja                 the template `default`
  additional_chat_templates/X.jinja   the template X
  tokenizer_config.json               without those: chat_template, one or [{name, template}, ...];
                                      the names of specials (bos_token, eos_token, ...) in any case

It is given the messages and the specials by name, and rendered in a sandbox (`_jinja`).

A special in a rendered text is that token, where the tokenizer of a run makes ordinary characters
of it: the text is encoded by tokenizer.json as its own library does. That includes specials which a
message itself spells out.
"""

import hashlib
import json
import pathlib
from typing import Any, Mapping, Sequence

import numpy as np

from lmjax import files
from lmjax import registry
from lmjax.interop import _jinja
from lmjax.interop.hf import _tokenizer
from lmjax.tokenizers import _files

TEMPLATE, MORE = 'chat_template.jinja', 'additional_chat_templates'
DEFAULT = 'default'
MARK = 'WHERE-THE-LAST-MESSAGE-ENDS '  # a space behind it shows whether the template trims
Messages = Sequence[Mapping[str, Any]]


class Chat:
  """A template of a folder, with a tokenizer that knows its specials.

  own: the tokenizer of the run; name: of the template. Raises ValueError where there is none, or no
  tokenizer.json beside it.
  """

  def __init__(self, folder: pathlib.Path, own: Any, name: str = DEFAULT):
    found = templates(folder)
    if name not in found:
      what = f'{name!r} among them; it has {", ".join(sorted(found))}' if found else 'in it'
      raise ValueError(
        f'--apply_chat_template: {folder} is where the tokenizer of the run is from, and there is '
        f'no chat template {what}'
      )
    self.name, self.template = name, found[name]
    self.tokenizer = Tokenizer(folder, own)
    self._where = f'{folder}: the chat template {name}'
    self._compiled = _jinja.compiled(self._where, self.template)

  @property
  def fingerprint(self) -> str:
    """Of the template and the tokenizer: what texts, and what tokens of them, follow from."""
    own = self.tokenizer.fingerprint()
    return hashlib.sha256(f'{own} {self.template}'.encode()).hexdigest()[:16]

  def render(self, messages: Messages, add_generation_prompt: bool = True) -> str:
    """The text of messages with `role` and `content`.

    add_generation_prompt: with what begins an answer behind it; else the last message is left open,
      so that the model goes on with it.

    Raises ValueError where the template refuses the messages or cannot be rendered.
    """
    given = [{k: v for k, v in m.items() if v is not None} for m in messages]
    if not add_generation_prompt:
      last = given[-1].get('content') if given else None
      if not isinstance(last, str):
        raise ValueError(f'{self._where}: the last message has no text to go on with')
      given[-1] = {**given[-1], 'content': last + MARK}
    try:
      text = self._compiled.render(
        messages=given,
        tools=None,
        documents=None,
        add_generation_prompt=add_generation_prompt,
        **self.tokenizer.specials,
      )
    except Exception as e:  # whatever a foreign template runs into
      raise ValueError(f'{self._where} gives: {e}') from None
    return text if add_generation_prompt else self._open(text)

  def _open(self, text: str) -> str:
    """What stands before the mark."""
    before, found, after = text.rpartition(MARK.strip())
    if not found:
      raise ValueError(f'{self._where} changes the last message, which it should go on with')
    return before if after.startswith(' ') else before.rstrip()


class Tokenizer:
  """The run's tokenizer, but for specials in a text, and the end token that the folder names."""

  def __init__(self, folder: pathlib.Path, own: Any):
    from tokenizers import Tokenizer as Library

    path = folder / _tokenizer.JSON
    if not path.is_file():
      raise ValueError(f'--apply_chat_template: {path} is not there, which knows the specials')
    text = json.dumps(_whole(path))
    try:
      self._library = Library.from_str(text)
    except Exception as e:  # it has no kind of its own
      raise ValueError(f'{path}: {e}') from None
    self._own = own
    self.specials = _specials(folder, self._library, own)
    eos = self._library.token_to_id(self.specials.get('eos_token', ''))
    self.eos = own.eos if eos is None else eos
    self.vocab_size, self.bos, self.pad, self.mask = own.vocab_size, own.bos, own.pad, own.mask

  def encode(self, text: str) -> np.ndarray:
    """int32 (tokens,). Raises ValueError for ids that the model does not know."""
    ids = np.array(self._library.encode(text, add_special_tokens=False).ids, np.int32)
    if len(ids) and ids.max() >= self.vocab_size:
      piece = self._library.id_to_token(int(ids.max()))
      raise ValueError(f'{piece!r} is id {ids.max()}, and the run knows {self.vocab_size}')
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    return self._own.decode(ids)

  def fingerprint(self) -> str:
    return self._own.fingerprint()


def of(run: Any, name: str = DEFAULT) -> Chat:
  """That of a run. Raises ValueError as `Chat` does."""
  where = _folder_of(run)
  if where is None:
    spec = run.config['data']['tokenizer']
    raise ValueError(
      f'--apply_chat_template: the tokenizer {spec} is of no folder that could have a chat template'
    )
  return Chat(where, run.tokenizer, name)


def _folder_of(run: Any) -> pathlib.Path | None:
  """Where the file of a run's tokenizer is."""
  path = dict(registry.make('tokenizer', run.config['data']['tokenizer']).args).get('path')
  where = None if path is None else pathlib.Path(files.expanded(path))
  return where if where is None or where.is_dir() else where.parent


def templates(folder: pathlib.Path) -> dict[str, str]:
  """The templates of a folder by name. Raises ValueError where its settings cannot be read."""
  more = {p.stem: _files.read_text(p) for p in sorted((folder / MORE).glob('*.jinja'))}
  if (folder / TEMPLATE).is_file():
    more[DEFAULT] = _files.read_text(folder / TEMPLATE)
  given = None if more else _tokenizer.said(folder).get('chat_template')
  if isinstance(given, str):
    return {DEFAULT: given}
  try:
    return more or {str(t['name']): str(t['template']) for t in given or ()}
  except (TypeError, KeyError):
    raise ValueError(
      f'{folder / _tokenizer.SETTINGS}: chat_template is neither a text nor a list of name and '
      'template'
    ) from None


def keep(source: pathlib.Path, target: pathlib.Path) -> list[str]:
  """Copies the templates of a folder, with its settings, where it has any; names of the files."""
  if not templates(source):
    return []
  # The file of specials too, where the run's tokenizer is another file of the folder.
  names = (TEMPLATE, _tokenizer.SETTINGS, _tokenizer.JSON)
  kept = []
  for path in (*(source / n for n in names), *(source / MORE).glob('*.jinja')):
    to = target / path.relative_to(source)
    if path.is_file() and not to.exists():
      to.parent.mkdir(exist_ok=True)
      files.copy(path, to)
      kept.append(str(path.relative_to(source)))
  return kept


def hand_on(run: Any, target: pathlib.Path) -> list[str]:
  """Writes the templates of a run beside the tokenizer that was exported to a folder, with the
  names of specials that they are given; returns the names of the files.
  """
  source = _folder_of(run)
  found = {} if source is None else templates(source)
  if not found:
    return []
  named = {k: v for k, v in _tokenizer.said(source).items() if k.endswith('_token')}
  texts = {f'{MORE}/{n}.jinja' if n != DEFAULT else TEMPLATE: text for n, text in found.items()}
  texts[_tokenizer.SETTINGS] = json.dumps(_tokenizer.said(target) | named, indent=2) + '\n'
  for name, text in texts.items():
    (target / name).parent.mkdir(exist_ok=True)
    with files.kept(target / name):
      files.write(target / name, text)
  more, to = [n for n in texts if n != _tokenizer.SETTINGS], target / _tokenizer.JSON
  if (source / to.name).is_file() and not to.exists():
    files.copy(source / to.name, to)
    more.append(to.name)
  return more


def _specials(folder: pathlib.Path, library: Any, own: Any) -> dict[str, str]:
  """bos_token, eos_token, ... as the folder names them, else as the run's ids are named."""
  ids = {'bos_token': own.bos, 'eos_token': own.eos}
  out = {k: library.id_to_token(i) for k, i in ids.items() if i is not None}
  for key, value in _tokenizer.said(folder).items():
    if key.endswith('_token'):
      out[key] = value.get('content') if isinstance(value, dict) else value
  return {k: v for k, v in out.items() if isinstance(v, str)}


def _whole(path: pathlib.Path) -> Mapping[str, Any]:
  """A tokenizer.json with its added tokens in the vocabulary as well: the library numbers those
  anew that are not there.
  """
  text = _files.parse_json(_files.read_text(path), path)
  vocab = (text.get('model') or {}).get('vocab')
  if isinstance(vocab, dict):
    vocab |= {e['content']: e['id'] for e in text.get('added_tokens') or ()}
  return text

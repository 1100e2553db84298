"""T5's spiece.model as the tokenizer.json that it means: the pieces of SentencePiece's file, and
behind them sentinels that it does not have, the first one last (Raffel et al., 2020,
arXiv:1910.10683).
"""

import base64
import json
import pathlib
from typing import Any

from lmjax import kinds
from lmjax.tokenizers import _files

FILE, MODEL_TYPE, SETTINGS = 'spiece.model', 't5', 'tokenizer_config.json'
SENTINELS = 100  # where tokenizer_config.json has no extra_ids
SPACE = dict(type='Metaspace', replacement='▁', prepend_scheme='always', split=True)


def read(folder: pathlib.Path) -> str:
  """The text of a tokenizer.json. Raises ValueError naming the file where it is none of T5's kind,
  Unsupported where the library is not installed.
  """
  path = folder / FILE
  model = _parsed(path)
  normal, trained = model.normalizer_spec, model.trainer_spec
  types = {p.type for p in model.pieces}
  piece = model.pieces[0]
  usual = normal.add_dummy_prefix and normal.remove_extra_whitespaces and normal.escape_whitespaces
  unknown = [i for i, p in enumerate(model.pieces) if p.type == piece.UNKNOWN]
  if (
    not usual
    or trained.model_type != trained.UNIGRAM
    or trained.treat_whitespace_as_suffix
    or types & {piece.USER_DEFINED, piece.UNUSED}
    or len(unknown) != 1
  ):
    raise ValueError(
      f'{path}: a model of type unigram is expected, which puts a space in front of texts, joins '
      'spaces, and has no pieces of users; --tokenizer=SPEC names another tokenizer'
    )
  special = [i for i, p in enumerate(model.pieces) if p.type in (piece.CONTROL, piece.UNKNOWN)]
  names = {i: model.pieces[i].piece for i in special}
  vocab = [[p.piece, p.score] for p in model.pieces]
  count = _sentinels(folder / SETTINGS)
  for n in reversed(range(count)):
    names[len(vocab)] = f'<extra_id_{n}>'
    vocab.append([names[len(vocab)], 0.0])
  flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
  table = base64.b64encode(normal.precompiled_charsmap).decode()
  decoders = [dict(type='ByteFallback'), SPACE] if trained.byte_fallback else []
  spec = dict(
    version='1.0',
    truncation=None,
    padding=None,
    added_tokens=[dict(id=i, content=name, **flags) for i, name in names.items()],
    normalizer=dict(type='Precompiled', precompiled_charsmap=table) if table else None,
    pre_tokenizer=dict(type='Sequence', pretokenizers=[dict(type='WhitespaceSplit'), SPACE]),
    post_processor=_template(names, trained.eos_piece),
    decoder=dict(type='Sequence', decoders=decoders) if decoders else SPACE,
    model=dict(type='Unigram', unk_id=unknown[0], vocab=vocab, byte_fallback=trained.byte_fallback),
  )
  return json.dumps(spec, ensure_ascii=False)


def _parsed(path: pathlib.Path) -> Any:
  try:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2 as pb
  except ImportError as e:
    raise kinds.Unsupported(
      f"{path} needs the module {e.name}: pip install 'lmjax[sentencepiece]'"
    ) from None
  try:
    model = pb.ModelProto.FromString(_files.read(path))
  except DecodeError:
    model = pb.ModelProto()
  if not model.pieces or not (model.HasField('trainer_spec') and model.HasField('normalizer_spec')):
    raise ValueError(f'{path} is not a SentencePiece .model, or it is cut off')
  return model


def _sentinels(path: pathlib.Path) -> int:
  settings = _files.parse_json(_files.read_text(path), path) if path.is_file() else {}
  found = settings['extra_ids'] if 'extra_ids' in settings else SENTINELS
  if type(found) is not int or not 0 <= found <= 10_000:
    raise ValueError(f'{path}: extra_ids={str(found)[:80]}: 0 to 10000 are expected')
  return found


def _template(names: dict[int, str], eos: str) -> dict[str, Any] | None:
  """A eos, or A eos B eos."""
  ids = [i for i, name in names.items() if name == eos]
  if not ids:
    return None
  text = lambda name: dict(Sequence=dict(id=name, type_id=0))
  end = dict(SpecialToken=dict(id=eos, type_id=0))
  return dict(
    type='TemplateProcessing',
    single=[text('A'), end],
    pair=[text('A'), end, text('B'), end],
    special_tokens={eos: dict(id=eos, ids=ids, tokens=[eos])},
  )

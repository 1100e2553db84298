"""Turns llama2.c's tokenizer.bin into a SentencePiece model.

Layout, little-endian: int32 length of the longest piece; then for each id float32 score, int32
length, the piece's UTF-8 bytes, its spaces written as spaces. Ids 0, 1, 2 are unk, bos, eos; 3 ...
258 are the bytes, each written as the character of that number or as <0xHH>. Karpathy, llama2.c,
tokenizer.py.
"""

import struct

_LONGEST = 4096


def is_bin(data: bytes) -> bool:
  """Whether the data begins like a tokenizer.bin, with a small number; a .model does not."""
  return len(data) >= 12 and 0 < int.from_bytes(data[:4], 'little') <= _LONGEST


def pieces(data: bytes, path: str) -> list[tuple[str, float]]:
  """(piece, score) by id. Raises ValueError naming the file where it is cut off or inconsistent."""
  longest, at, out = int.from_bytes(data[:4], 'little'), 4, []
  while at < len(data):
    if at + 8 > len(data):
      raise ValueError(f'{path} is cut off: id {len(out)} at byte {at} has no score and length')
    score, size = struct.unpack_from('<fi', data, at)
    piece = data[at + 8 : at + 8 + size] if 0 < size <= longest else b''
    if not piece or len(piece) < size:
      raise ValueError(
        f'{path} is damaged or cut off: id {len(out)} at byte {at} has length '
        f'{size}, the longest is {longest} and {len(data) - at - 8} bytes are left'
      )
    try:
      out.append((piece.decode('utf-8'), score))
    except UnicodeDecodeError:
      raise ValueError(
        f'{path} is damaged: the piece of id {len(out)} is not UTF-8: {piece!r}'
      ) from None
    at += 8 + size
  if max((len(p.encode()) for p, _ in out), default=0) != longest:
    raise ValueError(
      f'{path} is cut off or damaged: it announces a piece of {longest} bytes and has none'
    )
  return out


def to_model(data: bytes, path: str):
  """A ModelProto: BPE with byte fallback, a space in front of the text, no normalization.

  Raises ValueError naming the file.
  """
  from sentencepiece import sentencepiece_model_pb2 as pb

  found = pieces(data, path)
  if len(found) < 259:
    raise ValueError(
      f'{path} is cut off: {len(found)} pieces, and 3 specials and 256 bytes are the least'
    )
  for b in range(256):
    if found[3 + b][0] not in (chr(b), f'<0x{b:02X}>'):
      raise ValueError(f'{path}: id {3 + b} is {found[3 + b][0]!r}, the byte 0x{b:02X} is expected')
  model = pb.ModelProto()
  kind = pb.ModelProto.SentencePiece
  for i, (piece, score) in enumerate(found):
    if i < 3:
      piece, type_ = ('<unk>', '<s>', '</s>')[i], kind.UNKNOWN if i == 0 else kind.CONTROL
    elif i < 259:
      piece, type_ = f'<0x{i - 3:02X}>', kind.BYTE
    else:
      piece, type_ = piece.replace(' ', '\u2581'), kind.NORMAL
    model.pieces.add(piece=piece, score=score, type=type_)
  trainer, normalizer = model.trainer_spec, model.normalizer_spec
  trainer.model_type, trainer.byte_fallback = pb.TrainerSpec.BPE, True
  trainer.vocab_size = len(found)
  trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = 0, 1, 2, -1
  normalizer.name, normalizer.add_dummy_prefix = 'identity', True
  normalizer.remove_extra_whitespaces, normalizer.escape_whitespaces = False, True
  return model

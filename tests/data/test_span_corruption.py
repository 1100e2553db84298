"""Span corruption: T5's sizes, texts that come back, rows, prompts, refusals."""

import numpy as np
import pytest

from lmjax import registry

EXTRA = 100


def make(spec='span_corruption()', length=568, tokenizer=f'extended(extra={EXTRA})'):
  tok = registry.make('tokenizer', tokenizer)()
  return registry.make('transform', spec, tokenizer=tok, length=length)()


def row(n, length):
  real = np.arange(length) < n
  tokens = np.where(real, np.random.default_rng(n).integers(0, 256, length), 0).astype(np.int32)
  positions = np.arange(length, dtype=np.int32) * real
  return dict(tokens=tokens, segments=real.astype(np.int32), positions=positions)


def text(out, front=''):
  return out[f'{front}tokens'][out[f'{front}segments'] > 0].tolist()


def put_back(part, inputs, targets):
  extra, spans = part.tokenizer.extra, {}
  for t in targets:
    if t in extra:
      assert t not in spans
      spans[at := t] = []
    else:
      spans[at].append(t)
  assert list(spans) == list(extra[: len(spans)]) and all(spans.values())
  return [t for i in inputs for t in (spans.pop(i) if i in extra else [i])]


def test_sizes_of_t5():
  part = make()  # 568 tokens make inputs of 512 and targets of 114, as in T5's own preprocessing
  assert part.sizes == (512, 114)
  out = part(row(568, 568), 0)
  assert len(text(out, 'encoder_')) == 512 and len(text(out)) == 115
  assert out['encoder_tokens'].shape == (512,) and out['tokens'].shape == (115,)


@pytest.mark.parametrize('rate, mean', [(0.15, 3.0), (0.5, 1.0), (0.9, 20.0), (0.01, 1.0)])
def test_putting_targets_back_gives_the_text(rate, mean):
  length = 64
  part = make(f'span_corruption(rate={rate}, mean={mean})', length)
  for n in range(1, length + 1):
    given = row(n, length)
    out = part(given, n)
    inputs, targets = text(out, 'encoder_'), text(out)
    tok = part.tokenizer
    assert targets[0] == (tok.bos if tok.pad is None else tok.pad)
    assert inputs.pop() == targets.pop() == tok.eos
    assert put_back(part, inputs, targets[1:]) == given['tokens'][:n].tolist()
    noise = sum(t not in tok.extra for t in targets[1:])
    assert noise == (0 if n == 1 else min(max(1, round(n * rate)), n - 1))
    assert out['weights'][0] == 0 and out['weights'].sum() == len(targets)


def test_a_row_without_tokens_is_padding():
  out = make(length=32)(row(0, 32), 0)
  assert not any(out[k].any() for k in ('tokens', 'segments', 'encoder_segments', 'weights'))


def test_spans_are_drawn_anew():
  part = make(length=64)
  starts = {tuple(text(part(row(64, 64), s), 'encoder_')) for s in range(50)}
  assert len(starts) > 45


def test_prompts():
  part, tok = make(length=32), make(length=32).tokenizer
  ids = part.encode('a <extra_id_0> c<extra_id_1>')
  assert [i for i in ids if i in tok.extra] == list(tok.extra[:2])
  assert part.decode(ids) == 'a <extra_id_0> c<extra_id_1>'
  asked = part.prompt(ids)
  assert asked.source == (*ids, tok.eos) and len(asked.text) == 1 and not asked.joined
  for wrong in ('<extra_id_1> b', '<extra_id_0> b <extra_id_0>'):
    with pytest.raises(ValueError, match='in order'):
      part.prompt(part.encode(wrong))
  with pytest.raises(ValueError, match='empty'):
    part.prompt([])
  with pytest.raises(ValueError, match='extra_id_100'):
    part.encode('<extra_id_100>')


@pytest.mark.parametrize(
  'spec, tokenizer, words',
  [
    ('span_corruption(rate=0.0)', 'extended()', 'rate=0.0'),
    ('span_corruption(rate=1.0)', 'extended()', 'rate=1.0'),
    ('span_corruption(mean=0.5)', 'extended()', 'mean=0.5'),
    ('span_corruption()', 'bytes()', '0 extra ids'),
    ('span_corruption(mean=1.0)', 'extended(extra=84)', '84 extra ids, 85 are needed'),
  ],
)
def test_refusals(spec, tokenizer, words):
  with pytest.raises(ValueError, match=words):
    make(spec, tokenizer=tokenizer)

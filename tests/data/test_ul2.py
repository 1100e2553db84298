"""UL2: sizes of its tasks, conservation of tokens, one draw in three forms, and a run of each."""

import collections

import numpy as np
import pytest

from lmjax import build
from lmjax import config
from lmjax import feed as feed_lib
from lmjax import registry
from lmjax.data import fields
from lmjax.data.transforms import _spans
from lmjax.data.transforms import ul2 as ul2_lib

EXTRA = 128


def tokenizer(extra=EXTRA):
  return registry.make('tokenizer', f'extended(extra={extra})')()


def make(spec='ul2()', length=512, extra=EXTRA):
  return registry.make('transform', spec, tokenizer=tokenizer(extra), length=length)()


def only(task: int) -> str:
  return str(tuple(float(i == task) for i in range(7)))


def row(length=512, short=0, seed=0):
  real = np.arange(length) < length - short
  tokens = np.where(real, np.random.default_rng(seed).integers(0, 256, length), 0).astype(np.int32)
  return dict(
    tokens=tokens,
    segments=real.astype(np.int32),
    positions=np.arange(length, dtype=np.int32) * real,
    source=np.int32(3),
  )


def real(out, prefix=''):
  return out[f'{prefix}tokens'][out[f'{prefix}segments'] > 0]


def put_back(part, inputs, targets):
  """The text, from inputs and targets without their mode."""
  tok, own = part.tokenizer, part.tokenizer.vocab_size - EXTRA
  assert inputs[-1] == targets[-1] == tok.eos
  inputs, targets = inputs[:-1], targets[:-1]
  spans, at = {}, None
  for t in targets:
    if t >= own:
      at = t
      assert at not in spans
      spans[at] = []
    elif at is not None:
      spans[at].append(t)
  if not spans:  # S
    return [*inputs, *targets]
  marks = [t for t in inputs if t >= own]
  assert marks == list(spans) == list(tok.extra[3 : 3 + len(marks)]), 'each once, in order'
  assert all(spans.values())
  return [x for t in inputs for x in (spans[t] if t >= own else [t])]


# Lengths of inputs and targets, both with eos and without the mode, at 512 tokens.
LENGTHS = {0: (462, 104), 1: (446, 88), 3: (342, 342), 4: (289, 289), 5: (437, 79), 6: (261, 261)}


@pytest.mark.parametrize('task', LENGTHS)
def test_lengths_of_the_paper(task):
  part = make(f'ul2(form="encoder_decoder", weights={only(task)})')
  out = part(row(), 7)
  inputs, targets = real(out, 'encoder_'), real(out)
  assert (len(inputs) - 1, len(targets) - 1) == LENGTHS[task]
  assert part.sizes[:2] == (len(inputs), len(targets) - 1), 'no padding where rows are full'
  assert inputs[0] == part.tokenizer.extra['RSX'.index('RRSXXXX'[task])]


@pytest.mark.parametrize('task', range(7))
@pytest.mark.parametrize('short', [0, 1, 200, 500, 508, 511])
def test_putting_targets_back_gives_the_text(task, short):
  part = make(f'ul2(form="encoder_decoder", weights={only(task)})')
  for seed in range(5):
    given = row(short=short, seed=seed)
    out = part(given, seed)
    text = real(given)
    inputs, targets = real(out, 'encoder_'), real(out)
    assert put_back(part, list(inputs[1:]), list(targets[1:])) == text.tolist()
    assert out['weights'].sum() == len(targets) - 1 and out['weights'][0] == 0
    assert targets[0] == part.tokenizer.pad


def test_a_row_without_tokens_is_padding():
  for form in ('encoder_decoder', 'prefix', 'causal'):
    out = make(f'ul2(form="{form}")')(row(short=512), 0)
    assert not out['weights'].any() and not out['segments'].any() and not out['tokens'].any()


@pytest.mark.parametrize('task', range(7))
def test_a_row_of_one_token_shows_it_and_ends(task):
  part, given = make(f'ul2(weights={only(task)})', length=2), row(2, short=1)
  out, eos = part(given, 0), part.tokenizer.eos
  assert real(out)[1:].tolist() == [given['tokens'][0], eos, eos]
  assert out['weights'].tolist()[:4] == [0, 0, 0, 1] and out['prefix'].sum() == 3


def test_one_draw_serves_three_forms():
  parts = {f: make(f'ul2(form="{f}")') for f in ('encoder_decoder', 'prefix', 'causal')}
  for seed in range(20):
    out = {f: p(row(seed=seed), seed) for f, p in parts.items()}
    inputs, targets = real(out['encoder_decoder'], 'encoder_'), real(out['encoder_decoder'])[1:]
    both = np.concatenate([inputs, targets])
    for form in ('prefix', 'causal'):
      np.testing.assert_array_equal(real(out[form]), both)
      assert np.flatnonzero(out[form]['weights']).tolist() == list(
        range(len(inputs), len(inputs) + len(targets))
      )
    assert np.flatnonzero(out['prefix']['prefix']).tolist() == list(range(len(inputs)))
    assert 'prefix' not in out['causal'] and out['causal']['source'] == 3


def test_tasks_come_as_often_as_weighed():
  part = make('ul2(form="causal", weights=(1, 1, 2, 0, 0, 0, 4))', length=64)
  modes = [part(row(64), seed * 7919)['tokens'][0] - 260 for seed in range(2000)]
  share = np.bincount(modes, minlength=3) / 2000
  np.testing.assert_allclose(share, [0.25, 0.25, 0.5], atol=0.04)


def test_the_rest_of_s_is_a_quarter_on_average():
  part = make(f'ul2(form="encoder_decoder", weights={only(2)})')
  rest = [len(real(part(row(), s * 7919))) - 2 for s in range(1000)]
  assert min(rest) >= 1 and max(rest) <= 256 and abs(np.mean(rest) - 128) < 8


def test_partitions_are_uniform():
  """Of 5 = a + b + c with positive parts there are six."""
  rng = np.random.default_rng(0)
  seen = [tuple(_spans.parts(5, 3, rng.random(4))) for _ in range(6000)]
  kinds, counts = np.unique(seen, axis=0, return_counts=True)
  assert len(kinds) == 6 and (kinds.sum(1) == 5).all() and kinds.min() == 1
  assert abs(counts / 6000 - 1 / 6).max() < 0.02


def test_modes():
  fixed, none = make('ul2(mode="X")'), make('ul2(mode="")')
  assert {int(fixed(row(), s)['tokens'][0]) for s in range(20)} == {262}
  assert all(none(row(), s)['tokens'][0] not in (260, 261, 262) for s in range(20))
  assert none.sizes[2] == fixed.sizes[2] - 1


def test_refusals():
  for spec, words in (
    ('ul2(weights=(1, 2))', 'seven numbers'),
    ('ul2(weights=(0, 0, 0, 0, 0, 0, 0))', 'not all 0'),
    ('ul2(weights=(1, 1, 1, 1, 1, 1, -1))', 'from 0 to'),
    ('ul2(weights=(1e308, 1e308, 1, 1, 1, 1, 1))', r'from 0 to 1e\+300'),
    ('ul2(weights=(1, 1, 1, 1, 1, 1, "x"))', 'seven numbers'),
    ('ul2(form="decoder")', "'prefix' or 'causal'"),
    ('ul2(mode="Y")', "'X' or"),
  ):
    with pytest.raises(ValueError, match=words):
      make(spec)
  with pytest.raises(ValueError, match='has 3 extra ids, 88 are needed'):
    make(extra=3)
  with pytest.raises(ValueError, match='has 0 extra ids'):
    registry.make(
      'transform', 'ul2()', tokenizer=registry.make('tokenizer', 'bytes()')(), length=9
    )()
  with pytest.raises(ValueError, match='no end-of-text id'):
    tok = registry.make('tokenizer', 'extended(inner=bytes(specials=False), extra=90)')()
    registry.make('transform', 'ul2()', tokenizer=tok, length=512)()
  with pytest.raises(ValueError, match='at least 2 tokens'):
    make(length=1)


def resolved(*more):
  tiny = [
    ('data.tokenizer', 'extended(extra=20)'),
    ('data.transforms', 'ul2()'),
    ('data.mask_documents', 'False'),
    ('data.length', '32'),
    ('batch_tokens', '128'),
    ('model.width', '32'),
    ('model.depth', '1'),
  ]
  return config.resolve(config.load('quickstart', [*tiny, *more]))


def test_fields_of_a_run():
  run = build.build(resolved())
  assert run.model.length == run.fields['tokens'].shape[0] - 1 > 32
  assert (run.lookahead, run.data_lookahead) == (1, 0)
  assert build.build(resolved(('data.transforms', ''))).data_lookahead == 1
  assert set(run.fields) == {'tokens', 'segments', 'positions', 'weights', 'prefix'}
  assert run.batch_shapes()['weights'].dtype == np.float32
  assert [t.task for t in run.transforms] == [True]


@pytest.mark.parametrize('pack', ['pad()', 'concat()', 'best_fit()'])
def test_an_epoch_has_every_token_once(pack, tmp_path):
  """Documents of 33 and 17 tokens: their last one stands where objectives look ahead to."""
  texts = [bytes(range(40, 72)).decode(), bytes(range(80, 96)).decode()]
  (tmp_path / 'two.txt').write_text('|'.join(texts))
  run = build.build(
    resolved(
      ('data.train', f'text(path={str(tmp_path / "two.txt")!r}, separator="|")'),
      ('data.valid', ''),
      ('data.pack', pack),
      ('data.length', '16'),
      ('batch_tokens', '16'),
    )
  )
  feed = feed_lib.Feed(run, tmp_path)
  rows = {'pad()': 5, 'concat()': 4, 'best_fit()': 4}[pack]
  found, given = collections.Counter(), feed.train(0)
  for _ in range(rows):
    batch = next(given)
    found.update(np.asarray(batch['tokens'])[np.asarray(batch['segments']) > 0].tolist())
  own, eos = run.tokenizer.extra, run.tokenizer.eos
  ends = found.pop(eos)
  text = {t: n for t, n in found.items() if t not in own}
  assert text == dict.fromkeys(b''.join(t.encode() for t in texts), 1)
  assert ends == 2 + 2 * rows, 'those of the documents, of inputs, and of targets'


@pytest.mark.parametrize(
  'change, words',
  [
    (('data.mask_documents', 'True'), 'config.data.transforms: ul2 makes one example'),
    (('data.tokenizer', 'bytes()'), 'config.data.transforms.*has 0 extra ids'),
    (('model.blocks.block.mixer', 'gqa(head_dim=32, window=8)'), 'cannot look at a prefix both'),
    (('model.blocks.block.mixer', 'deltanet(head_dim=32)'), 'cannot look at a prefix both'),
  ],
)
def test_runs_that_are_refused(change, words):
  with pytest.raises(ValueError, match=words):
    build.build(resolved(change))


def test_layout_is_what_rows_are():
  for form in ('encoder_decoder', 'prefix', 'causal'):
    part = make(f'ul2(form="{form}")', length=64)
    laid = fields.of(64, [('ul2', part)], ('source',))
    for short in (0, 40, 63, 64):
      out = part(row(64, short=short), 5)
      assert {k: (s.shape, s.dtype) for k, s in laid.items()} == {
        k: (np.shape(v), np.asarray(v).dtype) for k, v in out.items()
      }


def test_a_field_that_nobody_makes():
  with pytest.raises(ValueError, match='reads colour, which no transform makes'):
    fields.of(8, [], ('colour',))
  assert set(fields.of(8, [])) == {'tokens', 'segments', 'positions'}
  assert ul2_lib.SPANS[2] is None


# ---- prompts


@pytest.mark.parametrize('task', [0, 2, 3])
@pytest.mark.parametrize('form', ['encoder_decoder', 'prefix', 'causal'])
def test_a_prompt_is_the_inputs_of_a_row(form, task):
  part = make(f'ul2(form="{form}", weights={only(task)})', length=64)
  out = part(row(64), 3)
  if form == 'encoder_decoder':
    inputs = real(out, 'encoder_').tolist()
  else:
    inputs = out['tokens'][(out['segments'] > 0) & (out['weights'] == 0)].tolist()
  got = part.prompt(inputs[1:-1])
  assert got == part.prompt(inputs[:-1]), 'the mode may be said'
  assert got.joined == (task == 2)
  if form == 'encoder_decoder':
    assert got.source == tuple(inputs) and got.text == (out['tokens'][0],) and not got.prefix
  else:
    assert got.text == tuple(inputs) and got.source is None
    assert got.prefix == (out['prefix'].sum() if form == 'prefix' else 0)


def test_modes_of_prompts():
  part, fixed, none = make('ul2()'), make('ul2(mode="X")'), make('ul2(mode="")')
  extra, eos = part.tokenizer.extra, part.tokenizer.eos
  assert part.prompt([7, extra[3]]).text == (extra[0], 7, extra[3], eos), 'R for holes'
  assert part.prompt(part.encode('[X] a<extra_id_0>')).text == (extra[2], 97, extra[3], eos)
  assert part.prompt([part.tokenizer.bos, *part.encode('[X]a')[:1], 7]).text[0] == extra[2]
  assert fixed.prompt([7]).text[0] == extra[2]
  assert none.prompt([7]).text == (7, eos) and none.encode('[X]')[0] == ord('[')
  assert part.encode('[Q] a') == list(b'[Q] a') and part.encode('a [X]') == list(b'a [X]')


def test_marks():
  part = make()
  text = 'Thank you<extra_id_0>me to<extra_id_1>'
  ids = part.encode(text)
  assert [i for i in ids if i > 259] == list(part.tokenizer.extra[3:5])
  assert part.decode(ids) == text and part.decode([part.tokenizer.eos]) == ''


@pytest.mark.parametrize(
  'spec, text, words',
  [
    ('ul2()', '[S]', 'the prompt is empty'),
    ('ul2()', 'a<extra_id_1>', 'in order from <extra_id_0>'),
    ('ul2()', 'a<extra_id_0><extra_id_0>', 'each once'),
    (
      'ul2()',
      'a<extra_id_99>',
      'no row has <extra_id_99>; there are <extra_id_0> to <extra_id_84>',
    ),
    ('ul2(mode="X")', '[R] a', r'no row has the mode \[R\]'),
    (f'ul2(weights={only(0)})', 'a', 'no row was to be continued'),
    (f'ul2(weights={only(2)})', 'a<extra_id_0>', 'there are no sentinels'),
  ],
)
def test_prompts_that_no_row_is_like(spec, text, words):
  part = make(spec)
  with pytest.raises(ValueError, match=words) as e:
    part.prompt(part.encode(text))
  assert '\n' not in str(e.value)


def test_modes_that_no_row_has():
  part = make('ul2(mode="X")')
  for ids in ([part.tokenizer.extra[0], 7], [part.tokenizer.extra[2]] * 2 + [7]):
    with pytest.raises(ValueError, match=r'other modes than one of \[X\]'):
      part.prompt(ids)

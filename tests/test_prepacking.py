"""Several prompts in a row of the prefill: what the cache then holds of each is what it would hold
of the prompt alone.
"""

import jax
import numpy as np
import pytest

import _table
from lmjax import decode_checks
from lmjax import generate
from lmjax import padding
from lmjax import prompts as prompts_lib
from lmjax import registry

SIZES = (17, 3, 1, 9, 5, 12, 2, 4)
SHAPE = dict(length=64, width=32, blocks__block__mixer='gqa(head_dim=8, kv_heads=2)')
FULL = registry.make('cache', 'full()')


def prompts(sizes=SIZES, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(0, _table.VOCAB, n).tolist() for n in sizes]


def model(**how):
  how = SHAPE | how
  return _table.model(**how), jax.tree.map(lambda a: 2 * a, _table.model_params(**how))


def test_rows_are_few_and_no_text_is_cut():
  texts = prompts((5, 16, 0, 7, 9, 1, 3, 11))
  found = padding.packed(texts, 16, 8)
  assert found.tokens_RP.shape == (4, 16)
  assert np.count_nonzero(found.segments_RP) == sum(map(len, texts))
  for text, row, mark in zip(texts, found.rows_B, found.marks_B):
    own = found.segments_RP[row] == mark
    assert found.tokens_RP[row, own].tolist() == text
    assert found.positions_RP[row, own].tolist() == list(range(len(text)))
    places = np.flatnonzero(own)
    assert not len(text) or places[-1] - places[0] == len(text) - 1


def test_it_is_left_where_it_saves_nothing():
  assert padding.packed(prompts((16,) * 4), 16, 4) is None
  assert padding.packed(prompts((9,) * 4), 16, 4) is None
  assert padding.packed([[1]], 16, 1) is None


def slots(net, variables, texts, pack):
  asked = [prompts_lib.plain(t) for t in texts]
  given = generate.inputs(asked, 8, [], pack=pack)
  assert (given[-1] is not None) == pack
  return generate.prefill(generate.Fixed(net), variables, *given, kind=FULL, length=40)


@pytest.mark.parametrize('position', ['rope()', 'learned()', 'alibi()', 'none()'])
def test_the_cache_is_that_of_each_prompt_alone(position):
  net, variables = model(position=position)
  together, apart = (slots(net, variables, prompts(), pack) for pack in (True, False))
  np.testing.assert_array_equal(together.positions_R, [n - 1 for n in SIZES])
  np.testing.assert_array_equal(together.positions_R, apart.positions_R)
  (a,), (b,) = (
    jax.tree.leaves(s.cache, is_leaf=lambda c: hasattr(c, 'unpacked')) for s in (together, apart)
  )
  real = np.asarray(b.segments_BS) > 0
  np.testing.assert_array_equal(a.segments_BS, b.segments_BS)
  np.testing.assert_array_equal(a.written_B, b.written_B)
  np.testing.assert_array_equal(np.asarray(a.positions_BS)[real], np.asarray(b.positions_BS)[real])
  for x, y in ((a.k_BSHK, b.k_BSHK), (a.v_BSHK, b.v_BSHK)):
    _table.close(np.asarray(x)[real], np.asarray(y)[real], 1e-5)


@pytest.mark.parametrize(
  'how, rule',
  [
    (dict(), 'greedy()'),
    (dict(), 'top_k(k=5) | temperature(t=1.5)'),
    (dict(blocks__block__mixer='gqa(head_dim=8, window=4)'), 'greedy()'),
    (dict(position='learned()'), 'greedy()'),
  ],
  ids=str,
)
def test_the_same_is_written(how, rule, monkeypatch):
  net, variables = model(**how)
  write = lambda: generate.generate(net, variables, prompts(), max_tokens=12, rule=rule, seed=3)
  together = write()
  monkeypatch.setattr(padding, 'packed', lambda *_: None)
  for a, b in zip(together, write(), strict=True):
    assert a.tolist() == b.tolist()


def test_fewer_tokens_are_read():
  net, variables = model()
  texts = [prompts_lib.plain(t) for t in prompts((16, 3, 3, 3, 3, 3, 3, 3))]
  assert generate.inputs(texts, 8, [])[0].shape == (8, 16)
  assert generate.inputs(texts, 8, [], pack=True)[0].shape == (2, 16)


@pytest.mark.parametrize(
  'how, cache',
  [
    (dict(blocks__block__mixer='gqa(head_dim=8, window=4)'), 'window()'),
    (dict(blocks__block__mixer='deltanet(head_dim=8)'), 'full()'),
  ],
  ids=['a ring', 'a state'],
)
def test_what_cannot_be_taken_apart_is_read_apart(how, cache):
  net, variables = model(**how)
  assert decode_checks.can_pack(model()[0], FULL)
  assert not decode_checks.can_pack(net, registry.make('cache', cache))
  texts = prompts()
  got = generate.generate(net, variables, texts, max_tokens=5, cache=cache)
  for text, ids in zip(texts, got):
    alone = generate.generate(net, variables, [text], max_tokens=5, cache=cache)[0]
    assert alone.tolist() == ids.tolist()

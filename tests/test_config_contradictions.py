"""Settings that cannot go together are refused, and those that can are not."""

from hypothesis import given
from hypothesis import strategies as st
import pytest

from _mutations import examples
from _mutations import readable
from _mutations import settle
from lmjax import config
from lmjax import registry

SMALL = (('model.width', '32'), ('model.depth', '1'), ('data.length', '16'), ('batch_tokens', '64'))
COUNT = st.integers(1, 8)
SHARE = st.sampled_from((-1.0, -0.5, 0.0, 0.1, 0.999, 1.0, 2.0))


@st.composite
def divisions(draw):
  heads, kv = draw(st.none() | COUNT), draw(COUNT)  # None: 32 / 4
  fits = (8 if heads is None else heads) % kv == 0
  return [('model.mixer', f'gqa(head_dim=4, heads={heads}, kv_heads={kv})')], fits


@st.composite
def head_sizes(draw):
  size, pairs = draw(st.integers(1, 9)), draw(st.sampled_from(('half', 'interleaved')))
  fits = 32 % size == 0 and size > 1  # an odd head leaves its last coordinate as it is
  return [('model.mixer', f'gqa(head_dim={size})'), ('model.position.pairs', pairs)], fits


@st.composite
def warmups(draw):
  steps, warmup = draw(COUNT), draw(st.integers(0, 9))
  name = draw(st.sampled_from(registry.names('schedule')))
  return [('steps', str(steps)), ('schedule', f'{name}(warmup={warmup})')], (
    warmup < steps and (name != 'wsd' or warmup + max(1, int(0.2 * steps)) <= steps)
  )


@st.composite
def batches(draw):
  tokens, length, micro = draw(st.integers(1, 64)), draw(COUNT), draw(COUNT)
  pairs = [('batch_tokens', str(tokens)), ('data.length', str(length))]
  fits = tokens % length == 0 and tokens // length % micro == 0
  return [*pairs, ('micro_batches', str(micro))], fits


@st.composite
def vocabularies(draw):
  vocab = draw(st.integers(0, 520))
  return [('model.vocab', str(vocab))], vocab == 0 or vocab >= 260


@st.composite
def shares(draw):
  key = draw(st.sampled_from(('model.dropout', 'model.residual.dropout')))
  share = draw(SHARE)
  return [(key, repr(share))], 0 <= share < 1


@st.composite
def caps(draw):
  key = draw(st.sampled_from(('model.cap', 'model.mixer.cap')))
  cap = draw(st.sampled_from((-30.0, -1e-9, 0.0, 30.0)))
  return [(key, repr(cap))], cap > 0 or (cap == 0 and key == 'model.cap')


@st.composite
def meshes(draw):
  axis, n = draw(st.sampled_from(('replica', 'data', 'expert', 'tensor'))), draw(st.integers(-2, 6))
  # 4 rows; a table of 260 rows, 4 heads of 8, and 128 hidden units; width 32.
  fits = n in (-1, 1, 2, 4)
  mixer = ('model.mixer', 'gqa(head_dim=8)')
  return [mixer, (f'mesh.{axis}', str(n))], fits


@st.composite
def directions(draw):
  objective, causal = draw(st.sampled_from(('clm', 'mlm'))), draw(st.booleans())
  window = draw(st.sampled_from((None, 3)))
  mixer = f'gqa(head_dim=8, causal={causal}, window={window})'  # a window may look both ways
  return [('objective', f'{objective}()'), ('model.mixer', mixer)], (objective == 'clm') == causal


@st.composite
def masks(draw):
  specials = draw(st.booleans())
  mixer = ('model.mixer', 'gqa(head_dim=8, causal=False)')
  tokenizer = ('data.tokenizer', f'bytes(specials={specials})')
  return [('objective', 'mlm()'), mixer, tokenizer, ('data.eos', 'false')], specials


@st.composite
def names(draw):
  key, kind = draw(st.sampled_from([('eval.tasks', 'eval'), ('sample.rule', 'decoding')]))
  good = 'perplexity(path="x")' if kind == 'eval' else 'greedy() | top_k(k=3)'
  name, fits = draw(st.sampled_from([(good, True), ('lambad()', False), ('gqa()', False)]))
  return [(key, name)], fits


@pytest.mark.parametrize(
  'pairs, n',
  [
    *((divisions(), 15), (head_sizes(), 15), (warmups(), 20), (batches(), 25), (caps(), 8)),
    *((vocabularies(), 8), (shares(), 14), (meshes(), 20), (directions(), 8), (masks(), 2)),
    (names(), 6),
  ],
  ids=lambda x: str(x).partition('(')[0],
)
def test_what_contradicts_is_refused_and_nothing_else(pairs, n):
  seen = set()

  @examples(n)
  @given(pairs)
  def holds(drawn):
    changes, fits = drawn
    seen.add(fits)
    try:
      settle(config.load('quickstart', [*SMALL, *changes]))
    except ValueError as e:
      readable(e, *(k.split('.')[-1] for k, _ in changes))
      assert not fits, str(e)
    else:
      assert fits

  holds()
  assert seen == {True, False}

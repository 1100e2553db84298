"""The language model that evals see: its numbers are those of one plain forward pass, whatever the
order, batch and windows.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _meshes
import _table
from lmjax import kinds
from lmjax import lm as lm_lib
from lmjax.nn import embedding

LENGTH, VOCAB = 16, 12


class Letters:
  """a-h are 0 ... 7, a space 8, 'ab' is one token 9, bos 10, eos 11."""

  vocab_size, pad, mask = VOCAB, None, None

  def __init__(self, bos=10, eos=11):
    self.bos, self.eos = bos, eos

  def encode(self, text):
    out = []
    for c in text:
      if c == 'b' and out and out[-1] == 0:
        out[-1] = 9
      else:
        out.append('abcdefgh '.index(c))
    return np.array(out, np.int32)

  def decode(self, ids):
    return ''.join(
      {9: 'ab', 10: '', 11: ''}.get(int(i)) if int(i) > 8 else 'abcdefgh '[int(i)] for i in ids
    )


@functools.cache
def instance(**how):
  how = dict(length=LENGTH, vocab=VOCAB, **how)
  return _table.model(**how), jax.tree.map(lambda a: 0.5 * a, _table.model_params(**how))


def make(tokenizer=None, *, how=(), **settings):
  return lm_lib.LM(
    *instance(**dict(how)), tokenizer or Letters(), **dict(dict(length=LENGTH), **settings)
  )


@functools.cache
def compiled():
  net, variables = instance()
  return jax.jit(
    lambda x, ctx: jax.nn.log_softmax(embedding.logits(net.apply(variables, x, ctx)), axis=-1)
  )


def plain(stream):
  """Log-probability over the vocabulary after each token of a stream of at most LENGTH tokens:
  (tokens, V), float64.
  """
  tokens = np.zeros((1, LENGTH), np.int32)
  tokens[0, : len(stream)] = stream
  segments = (np.arange(LENGTH) < len(stream)).astype(np.int32)[None]
  return np.asarray(compiled()(tokens, kinds.Ctx(jnp.arange(LENGTH)[None], segments)), np.float64)[
    0, : len(stream)
  ]


def expected(stream, scored):
  """Log-probabilities of the last `scored` tokens, each after at most LENGTH tokens, by one pass a
  token.
  """
  return np.array(
    [
      plain(stream[max(0, i - LENGTH) : i])[-1, stream[i]]
      for i in range(len(stream) - scored, len(stream))
    ]
  )


def random_pairs(n, seed=0, longest=10):
  rng = np.random.default_rng(seed)
  draw = lambda low: [int(i) for i in rng.integers(0, 9, rng.integers(low, longest))]
  return [(draw(0), draw(1)) for _ in range(n)]


def test_tokens_have_the_log_probabilities_of_the_forward_pass():
  pairs = [p for p in random_pairs(20) if len(p[0]) + len(p[1]) <= LENGTH]
  assert any(not c for c, _ in pairs)
  for (context, continuation), (logp, right) in zip(pairs, make().loglikelihood_tokens(pairs)):
    stream = (context or [10]) + continuation
    assert logp.dtype == np.float64
    np.testing.assert_allclose(logp, expected(stream, len(continuation)), atol=1e-5)
    table = plain(stream[:-1])[-len(continuation) :]
    assert right.tolist() == (table.argmax(axis=-1) == continuation).tolist()


def test_neither_order_nor_batch_size_matters():
  pairs = random_pairs(33, longest=30)
  first = make().loglikelihood_tokens(pairs)
  order = np.random.default_rng(1).permutation(len(pairs))
  for lm in (make(batch_tokens=16), make(batch_tokens=100), make()):
    again = lm.loglikelihood_tokens([pairs[i] for i in order])
    for i, (logp, right) in zip(order, again):
      np.testing.assert_allclose(logp, first[i][0], atol=1e-5)
      assert right.tolist() == first[i][1].tolist()


def test_contexts_are_cut_from_the_left():
  context, continuation = [1, 2, 3] * 20, [4, 5]
  got = make().loglikelihood_tokens([(context, continuation)])[0][0]
  whole = context + continuation
  table = plain(whole[-LENGTH - 1 : -1])
  np.testing.assert_allclose(got, [table[-2, 4], table[-1, 5]], atol=1e-5)


@pytest.mark.parametrize('n', [LENGTH, LENGTH + 1, 40])
def test_long_continuations_keep_half_the_length_as_context(n):
  rng = np.random.default_rng(2)
  context, continuation = [1, 2, 3], [int(i) for i in rng.integers(0, 9, n)]
  got = make().loglikelihood_tokens([(context, continuation)])[0][0]
  stream, piece = context + continuation, n if n <= LENGTH else LENGTH // 2
  want = []
  for start in range(3, len(stream), piece):
    stop = min(start + piece, len(stream))
    window = stream[max(0, stop - LENGTH - 1) : stop]
    table = plain(window[:-1])
    want += [table[i - 1, window[i]] for i in range(len(window) - (stop - start), len(window))]
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_pair_is_encoded_as_one_text():
  lm = make()
  assert lm.encode_pair('c a', 'b') == (
    [2, 8],
    [9],
  )  # the border lies inside 'ab', which belongs to the continuation
  assert lm.encode_pair('c ', 'de') == ([2], [8, 3, 4])  # the space moves to the continuation
  assert lm.encode_pair('c', ' de') == ([2], [8, 3, 4])
  assert lm.encode_pair('', 'de') == ([], [3, 4])
  assert lm.encode_pair('   ', 'de') == ([], [8, 8, 8, 3, 4])
  with pytest.raises(ValueError, match='empty'):
    lm.encode_pair('abc', '')


def test_the_sum_is_that_of_the_whole_less_that_of_the_context():
  lm = make()
  [(pair, _), (whole, _), (context, _)] = lm.loglikelihood(
    [('cde', ' fgh'), ('', 'cde fgh'), ('', 'cde')]
  )
  bos = make(bos=True).loglikelihood([('cde', ' fgh')])[0][0]
  np.testing.assert_allclose(bos, whole - context, atol=1e-5)
  assert abs(pair - bos) > 1e-3  # without bos the context begins with its own first token


def test_greedy_is_whether_decoding_gives_it():
  lm = make()
  text = lm.generate(['cde'], 4)[0]
  assert lm.loglikelihood([('cde', text)])[0][1]
  wrong = 'd' if text[-1] != 'd' else 'e'
  assert not lm.loglikelihood([('cde', text[:-1] + wrong)])[0][1]
  assert not lm.loglikelihood([('cde', wrong + text[1:])])[0][1] or text[0] == wrong


@pytest.mark.parametrize(
  'tokenizer, name, prefix',
  [(Letters(), 'bos', 10), (Letters(bos=None), 'eos', 11), (Letters(None, None), 'none', None)],
)
def test_the_first_token_follows_the_prefix(tokenizer, name, prefix):
  lm = make(tokenizer)
  assert lm.protocol == dict(length=LENGTH, prefix=name)
  [(logp, _)] = lm.loglikelihood_tokens([([], [3, 4, 5])])
  stream = [3, 4, 5] if prefix is None else [prefix, 3, 4, 5]
  np.testing.assert_allclose(logp, expected(stream, len(stream) - 1), atol=1e-5)
  np.testing.assert_allclose(lm.rolling([3, 4, 5]), logp, atol=1e-5)
  if prefix is None:
    with pytest.raises(ValueError, match='neither bos nor eos'):
      lm.loglikelihood_tokens([([], [3])])
    with pytest.raises(ValueError, match='neither'):
      make(tokenizer, bos=True)


@pytest.mark.parametrize('length', [1, 2, 5, 8])
def test_windows_score_each_token_once(length):
  for n in range(1, 30):
    stream = np.arange(100, 100 + n)
    for stride in range(1, length + 1):
      windows = lm_lib.rolling_windows(0, stream, length, stride)
      assert [int(t) for w in windows for t in w.tokens[-w.scored :]] == stream[1:].tolist()
      assert all(
        2 <= len(w.tokens) <= length + 1 and 1 <= w.scored < len(w.tokens) for w in windows
      )
      assert all(w.tokens[0] == 100 + k * stride for k, w in enumerate(windows))
      assert all(w.scored == stride for w in windows[1:-1])


@pytest.mark.parametrize('stride', [None, 16, 4, 1])
def test_rolling_has_the_log_probabilities_of_its_windows(stride):
  ids = [int(i) for i in np.random.default_rng(3).integers(0, 9, 45)]
  stream, step, want, done, start = [10] + ids, stride or LENGTH, [], 1, 0
  while done < len(stream):
    table = plain(stream[start : start + LENGTH])
    stop = min(start + LENGTH + 1, len(stream))
    want += [table[i - 1 - start, stream[i]] for i in range(done, stop)]
    done, start = stop, start + step
  got = make().rolling(ids, stride)
  assert got.dtype == np.float64
  np.testing.assert_allclose(got, want, atol=1e-5)
  if stride == 1:
    np.testing.assert_allclose(got, expected(stream, len(ids)), atol=1e-5)


def test_a_uniform_model_gives_the_logarithm_of_the_vocabulary():
  net, variables = instance()
  flat = jax.tree.map(jnp.zeros_like, variables)
  lm = lm_lib.LM(net, flat, Letters(), length=LENGTH)
  np.testing.assert_allclose(lm.rolling([1, 2, 3, 4]), -np.log(VOCAB), atol=1e-6)
  [(_, right)] = lm.loglikelihood_tokens([([1], [0, 5])])
  assert right.tolist() == [True, False]  # among equals the first id is the greedy one


@pytest.mark.parametrize('mode', ['auto', 'explicit'])
def test_a_mesh_changes_nothing(mode):
  ids = [1, 2, 3, 4, 5] * 7
  want = make().rolling(ids)
  with jax.set_mesh(_meshes.make(mode, data=4, tensor=2)):
    np.testing.assert_allclose(make().rolling(ids), want, atol=1e-5)
    np.testing.assert_allclose(make().rolling(ids[:5]), want[:5], atol=1e-5)


def test_few_programs_are_compiled():
  lm = make(length=LENGTH, batch_tokens=256)
  before = lm_lib.score._cache_size()
  for seed in range(4):
    lm.loglikelihood_tokens(random_pairs(40, seed=seed, longest=14))
  assert lm_lib.score._cache_size() - before <= 1


def test_generated_text_ends_before_the_stop_and_prompts_are_cut():
  lm = make()
  text = lm.generate(['cde'], 8)[0]
  assert 1 <= len(text)
  assert lm.generate(['cde'], 8, stop=[text[2:4]])[0] == text[: text.index(text[2:4])]
  prompts = ['cde', 'c' * 20 + 'dh' * 10, 'f']
  together = lm.generate(prompts, 8)
  assert together == [lm.generate([p], 8)[0] for p in prompts]
  assert together[1] == lm.generate(['dh' * 4], 8)[0] != lm.generate(['c' * 8], 8)[0]
  assert lm_lib.cut('one two', ['two', 'ne']) == 'o' and lm_lib.cut('one', ['x', '']) == 'one'


def test_what_has_no_likelihood_is_refused():
  with pytest.raises(kinds.Unsupported, match='looks ahead'):
    make(how=dict(blocks__block__mixer='gqa(head_dim=8, causal=False)').items()).rolling([1, 2])
  with pytest.raises(ValueError, match='length=1'):
    make(length=1)
  for stride in (0, LENGTH + 1):
    with pytest.raises(ValueError, match='stride'):
      make().rolling([1, 2], stride)
  with pytest.raises(ValueError, match='max_tokens'):
    make().generate(['c'], LENGTH)

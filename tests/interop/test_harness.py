"""Requests of lm-evaluation-harness without it: objects with `args` go in, results come back in
their order; what is scored after what is compared with plain forward passes.
"""

import collections
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _hf_folders as _tiny
import _table
from lmjax import generate
from lmjax import kinds
from lmjax import lm as lm_lib
from lmjax import restore
from lmjax.interop import __main__ as command
from lmjax.interop import gen_kwargs
from lmjax.interop import harness
from lmjax.nn import embedding

LENGTH, VOCAB, BOS = 16, 12, 10
Instance = collections.namedtuple('Instance', 'args')


class Letters:
  """a ... j are 0 ... 9, bos 10, eos 11."""

  vocab_size, bos, eos, pad, mask = VOCAB, BOS, 11, None, None

  def encode(self, text):
    return np.array(['abcdefghij'.index(c) for c in text], np.int32)

  def decode(self, ids):
    return ''.join('abcdefghij'[int(i)] for i in ids if i < 10)


@pytest.fixture(scope='module')
def net():
  how = dict(length=LENGTH, vocab=VOCAB)
  return _table.model(**how), _table.model_params(**how)


@pytest.fixture(scope='module')
def asked(net):
  return harness.Requests(lm_lib.LM(*net, Letters(), length=LENGTH))


@pytest.fixture(scope='module')
def plain(net):
  """Log-probabilities (V,) after at most LENGTH tokens, by a pass of their own."""

  @jax.jit
  def one(tokens, segments):
    out = net[0].apply(net[1], tokens, kinds.Ctx(jnp.arange(LENGTH)[None], segments))
    return jax.nn.log_softmax(embedding.logits(out), axis=-1)

  def after(stream):
    n = len(stream)
    assert 0 < n <= LENGTH
    tokens = np.zeros((1, LENGTH), np.int32)
    tokens[0, :n] = stream
    found = one(tokens, (np.arange(LENGTH) < n).astype(np.int32)[None])[0, n - 1]
    return np.asarray(found, np.float64)

  return after


def instances(*args):
  return [Instance(a) for a in args]


def ids(text):
  return Letters().encode(text).tolist()


def test_likelihoods_come_in_order_after_what_fits(asked, plain):
  pairs = [('abcdefghij' * 3, 'cd'), ('', 'a'), ('ab', 'jihg'), ('a', 'b')]
  best = 'abcdefghij'[int(plain(ids('abc'))[:10].argmax())]
  found = asked.loglikelihood(instances(*pairs, ('abc', best)))
  for (context, continuation), (logp, _) in zip(pairs, found):
    stream, want = (ids(context) or [BOS]) + ids(continuation), 0.0
    start = max(0, len(stream) - LENGTH - 1)  # one window, cut from the left
    for i in range(len(stream) - len(continuation), len(stream)):
      want += plain(stream[start:i])[stream[i]]
    np.testing.assert_allclose(logp, want, atol=1e-4)
  greedy = [plain(ids('abc')).argmax() < 10, False]
  assert [found[4][1], found[0][1]] == greedy


@pytest.mark.parametrize('n', [1, LENGTH - 1, LENGTH, LENGTH + 1, 2 * LENGTH + 5])
def test_rolling_scores_each_token_once_and_the_last_with_all_its_context(asked, plain, n):
  text = ''.join(np.random.default_rng(n).choice(list('abcdefghij'), n))
  stream, want = [BOS, *ids(text)], 0.0
  for start in range(1, n + 1, LENGTH):
    stop = min(start + LENGTH, n + 1)
    first = max(0, stop - LENGTH - 1)
    want += sum(plain(stream[first:i])[stream[i]] for i in range(start, stop))
  got = asked.loglikelihood_rolling(instances((text,), ('',), ('ab',)))
  np.testing.assert_allclose(got[0], want, atol=1e-4)
  assert got[1] == 0 and got[2] < 0


def greedy(plain, context, n):
  out = (ids(context) or [BOS])[-(LENGTH - n) :]
  for _ in range(n):
    out.append(int(plain(out).argmax()))
    if out[-1] == Letters.eos:
      break
  return Letters().decode(out[-n:] if out[-1] != Letters.eos else out[len(out) - n : -1])


def test_text_is_written_in_groups_of_settings_and_ends_at_a_stop(asked, plain):
  long = 'abcdefghij' * 3
  whole = greedy(plain, 'abc', 6)
  stop = whole[2]
  settings = [
    ('abc', dict(until=[], max_gen_toks=6)),
    ('ij', dict(until=[], max_gen_toks=6)),
    (long, dict(until=[], max_gen_toks=5)),
    ('abc', dict(until=['zz', stop], max_gen_toks=6)),
    ('', dict(until=stop, max_new_tokens=6, do_sample=False, temperature=0.7, top_p=0.9)),
  ]
  got = asked.generate_until(instances(*settings))
  assert got[0] == whole and len(whole) > 3
  assert got[1] == greedy(plain, 'ij', 6) != whole
  assert got[2] == greedy(plain, long, 5)
  assert got[3] == whole[: whole.index(stop)]
  assert got[4] == greedy(plain, '', 6).split(stop)[0]


@pytest.mark.parametrize(
  'given, words',
  [
    (dict(max_gen_toks=LENGTH), f'max_gen_toks={LENGTH}, and the model sees {LENGTH} tokens'),
    ({}, 'max_gen_toks=256'),
    (dict(max_gen_toks=4, do_sample=True, temperature=0), 'do_sample=True with temperature=0'),
    (dict(max_gen_toks=4, do_sample='yes'), "do_sample='yes': True or False"),
    (dict(max_gen_toks=4, do_sample=True, top_k=-1), 'top_k=-1: .*a positive number'),
    (dict(max_gen_toks=4, do_sample=True, top_k=2.5), 'top_k=2.5: a whole number'),
    (dict(max_gen_toks=4, do_sample=True, top_p='most'), "top_p='most': a number"),
    (dict(max_gen_toks=4, temperature=0.7, top_p=1.5), 'top_p=1.5: .*at most 1'),
    (dict(max_gen_toks=4, seed=-1), 'seed=-1: from 0'),
    (dict(max_gen_toks=4, num_beams=3), 'num_beams: not known'),
    (dict(max_gen_toks=4, until=5), 'until=5: a text, or a list of texts'),
    (dict(max_gen_toks=4, until=['a', 1]), 'a text, or a list of texts'),
    (dict(max_gen_toks=4, do_sample=True, typical_p=0.9), 'typical_p: not known'),
  ],
)
def test_settings_that_are_not_honoured_are_refused(asked, given, words):
  with pytest.raises(ValueError, match=words):
    asked.generate_until(instances(('abc', given)))


@pytest.mark.parametrize(
  'given, rule',
  [
    (dict(do_sample=True), 'temperature()'),
    (dict(temperature=0.7), 'temperature(t=0.7)'),
    (dict(temperature=0.7, do_sample=False, top_k=3), 'greedy()'),
    (dict(temperature=0.0, top_p=0.9), 'greedy()'),
    (dict(do_sample=True, temperature=None, top_k=0, top_p=1.0, min_p=0), 'temperature()'),
    (
      dict(min_p=0.1, top_p=0.5, top_k=4, temperature=2, do_sample=True),
      'temperature(t=2.0) | top_k(k=4) | top_p(p=0.5) | min_p(p=0.1)',
    ),
  ],
)
def test_settings_are_a_chain_of_decoding_parts(given, rule):
  found = gen_kwargs.read(dict(given, max_tokens=4, until='a', seed=3), 16)
  assert found == (4, ('a',), rule, 0 if rule == 'greedy()' else 3)


def test_samples_know_neither_their_batch_nor_its_order(net):
  """Each is what its prompt gives alone, and a prompt asked again gives another text."""
  how = dict(max_gen_toks=8, do_sample=True, temperature=12.0, top_k=9, seed=5)
  contexts = ['abc', 'j', 'ab' * 7, 'abc', 'ij', 'abc', 'abc']
  rows = []
  for batch_tokens in (2 * LENGTH, 64 * LENGTH):
    asked = harness.Requests(
      lm_lib.LM(*net, Letters(), length=LENGTH, prefix=BOS, batch_tokens=batch_tokens)
    )
    rows += [asked.generate_until(instances(*((c, how) for c in contexts)))]
    back = asked.generate_until(instances(*((c, how) for c in contexts[::-1])))[::-1]
    assert sorted(back) == sorted(rows[-1]) and back[1:3] == rows[-1][1:3]
  assert rows[0] == rows[1]
  assert len({rows[0][i] for i in (0, 3, 5, 6)}) == 4
  for i in (1, 2, 4):
    [alone] = generate.generate(
      *net,
      [ids(contexts[i])[-8:]],
      max_tokens=8,
      rule='temperature(t=12.0) | top_k(k=9)',
      seed=5,
      eos=Letters.eos,
    )
    assert rows[0][i] == Letters().decode(alone)
  other = asked.generate_until(instances(*((c, how | dict(seed=6)) for c in contexts)))
  assert other != rows[1]
  one = dict(how, top_k=1, until=[])
  assert asked.generate_until(instances(('abc', one))) == asked.generate_until(
    instances(('abc', dict(max_gen_toks=8)))
  )


def test_a_model_that_looks_ahead_is_refused():
  how = dict(length=LENGTH, vocab=VOCAB, blocks__block__mixer='gqa(head_dim=8, causal=False)')
  with pytest.raises(kinds.Unsupported, match='looks ahead'):
    harness.Requests(lm_lib.LM(_table.model(**how), {}, Letters(), length=LENGTH))


@pytest.fixture(scope='module')
def run_dir(tmp_path_factory):
  at = tmp_path_factory.mktemp('harness')
  _tiny.folder(at / 'in')
  assert command.main(['import', str(at / 'in'), f'--out={at / "run"}', '--tokenizer=bytes()']) == 0
  return at / 'run'


def test_a_text_begins_with_what_began_texts_in_training(run_dir):
  run, params, vars, _ = restore.load(run_dir)
  made = lambda **how: harness.language_model(run, params, vars, **how)
  assert made().prefix == 257  # rows ran across documents, which eos divided
  assert made(prefix='bos').prefix == 256
  run.config['data']['mask_documents'] = True  # nothing began them
  assert made().prefix == 256


def test_a_tokenizer_without_such_a_token_is_refused(tmp_path):
  _tiny.folder(tmp_path / 'in')
  to = tmp_path / 'run'
  flags = ['import', str(tmp_path / 'in'), f'--out={to}', '--tokenizer=bytes(specials=False)']
  assert command.main(flags) == 0
  run, params, vars, _ = restore.load(to)
  with pytest.raises(ValueError, match='neither a bos nor an eos'):
    harness.language_model(run, params, vars)
  with pytest.raises(ValueError, match='--prefix=bos: .* has no bos token'):
    harness.language_model(run, params, vars, 'bos')


def test_without_the_library_one_sentence_says_so(run_dir, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'lm_eval', None)
  assert command.main(['lm_eval', str(run_dir), '--tasks=lambada_openai']) == 2
  assert capsys.readouterr().err == (
    "lmjax: lm-evaluation-harness needs the module lm_eval: pip install 'lmjax[lm_eval]'\n"
  )


@pytest.mark.parametrize('value', ['0', '-1', '1.5', 'all'])
def test_a_limit_is_rows_or_a_share(value, capsys):
  assert command.limit('3') == 3 and command.limit('0.5') == 0.5
  with pytest.raises(SystemExit):
    command.parser().parse_args(['lm_eval', 'run', '--tasks=a', f'--limit={value}'])
  assert 'argument --limit' in capsys.readouterr().err

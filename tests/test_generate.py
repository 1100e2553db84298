"""Generation: the same tokens as without a cache, alone as in a batch, ended by eos, refused where
positions end.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _meshes
import _table
from lmjax import decode_loop
from lmjax import generate
from lmjax import padding
from lmjax import prompts as prompts_lib
from lmjax import kinds
from lmjax import specs
from lmjax.decoding import _base
from lmjax.nn import embedding

PROMPTS = [[1, 2, 3], [4], list(range(11)) + [3, 1, 4, 1, 5, 9], [6, 6]]
SHAPE = dict(length=64, width=32)
VARIANTS = {
  'rope': (dict(), 'full()'),
  'learned': (dict(position='learned()'), 'full()'),
  'window': (dict(blocks__block__mixer='gqa(head_dim=8, window=4)'), 'full()'),
  'ring': (dict(blocks__block__mixer='gqa(head_dim=8, window=4)'), 'window()'),
}


@functools.cache
def instance(**how):
  """A model whose greedy text is not constant: its embedding is scaled up."""
  net = _table.model(**SHAPE, **how)
  variables = _table.model_params(**SHAPE, **how)
  return net, jax.tree.map(lambda a: 2 * a, variables)


@functools.cache
def forward(**how):
  net, variables = instance(**how)

  def f(tokens, segments):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return embedding.logits(net.apply(variables, tokens, kinds.Ctx(positions, segments)))

  return jax.jit(f)


def naive(prompt, n, **how):
  """Greedy decoding by a whole forward pass for every token, padded on the right."""
  ids = list(prompt)
  for _ in range(n):
    tokens = np.zeros((1, 64), np.int32)
    tokens[0, : len(ids)] = ids
    logits = forward(**how)(tokens, (np.arange(64) < len(ids)).astype(np.int32)[None])
    ids.append(int(jnp.argmax(logits[0, len(ids) - 1])))
  return ids[len(prompt) :]


@pytest.mark.parametrize('variant', VARIANTS)
def test_greedy_is_the_argmax_of_the_full_forward(variant):
  how, cache = VARIANTS[variant]
  got = generate.generate(*instance(**how), PROMPTS, max_tokens=20, cache=cache)
  assert [len(g) for g in got] == [20] * len(PROMPTS)
  assert len({t for g in got for t in g.tolist()}) > 3
  for g, p in zip(got, PROMPTS):
    assert g.tolist() == naive(p, 20, **how)


@pytest.mark.parametrize(
  'rule', ['greedy()', 'temperature(t=1.3)', 'top_p(p=0.8) | temperature(t=0.9)']
)
def test_a_row_alone_is_the_row_in_a_batch(rule):
  net, variables = instance()
  together = generate.generate(net, variables, PROMPTS, max_tokens=20, rule=rule, seed=3)
  shuffled = generate.generate(net, variables, PROMPTS[::-1], max_tokens=20, rule=rule, seed=3)[
    ::-1
  ]
  for i, p in enumerate(PROMPTS):
    alone = generate.generate(net, variables, [p], max_tokens=20, rule=rule, seed=3)[0]
    assert alone.tolist() == together[i].tolist() == shuffled[i].tolist()


def test_logits_of_a_padded_row_are_those_of_the_row_alone():
  net, variables = instance()
  run = jax.jit(lambda x, ctx: embedding.logits(net.apply(variables, x, ctx))[:, -1])

  def last(prompts, columns):
    tokens, segments, positions = padding.left_padded(prompts, columns, len(prompts))
    return np.asarray(
      run(jnp.asarray(tokens), kinds.Ctx(jnp.asarray(positions), jnp.asarray(segments)))
    )

  together = last(PROMPTS, 32)
  for p, row in zip(PROMPTS, together):
    _table.close(row, last([p], len(p))[0])


def test_samples_depend_on_seed_and_on_repetition_and_repeat_exactly():
  net, variables = instance()
  ask = lambda seed: [
    g.tolist()
    for g in generate.generate(
      net, variables, [[1, 2], [1, 2]], max_tokens=20, rule='temperature(t=9.0)', seed=seed
    )
  ]
  first, again, other = ask(0), ask(0), ask(1)
  assert first == again
  assert first[0] != first[1] and first[0] != other[0]


def test_the_first_token_has_the_models_distribution():
  """Chi-square over 1024 equal prompts: 10 degrees of freedom stay below 29.6 in all but one of a
  thousand tries.
  """
  net, variables = instance()
  n, prompt = 1024, [1, 2, 3]
  got = generate.generate(net, variables, [prompt] * n, max_tokens=1, rule='temperature(t=4.0)')
  tokens = np.zeros((1, 64), np.int32)
  tokens[0, :3] = prompt
  logits = (
    np.asarray(forward()(tokens, (np.arange(64) < 3).astype(np.int32)[None]), np.float64)[0, 2] / 4
  )
  p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
  counts = np.bincount([int(g[0]) for g in got], minlength=_table.VOCAB)
  assert np.sum((counts - n * p) ** 2 / (n * p)) < 29.6


@pytest.mark.parametrize('mode', ['auto', 'explicit'])
@pytest.mark.parametrize('n', [1, 4])
def test_a_mesh_changes_nothing(mode, n):
  """One prompt is fewer than the devices that share a batch."""
  net, variables = instance()
  ask = lambda: [
    g.tolist()
    for g in generate.generate(net, variables, PROMPTS[:n], max_tokens=12, rule='top_p(p=0.9)')
  ]
  want = ask()
  with jax.set_mesh(_meshes.make(mode, data=4, tensor=2)):
    assert ask() == want


def test_eos_ends_its_row_alone():
  net, variables = instance()
  plain = [g.tolist() for g in generate.generate(net, variables, PROMPTS, max_tokens=20)]
  eos = plain[0][7]
  ended = [g.tolist() for g in generate.generate(net, variables, PROMPTS, max_tokens=20, eos=eos)]
  for a, b in zip(plain, ended):
    assert b == (a[: a.index(eos)] if eos in a else a)
  assert len({len(b) for b in ended}) > 1


def test_the_loop_stops_when_all_rows_have_ended():
  """The cache tells how many tokens were fed."""
  net, variables = instance()
  first = generate.generate(net, variables, [[1, 2, 3]], max_tokens=1)[0][0]
  kind = generate.registry.make('cache', 'full()')
  slot = generate.prefill(
    generate.Fixed(net), variables, *padding.left_padded([[1, 2]], 16, 1), kind=kind, length=80
  )
  assert slot[1].tolist() == [2]
  out, ((_, positions, _),) = generate.decode(
    (generate.Fixed(net),),
    (variables,),
    (slot,),
    _base.Start(np.array([[3]], np.int32), np.int32(first), 64),
    None,
    generate.row_keys([[1, 2, 3]], 0),
    np.array([False]),
    50,
    rule='greedy()',
  )
  assert positions.tolist() == [3]
  texts = np.asarray(out.texts_BKT)
  assert texts.shape == (1, 1, 64) and texts[0, 0, 0] == first and (texts[0, 0, 1:] == -1).all()
  assert out.scores_BK is None and out.steps_B.tolist() == [1]


def test_lengths_within_a_bucket_share_one_program():
  net, variables = instance()
  ask = lambda prompts, n: generate.generate(net, variables, prompts, max_tokens=n)
  ask(PROMPTS[:1], 5)
  before = generate.prefill._cache_size(), generate.decode._cache_size()
  ask([[5] * 9], 3)
  ask([[5] * 17], 60)
  assert (generate.prefill._cache_size(), generate.decode._cache_size()) == before


@pytest.mark.parametrize(
  'prompts, n, words',
  [
    ([[1], []], 4, 'prompt 1 is empty'),
    ([[_table.VOCAB]], 4, 'outside 0 ... 10'),
    ([[-1]], 4, 'outside'),
    ([[1]], 0, 'max_tokens=0'),
    ([[1] * 70], 1, '70 tokens.*64'),
    ([[1] * 60], 6, 'at most 5'),
  ],
)
def test_what_cannot_be_generated_is_refused(prompts, n, words):
  with pytest.raises(ValueError, match=words) as e:
    generate.generate(*instance(position='learned()'), prompts, max_tokens=n)
  assert '\n' not in str(e.value)


def test_positions_can_be_used_to_the_last():
  how = dict(position='learned()')
  got = generate.generate(*instance(**how), [[1] * 60], max_tokens=5)
  assert got[0].tolist()[:4] == naive([1] * 60, 4, **how) and len(got[0]) == 5
  assert (
    len(generate.generate(*instance(), [[1] * 60], max_tokens=9)[0]) == 9
  )  # rotated positions have no end


def test_a_rule_or_cache_that_does_not_exist_is_refused():
  with pytest.raises(specs.SpecError, match='top_p'):
    generate.generate(*instance(), [[1]], max_tokens=3, rule='topp()')
  with pytest.raises(specs.SpecError, match='window'):
    generate.generate(*instance(), [[1]], max_tokens=3, cache='windows()')
  with pytest.raises(kinds.Unsupported, match='window'):
    generate.generate(*instance(), [[1]], max_tokens=3, cache='window()')


class Letters:
  """Ids 0 ... 7 are the letters a ... h; the first letter of a text is written large, as if texts
  were treated apart.
  """

  vocab_size, bos, eos, pad, mask = _table.VOCAB, 8, 9, 10, None

  def encode(self, text):
    return np.array(['abcdefgh'.index(c) for c in text.lower()], np.int32)

  def decode(self, ids):
    return ''.join('abcdefgh'[i] for i in ids if i < 8).capitalize()


def run(position, bos):
  net, _ = instance(position=position)
  return types.SimpleNamespace(
    architecture=net, tokenizer=Letters(), config={'data': {'bos': bos}}, transforms=()
  )


def test_sample_text_adds_to_the_prompt_and_keeps_within_the_positions():
  for position in ('rope()', 'learned()'):
    variables = instance(position=position)[1]
    text = generate.sample_text(
      run(position, False), variables, 'abc' * 20, max_tokens=40, rule='top_k(k=5)', seed=1
    )
    assert text and text == text.lower()
  assert (
    generate.sample_text(
      run('rope()', False), instance(position='rope()')[1], '', max_tokens=5, rule='greedy()'
    )
    is not None
  )
  plain = types.SimpleNamespace(bos=None, eos=None, encode=lambda t: np.zeros(0, np.int32))
  with pytest.raises(ValueError, match='empty'):
    prompts_lib.prompt_ids(plain, '', False)


def test_a_prompt_begins_as_documents_do():
  assert prompts_lib.prompt_ids(Letters(), 'ab', True) == [8, 0, 1]
  assert prompts_lib.prompt_ids(Letters(), 'ab', False) == [0, 1]
  assert prompts_lib.prompt_ids(Letters(), '', False) == [8]


@pytest.mark.parametrize(
  'new, eos, limit, want, count, ended',
  [
    ([5, 6, 7], -1, 9, [1, 2, 5, 6, 7, -1], 5, False),
    ([5, 6, -1], -1, 9, [1, 2, 5, 6, -1, -1], 4, False),
    ([5, 6, 7], 6, 9, [1, 2, 5, 6, -1, -1], 4, True),
    ([6, 6, 7], 6, 9, [1, 2, 6, -1, -1, -1], 3, True),
    ([5, 6, 7], 6, 3, [1, 2, 5, -1, -1, -1], 3, True),
    ([5, 6, 7], -1, 5, [1, 2, 5, 6, 7, -1], 5, True),
    ([-1, -1, -1], -1, 9, [1, 2, -1, -1, -1, -1], 2, False),
  ],
)
def test_what_a_step_adds(new, eos, limit, want, count, ended):
  """Of several tokens at once: up to eos, up to the limit, and another row's number is its own."""
  out = np.array([[1, 2, -1, -1, -1, -1], [3, -1, -1, -1, -1, -1]], np.int32)
  got, counts, done = decode_loop.write(
    jnp.asarray(out), jnp.int32([2, 1]), jnp.int32([new, [4, -1, -1]]), eos, limit
  )
  assert got.tolist() == [want, [3, 4, -1, -1, -1, -1]] and counts.tolist() == [count, 2]
  assert done.tolist() == [ended, False]


class Other(Letters):
  def __init__(self, mark):
    self.mark = mark

  def fingerprint(self):
    return self.mark


def test_models_that_decode_together_have_one_tokenizer():
  ours, theirs = run('rope()', False), run('rope()', False)
  ours.tokenizer, theirs.tokenizer = Other('a'), Other('b')
  for r, name in ((ours, 'letters()'), (theirs, 'bytes()')):
    r.config['data']['tokenizer'] = name
  how = dict(max_tokens=4, rule='contrastive_decoding(beam=1)')
  with pytest.raises(ValueError, match=r'letters\(\) and bytes\(\) differ') as e:
    generate.sample_texts(ours, {}, ['abc'], others=[(theirs, {})], **how)
  assert '\n' not in str(e.value)


def test_text_of_two_models_and_of_drafts():
  """Through text: the second model is used, and drafts come with their perplexities."""
  ours = run('rope()', False)
  ours.tokenizer = Other('a')
  variables = instance(position='rope()')[1]
  ask = lambda rule, **k: generate.sample_texts(
    ours, variables, ['abc'], max_tokens=8, rule=rule, **k
  )[0]
  spec = 'contrastive_decoding(beam=1, alpha=1.0)'
  (text,) = ask(spec, others=[(ours, variables)])
  assert text == ask('greedy()')[0] and text.perplexity is None
  drafts = ask('superposed_decoding(alpha=0.0, temperature=5.0)')
  assert len(drafts) == 3 and all(d.perplexity >= 1 for d in drafts)

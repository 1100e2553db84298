"""Models that learnt to answer prompts, encoder-decoders and decoders with inputs in front: text
and likelihoods are those of the training pass over the same rows.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import build
from lmjax import config
from lmjax import decode_loop
from lmjax import generate
from lmjax import kinds
from lmjax import main as main_lib
from lmjax import prompts
from lmjax import registry
from lmjax import run as run_lib
from lmjax import sample
from lmjax.decoding import _base
from lmjax.evals import _classifier
from lmjax.nn import embedding
from lmjax.objectives import _common
from lmjax.tracking import read_metrics

FORMS = (
  pytest.param('encoder_decoder', marks=pytest.mark.slow),
  'prefix',
  pytest.param('causal', marks=pytest.mark.slow),
)
TRIED = ('encoder_decoder', pytest.param('prefix', marks=pytest.mark.slow))
LENGTH, NEW = 32, 12
TEXTS = ('a', 'hello there', 'ragged prompts, 20 b')
SMALL = (
  ('model.width', '32'),
  ('data.length', str(LENGTH)),
  ('batch_tokens', '256'),
  ('data.tokenizer', 'extended(extra=20)'),
  ('model.embed', 'untied(multiple_of=8)'),
)
ONE = (('model.blocks.block.mixer', 'gqa(head_dim=8)'), ('model.depth', '2'))
TWO = (
  ('model.blocks.encoder.mixer', 'gqa(head_dim=8, causal=False)'),
  ('model.blocks.decoder.mixer', 'gqa(head_dim=8)'),
  ('model.blocks.decoder.residual', 'pre_cross(cross=cross_attention(head_dim=8))'),
)


def made(form, *changes) -> build.Run:
  changes = [*SMALL, *(TWO if form == 'encoder_decoder' else ONE), *changes]
  return build.build(config.resolve(config.load(f'ul2_tiny:{form}', changes)))


@functools.cache
def run(form, position='rope()') -> build.Run:
  return made(form, ('model.position', position))


@functools.cache
def variables(form, seed=0, position='rope()'):
  """Scaled up, so that greedy text is not constant."""
  params = run(form, position).init(jax.random.key(seed)).params
  return {'params': jax.tree.map(lambda a: 3 * a, params)}


def transform(form):
  return run(form).transforms[0].fn


def inputs(form, ids):
  """[S] text eos."""
  tok = run(form).tokenizer
  return np.array([tok.extra[1], *ids, tok.eos])


def rows(form, pairs):
  """Rows of training with these (ids before, targets)."""
  arranged = transform(form)._arranged
  found = [arranged(inputs(form, ids), np.asarray(new)) for ids, new in pairs]
  return {k: jnp.stack([r[k] for r in found]) for k in found[0]}


@functools.cache
def forward(form):
  def f(variables, batch):
    given = _common.inputs(batch, 1)
    return embedding.logits(run(form).architecture.apply(variables, *given))

  return jax.jit(f)


def asked(form, texts=TEXTS):
  made = prompts.of(run(form))
  return [made.prompt(made.ids(t)) for t in texts]


def written(form, texts=TEXTS, **how):
  how = dict(dict(max_tokens=NEW), **how)
  return generate.generate(run(form).architecture, variables(form), asked(form, texts), **how)


# ---- text


@pytest.mark.parametrize('form', FORMS)
def test_greedy_is_the_argmax_of_the_training_pass(form):
  got = written(form)
  assert [len(g) for g in got] == [NEW] * 3 and len({t for g in got for t in g.tolist()}) > 3
  batch = rows(form, [(run(form).tokenizer.encode(t), g) for t, g in zip(TEXTS, got)])
  best = np.asarray(forward(form)(variables(form), batch).argmax(-1))
  for r, g in enumerate(got):
    places = np.flatnonzero(np.asarray(batch['weights'][r, 1:]))
    assert best[r, places].tolist() == g.tolist()


@pytest.mark.parametrize('form', TRIED)
def test_a_prompt_alone_is_the_prompt_in_a_batch(form):
  how = dict(rule='temperature(t=1.3)', seed=3)
  together = written(form, **how)
  for t, g in zip(TEXTS, together):
    assert written(form, (t,), **how)[0].tolist() == g.tolist()
  assert len({tuple(g.tolist()) for g in together}) == 3


def test_the_memory_is_computed_once():
  """The loop runs with an encoder that is no number."""
  net, own = generate.Fixed(run('encoder_decoder').architecture), variables('encoder_decoder')
  given = asked('encoder_decoder')
  want = [g.tolist() for g in written('encoder_decoder')]
  read = generate.inputs(given, 4, [])
  kind = registry.make('cache', 'full()')
  slot = generate.prefill(net, own, *read, kind=kind, length=80)
  params = own['params']
  broken = dict(params, encoder=jax.tree.map(lambda a: a * jnp.nan, params['encoder']))
  out, _ = generate.decode(
    (net,),
    ({'params': broken},),
    (slot,),
    _base.Start(generate.padding.tails([p.text for p in given], 1, 4), np.int32(-1), 64),
    None,
    generate.row_keys([()] * 4, 0),
    np.arange(4) >= 3,
    NEW,
    rule='greedy()',
  )
  assert np.asarray(out.texts_BKT)[:3, 0, :NEW].tolist() == want


def test_eos_ends_its_row_alone():
  plain = [g.tolist() for g in written('encoder_decoder')]
  eos = plain[0][5]
  ended = [g.tolist() for g in written('encoder_decoder', eos=eos)]
  assert ended == [p[: p.index(eos)] if eos in p else p for p in plain]
  assert len({len(e) for e in ended}) > 1


def test_positions_may_end():
  """With a table of positions: the source and the text have as many rows as in training."""
  form, how = 'encoder_decoder', dict(max_tokens=4, rule='greedy()')
  own = run(form, 'learned()'), variables(form, 0, 'learned()')
  limit = own[0].model.length
  assert generate.sample_texts(*own, ['a' * (limit - 2)], **how)
  with pytest.raises(ValueError, match=f'source of prompt 0 has {limit + 1} tokens.*{limit}: sh'):
    generate.sample_texts(*own, ['a' * (limit - 1)], **how)


@pytest.mark.parametrize(
  'rule, models',
  [
    ('top_k(k=1)', 1),
    ('top_p(p=0.0001)', 1),
    ('min_p(p=1.0)', 1),
    ('superposed_decoding(k=1, alpha=0.0)', 1),
    ('contrastive_decoding(beam=1, alpha=1.0)', 2),
    ('speculative_decoding(gamma=3, rule=greedy())', 2),
  ],
)
@pytest.mark.parametrize('form', TRIED)
def test_rules_that_come_down_to_greedy(form, rule, models):
  others = [(run(form).architecture, variables(form, 1))][: models - 1]
  got = written(form, rule=rule, others=others)
  got = [g.texts[0] if isinstance(g, generate.Drafts) else g for g in got]
  assert [g.tolist() for g in got] == [g.tolist() for g in written(form)]


def test_a_draft_that_is_the_target_is_always_right():
  form = 'encoder_decoder'
  one = run(form).architecture, variables(form)
  rule = 'speculative_decoding(gamma=3, rule=temperature(t=1.0))'
  found = generate.decoded([one, one], asked(form), max_tokens=NEW, rule=rule)
  assert found[2].tolist() == [NEW // 4] * 3


def test_the_end_of_a_prefix_may_be_read_again():
  """As drafts do; the tokens that are read again see each other both ways."""
  net, own, given = run('prefix').architecture, variables('prefix'), asked('prefix')
  kind, texts = registry.make('cache', 'full()'), jnp.array([p.text[-2:] for p in given])

  @jax.jit
  def both(own):
    read = generate.inputs(given, 3, [])
    slot = generate.prefill(generate.Fixed(net), own, *read, kind=kind, length=80)
    steps, one = decode_loop.Steps(net, own), jnp.ones(3, jnp.int32)
    again, _ = steps.many(steps.back(slot, one, 1), texts)
    return steps(slot, texts[:, 1])[0], again[:, -1]

  np.testing.assert_allclose(*both(own), atol=1e-3)


def test_rules_that_do_more():
  form = 'encoder_decoder'
  other = [(run(form).architecture, variables(form, 1))]
  assert all(len(g) for g in written(form, rule='mirostat(tau=2.0)'))
  assert all(len(g) for g in written(form, rule='contrastive_decoding(beam=2)', others=other))
  with pytest.raises(kinds.Unsupported, match='EncoderDecoder writes only behind a source'):
    written(form, rule='contrastive_decoding(beam=1, context=1)', others=other)


def test_texts_go_on_and_holes_are_filled():
  form = 'encoder_decoder'
  own, how = (run(form), variables(form)), dict(max_tokens=NEW, rule='greedy()')
  [[on], [filled]] = generate.sample_texts(*own, ['hello', 'a <extra_id_0> b'], **how)
  assert on.joined and not filled.joined
  tok = run(form).tokenizer
  assert on.text == tok.decode(written(form, ('hello',), eos=tok.eos)[0])
  own, mark = prompts.of(run(form)), tok.extra[3:5]
  new = [mark[0], 97, 98, mark[1]]
  assert own.new_text(own.ids('a<extra_id_0>'), new) == '<extra_id_0>ab<extra_id_1>'
  assert own.new_text(own.ids('a'), new) == 'ab'


def test_models_of_other_layouts_do_not_decode_together():
  how = dict(max_tokens=4, rule='contrastive_decoding(beam=1)')
  others = [(run('causal'), variables('causal'))]
  with pytest.raises(ValueError, match='rows of different layouts'):
    generate.sample_texts(run('prefix'), variables('prefix'), ['a'], others=others, **how)


# ---- likelihoods


def model(form):
  return run_lib.language_model(run(form), variables(form)['params'], {})


def pairs(form):
  """Ids of contexts and continuations that fit into one row."""
  draw = np.random.default_rng(0).integers
  sizes = ((1, 16), (7, 3), (20, 12), (31, 1))
  return [(draw(0, 256, a).tolist(), draw(0, 256, b).tolist()) for a, b in sizes]


@pytest.mark.parametrize('form', FORMS)
def test_pairs_have_the_loss_of_training_rows(form):
  given = pairs(form)
  batch = dict(rows(form, given))
  params = variables(form)['params']
  nll, weight = run(form).objective.loss(params, {}, batch, jax.random.key(0), False).rows
  assert weight.tolist() == [len(c) for _, c in given]
  found = model(form).loglikelihood_tokens(given)
  np.testing.assert_allclose([p.sum() for p, _ in found], -nll, rtol=1e-5)
  logits = np.asarray(forward(form)(variables(form), batch))
  for r, (_, right) in enumerate(found):
    places = np.flatnonzero(np.asarray(batch['weights'][r, 1:]))
    assert right.tolist() == (logits[r, places].argmax(-1) == given[r][1]).tolist()


@pytest.mark.parametrize('form', TRIED)
def test_one_token_continuations_share_all_probability(form):
  vocab = run(form).tokenizer.vocab_size
  found = model(form).loglikelihood_tokens([([1, 2, 3], [i]) for i in range(vocab)])
  np.testing.assert_allclose(sum(np.exp(p.sum()) for p, _ in found), 1, rtol=1e-5)


@pytest.mark.parametrize('form', TRIED)
def test_documents_are_scored_in_pieces_behind_what_stands_before(form):
  lm, ids = model(form), np.random.default_rng(1).integers(0, 256, 45).tolist()
  stream = [lm.prefix, *ids]

  def joined(piece):
    asks = []
    for start in range(1, len(stream), piece):
      stop = min(start + piece, len(stream))
      asks.append((stream[max(0, stop - LENGTH) : start], stream[start:stop]))
    return np.concatenate([p for p, _ in lm.loglikelihood_tokens(asks)])

  np.testing.assert_allclose(lm.rolling(ids), joined(LENGTH // 2), atol=1e-5)
  np.testing.assert_allclose(lm.rolling(ids, 5), joined(5), atol=1e-5)
  [(whole, _)] = lm.loglikelihood_tokens([([], ids)])
  np.testing.assert_allclose(whole, joined(LENGTH // 2), atol=1e-5)
  with pytest.raises(ValueError, match='stride=17: from 1 to half the model length, 16'):
    lm.rolling(ids, 17)


def test_evals_say_how_they_asked(tmp_path):
  (tmp_path / 't.txt').write_text('some words to score, more than a few of them\n')
  parts = run_lib.tasks(f'perplexity(path={str(tmp_path / "t.txt")!r})')
  [nll, *_] = parts['perplexity'].run(model('encoder_decoder'))
  assert 'stride=half' in nll.name and 'prompts=ul2' in nll.name and 4 < nll.value < 20
  (tmp_path / 'l.txt').write_text('one two three\nfour five six\n')
  parts = run_lib.tasks(f'lambada(path={str(tmp_path / "l.txt")!r})')
  [_, perplexity] = parts['lambada'].run(model('encoder_decoder'))
  [(a, _), (b, _)] = model('encoder_decoder').loglikelihood(
    [('one two', ' three'), ('four five', ' six')]
  )
  np.testing.assert_allclose(perplexity.value, np.exp(-(a + b) / 2), rtol=1e-5)


def test_evals_generate_as_sampling_does():
  form = 'encoder_decoder'
  got = model(form).generate(['hello', 'a' * 50], 8)
  how = dict(max_tokens=8, rule='greedy()')
  want = generate.sample_texts(run(form), variables(form), ['hello', 'a' * (LENGTH - 8)], **how)
  assert got == [t.text for [t] in want]


def test_evals_begin_an_empty_prompt_as_texts_began_in_training():
  lm, own = model('causal'), run('causal')
  asked = prompts.of(own).prompt([own.tokenizer.eos])  # rows run across documents, without bos
  [new] = generate.generate(
    own.architecture, variables('causal'), [asked], max_tokens=8, eos=own.tokenizer.eos
  )
  assert lm.generate([''], 8) == [prompts.new_text(own.tokenizer, [own.tokenizer.eos], new)]
  lm.prefix = None
  with pytest.raises(ValueError, match='a prompt is empty'):
    lm.generate(['a', ''], 8)


# ---- refusals


def test_prompts_that_do_not_fit_the_model():
  ask = lambda form, p: generate.generate(
    run(form).architecture, variables(form), [p], max_tokens=2
  )
  with pytest.raises(kinds.Unsupported, match='reads a source, and the prompt has none'):
    ask('encoder_decoder', [1, 2])
  with pytest.raises(kinds.Unsupported, match='has a source for an encoder, and config'):
    ask('causal', kinds.Prompt((1,), source=(2,)))
  with pytest.raises(ValueError, match='prompt 0 is empty'):
    ask('encoder_decoder', kinds.Prompt((1,), source=()))
  with pytest.raises(ValueError, match='outside 0 ...'):
    ask('encoder_decoder', kinds.Prompt((1,), source=(99999,)))


class Silent:
  """A transform that lays out no prompts."""


def test_runs_that_cannot_be_asked():
  form = 'encoder_decoder'
  (found,) = run(form).transforms
  changed = lambda *t: dataclasses.replace(run(form), transforms=t)
  with pytest.raises(ValueError, match='reads a source, and no transform') as e:
    prompts.of(changed(found._replace(fn=Silent())))
  assert '\n' not in str(e.value)
  with pytest.raises(ValueError, match='ul2 and again each lay out prompts'):
    prompts.of(changed(found, found._replace(name='again')))


def test_what_cannot_be_sampled_is_said_and_does_not_end_a_run(capsys):
  assert run_lib.sampler(run('prefix')) is not None
  assert run_lib.sampler(made('prefix', ('model.position', 'alibi()'))) is None
  assert 'nothing is sampled along the way: mixer gqa: a cache does not' in capsys.readouterr().err
  spans = 'ul2(form="encoder_decoder", weights=(1, 0, 0, 0, 0, 0, 0))'
  only = made('encoder_decoder', ('data.transforms', spans))
  assert run_lib.sampler(only) is None
  assert 'the weight of S is 0' in capsys.readouterr().err


@pytest.mark.parametrize('form', FORMS)
def test_an_empty_prompt_is_refused_where_no_row_has_a_bos(form):
  own = run(form), variables(form)
  assert prompts.of(run(form)).ids('') == [] and run(form).tokenizer.bos is not None
  with pytest.raises(ValueError, match='ul2: the prompt is empty'):
    generate.sample_texts(*own, [''], max_tokens=4, rule='greedy()')
  with_bos = dataclasses.replace(
    run(form), config=run(form).config | dict(data=run(form).config['data'] | dict(bos=True))
  )
  assert prompts.of(with_bos).ids('') == [run(form).tokenizer.bos]


def test_tasks_for_a_model_that_never_went_on_are_refused_before_training(tmp_path):
  (tmp_path / 't.txt').write_text('text\n')
  changes = [
    *SMALL,
    *TWO,
    ('data.transforms', 'ul2(form="encoder_decoder", weights=(1, 0, 0, 0, 0, 0, 0))'),
    ('eval.tasks', f'perplexity(path={str(tmp_path / "t.txt")!r})'),
  ]
  resolved = config.resolve(config.load('ul2_tiny:encoder_decoder', changes))
  with pytest.raises(ValueError, match='eval.tasks.*the weight of S is 0'):
    run_lib.train(resolved, str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


def test_a_model_that_fills_holes_alone_has_no_likelihood_of_texts():
  spans = 'ul2(form="causal", weights=(1, 0, 0, 0, 0, 0, 0))'
  only = made('causal', ('data.transforms', spans))
  lm = run_lib.language_model(only, {}, {})
  with pytest.raises(kinds.Unsupported, match='the weight of S is 0'):
    lm.require_likelihoods()
  model('causal').require_likelihoods()


def test_a_classifier_takes_one_stack():
  with pytest.raises(kinds.Unsupported, match='a model of one stack'):
    _classifier.check(run('encoder_decoder').model)


# ---- a run


@pytest.mark.slow
@pytest.mark.parametrize('form', ['encoder_decoder', 'prefix'])
def test_a_run_is_trained_sampled_and_evaluated(form, tmp_path, capsys):
  text = tmp_path / 'text.txt'
  text.write_text('To be, or not to be, that is the question.\n' * 60)
  where = str(tmp_path / 'run')
  changes = dict(SMALL + (TWO if form == 'encoder_decoder' else ONE)) | {
    'data.train': f'text(path={str(text)!r})',
    'data.valid': f'text(path={str(text)!r})',
    'steps': '6',
    'eval.every': '3',
    'eval.tasks': f'perplexity(path={str(text)!r})',
    'sample.every': '3',
    'sample.tokens': '8',
    'tensorboard': 'false',
  }
  flags = [f'--config.{k}={v}' for k, v in changes.items()]
  assert main_lib.main([f'--config=ul2_tiny:{form}', f'--workdir={where}', *flags]) == 0
  lines = read_metrics(tmp_path / 'run' / 'metrics.jsonl')
  assert [m['step'] for m in lines if m['kind'] == 'sample'] == [3, 6]
  tasks = [m for m in lines if m['kind'] == 'task']
  assert tasks and all('prompts=ul2' in m['name'] for m in tasks)
  capsys.readouterr()
  ask = lambda prompt: sample.main([f'--workdir={where}', f'--prompt={prompt}', '--tokens=8'])
  assert ask('To be') == 0 and capsys.readouterr().out.startswith('To be')
  assert ask('To <extra_id_0> be') == 0
  assert capsys.readouterr().out.startswith('To <extra_id_0> be\n')
  assert ask('') == 2 and 'the prompt is empty' in capsys.readouterr().err
  assert ask('To <extra_id_99> be') == 2 and 'no row has <extra_id_99>' in capsys.readouterr().err

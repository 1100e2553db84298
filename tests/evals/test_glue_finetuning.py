"""GLUE by fine-tuning: what a head sees, what an update does, what is chosen, what scores say."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _meshes
import _table
from lmjax import kinds
from lmjax import lm as lm_lib
from lmjax import registry
from lmjax.evals import _classifier
from lmjax.evals import _finetune
from lmjax.evals import _glue_runner
from lmjax.parallel import facts as facts_lib

pytestmark = pytest.mark.slow  # minutes of compiling

LENGTH, VOCAB = 16, 12
LOOKS = {'first': False, 'last': True}  # the state that is judged -> whether the model is causal


class Letters:
  """a-h are 0 ... 7, bos 10, eos 11."""

  vocab_size, bos, eos, pad, mask = VOCAB, 10, 11, None, None

  def encode(self, text):
    return np.array(['abcdefgh'.index(c) for c in text], np.int32)


def settings(**changes):
  part = registry.make('eval', 'glue_finetuning()')
  defaults = {k: v for k, v in part.args if k in _glue_runner.SETTINGS}
  return _finetune.Settings(**(defaults | dict(length=LENGTH, epochs=1) | changes))


@functools.cache
def model(causal=False, **how):
  how = dict(length=LENGTH, vocab=VOCAB, position='learned()') | how
  net = _table.model(blocks__block__mixer=f'gqa(head_dim=8, causal={causal})', **how)
  boxed = _table.abstract(net, jnp.zeros((1, LENGTH), jnp.int32), _table.ctx(1, LENGTH))
  return net, boxed


@functools.cache
def variables(causal=False, **how):
  """New parameters, as training begins with."""
  net, _ = model(causal, **how)
  ctx = kinds.Ctx(jnp.zeros((1, LENGTH), jnp.int32))
  init = lambda: facts_lib.unbox(net.init(jax.random.key(0), jnp.zeros((1, LENGTH), int), ctx))
  return jax.jit(init)()


@functools.cache
def tuner(causal=False):
  """With dropout in the model and before the head."""
  how = dict(dropout=0.3)
  return _finetune.Tuner(model(causal, **how)[0], variables(causal, **how), settings(), 2, False)


def plain():
  """Without dropout and clipping, so that an update can be foretold."""
  s = settings(dropout=0.0, clip=0.0, decay=0.5, layer_decay=0.5, eps=1e-9)
  return _finetune.Tuner(model()[0], variables(), s, 2, False)


@functools.cache
def shared():
  return plain()


SIZE = 12  # rows of a batch, the same everywhere: one program


def rows(n=SIZE, seed=0, longest=LENGTH):
  rng = np.random.default_rng(seed)
  ids = [
    np.array([10, *rng.integers(0, 8, rng.integers(1, longest - 1)), 11], np.int32)
    for _ in range(n)
  ]
  return _finetune.Rows(ids, rng.integers(0, 2, n).astype(np.int32))


def start(t, seed=0):
  return t._first(t._params, t._vars, jax.random.key(seed))


# ---- what a head sees


@pytest.mark.parametrize('state', LOOKS)
def test_outputs_are_those_of_a_plain_pass(state):
  """Padded rows of any order give tanh and linear of the first or last state of the row alone."""
  t, ids = tuner(LOOKS[state]), rows().ids
  first = start(t)
  top, net = jax.device_get(first.params['head']), model(LOOKS[state])[0]
  place = 0 if state == 'first' else -1
  want = []
  for x in ids[:3]:
    ctx = kinds.Ctx(jnp.arange(len(x))[None])
    s = np.asarray(net.apply({'params': t._params}, x[None], ctx).hidden_BTD)[0, place]
    dense = np.tanh(s @ top['dense_kernel'] + top['dense_bias'])
    want.append(dense @ top['out_kernel'] + top['out_bias'])
  got = t.predict(first, ids)
  np.testing.assert_allclose(got[:3], want, atol=1e-5)
  np.testing.assert_allclose(t.predict(first, ids[::-1])[::-1], got, atol=1e-5)
  other = [np.where(np.arange(len(x)) == len(x) - 2, (x + 1) % 8, x) for x in ids]
  assert (np.abs(t.predict(first, other) - got).max(axis=1) > 1e-6).all()  # it sees the last word


def test_losses_by_hand():
  net = model()[0]
  z_BC, own = np.array([[1.0, 3.0], [2.0, 0.0], [9.0, 9.0]], np.float32), 0.25
  batch = dict(labels=np.array([1, 1, 0]), weights=np.array([1.0, 1.0, 0.0], np.float32))

  def loss(z, numbers, labels):
    part = _classifier.Classifier(net, None, numbers)
    object.__setattr__(part, 'apply', lambda *_: (jnp.asarray(z), own, {}))
    return part.loss({}, {}, batch | dict(labels=labels), None)

  found = loss(z_BC, False, batch['labels'])
  want = np.log1p(np.exp(-2.0)) + np.log1p(np.exp(2.0))
  assert float(found.sum) == pytest.approx(want + 2 * own) and float(found.weight) == 2
  found = loss(z_BC[:, :1], True, np.array([2.5, 5.0, 1.0], np.float32))
  assert float(found.sum) == pytest.approx(1.5**2 + 3.0**2 + 2 * own)


def test_what_cannot_be_fine_tuned_is_refused(monkeypatch, tmp_path):
  write(tmp_path)
  part = registry.make('eval', f'glue_finetuning(tasks="wnli", path={str(tmp_path)!r})')()
  with pytest.raises(kinds.Unsupported, match='gives no parameters'):
    part.run(object())
  net = model()[0]
  asked = dict(length=LENGTH, prefix=None, task=object(), name='holes')
  with pytest.raises(kinds.Unsupported, match='a model that learnt from rows of holes never saw'):
    part.suits(lm_lib.LM(net, {}, Letters(), **asked))
  unmarked = Letters()
  unmarked.bos = unmarked.eos = None
  with pytest.raises(kinds.Unsupported, match='neither a bos nor an eos'):
    part.suits(lm_lib.LM(net, {}, unmarked, length=LENGTH, prefix=None))
  with pytest.raises(kinds.Unsupported, match='sees 7 tokens, at least 8'):
    part.run(lm_lib.LM(net, variables(), Letters(), length=7))
  for fact, words in (('segments', 'cannot leave out padding'), ('cross', 'reads another text')):
    turned = lambda self, key, fact=fact, real=registry.Part.fact: real(self, key) ^ (key == fact)
    with monkeypatch.context() as m:
      m.setattr(registry.Part, 'fact', turned)
      with pytest.raises(kinds.Unsupported, match=words):
        part.run(lm_lib.LM(net, variables(), Letters(), length=LENGTH))


# ---- what an update does


def test_rates_rise_and_fall():
  want = [0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
  np.testing.assert_allclose(_finetune.factors(10, 0.2), want, rtol=1e-6)
  np.testing.assert_allclose(_finetune.factors(4, 0.0), [1, 0.75, 0.5, 0.25], rtol=1e-6)
  assert _finetune.factors(1, 0.5).tolist() == [1.0]


def test_the_first_update_is_adamw_with_bias_correction():
  """rate (sign of the gradient + decay p) where |gradient| >> eps; without the correction it would
  be 3.2 times as large. Biases and gains do not decay, body and head move, layers at their rates.
  """
  t = shared()
  batch, before = _finetune.batch(rows(), range(SIZE), SIZE, LENGTH), start(t)
  old = jax.device_get(before.params)
  new = jax.device_get(t._step(before, batch, jax.random.key(0), np.float32(1e-3)).params)
  layers = np.array([0.25, 0.5])[:, None, None]
  for path, factor, decay in (
    (('head', 'out_kernel'), 1, 0.5),
    (('head', 'dense_bias'), 1, 0.0),
    (('body', 'segment_0', '0_block', 'ffn', 'up', 'kernel'), layers, 0.5),
    (('body', 'final_norm', 'scale'), 1, 0.0),
  ):
    p, q = (functools.reduce(dict.get, path, tree) for tree in (old, new))
    step = (p - q) / (1e-3 * factor) - decay * p
    assert np.mean(np.abs(np.abs(step) - 1) < 5e-3) > 0.95, path


def test_layers_have_their_own_rates():
  net, boxed = model(depth=3)
  facts, shapes = facts_lib.facts(boxed)['params'], facts_lib.unbox(boxed)['params']
  found = _classifier.lr_factors(net.model, facts, shapes, 0.5)
  kernel = found['segment_0']['0_block']['ffn']['up']['kernel']
  assert np.ravel(kernel).tolist() == [0.125, 0.25, 0.5]
  assert kernel.ndim == shapes['segment_0']['0_block']['ffn']['up']['kernel'].ndim
  assert found['embed']['table'] == found['position']['table'] == 0.0625
  assert found['final_norm']['scale'] == 1.0
  ones = jax.tree.leaves(_classifier.lr_factors(net.model, facts, shapes, 1.0))
  assert set(map(float, ones)) == {1.0}
  mup = model(init='mup(base_width=16)')[0].model  # twice the base width
  widths = _classifier.lr_factors(mup, *_trees(boxed), 1.0)
  assert widths['segment_0']['0_block']['ffn']['up']['kernel'] == 0.5
  assert widths['embed']['table'] == 1.0


def _trees(boxed):
  return facts_lib.facts(boxed)['params'], facts_lib.unbox(boxed)['params']


def test_rates_follow_a_stack_of_several_blocks():
  net, boxed = _stack()
  found = _classifier.lr_factors(net.model, *_trees(boxed), 0.5)
  kernel = lambda n, name: np.ravel(found[f'segment_{n}'][name]['ffn']['up']['kernel']).tolist()
  assert kernel(0, '0_block') == [0.5**5]  # block + (block, local) * 2: layers 1; 2 and 4; 3 and 5
  assert (kernel(1, '0_block'), kernel(1, '1_local')) == ([0.5**4, 0.5**2], [0.5**3, 0.5])
  moved = {f'x{k}' if k.startswith('segment') else k: v for k, v in boxed['params'].items()}
  with pytest.raises(
    kinds.Unsupported, match='layer_decay=0.5: this architecture keeps its layers'
  ):
    _classifier.lr_factors(net.model, *_trees(dict(params=moved)), 0.5)


def _stack():
  local = 'gqa(head_dim=8, causal=False, window=3)'
  how = dict(stack='block + (block, local)*2', blocks__local__mixer=local)
  return model(**how)


def test_seeds_repeat_and_differ():
  """Outputs after an epoch are bit-equal for one seed; head, order and dropout follow it."""
  t, given = tuner(), rows(20)
  kept = jax.device_get(t._params)
  after = lambda seed: t.tune(
    given, lr=1e-3, size=SIZE, seed=seed, judge=lambda predict: predict(given.ids)
  )
  one = after(0)
  assert one.tobytes() == after(0).tobytes() and np.abs(one - after(1)).max() > 1e-4
  heads = [jax.device_get(start(t, s).params['head']['out_kernel']) for s in (0, 1)]
  assert np.abs(heads[0] - heads[1]).max() > 1e-3
  assert np.std(heads[0]) == pytest.approx(0.02, rel=0.3)
  batch = _finetune.batch(given, range(SIZE), SIZE, LENGTH)
  moved = [t._step(start(t), batch, jax.random.key(k), np.float32(1e-3)) for k in (0, 0, 1)]
  tables = [jax.device_get(s.params['body']['embed']['table']).tobytes() for s in moved]
  assert tables[0] == tables[1] != tables[2]
  for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(t._params)):
    assert np.array_equal(a, b)  # the run's own parameters are still there, and the same


def test_a_seed_draws_the_order_the_head_and_the_dropout(monkeypatch):
  t, seen, keys, real = tuner(), [], [], _finetune.batch

  def watched(f, at):
    return lambda *args: keys.append(tuple(jax.random.key_data(args[at]).tolist())) or f(*args)

  watch = lambda rows, chosen, *more: seen.append(list(chosen)) or real(rows, chosen, *more)
  monkeypatch.setattr(_finetune, 'batch', watch)
  monkeypatch.setattr(t, '_first', watched(t._first, 2))
  monkeypatch.setattr(t, '_step', watched(t._step, 2))
  monkeypatch.setattr(t, '_settings', settings(epochs=2))
  for seed in (0, 1):
    t.tune(rows(20), lr=1e-3, size=SIZE, seed=seed, judge=lambda _: _glue_runner.Found(0, {}))
  epochs = [a + b for a, b in zip(seen[::2], seen[1::2])]
  assert [len(x) for x in seen] == [SIZE, 8] * 4
  assert all(sorted(e) == list(range(20)) for e in epochs) and len(set(map(tuple, epochs))) == 4
  assert keys[1:5] == keys[1:2] * 4 and keys[6:] == keys[6:7] * 4  # a step folds its number in
  assert len(set(keys)) == 4  # head and dropout of either seed


def test_rows_that_fill_a_batch_up_weigh_nothing():
  t, given = shared(), rows(5)
  batch = _finetune.batch(given, range(5), SIZE, LENGTH)
  assert batch['tokens'].shape == (SIZE, LENGTH)
  assert batch['weights'].tolist() == [1] * 5 + [0] * (SIZE - 5)
  small = _finetune.batch(given, range(5), 5, LENGTH)
  params = start(t).params
  loss = jax.jit(
    lambda b: (lambda found: found.sum / found.weight)(
      t._classifier.loss(params, {}, b, None, False)
    )
  )
  assert float(loss(batch)) == pytest.approx(float(loss(small)), rel=1e-5)


def test_few_programs_are_compiled():
  assert [_finetune.bucket(n, 128) for n in (1, 32, 33, 64, 65, 128)] == [32, 32, 64, 64, 128, 128]
  assert _finetune.bucket(70, 100) == 100 and _finetune.bucket(5, LENGTH) == LENGTH
  t = tuner()
  judge = lambda predict: predict(rows(5).ids)
  for n in (9, 17):
    t.tune(rows(n), lr=1e-3, size=SIZE, seed=0, judge=judge)
  assert t._step._cache_size() == t._predict._cache_size() == 1


@pytest.mark.parametrize('mode', [pytest.param('auto', marks=pytest.mark.slow), 'explicit'])
def test_a_mesh_changes_nothing(mode):
  given = rows(20)
  how = dict(lr=1e-3, size=SIZE, seed=0, judge=lambda predict: predict(given.ids))
  want = shared().tune(given, **how)
  with jax.set_mesh(_meshes.make(mode, data=4, tensor=2)):
    assert [_finetune.rounded(n) for n in (1, 4, 5)] == [4, 4, 8]
    np.testing.assert_allclose(plain().tune(given, **how), want, atol=1e-4)


@pytest.mark.parametrize('keep, best, judged', [('last', 1.0, 1), ('best', 3.0, 4)])
def test_the_epoch_that_is_kept(keep, best, judged, monkeypatch):
  t, keys = tuner(), [2.0, 3.0, 3.0, 1.0]
  monkeypatch.setattr(t, '_settings', settings(epochs=4, keep=keep))
  told = [_glue_runner.Found(k, {'epoch': i}) for i, k in enumerate(keys)]
  left = told[-judged:]
  found = t.tune(rows(4), lr=1e-3, size=SIZE, seed=0, judge=lambda _: left.pop(0))
  assert found.key == best and not left and found.metrics['epoch'] == (1 if keep == 'best' else 3)


def test_what_diverges_is_told():
  t = tuner()
  with pytest.raises(_finetune.Diverged, match='2 of 2 updates were not finite'):
    t.tune(rows(20), lr=float('nan'), size=SIZE, seed=0, judge=lambda _: None)
  state = start(t)
  broken = state.replace(params=jax.tree.map(lambda x: x * jnp.nan, state.params))
  with pytest.raises(_finetune.Diverged, match='outputs are not finite'):
    t.predict(broken, rows().ids)


# ---- what is chosen, and what scores say


def pairs(n, seed):
  """Negation: two sentences agree where both or neither hold the word b."""
  rng = np.random.default_rng(seed)
  sentence = lambda no: ('b' if no else '').join(rng.choice(list('cdefgh'), 2))
  for i in range(n):
    one, two = rng.random(2) < 0.5
    yield f'{i}\t{sentence(one)}\t{sentence(two)}\t{int(one == two)}'


def write(folder, train=256, dev=100):
  (folder / 'WNLI').mkdir()
  for seed, (split, n) in enumerate(dict(train=train, dev=dev).items()):
    text = '\n'.join(['index\tsentence1\tsentence2\tlabel', *pairs(n, seed)])
    (folder / f'WNLI/{split}.tsv').write_text(text)


def score(folder, causal=False, how='', seeds=2):
  """Scores of the synthetic task by the name in front of the bracket."""
  lm = lm_lib.LM(model(causal)[0], variables(causal), Letters(), length=LENGTH, prefix=None)
  spec = (
    f'glue_finetuning(tasks="wnli", path={str(folder)!r}, seeds={seeds}, lr=3e-3, batch=32, '
    f'epochs=6, {how})'
  )
  return {s.name.split('[')[0]: s for s in registry.make('eval', spec)().run(lm)}


@pytest.mark.parametrize('state', ['first', pytest.param('last', marks=pytest.mark.slow)])
def test_a_small_model_learns_negation(state, tmp_path):
  """Each sentence alone says nothing: the state that is judged must see both."""
  write(tmp_path)
  found = score(tmp_path, LOOKS[state])
  assert found['wnli/accuracy'].value > 0.9 and found['wnli/accuracy'].stderr < 0.1
  assert found['average of wnli'].value == found['wnli/accuracy'].value
  name = found['wnli/accuracy'].name
  for told in (
    *('n=100', 'train=256', 'split=dev', 'median of 2 seeds', 'sd of seeds', 'lr=0.003'),
    *('batch=32', 'epochs=6', 'keep=last', f'length={LENGTH}', f'state={state}', 'cls=bos'),
    *('sep=eos', 'packing=bert', 'token_types=none'),
  ):
    assert told in name, told


def test_a_head_alone_does_not_learn_it(tmp_path):
  """The body of random weights held fast by its rates: the task is not one for the head."""
  write(tmp_path)
  found = score(tmp_path, how='layer_decay=1e-9', seeds=1)['wnli/accuracy']
  assert found.value < 0.75 and 'layer_decay=1e-09' in found.name and found.stderr is None


class Scripted:
  """In place of a Tuner: the key is a function of what it is asked."""

  def __init__(self, told):
    self.told, self.asked = told, []

  def __call__(self, *args):
    return self

  def tune(self, rows, *, lr, size, seed, judge):
    self.asked.append((lr, size, seed))
    value = self.told(lr, size, seed)
    if value is None:
      raise _finetune.Diverged('no number')
    return _glue_runner.Found(value, dict(accuracy=value))


def scripted(monkeypatch, folder, told, how):
  tuned = Scripted(told)
  monkeypatch.setattr(_finetune, 'Tuner', tuned)
  lm = lm_lib.LM(model()[0], variables(), Letters(), length=LENGTH, prefix=None)
  spec = f'glue_finetuning(tasks="wnli", path={str(folder)!r}, {how})'
  return registry.make('eval', spec)().run(lm), tuned.asked


def test_the_pair_is_chosen_by_other_seeds_than_are_reported(tmp_path, monkeypatch):
  write(tmp_path)
  last = {0: 0.1, 1: 0.9, 2: 0.4, 3: 0.3, 4: 0.2}

  def told(lr, size, seed):
    tuning = {(0.1, 8): [0.5, 0.9, 0.5], (0.1, 4): [0.6, 0.6, 0.1]}.get((lr, size), [0.6] * 3)
    return tuning[seed - 1000] if seed >= 1000 else last[seed]

  how = 'lr=(0.1, 0.2), batch=(8, 4), tuning_seeds=3'
  (average, found), asked = scripted(monkeypatch, tmp_path, told, how)
  assert asked[:12] == [(lr, b, 1000 + s) for lr in (0.1, 0.2) for b in (8, 4) for s in range(3)]
  assert asked[12:] == [(0.1, 4, s) for s in range(5)]  # the first of two pairs with median 0.6
  assert found.value == 0.3 == average.value and found.stderr == pytest.approx(
    np.std(list(last.values()), ddof=1)
  )
  assert 'chosen=best of 4 pairs on dev, tuning_seeds=3' in found.name and 'lr=0.1' in found.name
  assert average.stderr is None and 'sd of seeds' not in average.name
  assert re.match(r'average of wnli\[', average.name)


def test_a_pair_that_diverges_is_not_chosen(tmp_path, monkeypatch):
  write(tmp_path)
  told = lambda lr, size, seed: None if lr == 1 else 0.0
  how = 'lr=(1, 0.5), batch=8, seeds=1'
  assert scripted(monkeypatch, tmp_path, told, how)[1][-1] == (0.5, 8, 0)
  (average, found), asked = scripted(monkeypatch, tmp_path, lambda *_: None, how)
  assert math.isnan(average.value) and math.isnan(found.value) and found.stderr is None
  assert asked == [(1, 8, 1000), (0.5, 8, 1000)], 'tuning alone'
  assert 'diverged=every pair' in found.name and 'value=no seed' in found.name
  assert 'average of no task[' in average.name and 'without=wnli' in average.name


def test_a_seed_that_diverges_is_left_out(tmp_path, monkeypatch, capsys):
  write(tmp_path)
  seen = lambda *seeds: lambda lr, size, seed: seed / 10 if seed in seeds else None
  how = 'lr=1, batch=8, seeds=4'
  average, found = scripted(monkeypatch, tmp_path, seen(0, 1, 3), how)[0]
  assert found.value == average.value == 0.1
  assert found.stderr == pytest.approx(np.std([0, 0.1, 0.3], ddof=1))
  assert 'diverged=1' in found.name and 'median of 3 seeds' in found.name
  assert 'diverged=1' in average.name and 'without' not in average.name
  assert 'wnli, lr=1.0, batch=8, seed 2: diverged, no number' in capsys.readouterr().err
  found = scripted(monkeypatch, tmp_path, seen(3), how)[0][1]
  assert (found.value, found.stderr) == (0.3, None)
  assert 'diverged=3' in found.name and 'one seed' in found.name and 'sd of' not in found.name


def test_a_task_that_diverges_leaves_the_others_their_scores(tmp_path, monkeypatch):
  """A rate of 1e30, for one task alone."""
  write(tmp_path)
  (tmp_path / 'CoLA').mkdir()
  for split in ('train', 'dev'):
    text = ''.join(f's\t{i % 2}\t\t{"ab"[i % 2]}c\n' for i in range(8))
    (tmp_path / f'CoLA/{split}.tsv').write_text(text)
  lm = lm_lib.LM(model()[0], variables(), Letters(), length=LENGTH, prefix=None)
  spec = (
    f'glue_finetuning(tasks="wnli, cola", path={str(tmp_path)!r}, seeds=2, lr=1e30, batch=8, '
    'epochs=1, limit=16)'
  )
  tune = _finetune.Tuner.tune

  def gentle(self, rows, *, lr, **how):
    return tune(self, rows, lr=lr if len(rows.ids) == 16 else 1e-3, **how)

  monkeypatch.setattr(_finetune.Tuner, 'tune', gentle)
  average, wnli, cola = registry.make('eval', spec)().run(lm)
  assert math.isnan(wnli.value) and wnli.stderr is None and 'diverged=2' in wnli.name
  assert average.value == cola.value and math.isfinite(cola.value)
  assert 'average of cola[' in average.name and 'without=wnli' in average.name
  assert 'diverged' not in cola.name + average.name


def test_the_average_is_over_tasks_and_not_over_metrics(tmp_path, monkeypatch):
  for folder, head in (
    ('RTE', 'sentence1\tsentence2\tlabel'),
    ('MRPC', 'Quality\t#1 String\t#2 String'),
  ):
    (tmp_path / folder).mkdir()
    row = 'a\tb\tentailment' if folder == 'RTE' else '1\ta\tb'
    for split in ('train', 'dev'):
      (tmp_path / folder / f'{split}.tsv').write_text(f'{head}\n{row}\n')
  runner = _glue_runner.Runner
  one = lambda self, name, task, *_: _glue_runner.Found(
    0, dict(accuracy=0.5) if name == 'rte' else dict(f1=0.9, accuracy=0.8)
  )
  monkeypatch.setattr(runner, '_one', one)
  lm = lm_lib.LM(model()[0], variables(), Letters(), length=LENGTH, prefix=None)
  spec = f'glue_finetuning(tasks="rte, mrpc", path={str(tmp_path)!r}, lr=1, batch=1)'
  found = {s.name.split('[')[0]: s.value for s in registry.make('eval', spec)().run(lm)}
  assert found.pop('average of rte+mrpc') == pytest.approx((0.5 + 0.85) / 2)
  assert found == {'rte/accuracy': 0.5, 'mrpc/f1': 0.9, 'mrpc/accuracy': 0.8}


# ---- a run


@pytest.mark.slow
@pytest.mark.parametrize('recipe', ['bert_tiny', 'quickstart'])
def test_a_run_is_scored_on_real_files(recipe, tmp_path, test_data, capsys):
  """A trained encoder and a causal decoder, from their run directories."""
  from lmjax import main as main_lib
  from lmjax.tracking import read_metrics

  small = ('model.width=32', 'model.depth=2', 'steps=2', 'batch_tokens=512', 'sample.tokens=0')
  flags = [f'--config.{s}' for s in small]
  assert main_lib.main([f'--config={recipe}', f'--workdir={tmp_path}', *flags]) == 0
  path = str(test_data / 'eval/glue')
  spec = f'glue_finetuning(path={path!r}, tasks="cola,sst2,mrpc,rte", seeds=2, lr=1e-3, batch=16'
  assert main_lib.main([f'--workdir={tmp_path}', f'--eval={spec}, epochs=1, limit=64)']) == 0
  found = [m for m in read_metrics(tmp_path) if m['kind'] == 'task']
  names = [m['name'].split('[')[0] for m in found]
  want = 'cola/matthews sst2/accuracy mrpc/f1 mrpc/accuracy rte/accuracy'.split()
  assert names == ['average of cola+sst2+mrpc+rte', *want]
  assert all('limit=64' in m['name'] and -1 <= m['value'] <= 1 for m in found)

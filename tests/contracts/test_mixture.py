"""The contract of every mixture: weights of sum one, pure in the state, replay equal; bad weights
refused.
"""

import copy
import json

import numpy as np
import pytest

from lmjax import registry
from lmjax import specs
from lmjax.data.mixtures import _weights

# (arguments, whether the config may write weights); every registered mixture must be here.
SPECS = (
  ('static()', True),
  ('static()', False),
  ('temperature()', False),
  ('temperature(alpha=0.0)', False),
  ('temperature(alpha=1)', False),
  ('learned(run="{folder}")', False),
  ('single(source="b")', False),
  ('skill_it(graph="{folder}/graph.json", update_steps=3)', False),
  ('skill_it(graph="{folder}/graph.json", eta=1000.0, window=1)', False),
  ('aioli()', False),
  ('aioli(ema=None, eta=50.0, one_hot_factor=1.0)', False),
  ('aioli(prior_steps=5)', True),
)
NAMES, TOKENS = ('a', 'b', 'c'), (1000, 50, 200_000)
WRITTEN, NONE = (0.7, 0.1, 0.4), (None,) * 3
SOURCES = {n: f"text(path='{n}')" for n in NAMES}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A finished proxy run as far as mixtures read it, and a graph of sources."""
  folder = tmp_path_factory.mktemp('run')
  train = ' + '.join(SOURCES.values())
  theirs = [n for n in ('text', 'text_2', 'text_3')]
  config = dict(steps=7, objective='doge()', data=dict(train=train))
  (folder / 'config.json').write_text(json.dumps(config))
  means = {f'mean_weight/{n}': w for n, w in zip(theirs, (0.5, 0.2, 0.3))}
  (folder / 'metrics.jsonl').write_text(json.dumps(dict(kind='train', step=7, **means)) + '\n')
  graph = dict(sources=SOURCES, graph=np.random.default_rng(0).random((3, 3)).tolist())
  (folder / 'graph.json').write_text(json.dumps(graph))
  return folder


def made(spec, folder='', names=NAMES):
  context = dict(seed=0, sources={n: SOURCES[n] for n in names})
  return registry.make('mixture', spec.format(folder=folder), **context)


def test_every_mixture_is_tried():
  assert {specs.call(s).name for s, _ in SPECS} == set(registry.names('mixture'))


@pytest.mark.parametrize('spec, written', SPECS)
def test_contract(spec, written, folder):
  part = made(spec, folder)()
  state = part.init(NAMES, WRITTEN if written else NONE, TOKENS)
  rng = np.random.default_rng(0)
  observed = [dict(valid_losses=10.0 ** rng.uniform(-3, 3) * rng.random(3)) for _ in range(60)]

  def replay(state):
    out = []
    for seen in observed:
      before = copy.deepcopy(state)
      new = part.update(state, seen)
      assert all(np.array_equal(before[k], state[k]) for k in before), (
        'update must not write into the state'
      )
      assert {k: (v.shape, v.dtype) for k, v in new.items()} == {
        k: (v.shape, v.dtype) for k, v in state.items()
      }, 'a cursor is read by the shapes of the first state'
      state = new
      w = part.weights(state)
      assert w.shape == (3,) and np.all(w >= 0) and abs(w.sum() - 1) < 1e-12
      out.append(w)
    return np.array(out)

  assert np.array_equal(replay(state), replay(copy.deepcopy(state)))
  assert all(isinstance(v, np.ndarray) for v in state.values()), 'a checkpoint keeps arrays'


@pytest.mark.parametrize('spec, written', SPECS)
def test_what_follows_losses_says_when(spec, written, folder):
  handle = made(spec, folder)
  assert set(handle.fact('needs')) <= {'valid_losses'}
  if not handle.fact('needs'):
    return
  part = handle()
  state, last = part.init(NAMES, WRITTEN if written else NONE, TOKENS), -1
  for _ in range(40):
    due = part.due(state)
    if due is None:
      break
    assert type(due) is int and due > last
    state, last = part.update(state, dict(valid_losses=np.array([3.0, 2.0, 1.0]))), due
  assert part.rows >= 0


@pytest.mark.parametrize('spec, written', SPECS)
def test_order_of_sources_does_not_matter(spec, written, folder):
  flip = slice(None, None, -1)
  given = WRITTEN if written else NONE
  part, turned = made(spec, folder)(), made(spec, folder, NAMES[flip])()
  a = part.weights(part.init(NAMES, given, TOKENS))
  b = turned.weights(turned.init(NAMES[flip], given[flip], TOKENS[flip]))
  assert np.allclose(a, b[flip], atol=1e-15)


def weights(spec, given, tokens=TOKENS):
  part = made(spec)()
  return part.weights(part.init(NAMES, given, tokens))


def test_static_by_hand():
  assert np.allclose(weights('static()', (7, 1, 4)), [7 / 12, 1 / 12, 4 / 12])
  assert np.allclose(weights('static()', NONE), np.array(TOKENS) / 201_050)


def test_temperature_by_hand():
  """n = (4, 1, 16): with alpha 1/2 the shares are 2 : 1 : 4."""
  assert np.allclose(weights('temperature()', NONE, (4, 1, 16)), [2 / 7, 1 / 7, 4 / 7])
  assert np.allclose(weights('temperature(alpha=0)', NONE), 1 / 3)
  assert np.allclose(weights('temperature(alpha=1.0)', NONE), np.array(TOKENS) / 201_050)
  huge = weights('temperature()', NONE, (10**15, 10**13, 1))
  assert np.all(huge > 0) and abs(huge[0] / huge[1] - 10) < 1e-9


@pytest.mark.parametrize('bad', [0, -0.5, float('nan'), float('inf')])
def test_bad_weights_are_named(bad):
  with pytest.raises(ValueError, match=r'source b: a positive number is expected'):
    weights('static()', (1.0, bad, 1.0))


def test_some_weights_and_some_not():
  with pytest.raises(ValueError, match='source c has no weight while others do'):
    weights('static()', (1.0, 2.0, None))
  with pytest.raises(ValueError, match='source a has one'):
    weights('temperature()', WRITTEN)
  assert _weights.given(NAMES, NONE) is None


@pytest.mark.parametrize('spec', ['static()', 'temperature()'])
def test_an_empty_source_is_named(spec):
  with pytest.raises(ValueError, match='source b has 0 tokens'):
    weights(spec, NONE, (5, 0, 5))


@pytest.mark.parametrize('alpha', [-0.1, 1.5])
def test_alpha(alpha):
  with pytest.raises(ValueError, match='alpha='):
    registry.make('mixture', f'temperature(alpha={alpha})')

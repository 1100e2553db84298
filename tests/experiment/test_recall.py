"""The parts of experiments/recall: linear attention is DeltaNet without its rule and nothing else;
what is measured; accuracies by number of pairs.
"""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax import build
from lmjax import config
from lmjax import kinds
from lmjax import registry

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAME = 'experiments.recall.linear_attention'
SIZES = 'head_dim=8, heads=2, value_dim=6'
T, D = _table.STEPS, _table.WIDTH
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 2, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]])


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT))


def load(name):
  return importlib.import_module(f'experiments.recall.{name}')


def both(more=''):
  """(linear attention, deltanet, their values) of the same arguments."""
  made = [
    registry.make('mixer', f'{m}({SIZES}{more})')(parent=None)
    for m in (f'{NAME}:LinearAttention', 'deltanet')
  ]
  x, ctx = jnp.ones((2, T, D)), _table.ctx(segments=SEGMENTS)
  linear, delta = (_table.abstract(m, x, ctx) for m in made)
  tree = lambda v: jax.tree.map(lambda a: (a.shape, a.dtype), v)
  assert tree(linear) == tree(delta), 'the same parameters'
  return *made, _table.values(delta)


def apply(module, variables, x):
  return np.asarray(module.apply(variables, x, _table.ctx(segments=SEGMENTS))[0])


@pytest.mark.parametrize('more', ['', ', feature="elu", sums=True, gate=True, norm=None, taps=0'])
def test_the_rule_is_all_that_differs(more):
  """The first token of a document finds an empty memory, where both are the same; the next ones
  differ.
  """
  linear, delta, variables = both(more)
  x = _table.normal(2, T, D)
  a, b = apply(linear, variables, x), apply(delta, variables, x)
  first = np.diff(SEGMENTS, prepend=0, axis=1) != 0
  _table.close(a[first], b[first])
  later = ~first & (SEGMENTS > 0)
  assert np.abs(a - b)[later].max(-1).min() > 1e-4
  assert not a[SEGMENTS == 0].any()


def test_without_a_cache():
  part = registry.make('mixer', f'{NAME}:LinearAttention({SIZES})')
  assert part.fact('causal') and part.fact('segments') and not part.fact('cache')
  with pytest.raises(kinds.Unsupported, match='nothing to decode with'):
    part(parent=None).init_cache(None, 1, 8, D, jnp.float32)


def test_memory_by_the_recurrence():
  """S_t = S_{t-1} + k_t^T b_t v_t, emptied where a document begins."""
  q, k = _table.normal(2, T, 3, 4), _table.normal(2, T, 3, 4, seed=1)
  v, beta = _table.normal(2, T, 3, 5, seed=2), _table.normal(2, T, 3, seed=3)
  got = np.asarray(load('linear_attention').attend(q, k, v, beta, jnp.asarray(SEGMENTS)))
  q, k, v, beta = map(_table.numpy64, (q, k, v, beta))
  want = np.zeros_like(v)
  for b in range(2):
    for t in range(T):
      if t == 0 or SEGMENTS[b, t] != SEGMENTS[b, t - 1]:
        s = np.zeros((3, 4, 5))
      s = s + np.einsum('hk,h,hv->hkv', k[b, t], beta[b, t], v[b, t])
      want[b, t] = np.einsum('hk,hkv->hv', q[b, t], s) * (SEGMENTS[b, t] > 0)
  _table.close(got, want)


def test_wrong_answers_at_the_end_are_measured():
  measure = load('experiment').error_rate
  lines = [dict(kind='eval', accuracy=0.25), dict(kind='train', accuracy=1.0)]
  assert measure(lines) == 0.75
  assert measure([*lines, dict(kind='eval', accuracy=0.5)]) == 0.5
  assert np.isnan(measure(lines[1:]))


CHANGES = [
  ('model.width', '16'),
  ('model.depth', '1'),
  ('model.mixer.head_dim', '8'),
  ('data.tokenizer', 'bytes(specials=False)'),
  ('data.train', 'mqar(documents=8)'),
  ('data.valid', 'mqar(pairs=4, documents=6, keys=9, seed=1)'),
  ('data.length', '64'),
  ('batch_tokens', '64'),
  ('data.transforms', 'answers()'),
]


@pytest.mark.parametrize('pairs', [2, 8])
def test_held_out_documents_of_other_numbers_of_pairs(pairs):
  run = build.build(config.resolve(config.load('quickstart', CHANGES)))
  (batch,) = load('by_pairs').batches(run, pairs, 32)
  documents = registry.make('source', f'mqar(pairs={pairs}, documents=6, keys=9, seed=1)')()
  tokens, segments = batch['tokens'][:, :-1], batch['segments'][:, :-1]
  assert tokens[segments > 0].tolist() == [int(i) for d in documents for i in d]
  assert batch['weights'][:, :32].sum() == 6 * pairs
  weights = np.asarray(run.objective.weights(batch))
  assert weights.sum() == 6 * pairs, 'each answer is scored once'

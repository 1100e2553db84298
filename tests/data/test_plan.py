"""The plan: exact quotas in closed form, nothing lost or repeated, a pure function of seed and
step.
"""

import fractions

import numpy as np
import pytest

from _stores import documents
from _stores import lengths
from lmjax import registry
from lmjax.data import plan

SIZES = (300, 900, 150)


def make(
  weights=(0.5, 0.3, 0.2),
  seed=0,
  pack='concat()',
  sizes=SIZES,
  rows_per_step=8,
  row_tokens=16,
  lookahead=1,
):
  stores = [documents(lengths(i, n // 10), first=10_000 * i) for i, n in enumerate(sizes)]
  return plan.Plan(
    stores,
    pack=registry.make('pack', pack)(),
    weights=weights,
    seed=seed,
    row_tokens=row_tokens,
    lookahead=lookahead,
    rows_per_step=rows_per_step,
    names=[f's{i}' for i in range(len(sizes))],
  )


def brute_force(p, rows):
  """Ordinals by counting from the first row."""
  seen, out = [0] * len(p.stores), []
  for r in range(rows):
    source, _ = p.place(r)
    out.append((source, seen[source]))
    seen[source] += 1
  return out


@pytest.mark.parametrize(
  'weights', [(0.5, 0.3, 0.2), (1, 1, 1), (0.001, 0.998, 0.001), (3, 1e-6, 7)]
)
def test_closed_form_is_counting(weights):
  p = make(weights)
  rows = 3 * p.cell + 17
  assert [p.place(r) for r in range(rows)] == brute_force(p, rows)


@pytest.mark.parametrize(
  'weights', [(0.5, 0.3, 0.2), (1 / 3, 1 / 3, 1 / 3), (0.0007, 0.0003, 0.999)]
)
def test_quotas_are_exact(weights):
  """After each cell each source has its share to a row; the heaviest to as many rows as there are
  other sources.
  """
  p, seen = make(weights), np.zeros(3, int)
  w = np.array(weights) / sum(weights)
  heaviest = int(np.argmax(w))
  for cell in range(40):
    seen += np.bincount(
      [p.place(r)[0] for r in range(cell * p.cell, (cell + 1) * p.cell)], minlength=3
    )
    error = seen - w * (cell + 1) * p.cell
    for s in range(3):
      assert abs(error[s]) <= (2 if s == heaviest else 1) + 1e-3, (cell, seen)
    assert p.counts((cell + 1) * p.cell) == seen.tolist()


@pytest.mark.parametrize('first', [1.0, 1e-4])
def test_many_light_sources(first):
  """Rounding of all the others never drives the one that takes the remainder below zero."""
  n = 40
  p = plan.Plan(
    [documents([40]) for _ in range(n)],
    pack=registry.make('pack', 'concat()')(),
    row_tokens=16,
    lookahead=1,
    rows_per_step=8,
    seed=1,
    weights=[first] + [1.0] * (n - 1),
  )
  assert sum(p.counts(5 * p.cell)) == 5 * p.cell
  assert [p.place(r) for r in range(p.cell)] == brute_force(p, p.cell)


def test_far_rows_cost_nothing():
  """Row 10^15 is found without counting up to it, and integer arithmetic does not round."""
  p = make()
  r = 10**15 + 3
  source, ordinal = p.place(r)
  assert abs(ordinal - p.weights[source] * r) < p.cell
  assert sum(p.counts(r)) == r
  before = p.counts(r)
  assert ordinal == before[source]
  assert len(p.row(r).spans)


def test_integer_arithmetic():
  """Quotas at 10^17 rows are exact; in floating point they would be rows off."""
  p = make((1 / 3, 1 / 7, 11 / 21))
  n = p.cell * (10**14 + 7)
  got, units = p.pieces[0].counts(n), p.pieces[0].units
  assert got[:2] == [fractions.Fraction(u, 2**32) * n // 1 for u in units[:2]] and sum(got) == n


def test_cell_is_mixed():
  """Sources are spread over a cell, not in blocks."""
  p = make((1, 1, 1))
  first = [p.place(r)[0] for r in range(p.cell)]
  changes = np.count_nonzero(np.diff(first))
  assert abs(changes / p.cell - 2 / 3) < 0.06
  second = [p.place(r)[0] for r in range(p.cell, 2 * p.cell)]
  assert abs(np.mean(np.array(first) == second) - 1 / 3) < 0.06


def test_one_source_keeps_its_order():
  p = make((1.0,), pack='concat(shuffle=False)', sizes=(900,))
  tokens = np.concatenate(
    [
      p.stores[0].tokens[p.stores[0].offsets[d] + a : p.stores[0].offsets[d] + b]
      for r in range(p.rows_per_epoch[0])
      for d, a, b in inputs(p, r)
    ]
  )
  assert np.array_equal(tokens, p.stores[0].tokens)


def inputs(p, r):
  """Spans of row r less the lookahead (lookahead 1)."""
  spans = p.row(r).spans.copy()
  spans[-1, 2] -= 1
  return [s for s in spans.tolist() if s[2] > s[1]]


def test_each_token_once_an_epoch_in_a_mixture():
  """Over whole epochs of a source each of its tokens is an input once an epoch, whatever is mixed
  in.
  """
  p = make((0.2, 0.7, 0.1))
  epochs = 3
  want = [epochs * n for n in p.rows_per_epoch]
  counts = [np.zeros(len(s.tokens), int) for s in p.stores]
  done, r = [0, 0, 0], 0
  while any(d < w for d, w in zip(done, want)):
    row = p.row(r)
    if done[row.source] < want[row.source]:
      assert row.epoch == done[row.source] // p.rows_per_epoch[row.source]
      offsets = p.stores[row.source].offsets
      for d, a, b in inputs(p, r):
        counts[row.source][offsets[d] + a : offsets[d] + b] += 1
      done[row.source] += 1
    r += 1
  for c in counts:
    assert np.all(c == epochs)


def test_pure_in_seed_and_step():
  def tokens(p, step):
    return [(r.source, r.epoch, r.row, r.spans.tolist()) for r in p.rows(step)]

  a, b = make(seed=1), make(seed=1)
  backwards = [tokens(b, s) for s in reversed(range(30))][::-1]
  assert [tokens(a, s) for s in range(30)] == backwards, 'the order of asking must not matter'
  assert tokens(make(seed=2), 3) != tokens(a, 3)


def test_epochs_differ():
  p = make((1.0,), sizes=(900,))
  n = p.rows_per_epoch[0]
  first, second = ([p.row(r).spans.tolist() for r in range(e * n, (e + 1) * n)] for e in (0, 1))
  assert first != second and sorted(map(str, first)) != sorted(map(str, second))


def test_weights_default_to_tokens():
  p = make(None)
  tokens = np.array([len(s.tokens) for s in p.stores])
  assert np.allclose(p.weights, tokens / tokens.sum(), atol=1e-9)


@pytest.mark.parametrize('bad', [0.0, -0.1, float('nan'), float('inf')])
def test_bad_weights(bad):
  with pytest.raises(ValueError, match=r'source s1: a positive number'):
    make((0.5, bad, 0.5))


def test_too_small_a_source_is_named():
  with pytest.raises(ValueError, match=r'source s1: 12 tokens do not fill one row of 16 \+ 1'):
    plan.Plan(
      [documents([40]), documents([12])],
      pack=registry.make('pack', 'concat()')(),
      row_tokens=16,
      lookahead=1,
      rows_per_step=2,
      seed=0,
      names=['s0', 's1'],
    )


def test_fingerprint_covers_what_decides_the_tokens():
  changes = [
    dict(),
    dict(seed=1),
    dict(weights=(0.5, 0.2, 0.3)),
    dict(pack='best_fit()'),
    dict(pack='concat(shuffle=False)'),
    dict(row_tokens=17),
    dict(lookahead=0),
    dict(rows_per_step=4),
    dict(sizes=(300, 910, 150)),
  ]
  prints = [make(**c).fingerprint() for c in changes]
  assert len(set(prints)) == len(changes)
  assert make().fingerprint() == prints[0]
  assert make().reweighted(100, (1, 1, 1)).fingerprint() != prints[0]


def test_reweighted_goes_on_where_it_was():
  """Changing weights in the middle of a cell keeps the past, and no ordinal is lost or repeated."""
  p = make()
  first = p.cell + 300
  q = p.reweighted(first, (0.1, 0.1, 0.8)).reweighted(first + 500, (0.6, 0.2, 0.2))
  rows = first + 500 + 2 * p.cell
  assert [q.place(r) for r in range(first)] == [p.place(r) for r in range(first)]
  assert [q.place(r) for r in range(rows)] == brute_force(q, rows)
  share = np.bincount([q.place(r)[0] for r in range(first, first + 500)], minlength=3) / 500
  assert abs(share[2] - 0.8) < 0.07
  with pytest.raises(ValueError, match='already set'):
    q.reweighted(first, (1, 1, 1))


@pytest.mark.parametrize('lookahead', [0, 1, 2])
def test_sequential_is_every_token_once_in_order(lookahead):
  stores = [documents(lengths(0, 30)), documents([5]), documents(lengths(1, 20))]
  p = plan.Sequential(stores, row_tokens=16, lookahead=lookahead, rows_per_step=4)
  out = [[] for _ in stores]
  for step in range(len(p)):
    for row in p.rows(step):
      assert row.source >= 0 or not len(row.spans)
      store = stores[row.source]
      flat = [t for d, a, b in row.spans for t in store[d][a:b].tolist()]
      out[row.source].extend(flat[:16] if row.source >= 0 else [])
  assert [np.array_equal(o, s.tokens) for o, s in zip(out, stores)] == [True] * 3
  assert all(r.source == -1 for r in p.rows(len(p)))

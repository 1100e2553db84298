"""Batches: what the plan says, the same for every number of hosts and after every restart."""

import time

import numpy as np
import pytest

from _stores import documents
from _stores import lengths
from lmjax import registry
from lmjax.data import loader
from lmjax.data import plan

WIDTH = 24


def make_plan(pack='concat()', rows_per_step=8, lookahead=1, seed=0):
  stores = [documents(lengths(i, 60), first=100_000 * i) for i in range(3)]
  return plan.Plan(
    stores,
    pack=registry.make('pack', pack)(),
    weights=(0.5, 0.3, 0.2),
    seed=seed,
    row_tokens=WIDTH - lookahead,
    lookahead=lookahead,
    rows_per_step=rows_per_step,
  )


def equal(a, b):
  return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize('pack', ['concat()', 'best_fit()', 'pad()'])
def test_batch_is_what_the_plan_says(pack):
  p = make_plan(pack)
  batch = loader.Loader(p)[5]
  assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
    **{k: ((8, WIDTH), np.int32) for k in ('tokens', 'segments', 'positions')},
    'source': ((8,), np.int32),
  }
  for i, row in enumerate(p.rows(5)):
    tokens, segments, positions = [], [], []
    for k, (d, a, b) in enumerate(row.spans):
      tokens += p.stores[row.source][d][a:b].tolist()
      segments += [k + 1] * (b - a)
      positions += range(b - a)
    pad = [0] * (WIDTH - len(tokens))
    assert batch['tokens'][i].tolist() == tokens + pad
    assert batch['segments'][i].tolist() == segments + pad
    assert batch['positions'][i].tolist() == positions + pad
    assert batch['source'][i] == row.source


def test_unmasked_documents_are_one():
  p = make_plan('best_fit()')
  masked, joined = (
    {
      k: np.concatenate([load[s][k] for s in range(12)])
      for k in ('tokens', 'segments', 'positions')
    }
    for load in (loader.Loader(p), loader.Loader(p, documents_masked=False))
  )
  real = masked['segments'] > 0
  assert real.any() and not real.all() and masked['segments'].max() > 1
  assert np.array_equal(joined['tokens'], masked['tokens'])
  assert np.array_equal(joined['segments'], real.astype(np.int32))
  assert np.array_equal(joined['positions'], np.arange(WIDTH) * real)


def test_rows_of_one_document_have_no_padding_in_front():
  """Kernels go by it, see `Ctx.joined`."""
  segments = np.array([[1, 1, 2, 0], [0, 1, 1, 1]], np.int32)
  loader._joined(dict(segments=segments[:1]))
  with pytest.raises(ValueError, match='mask_documents=False: a row has padding in front'):
    loader._joined(dict(segments=segments))


@pytest.mark.parametrize('hosts', [2, 4])
@pytest.mark.parametrize('pack', ['concat()', 'best_fit()'])
def test_any_number_of_hosts_sees_the_same_batch(hosts, pack):
  """Each host with its own plan, as in separate processes; transforms included."""
  tok = registry.make('tokenizer', 'bytes()')()
  noise = [('noise', registry.make('transform', 'token_noise(rate=0.5)', tokenizer=tok)())]
  whole = loader.Loader(make_plan(pack), transforms=noise)
  parts = [
    loader.Loader(make_plan(pack), transforms=noise, host_index=h, host_count=hosts)
    for h in range(hosts)
  ]
  for step in (0, 1, 7, 400):
    want = whole[step]
    got = {k: np.concatenate([part[step][k] for part in parts]) for k in want}
    assert equal(want, got), step


def test_hosts_must_divide():
  with pytest.raises(ValueError, match='8 rows a step do not divide over 3 hosts'):
    loader.Loader(make_plan(), host_count=3)


@pytest.mark.parametrize('first', [0, 3, 37])
def test_restart_continues_exactly(first):
  """A fresh process that starts at a step gives what an unbroken one gives there, over an epoch's
  end.
  """
  unbroken = loader.Loader(make_plan()).iterate(0)
  want = [next(unbroken) for _ in range(50)]
  restarted = loader.Loader(make_plan()).iterate(first, threads=3, prefetch=5)
  assert all(equal(next(restarted), w) for w in want[first:])
  assert max(r.epoch for s in range(50) for r in make_plan().rows(s)) > 0


def test_restart_far_on_is_fast():
  start = time.perf_counter()
  batch = loader.Loader(make_plan())[10**9]
  assert time.perf_counter() - start < 5 and (batch['segments'] > 0).any()


def test_sequential_ends_with_padding():
  store = documents(lengths(3, 40))
  p = plan.sequential(store, 16, 1, rows_per_step=8)
  batches = list(loader.Loader(p).iterate())
  assert len(batches) == len(p)
  last = batches[-1]
  empty = last['source'] == -1
  assert empty.any() and not last['segments'][empty].any() and not last['tokens'][empty].any()
  tokens = np.concatenate([b['tokens'][:, :16][b['segments'][:, :16] > 0] for b in batches])
  assert np.array_equal(tokens, store.tokens)
  assert list(loader.Loader(p).iterate(len(p))) == []


def test_documents_name_what_a_step_held():
  p = make_plan()
  record = loader.Loader(p, host_index=1, host_count=2).documents(4)
  assert len(record) == 8, 'all rows, also those of other hosts'
  row = p.rows(4)[3]
  assert record[3] == dict(
    source=p.names[row.source], epoch=row.epoch, row=row.row, spans=row.spans.tolist()
  )


def test_transforms_follow_the_stream_seed_and_row():
  seen = []

  def spy(row, seed):
    seen.append(seed)
    return {**row, 'tokens': row['tokens'] + 1, 'extra': row['tokens'][:2]}

  p = make_plan()
  load = loader.Loader(p, transforms=[('spy', spy), ('spy_2', spy)])
  batch = load[3]
  assert np.array_equal(batch['tokens'], loader.Loader(p)[3]['tokens'] + 2)
  assert batch['extra'].shape == (8, 2)
  load[4]
  assert len(set(seen)) == 32, 'every row and every transform has its own seed'
  again, seen[:] = list(seen), []
  load[3], load[4]
  assert seen == again
  seen.clear()
  loader.Loader(make_plan(seed=1), transforms=[('spy', spy)])[3]
  assert not set(seen) & set(again)


def test_an_error_while_reading_ahead_is_raised():
  def broken(row, seed):
    raise ValueError('broken on purpose')

  with pytest.raises(ValueError, match='broken on purpose'):
    next(loader.Loader(make_plan(), transforms=[('broken', broken)]).iterate())

"""Caches that go back: what was read and taken back leaves no trace, each row by its own number."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import _table
from lmjax import decode_loop
from lmjax import kinds
from lmjax import registry

MODELS = {
  'full()': dict(position='learned()', blocks__block__mixer='gqa(head_dim=8, kv_heads=2)'),
  'window(spare=3)': dict(
    blocks__block__mixer='gqa(head_dim=8, window=3)',
    blocks__wide__mixer='gqa(head_dim=8, window=7)',
    stack='(block, wide)*2',
    position='alibi()',
  ),
}
ROUNDS, MOST, LENGTH = 6, 3, 40


@functools.cache
def model(cache):
  how = dict(length=LENGTH, **MODELS[cache])
  return _table.model(**how), _table.model_params(**how)


@pytest.mark.slow
@pytest.mark.parametrize('cache', MODELS)
def test_tokens_taken_back_leave_no_trace(cache):
  """Six rounds: four tokens in one pass, then 0 ... 3 of them back, row by row; the ring wraps. The
  logits of what stays are those of a whole forward; the first tokens are padding.
  """
  net, variables = model(cache)
  rng = np.random.default_rng(0)
  read = rng.integers(0, _table.VOCAB, (ROUNDS, 3, MOST + 1)).astype(np.int32)
  dropped = rng.integers(0, MOST + 1, (ROUNDS, 3)).astype(np.int32)
  dropped[0] = 0, MOST, 1

  @jax.jit
  def play(read, dropped):
    steps = decode_loop.Steps(net, variables)
    length = LENGTH if 'full' in cache else 1000  # a ring needs no more than its windows
    slot = decode_loop.Slot(
      net.init_cache(registry.make('cache', cache), 3, length), jnp.zeros(3, jnp.int32)
    )
    _, (filled, *_) = steps.many(slot, jnp.zeros((3, 2), jnp.int32), jnp.zeros((3, 2), bool))
    slot, out = slot._replace(cache=filled), []
    for tokens, n in zip(read, dropped):
      logits, slot = steps.many(slot, tokens)
      slot = steps.back(slot, n, MOST)
      one, ahead = steps(slot, tokens[:, 0])
      slot = steps.back(ahead, jnp.ones(3, jnp.int32), MOST)
      out.append((logits, one))
    return out, slot[1]

  out, positions = play(read, dropped)
  whole = jax.jit(lambda tokens: decode_loop.Steps(net, variables).alone(tokens))
  for row in range(3):
    ids = []
    for tokens, n, (logits, one) in zip(read, dropped, out):
      kept = MOST + 1 - n[row]
      for t in range(kept):
        padded = np.full((1, LENGTH), -1, np.int32)
        text = [*ids, *tokens[row, : t + 1]]
        padded[0, -len(text) :] = text
        _table.close(logits[row, t], whole(padded)[0], tol=3e-5)
      ids += tokens[row, :kept].tolist()
      padded[0, -len(ids) - 1 :] = [*ids, tokens[row, 0]]
      _table.close(one[row], whole(padded)[0], tol=3e-5)
    assert positions[row] == len(ids)


def test_a_ring_without_room_is_refused():
  net, _ = model('window(spare=3)')
  made = lambda spec: net.init_cache(registry.make('cache', spec), 1, 30)
  slot = lambda spec: decode_loop.Slot(made(spec), jnp.zeros(1, jnp.int32))
  for spec in ('window()', 'window(spare=2)'):
    with pytest.raises(kinds.Unsupported, match='needs spare=3 or the cache full'):
      decode_loop.back(slot(spec), jnp.ones(1, jnp.int32), 3)
  with pytest.raises(ValueError, match='spare=-1'):
    slot('window(spare=-1)')


def test_a_state_that_cannot_go_back_is_refused():
  net = _table.model(length=LENGTH, blocks__block__mixer='deltanet(head_dim=8)', position='none()')
  slot = decode_loop.Slot(
    net.init_cache(registry.make('cache', 'full()'), 1, 30), jnp.zeros(1, jnp.int32)
  )
  with pytest.raises(kinds.Unsupported, match='cannot go back'):
    decode_loop.back(slot, jnp.ones(1, jnp.int32), 3)


@pytest.mark.slow
def test_rows_are_gathered_in_every_layer():
  net, variables = model('full()')
  tokens = jnp.int32([[1, 2], [3, 4], [5, 6]])

  @jax.jit
  def play(order):
    steps = decode_loop.Steps(net, variables)
    slot = decode_loop.Slot(
      net.init_cache(registry.make('cache', 'full()'), 3, 8), jnp.zeros(3, jnp.int32)
    )
    _, slot = steps.many(slot, tokens)
    return steps(slot, jnp.int32([7, 7, 7]))[0], steps(steps.rows(slot, order), order * 0 + 7)[0]

  plain, gathered = play(jnp.int32([2, 0, 0, 1]))
  _table.close(gathered, np.asarray(plain)[[2, 0, 0, 1]])

"""Several texts of each row, searched by the sum of their tokens' scores.

Of the continuations of a row's K live texts the best 2K are looked at: those that end join the
ended texts, of which the K best stay, and the best K of the others live on. A text that lives no
more has the score -inf.

Axes: B rows, K texts, M continuations, T tokens.
"""

from flax import struct
import jax
import jax.numpy as jnp


@struct.dataclass
class Beams:
  """texts: live ones, -1 from the next token on. ended: those that met eos, it included. t: tokens
  of the live ones.
  """

  texts_BKT: jax.Array
  score_BK: jax.Array
  ended_BKT: jax.Array
  ended_score_BK: jax.Array
  t: jax.Array


def first(rows: int, k: int, length: int) -> Beams:
  """One live text in each row, the empty one."""
  texts = jnp.full((rows, k, length), -1, jnp.int32)
  none = jnp.full((rows, k), -jnp.inf)
  return Beams(texts, none.at[:, 0].set(0.0), texts, none, jnp.zeros((), jnp.int32))


def grow(beams: Beams, parents_M, tokens_BM, scores_BM, eos, *, ties_BM=None, mean: bool = False):
  """(beams with one token more, the parent of each live text (B, K), its token (B, K)).

  Args:
    parents_M: the text that each continuation continues. tokens_BM, scores_BM: the continuations
      and their whole scores, -inf for none. ties_BM: what decides between equal scores, the larger
      first; then the order does.
    mean: ended texts are kept by score over length, instead of by score.
  """
  k = beams.score_BK.shape[1]
  ties_BM = jnp.zeros_like(scores_BM) if ties_BM is None else ties_BM
  order_BM = jnp.lexsort((-ties_BM, -scores_BM), axis=-1)[:, : 2 * k]
  scores, tokens = _take(scores_BM, order_BM), _take(tokens_BM, order_BM)
  parents = parents_M[order_BM]
  texts = _take(beams.texts_BKT, parents).at[:, :, beams.t].set(tokens)
  ends = (tokens == eos) & (scores > -jnp.inf)
  score_BK, live = jax.lax.top_k(jnp.where(ends, -jnp.inf, scores), k)
  every = jnp.concatenate([beams.ended_BKT, texts], axis=1)
  every_score = jnp.concatenate([beams.ended_score_BK, jnp.where(ends, scores, -jnp.inf)], axis=1)
  _, kept = jax.lax.top_k(means(every, every_score) if mean else every_score, k)
  grown = Beams(
    _take(texts, live), score_BK, _take(every, kept), _take(every_score, kept), beams.t + 1
  )
  return grown, _take(parents, live), _take(tokens, live)


def best(beams: Beams):
  """(texts_BKT, scores over lengths (B, K)): of live and ended ones the K with the largest."""
  texts = jnp.concatenate([beams.ended_BKT, beams.texts_BKT], axis=1)
  scores = means(texts, jnp.concatenate([beams.ended_score_BK, beams.score_BK], axis=1))
  mean_BK, kept = jax.lax.top_k(scores, beams.score_BK.shape[1])
  return _take(texts, kept), mean_BK


def means(texts_BKT, scores_BK):
  """Scores over lengths."""
  return scores_BK / jnp.maximum(jnp.sum(texts_BKT >= 0, axis=-1), 1)


def _take(a, index):
  """a[b, index[b, i]] along the second axis."""
  return jax.vmap(lambda row, i: row[i])(a, index)

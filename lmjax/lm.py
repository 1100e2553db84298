"""What evals see of a model: log-probabilities of given text, and generated text (`kinds.LM`).

Every request becomes windows: rows of tokens of which the last few are scored. Windows are sorted
by length, padded on the right with segment 0 to a few lengths, and run in batches of one shape for
each length. The model gives float32 log-probabilities, sums are float64.

The first token. A token without any token before it can only be scored after a prefix token: the
tokenizer's bos, or its eos where it has no bos. With neither, the first token of a text is not
scored. `LM.protocol` says which; evals write it into the names of their scores.

Encoding a pair (the rule of lm-evaluation-harness): white space at the end of the context moves to
the front of the continuation; both are encoded as one text, and the continuation's tokens are those
after the first len(encode(context)). Contexts are cut from the left.
"""

import functools
from typing import Any, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmjax import generate as generate_lib
from lmjax import kinds
from lmjax.nn import embedding
from lmjax.parallel import shard

SMALLEST, BATCH_TOKENS, LOGIT_TOKENS = 32, 4096, 1024


class Window(NamedTuple):
  """Inputs are tokens[:-1]; the last `scored` of tokens[1:] are scored, as those of request
  `owner`.
  """

  owner: int
  tokens: np.ndarray
  scored: int


@functools.partial(jax.jit, static_argnames='net')
def score(net: generate_lib.Fixed, variables, tokens_BT, segments_BT, targets_BT):
  """(log-probability of each target, whether it is the argmax), both (B, T). Logits exist for about
  1000 tokens at a time.
  """
  return generate_lib.automatic(functools.partial(_score, net.obj))(
    variables, tokens_BT, segments_BT, targets_BT
  )


def _score(architecture, variables, tokens_BT, segments_BT, targets_BT):
  rows, steps = tokens_BT.shape
  positions_BT = jnp.broadcast_to(jnp.arange(steps, dtype=jnp.int32), (rows, steps))
  out = architecture.apply(
    variables, tokens_BT, kinds.Ctx(positions_BT=positions_BT, segments_BT=segments_BT)
  )
  least = generate_lib.least_rows()
  group = generate_lib.power_of_two(max(1, LOGIT_TOKENS // steps), least)
  group = group if rows % group == 0 else least

  def one(args):
    hidden_BTD, wanted_BT = args
    logits_BTV = embedding.logits(out._replace(hidden_BTD=hidden_BTD))
    picked_BT = jnp.take_along_axis(logits_BTV, wanted_BT[..., None], axis=-1)[..., 0]
    return picked_BT - jax.nn.logsumexp(logits_BTV, axis=-1), jnp.argmax(
      logits_BTV, axis=-1
    ) == wanted_BT

  split = lambda a: a.reshape(rows // group, group, *a.shape[1:])
  logp, right = jax.lax.map(one, (split(out.hidden_BTD), split(targets_BT)))
  whole = lambda a: shard.shard(a.reshape(rows, steps), None, None)  # every process reads all of it
  return whole(logp), whole(right)


class LM:
  """A causal model with its tokenizer.

  Args:
    architecture: with `model`; variables: its collections. length: tokens that the model sees at
      once, at least 2.
    prefix: 'auto' (bos, else eos, else none), an id, or None: the token before a text that has no
      context.
    bos: whether the prefix also stands before every context, as for models trained with `data.bos`.
    batch_tokens: padded tokens in a batch; no result depends on it beyond rounding.

  Log-likelihoods of a model that looks ahead raise kinds.Unsupported: it has none of this kind.
  """

  def __init__(
    self,
    architecture,
    variables,
    tokenizer,
    *,
    length: int,
    prefix: int | str | None = 'auto',
    bos: bool = False,
    batch_tokens: int = BATCH_TOKENS,
  ):
    if length < 2:
      raise ValueError(f'length={length}: at least 2 tokens are expected')
    named = {'bos': tokenizer.bos, 'eos': tokenizer.eos}
    self.prefix = (
      next((i for i in named.values() if i is not None), None) if prefix == 'auto' else prefix
    )
    if bos and self.prefix is None:
      raise ValueError('bos=True: the tokenizer has neither a bos nor an eos token')
    self.architecture, self.variables, self.tokenizer = architecture, variables, tokenizer
    self.length, self.bos, self.batch_tokens = length, bos, batch_tokens
    self.prefix_name = (
      'none'
      if self.prefix is None
      else next((k for k, i in named.items() if i == self.prefix), str(self.prefix))
    )

  @property
  def protocol(self) -> dict[str, Any]:
    """What a score depends on besides model and data: context length, the prefix, whether contexts
    begin with it.
    """
    return dict(length=self.length, prefix=self.prefix_name + ('+' if self.bos else ''))

  # ---- requests

  def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """(sum of log-probabilities in nats, whether greedy decoding gives it) of each (context,
    continuation).

    An empty context is the prefix; without one the continuation's first token is not scored. Raises
    ValueError for an empty continuation, and for one of which nothing can be scored.
    """
    found = self.loglikelihood_tokens([self.encode_pair(*p) for p in pairs])
    return [(float(logp.sum()), bool(right.all())) for logp, right in found]

  def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Ids of a pair by the rule above. Where the border lies inside a token, that token belongs to
    the continuation.
    """
    if not continuation:
      raise ValueError(f'the continuation of {context[-40:]!r} is empty: there is nothing to score')
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    whole = [int(i) for i in self.tokenizer.encode(kept + continuation)]
    n = min(len(self.tokenizer.encode(kept)), len(whole) - 1) if kept else 0
    return whole[:n], whole[n:]

  def loglikelihood_tokens(
    self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """(log-probability float64, argmax-correctness) of every continuation token of (context ids,
    continuation ids).

    An empty context is the prefix; with `bos` the prefix also goes before contexts that do not
    begin with it. Without a prefix the first token after an empty context is left out of the
    result.
    """
    windows, pieces = [], []
    for i, (context, continuation) in enumerate(pairs):
      before = self._front(context) + list(context)
      stream = np.asarray(before + list(continuation), np.int32)
      scored = len(continuation) if before else len(continuation) - 1
      if scored < 1:
        raise ValueError(
          'a continuation of one token with an empty context cannot be scored: the tokenizer has '
          'neither bos nor eos'
        )
      pieces.append(scored)
      windows += tail_windows(i, stream, scored, self.length)
    logp, right = self._run(windows, len(pairs))
    assert [len(x) for x in logp] == pieces
    return list(zip(logp, right))

  def rolling(self, ids: Sequence[int], stride: int | None = None) -> np.ndarray:
    """Log-probabilities, float64, of the tokens of a document, each scored once.

    Window k sees tokens k s ... k s + length of the stream (prefix + ids) and scores those that no
    window before it scored: all of the first one's, then `stride` each. stride = length (the
    default) gives disjoint windows, 1 the full context everywhere. Without a prefix the first token
    is not scored, and the result is one shorter than the document.
    """
    stride = self.length if stride is None else stride
    if not 1 <= stride <= self.length:
      raise ValueError(f'stride={stride}: from 1 to the model length {self.length} is expected')
    stream = np.asarray(([] if self.prefix is None else [self.prefix]) + list(ids), np.int32)
    return self._run(rolling_windows(0, stream, self.length, stride), 1)[0][0]

  def generate(
    self, prompts: Sequence[str], max_tokens: int, stop: Sequence[str] = ()
  ) -> list[str]:
    """Greedy text after each prompt, ended before the first of `stop`, at eos, or after max_tokens.
    Prompts are cut from the left.
    """
    if not 1 <= max_tokens < self.length:
      raise ValueError(
        f'max_tokens={max_tokens}: from 1 to {self.length - 1} is expected, below the model length'
      )
    room = self.length - max_tokens
    ids = [generate_lib.prompt_ids(self.tokenizer, p, self.bos)[-room:] for p in prompts]
    out: list[str] = [''] * len(ids)
    rows = generate_lib.power_of_two(max(1, self.batch_tokens // self.length))
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for start in range(0, len(order), rows):
      mine = order[start : start + rows]
      new = generate_lib.generate(
        self.architecture,
        self.variables,
        [ids[i] for i in mine],
        max_tokens=max_tokens,
        eos=self.tokenizer.eos,
      )
      for i, n in zip(mine, new):
        out[i] = cut(generate_lib.new_text(self.tokenizer, ids[i], n.tolist()), stop)
    return out

  # ---- running windows

  def _front(self, context: Sequence[int]) -> list[int]:
    wanted = not len(context) or (self.bos and context[0] != self.prefix)
    return [self.prefix] if wanted and self.prefix is not None else []

  def _run(
    self, windows: Sequence[Window], owners: int
  ) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Scores of each owner's windows, joined in their order."""
    self.architecture.model.require(
      'causal', 'looks ahead: evals by log-likelihood need a causal model'
    )
    logp = [np.zeros(0)] * len(windows)
    right = [np.zeros(0, bool)] * len(windows)
    buckets: dict[int, list[int]] = {}
    for i, w in enumerate(windows):
      buckets.setdefault(self._bucket(len(w.tokens) - 1), []).append(i)
    for steps, members in sorted(buckets.items()):
      members.sort(key=lambda i: len(windows[i].tokens))
      least = generate_lib.least_rows()
      rows = min(
        generate_lib.power_of_two(max(1, self.batch_tokens // steps), least),
        generate_lib.power_of_two(len(members), least),
      )
      for start in range(0, len(members), rows):
        mine = members[start : start + rows]
        for i, (a, b) in zip(mine, self._batch([windows[i] for i in mine], rows, steps)):
          logp[i], right[i] = a, b
    per = [[] for _ in range(owners)]
    for i, w in enumerate(windows):
      per[w.owner].append(i)
    join = lambda parts, empty: [np.concatenate([empty, *(parts[i] for i in p)]) for p in per]
    return join(logp, np.zeros(0)), join(right, np.zeros(0, bool))

  def _bucket(self, steps: int) -> int:
    return min(self.length, generate_lib.power_of_two(steps, SMALLEST))

  def _batch(self, windows: Sequence[Window], rows: int, steps: int):
    """(log-probabilities, argmax-correctness) of the scored tokens of each window, one program for
    each (rows, steps).
    """
    tokens = np.zeros((rows, steps), np.int32)
    segments, targets = np.zeros_like(tokens), np.zeros_like(tokens)
    for r, w in enumerate(windows):
      n = len(w.tokens) - 1
      tokens[r, :n], targets[r, :n], segments[r, :n] = w.tokens[:-1], w.tokens[1:], 1
    logp, right = jax.device_get(
      score(generate_lib.Fixed(self.architecture), self.variables, tokens, segments, targets)
    )
    spans = [slice(len(w.tokens) - 1 - w.scored, len(w.tokens) - 1) for w in windows]
    return [(logp[r, s].astype(np.float64), right[r, s]) for r, s in enumerate(spans)]


def rolling_windows(owner: int, stream: np.ndarray, length: int, stride: int) -> list[Window]:
  """Windows over stream[1:], each token scored in exactly one of them."""
  out, done = [], 1  # stream[done] is the next token to score
  start = 0
  while done < len(stream):
    stop = min(start + length + 1, len(stream))
    out.append(Window(owner, stream[start:stop], stop - done))
    done, start = stop, start + stride
  return out


def tail_windows(owner: int, stream: np.ndarray, scored: int, length: int) -> list[Window]:
  """Windows that score the last `scored` tokens, with as much before them as fits.

  One window where they fit; longer ones in pieces of half the length, so that each keeps half of it
  as context.
  """
  piece = scored if scored <= length else max(1, length // 2)
  out, done = [], len(stream) - scored
  while done < len(stream):
    stop = min(done + piece, len(stream))
    out.append(Window(owner, stream[max(0, stop - length - 1) : stop], stop - done))
    done = stop
  return out


def cut(text: str, stop: Sequence[str]) -> str:
  """The text before the first of the stop strings."""
  return text[: min((i for i in (text.find(s) for s in stop if s) if i >= 0), default=len(text))]

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

A model that learnt to answer prompts (`prompts.Prompts.task`, such as an encoder-decoder) reads the
context as its prompt and is scored on the continuation. Both together have at most `length` tokens;
a continuation of more than half of that is scored in pieces of half, each behind a prompt of all
that stands before it. A document is rolled over in the same pieces, of `stride` tokens.
"""

import functools
from typing import Any, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmjax import generate as generate_lib
from lmjax import kinds
from lmjax import padding
from lmjax import progress
from lmjax import prompts as prompts_lib
from lmjax.nn import embedding
from lmjax.parallel import shard
from lmjax.windows import Window as Window
from lmjax.windows import asked_windows as asked_windows
from lmjax.windows import rolling_windows as rolling_windows
from lmjax.windows import tail_windows as tail_windows

SMALLEST, BATCH_TOKENS, LOGIT_TOKENS = 32, 4096, 1024


@functools.partial(jax.jit, static_argnames='net')
def score(
  net: generate_lib.Fixed,
  variables,
  tokens_BT,
  segments_BT,
  targets_BT,
  source: kinds.Text | None = None,
  prefix_BT=None,
):
  """(log-probability of each target, whether it is the argmax), both (B, T). Logits exist for about
  1000 tokens at a time.
  """
  return generate_lib.automatic(functools.partial(_score, net.obj))(
    variables, tokens_BT, segments_BT, targets_BT, source, prefix_BT
  )


def _score(architecture, variables, tokens_BT, segments_BT, targets_BT, source, prefix_BT):
  rows, steps = tokens_BT.shape
  positions_BT = jnp.broadcast_to(jnp.arange(steps, dtype=jnp.int32), (rows, steps))
  ctx = kinds.Ctx(positions_BT, segments_BT, prefix_BT=prefix_BT, source=source)
  out = architecture.apply(variables, tokens_BT, ctx)
  least = padding.least_rows()
  group = padding.power_of_two(max(1, LOGIT_TOKENS // steps), least)
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
    batch_tokens: padded tokens in a batch; no result depends on it beyond rounding. task, name: the
      transform that lays prompts out, and its name in scores, see `prompts.Prompts`.

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
    task: Any = None,
    name: str | None = None,
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
    self.prompts = prompts_lib.Prompts(tokenizer, bos, task, name)
    self.prefix_name = (
      'none'
      if self.prefix is None
      else next((k for k, i in named.items() if i == self.prefix), str(self.prefix))
    )

  @property
  def protocol(self) -> dict[str, Any]:
    """What a score depends on besides model and data: context length, the prefix, whether contexts
    begin with it, and who lays prompts out.
    """
    asked = {} if self.prompts.task is None else dict(prompts=self.prompts.name)
    return dict(length=self.length, prefix=self.prefix_name + ('+' if self.bos else ''), **asked)

  def require_likelihoods(self):
    """Raises kinds.Unsupported for a model that looks ahead, naming the mixer, and for one that
    never learnt to go on from a text.
    """
    self._require_causal()
    try:
      self.prompts.prompt([0])
    except ValueError as e:
      raise kinds.Unsupported(str(e)) from e

  def _require_causal(self):
    self.architecture.model.require(
      'causal', 'looks ahead: evals by log-likelihood need a causal model'
    )

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
      windows += self._windows(i, stream, scored)
    logp, right = self._run(windows, len(pairs))
    assert [len(x) for x in logp] == pieces
    return list(zip(logp, right))

  def rolling(self, ids: Sequence[int], stride: int | None = None) -> np.ndarray:
    """Log-probabilities, float64, of the tokens of a document, each scored once.

    Window k sees tokens k s ... k s + length of the stream (prefix + ids) and scores those that no
    window before it scored: all of the first one's, then `stride` each. stride = length (the
    default) gives disjoint windows, 1 the full context everywhere. Without a prefix the first token
    is not scored, and the result is one shorter than the document.

    Where prompts are laid out, each `stride` tokens (by default and at most half the length) are
    scored behind a prompt of those before them, length - stride at most.
    """
    most = self.stride
    stride = most if stride is None else stride
    if not 1 <= stride <= most:
      what = 'the model length' if most == self.length else 'half the model length,'
      raise ValueError(f'stride={stride}: from 1 to {what} {most} is expected')
    stream = np.asarray(([] if self.prefix is None else [self.prefix]) + list(ids), np.int32)
    if self.prompts.task is None:
      return self._run(rolling_windows(0, stream, self.length, stride), 1)[0][0]
    return self._run(self._windows(0, stream, len(stream) - 1, stride), 1)[0][0]

  @property
  def stride(self) -> int:
    """That of `rolling` where none is given, the largest there is."""
    return self.length if self.prompts.task is None else self.length // 2

  @property
  def stride_name(self) -> str:
    """`stride` in the names of scores."""
    return 'length' if self.prompts.task is None else 'half'

  def generate(
    self,
    prompts: Sequence[str],
    max_tokens: int,
    stop: Sequence[str] = (),
    *,
    rule: str = 'greedy()',
    seed: int = 0,
  ) -> list[str]:
    """Text after each prompt, ended before the first of `stop`, at eos, or after max_tokens.
    Prompts are cut from the left; an empty one is the prefix. Raises ValueError where that is none.

    rule: a decoding spec of filters. Draws follow from the seed, the prompt and how often it came
    before.
    """
    if not 1 <= max_tokens < self.length:
      raise ValueError(
        f'max_tokens={max_tokens}: from 1 to {self.length - 1} is expected, below the model length'
      )
    room = self.length - max_tokens
    ids = [[int(i) for i in self.tokenizer.encode(p)] for p in prompts]
    ids = [(self._front(x) + x)[-room:] for x in ids]
    if not all(ids):
      raise ValueError('a prompt is empty, and no token stands before a text that has no context')
    out: list[str] = [''] * len(ids)
    rows = padding.power_of_two(max(1, self.batch_tokens // self.length))
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    asked = [self.prompts.prompt(x) for x in ids]
    turns = generate_lib.counted(asked)
    for start in progress.track(range(0, len(order), rows), 'writing', unit='batches'):
      mine = order[start : start + rows]
      new = generate_lib.generate(
        self.architecture,
        self.variables,
        [asked[i] for i in mine],
        max_tokens=max_tokens,
        rule=rule,
        seed=seed,
        turns=[turns[i] for i in mine],
        eos=self.tokenizer.eos,
        tokenizer=self.tokenizer,
      )
      for i, n in zip(mine, new):
        out[i] = cut(self.prompts.new_text(ids[i], n.tolist()), stop)
    return out

  # ---- running windows

  def _front(self, context: Sequence[int]) -> list[int]:
    wanted = not len(context) or (self.bos and context[0] != self.prefix)
    return [self.prefix] if wanted and self.prefix is not None else []

  def _windows(self, owner: int, stream: np.ndarray, scored: int, piece: int | None = None):
    if self.prompts.task is None:
      return tail_windows(owner, stream, scored, self.length)
    piece = self.stride if piece is None else piece
    return asked_windows(owner, stream, scored, self.length, piece, self.prompts.prompt)

  def _run(
    self, windows: Sequence[Window], owners: int
  ) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Scores of each owner's windows, joined in their order."""
    self._require_causal()
    logp = [np.zeros(0)] * len(windows)
    right = [np.zeros(0, bool)] * len(windows)
    buckets: dict[tuple[int, int], list[int]] = {}
    for i, w in enumerate(windows):
      sizes = self._bucket(len(w.tokens) - 1), self._bucket(len(w.source or ()))
      buckets.setdefault(sizes, []).append(i)
    with progress.Count('scoring', len(windows), 'windows') as count:
      for (steps, read), members in sorted(buckets.items()):
        members.sort(key=lambda i: len(windows[i].tokens))
        least = padding.least_rows()
        rows = min(
          padding.power_of_two(max(1, self.batch_tokens // (steps + read)), least),
          padding.power_of_two(len(members), least),
        )
        for start in range(0, len(members), rows):
          mine = members[start : start + rows]
          for i, (a, b) in zip(mine, self._batch([windows[i] for i in mine], rows, steps, read)):
            logp[i], right[i] = a, b
          count.add(len(mine))
    per = [[] for _ in range(owners)]
    for i, w in enumerate(windows):
      per[w.owner].append(i)
    join = lambda parts, empty: [np.concatenate([empty, *(parts[i] for i in p)]) for p in per]
    return join(logp, np.zeros(0)), join(right, np.zeros(0, bool))

  def _bucket(self, steps: int) -> int:
    """Columns of a row; a prompt may have a few tokens more than `length`."""
    most = self.length
    if self.prompts.task is not None:
      limit = generate_lib.context_limit(self.architecture)
      most = 1 << 31 if limit is None else limit
    return min(most, padding.power_of_two(steps, SMALLEST)) if steps else 0

  def _batch(self, windows: Sequence[Window], rows: int, steps: int, read: int):
    """(log-probabilities, argmax-correctness) of the scored tokens of each window, one program for
    each (rows, steps, read).
    """
    tokens = np.zeros((rows, steps), np.int32)
    segments, targets, prefix = np.zeros_like(tokens), np.zeros_like(tokens), np.zeros_like(tokens)
    for r, w in enumerate(windows):
      n = len(w.tokens) - 1
      tokens[r, :n], targets[r, :n], segments[r, :n] = w.tokens[:-1], w.tokens[1:], 1
      prefix[r, : w.prefix] = 1
    source = padding.source([w.source for w in windows], read, rows) if read else None
    seen = prefix if prefix.any() else None
    net = generate_lib.Fixed(self.architecture)
    logp, right = jax.device_get(
      score(net, self.variables, tokens, segments, targets, source, seen)
    )
    spans = [slice(len(w.tokens) - 1 - w.scored, len(w.tokens) - 1) for w in windows]
    return [(logp[r, s].astype(np.float64), right[r, s]) for r, s in enumerate(spans)]


def cut(text: str, stop: Sequence[str]) -> str:
  """The text before the first of the stop strings."""
  return text[: min((i for i in (text.find(s) for s in stop if s) if i >= 0), default=len(text))]

"""Text from a model: ragged prompts in one batch, a prefill, then one compiled loop over tokens
with a cache (`decode_loop`).

Prompts are padded on the left with segment 0, so that all rows end in the same column; the position
of a row's first real token is 0. Where that needs fewer rows, the prefill reads several prompts in
one, as documents are packed for training, and each gets what the cache holds of it
(`padding.packed`). All but the last token of each prompt go through `prefill`; the
loop feeds the last one and what follows. An encoder reads its source there, once; a prefix that all
may see goes through it whole, and the loop feeds its last token again. A row gives the same alone
and in any batch, since rows share no key, unless the model takes scales or outliers from all rows
of a product, as matrices in int8 activations do (`models/linears/int8.py`). Shapes are rounded up
(rows and prompts to powers of two, new tokens to a multiple of 64), so that few programs are
compiled, once for each architecture in a process.

Axes: B rows, P prompt columns, T new tokens.
"""

import functools
from typing import Any, Hashable, Iterable, NamedTuple, Sequence
import zlib

import jax
import numpy as np

from lmjax import decode_checks
from lmjax import kinds
from lmjax import padding
from lmjax import prompts as prompts_lib
from lmjax import registry
from lmjax.decode_checks import check as check
from lmjax.decode_loop import Fixed as Fixed
from lmjax.decode_loop import automatic as automatic
from lmjax.decode_loop import context_limit as context_limit
from lmjax.decode_loop import decode as decode
from lmjax.decode_loop import prefill as prefill
from lmjax.decoding import _base

SMALLEST_PROMPT, TOKENS_MULTIPLE = 16, 64


class Drafts(NamedTuple):
  """Several texts for one prompt, the best first: ids, and exp(-score / length) of each by the
  scores of the rule, which may be no likelihood.
  """

  texts: list[np.ndarray]
  perplexities: list[float]


class Text(NamedTuple):
  """What `sample_texts` gives; perplexity is that of `Drafts`, None for rules of one text. joined:
  whether it goes on where the prompt ends, else it is an answer of its own.
  """

  text: str
  perplexity: float | None
  joined: bool = True


def row_keys(prompts: Sequence[Sequence[int]], seed: int, turns: Sequence[int] | None = None):
  """A key for each row from the seed, the prompt and how often the prompt came before (`turns`,
  counted here where not given), hence not from the rest of the batch.
  """
  marks = [zlib.crc32(np.asarray(p, np.int64).tobytes()) for p in prompts]
  given = counted(map(tuple, prompts)) if turns is None else turns
  return _folded(seed, np.asarray(marks, np.uint32), np.asarray(given, np.uint32))


def counted(prompts: Iterable[Hashable]) -> list[int]:
  """How often each prompt came before."""
  seen: dict[Hashable, int] = {}
  out = []
  for p in prompts:
    out.append(seen.get(p, 0))
    seen[p] = out[-1] + 1
  return out


@jax.jit
def _folded(seed, marks_B, turns_B):
  one = lambda mark, turn: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), mark), turn)
  return jax.vmap(one)(marks_B, turns_B)


def generate(
  architecture,
  variables,
  prompts: Sequence[Sequence[int] | kinds.Prompt],
  *,
  max_tokens: int,
  rule: str = 'greedy()',
  seed: int = 0,
  eos: int | None = None,
  cache: str = 'full()',
  others: Sequence[tuple[Any, Any]] = (),
  tokenizer=None,
  turns: Sequence[int] | None = None,
) -> list[Any]:
  """New tokens for each prompt, int32, without the end token; `Drafts` for a rule of several texts.

  Args:
    architecture: with `model`; variables: its collections. prompts: ids, each at least one, or
      `kinds.Prompt` where a model reads more than them.
    max_tokens: new tokens at most. rule: decoding spec, e.g. 'top_k(k=40) | temperature(t=0.8)'.
      eos: the token that ends a row.
    cache: cache spec; 'window()' keeps memory flat for models whose every mixer has a window.
    others: (architecture, variables) of further models, for rules that take several.
    tokenizer: what the rule's own files are checked against; ids that it does not know are never
      written, where the model has more.
    turns: how often each prompt was asked before, which `seed` tells apart; within `prompts`, where
      it is not given.

  Raises:
    ValueError: no prompt or an empty one, ids outside the vocabulary, more tokens than a model has
      positions, models of different vocabularies, a file of the rule that cannot be read.
    Unsupported: a mixer that cannot decode, a cache that does not suit it, a rule for another
      number of models, or one that goes back where a model cannot. SpecError: `rule` or `cache`
      cannot be read.
  """
  found = decoded(
    [(architecture, variables), *others],
    prompts,
    max_tokens=max_tokens,
    rule=rule,
    seed=seed,
    eos=eos,
    cache=cache,
    tokenizer=tokenizer,
    turns=turns,
  )
  return [] if found is None else [_result(*row, eos) for row in zip(*found[:2])]


def decoded(
  models: Sequence[tuple[Any, Any]],
  prompts: Sequence[Sequence[int] | kinds.Prompt],
  *,
  max_tokens: int,
  rule: str,
  seed: int = 0,
  eos: int | None = None,
  cache: str = 'full()',
  tokenizer=None,
  turns: Sequence[int] | None = None,
):
  """(texts, scores, steps) of `decode_loop.Decoded`, numpy, a row for each prompt; scores are a
  list of None for plain rules. None where there is no prompt. Else as `generate`.
  """
  if not len(prompts):
    return None
  asked = [p if isinstance(p, kinds.Prompt) else prompts_lib.plain(p) for p in prompts]
  chain, kind = registry.make_chain('decoding', rule), registry.make('cache', cache)
  architectures = [architecture for architecture, _ in models]
  decode_checks.models(chain, architectures)
  for architecture in architectures:
    check(architecture, asked, max_tokens)
  made, vocab = _base.rule(chain), architectures[0].model.vocab
  known = vocab if tokenizer is None else min(vocab, tokenizer.vocab_size)
  limits = [n for n in map(context_limit, architectures) if n is not None]
  batch = padding.power_of_two(len(asked), padding.least_rows())
  packs = all(decode_checks.can_pack(a, kind) for a in architectures)
  given = inputs(asked, batch, limits, pack=packs)
  tokens = -(-max_tokens // TOKENS_MULTIPLE) * TOKENS_MULTIPLE
  size = given[0].shape[1] + tokens + made.ahead
  if made.ahead or given[4] is not None:
    decode_checks.can_go_back(architectures, kind, size, max(made.ahead, 1))
  arrays = made.load(known, tokenizer)
  nets = tuple(Fixed(architecture) for architecture in architectures)
  slots = tuple(
    prefill(net, variables, *given, kind=kind, length=size, streams=made.streams)
    for net, (_, variables) in zip(nets, models)
  )
  texts, spare = [p.text for p in asked], [()] * (batch - len(asked))
  out, _ = decode(
    nets,
    tuple(variables for _, variables in models),
    slots,
    _base.Start(
      padding.tails(texts, made.tail, batch), np.int32(-1 if eos is None else eos), tokens
    ),
    arrays,
    row_keys(
      [(*(p.source or ()), *p.text) for p in asked] + spare,
      seed,
      None if turns is None else [*turns, *[0] * len(spare)],
    ),
    np.arange(batch) >= len(asked),
    max_tokens,
    rule=str(chain),
    vocab=known if len(models) > 1 or known < vocab else None,
  )
  n, none = len(prompts), [None] * len(prompts)
  texts, scores, steps = jax.device_get((out.texts_BKT, out.scores_BK, out.steps_B))
  return texts[:n], none if scores is None else scores[:n], steps[:n]


def inputs(prompts: Sequence[kinds.Prompt], rows: int, limits: Sequence[int], pack: bool = False):
  """What `prefill` reads: tokens, segments and positions of the texts, the source or None, sizes of
  the prefixes or None, where packed texts are or None. limits: columns at most, where there is a
  limit. pack: whether several texts may share a row, where that saves any.
  """
  whole = any(p.prefix for p in prompts)  # a prefix is seen to its last token
  texts = [p.text if whole else p.text[:-1] for p in prompts]
  size = lambda texts: padding.power_of_two(max(map(len, texts)), SMALLEST_PROMPT)
  columns = lambda texts: min([size(texts), *limits])
  sources = [p.source for p in prompts]
  read = None if sources[0] is None else padding.source(sources, columns(sources), rows)
  prefix_B = np.array([p.prefix for p in prompts] + [0] * (rows - len(prompts)), np.int32)
  if pack and read is None and not whole and (found := padding.packed(texts, columns(texts), rows)):
    return *found[:3], None, None, found[3:]
  return *padding.left_padded(texts, columns(texts), rows), read, prefix_B if whole else None, None


def _result(texts_KT, scores_K, eos):
  texts = [_trim(row, eos) for row in texts_KT]
  if scores_K is None:
    return texts[0]
  real = np.isfinite(scores_K)
  return Drafts(
    [t for t, r in zip(texts, real) if r], np.exp(-scores_K[real].astype(np.float64)).tolist()
  )


def _trim(row, eos):
  row = row[row >= 0]
  return row[:-1] if eos is not None and len(row) and row[-1] == eos else row


def sample_texts(
  run: Any,
  variables,
  prompts: Sequence[str],
  *,
  max_tokens: int,
  rule: str,
  seed: int = 0,
  others: Sequence[tuple[Any, Any]] = (),
) -> list[list[Text]]:
  """What the model of a run writes after each prompt, ended by the tokenizer's eos: one text, or
  the drafts of a rule of several.

  Prompts are laid out as the run's rows were (`prompts`). Where a model has fewer positions than
  prompt and `max_tokens` need, less is written. `others` are (run, variables) of further models.
  Raises as `generate` does, and where tokenizers differ.
  """
  tok = run.tokenizer
  for other, _ in others:
    if other.tokenizer.fingerprint() != tok.fingerprint():
      raise ValueError(
        f'the tokenizers {run.config["data"]["tokenizer"]} and {other.config["data"]["tokenizer"]} '
        'differ: models that decode together need the same one'
      )
  made = prompts_lib.of(run)
  ids = [made.ids(p) for p in prompts]
  asked = [made.prompt(i) for i in ids]
  for other, _ in others:
    if [prompts_lib.of(other).prompt(i) for i in ids] != asked:
      raise ValueError(
        'the models learnt from rows of different layouts (config.data.transforms), so that a '
        'prompt is not the same for both; those that decode together need the same'
      )
  limits = [context_limit(r.architecture) for r in (run, *(r for r, _ in others))]
  for limit in (n for n in limits if n is not None):
    max_tokens = max(1, min(max_tokens, limit + 1 - max(len(p.text) for p in asked)))
  new = generate(
    run.architecture,
    variables,
    asked,
    max_tokens=max_tokens,
    rule=rule,
    seed=seed,
    eos=tok.eos,
    others=[(r.architecture, v) for r, v in others],
    tokenizer=tok,
  )
  drafts = [n if isinstance(n, Drafts) else Drafts([n], [None]) for n in new]
  return [
    [Text(made.new_text(i, t), x, p.joined) for t, x in zip(*d)]
    for i, p, d in zip(ids, asked, drafts)
  ]


def sample_text(run: Any, variables, prompt: str, **how) -> str:
  """The (best) text of `sample_texts` for one prompt."""
  return sample_texts(run, variables, [prompt], **how)[0][0].text


def trial(run: Any, prompt: str):
  """Raises ValueError where a model that learnt to answer prompts cannot read this one; nothing is
  computed.
  """
  made = prompts_lib.of(run)
  if made.task is None:
    return
  asked = [made.prompt(made.ids(prompt))]
  check(run.architecture, asked, 1)
  limit = context_limit(run.architecture)
  given = inputs(asked, padding.least_rows(), [] if limit is None else [limit])
  length = given[0].shape[1] + 1
  read = functools.partial(
    prefill, Fixed(run.architecture), kind=registry.make('cache', 'full()'), length=length
  )
  jax.eval_shape(read, run.shapes, *given)

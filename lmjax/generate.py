"""Text from a model: ragged prompts in one batch, a prefill, then one compiled loop over tokens
with a cache (`decode_loop`).

Prompts are padded on the left with segment 0, so that all rows end in the same column; the position
of a row's first real token is 0. All but the last token of each prompt go through `prefill`; the
loop feeds the last one and what follows. A row gives the same alone and in any batch: rows share no
key. Shapes are rounded up (rows and prompts to powers of two, new tokens to a multiple of 64), so
that few programs are compiled, once for each architecture in a process.

Axes: B rows, P prompt columns, T new tokens.
"""

import math
from typing import Any, NamedTuple, Sequence
import zlib

import jax
import numpy as np

from lmjax import decode_checks
from lmjax import registry
from lmjax.decode_checks import check as check
from lmjax.decode_loop import Fixed as Fixed
from lmjax.decode_loop import automatic as automatic
from lmjax.decode_loop import context_limit as context_limit
from lmjax.decode_loop import decode as decode
from lmjax.decode_loop import prefill as prefill
from lmjax.decoding import _base
from lmjax.parallel import shard

SMALLEST_PROMPT, TOKENS_MULTIPLE = 16, 64


class Drafts(NamedTuple):
  """Several texts for one prompt, the best first: ids, and exp(-score / length) of each by the
  scores of the rule, which may be no likelihood.
  """

  texts: list[np.ndarray]
  perplexities: list[float]


class Text(NamedTuple):
  """What `sample_texts` gives; perplexity is that of `Drafts`, None for rules of one text."""

  text: str
  perplexity: float | None


def power_of_two(n: int, least: int = 1) -> int:
  """`least` times the smallest power of two that makes at least n."""
  return least << max(0, -(-n // least) - 1).bit_length()


def left_padded(
  prompts: Sequence[Sequence[int]], columns: int, rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(tokens, segments, positions), each int32 (rows, columns): prompts at the right end, segment 0
  before them and in spare rows.
  """
  tokens = np.zeros((rows, columns), np.int32)
  segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
  for r, p in enumerate(prompts):
    if len(p):
      tokens[r, -len(p) :], segments[r, -len(p) :], positions[r, -len(p) :] = (
        p,
        1,
        np.arange(len(p)),
      )
  return tokens, segments, positions


def least_rows() -> int:
  """Rows that a batch has at least: what the current mesh divides it over."""
  mesh = shard.mesh()
  return math.prod(mesh.shape.get(a, 1) for a in shard.RULES['batch']) if not mesh.empty else 1


def row_keys(prompts: Sequence[Sequence[int]], seed: int):
  """A key for each row from the seed, the prompt and how often the prompt came before, hence not
  from the rest of the batch.
  """
  seen: dict[bytes, int] = {}
  marks, turns = [], []
  for p in prompts:
    data = np.asarray(p, np.int64).tobytes()
    marks.append(zlib.crc32(data))
    turns.append(seen.setdefault(data, 0))
    seen[data] += 1
  return _folded(seed, np.asarray(marks, np.uint32), np.asarray(turns, np.uint32))


@jax.jit
def _folded(seed, marks_B, turns_B):
  one = lambda mark, turn: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), mark), turn)
  return jax.vmap(one)(marks_B, turns_B)


def generate(
  architecture,
  variables,
  prompts: Sequence[Sequence[int]],
  *,
  max_tokens: int,
  rule: str = 'greedy()',
  seed: int = 0,
  eos: int | None = None,
  cache: str = 'full()',
  others: Sequence[tuple[Any, Any]] = (),
  tokenizer=None,
) -> list[Any]:
  """New tokens for each prompt, int32, without the end token; `Drafts` for a rule of several texts.

  Args:
    architecture: with `model`; variables: its collections. prompts: ids, each at least one.
    max_tokens: new tokens at most. rule: decoding spec, e.g. 'top_k(k=40) | temperature(t=0.8)'.
      eos: the token that ends a row.
    cache: cache spec; 'window()' keeps memory flat for models whose every mixer has a window.
    others: (architecture, variables) of further models, for rules that take several.
    tokenizer: what the rule's own files are checked against.

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
  )
  return [] if found is None else [_result(*row, eos) for row in zip(*found[:2])]


def decoded(
  models: Sequence[tuple[Any, Any]],
  prompts: Sequence[Sequence[int]],
  *,
  max_tokens: int,
  rule: str,
  seed: int = 0,
  eos: int | None = None,
  cache: str = 'full()',
  tokenizer=None,
):
  """(texts, scores, steps) of `decode_loop.Decoded`, numpy, a row for each prompt; scores are a
  list of None for plain rules. None where there is no prompt. Else as `generate`.
  """
  if not len(prompts):
    return None
  chain, kind = registry.make_chain('decoding', rule), registry.make('cache', cache)
  architectures = [architecture for architecture, _ in models]
  decode_checks.models(chain, architectures)
  for architecture in architectures:
    check(architecture, prompts, max_tokens)
  made, vocab = _base.rule(chain), architectures[0].model.vocab
  limits = [n for n in map(context_limit, architectures) if n is not None]
  columns = min([power_of_two(max(map(len, prompts)) - 1, SMALLEST_PROMPT), *limits])
  tokens = -(-max_tokens // TOKENS_MULTIPLE) * TOKENS_MULTIPLE
  size = columns + tokens + made.ahead
  if made.ahead:
    decode_checks.can_go_back(architectures, kind, size, made.ahead)
  arrays = made.load(vocab, tokenizer)
  batch = power_of_two(len(prompts), least_rows())
  spare = batch - len(prompts)
  padded = left_padded([p[:-1] for p in prompts], columns, batch)
  nets = tuple(Fixed(architecture) for architecture in architectures)
  slots = tuple(
    prefill(net, variables, *padded, kind=kind, length=size, streams=made.streams)
    for net, (_, variables) in zip(nets, models)
  )
  out, _ = decode(
    nets,
    tuple(variables for _, variables in models),
    slots,
    _base.Start(tails(prompts, made.tail, batch), np.int32(-1 if eos is None else eos), tokens),
    arrays,
    row_keys([*prompts, *[[]] * spare], seed),
    np.arange(batch) >= len(prompts),
    max_tokens,
    rule=str(chain),
    vocab=vocab if len(models) > 1 else None,
  )
  n, none = len(prompts), [None] * len(prompts)
  texts, scores, steps = jax.device_get((out.texts_BKT, out.scores_BK, out.steps_B))
  return texts[:n], none if scores is None else scores[:n], steps[:n]


def tails(prompts, columns: int, batch: int) -> np.ndarray:
  """The last tokens of each prompt, -1 before its first; 0 in spare rows."""
  out = np.full((batch, columns), -1, np.int32)
  out[len(prompts) :] = 0
  for r, p in enumerate(prompts):
    out[r, -len(p) :] = p[-columns:]
  return out


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


def new_text(tokenizer, prompt: Sequence[int], new: Sequence[int]) -> str:
  """The text that `new` adds to the prompt: joined first, since a tokenizer may treat the start of
  a text apart.
  """
  before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *new])
  return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)


def prompt_ids(tokenizer, text: str, bos: bool) -> list[int]:
  """The ids of a prompt, a beginning-of-text token in front where asked for or where there is
  nothing else to start from.
  """
  ids = [int(i) for i in tokenizer.encode(text)]
  start = tokenizer.bos if tokenizer.bos is not None else tokenizer.eos
  if not ids and start is None:
    raise ValueError(
      'the prompt is empty, and the tokenizer has neither a bos nor an eos token to start from'
    )
  return [start, *ids] if start is not None and (bos or not ids) else ids


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

  Prompts begin as the run's documents do (`data.bos`). Where a model has fewer positions than
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
  ids = [prompt_ids(tok, p, run.config['data']['bos']) for p in prompts]
  limits = [context_limit(r.architecture) for r in (run, *(r for r, _ in others))]
  for limit in (n for n in limits if n is not None):
    max_tokens = max(1, min(max_tokens, limit + 1 - max(map(len, ids))))
  new = generate(
    run.architecture,
    variables,
    ids,
    max_tokens=max_tokens,
    rule=rule,
    seed=seed,
    eos=tok.eos,
    others=[(r.architecture, v) for r, v in others],
    tokenizer=tok,
  )
  drafts = [n if isinstance(n, Drafts) else Drafts([n], [None]) for n in new]
  return [[Text(new_text(tok, p, t), x) for t, x in zip(*d)] for p, d in zip(ids, drafts)]


def sample_text(run: Any, variables, prompt: str, **how) -> str:
  """The (best) text of `sample_texts` for one prompt."""
  return sample_texts(run, variables, [prompt], **how)[0][0].text

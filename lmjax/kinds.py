"""The contract of every kind of part, on one page.

A part is one file in its kind's folder, registered as `@register('<kind>', fact=value, ...)`; see
`registry.py`. `context` names the arguments that lmjax supplies (asked for by naming them in the
signature); `facts` lists what may be asked of a part without building it, with the value assumed
when a part is silent. A fact may be a function of the part's arguments. A part that cannot honour
what it is asked for raises `Unsupported`; it never ignores it.

Shapes: B batch, T time (queries), S time (keys), D width, H heads, K head size, F hidden, V
  vocabulary, N layers.
"""

import dataclasses
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Protocol, Sequence

import flax.struct
import jax
import numpy as np


class Unsupported(ValueError):
  """A part was asked for something that it cannot honour."""


@dataclasses.dataclass(frozen=True)
class Kind:
  folder: str
  what: str
  context: tuple[str, ...] = ()
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# fmt: off
KINDS: dict[str, Kind] = {
  # ---- models ----
  'norm': Kind('lmjax.models.norms', 'x -> x, over the last axis',
               facts=dict(scale_invariant=False, shift_invariant=False)),
  'residual': Kind('lmjax.models.residuals', 'a layer: wires norm, mixer, ffn and the carry',
                   context=('mixer', 'ffn', 'norm', 'depth')),
  'mixer': Kind('lmjax.models.mixers', 'mixes positions: (x, ctx, cache) -> (y, cache, aux)',
                facts=dict(causal=True, segments=False, cache=False, cross=False, window=None,
                          recurrent=False)),
  'ffn': Kind('lmjax.models.ffn', 'acts on each position: (x, ctx) -> (y, aux)'),
  'linear': Kind('lmjax.models.linears', 'a parameterization of a matrix',
                 context=('ins', 'outs', 'role', 'scheme', 'bias')),
  'position': Kind('lmjax.models.positions', 'where a token stands: added, rotated, or a bias',
                   context=('length',), facts=dict(relative=False, added=False)),
  'init': Kind('lmjax.models.init', 'initial values and multipliers, from parameter facts',
               context=('depth', 'width')),
  'embed': Kind('lmjax.models.embeds', 'tokens -> x, and the unembedding',
                context=('vocab', 'width', 'dtype'),
                facts=dict(tied=False)),
  'architecture': Kind('lmjax.models.architectures', 'tokens -> Outputs', context=('model',)),
  'cache': Kind('lmjax.models.caches', 'what attention keeps of a text', facts=dict(bounded=False),
                context=('batch', 'length', 'heads', 'head_dim', 'dtype', 'window')),
  # ---- training ----
  'objective': Kind('lmjax.objectives', 'owns its networks: init, loss, optional sample',
                    context=('model', 'tokenizer'),
                    facts=dict(couples='none', lookahead=0, causal=None)),
  'optim': Kind('lmjax.optim', 'an Optax gradient transformation', context=('facts',),
                facts=dict(needs=(), owns_lr=False, gradient_at=None, retract=None, moments=True)),
  'schedule': Kind('lmjax.schedules', 'step -> factor of peak_lr', context=('steps',),
                   facts=dict(extendable=False)),
  'guard': Kind('lmjax.guards', 'refuses the updates of bad steps'),
  # ---- data ----
  'source': Kind('lmjax.data.sources', 'documents', context=('tokenizer',),
                 facts=dict(tokens=False, sequential=False)),
  'transform': Kind('lmjax.data.transforms', 'example -> example, pure in (example, seed)',
                    context=('tokenizer', 'length')),
  'pack': Kind('lmjax.data.packing', 'documents -> rows, planned over lengths'),
  'mixture': Kind('lmjax.data.mixtures', 'weights of the sources, possibly fed by losses',
                  facts=dict(needs=())),
  'tokenizer': Kind('lmjax.tokenizers', 'text <-> ids', facts=dict(lossless=False)),
  # ---- use ----
  'decoding': Kind('lmjax.decoding', 'logits -> next tokens'),
  'eval': Kind('lmjax.evals', 'scores a language model'),
}
# fmt: on


# ------------------------------------------------------------------ models


@flax.struct.dataclass
class Ctx:
  """What a layer may know besides its input.

  Attributes:
    positions_BT: int32, position of each token within its document.
    segments_BT: int32, document of each token in its row; 0 is padding. None means one document and
      no padding.
    depth: index of the layer, a traced scalar under scan.
    memory: encoded source for cross-attention, or None; a mixer whose fact `cross` is False raises
      on it.
    train: dropout and the like act only where True.
    scheme: static; how parameters are made (`init`, `linear`), the model's `position`, dtypes.
  """

  positions_BT: jax.Array
  segments_BT: jax.Array | None = None
  depth: Any = 0
  memory: Any = None
  train: bool = flax.struct.field(pytree_node=False, default=False)
  scheme: Any = flax.struct.field(pytree_node=False, default=None)


Aux = dict[str, jax.Array]
"""What a block part reports: entries `loss/...` are added to the objective, others are metrics."""


class Mixer(Protocol):
  """A Linen module. `cache` is None, or what `init_cache` gave; then x holds only the new tokens.

  Facts: causal, segments (honours documents and padding), cache (can decode step by step), cross,
    window, recurrent (its cache is a state of one size, whatever the cache part).
  """

  def __call__(self, x_BTD, ctx: Ctx, cache: Any = None) -> tuple[jax.Array, Any, Aux]: ...

  def init_cache(self, kind: Any, batch: int, length: int, width: int, dtype) -> Any:
    """An empty cache for `length` tokens; `kind` is the cache part (`nn.nowrap`)."""

  def mixing_flops(self, width: int, length: int) -> tuple[float, float]:
    """Forward FLOPs per token beyond its matrices: over all and over allowed pairs (nn.nowrap)."""


class Ffn(Protocol):
  """A Linen module: y = f(x) for each position."""

  def __call__(self, x_BTD, ctx: Ctx) -> tuple[jax.Array, Aux]: ...


class Norm(Protocol):
  """A Linen module over the last axis, statistics in float32; facts: invariances, to be checked."""

  def __call__(self, x, ctx: Ctx) -> jax.Array: ...


class Residual(Protocol):
  """A Linen module, the layer itself; its fields `mixer`, `ffn`, `norm` build the modules."""

  def __call__(self, carry, ctx: Ctx, cache: Any = None) -> tuple[Any, Any, Aux]: ...

  def enter(self, x_BTD) -> Any:
    """The first carry (`nn.nowrap`)."""

  def leave(self, carry) -> jax.Array:
    """x from the last carry (`nn.nowrap`)."""


class Linear(Protocol):
  """A Linen module with fields ins, outs (pairs of axis name and size), role, scheme, bias.

  Contracts the last len(ins) axes of x and appends the axes of outs. Made through
  `nn.params.dense`.
  """

  def __call__(self, x) -> jax.Array: ...


class Embed(Protocol):
  """A Linen module of vocab, width, dtype. Rows added to round the vocabulary are not predicted."""

  def __call__(self, tokens_BT, ctx: Ctx) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """(x_BTD, unembedding_VD, bias_V or None)."""


class Position(Protocol):
  """A Linen module; `rotate` and `bias` hold no parameters and are `nn.nowrap`."""

  def __call__(self, x_BTD, ctx: Ctx) -> jax.Array:
    """x with absolute positions added, or x itself."""

  def rotate(self, x_BTHK, positions_BT) -> jax.Array:
    """q or k rotated by position, or itself."""

  def bias(self, heads: int, positions_BT, positions_BS) -> jax.Array | None:
    """A bias (B or 1, H, T, S) for the attention logits, or None."""


class Init(Protocol):
  """Built with depth and width. `fact` is `parallel.facts.Fact`."""

  def initializer(self, fact, shape) -> Callable:
    """(key, shape, dtype) -> array."""

  def lr(self, fact, shape) -> float:
    """Factor of this parameter's learning rate; 1 in the standard parameterization."""

  def logit_scale(self) -> float:
    """Factor of the logits."""

  def attention_scale(self, head_dim: int) -> float:
    """Factor of q.k; 1/sqrt(head_dim) unless the parameterization says otherwise."""


class Outputs(NamedTuple):
  """What an architecture returns; `nn.embedding.logits` builds logits from it."""

  hidden_BTD: jax.Array
  unembed_VD: jax.Array
  bias_V: jax.Array | None
  scale: float
  cap: float | None
  cache: Any
  aux: Aux


class Architecture(Protocol):
  """A Linen module built with `model`, the resolved `models.Model`."""

  def __call__(self, tokens_BT, ctx: Ctx, cache: Any = None) -> Outputs: ...

  def init_cache(self, kind, batch: int, length: int) -> Any: ...


class Cache(Protocol):
  """A pytree, built by `part(batch=, length=, heads=, head_dim=, dtype=, window=)`."""

  def append(self, k_BTHK, v_BTHK, positions_BT, segments_BT) -> tuple['Cache', tuple]:
    """The cache with the new tokens, and (k_BSHK, v_BSHK, positions_BS, segments_BS), 0 empty."""


# ------------------------------------------------------------------ training


class Loss(NamedTuple):
  """Sums, never means: the step divides once by all weights. `metrics`: name -> (sum, weight).

  `rows` is (negative log-likelihood, weight) of each row, for standard errors, or None where rows
  do not stand alone.
  """

  sum: jax.Array
  weight: jax.Array
  metrics: dict[str, tuple[jax.Array, jax.Array]]
  vars: Any
  rows: tuple[jax.Array, jax.Array] | None = None


class Objective(Protocol):
  """Owns its networks. A batch: `tokens`, `segments`, `positions`, int32 (B, T + lookahead).

  Facts: couples = 'none' (the loss of a batch is the sum over its rows), 'micro' or 'global';
    lookahead = tokens needed beyond the inputs; causal = the causality demanded of the model, or
    None.
  """

  def init(self, rng, batch) -> dict[str, Any]:
    """Variables, boxed with their facts: collection 'params' is trained, all others are `vars`."""

  def loss(self, params, vars, batch, rng, train: bool = True) -> Loss: ...


class Optim(Protocol):
  """`part(...)` returns an Optax transformation whose update is subtracted after scaling by lr.

  The step passes value (the loss), rng, obj_fn(params, one_in=1) -> the loss, and
  sample_fn(params, rng, one_in=1) -> (sum, weight) of the objective's `sample`, both over one in
  `one_in` rows of the batch. Its field `metrics`, {name: scalar}, is logged as `optim/<part>/...`.

  Facts: needs = which of these it asks for; owns_lr = not scaled by the schedule; gradient_at =
    (its state -> the update that leads to where the gradient is taken), of a part that averages;
    retract = ((its new state, parameters, facts) -> parameters behind the step), of one that
    factorizes anew; moments = False where it keeps a basis, which may have a parameter's shape.
  """


class Schedule(Protocol):
  """`part(steps=)` returns a function. `extendable`: more steps leave past factors as they were."""

  def __call__(self, step) -> jax.Array: ...


class Guard(Protocol):
  """Traced. What it remembers is in the state, and moves on where the step is refused as well."""

  def init(self) -> Any: ...

  def judge(self, state, loss, grad_norm) -> tuple[jax.Array, Any]:
    """(whether the update may be made, the new state)."""


# ------------------------------------------------------------------ data


class Source(Protocol):
  """Documents in a fixed order: str, bytes, or with the fact `tokens` arrays of ids."""

  def fingerprint(self) -> str:
    """Changes when the documents do (paths, sizes, contents)."""

  def __iter__(self) -> Iterator[Any]: ...


class Transform(Protocol):
  """`part(...)` returns a pure function (row, seed) -> row; a row is a dict of int32 arrays."""

  def __call__(self, row: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]: ...


class Pack(Protocol):
  """`part(...)` returns a dataclass (its repr is part of the data's fingerprint) with `plan`.

  `plan` gives the rows of one epoch as spans of documents, a pure function of its arguments, and as
  many rows in every epoch.
  """

  def plan(
    self, lengths: np.ndarray, row_tokens: int, lookahead: int, seed: int, epoch: int
  ) -> 'RowPlan': ...


class RowPlan(Protocol):
  """Rows of one epoch; `plan[i]` is an int64 array (spans, 3) of (document, start, stop)."""

  def __len__(self) -> int: ...

  def __getitem__(self, i: int) -> np.ndarray: ...


class Mixture(Protocol):
  """Weights of the sources; all that changes is in `state`, a pytree kept in the checkpoint."""

  def init(self, names: Sequence[str], weights: Sequence[float], tokens: Sequence[int]) -> Any: ...

  def update(self, state, observed: Mapping[str, Any]) -> Any: ...

  def weights(self, state) -> np.ndarray:
    """Non-negative, of sum 1, in the order of names."""


class Tokenizer(Protocol):
  """Ids are 0 ... vocab_size - 1. bos, eos, pad, mask are ids or None.

  Fact `lossless`: decode_bytes(encode(data)) == data for arbitrary bytes. Text never yields a
    special id. Optional: `encode_batch(texts)`, and a static `train(texts, vocab_size, ...) ->
    bytes of the file`, which `python -m lmjax.tokenize train` offers.
  """

  vocab_size: int
  bos: int | None
  eos: int | None
  pad: int | None
  mask: int | None

  def encode(self, text: str | bytes) -> np.ndarray: ...

  def decode(self, ids: Sequence[int]) -> str: ...

  def fingerprint(self) -> str: ...


# ------------------------------------------------------------------ use


class DecodingRule(Protocol):
  """Chooses tokens. `step_fns[i](cache, tokens_B) -> (logits_BV, cache)`, one per model; pure and
  traced.

  Rules that only reshape the distribution define `filter(logits_BV) -> logits_BV` and can be
  chained with `|`.
  """

  def advance(self, step_fns, state, rng) -> tuple[Any, jax.Array]: ...


class LM(Protocol):
  """What evals see (`lm.py`); the same three requests as lm-evaluation-harness."""

  tokenizer: Tokenizer

  def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """(context, continuation) -> (sum of log-probabilities, whether greedy decoding gives it)."""

  def loglikelihood_tokens(
    self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """The same over ids: log-probability and argmax-correctness of every continuation token."""

  def rolling(self, ids: Sequence[int], stride: int | None = None) -> np.ndarray:
    """Log-probability of each token of a document, windows advancing by `stride`."""

  def generate(
    self, prompts: Sequence[str], max_tokens: int, stop: Sequence[str] = ()
  ) -> list[str]: ...


class Score(NamedTuple):
  """One number of an eval."""

  name: str
  value: float
  stderr: float | None


class Eval(Protocol):
  """`part(...)` returns an object with `run`."""

  def run(self, lm: LM) -> list[Score]: ...

"""Contracts of the parts that make a model.

Shapes: B batch, T time (queries), S time (keys), D width, H heads, K head size, F hidden, V
  vocabulary, N layers.
"""

import types
from typing import Any, Callable, NamedTuple, Protocol

import flax.struct
import jax


class Text(NamedTuple):
  """What an encoder reads: tokens, positions and segments, int32 (B, S); segment 0 is padding."""

  tokens_BS: jax.Array
  positions_BS: jax.Array
  segments_BS: jax.Array


class Memory(NamedTuple):
  """What an encoder gives: hidden (B, S, D), and the segments (B, S) it stands for."""

  hidden_BSD: jax.Array
  segments_BS: jax.Array


@flax.struct.dataclass
class Ctx:
  """What a layer may know besides its input.

  Attributes:
    positions_BT: int32, position of each token within its document.
    segments_BT: int32, document of each token in its row; 0 is padding. None means one document and
      no padding.
    depth: index of the layer, a traced scalar under scan.
    prefix_BT: int32, 1 for the tokens that every token of their document may see, also earlier
      ones, or None; needs the mixer's fact `prefix`.
    source: `Text` for the encoder of an architecture that has one, or None.
    memory: `Memory` for mixers with the fact `cross`, or None; all others raise on it.
    shared: inside a layer, what its mixer has for all layers of the stack (its fact `shared`), or
      None.
    folded: '' unless rows are cut over devices and folded (`parallel.folding`): then how keys come
      to queries, `mesh.CONTEXTS`; mixers without `sequence` in their fact `cuts` raise on it.
    joined: static; a promise that each row is one document, 1 in segments_BT, with padding only
      behind it, so that what is causal need not look at segments. Architectures that leave rows
      as they are give it in training, where `data.mask_documents=False`; elsewhere it is False.
    gaps: static; tokens between these were left out, so that positions do not count places.
    train: dropout and the like act only where True.
    scheme: static; how parameters are made (`init`, `linear`), the model's `position`, dtypes.
  """

  positions_BT: jax.Array
  segments_BT: jax.Array | None = None
  depth: Any = 0
  prefix_BT: jax.Array | None = None
  source: Text | None = None
  memory: Memory | None = None
  shared: Any = None
  folded: str = flax.struct.field(pytree_node=False, default='')
  joined: bool = flax.struct.field(pytree_node=False, default=False)
  gaps: bool = flax.struct.field(pytree_node=False, default=False)
  train: bool = flax.struct.field(pytree_node=False, default=False)
  scheme: Any = flax.struct.field(pytree_node=False, default=None)

  def of_tokens(self) -> dict[str, jax.Array]:
    """What is known of each token: arrays (B or 1, T) by name."""
    names = ('positions_BT', 'segments_BT', 'prefix_BT')
    return {n: getattr(self, n) for n in names if getattr(self, n) is not None}


Aux = dict[str, jax.Array]
"""What a block part reports: entries `loss/...` are added to the objective, others are metrics."""


class Mixer(Protocol):
  """A Linen module. `cache` is None, or what `init_cache` gave; then x holds only the new tokens.

  Facts: causal, segments (honours documents and padding), cache (can decode step by step), cross
    (looks at `ctx.memory` instead of its own text), prefix (honours `ctx.prefix_BT`), window,
    recurrent (its cache is a state of one size, whatever the cache part), cuts (mesh axes that need
      its help and may cut what it works on: `sequence` cuts rows), shared (None, or a function
      (width, name) -> Linen module, called with ctx where a stack begins; what it gives is
      `ctx.shared` in every layer with this mixer).
  """

  def __call__(self, x_BTD, ctx: Ctx, cache: Any = None) -> tuple[jax.Array, Any, Aux]: ...

  def init_cache(self, kind: Any, batch: int, length: int, width: int, dtype) -> Any:
    """An empty cache for `length` tokens; `kind` is the cache part (`nn.nowrap`)."""

  def mixing_flops(self, width: int, length: int) -> tuple[float, float]:
    """Forward FLOPs per token beyond its matrices: over all and over allowed pairs (nn.nowrap)."""


class Ffn(Protocol):
  """A Linen module: y = f(x) for each position.

  Facts: couples = 'none' (y of a position depends on x of that position alone), or 'micro' (so it
    is unless `ctx.train`; there it depends on all tokens of the micro-batch, later ones and other
    rows among them, by way of choices that no gradient follows).
  """

  def __call__(self, x_BTD, ctx: Ctx) -> tuple[jax.Array, Aux]: ...


class Norm(Protocol):
  """A Linen module over the last axis, statistics in float32; facts: invariances, to be checked."""

  def __call__(self, x, ctx: Ctx) -> jax.Array: ...


class Residual(Protocol):
  """A Linen module, the layer itself; its fields `mixer`, `ffn`, `norm` build the modules.

  Facts: stream = what holds of the carry between layers, 'plain' where nothing does; all blocks of
    a stack must say the same.
  """

  def __call__(self, carry, ctx: Ctx, cache: Any = None) -> tuple[Any, Any, Aux]: ...

  def enter(self, x_BTD) -> Any:
    """The first carry (`nn.nowrap`)."""

  def leave(self, carry) -> jax.Array:
    """x from the last carry (`nn.nowrap`)."""

  def init_cache(self, kind: Any, batch: int, length: int, width: int, dtype, memory: int) -> Any:
    """An empty cache for `length` tokens and a memory of `memory` tokens (`nn.nowrap`)."""

  def mixing_flops(self, width: int, length: int, memory: int) -> tuple[float, float]:
    """Those of its mixers (`nn.nowrap`)."""


class Linear(Protocol):
  """A Linen module with fields ins, outs (pairs of axis name and size), role, scheme, bias.

  Contracts the last len(ins) axes of x and appends the axes of outs. Made through
  `nn.params.dense`.

  Facts: trained = whether its matrix is learnt; where not, its variables have no first value and
    come from a quantizer through `stored`. prescribes = arguments, beside shapes, that its
    variables were made by. agrees = arguments that must be what the config's keys of the same name
    are. error = how far its products may be off, of the largest of them.
  """

  def __call__(self, x) -> jax.Array: ...

  def stored(self, found: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Variables in `vars` from what `Quantizer.quantize` gives (`nn.nowrap`); optional."""


class Embed(Protocol):
  """A Linen module of vocab, width, dtype. Rows added to round the vocabulary are not predicted.

  Facts: tied (one table for input and output); size = the width of its table where that is not the
    model's: it then takes `whole=False`, for (vectors of that size, table, bias), so that several
    networks may lead from one table to widths of their own.
  """

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


class Pass(NamedTuple):
  """A stack that an architecture runs, for counting.

  prefix: where its parameters are. share: tokens that it works on for one of the text. length: of
  its rows. rounds: for a segment that not all tokens go through, the shares of tokens in each round
  as queries and as keys. beside: keys in front of a row, which all of its tokens see.
  """

  prefix: tuple[str, ...]
  model: Any
  share: float
  length: int
  rounds: Any = types.MappingProxyType({})
  beside: int = 0


class Architecture(Protocol):
  """A Linen module built with `model`, the resolved `models.Model`.

  Facts: stacks = (its arguments -> {name: text}), stacks of layers beside `config.model.stack`, in
    the same words; `model.stack(name)` is the model with that stack. encoders = which of them read
    the source: whether they look both ways is theirs, and they are never decoded from.
  """

  def __call__(self, tokens_BT, ctx: Ctx, cache: Any = None) -> Outputs: ...

  def init_cache(self, kind, batch: int, length: int) -> Any:
    """Empty caches for `length` tokens; one with encoders takes `memory` too, tokens of a source,
    and reads the source where a pass is given it, from where on the cache has what it gave.
    """

  def unpack(self, cache, rows_B, marks_B, length: int) -> Any:
    """`Cache.unpacked` of all layers; raises Unsupported where one has none. Optional."""

  def passes(self, steps: int, source: int) -> list[Pass]:
    """Its stacks at rows of `steps` tokens and sources of `source`; optional: else one stack."""


class Cache(Protocol):
  """A pytree, built by `part(batch=, length=, heads=, head_dim=, dtype=, window=)`. Every array has
  the row in front (behind the layer, in a stack), so that decoding may gather and repeat rows;
  this holds for the states that recurrent mixers keep, too.
  """

  def append(self, k_BTHK, v_BTHK, positions_BT, segments_BT) -> tuple['Cache', tuple]:
    """The cache with the new tokens, and (k_BSHK, v_BSHK, positions_BS, segments_BS), 0 empty."""

  def unpacked(self, rows_B, marks_B, length: int) -> 'Cache':
    """A cache with room for `length` tokens of each of B rows: row b has what row rows_B[b] holds
    of segment marks_B[b], as if nothing else had ever been there. Optional: without it prompts are
    read in rows of their own.
    """

  def back(self, dropped_B, most: int) -> 'Cache':
    """The cache without the last dropped_B tokens of each row, `most` at most. Raises Unsupported
    where it has not kept what was there before. Optional: without it no rule may go back.
    """

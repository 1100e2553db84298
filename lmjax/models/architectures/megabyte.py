"""MEGABYTE: a wide model over patches of bytes and a narrow one within each patch.

  h_t = E_g[x_t] + position, D_G wide; a learned vector in its place for t < 0
  g_k = [h_{(k-1)P+1}; ...; h_{kP}], the vector of patch k, P D_G wide
  z_k = norm(stack(g_0 ... g_k)), the global model
  l_{k,p} = W z_k[slice p] / sqrt(D_L) + (a learned vector if p = 0, else E_l[x_{kP+p}]), D_L wide
  hidden_{kP+p} = norm(local_stack(l_{k,0} ... l_{k,p})), which predicts x_{kP+p+1} by E_l

Yu et al., 2023 (arXiv:2305.07185). Counted by the byte that is predicted, this is the paper's
model: patch k - 1 of predicted bytes goes into g_k, one patch behind what is being predicted, and
the byte before the one predicted into the local model, but for p = 0, where it is in g_k already.
The first byte of a row, which nothing predicts, is the only one of g_0. The root is ours: without
it W z, which a norm makes of size 1 and Adam moves by its many inputs at once, drowns the vectors
of bytes; at rates from 0.003 on the loss stayed at the frequencies of bytes.

In a config: `model.width` = P D_G and `model.stack` (or `model.depth`) are the global model,
`local_width` and `local_stack`, of the same `model.blocks`, the local one; each is initialized by
its own width and depth. `model.embed` is E_l, so that 'tied()' ties the output to it (the paper's);
`model.position` is added to h where it adds, and rotates or biases in both stacks, by patches and
by bytes; `model.embed_norm` acts on h, `model.dropout` on h and l, `model.final_norm` on both
outputs. P = 8 for text is the paper's; FLOPs a byte are about 2 (m_g / P + m_l) for m_g and m_l
parameters.

Options. `cross_patch_attention=r`: a local byte also sees the last r keys and values of the patch
before. `conv_patch_encoder=(3,)`: before patches are made h <- h + gelu(conv(h)), causal, each
channel by itself, one convolution for each number of taps. `strided_inference`: what is evaluated
(no training, no cache) runs twice, the second time with patches moved by P / 2, and each pass
predicts the first P / 2 bytes of its patches, at twice the cost.

Documents. Patches are counted from the first real byte of a row, so that padding on either side
changes nothing. A document that begins within a patch has that patch's local model, which sees all
of it so far, and nothing of the global one; its first own vector has the learned one in place of
other documents' bytes. Hence nothing passes between documents, and one that begins at a multiple of
P is computed as it would be alone. `data.length` must divide by P.

A cache holds one entry for P bytes, and of the local model P + r. The global model runs where a
byte ends a patch in some row; rows may stand at different places of theirs.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax import kinds
from lmjax.models.architectures import _megabyte as lib
from lmjax.models.architectures import _megabyte_text as text_lib
from lmjax.nn import params
from lmjax.nn.dropout import dropout
from lmjax.parallel import facts
from lmjax.parallel import shard
from lmjax.registry import register

LARGEST = 1 << 16  # bytes of a patch
TAPS = 64


@register('architecture', stacks=lambda a: {'local_stack': a['local_stack']})
class Megabyte(nn.Module):
  """Patches, the global model over them, the local model within each."""

  model: Any
  patch: int = 8
  local_width: int = 128
  local_stack: str = 'block*2'
  cross_patch_attention: int = 0
  conv_patch_encoder: tuple = ()
  strided_inference: bool = False

  @staticmethod
  def check(patch, local_width, cross_patch_attention, conv_patch_encoder, strided_inference, **_):
    if not 1 <= patch <= LARGEST:
      raise ValueError(f'patch={patch}: a number of bytes from 1 to {LARGEST} is expected')
    if local_width < 1:
      raise ValueError(f'local_width={local_width}: a positive number is expected')
    if not 0 <= cross_patch_attention <= patch:
      raise ValueError(
        f'cross_patch_attention={cross_patch_attention}: from 0 to patch={patch} is expected'
      )
    if not all(type(n) is int and 2 <= n <= TAPS for n in conv_patch_encoder):
      raise ValueError(
        f'conv_patch_encoder={conv_patch_encoder}: numbers of taps from 2 to {TAPS} are expected, '
        'as in (3,)'
      )
    if strided_inference and patch % 2:
      raise ValueError(f'strided_inference=True needs an even patch, not patch={patch}')

  @nn.nowrap
  def sides(self):
    """(global, local) settings. Raises ValueError where sizes do not divide, Unsupported where
    parts do not suit.
    """
    m, p = self.model, self.patch
    for key, value in {'model.width': m.width, 'data.length': m.length}.items():
      if value % p:
        raise ValueError(
          f'config.{key}={value} does not divide by patch={p} of config.model.architecture'
        )
    m.require('causal', 'looks ahead, and both stacks of the architecture megabyte must look back')
    local = m.stack('local_stack').sized(self.local_width, p)
    if self.cross_patch_attention:
      for name, mixer in local.mixers():
        if mixer.fact('recurrent') or not mixer.fact('cache'):
          raise kinds.Unsupported(
            f'config.model.blocks.{name}.mixer={mixer} keeps no keys, which cross_patch_attention '
            'of config.model.architecture needs'
          )
    one = lambda role: facts.Fact(('vocab', 'embed'), ('vocab',), role)
    rates = [[s.init.lr(one(r), (p, p)) for r in facts.ROLES] for s in (m.scheme, local.scheme)]
    if rates[0] != rates[1]:
      raise kinds.Unsupported(
        f'config.model.init={m.init} sets rates by one width, and the architecture megabyte has '
        f'two ({m.width} and local_width={self.local_width})'
      )
    return m.sized(m.width, m.length // p), local

  @nn.nowrap
  def passes(self, steps, source):
    """The global model takes one position for a patch, the local one each byte of a patch."""
    del source
    globe, local = self.sides()
    reach = self.cross_patch_attention
    return [
      kinds.Pass(('global_model',), globe, 1 / self.patch, steps // self.patch),
      kinds.Pass(('local_model',), local, 1.0, self.patch, beside=reach),
    ]

  def setup(self):
    globe, local = self.sides()
    self.embed = local.embed()
    self.patches = lib.Patches(globe, self._rows(local), self.patch, self.conv_patch_encoder)
    self.global_model = lib.Stack(globe)
    self.slices = lib.Slices(local, self.patch)
    self.local_model = lib.Stack(local, f'local_width={self.local_width}')
    fact = facts.Fact(('position', 'embed'), ('position',), 'position')
    pad = params.param(self, 'pad', (1, self.local_width), fact, local.scheme)
    self.pad_L = shard.gather(pad, fact.names)[0].astype(local.dtype)
    self.scheme = local.scheme

  @nn.nowrap
  def _rows(self, local) -> int:
    """Rows of E_g: those of E_l, where that rounds them up."""
    return getattr(local.embed(parent=None), 'rows', local.vocab)

  def __call__(self, tokens_BT, ctx, cache=None):
    for name in ('prefix_BT', 'source', 'memory'):
      if getattr(ctx, name) is not None:
        raise kinds.Unsupported(f'architecture megabyte takes no {name.partition("_")[0]}')
    if cache is not None:
      hidden_BTL, cache, aux = text_lib.go_on(self, cache, tokens_BT, ctx)
    else:
      hidden_BTL, aux = self.rows(tokens_BT, ctx)
    _, unembed, bias = self.embed(tokens_BT, ctx.replace(scheme=self.scheme))
    scale = self.scheme.init.logit_scale()
    return kinds.Outputs(hidden_BTL, unembed, bias, scale, self.model.cap, cache, aux)

  def rows(self, tokens_BT, ctx):
    """(hidden, aux) of whole rows."""
    steps = tokens_BT.shape[1]
    tokens_BT, ctx, start_B = self.aligned(tokens_BT, ctx)
    hidden_BTL, aux = self.forward(tokens_BT, ctx)
    half = self.patch // 2
    if self.strided_inference and not ctx.train:
      length, ones = tokens_BT.shape[1], jnp.ones_like(tokens_BT)
      later = ctx.replace(segments_BT=ones if ctx.segments_BT is None else ctx.segments_BT)
      moved_BTL, _ = self.forward(*_moved(tokens_BT, later, half, self.patch - half))
      early_T = jnp.arange(length) % self.patch < half
      hidden_BTL = jnp.where(early_T[:, None], hidden_BTL, moved_BTL[:, half : half + length])
    if start_B is not None:
      hidden_BTL = lib.turned(hidden_BTL, -start_B % hidden_BTL.shape[1])
    return hidden_BTL[:, :steps], aux

  @nn.nowrap
  def aligned(self, tokens_BT, ctx):
    """Rows that begin with their first real byte and hold whole patches, and by how much each was
    moved for that (None without segments).
    """
    more = -tokens_BT.shape[1] % self.patch
    if ctx.segments_BT is None and not more:
      return tokens_BT, ctx, None
    ones = jnp.ones_like(tokens_BT)
    ctx = ctx.replace(segments_BT=ones if ctx.segments_BT is None else ctx.segments_BT)
    start_B = jnp.argmax(ctx.segments_BT > 0, axis=1)
    tokens_BT, ctx = _moved(tokens_BT, ctx, 0, more)
    turn = lambda x: lib.turned(x, start_B)
    places = dict(positions_BT=turn(ctx.positions_BT), segments_BT=turn(ctx.segments_BT))
    return turn(tokens_BT), ctx.replace(**places), start_B

  def forward(self, tokens_BT, ctx):
    """(hidden, aux) of rows of whole patches."""
    z_BKD, _, wide = self.global_model(self.patches(tokens_BT, ctx), self.by_patch(ctx))
    x_BTL = self.local_input(tokens_BT, ctx, self.slices(z_BKD, ctx))
    hidden_BTL, narrow = self.within(x_BTL, ctx)
    return hidden_BTL, joined(wide, narrow)

  @nn.nowrap
  def by_patch(self, ctx):
    """The context of patch vectors: each stands where its last byte does."""
    p, segments = self.patch, ctx.segments_BT
    segments = None if segments is None else segments[:, ::p]
    return ctx.replace(positions_BT=ctx.positions_BT[:, ::p] // p, segments_BT=segments)

  def local_input(self, tokens_BT, ctx, slices_BKPL):
    """l, (B, T, local width)."""
    batch, patches, p, width = slices_BKPL.shape
    if ctx.segments_BT is not None:
      own_BKP = lib.reshape(ctx.segments_BT, (batch, patches, p), 'batch', None, None)
      own_BKP = own_BKP == own_BKP[..., :1]
      slices_BKPL = jnp.where(own_BKP[..., None], slices_BKPL, 0)
    shape = (batch, patches * p, width)
    first_T = jnp.arange(patches * p) % p == 0
    return self.local_sum(
      tokens_BT, first_T, lib.reshape(slices_BKPL, shape, 'batch', None, 'width'), ctx
    )

  def local_sum(self, tokens_BT, first, slices_BTL, ctx):
    """A slice and the byte before; `first` in a patch: (T,) or (B, T)."""
    ctx = ctx.replace(scheme=self.scheme)
    bytes_BTL, _, _ = self.embed(tokens_BT, ctx)
    x_BTL = slices_BTL + jnp.where(first[..., None], self.pad_L, bytes_BTL)
    return dropout(self, x_BTL, self.model.dropout, ctx)

  def within(self, x_BTL, ctx):
    """(hidden, aux): the local model in every patch by itself, a row for each."""
    batch, steps, width = x_BTL.shape
    patches = steps // self.patch

    def split(x):
      shape = (batch, patches, self.patch, *x.shape[2:])
      names = ('batch', None, None, 'width')[: len(shape)]
      return lib.patches_to_rows(lib.reshape(x, shape, *names))

    segments = ctx.segments_BT
    ctx = ctx.replace(
      positions_BT=split(ctx.positions_BT),
      segments_BT=None if segments is None else split(segments),
    )
    reach = self.cross_patch_attention
    beside = lib.Beside(patches, reach) if reach else None
    y, _, aux = self.local_model(split(x_BTL), ctx, None, beside)
    y = lib.rows_to_patches(y, patches)
    return lib.reshape(y, (batch, steps, width), 'batch', None, 'width'), aux

  @nn.nowrap
  def init_cache(self, kind, batch, length):
    """`kind` is about the global model; what the local one needs has one size."""
    return text_lib.empty(self, kind, batch, length)


def _moved(tokens_BT, ctx, before: int, behind: int):
  """Rows with padding around them."""
  put = lambda x: lib.widened(x, before, behind)
  places = dict(positions_BT=put(ctx.positions_BT), segments_BT=put(ctx.segments_BT))
  return put(tokens_BT), ctx.replace(**places)


def joined(wide: dict, narrow: dict) -> dict[str, jax.Array]:
  """Reports of both stacks: losses are added, metrics named apart."""
  out = {}
  for name, report in (('global', wide), ('local', narrow)):
    for key, value in report.items():
      is_loss = key.startswith('loss/')
      key = key if is_loss else f'{name}/{key}'
      out[key] = out[key] + value if key in out else value
  return out

"""The two networks of `electra`."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax import kinds
from lmjax import registry
from lmjax.nn import embedding
from lmjax.nn import params
from lmjax.nn import stack
from lmjax.nn.dropout import dropout
from lmjax.parallel import shard
from lmjax.parallel.facts import Fact


class Body(nn.Module):
  """Layers and the final norm, on embedded tokens."""

  model: Any

  @nn.compact
  def __call__(self, x, ctx):
    x, _, aux = stack.run(self.model, x, ctx)
    if self.model.final_norm is not None:
      x = self.model.final_norm(name='final_norm')(x, ctx)
    return x, aux


class Entrance(nn.Module):
  """Token and position embeddings, and their norm, of the generator alone."""

  model: Any

  def setup(self):
    entrance(self)

  def __call__(self, tokens_BT, ctx):
    return entered(self, tokens_BT, ctx, whole=False)


def entrance(module):
  """Makes the embeddings inside the `setup` of a module."""
  m = module.model
  module.embed, module.position = m.embed(), m.position()
  if m.embed_norm is not None:
    module.embed_norm = m.embed_norm()


def entered(module, tokens_BT, ctx, whole: bool = True):
  """(x behind embedding, positions and norm, (table, bias of its added rows), ctx).

  Not `whole`: x and the table in the embedding's own size, where it has one.
  """
  m = module.model
  ctx, how = ctx.replace(scheme=m.scheme), {} if whole or size(m) is None else dict(whole=False)
  x, *table = module.embed(tokens_BT, ctx, **how)
  x = module.position(x, ctx)
  if m.embed_norm is not None:
    x = module.embed_norm(x, ctx)
  return dropout(module, x, m.dropout, ctx), table, ctx


def size(model) -> int | None:
  """The size of the table's vectors where that is not the model's width."""
  return model.embed.fact('size')


class Pair(nn.Module):
  """The two networks, sharing what `share` says.

  model: the discriminator. narrow: the generator's width, or None for none. share: 'none', 'embed',
  or 'all' (see `electra`). predict: what the discriminator predicts instead of detecting, or None.
  baseline: whether the generator estimates its reward.
  """

  model: Any
  narrow: int | None
  share: str = 'embed'
  predict: str | None = None
  baseline: bool = False

  def setup(self):
    m = self.model
    entrance(self)
    e = size(m) or m.width
    self.discriminator = Body(m)
    if self.predict != 'places':
      self.judge = Judge()
    if self.predict is not None:
      self.reader = Head(e)
    if self.narrow is None:
      return
    self.head = Head(e)
    if self.share == 'none':
      self.generator_in = Entrance(m)
    if self.share != 'all':
      self.generator = Body(self.small)
    if self.leads:
      self.project = Project(self.narrow, bias=size(m) is None)
    if self.baseline:
      self.critic = Critic()

  @property
  def small(self):
    """The model at the generator's width."""
    return dataclasses.replace(self.model, width=self.narrow)

  @property
  def leads(self) -> bool:
    """Whether the generator has a projection of its own behind the embedding."""
    own = self.narrow is not None and self.share != 'all'
    return own and (size(self.model) is not None or self.narrow != self.model.width)

  def entered(self, tokens_BT, ctx, whole: bool = True):
    return entered(self, tokens_BT, ctx, whole)

  def rows(self, tokens_BT, ctx):
    """(table, bias of its added rows) that heads of the shared embedding read out with."""
    how = {} if size(self.model) is None else dict(whole=False)
    return self.embed(tokens_BT, ctx.replace(scheme=self.model.scheme), **how)[1:]

  def generate(self, tokens_BT, places_BK, ctx):
    """((logits (B, K, V) of the original tokens at the places, logits (B, K) of the rewards to come
    or None), aux).
    """
    if self.share == 'none':
      x, table, ctx = self.generator_in(tokens_BT, ctx)
    elif self.share == 'all':
      (x, _, ctx), table = self.entered(tokens_BT, ctx), self.rows(tokens_BT, ctx)
    else:
      x, table, ctx = self.entered(tokens_BT, ctx, whole=False)
    x = self.project(x, ctx) if self.leads else x
    x, aux = (self.discriminator if self.share == 'all' else self.generator)(x, ctx)
    x = at(x, places_BK)
    critic = self.critic(jax.lax.stop_gradient(x), ctx) if self.baseline else None
    return (read(self.head, x, table, ctx), critic), aux

  def discriminate(self, tokens_BT, places_BK, ctx):
    """((logits (B, T) that a token is not the original one, or None; logits (B, K or T, V) of the
    original tokens, or None), aux).
    """
    x, _, ctx = self.entered(tokens_BT, ctx)
    x, aux = self.discriminator(x, ctx)
    z_BT = None if self.predict == 'places' else self.judge(x, ctx)
    if self.predict is None:
      return (z_BT, None), aux
    x = at(x, places_BK) if self.predict == 'places' else x
    return (z_BT, read(self.reader, x, self.rows(tokens_BT, ctx), ctx)), aux

  def both(self, tokens_BT, places_BK, ctx):
    """To make all variables."""
    if self.narrow is not None:
      self.generate(tokens_BT, places_BK, ctx)
    return self.discriminate(tokens_BT, places_BK, ctx)


def read(head, x, table, ctx):
  """Logits over the table's rows; those that only round it up are never predicted."""
  table_VE, never = table
  h, bias = head(x, ctx, table_VE.shape[0])
  bias = bias if never is None else bias + never
  return embedding.logits(kinds.Outputs(h, table_VE, bias, 1.0, None, None, {}))


class Project(nn.Module):
  """From the size of the embedding to the generator's width."""

  width: int
  bias: bool

  @nn.compact
  def __call__(self, x, ctx):
    sizes = dict(embed=x.shape[-1]), dict(width=self.width)
    return params.dense(ctx, 'in', *sizes, bias=self.bias)(x)


class Critic(nn.Module):
  """One logit of a state, without a bias."""

  @nn.compact
  def __call__(self, x, ctx):
    y = params.dense(ctx, 'out', dict(embed=x.shape[-1]), dict(rank=1))(x)
    return y[..., 0].astype(jnp.float32)


class Head(nn.Module):
  """Dense to the embedding's width, GELU, layer norm; a bias for each row of the vocabulary."""

  width: int

  @nn.compact
  def __call__(self, x, ctx, rows: int):
    h = params.dense(ctx, 'dense', dict(embed=x.shape[-1]), dict(width=self.width), bias=True)(x)
    h = registry.make('norm', 'layer_norm()')(name='norm')(nn.gelu(h, approximate=False), ctx)
    bias = params.param(self, 'bias', (rows,), Fact(('vocab',), (), 'bias'), ctx.scheme)
    return h, bias


class Judge(nn.Module):
  """Dense, GELU, one logit."""

  @nn.compact
  def __call__(self, x, ctx):
    d = x.shape[-1]
    h = params.dense(ctx, 'dense', dict(embed=d), dict(width=d), bias=True)(x)
    h = nn.gelu(h, approximate=False)
    y = params.dense(ctx, 'out', dict(width=d), dict(rank=1), bias=True)(h)
    return y[..., 0].astype(jnp.float32)


def on_rows(f, *names):
  """f, left to the partitioner; `names`: axes of what it gives."""
  return shard.automatic(f, tuple(map(shard.spec, names)))


def at(x_BTD, places_BK):
  """x at the places: (B, K, D)."""

  def take(x_BTD, places_BK):
    return (jnp.take_along_axis(x_BTD, places_BK[..., None], axis=1),)

  return on_rows(take, ('batch', None, 'width'))(x_BTD, places_BK)[0]

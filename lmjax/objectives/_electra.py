"""The two networks of `electra`, over one embedding."""

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


class Pair(nn.Module):
  """Token and position embeddings, and their norm, are one set for both; all else is apart.

  model: the discriminator; narrow: the generator's width, or None for none.
  """

  model: Any
  narrow: int | None

  def setup(self):
    m = self.model
    self.embed, self.position = m.embed(), m.position()
    if m.embed_norm is not None:
      self.embed_norm = m.embed_norm()
    self.discriminator, self.judge = Body(m), Judge()
    if self.narrow is not None:
      small = dataclasses.replace(m, width=self.narrow)
      self.generator, self.head = Body(small), Head(m.width)
      self.project = Project(self.narrow)

  def entered(self, tokens_BT, ctx):
    """(x behind embedding, positions and norm, (table, bias of its added rows))."""
    m = self.model
    ctx = ctx.replace(scheme=m.scheme)
    x, *unembedding = self.embed(tokens_BT, ctx)
    x = self.position(x, ctx)
    if m.embed_norm is not None:
      x = self.embed_norm(x, ctx)
    return dropout(self, x, m.dropout, ctx), unembedding, ctx

  def generate(self, tokens_BT, places_BK, ctx):
    """(logits (B, K, V) of the original tokens at the places, aux)."""
    x, (table, never), ctx = self.entered(tokens_BT, ctx)
    if self.narrow != self.model.width:
      x = self.project(x, ctx)
    x, aux = self.generator(x, ctx)
    h, bias = self.head(at(x, places_BK), ctx, table.shape[0])
    bias = bias if never is None else bias + never
    return embedding.logits(kinds.Outputs(h, table, bias, 1.0, None, None, {})), aux

  def discriminate(self, tokens_BT, ctx):
    """(logits (B, T) that a token is not the original one, aux)."""
    x, _, ctx = self.entered(tokens_BT, ctx)
    x, aux = self.discriminator(x, ctx)
    return self.judge(x, ctx), aux

  def both(self, tokens_BT, places_BK, ctx):
    """To make all variables."""
    if self.narrow is not None:
      self.generate(tokens_BT, places_BK, ctx)
    return self.discriminate(tokens_BT, ctx)


class Project(nn.Module):
  """From the width of the embedding to the generator's."""

  width: int

  @nn.compact
  def __call__(self, x, ctx):
    return params.dense(ctx, 'in', dict(embed=x.shape[-1]), dict(width=self.width), bias=True)(x)


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
  """f, left to the partitioner on an explicit mesh; `names`: axes of what it gives."""
  if not shard.is_explicit():
    return f
  return jax.sharding.auto_axes(f, out_sharding=tuple(map(shard.spec, names)))


def at(x_BTD, places_BK):
  """x at the places: (B, K, D)."""

  def take(x_BTD, places_BK):
    return (jnp.take_along_axis(x_BTD, places_BK[..., None], axis=1),)

  return on_rows(take, ('batch', None, 'width'))(x_BTD, places_BK)[0]

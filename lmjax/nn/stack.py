"""The stack of layers: segments of blocks, each scanned over its repeats.

Parameters of a segment are stacked on the axis `layers` whatever `unroll` is, so that one
checkpoint serves the scanned and the unrolled form. A shared segment holds one set of weights, and
variables that are not trained for each repeat: one leaf of `backward` used by all would get the sum
of their new values. Depth enters as a scanned input, caches enter and leave with the scan.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax import kinds
from lmjax.nn import pipelined
from lmjax.parallel import folding
from lmjax.parallel import pipeline
from lmjax.parallel import remat as remat_lib


class Group(nn.Module):
  """One round of a segment: its blocks in order."""

  pattern: tuple
  model: Any

  @nn.compact
  def __call__(self, carry, caches, depth, ctx):
    out, reports = [], []
    for i, name in enumerate(self.pattern):
      layer = self.model.block(name)(name=f'{i}_{name}')
      carry, cache, aux = layer(
        remat_lib.tag_stream(carry),
        ctx.replace(depth=depth + i, shared=ctx.shared and ctx.shared.get(name)),
        None if caches is None else caches[i],
      )
      out.append(cache)
      reports.append({(k if k.startswith('loss/') else f'{name}/{k}'): v for k, v in aux.items()})
    return carry, (None if caches is None else tuple(out), tuple(reports))


def group(model, cached: bool, looped: bool):
  """The class of a segment's blocks, recomputed in the backward pass as `model.remat` says. Outside
  of a loop the compiler must be kept from joining what is computed twice.
  """
  on, policy = remat_lib.policy(model.remat)
  return nn.remat(Group, policy=policy, prevent_cse=not looped) if on and not cached else Group


def segment(model, n: int, carry, cache, offset: int, ctx):
  """One segment inside a compact module: (carry, its caches, reports of its blocks). `offset` is
  the depth of its first layer.
  """
  s, each = model.segments[n], {'vars': 0, 'backward': 0}  # what every repeat has for itself
  lifted = nn.scan(
    group(model, cache is not None, looped=model.unroll < s.repeats),
    variable_axes=each if s.shared else {'params': 0, **each},
    variable_broadcast='params' if s.shared else False,
    split_rngs={'params': not s.shared, 'dropout': True},
    in_axes=(0, 0, nn.broadcast),
    length=s.repeats,
    unroll=min(model.unroll, s.repeats),
    metadata_params={nn.PARTITION_NAME: 'layers'},
  )
  depths = offset + jnp.arange(s.repeats) * len(s.pattern)
  carry, (out, report) = lifted(s.pattern, model, name=f'segment_{n}')(carry, cache, depths, ctx)
  return carry, out, list(report)


def run(model, x_BTD, ctx, cache=None, within=None):
  """Runs the stack inside a compact module: (x, cache, aux). Losses are summed over layers, metrics
  averaged. `within`: the module, where layers may lie apart over a pipeline (`nn.pipelined`).
  """
  piped = within is not None and cache is None and pipeline.stages() > 1
  folded = cache is None and folding.folds(x_BTD.shape[1])
  if folded:
    x_BTD, ctx = _folded(model, x_BTD, ctx)
  ctx = ctx.replace(shared=_shared(model, ctx))
  if piped and ctx.shared:
    raise kinds.Unsupported(
      f'config.mesh.stage: {model.mixer(next(iter(ctx.shared)))} has something for all layers, '
      'which lie apart there; mesh.stage=1 is expected'
    )
  first = model.block(model.segments[0].pattern[0])(parent=None)
  carry, offset, caches, reports = first.enter(x_BTD), 0, [], []
  for n, s in enumerate(model.segments):
    if piped and not within.is_initializing():
      params = pipelined.params(within, f'segment_{n}')
      block = group(model, cached=False, looped=True)(s.pattern, model, parent=None)
      carry = pipelined.segment(block, model, n, params, carry, offset, ctx)
      offset += s.repeats * len(s.pattern)
      continue
    own = None if cache is None else cache[n]
    carry, out, report = segment(model, n, carry, own, offset, ctx)
    caches.append(out)
    reports.extend(report)
    offset += s.repeats * len(s.pattern)
  x_BTD = first.leave(carry)
  if folded:
    x_BTD = folding.unfold(x_BTD, 'batch', 'time', 'width')
  return x_BTD, None if cache is None else tuple(caches), combine(reports)


def _shared(model, ctx):
  """What mixers have for all layers at once, by block; None where none has anything."""
  mixers = {n: model.mixer(n) for s in model.segments for n in s.pattern}
  makes = {n: m.fact('shared') for n, m in mixers.items()}
  own = {n: make(model.width, name=f'shared_{n}')(ctx) for n, make in makes.items() if make}
  return own or None


def _folded(model, x_BTD, ctx):
  """Rows and what is known of their tokens as `parallel.folding` lays them out. Raises
  kinds.Unsupported where a mixer cannot work on them.
  """
  for name, mixer in model.mixers():
    if folding.AXIS not in mixer.fact('cuts'):
      raise kinds.Unsupported(
        f'config.mesh.{folding.AXIS}: config.model.blocks.{name}.mixer={mixer} cannot work on rows '
        'that are cut over devices'
      )
  moved = {
    n: folding.fold(jnp.broadcast_to(a, x_BTD.shape[:2]), 'batch', 'time')
    for n, a in ctx.of_tokens().items()
  }
  x_BTD = folding.fold(x_BTD, 'batch', 'time', 'width')
  return x_BTD, ctx.replace(folded=model.how.context, **moved)


def combine(reports):
  """Reports, each entry of one layer or of several, as one of scalars."""
  out: dict[str, list] = {}
  for report in reports:
    for key, value in report.items():
      out.setdefault(key, []).append(jnp.atleast_1d(value))
  return {
    k: jnp.sum(jnp.concatenate(v)) if k.startswith('loss/') else jnp.mean(jnp.concatenate(v))
    for k, v in out.items()
  }


def init_cache(model, kind, batch: int, length: int, memory: int = 0):
  """Empty caches of every layer for `length` tokens and a memory of `memory`, shaped as `run` wants
  them.
  """

  def one(name):
    layer = model.block(name)(parent=None)
    return layer.init_cache(kind, batch, length, model.width, model.dtype, memory)

  def group(s):
    stacked = lambda a: jnp.broadcast_to(a, (s.repeats, *a.shape))
    return jax.tree.map(stacked, tuple(one(n) for n in s.pattern))

  return tuple(group(s) for s in model.segments)


def unpack(caches, rows_B, marks_B, length: int):
  """Caches of every layer, see `kinds.Cache.unpacked`. Raises Unsupported where a layer keeps what
  has no tokens in it.
  """
  can = lambda c: hasattr(c, 'unpacked')

  def one(c):
    if not can(c):
      raise kinds.Unsupported(
        'a layer keeps a state of all tokens of a row, in which none is apart'
      )
    return jax.vmap(lambda layer: layer.unpacked(rows_B, marks_B, length))(c)

  return jax.tree.map(one, caches, is_leaf=can)

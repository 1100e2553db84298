"""The parameters of a pre-norm model whose stream is stored in another way; see `pre_crmsnorm`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax import kinds
from lmjax.surgery import _grow_fits
from lmjax.surgery import _stream_fits

Keys = tuple[str, ...]
AXES = {'layers', 'embed', 'mlp', 'heads', 'kv_heads', 'head_dim', 'vocab', 'position'}
TABLE, UNEMBED, WORDS = (('embed', k) for k in ('table', 'unembed', 'bias'))
PLACES = ('position', 'table')
LAST = ('final_norm',)


def converted(old, new) -> dict[str, Any]:
  """The parameters of `new`, the function being that of `old` (both `kinds.Stage`). Raises
  ValueError.
  """
  made = _Conversion(old, new).made()
  at = lambda path, _: made[tuple(k.key for k in path)]
  return jax.tree_util.tree_map_with_path(at, new.variables['params'])


def centred(x: np.ndarray, axis: int = -1) -> np.ndarray:
  """P x."""
  return x - x.mean(axis, keepdims=True)


def written(x: np.ndarray, source, target) -> np.ndarray:
  """Vectors (..., width) of one stream (`_stream_fits.Stream`) as another stores them."""
  if source.short == target.short:
    return x if target.loose else centred(x)
  if target.short:
    return centred(x)[..., :-1]
  return np.concatenate([x, -x.sum(-1, keepdims=True)], -1)


def read(w: np.ndarray, gain: np.ndarray, source, target) -> np.ndarray:
  """A matrix (layers..., width, outputs...) behind a norm with this gain (layers..., width) as one
  that reads the other stream behind a norm without.
  """
  axis = gain.ndim - 1
  w = along(gain, w) * w
  if source.short == target.short:
    return w
  if target.short:
    rest, last = np.split(w, [w.shape[axis] - 1], axis)
    return rest - last
  return centred(np.concatenate([w, np.zeros_like(w.take([0], axis))], axis), axis)


def along(x: np.ndarray, like: np.ndarray) -> np.ndarray:
  """An array over the first axes of another."""
  return x.reshape(*x.shape, *(1,) * (like.ndim - x.ndim))


class _Conversion:
  def __init__(self, old, new):
    self.streams = _stream_fits.check(old, new)
    self.source, self.target = self.streams
    self.old, self.new = old.model, new.model
    leaves = _grow_fits.flat(old.variables['params'])
    self.double = any(v.dtype == np.float64 for v in leaves.values())
    self.was = {k: np.asarray(v).astype(np.float64) for k, v in leaves.items()}
    self.facts, facts = (_grow_fits.flat(s.facts['params']) for s in (old, new))
    self.like = {k: v.shape for k, v in _grow_fits.flat(new.variables['params']).items()}
    for keys in sorted(self.was.keys() & self.like):
      if self.facts[keys] != facts[keys]:
        raise ValueError(f'{name(keys)} is another matrix there than here: the same are expected')
    self.found: dict[Keys, np.ndarray] = {}

  def made(self) -> dict[Keys, np.ndarray]:
    norms = list(_stream_fits.norms(self.old))
    for keys, x in self.was.items():
      if keys != UNEMBED and keys[:-1] not in [at for at, *_ in norms]:
        self.found[keys] = self._written(keys, x)
    self._positions()
    for at, scope, *_ in norms:
      gain, bias = self._norm(at)
      for keys in [k for k in self.was if k[: len(scope)] == scope and at != LAST]:
        if 'embed' in self.facts[keys].inputs:
          self._read(keys, gain, bias)
      if at == LAST:
        self._logits(gain, bias)
    return self._complete()

  def _written(self, keys: Keys, x: np.ndarray) -> np.ndarray:
    """A parameter that writes to the stream, or is not along it. Raises ValueError where it is
    along it and no matrix of full ones.
    """
    fact = self.facts[keys]
    if 'embed' not in fact.names:
      return x
    if not set(fact.names) <= AXES:
      raise ValueError(
        f'{name(keys)} has the axes {fact.names}: mixers and feed-forward that are full matrices '
        'on both sides are expected'
      )
    axis = fact.names.index('embed')
    return np.moveaxis(written(np.moveaxis(x, axis, -1), *self.streams), -1, axis)

  def _positions(self):
    """Raises ValueError where positions are not the same; waves become a table."""
    ours, theirs = self.old.position, self.new.position
    waves = ours.fact('added') and PLACES not in self.was
    words = f'config.model.position={ours} there and {theirs} here: '
    if waves and theirs.fact('added') and PLACES in self.like:
      x = jnp.zeros((1, self.like[PLACES][0], self.old.width), jnp.float32)
      ctx = kinds.Ctx(jnp.arange(x.shape[1], dtype=jnp.int32)[None], scheme=self.old.scheme)
      x = np.asarray(ours(parent=None).apply({}, x, ctx)[0], np.float64)
      self.found[PLACES] = written(x, *self.streams)
    elif (ours.name, ours.args) != (theirs.name, theirs.args):
      raise ValueError(f'{words}the same is expected')
    elif waves and not (self.source.short == self.target.short and self.target.loose):
      raise ValueError(f'{words}these vectors have a mean; learned() is expected here')

  def _norm(self, at: Keys) -> tuple[np.ndarray, np.ndarray]:
    """(gain, bias) that its readers take over: what this run's norm cannot keep."""
    shape = self._shape(at)
    gain = self.was.get((*at, 'scale'), np.ones(shape))
    bias = self.was.get((*at, 'bias'), np.zeros(shape))
    same = self.source.short == self.target.short
    keeps = same and ((*at, 'scale') in self.like or np.all(gain == 1))
    keeps_bias = keeps and (*at, 'bias') in self.like
    for key, value, kept, neutral in (
      ('scale', gain, keeps, np.ones),
      ('bias', bias, keeps_bias, np.zeros),
    ):
      if (*at, key) in self.like:
        self.found[*at, key] = value if kept else neutral(self.like[*at, key])
    return np.ones(shape) if keeps else gain, np.zeros(shape) if keeps_bias else bias

  def _shape(self, at: Keys) -> tuple[int, ...]:
    """Of a norm's parameters: those of the layers of a segment lie on top of each other."""
    if at == LAST:
      return (self.old.width,)
    segment = self.old.segments[int(at[0].removeprefix('segment_'))]
    return (self.old.width,) if segment.shared else (segment.repeats, self.old.width)

  def _read(self, keys: Keys, gain: np.ndarray, bias: np.ndarray):
    axis, behind = self.facts[keys].names.index('embed'), gain.ndim - 1
    w = np.moveaxis(self.was[keys], axis, behind)
    more = (along(bias, w) * w).sum(behind)
    self.found[keys] = np.moveaxis(read(w, gain, *self.streams), behind, axis)
    own = (*keys[:-1], 'bias')
    if not np.any(more):
      return
    if own not in self.like:
      raise ValueError(
        f'{name(keys)} reads a norm with a bias that is not 0 there, and neither norm nor matrix '
        'keeps one here: bias=True of config.model.mixer and config.model.ffn, or layer_norm() at '
        'the same width, is expected'
      )
    self.found[own] = self.found.get(own, 0.0) + more

  def _logits(self, gain: np.ndarray, bias: np.ndarray):
    """The matrix that makes logits, which may be the table, and a bias over the vocabulary."""
    table = self.was.get(UNEMBED, self.was[TABLE])
    scales = [m.scheme.init.logit_scale() for m in (self.old, self.new)]
    more = scales[0] * table @ bias
    if np.any(more):
      if WORDS not in self.like or self.new.cap is not None:
        raise ValueError(
          f'config.model.final_norm={self.old.final_norm} there has a bias that is not 0, and '
          f'neither {self.new.final_norm} nor config.model.embed={self.new.embed} here, with '
          f'config.model.cap={self.new.cap or 0}, keeps it: layer_norm() at the same width, or a '
          'run with layer_norm(bias=False), is expected'
        )
      self.found[WORDS] = self.found.get(WORDS, 0.0) + more
    w = read(table.T, gain, *self.streams).T * (scales[0] / scales[1])
    if UNEMBED in self.like:
      self.found[UNEMBED] = w
      return
    gains = self.found.get((*LAST, 'scale'), np.ones(1))
    if not self.target.loose and np.all(gains == gains[0]):
      w = centred(w)  # x of mean 0 is read alike; with unequal gains g x has a mean
    own = self.found[TABLE]
    if w.shape != own.shape or np.abs(w - own).max() > 1e-6 * np.abs(own).max():
      raise ValueError(
        f'config.model.embed={self.old.embed} there and {self.new.embed} here: the table that '
        'writes to the stream and the one that the logits need are two here; untied() is expected '
        'here'
      )

  def _complete(self) -> dict[Keys, np.ndarray]:
    """All parameters of this run. Raises ValueError where one has no place or another shape."""
    for keys in sorted(self.found.keys() - self.like):
      if keys[-1] != 'bias' or np.any(self.found[keys]):
        raise ValueError(
          f'{name(keys)} is a parameter there, not 0, and absent here: the same mixers, '
          'feed-forward and embeddings with the same biases, or more, are expected'
        )
    out = {}
    for keys, shape in self.like.items():
      if keys not in self.found and keys[-1] != 'bias':
        raise ValueError(f'{name(keys)} is a parameter here alone: the same are expected')
      x = self.found.get(keys, np.zeros(shape))
      if x.shape != shape:
        raise ValueError(
          f'{name(keys)} should have shape {x.shape} and has {shape} here: as many heads, hidden '
          'units, positions and rows of the vocabulary as there are expected; at another width '
          'heads= of the mixer and hidden= of the ffn say so'
        )
      out[keys] = x.astype(np.float64 if self.double else np.float32)
    return out


def name(keys: Keys) -> str:
  return '/'.join(keys)

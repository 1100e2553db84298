"""Quantizes the matrices of a model layer by layer: each layer's inputs on calibration rows come
from the layers before it as they are when quantized.

A layer runs by itself, on what the layer before gave for every chunk of rows; nothing of the model
is computed twice but the layer at hand: once to see its inputs where the method asks for them, once
to compare, once to go on.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple, Sequence

import flax.linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from lmjax import kinds
from lmjax.quantizers import _outliers


class Matrix(NamedTuple):
  """A linear part of a layer: its axes, as (name, size), and whether it has a bias."""

  ins: tuple
  outs: tuple
  role: str
  bias: bool


class Layer(NamedTuple):
  """Where a layer lies: its segment, the round in it, its place in the round; depth from 0."""

  segment: int
  repeat: int
  place: str
  name: str
  depth: int

  def of(self, tree) -> Any:
    """The layer's own part of parameters or variables, {} where there is none."""
    stacked = tree.get(f'segment_{self.segment}', {}).get(self.place, {})
    return jax.tree.map(lambda a: a[self.repeat], stacked)


@dataclasses.dataclass
class Result:
  """params and vars of the quantized model; errors: of each layer, by matrix, the squared error of
  its outputs over their squares, {} without rows; outliers: None where they were not asked for.
  """

  params: Any
  vars: Any
  errors: list[dict[str, float]]
  outliers: _outliers.Report | None


def layers(model) -> list[Layer]:
  """The layers in order. Raises ValueError where several share their weights."""
  out = []
  for n, s in enumerate(model.segments):
    if s.shared and s.repeats > 1:
      raise ValueError(
        'config.model.stack: a segment that shares its weights is not accepted here: codes would '
        'be stored once for each of its rounds'
      )
    for r in range(s.repeats):
      places = enumerate(s.pattern)
      out += [Layer(n, r, f'{i}_{name}', name, len(out) + i) for i, name in places]
  return out


def matrices(run, params) -> dict[tuple[str, ...], Matrix]:
  """Every linear part by its path. Raises ValueError where one cannot be read."""
  spec = run.config['model']['linear']
  _check_plain(spec, run.model.scheme)
  found = {}

  def see(module, x, y):
    found[module.path] = Matrix(module.ins, module.outs, module.role, module.bias)

  tokens = jax.ShapeDtypeStruct((1, run.length), jnp.int32)

  def forward(variables, tokens):
    with _watching(run.model.scheme.linear.obj, see):
      return run.architecture.apply(variables, tokens, kinds.Ctx(tokens, tokens), mutable=['vars'])

  variables = {k: v for k, v in run.shapes.items() if k in ('params', 'vars')}
  jax.eval_shape(forward, variables, tokens)
  flat = traverse_util.flatten_dict(params)
  for path, m in found.items():
    kernel, shape = flat.get((*path, 'kernel')), tuple(n for _, n in m.ins + m.outs)
    inside = len(path) > 2 and path[0].startswith('segment_')
    if not inside or kernel is None or kernel.shape[1:] != shape:
      raise ValueError(
        f'{"/".join(path)} cannot be read: one matrix of shape {shape} in each layer of the stack '
        'is expected'
      )
  if not found:
    raise ValueError(f'config.model.linear={spec}: the model has no matrix made by it')
  return found


def _check_plain(spec: str, scheme) -> None:
  """Raises ValueError unless the linear part is one matrix `kernel` and nothing but its product."""
  x = np.random.default_rng(0).normal(size=(1, 5, 3)).astype(np.float32)
  kernel = np.arange(1, 7, dtype=np.float32).reshape(3, 2)
  alone, plain = {'params': {'kernel': kernel}}, False
  try:
    module = scheme.linear(
      ins=(('embed', 3),), outs=(('mlp', 2),), role='hidden', bias=False, scheme=scheme, parent=None
    )
    made = nn.meta.unbox(jax.eval_shape(lambda: module.init(jax.random.key(0), x)))
    if jax.tree.map(lambda a: a.shape, made) == jax.tree.map(lambda a: a.shape, alone):
      plain = np.allclose(module.apply(alone, x), x @ kernel, atol=1e-4)
  except ValueError:  # a part that refuses so small a matrix has more to it than the matrix
    pass
  if not plain:
    raise ValueError(
      f'config.model.linear={spec}: its matrix cannot be read; a part that multiplies with one '
      'matrix and does nothing else, as dense() does, is expected'
    )


def _watching(part, see):
  """Calls see(module, x, y) for each call of a linear part within."""

  def watch(function, args, kwargs, context):
    y = function(*args, **kwargs)
    if isinstance(context.module, part) and context.method_name == '__call__':
      see(context.module, args[0], y)
    return y

  return nn.intercept_methods(watch)


class Pass:
  """Quantizes one model. `run` and `new` are the runs before and after, `part` the quantizer."""

  def __init__(self, run, new, part):
    self.old, self.new, self.part, self.quantizer = run.model, new.model, part, part()
    self._run, self._lookahead = run, run.lookahead
    self._layer_fns = functools.cache(self._functions)

  def __call__(self, params, vars, rows: dict[str, np.ndarray], told=lambda layer: None) -> Result:
    """rows: fields of calibration rows, (N, T + lookahead); with N = 0 nothing is measured."""
    wanted, todo = matrices(self._run, params), layers(self.old)
    codes = vars.get('vars', {})
    chunks = self._enter(params, vars, rows)
    seen = _outliers.Seen(self.old.width) if self.part.fact('outliers') and chunks else None
    made: dict[tuple, list] = {}
    errors = []
    for layer in todo:
      told(layer)
      mine = {path[2:]: m for path, m in wanted.items() if path[:2] == _place(layer)}
      p, v = layer.of(params), layer.of(codes)
      found = self._codes(layer, mine, p, v, chunks)
      for path, arrays in found.items():
        for name, array in arrays.items():
          made.setdefault((*_place(layer), *path, name), []).append(np.asarray(array))
      after = dict(params=_without(p, mine), vars=_merged(v, found))
      errors.append(self._step(layer, p, v, after, chunks, seen))
    stacked = {path: np.stack(values) for path, values in made.items()}
    new_vars = traverse_util.flatten_dict(codes) | stacked
    return Result(
      _without(params, wanted),
      dict(vars, vars=traverse_util.unflatten_dict(new_vars)),
      errors,
      None if seen is None else seen.report(),
    )

  def _enter(self, params, vars, rows) -> list:
    """[carry before the first layer, context] of each chunk of rows."""
    count = len(rows['tokens']) if rows else 0
    if not count:
      return []
    length = rows['tokens'].shape[1] - self._lookahead
    most = max(1, 4096 // length)
    size = next(n for n in range(min(count, most), 0, -1) if count % n == 0)
    first = (f'segment_{0}', f'0_{self.old.segments[0].pattern[0]}')
    layer_part = self.old.block(self.old.segments[0].pattern[0]).obj

    def watch(function, args, kwargs, context):
      module = context.module
      if isinstance(module, layer_part) and module.path == first:
        if context.method_name == '__call__':
          module.put_variable('vars', 'entered', args[0])
      return function(*args, **kwargs)

    @jax.jit
    def enter(variables, tokens, ctx):
      with nn.intercept_methods(watch):
        _, after = self._run.architecture.apply(variables, tokens, ctx, mutable=['vars'])
      entered = after['vars'][first[0]][first[1]]['entered']
      return jax.tree.map(lambda a: a[0], entered)

    out = []
    for at in range(0, count, size):
      piece = {k: jnp.asarray(a[at : at + size, :length]) for k, a in rows.items()}
      ctx = kinds.Ctx(
        piece['positions'],
        piece['segments'],
        **({'prefix_BT': piece['prefix']} if 'prefix' in piece else {}),
      )
      out.append([enter(dict(params=params, **vars), piece['tokens'], ctx), ctx])
    return out

  # ---- one layer

  def _codes(self, layer, mine, p, v, chunks) -> dict[tuple, dict]:
    """Variables of each matrix of a layer, by its path in the layer."""
    inputs: dict[tuple, kinds.Inputs | None] = {path: None for path in mine}
    if self.part.fact('calibration'):
      inputs = self._inputs(layer, p, v, chunks)
    out = {}
    for path, m in mine.items():
      kernel = jnp.asarray(_at(p, path)['kernel'])
      where = f'layer {layer.depth}, {"/".join(path)}'
      if not np.isfinite(kernel).all():
        raise ValueError(f'{where}: the matrix holds numbers that are not finite')
      fan_in = math.prod(n for _, n in m.ins)
      try:
        found = self.quantizer.quantize(kernel.reshape(fan_in, -1), inputs[path])
      except ValueError as e:
        raise ValueError(f'{where}: {e}') from e
      out[path] = self._linear(m).stored(found)
      if not np.isfinite(out[path]['scale']).all():
        raise ValueError(f'{where}: its numbers are too large for the scales')
    return out

  def _linear(self, m: Matrix):
    """The quantized linear part of a matrix, without its bias."""
    return self.new.scheme.linear(
      ins=m.ins, outs=m.outs, role=m.role, bias=False, scheme=self.new.scheme, parent=None
    )

  def _inputs(self, layer, p, v, chunks) -> dict[tuple, kinds.Inputs]:
    sums, largest, tokens = {}, {}, 0.0
    for carry, ctx in chunks:
      observed, count = jax.device_get(
        self._layer_fns(layer.name)['observe'](p, v, carry, ctx, layer.depth)
      )
      tokens += float(count)
      for path, (square, most) in observed.items():
        sums[path] = sums.get(path, 0.0) + np.float64(square)
        largest[path] = np.maximum(largest.get(path, 0.0), most)
    if not tokens:
      raise ValueError('the calibration rows hold no tokens: give other --data, or more --rows')
    return {
      path: kinds.Inputs((2 / tokens * s).astype(np.float32), largest[path])
      for path, s in sums.items()
    }

  def _step(self, layer, p, v, after, chunks, seen) -> dict[str, float]:
    """Compares the layer's matrices with their codes and moves the chunks behind the new layer."""
    sums: dict[tuple, np.ndarray] = {}
    fns = self._layer_fns(layer.name)
    for chunk, item in enumerate(chunks):
      carry, ctx = item
      compared, above = fns['compare'](p, v, after['vars'], carry, ctx, layer.depth)
      for path, pair in jax.device_get(compared).items():
        sums[path] = sums.get(path, 0.0) + np.float64(pair)
      if seen is not None:
        seen.add(layer.depth, chunk, np.asarray(above), np.asarray(ctx.segments_BT) > 0)
      item[0] = fns['move'](after['params'], after['vars'], carry, ctx, layer.depth)
    return {'/'.join(path): float(a / max(b, 1e-30)) for path, (a, b) in sums.items()}

  def _functions(self, name: str) -> dict[str, Any]:
    """Compiled functions of one kind of layer."""
    run = lambda model, p, v, carry, ctx, depth: model.block(name)(parent=None).apply(
      dict(params=p, vars=v), carry, ctx.replace(depth=depth, scheme=model.scheme), mutable=['vars']
    )[0][0]
    part, width = self.old.scheme.linear.obj, self.old.width

    @jax.jit
    def observe(p, v, carry, ctx, depth):
      out, real = {}, ctx.segments_BT > 0

      def see(module, x, y):
        x = _masked(x, real, len(module.ins)).astype(jnp.float32)
        gram = jnp.matmul(x.T, x, precision='float32')
        square, most = out.get(module.path, (0.0, 0.0))
        out[module.path] = square + gram, jnp.maximum(most, jnp.max(jnp.abs(x), axis=0))

      with _watching(part, see):
        run(self.old, p, v, carry, ctx, depth)
      return out, jnp.sum(real)

    @jax.jit
    def compare(p, v, codes, carry, ctx, depth):
      out, real = {}, ctx.segments_BT > 0
      above = jnp.zeros((*real.shape, width), bool)

      def see(module, x, y):
        nonlocal above
        m = Matrix(module.ins, module.outs, module.role, module.bias)
        got = self._linear(m).apply({'vars': _at(codes, module.path)}, x)
        if m.bias:
          y = y - _at(p, module.path)['bias'].astype(y.dtype)
        off, y = (_masked(a.astype(jnp.float32), real, len(m.outs)) for a in (got - y, y))
        sums = jnp.stack([jnp.sum(off * off), jnp.sum(y * y)])
        out[module.path] = out.get(module.path, 0.0) + sums
        if x.shape == above.shape:
          above |= (jnp.abs(x) >= _outliers.LARGE) & real[..., None]

      with _watching(part, see):
        run(self.old, p, v, carry, ctx, depth)
      return out, above

    move = jax.jit(lambda *args: run(self.new, *args))
    return dict(observe=observe, compare=compare, move=move)


def _place(layer: Layer) -> tuple[str, str]:
  return f'segment_{layer.segment}', layer.place


def _masked(x, real_BT, axes: int):
  """(tokens, the last axes folded), padding set to 0."""
  assert x.shape[:2] == real_BT.shape, (x.shape, real_BT.shape)
  x = jnp.where(real_BT.reshape(*real_BT.shape, *[1] * (x.ndim - 2)), x, 0)
  return x.reshape(-1, math.prod(x.shape[x.ndim - axes :]))


def _at(tree, path: Sequence[str]):
  for key in path:
    tree = tree[key]
  return tree


def _without(params, paths) -> dict:
  """Parameters less the matrices at `paths`; what is left empty goes too."""
  flat = traverse_util.flatten_dict(params)
  gone = {(*path, 'kernel') for path in paths}
  return traverse_util.unflatten_dict({k: v for k, v in flat.items() if k not in gone})


def _merged(tree, found: dict[tuple, dict]) -> dict:
  flat = traverse_util.flatten_dict(tree)
  flat |= {(*path, name): a for path, arrays in found.items() for name, a in arrays.items()}
  return traverse_util.unflatten_dict(flat)

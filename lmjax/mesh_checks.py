"""What a mesh may not be asked for, found before data is read or a device does any work."""

import contextlib
from typing import Any

import jax

from lmjax import config as config_lib
from lmjax import registry
from lmjax.config import ConfigError
from lmjax.kernels import choice
from lmjax.parallel import pipeline
from lmjax.parallel import shard


def devices(run: Any, mesh):
  """Raises ConfigError where rows, time, layers or parameters do not divide over the devices, or a
  part cannot work on rows or layers that lie apart, or what config.kernels asks for cannot do this.
  mesh: None for a single device.
  """
  if any(name != choice.AUTO for name in run.config['kernels'].values()):
    _stepped(run, mesh)
  if mesh is None:
    return
  _rows(run, mesh)
  config_lib.named('mesh', lambda: run.placements(mesh))
  if mesh.shape.get('sequence', 1) > 1:
    _sequence(run, mesh.shape['sequence'])
  if mesh.shape.get('stage', 1) > 1:
    _stage(run, mesh)
  if any(mesh.shape.get(a, 1) > 1 for a in ('sequence', 'stage')):
    _pipelined(run, mesh)


def _rows(run, mesh):
  n = shard.sharing(mesh.shape)
  rows = run.rows // run.config['micro_batches']
  if rows % n:
    raise ConfigError(
      f'config.batch_tokens={run.config["batch_tokens"]} gives {rows} rows a micro-batch, which do '
      f'not divide over {n} devices, '
      + ' x '.join(
        f'config.mesh.{a}={mesh.shape[a]}' for a in shard.RULES['batch'] if a in mesh.shape
      )
      + _instead(run, n)
    )


def _instead(run, n: int) -> str:
  """What would divide over n devices: fewer micro-batches, or the nearest batch."""
  fewer = [m for m in range(run.config['micro_batches'] - 1, 0, -1) if run.rows % (m * n) == 0]
  if fewer:
    return f'; config.micro_batches={fewer[0]} would'
  piece = n * run.config['micro_batches']
  near = max(1, round(run.rows / piece)) * piece
  return f'; config.batch_tokens={near * run.config["batch_tokens"] // run.rows} would'


def _cut(run, axis: str, n: int):
  """The architecture and the ffns must let a mesh axis cut rows or layers."""
  architecture = registry.make('architecture', run.config['model']['architecture'])
  if axis not in architecture.fact('cuts'):
    kind = 'architecture'
    can = [a for a in registry.names(kind) if axis in registry.facts_of(kind, a)['cuts']]
    raise ConfigError(
      f'config.mesh.{axis}={n}: config.model.architecture={architecture} runs its layers '
      f'in a way of its own, which this axis cannot cut; it can cut {", ".join(can)}'
    )
  for name in sorted(run.model.used()):
    ffn = dict(run.model.block(name).context)['ffn']
    if ffn.fact('couples') in ('micro', 'global'):
      raise ConfigError(
        f'config.mesh.{axis}={n}: config.model.blocks.{name}.ffn={ffn} couples the tokens of a '
        'micro-batch, which this axis takes apart; replica, data, expert and tensor do not'
      )


def _sequence(run, n: int):
  _cut(run, 'sequence', n)
  steps = run.fields['tokens'].shape[0] - run.lookahead
  if steps % (2 * n):
    near = sorted({max(2 * n, steps // (2 * n) * 2 * n), -(-steps // (2 * n)) * 2 * n})
    raise ConfigError(
      f'config.mesh.sequence={n} cuts a row in {2 * n} chunks, and the {steps} tokens of one '
      f'(config.data.length={run.length}) do not divide; the nearest that do are '
      + ' and '.join(map(str, near))
    )


def _stage(run, mesh):
  c, n = run.config, mesh.shape['stage']
  _cut(run, 'stage', n)
  micro = c['mesh']['stage_micro_batches'] or n
  pieces, rows = shard.sharing(mesh.shape), run.rows // c['micro_batches']
  if rows % (micro * pieces):
    raise ConfigError(
      f'config.mesh.stage_micro_batches={c["mesh"]["stage_micro_batches"]}: {rows} rows '
      f'(config.batch_tokens / config.data.length / config.micro_batches) do not divide into '
      f'{micro} micro-batches over {pieces} devices'
    )
  # Tokens one after another would fetch the layers of all stages for each.
  for key, idle in (('sample.tokens', 0), ('eval.tasks', '')):
    part, name = key.split('.')
    if c[part][name] != idle:
      raise ConfigError(
        f'config.mesh.stage={n}: a pipeline does not decode; set config.{key}={idle!r} and sample '
        'or evaluate the finished run without it'
      )


def _traced(run, mesh):
  """The loss of a micro-batch. Parts raise what they cannot do when they are traced."""
  batch = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(
      (a.shape[0] // run.config['micro_batches'], *a.shape[1:]), a.dtype
    ),
    run.batch_shapes(),
  )
  rest = {k: v for k, v in run.shapes.items() if k != 'params'}
  loss = lambda p, v, b: run.objective.loss(p, v, b, jax.random.key(0))
  with _within(run, mesh):
    return config_lib.named('mesh', lambda: jax.make_jaxpr(loss)(run.shapes['params'], rest, batch))


def _stepped(run, mesh):
  """The whole step, the optimizer's kernels too."""
  given = run.state_shapes, run.batch_shapes(), jax.eval_shape(lambda: jax.random.key(0))
  with _within(run, mesh):
    config_lib.named('kernels', lambda: jax.eval_shape(run.step, *given))


@contextlib.contextmanager
def _within(run, mesh):
  on = jax.sharding.AbstractMesh((), ()) if mesh is None else getattr(mesh, 'abstract_mesh', mesh)
  with jax.sharding.use_abstract_mesh(on), run.choices():
    yield


def _pipelined(run, mesh):
  """Parts that cannot work on what a mesh cuts say so, and a pipeline must be used."""
  traced = _traced(run, mesh)
  if mesh.shape.get(pipeline.AXIS, 1) > 1 and not pipeline.passes(traced.jaxpr):
    raise ConfigError(
      f'config.mesh.{pipeline.AXIS}={mesh.shape[pipeline.AXIS]}: '
      f'config.objective={run.config["objective"]!r} runs its layers without a pipeline, so that '
      'each stage would do all of them; config.mesh.stage=1 is expected'
    )

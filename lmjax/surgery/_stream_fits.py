"""What flows between the layers of a pre-norm model; whether two models differ in that alone."""

from typing import Iterator, NamedTuple

from lmjax.surgery import _grow_fits

RESIDUALS = ('pre', 'pre_rmsnorm')
NORMS = ('layer_norm', 'rms_norm')
SHORT = 'pre_crmsnorm'
SIZED = {'mixer': ('heads', 'kv_heads'), 'ffn': ('hidden', 'mult', 'multiple_of')}
TABLES = ('tied', 'untied')


class Stream(NamedTuple):
  """The stream of a model.

  size: d, its coordinates with an implied one. short: whether the last is left out, being minus the
    sum of the others. loose: whether writers may give it a mean, which norms or layers then remove.
  """

  size: int
  short: bool
  loose: bool


def norms(model) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], str, object]]:
  """(keys of its parameters, keys of all that reads it, config key, part) of every norm that reads
  the stream.
  """
  for n, segment in enumerate(model.segments):
    for i, name in enumerate(segment.pattern):
      part = dict(model.block(name).context)['norm']
      for inner in ('mixer', 'ffn'):
        layer = f'segment_{n}', f'{i}_{name}'
        key = f'config.model.blocks.{name}.norm'
        yield (*layer, f'norm_{inner}'), (*layer, inner), key, part
  yield ('final_norm',), ('embed', 'unembed'), 'config.model.final_norm', model.final_norm


def stream(model, where: str) -> Stream:
  """Raises ValueError for a model that is no pre-norm one of these norms; `where`: there, here."""
  if model.embed_norm is not None:
    raise ValueError(
      f'config.model.embed_norm={model.embed_norm} {where} norms what the embedding writes: none '
      'is expected'
    )
  if model.final_norm is None:
    raise ValueError(f'config.model.final_norm is nothing {where}: a norm is expected')
  used = sorted(model.used())
  for name in used:
    if model.block(name).name != model.block(used[0]).name or (
      model.block(name).name not in RESIDUALS
    ):
      raise ValueError(
        f'config.model.blocks.{name}.residual={model.block(name)} {where}: {" or ".join(RESIDUALS)}'
        ' is expected, the same in all blocks'
      )
  found = {part.name for *_, part in norms(model)}
  centred = model.block(used[0]).name == 'pre_rmsnorm'
  if found == {SHORT} and not centred:
    return Stream(model.width + 1, short=True, loose=True)
  for _, _, key, part in norms(model):
    if part.name not in NORMS:
      raise ValueError(
        f'{key}={part} {where}: norms that are {" or ".join(NORMS)}, or with layers pre all of '
        f'them {SHORT}, are expected'
      )
  return Stream(model.width, short=False, loose=centred or found == {'layer_norm'})


def check(old, new) -> tuple[Stream, Stream]:
  """The streams of two stages (`kinds.Stage`). Raises ValueError where more differs."""
  a, b = old.model, new.model
  source, target = stream(a, 'there'), stream(b, 'here')
  if not source.loose:
    raise ValueError(
      'norms there are rms_norm in layers pre, whose stream has a mean that matters: layer_norm, '
      'layers pre_rmsnorm, or pre_crmsnorm are expected there'
    )
  if source.size != target.size:
    beside = lambda s, m: f'{m.width}' + (' (and one that is implied)' if s.short else '')
    raise ValueError(
      f'config.model.width is {beside(source, a)} there and {beside(target, b)} here: '
      f'{source.size - target.short} is expected here'
    )
  _same(old, new)
  for (_, _, key, ours), (*_, theirs) in zip(norms(a), norms(b), strict=True):
    eps = [dict(part.args)['eps'] for part in (ours, theirs)]
    if eps[0] != eps[1]:
      raise ValueError(f'{key}={ours} there and {theirs} here: the same eps is expected')
  return source, target


def _same(old, new):
  """Raises ValueError where anything but norms, biases and the width differs."""
  a, b = old.model, new.model
  for where, stage in (('there', old), ('here', new)):
    if (architecture := stage.config['model']['architecture']) != 'transformer()':
      raise ValueError(
        f'config.model.architecture={architecture} {where}: transformer() is expected'
      )
    if stage.model.scheme.linear.name != 'dense':
      raise ValueError(
        f'config.model.linear={stage.model.scheme.linear} {where}: dense() is expected, full '
        'matrices'
      )
    if stage.model.embed.name not in TABLES:
      raise ValueError(
        f'config.model.embed={stage.model.embed} {where}: {" or ".join(TABLES)} is expected'
      )
    segments = {f'segment_{n}' for n in range(len(stage.model.segments))}
    own = segments | {'embed', 'position', 'final_norm'}
    if beside := sorted(set(stage.variables['params']) - own):
      raise ValueError(
        f'config.objective={stage.config["objective"]} {where} has parameters beside the '
        f"model's ({beside[0]}): an objective of one network is expected"
      )
  if a.segments != b.segments:
    raise ValueError(
      f'the layers are {_grow_fits.stack(a.segments)} there and {_grow_fits.stack(b.segments)} '
      'here: the same are expected'
    )
  for name in sorted(b.used()):
    for inner, sized in SIZED.items():
      ours, theirs = (dict(m.block(name).context)[inner] for m in (a, b))
      if _without(ours, *sized, 'bias') != _without(theirs, *sized, 'bias'):
        raise ValueError(
          f'config.model.blocks.{name}.{inner} is {ours} there and {theirs} here: the same but for '
          'biases is expected'
        )
  if dict(_without(a.embed, 'bias')[1]) != dict(_without(b.embed, 'bias')[1]):
    raise ValueError(
      f'config.model.embed={a.embed} there and {b.embed} here: the same scale and multiple_of are '
      'expected'
    )
  if a.cap != b.cap:
    raise ValueError(f'config.model.cap={a.cap} there and {b.cap} here: the same is expected')
  scales = [[m.scheme.init.attention_scale(size) for size in (1, 2)] for m in (a, b)]
  if scales[0] != scales[1]:
    raise ValueError(
      f'config.model.init={a.init} there and {b.init} here scale the logits of attention '
      'differently: the same scale is expected'
    )
  _grow_fits.same_vocabulary(old, new)


def _without(part, *names):
  return part.name, tuple((k, str(v)) for k, v in part.args if k not in names)

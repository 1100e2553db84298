"""What Qwen 2 and 3 share: full attention in some layers and a window in others."""

from lmjax.interop.hf import _llama

FULL, LOCAL = 'full_attention', 'sliding_attention'
DEFAULTS = dict(
  num_key_value_heads=None,
  rms_norm_eps=1e-6,
  tie_word_embeddings=False,
  use_sliding_window=False,
  sliding_window=4096,
  max_window_layers=28,
  layer_types=[],
)


def settings(h, block):
  """Settings with block(window) -> its parts."""
  depth, kinds = h['num_hidden_layers'], h['layer_types']
  if not kinds:
    first = h['max_window_layers'] if h['use_sliding_window'] else depth
    kinds = [FULL if n < first else LOCAL for n in range(depth)]
  if len(kinds) != depth or set(kinds) - {FULL, LOCAL}:
    raise ValueError(
      f'config.json: layer_types={kinds!r}: {depth} of {FULL} and {LOCAL} are expected'
    )
  if LOCAL not in kinds:
    return _llama.settings(h, {'block': block(None)})
  names = {FULL: 'full', LOCAL: 'local'}
  blocks = {'full': block(None), 'local': block(h['sliding_window'])}
  blocks = {names[k]: blocks[names[k]] for k in dict.fromkeys(kinds)}
  runs = [[names[kinds[0]], 0]]
  for k in kinds:
    if runs[-1][0] != names[k]:
      runs.append([names[k], 0])
    runs[-1][1] += 1
  return _llama.settings(h, blocks, ' + '.join(f'{name}*{n}' for name, n in runs))


def fields(view):
  windows = [layer['mixer'].inner().get('window') for layer in view.layers]
  width = next((w for w in windows if w), None)
  return _llama.fields(view) | dict(
    use_sliding_window=width is not None,
    sliding_window=width,
    layer_types=[LOCAL if w else FULL for w in windows],
  )

"""Reads Llama checkpoints in the layout of llama2.c: one .npz of stacked matrices and a
config.json.

Matrices are stacked over layers and stored as (layer, out, in), y = x W^T; lmjax stores (layer, in,
out) with heads apart:

  wq, wk, wv (N, H K, D) -> mixer/{q,k,v}/kernel (N, D, H, K)        wo (N, D, H K) ->
  mixer/out/kernel (N, H, K, D) w1, w3 (N, F, D) -> ffn/{gate,up}/kernel (N, D, F)
  w2 (N, D, F) -> ffn/down/kernel (N, F, D)

Coordinates 2i and 2i + 1 of each head rotate together (Meta's layout), hence
rope(pairs='interleaved'). Karpathy, llama2.c.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax import config as config_lib
from lmjax import kinds
from lmjax import registry
from lmjax.models import model as model_lib
from lmjax.parallel import facts

KEYS = (
  'dim',
  'hidden_dim',
  'n_layers',
  'n_heads',
  'n_kv_heads',
  'vocab_size',
  'max_seq_len',
  'shared_classifier',
  'rope_theta',
  'norm_eps',
)
WEIGHTS, CONFIG = 'weights_fp16.npz', 'config.json'


def load(directory: str) -> tuple[dict[str, Any], dict[str, Any]]:
  """(resolved config, variables) of `directory`, float32 parameters on the host. Raises ValueError
  naming the file and the array.
  """
  folder = pathlib.Path(directory)
  settings = _settings(folder / CONFIG)
  resolved = config_lib.resolve(to_config(settings))
  variables = {'params': to_params(_arrays(folder / WEIGHTS), settings)}
  _check(variables, model(resolved, settings['vocab_size']), folder / WEIGHTS)
  return resolved, variables


def model(resolved: dict[str, Any], vocab: int):
  """The architecture of a resolved config, for a vocabulary of this size."""
  settings = model_lib.resolve(resolved['model'], vocab, resolved['data']['length'])
  return registry.make('architecture', resolved['model']['architecture'], model=settings)()


def to_config(s: dict[str, Any]):
  """A config of the model; its training settings are the defaults. The tokenizer must be set to use
  it with text.
  """
  c = config_lib.default()
  m, block = c.model, c.model.blocks.block
  norm = f'rms_norm(eps={s["norm_eps"]})'
  m.width, m.depth, c.data.length = s['dim'], s['n_layers'], s['max_seq_len']
  m.embed = 'tied()' if s['shared_classifier'] else 'untied()'
  m.position = f'rope(base={s["rope_theta"]}, pairs="interleaved")'
  m.final_norm = block.norm = norm
  block.mixer = (
    f'gqa(head_dim={s["dim"] // s["n_heads"]}, heads={s["n_heads"]}, kv_heads={s["n_kv_heads"]})'
  )
  block.ffn = f'swiglu(hidden={s["hidden_dim"]})'
  c.data.bos, c.data.eos = True, False
  return c


def to_params(a: dict[str, np.ndarray], s: dict[str, Any]) -> dict[str, Any]:
  """The parameter tree of `lmjax`'s transformer from llama2.c's arrays, float32."""
  size = s['dim'] // s['n_heads']
  a = {k: np.asarray(v, np.float32) for k, v in a.items()}

  def turned(name):  # (N, out, in) -> (N, in, out)
    return np.ascontiguousarray(a[name].swapaxes(1, 2))

  def heads(name):  # (N, in, out) -> (N, in, heads, head size)
    w = turned(name)
    return w.reshape(*w.shape[:2], -1, size)

  out = turned('wo')
  mixer = {k: {'kernel': heads(f'w{k}')} for k in 'qkv'} | {
    'out': {'kernel': out.reshape(out.shape[0], -1, size, out.shape[2])}
  }
  ffn = {k: {'kernel': turned(w)} for k, w in dict(gate='w1', up='w3', down='w2').items()}
  layer = dict(
    mixer=mixer, ffn=ffn, norm_mixer={'scale': a['rms_att']}, norm_ffn={'scale': a['rms_ffn']}
  )
  embed = {'table': a['tok_emb']} | ({} if s['shared_classifier'] else {'unembed': a['wcls']})
  return dict(embed=embed, final_norm={'scale': a['rms_final']}, segment_0={'0_block': layer})


def _settings(path: pathlib.Path) -> dict[str, Any]:
  try:
    s = json.loads(path.read_text('utf-8'))
  except OSError as e:
    raise ValueError(f'cannot read {path}: {e.strerror}') from None
  except ValueError as e:
    raise ValueError(f'{path} is not JSON: {e}') from None
  missing = [k for k in KEYS if k not in s] if isinstance(s, dict) else list(KEYS)
  if missing:
    raise ValueError(
      f'{path}: {missing[0]!r} is missing; a llama2.c checkpoint gives {", ".join(KEYS)}'
    )
  if s['dim'] % s['n_heads'] or s['n_heads'] % s['n_kv_heads']:
    raise ValueError(
      f'{path}: dim={s["dim"]}, n_heads={s["n_heads"]} and n_kv_heads={s["n_kv_heads"]} do not '
      'divide'
    )
  return s


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  needed = ('tok_emb', 'rms_att', 'wq', 'wk', 'wv', 'wo', 'rms_ffn', 'w1', 'w2', 'w3', 'rms_final')
  try:
    with np.load(path, allow_pickle=False) as f:
      found = {k: f[k] for k in f.files}
  except OSError as e:
    raise ValueError(f'cannot read {path}: {e.strerror or e}') from None
  except Exception as e:  # zipfile and numpy raise their own kinds for a damaged file
    raise ValueError(f'{path} is damaged or no .npz of plain arrays: {e}') from None
  missing = [k for k in needed if k not in found]
  if missing:
    raise ValueError(f'{path}: the array {missing[0]!r} is missing; it has {", ".join(found)}')
  return found


def _check(variables, net, path: pathlib.Path):
  """Raises ValueError naming the first parameter whose shape is not the model's."""
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  init = lambda key, x: net.init(key, x, kinds.Ctx(positions_BT=jnp.zeros_like(x)))
  want = facts.unbox(jax.eval_shape(init, jax.random.key(0), tokens))
  have = {
    jax.tree_util.keystr(p, simple=True, separator='/'): a.shape
    for p, a in jax.tree_util.tree_leaves_with_path(variables)
  }
  need = {
    jax.tree_util.keystr(p, simple=True, separator='/'): a.shape
    for p, a in jax.tree_util.tree_leaves_with_path(want)
  }
  for name in sorted(have.keys() | need.keys()):
    if have.get(name) != need.get(name):
      raise ValueError(
        f'{path}: {name} has shape {have.get(name)}, config.json makes it {need.get(name)}'
      )

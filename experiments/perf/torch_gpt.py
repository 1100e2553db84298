"""GPT-2 and Llama in PyTorch, as a contestant: the model of a recipe and its training step, written
from public descriptions.

Each layer: x + out(attention(norm(x))), then x + down(f(norm(x))). One product makes queries, keys
and values; attention is `scaled_dot_product_attention(is_causal=True)`; AdamW is fused; gradients
are clipped to the norm 1; products are in bfloat16 by autocast, parameters float32. GPT-2 (Radford
et al., 2019): learned positions, layer norm, GELU (tanh), biases, one matrix for both embeddings.
Llama (Touvron et al., 2023, arXiv:2302.13971): rotary positions, RMS norm, SwiGLU, grouped keys.
Documents are not masked, and no step is refused. Words that round the vocabulary up are ordinary
words, as they are not in lmjax.
"""

import math
import operator
from typing import NamedTuple

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lmjax import registry


class Shape(NamedTuple):
  """base: of rotary positions, or None for a table of `length` rows."""

  layers: int
  width: int
  heads: int
  kv_heads: int
  head: int
  hidden: int
  rows: int
  length: int
  base: float | None
  norm: str
  eps: float
  gated: bool
  bias: bool
  tied: bool


def shape(run) -> Shape:
  """The shape of a run's model. Raises ValueError naming a part that has no counterpart here."""
  m, block = run.config['model'], run.config['model']['blocks']['block']
  specs = dict(norm=block['norm'], ffn=block['ffn'], position=m['position'], mixer=block['mixer'])
  part = {k: registry.make(k, s) for k, s in specs.items()}
  known = dict(
    norm=('layer_norm', 'rms_norm'),
    ffn=('gelu', 'swiglu'),
    position=('learned', 'rope'),
    mixer=('gqa',),
  )
  args = {k: dict(p.args) for k, p in part.items()}
  plain = args['position'].get('scaling', 'none') == 'none' and m['final_norm'] == block['norm']
  if not plain or any(part[k].name not in names for k, names in known.items()):
    raise ValueError(f'{specs}: GPT-2 or Llama with plain positions is expected')
  params = run.shapes['params']
  layer = params['segment_0']['0_block']
  layers, width, heads, head = layer['mixer']['q']['kernel'].shape
  return Shape(
    layers=layers,
    width=width,
    heads=heads,
    kv_heads=layer['mixer']['k']['kernel'].shape[2],
    head=head,
    hidden=layer['ffn']['up']['kernel'].shape[-1],
    rows=len(params['embed']['table']),
    length=run.length,
    base=args['position'].get('base'),
    norm=part['norm'].name,
    eps=args['norm']['eps'],
    gated='gate' in layer['ffn'],
    bias='bias' in layer['ffn']['up'],
    tied='unembed' not in params['embed'],
  )


class Norm(nn.Module):
  def __init__(self, s: Shape):
    super().__init__()
    self.s, self.weight = s, nn.Parameter(torch.ones(s.width))
    self.bias = nn.Parameter(torch.zeros(s.width)) if s.norm == 'layer_norm' else None

  def forward(self, x):
    if self.bias is None:
      return F.rms_norm(x, (self.s.width,), self.weight.to(x.dtype), self.s.eps)
    return F.layer_norm(x, (self.s.width,), self.weight, self.bias, self.s.eps)


class Block(nn.Module):
  def __init__(self, s: Shape):
    super().__init__()
    self.s, wide = s, s.hidden * (2 if s.gated else 1)
    linear = lambda a, b: nn.Linear(a, b, bias=s.bias)
    self.norm_mixer, self.norm_ffn = Norm(s), Norm(s)
    self.qkv = linear(s.width, (s.heads + 2 * s.kv_heads) * s.head)
    self.out, self.up = linear(s.heads * s.head, s.width), linear(s.width, wide)
    self.down = linear(s.hidden, s.width)

  def forward(self, x, turn):
    s, (rows, steps, _) = self.s, x.shape
    heads = self.qkv(self.norm_mixer(x)).view(rows, steps, -1, s.head).transpose(1, 2)
    q, k, v = heads.split([s.heads, s.kv_heads, s.kv_heads], dim=1)
    if turn is not None:
      q, k = rotated(q, turn), rotated(k, turn)
    grouped = dict(enable_gqa=True) if s.kv_heads < s.heads else {}
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, **grouped)
    x = x + self.out(y.transpose(1, 2).reshape(rows, steps, -1))
    up = self.up(self.norm_ffn(x))
    if s.gated:
      gate, up = up.chunk(2, dim=-1)
      return x + self.down(F.silu(gate) * up)
    return x + self.down(F.gelu(up, approximate='tanh'))


def rotated(x, turn):
  """x with coordinates i and i + K/2 of each head turned by the angles."""
  cos, sin = (t.to(x.dtype) for t in turn)
  a, b = x.chunk(2, dim=-1)
  return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Gpt(nn.Module):
  """tokens -> mean cross-entropy of the next ones. stream: the dtype of what flows between layers;
  None for that of the tables, float32.
  """

  def __init__(self, s: Shape, stream=None):
    super().__init__()
    self.s, self.stream = s, stream
    self.table = nn.Embedding(s.rows, s.width)
    self.unembed = None if s.tied else nn.Parameter(torch.empty(s.rows, s.width))
    self.position = None if s.base else nn.Parameter(torch.empty(s.length, s.width))
    self.blocks, self.norm = nn.ModuleList(Block(s) for _ in range(s.layers)), Norm(s)
    for p in self.parameters():
      if p.dim() == 2:
        nn.init.normal_(p, std=0.02)
    for b in self.blocks:
      for p in (b.out, b.down):
        nn.init.normal_(p.weight, std=0.02 / math.sqrt(2 * s.layers))
    if s.base:
      rate = s.base ** (-torch.arange(0, s.head, 2, dtype=torch.float64) / s.head)
      angle = torch.arange(s.length, dtype=torch.float64)[:, None] * rate
      self.register_buffer('cos', angle.cos().float(), persistent=False)
      self.register_buffer('sin', angle.sin().float(), persistent=False)

  def forward(self, tokens):
    x, turn = self.table(tokens[:, :-1]), None
    if self.position is None:
      turn = self.cos, self.sin
    else:
      x = x + self.position
    x = x if self.stream is None else x.to(self.stream)
    for block in self.blocks:
      x = block(x, turn)
    logits = F.linear(self.norm(x), self.table.weight if self.unembed is None else self.unembed)
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def fill(model: Gpt, params) -> Gpt:
  """Gives the model the parameters of lmjax's."""
  params = jax.tree.map(lambda a: torch.from_numpy(np.array(a, np.float32)), params)
  layers, out = params['segment_0']['0_block'], {}
  flat = lambda w, ins: w.reshape(math.prod(w.shape[:ins]), -1).T  # y = x W^T
  norm = lambda name, n: {f'{name}.{"weight" if k == "scale" else k}': v for k, v in n.items()}
  for i in range(model.s.layers):
    l = jax.tree.map(operator.itemgetter(i), layers)
    mixer, ffn, at = l['mixer'], l['ffn'], f'blocks.{i}'
    ups = [ffn['gate'], ffn['up']] if model.s.gated else [ffn['up']]
    joined = {
      'qkv': ([mixer[k] for k in 'qkv'], 1),
      'out': ([mixer['out']], 2),
      'up': (ups, 1),
      'down': ([ffn['down']], 1),
    }
    for name, (parts, ins) in joined.items():
      out[f'{at}.{name}.weight'] = torch.cat([flat(p['kernel'], ins) for p in parts])
      if model.s.bias:
        out[f'{at}.{name}.bias'] = torch.cat([p['bias'].reshape(-1) for p in parts])
    for name in ('norm_mixer', 'norm_ffn'):
      out |= norm(f'{at}.{name}', l[name])
  out |= norm('norm', params['final_norm']) | {'table.weight': params['embed']['table']}
  if not model.s.tied:
    out['unembed'] = params['embed']['unembed']
  if not model.s.base:
    out['position'] = params['position']['table']
  model.load_state_dict(out)
  return model


def stepper(run, batches, *, compiled: bool, narrow: bool):
  """(one(): a training step, its loss; what this contestant says of itself; what it says later).

  narrow: what flows between layers is bfloat16 as well.
  """
  gpu, half = torch.cuda.is_available(), run.config['model']['dtype'] == 'bfloat16'
  device = 'cuda' if gpu else 'cpu'
  torch.manual_seed(0)
  torch.set_float32_matmul_precision('high')
  with torch.device(device):
    model = Gpt(shape(run), torch.bfloat16 if narrow else None)
  matrices = [p for p in model.parameters() if p.dim() == 2]
  vectors = [p for p in model.parameters() if p.dim() != 2]
  groups = [dict(params=matrices, weight_decay=0.1), dict(params=vectors, weight_decay=0.0)]
  groups = [g for g in groups if g['params']]
  optim = torch.optim.AdamW(groups, lr=run.config['peak_lr'], betas=(0.9, 0.95), fused=True)
  loss_of = torch.compile(model) if compiled else model
  data, calls = [torch.from_numpy(b['tokens']).long().to(device) for b in batches], [0]

  def one():
    with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
      loss = loss_of(data[calls[0] % len(data)])
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optim.step()
    optim.zero_grad(set_to_none=True)
    calls[0] += 1
    return loss.detach()

  name = torch.cuda.get_device_name() if gpu else 'cpu'
  said = dict(params=sum(p.numel() for p in model.parameters()), device=name)
  more = lambda: dict(peak_bytes=torch.cuda.max_memory_allocated()) if gpu else {}
  return one, said | dict(torch=torch.__version__), more

"""What races in `cpu_step.py`, each in a process of its own, and the parts of lmjax's step.

command: python experiments/perf/cpu_contestants.py   CPU time of the parts of lmjax's step
"""

import contextlib
import ctypes
import importlib.metadata
import os
import pathlib
import sys
import time

import _turns

LAYERS, WIDTH, HEADS, LENGTH, VOCAB, HIDDEN = 4, 256, 4, 256, 256, 1024
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'torch', 'maxtext')


def cores() -> int:
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def packages() -> dict[str, str]:
  """Versions of what is installed beside this interpreter."""
  out = {}
  for name in PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      out[name] = importlib.metadata.version(name)
  return out


def keep_heap() -> bool:
  """Makes glibc's malloc keep and reuse freed memory; False where there is no glibc.

  XLA:CPU allocates the scratch memory of a program anew for each call. Blocks of that size come
  straight from the kernel, page by page, zeroed, and go back to it at the end. One arena, no mmap
  and no trimming leave them in the process.
  """
  arena_max, mmap_max, trim_threshold = -8, -4, -1  # malloc.h
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError, TypeError):
    return False
  return all([mallopt(arena_max, 1), mallopt(mmap_max, 0), mallopt(trim_threshold, -1)])


def lmjax_run(kind: str, rows: int, overrides):
  """(the built run, its first state, a batch of random bytes, a key)."""
  os.environ['JAX_PLATFORMS'] = 'cpu'
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
  import jax
  import numpy as np
  from lmjax import build, config

  settings = {
    'steps': '1000000',
    'batch_tokens': str(rows * LENGTH),
    'data.length': str(LENGTH),
    'peak_lr': '1e-3',
    'data.tokenizer': 'bytes(specials=False)',
    'optim': 'adam(b2=0.999) | decay(rate=1e-4)',
    'model.width': str(WIDTH),
    'model.depth': str(LAYERS),
    'model.position': 'learned()',
    'model.mixer': f'gqa(head_dim={WIDTH // HEADS})',
    'model.ffn': f'gelu(hidden={HIDDEN})',
    'model.unroll': '1' if kind.endswith('scan') else str(LAYERS),
  }
  found = list(settings.items()) + [tuple(o.split('=', 1)) for o in overrides]
  run = build.build(config.resolve(config.load('quickstart', found)))
  state = run.init(jax.random.key(0))
  tokens = (
    np.random.default_rng(0).integers(0, VOCAB, (rows, LENGTH + run.lookahead)).astype(np.int32)
  )
  batch = dict(
    tokens=tokens,
    segments=np.ones_like(tokens),
    positions=np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape),
  )
  return run, state, jax.device_put(batch), jax.random.key(1)


def lmjax_step(kind: str, rows: int, overrides):
  """(one(): runs a step and returns the loss as a device value, parameters)."""
  run, state, batch, key = lmjax_run(kind, rows, overrides)
  import jax
  from lmjax import build

  step = jax.jit(run.step, donate_argnums=0)

  def one():
    nonlocal state
    state, metrics = step(state, batch, key)
    return metrics['nll'][0] / metrics['nll'][1]

  return one, build.counts(run)['total']


def torch_model(torch):
  nn, F = torch.nn, torch.nn.functional

  class Norm(nn.Module):
    def __init__(self):
      super().__init__()
      self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
      return F.rms_norm(x, (WIDTH,), self.scale, 1e-6)

  class Block(nn.Module):
    def __init__(self):
      super().__init__()
      self.norm_mixer, self.norm_ffn = Norm(), Norm()
      self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
      self.up, self.down = (
        nn.Linear(WIDTH, HIDDEN, bias=False),
        nn.Linear(HIDDEN, WIDTH, bias=False),
      )

    def forward(self, x):
      y, (rows, steps, _) = self.norm_mixer(x), x.shape
      q, k, v = (
        f(y).view(rows, steps, HEADS, WIDTH // HEADS).transpose(1, 2)
        for f in (self.q, self.k, self.v)
      )
      y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
      x = x + self.out(y.transpose(1, 2).reshape(rows, steps, WIDTH))
      return x + self.down(F.gelu(self.up(self.norm_ffn(x)), approximate='tanh'))

  class Gpt(nn.Module):
    def __init__(self):
      super().__init__()
      self.table, self.position = (
        nn.Embedding(VOCAB, WIDTH),
        nn.Parameter(torch.empty(LENGTH, WIDTH)),
      )
      self.blocks, self.final_norm = nn.ModuleList(Block() for _ in range(LAYERS)), Norm()
      for p in self.parameters():
        if p.dim() == 2:
          nn.init.normal_(p, std=0.02)

    def forward(self, tokens):
      x = self.table(tokens) + self.position[: tokens.shape[1]]
      for block in self.blocks:
        x = block(x)
      return self.final_norm(x) @ self.table.weight.T

  return Gpt()


def torch_step(kind: str, rows: int, overrides):
  """(one(): runs a step and returns the loss, parameters)."""
  del overrides
  import numpy as np
  import torch

  torch.manual_seed(0)
  torch.set_num_threads(cores())
  model = torch_model(torch)
  optim = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4, foreach=True)
  data = torch.from_numpy(np.random.default_rng(0).integers(0, VOCAB, (rows, LENGTH + 1)))

  def loss_fn(tokens):
    logits = model(tokens[:, :-1])
    return torch.nn.functional.cross_entropy(logits.view(-1, VOCAB), tokens[:, 1:].reshape(-1))

  run = torch.compile(loss_fn) if kind.startswith('torch-compile') else loss_fn

  def one():
    optim.zero_grad(set_to_none=True)
    loss = run(data)
    loss.backward()
    optim.step()
    return loss

  return one, sum(p.numel() for p in model.parameters())


def builder(kind: str):
  if kind.startswith('maxtext'):
    from maxtext_contestant import maxtext_step

    return maxtext_step
  return lmjax_step if kind.startswith('lmjax') else torch_step


def worker(kind: str, rows: int, overrides):
  """Serves a contestant, see `_turns`."""
  kind, _, heap = kind.partition('+')
  if heap and not keep_heap():
    raise OSError('this C library has no mallopt')

  def make():
    one, size = builder(kind)(kind, rows, overrides)
    return one, dict(params=size, versions=packages())

  _turns.serve(make)


def pieces(rows: int = 16, overrides=()):
  """Prints CPU milliseconds, the least of several calls, of parts of lmjax's step, each compiled on
  its own.
  """
  keep_heap()
  run, state, batch, key = lmjax_run('lmjax', rows, overrides)
  import jax
  import jax.numpy as jnp
  import optax

  loss = lambda p: run.objective.loss(p, state.vars, batch, key).sum / (rows * LENGTH)
  grads = jax.jit(jax.grad(loss))(state.params)

  def update(state, grads):
    updates, opt = run.tx.update(
      grads, state.opt, state.params, value=0.0, obj_fn=None, sample_fn=None, rng=key
    )
    return (
      updates,
      opt,
      optax.apply_updates(state.params, jax.tree.map(lambda u: -1e-3 * u, updates)),
    )

  def with_norms(state, grads):
    updates, opt, params = update(state, grads)
    return opt, params, [optax.global_norm(t) for t in (updates, grads, state.params)]

  def with_guard(state, grads):
    opt, params, norms = with_norms(state, grads)
    return jax.tree.map(
      lambda a, b: jnp.where(jnp.isfinite(sum(norms)), a, b),
      (opt, params),
      (state.opt, state.params),
    ), norms

  whole = cpu_ms(run.step, state, batch, key)
  for name, ms in (
    ('whole step, without donation', whole),
    ('forward', cpu_ms(loss, state.params)),
    ('forward and gradient', cpu_ms(jax.grad(loss), state.params)),
    ('optimizer', cpu_ms(lambda s, g: update(s, g)[1:], state, grads)),
    ('optimizer, norms', cpu_ms(with_norms, state, grads)),
    ('optimizer, norms, guard', cpu_ms(with_guard, state, grads)),
  ):
    print(f'{name:30s} {ms:8.1f} ms  {100 * ms / whole:5.1f} %', flush=True)
  x, w, dy = (
    jnp.ones((rows * LENGTH, WIDTH)),
    jnp.ones((WIDTH, HIDDEN)),
    jnp.ones((rows * LENGTH, HIDDEN)),
  )
  gflop = 2e-9 * x.shape[0] * w.size
  for name, ms in (
    ('product x W', cpu_ms(jnp.matmul, x, w)),
    ('gradient of x', cpu_ms(lambda w, dy: dy @ w.T, w, dy)),
    ('gradient of a wide W', cpu_ms(lambda x, dy: x.T @ dy, x, dy)),
    ('gradient of a tall W', cpu_ms(lambda x, dy: dy.T @ x, x, dy)),
  ):
    print(f'{name:30s} {ms:8.1f} ms  {gflop / ms * 1e3:5.0f} GFLOP/s a core')


def cpu_ms(fn, *args, calls: int = 12) -> float:
  import jax

  fn = jax.jit(fn)
  jax.block_until_ready(fn(*args))
  found = []
  for _ in range(calls):
    begun = time.process_time()
    jax.block_until_ready(fn(*args))
    found.append(time.process_time() - begun)
  return 1e3 * min(found)


if __name__ == '__main__':
  pieces()

"""A matrix with entries that stay 0: y = x (W * M) (+ b), M drawn once.

M keeps all but round(sparsity in out) entries of each matrix of each layer, drawn uniformly when
the model is initialized. `kernel` is W, with the axes ins + outs and the facts of a full matrix; M
is `mask`, bool, in the collection `vars`: it lies in the state and its checkpoints, on a mesh
like the kernel, and is the same on every host. W starts masked and is used masked, so that its
gradient is 0 where M is: with an optimizer that works by entries (Adam, decay and all) the moments
stay 0 there, and pruned entries are 0 to the bit at any step. All rounds of a shared segment have
the same mask.

Every matrix made by `nn.params.dense` is pruned, those of mixers and feed-forward; embeddings,
unembedding, norms and biases are made otherwise and stay dense. With sparsity 0 the model starts
and trains as with `dense`, to the bit.

Thangarasa et al., 2023 (SPDF, arXiv:2303.10464): sparse pre-training, sparsity 0.5 or 0.75, with
the initial values of the dense model; then dense fine-tuning with a fresh optimizer, in which
pruned entries start at 0 and learn like the others:
  --config.model.linear='spdf(sparsity=0.75, dense=True)' --config.init_from=RUN
`dense=True` keeps the mask and does not apply it; another sparsity than RUN's is refused, since the
mask is RUN's. The same command without it is the ablation, sparse fine-tuning. The parameters of
all three have the names and shapes of `dense()`, in which `--config.init_from='densify(run="RUN")'`
begins without masks.

Traps: FLOPs are saved on paper only. Nothing here is faster or smaller: a product multiplies by
zeros, and the mask takes a byte an entry. The method's count for these matrices is 1 - sparsity of
that of full ones, attention's own and the unembedding's remain; `lmjax/flops.py` counts the same,
and full ones with `dense=True`. Optimizers that mix entries (muon, soap, galore) write into pruned
places of W: the model never sees those values, but a dense run would start from them.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.nn import params
from lmjax.parallel import facts
from lmjax.parallel import shard
from lmjax.parallel.facts import Fact
from lmjax.registry import register


@register('linear', prescribes=('sparsity',))
class Spdf(nn.Module):
  """y = x (W * M) (+ b)."""

  ins: tuple
  outs: tuple
  role: str
  scheme: Any
  bias: bool
  sparsity: float
  dense: bool = False

  @staticmethod
  def check(sparsity, **_):
    if not 0 <= sparsity < 1:
      raise ValueError(f'sparsity={sparsity}: a share of at least 0 and below 1 is expected')

  @nn.compact
  def __call__(self, x):
    in_names, in_sizes = zip(*self.ins)
    out_names, out_sizes = zip(*self.outs)
    assert x.shape[-len(in_sizes) :] == in_sizes, (x.shape, self.ins)
    work = 1.0 if self.dense else 1 - self.sparsity
    fact = Fact(in_names + out_names, in_names, self.role, work)
    shape = in_sizes + out_sizes
    kept = self.mask(fact, shape)
    full = self.scheme.init.initializer(fact, shape)
    masked = lambda key, shape, dtype: jnp.where(kept, full(key, shape, dtype), 0)
    kernel = params.param(self, 'kernel', shape, fact, self.scheme, init=masked)
    if not self.dense:
      kernel = jnp.where(kept, kernel, jnp.zeros_like(kernel))
    kernel = shard.gather(kernel, fact.names)
    y = params.contract(x, kernel, len(in_sizes), params.act(out_names))
    return params.biased(self, y)

  def mask(self, fact: Fact, shape: tuple):
    """True where an entry is kept."""
    pruned = self.pruned(shape)

    def start():
      # A key without `make_rng`'s count, which goes on when a scanned layer is traced again: in a
      # shared segment W is from the first trace and its masks are from the second.
      key = self.scope.rngs['params'].as_jax_rng()
      return facts.Box(drawn(key, shape, pruned), fact)

    return self.variable('vars', 'mask', start).value

  def pruned(self, shape: tuple) -> int:
    """Entries that are 0. Raises ValueError, naming the matrix, where none would be left."""
    size = math.prod(shape)
    count = round(self.sparsity * size)
    if count >= size:
      raise ValueError(
        f'config.model.linear: spdf.sparsity={self.sparsity} is not accepted: a share that leaves '
        f'every matrix an entry is expected, and {"/".join(self.path) or "this one"} has {size}'
      )
    return count


def drawn(key, shape: tuple, pruned: int):
  """A mask with exactly `pruned` entries False, each set of them as likely as any other."""
  return jax.random.permutation(key, jnp.arange(math.prod(shape)) >= pruned).reshape(shape)

"""The data of a run: sources -> token stores -> plan -> batches on the devices."""

import functools
import pathlib
from typing import Any, Iterator

import jax
from jax.sharding import NamedSharding
import numpy as np

from lmjax import config as config_lib
from lmjax import registry
from lmjax import specs
from lmjax.data import loader as loader_lib
from lmjax.data import plan as plan_lib
from lmjax.data import skips as skips_lib
from lmjax.data import store as store_lib
from lmjax.parallel import shard


class Feed:
  """Training and validation batches of a run.

  `train(step)` iterates from that step on, `valid()` once over the validation set. `cursor(step)`
  goes into checkpoints and `check` refuses to continue one on other data. `skips`: what is left
  out.
  """

  def __init__(self, run: Any, workdir: pathlib.Path, mesh=None):
    """Reads (and where needed tokenizes) every source. Raises ConfigError naming the key, file and
    value.
    """
    self.run, self.mesh = run, mesh
    self.skips = skips_lib.read(workdir)
    d = run.config['data']
    cache = (
      pathlib.Path(d['cache']).expanduser() if d['cache'] else pathlib.Path(workdir) / 'tokens'
    )
    names, weights, stores = self._stores('train', cache)
    self._plan = self._named(
      'train',
      lambda: plan_lib.Plan(
        stores,
        names=names,
        pack=registry.make('pack', d['pack'])(),
        row_tokens=run.length,
        lookahead=run.lookahead,
        rows_per_step=run.rows,
        seed=run.config['seed'],
        weights=self._weights(names, weights, stores),
      ),
    )
    self._loader = self._load(self._plan, run.transforms)
    self._valid, self.bytes_per_token = None, None
    if d['valid']:
      names, _, held = self._stores('valid', cache)
      plan = self._named(
        'valid',
        lambda: plan_lib.Sequential(
          held, names=names, row_tokens=run.length, lookahead=run.lookahead, rows_per_step=run.rows
        ),
      )
      task = [t for t in run.transforms if t.task]
      self._valid = self._load(plan, task)
      sizes = [s.bytes for s in held]
      if None not in sizes and not task:  # the targets of a task are not the text
        self.bytes_per_token = sum(sizes) / sum(len(s.tokens) for s in held)

  def _named(self, key: str, make):
    return config_lib.named(f'data.{key}', make, value=self.run.config['data'][key])

  def _stores(self, key: str, cache: pathlib.Path):
    """(names, weights, stores) of a sum of sources."""
    d, tokenizer = self.run.config['data'], self.run.tokenizer
    names, weights, stores = [], [], []
    for name, (weight, call) in specs.weighted(d[key]).items():
      part = registry.make('source', call, tokenizer=tokenizer)
      names.append(name)
      weights.append(weight)
      stored = functools.partial(
        store_lib.stored, part, tokenizer, cache, bos=d['bos'], eos=d['eos']
      )
      stores.append(self._named(key, stored))
    return names, weights, stores

  def _weights(self, names, weights, stores):
    mixture = registry.make('mixture', self.run.config['data']['mixture'])
    if mixture.fact('needs'):
      raise ValueError(
        f'mixture {mixture} needs {", ".join(mixture.fact("needs"))} of the training step, which '
        'this loop does not give'
      )
    policy = mixture()
    return policy.weights(policy.init(names, weights, [len(s.tokens) for s in stores]))

  def _load(self, plan, transforms):
    return loader_lib.Loader(
      plan,
      transforms=[(t.name, t.fn) for t in transforms],
      host_index=jax.process_index(),
      host_count=jax.process_count(),
      documents_masked=self.run.config['data']['mask_documents'],
    )

  @property
  def has_valid(self) -> bool:
    return self._valid is not None

  def train(self, step: int) -> Iterator[dict[str, jax.Array]]:
    d = self.run.config['data']
    found = self._loader.iterate(
      step, order=self.skips.batch, threads=d['threads'], prefetch=d['prefetch']
    )
    for batch in found:
      yield self._place(batch)

  def valid(self) -> Iterator[dict[str, jax.Array]]:
    """The validation set in order, once; at most `config.eval.batches` batches where that is
    set.
    """
    limit, total = self.run.config['eval']['batches'], len(self._valid.plan)
    for step in range(min(limit or total, total)):
      yield self._place(self._valid[step])

  def _place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    batch = {k: batch[k] for k in self.run.fields}
    if self.mesh is None:
      return jax.device_put(batch)
    # Rows are spread; time is not, since its lookahead need not divide.
    by_rank = lambda n: NamedSharding(self.mesh, shard.spec(('batch', *[None] * (n - 1))))
    put = jax.make_array_from_process_local_data
    return {k: put(by_rank(v.ndim), v) for k, v in batch.items()}

  def cursor(self, step: int) -> dict[str, Any]:
    seen = [list(r) for r in self.skips.past(step).ranges]
    return dict(step=step, plan=self.plan_fingerprint, skips=seen)

  @functools.cached_property
  def plan_fingerprint(self) -> str:
    return self._plan.fingerprint()

  def documents(self, step: int) -> list[dict[str, Any]]:
    """What the batch of update `step` (from 0) was made of, as JSON values."""
    return self._loader.documents(self.skips.batch(step))

  def check(self, cursor: dict[str, Any], step: int):
    """Raises ConfigError where the checkpoint of `step` was trained on other data than this."""
    if cursor.get('plan') != self.plan_fingerprint:
      raise config_lib.ConfigError(
        f'the checkpoint of step {step} was trained on other data (plan '
        f'{cursor.get("plan")!s:.12}, now {self.plan_fingerprint:.12}): since then the files of '
        f'config.data.train={self.run.config["data"]["train"]!r} changed, or a setting that orders '
        'them did (config.seed, config.batch_tokens, config.data.*); restore them, or start a new '
        'run with --config.init_from'
      )

  def describe(self) -> str:
    tokens = sum(len(s.tokens) for s in self._plan.stores)
    epochs = self.run.config['steps'] * self.run.config['batch_tokens'] / tokens
    return f'{tokens:,} training tokens, {epochs:.3g} epochs'

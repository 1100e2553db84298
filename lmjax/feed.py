"""The data of a run: sources -> token stores -> plan -> batches on the devices."""

import functools
import itertools
import pathlib
from typing import Any, Iterator, Mapping

import jax
from jax.sharding import NamedSharding
import numpy as np

from lmjax import bucket
from lmjax import config as config_lib
from lmjax import files
from lmjax import mixing as mixing_lib
from lmjax import registry
from lmjax import specs
from lmjax.data import loader as loader_lib
from lmjax.data import plan as plan_lib
from lmjax.data import skips as skips_lib
from lmjax.data import store as store_lib
from lmjax.parallel import processes
from lmjax.parallel import shard


def token_folder(cache: str, workdir: Any) -> pathlib.Path:
  """Where tokenized text is kept: `config.data.cache`, else `tokens` of the run directory, or of
  this machine where that is in an object store, which cannot be memory-mapped. Raises ConfigError.
  """
  if '://' in cache:
    raise config_lib.ConfigError(
      f'config.data.cache={cache!r}: a local folder is expected, since tokens are memory-mapped'
    )
  if cache:
    return pathlib.Path(files.expanded(cache))
  if bucket.is_remote(workdir):
    return files.cache() / 'tokens'
  return pathlib.Path(workdir) / 'tokens'


class Feed:
  """Training and validation batches of a run.

  `train(step)` iterates from that step on, `valid()` once over the validation set. `cursor(step)`
  goes into checkpoints and `check` refuses to continue one on other data. `skips`: what is left
  out. Where the weights of the sources follow validation losses, `train` ends at the next step that
  `looks` at them; `held()` gives their batches and `reweigh` takes what was found.
  """

  def __init__(self, run: Any, workdir: Any, mesh=None):
    """Reads (and where needed tokenizes) every source. Raises ConfigError naming the key, file and
    value.
    """
    self.run, self.mesh = run, mesh
    self.skips = skips_lib.read(workdir)
    d = run.config['data']
    cache = token_folder(d['cache'], workdir)
    names, weights, stores = self._stores('train', cache)
    self._plan = self._named(
      'train',
      lambda: plan_lib.Plan(
        stores,
        names=names,
        pack=registry.make('pack', d['pack'])(),
        row_tokens=run.length,
        lookahead=run.data_lookahead,
        rows_per_step=run.rows,
        seed=run.config['seed'],
        weights=self._first_weights(names, weights, stores),
      ),
    )
    self._loader = self._load(self._plan, run.transforms)
    self._valid, self.bytes_per_token, self.valid_names = None, None, ()
    self._mixing, self._held = None, None
    if d['valid']:
      names, _, held = self._stores('valid', cache)
      task, self.valid_names = [t for t in run.transforms if t.task], tuple(names)
      made = lambda most: self._named(
        'valid',
        lambda: plan_lib.Sequential(
          held,
          names=names,
          row_tokens=run.length,
          lookahead=run.data_lookahead,
          rows_per_step=run.rows,
          most=most,
        ),
      )
      self._valid = self._load(made(0), task)
      sizes = [s.bytes for s in held]
      if None not in sizes and not task:  # the targets of a task are not the text
        self.bytes_per_token = sum(sizes) / sum(len(s.tokens) for s in held)
    if self._policy[0].fact('needs'):
      self._check_held()
      _, policy, state = self._policy
      self._mixing = mixing_lib.Mixing(policy, state, self._plan)
      self._held = self._load(made(policy.rows), task)

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

  def _first_weights(self, names, weights, stores):
    c = self.run.config
    sources = {name: str(call) for name, (_, call) in specs.weighted(c['data']['train']).items()}
    mixture = registry.make('mixture', c['data']['mixture'], sources=sources, seed=c['seed'])
    unknown = sorted(set(mixture.fact('needs')) - {'valid_losses'})
    if unknown:
      raise ValueError(f'mixture {mixture} needs {unknown[0]}, which this loop does not give')
    policy = mixture()
    state = self._named(
      'mixture' if mixture.args else 'train',  # without arguments it is not to blame
      lambda: policy.init(names, weights, [len(s.tokens) for s in stores]),
    )
    self._policy = mixture, policy, state
    return np.maximum(policy.weights(state), mixing_lib.LEAST)

  def _check_held(self):
    lacking = [n for n in self._plan.names if n not in self.valid_names]
    if lacking:
      d = self.run.config['data']
      raise config_lib.ConfigError(
        f'config.data.mixture={d["mixture"]!r} follows the held-out loss of each source, but '
        f'config.data.valid has none for {lacking[0]}: {", ".join(self._plan.names)} are expected, '
        f'there are {", ".join(self.valid_names) or "none"}'
      )

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
    d, due = self.run.config['data'], self._mixing and self._mixing.due
    found = self._loader.iterate(
      step, order=self.skips.batch, threads=d['threads'], prefetch=d['prefetch']
    )
    for batch in itertools.islice(found, None if due is None else due - step):
      yield self._place(batch)

  def looks(self, step: int) -> bool:
    """Whether the weights behind `step` updates wait for validation losses."""
    if self._mixing is None:
      return False
    if not step:
      self._mixing.begin()  # nothing was seen, also after a rewind to here
      self._follow()
    return self._mixing.due == step

  def held(self) -> Iterator[dict[str, jax.Array]]:
    """The held-out rows that such a look takes, with their sources."""
    for i in range(len(self._held.plan)):
      yield self._place(self._held[i], 'source')

  def reweigh(self, step: int, scores: Mapping[str, float]) -> dict[str, Any]:
    """Draws with other weights behind `step` updates; returns what is to be logged. Raises
    ValueError where the scores lack a source.
    """
    lacking = [n for n in self._plan.names if f'nll/{n}' not in scores]
    if lacking:
      raise ValueError(
        f'config.data.mixture={self.run.config["data"]["mixture"]!r} follows the likelihood of '
        f'each source, which config.objective={self.run.config["objective"]!r} does not give for '
        f'{lacking[0]}'
      )
    row = self.skips.batch(step) * self.run.rows
    found = processes.from_primary(lambda: [scores[f'nll/{n}'] for n in self._plan.names])
    line = self._mixing.look(row, found)
    self._follow()
    return line

  def _follow(self):
    """Draws by the weights that are in force."""
    self._loader = self._load(self._mixing.plan, self.run.transforms)

  def valid(self) -> Iterator[dict[str, jax.Array]]:
    """The validation set in order, once; at most `config.eval.batches` batches where that is
    set.
    """
    limit, total = self.run.config['eval']['batches'], len(self._valid.plan)
    several = ('source',) if len(self.valid_names) > 1 else ()
    for step in range(min(limit or total, total)):
      yield self._place(self._valid[step], *several)

  def _place(self, batch: dict[str, np.ndarray], *more: str) -> dict[str, jax.Array]:
    batch = {k: batch[k] for k in {**self.run.fields, **dict.fromkeys(more)}}
    if self.mesh is None:
      return jax.device_put(batch)
    # Rows are spread; time is not, since its lookahead need not divide.
    by_rank = lambda n: NamedSharding(self.mesh, shard.spec(('batch', *[None] * (n - 1))))
    put = jax.make_array_from_process_local_data
    return {k: put(by_rank(v.ndim), v) for k, v in batch.items()}

  def cursor(self, step: int) -> dict[str, Any]:
    seen = [list(r) for r in self.skips.past(step).ranges]
    found = dict(step=step, plan=self.plan_fingerprint, skips=seen)
    return found if self._mixing is None else found | dict(mixture=self._mixing.cursor())

  @functools.cached_property
  def plan_fingerprint(self) -> str:
    if self._mixing is None:
      return self._plan.fingerprint()
    return store_lib.combine(self._plan.fingerprint(), self._held.plan.fingerprint())

  def facts(self) -> dict[str, Any]:
    """What all processes of a run must see alike."""
    held = None if self._valid is None else self._valid.plan.fingerprint()
    return {
      'the plan of config.data.train': self.plan_fingerprint,
      'the plan of config.data.valid': held,
      'the list of skipped batches': str(self.skips),
    }

  def documents(self, step: int) -> list[dict[str, Any]]:
    """What the batch of update `step` (from 0) was made of, as JSON values."""
    return self._loader.documents(self.skips.batch(step))

  def check(self, cursor: dict[str, Any], step: int):
    """Goes on from a checkpoint's cursor. Raises ConfigError where the checkpoint of `step` was
    trained on other data than this.
    """
    if cursor.get('plan') != self.plan_fingerprint:
      raise config_lib.ConfigError(
        f'the checkpoint of step {step} was trained on other data (plan '
        f'{cursor.get("plan")!s:.12}, now {self.plan_fingerprint:.12}): since then the files of '
        f'config.data.train={self.run.config["data"]["train"]!r} changed, or a setting that orders '
        'them did (config.seed, config.batch_tokens, config.data.*); restore them, or start a new '
        'run with --config.init_from'
      )
    if self._mixing is not None:
      self._mixing.take_up(cursor['mixture'])
      self._follow()

  def describe(self) -> str:
    tokens = sum(len(s.tokens) for s in self._plan.stores)
    epochs = self.run.config['steps'] * self.run.config['batch_tokens'] / tokens
    return f'{tokens:,} training tokens, {epochs:.3g} epochs'

"""The leaves of a config: which are specs and of what kind, and what numbers are accepted."""

import fnmatch
import re

from lmjax import registry

_SURGERY = re.compile(r'[\w.:]+\(.*\)', re.DOTALL)

# Which leaves are specs: pattern -> (kind, form). `?` marks a leaf that may be empty.
SPECS = {
  'model.architecture': ('architecture', 'one'),
  'model.embed': ('embed', 'one'),
  'model.position': ('position', 'one'),
  'model.embed_norm': ('norm', 'one?'),
  'model.final_norm': ('norm', 'one?'),
  'model.init': ('init', 'one'),
  'model.linear': ('linear', 'one'),
  'model.blocks.*.mixer': ('mixer', 'one'),
  'model.blocks.*.ffn': ('ffn', 'one'),
  'model.blocks.*.norm': ('norm', 'one'),
  'model.blocks.*.residual': ('residual', 'one'),
  'objective': ('objective', 'one'),
  'optim': ('optim', 'chain'),
  'schedule': ('schedule', 'one'),
  'guard': ('guard', 'one?'),
  'data.train': ('source', 'sum'),
  'data.valid': ('source', 'sum?'),
  'data.tokenizer': ('tokenizer', 'one'),
  'data.pack': ('pack', 'one'),
  'data.transforms': ('transform', 'chain?'),
  'data.mixture': ('mixture', 'one'),
  'eval.tasks': ('eval', 'chain?'),
  'trackers': ('tracker', 'chain?'),
  'sample.rule': ('decoding', 'chain'),
}

# Quantities: pattern -> (smallest, largest) accepted.
RANGES = {
  'seed': (0, 2**31 - 1),
  'steps': (1, None),
  'batch_tokens': (1, None),
  'micro_batches': (1, None),
  'peak_lr': (0, None),
  'bad_steps.limit': (1, None),
  'bad_steps.rewind': (0, None),
  'bad_steps.skip': (1, None),
  'bad_steps.times': (0, None),
  'recompute_every': (0, None),
  'watchdog.seconds': (0, None),
  'save_retries': (0, None),
  'log_every': (1, None),
  'checkpoint_every': (0, None),
  'keep_last': (1, None),
  'keep_every': (0, None),
  'data.length': (1, None),
  'data.threads': (1, 256),
  'data.prefetch': (1, 10_000),
  'eval.every': (0, None),
  'eval.batches': (0, None),
  'sample.every': (0, None),
  'sample.tokens': (0, 100_000),
  'mesh.stage_micro_batches': (0, None),
  'mesh.stage_rounds': (1, 1000),
  'model.vocab': (0, None),
  'model.width': (1, None),
  'model.depth': (1, 10_000),
  'model.unroll': (1, None),
  'model.cap': (0, None),
  'model.dropout': (0, 1),
}


def kind_of(key: str) -> tuple[str, str] | None:
  """(kind, form) of a spec leaf, or None."""
  for pattern, found in SPECS.items():
    if fnmatch.fnmatchcase(key, pattern):
      return found
  return None


def is_spec(key: str, value: str) -> bool:
  """Whether this leaf names parts: by its key, or as a surgery in `init_from`."""
  return kind_of(key) is not None or key == 'init_from' and bool(_SURGERY.fullmatch(value.strip()))


def surgery(init_from: str):
  """The part that `config.init_from` names as 'part(run="DIR", ...)', or None for a directory."""
  return registry.make('surgery', init_from) if is_spec('init_from', init_from) else None

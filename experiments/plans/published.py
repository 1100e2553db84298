"""Published training runs planned again: do they fit by the plan, and how far is its MFU off?

  python experiments/plans/published.py                 # estimate every row, compile those of TPUs
  python experiments/plans/published.py --only 16B 32B  # some rows; the others keep their results
  python experiments/plans/published.py --no-compile    # estimates alone, minutes
  python experiments/plans/published.py --table         # the table of published.json

Rows keep what was compiled before where they are only estimated anew. Settings are the published
ones as far as they are known; what is not is said in `note`.
"""

import argparse
import pathlib
import sys

import _plans
from lmjax import config as config_lib

FILE = pathlib.Path(__file__).parent / 'published.json'
FULL, HALF = 'full', 'causal'  # how the source counts causal attention


def shape(
  width, depth, heads, hidden, *, head_dim=128, kv=None, vocab=32_000, ffn='swiglu', more=()
):
  """Overrides of `llama:7B` that make another shape of it."""
  return [
    ('model.width', width),
    ('model.depth', depth),
    ('model.vocab', vocab),
    ('model.mixer', f'gqa(head_dim={head_dim}, heads={heads}, kv_heads={kv or heads})'),
    ('model.ffn', f'{ffn}(hidden={hidden})'),
    ('sample.tokens', 0),
    *more,
  ]


def batch(rows: int, length: int, micro: int = 1):
  return [('batch_tokens', rows * length), ('data.length', length), ('micro_batches', micro)]


SAVED = 'names(qkv, mixer_out, ffn_out)'
MAXTEXT = 'MaxText, src/maxtext/configs/tpu'
PALM = [('model.residual', 'parallel()'), ('model.embed', 'tied(multiple_of=192)')]
ROWS = {
  '16B': dict(
    source=f'{MAXTEXT}/v5e (README, 16b.sh)',
    topology='v5e-256',
    mfu=0.611,
    counts=FULL,
    note='synthetic data; 6 rows of 2,048 a chip',
    config=shape(4096, 32, 64, 28_672) + batch(6 * 256, 2048),
    mesh=dict(data=256),
    remat='full',
  ),
  '22B': dict(
    source=f'{MAXTEXT}/v4 (README, 22b.sh)',
    topology='v4-128',
    mfu=0.567,
    counts=FULL,
    note='the shape whose size is 22B: heads of 256, two matrices in the feed-forward layer; 13 '
    'micro-batches where MaxText has one: at once it takes 36.4 GiB when compiled',
    config=shape(6144, 48, 24, 24_576, head_dim=256, ffn='squared_relu') + batch(13 * 64, 2048, 13),
    mesh=dict(data=64),
    remat='full',
  ),
  '32B': dict(
    source=f'{MAXTEXT}/v5p (README, 32b.sh)',
    topology='v5p-128',
    mfu=0.715,
    counts=FULL,
    note='remat `minimal` keeps all products of weights and MaxText cuts them over tensor; our '
    'residual stream is whole there, so that only some are kept',
    config=shape(8192, 32, 64, 28_672) + batch(6 * 64, 2048),
    mesh=dict(data=16, tensor=4),
    remat='names(qkv, mixer_out)',
  ),
  'Llama 2 70B': dict(
    source=f'{MAXTEXT}/v5p (llama2_70b.sh); docs/reference/models/tiering.md',
    topology='v5p-512',
    mfu=0.654,
    rate=692,
    counts=FULL,
    note='remat `save_dot_except_mlpwi`',
    config=shape(8192, 80, 64, 28_672, kv=8) + batch(4 * 256, 4096),
    mesh=dict(data=256),
    remat=SAVED,
  ),
  'Llama 3.1 8B': dict(
    source='MaxText, docs/reference/models/tiering.md',
    topology='v6e-256',
    mfu=0.4546,
    rate=7207,
    counts=FULL,
    note='batch and remat not published; ours are 4 rows a chip, full',
    config=shape(4096, 32, 32, 14_336, kv=8, vocab=128_256) + batch(4 * 256, 8192),
    mesh=dict(data=256),
    remat='full',
  ),
  'PaLM 540B': dict(
    source='Chowdhery et al., 2022 (arXiv:2204.02311), sections 4 and 4.1',
    topology='2*v4:12x16x16',
    mfu=0.462,
    counts=FULL,
    note='12-way model x 256-way data parallel in each of two pods; the batch of 1M tokens; the '
    'vocabulary rounded up to a multiple of 192',
    config=shape(18_432, 118, 48, 73_728, head_dim=256, kv=1, vocab=256_000, more=PALM)
    + batch(512, 2048),
    mesh=dict(replica=2, data=256, tensor=12),
    remat='full',
  ),
  'Llama 2 7B, 1 host': dict(
    source='MaxText, src/maxtext/configs/gpu/a3/llama_2_7b (README)',
    topology='h100:8',
    mfu=0.497,
    counts=FULL,
    note='layers not scanned, cuDNN attention; remat `minimal_flash`: the products are kept',
    config=shape(4096, 32, 32, 11_008) + batch(4 * 8, 4096),
    mesh=dict(data=8),
    remat='dots',
  ),
  'Llama 2 7B, 16 hosts': dict(
    source='MaxText, src/maxtext/configs/gpu/a3/llama_2_7b (README)',
    topology='h100-128',
    mfu=0.379,
    counts=FULL,
    note='as above; parameters cut within a host, replicas between hosts',
    config=shape(4096, 32, 32, 11_008) + batch(4 * 128, 4096),
    mesh=dict(replica=16, data=8),
    remat='dots',
  ),
  'Llama 3 405B': dict(
    source='Llama Team, 2024 (arXiv:2407.21783), table 4',
    topology='h100:8x2048',
    mfu=0.41,
    counts=HALF,
    note='published: TP 8, PP 16, DP 128, 16M tokens (the next row); parameters are cut over 2,048 '
    'instead, without a pipeline',
    config=shape(16_384, 126, 128, 53_248, kv=8, vocab=128_256) + batch(2048, 8192),
    mesh=dict(data=2048, tensor=8),
    remat='full',
  ),
  'Llama 3 405B, its mesh': dict(
    source='Llama Team, 2024 (arXiv:2407.21783), table 4',
    topology='h100:8x2048',
    mfu=0.41,
    counts=HALF,
    note='the published TP 8, PP 16, DP 128, with 128 layers since 126 do not divide over 16; '
    'in two halves of 8 pieces, and stages compute their layers again, so that it fits',
    config=shape(16_384, 128, 128, 53_248, kv=8, vocab=128_256) + batch(2048, 8192, 2),
    mesh=dict(data=128, tensor=8, stage=16, stage_micro_batches=8, stage_remat=True),
    remat='full',
  ),
}  # fmt: skip


def resolved(row: dict) -> dict:
  overrides = [*row['config'], *((f'mesh.{a}', n) for a, n in row['mesh'].items())]
  overrides += [('model.remat', row['remat'])]
  return config_lib.resolve(config_lib.load('llama:7B', [(k, str(v)) for k, v in overrides]))


def table(found: dict) -> str:
  """The table of the README, in Markdown."""
  names = 'run', 'on', 'planned', 'peak / usable GiB', 'fits', 'bound', 'MFU', 'planned', 'error'
  lines = [f'| {" | ".join(names)} |', '|' + ' --- |' * 9]
  for name, row in ROWS.items():
    for source in ('compiled', 'estimated'):
      p = found.get(name, {}).get(source)
      if p is None:
        continue
      mfu = p['mfu_full' if row['counts'] == FULL else 'mfu_causal']
      scale = p['step']['expected']
      ends = sorted(mfu * scale / p['step'][k] for k in ('optimistic', 'pessimistic'))
      lines.append(
        f'| {name} | {row["topology"]} | {source} | {_plans.room(p)} | {p["times"]["bound"]} | '
        f'{row["mfu"]:.1%} | {mfu:.1%} ({ends[0]:.0%} to {ends[1]:.0%}) | '
        f'{mfu / row["mfu"] - 1:+.0%} |'
      )
  return '\n'.join(lines)


def main(argv=None) -> int:
  p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  p.add_argument('--only', nargs='*', default=list(ROWS), choices=list(ROWS))
  p.add_argument('--no-compile', action='store_true')
  p.add_argument('--table', action='store_true')
  p.add_argument('--seconds', type=float, default=1200.0, help='for compiling a row')
  flags = p.parse_args(argv)
  found = _plans.read(FILE)
  for name in [] if flags.table else flags.only:
    row = ROWS[name]
    new = _plans.measure(resolved(row), row['topology'], not flags.no_compile, flags.seconds)
    found[name] = found.get(name, {}) | new
    _plans.write(FILE, found, ROWS)
    print(f'{name}: done', flush=True)
  print(table(found))
  return 0


if __name__ == '__main__':
  sys.exit(main())

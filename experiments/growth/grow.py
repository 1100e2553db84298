"""Growing a small model against training the large one from scratch: steps to a fixed loss, with
the steps of the small one counted and not counted, into grow.json and README.md of this folder.

command: python experiments/growth/grow.py --out=runs/growth
  --plan                 the runs and what they cost in steps of the largest, without running any
time: about 0.35 core-hours. The same command goes on where it stopped.

One small GPT, byte by byte, on the bundled text: 3 layers, 64 wide, trained for 400 steps, grows to
128 and to 96. Every run has the same rate, constant behind a warm-up of 20 steps, so that losses at
any step compare; optimizers begin anew. The fixed loss is what scratch has in the end, held out; a
run's steps to it are interpolated between evaluations. One seed: differences of a few steps are
noise. There is no dropout, so that duplicates of plain `fpi` never part: `fpi, noise` adds noise of
a tenth of each matrix's rms. `two stages` trains sub-models (every=1) for 100 of its steps, counted
as whole ones though they are cheaper.
"""

import argparse
import json
import pathlib
from typing import Any, NamedTuple

from lmjax import build
from lmjax import config
from lmjax import flops
from lmjax import main as main_lib
from lmjax.tracking import read_metrics

HERE = pathlib.Path(__file__).resolve().parent
COMMAND = 'python experiments/growth/grow.py --out=runs/growth'
STEPS, STAGE, SOURCE = 400, 100, 64
SETTINGS = {
  'model.depth': '3',
  'model.unroll': '3',
  'model.mixer.head_dim': '32',
  'optim': 'clip(norm=1.0) | adam(b2=0.99) | decay(rate=0.1)',
  'schedule': 'constant(warmup=20)',
  'peak_lr': '0.002',
  'eval.every': '20',
  'eval.batches': '8',
  'checkpoint_every': '400',
  'sample.every': '0',
  'sample.tokens': '0',
  'tensorboard': 'false',
  'report': 'false',
}


class Arm(NamedTuple):
  """One run: begin is the surgery without its source, or '' for scratch; stages: whether sub-models
  come first.
  """

  name: str
  width: int
  begin: str
  stages: bool = False

  @property
  def folder(self) -> str:
    return f'{self.width}-{self.name.replace(", ", "-").replace(" ", "-")}'


WAYS = {
  'scratch': '',
  'copy and random': 'width="copy"',
  'fpi': 'width="fpi"',
  'fpi, noise': 'width="fpi", noise=0.1',
  'aki': 'width="aki"',
}
ARMS = (
  *(Arm(name, 128, begin) for name, begin in WAYS.items()),
  Arm('aki, two stages', 128, WAYS['aki'], stages=True),
  *(Arm(name, 96, begin) for name, begin in WAYS.items() if name != 'fpi'),
)


def changes(arm: Arm | None, out: pathlib.Path) -> list[dict[str, str]]:
  """The config changes of each run of an arm, in order; None is the source."""
  if arm is None:
    return [{**SETTINGS, 'model.width': str(SOURCE), 'steps': str(STEPS)}]
  own = {**SETTINGS, 'model.width': str(arm.width), 'steps': str(STEPS)}
  if arm.begin:
    own['init_from'] = f'bert2bert(run={str(out / "source")!r}, {arm.begin})'
  if not arm.stages:
    return [own]
  first = {**own, 'steps': str(STAGE), 'objective': 'sub_models(every=1)'}
  rest = {**own, 'steps': str(STEPS - STAGE), 'init_from': str(folder(arm, out, 0))}
  return [first, rest]


def folder(arm: Arm | None, out: pathlib.Path, stage: int) -> pathlib.Path:
  name = 'source' if arm is None else arm.folder
  return out / (f'{name}-{stage}' if arm is not None and arm.stages else name)


def train(arm: Arm | None, out: pathlib.Path) -> list[tuple[int, float]]:
  """(step, held-out loss) of an arm, over all of its runs; runs what is not there yet."""
  curve, before = [], 0
  for stage, own in enumerate(changes(arm, out)):
    workdir = folder(arm, out, stage)
    words = [f'--config.{k}={v}' for k, v in own.items()]
    status = main_lib.main(['--config=quickstart', f'--workdir={workdir}', *words])
    if status:
      raise SystemExit(status)
    lines = [line for line in read_metrics(workdir) if line['kind'] == 'eval']
    curve += [(before + line['step'], line['loss']) for line in lines]
    before += int(own['steps'])
  return curve


def steps_to(curve: list[tuple[int, float]], loss: float) -> float | None:
  """The first step with this loss, on straight lines between evaluations; None if never."""
  last = None
  for step, value in curve:
    if value <= loss:
      if last is None:
        return float(step)
      return last[0] + (step - last[0]) * (last[1] - loss) / (last[1] - value)
    last = step, value
  return None


def cost(width: int) -> float:
  """FLOPs of a step at a width."""
  own = {**SETTINGS, 'model.width': str(width)}
  run = build.build(config.resolve(config.load('quickstart', list(own.items()))))
  return flops.per_token(run).step_causal * run.config['batch_tokens']


def measure(curves: dict[str, Any]) -> list[dict[str, Any]]:
  """A record for each arm, from the curves by folder."""
  records = []
  for arm in ARMS:
    target = curves[Arm('scratch', arm.width, '').folder][-1][1]
    source = STEPS * cost(SOURCE) / cost(arm.width) if arm.begin else 0.0
    steps = steps_to(curves[arm.folder], target)
    records.append(
      dict(
        width=arm.width,
        arm=arm.name,
        target=target,
        first=curves[arm.folder][0],
        final=curves[arm.folder][-1][1],
        steps=steps,
        with_source=None if steps is None else steps + source,
      )
    )
  return records


def markdown(records: list[dict[str, Any]], source: list) -> str:
  """README.md, from the records alone."""
  text = [
    '# Growing a small model',
    '',
    'Written by `grow.py`; every number is in `grow.json`. Command:',
    '',
    f'    {COMMAND}',
    '',
    __doc__.split('\n\n')[-1].strip(),
    '',
    f'The source has {source[-1][1]:.4f} nats a byte in the end. steps: to the loss that scratch',
    f'has after {STEPS}, less than {STEPS} is a gain. with the source: its {STEPS} are added, in',
    'steps of the large model by their FLOPs.',
  ]
  for width in sorted({r['width'] for r in records}):
    rows = [r for r in records if r['width'] == width]
    text += [
      '',
      f'## {SOURCE} to {width}, loss {rows[0]["target"]:.4f}',
      '',
      f'| arm | loss at step {rows[0]["first"][0]} | final loss | steps | saved '
      '| with the source | saved |',
      '| --- | --- | --- | --- | --- | --- | --- |',
    ]
    text += [_line(r) for r in rows]
  return '\n'.join(text) + '\n'


def _line(r: dict[str, Any]) -> str:
  cells = [r['arm'], f'{r["first"][1]:.4f}', f'{r["final"]:.4f}']
  for steps in (r['steps'], r['with_source']):
    never = steps is None
    cells += ['never' if never else f'{steps:.0f}', '' if never else f'{1 - steps / STEPS:.0%}']
  return '| ' + ' | '.join(cells) + ' |'


def plan(out: pathlib.Path) -> None:
  """Builds every run's config (but not its beginning) and says what it costs."""
  large, total = cost(128), 0.0
  for arm in (None, *ARMS):
    for stage, own in enumerate(changes(arm, out)):
      run = build.build(config.resolve(config.load('quickstart', list(own.items()))))
      share = flops.per_token(run).step_causal * run.config['batch_tokens'] / large
      total += share * run.config['steps']
      print(f'{folder(arm, out, stage)}: {run.config["steps"]} steps of {share:.2f}')
  print(f'{total:.0f} steps of the largest in all, evaluations not counted')


def main() -> None:
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--out', required=True, type=pathlib.Path, help='run directories are made here')
  p.add_argument('--plan', action='store_true', help='say what would run')
  flags = p.parse_args()
  if flags.plan:
    plan(flags.out)
    return
  source = train(None, flags.out)
  curves = {arm.folder: train(arm, flags.out) for arm in ARMS}
  records = measure(curves)
  found = dict(source=source, curves=curves, records=records)
  (HERE / 'grow.json').write_text(json.dumps(found, indent=1) + '\n')
  (HERE / 'README.md').write_text(markdown(records, source))


if __name__ == '__main__':
  main()

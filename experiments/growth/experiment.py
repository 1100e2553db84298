"""Growing a small model against training the large one from scratch.

  python -m lmjax.experiment run experiments/growth --scale=cpu

A small GPT, byte by byte, on the bundled text: 3 layers, 48 wide, 400 steps. It grows to twice the
width and goes on with a fresh optimizer. The authors reach the loss of the large model with 30 %
less compute by function-preserving growth (`fpi`), 38 % by advanced knowledge (`aki`) and 45 % with
sub-models trained first (arXiv:2110.07143; the first two figures are recalled, the last is the
abstract's): 1.43, 1.61 and 1.82 times fewer tokens, the small model's not counted, as they count.
Counted by FLOPs, it costs as much as 116 steps of the large one.

There is no dropout here, so that duplicates of plain `fpi` would get equal gradients and never
part: noise of a tenth of each matrix's rms is added. `two_stages` trains sub-models for 50 steps
before, which its tokens do not count either.
"""

from lmjax.experiment import Arm
from lmjax.experiment import Experiment
from lmjax.experiment import Faster
from lmjax.experiment import Scale

CPU = {
  'model.width': 96,
  'model.depth': 3,
  'model.unroll': 3,
  'model.mixer.head_dim': 16,
  'optim': 'clip() | adam(b2=0.95) | decay(rate=0.1)',
  'schedule': 'cosine(warmup=0.25, end=0.1)',
  'eval.every': 0,
  'checkpoint_every': 400,
  'sample.every': 0,
  'sample.tokens': 0,
  'tensorboard': False,
  'report': False,
}
RATES = {'peak_lr': (3e-3, 1e-2, 3e-2)}
SMALL = {'model.width': 48, 'peak_lr': 1e-2, 'steps': 400}


def get_experiment():
  def grown(name, way, claim=None):
    begin = {'init_from': f'bert2bert(run="{{before}}", {way})'}
    return Arm(name, begin, RATES, claim, before=(SMALL,))

  aki = grown('aki', 'width="aki"', Faster(1.61))
  sub_models = {**aki.changes, 'objective': 'sub_models(every=1)', 'peak_lr': 3e-3, 'steps': 50}
  return Experiment(
    title='Growing a small model',
    source='Claims: arXiv:2110.07143, see `lmjax/surgery/bert2bert.py`.',
    base='quickstart',
    fields=('init_from', 'peak_lr', 'before'),
    baseline=Arm('scratch', {}, RATES),
    treatments=(
      grown('fpi', 'width="fpi", noise=0.1', Faster(1.43)),
      aki,
      Arm('two_stages', {}, RATES, Faster(1.82), before=(SMALL, sub_models)),
    ),
    changes=CPU,
    scales={'cpu': Scale(budgets=(150,), baseline_budgets=(75, 300), hours=1)},
    notes='Neither the small model nor the 50 steps of sub-models are in the tokens and the '
    'speed-ups; by FLOPs the small one costs as much as 116 steps of the large.',
  )

"""Eight layers, and four that are repeated: does a router that lets most tokens leave early cost
quality?

  python -m lmjax.experiment run experiments/recursions --scale=cpu

All arms have an effective depth of 8. `recursive` repeats two layers three times between a first
and a last one, half the parameters of the layers; the other two route tokens through the same
stack. Bae et al., 2025 (arXiv:2507.10524) claim that with as many tokens they are no worse than the
vanilla stack, expert choice with a quarter less compute: criterion here is the validation loss at
equal steps, within 0.03 nats of vanilla, or lower. Their throughput at equal loss follows from the
speed-up in tokens over the ratio of step times, the column "in time", compared with 1.
Expert choice computes 2 + 2 (1 + 2/3 + 1/3) = 6 layers a token in training; token choice computes
all 8 and can only tell of quality. A recursive arm that loses to vanilla by as much as the routed
ones says that sharing costs it, not routing.
"""

from lmjax.experiment import Arm
from lmjax.experiment import AsGood
from lmjax.experiment import Experiment
from lmjax.experiment import Scale

SHARED = 'block + shared((block, block))*3 + block'
CPU = {
  'model.width': 64,
  'model.stack': 'block*8',
  'model.unroll': 8,
  'model.mixer.head_dim': 32,
  'optim': 'clip() | adam(b2=0.95) | decay(rate=0.1)',
  'schedule': 'cosine(warmup=0.25, end=0.1)',
  'eval.every': 0,
  'checkpoint_every': 300,
  'sample.every': 0,
  'sample.tokens': 0,
  'tensorboard': False,
  'report': False,
}
RATES = {'peak_lr': (3e-3, 1e-2, 3e-2)}


def get_experiment():
  def arm(name, architecture, claim=None, stack=SHARED):
    return Arm(name, {'model.architecture': architecture, 'model.stack': stack}, RATES, claim)

  expert = 'mixture_of_recursions(router="expert_choice")'
  token = 'mixture_of_recursions(router="token_choice", balance="bias")'
  return Experiment(
    title='Recursions with and without routing',
    source='Claims: arXiv:2507.10524, see `lmjax/models/architectures/mixture_of_recursions.py`.',
    base='quickstart',
    fields=('model.architecture', 'model.stack', 'peak_lr'),
    baseline=arm('vanilla', 'transformer()', stack='block*8'),
    treatments=(
      arm('recursive', 'transformer()', AsGood(0.03)),
      arm('expert', expert, AsGood(0.03)),
      arm('token', token, AsGood(0.03)),
    ),
    changes=CPU,
    scales={'cpu': Scale(budgets=(150, 300), hours=1)},
    notes=(
      'The speed-up in tokens leaves out what a token costs: expert choice computes 6 of 8 layers, '
      'the other arms 8.'
    ),
  )

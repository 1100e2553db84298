"""Every kind of part on one page; their contracts are in the files of this folder.

A part is one file in its kind's folder, registered as `@register('<kind>', fact=value, ...)`; see
`registry.py`. `context` names the arguments that lmjax supplies (asked for by naming them in the
signature); `facts` lists what may be asked of a part without building it, with the value assumed
when a part is silent. A fact may be a function of the part's arguments. A part that cannot honour
what it is asked for raises `Unsupported`; it never ignores it.
"""

import dataclasses
from typing import Any, Mapping

from lmjax.kinds.data import Mixture as Mixture
from lmjax.kinds.data import Pack as Pack
from lmjax.kinds.data import Prompt as Prompt
from lmjax.kinds.data import RowPlan as RowPlan
from lmjax.kinds.data import Source as Source
from lmjax.kinds.data import Tokenizer as Tokenizer
from lmjax.kinds.data import Transform as Transform
from lmjax.kinds.models import Architecture as Architecture
from lmjax.kinds.models import Aux as Aux
from lmjax.kinds.models import Cache as Cache
from lmjax.kinds.models import Ctx as Ctx
from lmjax.kinds.models import Embed as Embed
from lmjax.kinds.models import Ffn as Ffn
from lmjax.kinds.models import Init as Init
from lmjax.kinds.models import Linear as Linear
from lmjax.kinds.models import Memory as Memory
from lmjax.kinds.models import Mixer as Mixer
from lmjax.kinds.models import Norm as Norm
from lmjax.kinds.models import Outputs as Outputs
from lmjax.kinds.models import Pass as Pass
from lmjax.kinds.models import Position as Position
from lmjax.kinds.models import Residual as Residual
from lmjax.kinds.models import Text as Text
from lmjax.kinds.training import Guard as Guard
from lmjax.kinds.training import Loss as Loss
from lmjax.kinds.training import Objective as Objective
from lmjax.kinds.training import Optim as Optim
from lmjax.kinds.training import Schedule as Schedule
from lmjax.kinds.training import Stage as Stage
from lmjax.kinds.training import Surgery as Surgery
from lmjax.kinds.training import Tracker as Tracker
from lmjax.kinds.training import TrackerSession as TrackerSession
from lmjax.kinds.use import DecodingRule as DecodingRule
from lmjax.kinds.use import Eval as Eval
from lmjax.kinds.use import Inputs as Inputs
from lmjax.kinds.use import LM as LM
from lmjax.kinds.use import Quantizer as Quantizer
from lmjax.kinds.use import Score as Score
from lmjax.kinds.use import StepFn as StepFn


class Unsupported(ValueError):
  """A part was asked for something that it cannot honour."""


@dataclasses.dataclass(frozen=True)
class Kind:
  folder: str
  what: str
  context: tuple[str, ...] = ()
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# fmt: off
KINDS: dict[str, Kind] = {
  # ---- models ----
  'norm': Kind('lmjax.models.norms', 'x -> x, over the last axis',
               facts=dict(scale_invariant=False, shift_invariant=False)),
  'residual': Kind('lmjax.models.residuals', 'a layer: wires norm, mixer, ffn and the carry',
                   context=('mixer', 'ffn', 'norm', 'depth'), facts=dict(stream='plain')),
  'mixer': Kind('lmjax.models.mixers', 'mixes positions: (x, ctx, cache) -> (y, cache, aux)',
                facts=dict(causal=True, segments=False, cache=False, cross=False, prefix=False,
                          window=None, recurrent=False, cuts=(), shared=None)),
  'ffn': Kind('lmjax.models.ffn', 'acts on each position: (x, ctx) -> (y, aux)',
              facts=dict(couples='none')),
  'linear': Kind('lmjax.models.linears', 'a parameterization of a matrix',
                 context=('ins', 'outs', 'role', 'scheme', 'bias'),
                 facts=dict(trained=True, prescribes=(), agrees=(), error=0.0)),
  'position': Kind('lmjax.models.positions', 'where a token stands: added, rotated, or a bias',
                   context=('length',), facts=dict(relative=False, added=False)),
  'init': Kind('lmjax.models.init', 'initial values and multipliers, from parameter facts',
               context=('depth', 'width')),
  'embed': Kind('lmjax.models.embeds', 'tokens -> x, and the unembedding',
                context=('vocab', 'width', 'dtype', 'length'),
                facts=dict(tied=False, size=None)),
  'architecture': Kind('lmjax.models.architectures', 'tokens -> Outputs', context=('model',),
                       facts=dict(stacks=lambda args: {}, encoders=(), cuts=())),
  'cache': Kind('lmjax.models.caches', 'what attention keeps of a text', facts=dict(bounded=False),
                context=('batch', 'length', 'heads', 'head_dim', 'dtype', 'window')),
  # ---- training ----
  'objective': Kind('lmjax.objectives', 'owns its networks: init, loss, optional sample',
                    context=('model', 'tokenizer', 'sources', 'learning_rate'),
                    facts=dict(couples='none', lookahead=0, causal=None, reads=(), holds={},
                               twice=True, weights=True, memory=(), used_as=None)),
  'optim': Kind('lmjax.optim', 'an Optax gradient transformation', context=('facts',),
                facts=dict(needs=(), owns_lr=False, gradient_at=None, retract=None, moments=True)),
  'schedule': Kind('lmjax.schedules', 'step -> factor of peak_lr', context=('steps',),
                   facts=dict(extendable=False)),
  'guard': Kind('lmjax.guards', 'refuses the updates of bad steps'),
  'surgery': Kind('lmjax.surgery', "another run's variables -> this run's"),
  'tracker': Kind('lmjax.trackers', 'shows the metrics of a run elsewhere', facts=dict(package='')),
  # ---- data ----
  'source': Kind('lmjax.data.sources', 'documents', context=('tokenizer',),
                 facts=dict(tokens=False, sequential=False)),
  'transform': Kind('lmjax.data.transforms', 'example -> example, pure in (example, seed)',
                    context=('tokenizer', 'length'), facts=dict(task=False, joins=False)),
  'pack': Kind('lmjax.data.packing', 'documents -> rows, planned over lengths'),
  'mixture': Kind('lmjax.data.mixtures', 'weights of the sources, possibly fed by losses',
                  context=('sources', 'seed'), facts=dict(needs=())),
  'tokenizer': Kind('lmjax.tokenizers', 'text <-> ids', facts=dict(lossless=False)),
  # ---- use ----
  'decoding': Kind('lmjax.decoding', 'logits -> next tokens',
                   facts=dict(models=1, rewinds=False)),
  'eval': Kind('lmjax.evals', 'scores a language model'),
  'quantizer': Kind('lmjax.quantizers', 'a trained matrix -> codes',
                    facts=dict(calibration=False, outliers=False)),
}
# fmt: on

"""Pre-norm models of layer norm, of rms norm and of compressed rms norm: one from another, exactly.

A pre-norm stream x (width d) is read through norms alone, and layer norm discards its mean, which
is therefore free. What this run's config says, it gets (P y = y - mean(y), readers y = x W + c):

  layers               norms                       width   readers          writers
  pre, pre_rmsnorm     layer_norm                  d       W                W_o, b_o, E
  pre_rmsnorm          rms_norm or layer_norm      d       W                the same
  pre                  rms_norm (or layer_norm)    d       W                W_o P, b_o P, E P
  pre                  pre_crmsnorm                d - 1   W_j - W_d, j<d   those without the last

From any of them but the third, whose stream has a mean of its own once it is trained, to each. Back
from d - 1 to d the last coordinate is written as minus the sum of the others, and of all matrices
that read a stream of mean 0 alike the smallest is taken, P (W over a row of zeros). Writers are the
embedding, a table of positions, the last matrices of mixer and feed-forward, and their biases.

A norm's gain g stays in this run's norm where it has one at the same width, else W <- diag(g) W.
Its bias b stays where this run's norm has one too, else c <- c + b W; readers then need biases
(`gqa(bias=True)`, `gelu(bias=True)`). The eps must be the same: rms_norm's default is another one
than layer_norm's. From a run of width 256, 4 heads, layer_norm(bias=False), untied():

  --config.init_from='pre_crmsnorm(run="RUN")' --config.model.width=255
  --config.model.mixer='gqa(head_dim=64, heads=4)' --config.model.ffn='gelu(hidden=1024)'
  --config.model.norm='pre_crmsnorm()' --config.model.final_norm='pre_crmsnorm()' ...

Jiang et al., 2023 (arXiv:2305.14858). The function is the same up to rounding; dropout on the
stream is another one where the last coordinate is left out. The optimizer begins anew.

What has no exact image is refused. One table for both ends writes to the stream and reads from it:
`tied()` goes to the first two rows as it is; to the third only if all gains of the final norm are
equal; to and from the fourth never, so that `untied()` is expected here. A bias of the final norm
stays in a final layer_norm, or goes into a bias over the vocabulary where the embedding has one, as
untied(bias=True) has, and no cap lies between. Waves added to the embedding (`sinusoidal`) have a
mean and become a table, `learned()`, in the last two rows. Also refused: norms behind the
embedding, other layers and norms, matrices that are not full, mixers and feed-forward with
parameters along the width that are no matrices. Those that use their input other than through
matrices, without a parameter to tell it, are not noticed.

Trap: with layers `pre` and rms_norm the writers are centred once; training brings the mean back,
and the run is then an rms norm model like others. Train with `pre_rmsnorm`.
"""

import dataclasses
from typing import Any

from lmjax.registry import register
from lmjax.surgery import _stream


@register('surgery')
@dataclasses.dataclass(frozen=True)
class PreCrmsnorm:
  """The same function with the norms and the width of this run."""

  run: str

  def __call__(self, old, new, rng) -> dict[str, Any]:
    del rng
    return {**new.variables, 'params': _stream.converted(old, new)}

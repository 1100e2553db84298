"""FLOPs of a training step, counted from parameter facts, and model FLOPs utilization.

Per token, forward: 2 x fan-in x fan-out for each matrix inside layers (times the rounds of a shared
segment, of one expert where there are several, and as often as the architecture says that a token
goes through a stack) and for the unembedding, plus what the layers say of mixing positions.
Look-ups, norms, activations and the softmax are not counted. The backward pass counts twice the
forward, so a step takes 3 x forward (Kaplan et al., 2020, arXiv:2001.08361; PaLM, arXiv:2204.02311,
appendix B).

  MFU = tokens per second x FLOPs per token / (devices x peak FLOP/s)

Two accountings of causal attention are in use and both are given: `full` counts all T^2 pairs
(PaLM, nanoGPT), `causal` only the allowed ones (about half; Llama 3, MaxText since July 2025).
Compare a figure only with figures of the same accounting.
"""

import dataclasses
import math
from typing import Any

from lmjax import kinds
from lmjax.parallel import facts as facts_lib
from lmjax.planning import chips


@dataclasses.dataclass(frozen=True)
class Flops:
  """Forward FLOPs per token in both accountings; a training step costs three times as much."""

  matrices: float
  mixing_full: float
  mixing_causal: float

  @property
  def step_full(self) -> float:
    return 3 * (self.matrices + self.mixing_full)

  @property
  def step_causal(self) -> float:
    return 3 * (self.matrices + self.mixing_causal)


def per_token(run: Any) -> Flops:
  """FLOPs per token of the data of a built run, at its row length."""
  steps = run.fields['tokens'].shape[0] - run.lookahead
  source = run.fields['encoder_tokens'].shape[0] if 'encoder_tokens' in run.fields else 0
  passes = passes_of(run, steps, source)
  tied = run.model.embed.fact('tied')
  matrices = full = causal = 0.0
  for keys, fact, shape in facts_lib.items(run.facts['params'], run.shapes['params']):
    looked_up = fact.role == 'embed' and not (tied and 'embed' in keys)
    if not fact.is_matrix or fact.role == 'position' or looked_up:
      continue
    matrices += 2.0 * active(fact, shape) * fact.work * uses(keys, passes)
  for p in passes:
    for n, s in enumerate(p.model.segments):
      for queries, keys in p.rounds.get(n, ((1.0, 1.0),) * s.repeats):
        for name in s.pattern:
          layer = p.model.block(name)(parent=None)
          a, b = layer.mixing_flops(p.model.width, max(1, round(keys * p.length)), source)
          if p.beside:
            before, _ = layer.mixing_flops(p.model.width, p.beside, source)
            a, b = a + before, b + before
          full, causal = full + a * queries * p.share, causal + b * queries * p.share
  more = steps / run.length  # tokens of the model for one of the data
  return Flops(matrices * more, full * more, causal * more)


def passes_of(run: Any, steps: int, source: int) -> list[kinds.Pass]:
  """The stacks that objective or architecture run; one over all tokens, unless they say so."""
  for owner in (run.objective, run.architecture):
    if hasattr(owner, 'passes'):
      return owner.passes(steps, source)
  return [kinds.Pass((), run.architecture.model, 1.0, steps)]


def uses(keys: tuple[str, ...], passes: list[kinds.Pass]) -> float:
  """How often a token of the text meets the matrix at this path."""
  for p in sorted(passes, key=lambda p: -len(p.prefix)):
    if keys[: len(p.prefix)] != p.prefix:
      continue
    for n, s in enumerate(p.model.segments):
      if f'segment_{n}' in keys:
        rounds = sum(q for q, _ in p.rounds.get(n, ((1.0, 1.0),) * s.repeats))
        return p.share * rounds / (1 if s.shared else s.repeats)
    return p.share
  return 1.0


def active(fact, shape: tuple[int, ...]) -> int:
  """Entries of a matrix that one token meets: those of one expert."""
  return math.prod(n for n, a in zip(shape, fact.names) if a != 'expert' or a in fact.inputs)


def peak(device_kind: str) -> float | None:
  """The dense bf16 peak of a device, FLOP/s; None where unknown (a CPU)."""
  chip = chips.of_kind(device_kind)
  return None if chip is None else chip.bf16


def mfu(tokens_per_second: float, flops: Flops, devices: int, device_kind: str) -> dict[str, float]:
  """{'mfu_full', 'mfu_causal'}, or nothing where the device's peak is unknown."""
  top = peak(device_kind)
  if top is None:
    return {}
  return {
    f'mfu_{name}': tokens_per_second * f / (devices * top)
    for name, f in (('full', flops.step_full), ('causal', flops.step_causal))
  }

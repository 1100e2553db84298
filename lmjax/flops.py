"""FLOPs of a training step, counted from parameter facts, and model FLOPs utilization.

Per token, forward: 2 x fan-in x fan-out for each matrix inside layers (times the rounds of a shared
segment) and for the unembedding, plus what the mixers say of mixing positions. Look-ups, norms,
activations and the softmax are not counted. The backward pass counts twice the forward, so a step
takes 3 x forward (Kaplan et al., 2020, arXiv:2001.08361; PaLM, arXiv:2204.02311, appendix B).

  MFU = tokens per second x FLOPs per token / (devices x peak FLOP/s)

Two accountings of causal attention are in use and both are given: `full` counts all T^2 pairs
(PaLM, nanoGPT), `causal` only the allowed ones (about half; Llama 3, MaxText since July 2025).
Compare a figure only with figures of the same accounting.
"""

import dataclasses
import math
from typing import Any

from lmjax.parallel import facts as facts_lib

# Dense bf16 peaks of one chip, FLOP/s, from the makers' data sheets.
PEAKS = {
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5e': 197e12,
  'TPU v5': 459e12,
  'TPU v5p': 459e12,
  'TPU v6 lite': 918e12,
  'TPU v6e': 918e12,
  'NVIDIA A100': 312e12,
  'NVIDIA H100': 989e12,
  'NVIDIA H200': 989e12,
  'Tesla T4': 65e12,
  'NVIDIA L4': 121e12,
}


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
  """FLOPs per token of a built run at its row length."""
  rounds = {f'segment_{i}': s.repeats for i, s in enumerate(run.model.segments) if s.shared}
  tied = run.model.embed.fact('tied')
  matrices = 0.0
  for keys, fact, shape in facts_lib.items(run.facts['params'], run.shapes['params']):
    if not fact.is_matrix or fact.role == 'position' or (fact.role == 'embed' and not tied):
      continue
    matrices += 2.0 * math.prod(shape) * rounds.get(keys[0], 1)
  full = causal = 0.0
  for s in run.model.segments:
    for name in s.pattern:
      mixer = run.model.mixer(name)(parent=None)
      a, b = mixer.mixing_flops(run.model.width, run.length)
      full, causal = full + a * s.repeats, causal + b * s.repeats
  return Flops(matrices, full, causal)


def peak(device_kind: str) -> float | None:
  """The dense bf16 peak of a device, by the longest matching name; None where unknown (a CPU)."""
  found = [k for k in PEAKS if device_kind.startswith(k)]
  return PEAKS[max(found, key=len)] if found else None


def mfu(tokens_per_second: float, flops: Flops, devices: int, device_kind: str) -> dict[str, float]:
  """{'mfu_full', 'mfu_causal'}, or nothing where the device's peak is unknown."""
  top = peak(device_kind)
  if top is None:
    return {}
  return {
    f'mfu_{name}': tokens_per_second * f / (devices * top)
    for name, f in (('full', flops.step_full), ('causal', flops.step_causal))
  }

"""Stretches of a run: a fraction of it below 1, a number of steps from 1 on."""


def count(name: str, value: float, steps: int) -> int:
  """Whole steps of `value`. Raises ValueError naming the argument."""
  if value < 0:
    raise ValueError(f'{name}={value}: a fraction of the run (below 1) or a number of steps is expected')
  if value < 1:
    return round(value * steps)
  if value != int(value):
    raise ValueError(f'{name}={value}: from 1 on a whole number of steps is expected')
  return int(value)


def within(steps: int, **parts: int):
  """The stretches must leave room in the run."""
  total = sum(parts.values())
  if total > steps or (total == steps and len(parts) == 1 and steps > 1):
    raise ValueError(f'{" and ".join(f"{k} of {v} steps" for k, v in parts.items())} do not fit a run of {steps} steps')


def end(value: float):
  if not 0 <= value <= 1:
    raise ValueError(f'end={value}: a factor from 0 to 1 of the peak is expected')

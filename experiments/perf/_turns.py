"""Contestants that are processes: each stays alive through a race and steps when it is told to, so
that all can take turns.
"""

import json
import os
import subprocess
import sys
import tempfile
import time


def serve(make, more=dict):
  """Says how a contestant stands, then for each number on standard input makes that many steps and
  answers with their times.

  make() -> (one(): makes a step, gives its loss as a device value; what it says of itself).
  more() -> what each answer says as well.
  """
  say = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # what libraries print must not mix with the answers
  begun = time.monotonic()
  one, said = make()
  losses = [float(one())]
  said = said | dict(first_step_s=round(time.monotonic() - begun, 2))
  losses.append(float(one()))
  print(json.dumps(said | dict(first_losses=losses)), file=say, flush=True)
  for line in sys.stdin:
    wall, cpu = time.monotonic(), time.process_time()
    for _ in range(int(line)):
      loss = one()
    loss = float(loss)
    took = dict(wall=time.monotonic() - wall, cpu=time.process_time() - cpu, loss=loss)
    print(json.dumps(took | more()), file=say, flush=True)


class Missing(Exception):
  """Why a contestant cannot run, or cannot go on."""


class Live:
  """A process that serves. said: what it says of itself. Raises Missing where it does not start."""

  def __init__(self, command, env=None):
    self._errors = tempfile.TemporaryFile('w+')  # a pipe that nobody reads would fill up
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True)
    try:
      self._process = subprocess.Popen(command, env=env, **pipes)
    except OSError as e:
      raise Missing(f'{command[0]} does not start: {e.strerror}') from None
    self.said = self._heard('it stopped before its first step')

  def turn(self, steps: int) -> dict:
    """Seconds, CPU seconds and loss of a turn. Raises Missing where the process has ended."""
    try:
      self._process.stdin.write(f'{steps}\n')
      self._process.stdin.flush()
    except BrokenPipeError:
      pass  # the next line says why
    return self._heard('it stopped within a turn')

  def _heard(self, otherwise: str) -> dict:
    if line := self._process.stdout.readline():
      return json.loads(line)
    self._errors.seek(0)
    found = [l for l in self._errors.read().splitlines() if 'Error' in l] or ['no message']
    self.close()
    raise Missing(f'{otherwise}: {found[-1][:400]}')

  def close(self):
    try:
      self._process.stdin.close()
    except BrokenPipeError:
      pass
    self._process.wait()
    self._errors.close()

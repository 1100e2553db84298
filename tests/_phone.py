"""A phone: chromium with fingers, told what to do through its DevTools protocol over a pipe.

https://chromedevtools.github.io/devtools-protocol/; messages are JSON with a zero byte behind.
"""

import json
import os
import select
import subprocess
import time

WIDTH, HEIGHT = 390, 844  # of the screen, in CSS pixels


class Phone:
  """A page on a small screen with touch. Use as a context."""

  def __init__(self, browser: str, page, profile):
    here, there = os.pipe(), os.pipe()
    self._out, self._in, self._rest, self._n = here[1], there[0], b'', 0
    flags = ['--headless', '--no-sandbox', '--disable-gpu', '--remote-debugging-pipe']
    # The browser reads what it is told as its file 3 and answers on 4.
    shell = f'exec "$0" "$@" 3<&{here[0]} 4>&{there[1]}'
    self._process = subprocess.Popen(
      ['bash', '-c', shell, browser, *flags, f'--user-data-dir={profile}', 'about:blank'],
      pass_fds=(here[0], there[1]),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(here[0])
    os.close(there[1])
    self._session = None
    target = self.tell('Target.createTarget', url='about:blank')['targetId']
    told = self.tell('Target.attachToTarget', targetId=target, flatten=True)
    self._session = told['sessionId']
    size = dict(width=WIDTH, height=HEIGHT, deviceScaleFactor=1, mobile=True)
    self.tell('Emulation.setDeviceMetricsOverride', **size)
    self.tell('Emulation.setTouchEmulationEnabled', enabled=True, maxTouchPoints=2)
    self.tell('Page.navigate', url=f'file://{page}')
    self.until('document.readyState === "complete" && document.querySelector(".u-over") !== null')

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._process.kill()
    self._process.wait()
    os.close(self._out)
    os.close(self._in)

  def tell(self, method: str, **params):
    """The answer to one message."""
    self._n += 1
    message = dict(id=self._n, method=method, params=params)
    if self._session:
      message['sessionId'] = self._session
    os.write(self._out, json.dumps(message).encode() + b'\0')
    while True:
      found = self._read()
      if found.get('id') == self._n:
        assert 'error' not in found, (method, found)
        return found['result']

  def _read(self, seconds: float = 60.0):
    until = time.monotonic() + seconds
    while b'\0' not in self._rest:
      ready = select.select([self._in], [], [], max(0.0, until - time.monotonic()))[0]
      data = os.read(self._in, 1 << 16) if ready else b''
      assert data, 'the browser does not answer'
      self._rest += data
    first, _, self._rest = self._rest.partition(b'\0')
    return json.loads(first)

  def ask(self, expression: str):
    """The value of an expression in the page."""
    found = self.tell('Runtime.evaluate', expression=expression, returnByValue=True)
    assert 'exceptionDetails' not in found, found
    return found['result'].get('value')

  def until(self, expression: str, seconds: float = 20.0):
    """Waits for it to be true; returns the value."""
    end = time.monotonic() + seconds
    while not (found := self.ask(expression)):
      assert time.monotonic() < end, f'{expression} does not come true'
      time.sleep(0.05)
    return found

  def box(self, selector: str) -> tuple[float, float, float, float]:
    """(left, top, width, height) of an element, scrolled into the middle of the screen."""
    element = f'document.querySelector({json.dumps(selector)})'
    self.ask(f'{element}.scrollIntoView({{block: "center"}})')
    time.sleep(0.1)
    box = self.ask(
      f'(() => {{ const b = {element}.getBoundingClientRect();'
      ' return [b.left, b.top, b.width, b.height]; })()'
    )
    return tuple(box)

  def touch(self, kind: str, *points: tuple[float, float]):
    named = [dict(x=x, y=y, id=i) for i, (x, y) in enumerate(points)]
    self.tell('Input.dispatchTouchEvent', type=kind, touchPoints=named)

  def move(self, starts, ends, steps: int = 8):
    """Fingers down at the starts, moved to the ends, and up."""
    self.touch('touchStart', *starts)
    for k in range(1, steps + 1):
      between = [tuple(a + (b - a) * k / steps for a, b in zip(p, q)) for p, q in zip(starts, ends)]
      self.touch('touchMove', *between)
    self.touch('touchEnd')
    time.sleep(0.2)

  def tap(self, selector: str, times: int = 1):
    left, top, width, height = self.box(selector)
    for _ in range(times):
      self.touch('touchStart', (left + width / 2, top + height / 2))
      self.touch('touchEnd')

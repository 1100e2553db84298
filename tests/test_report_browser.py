"""The page in a headless chromium: what a person does on it, on a desk and on a phone.

Each test writes a script into the page that acts as a person would, and reads what is there then.
Errors, messages of the console and anything asked of the network fail it.
"""

import html
import json
import re
import shutil
import subprocess

import pytest

import _phone
from lmjax import report
from lmjax import tracking

pytestmark = pytest.mark.slow

PROBE = """<script>
window.problems = [];
addEventListener('error', (e) => problems.push('error: ' + e.message));
addEventListener('securitypolicyviolation', (e) => problems.push('refused: ' + e.blockedURI));
</script>"""
ACT = """<script>
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const all = (q) => [...document.querySelectorAll(q)];
const set = (q, v) => { const e = document.querySelector(q); e.value = v;
  e.dispatchEvent(new Event('input', { bubbles: true })); e.dispatchEvent(new Event('change')); };
const mouse = (e, type, x) => { const box = e.getBoundingClientRect();
  e.dispatchEvent(new MouseEvent(type, { bubbles: true, clientX: box.left + x * box.width,
    clientY: box.top + box.height / 2, button: 0, movementX: 1 })); };
const axis = (i) => all('#charts [role=img]')[i].getAttribute('aria-label');
const ink = () => document.querySelector('#charts canvas').toDataURL();
(async () => {
  let result;
  try { await sleep(100); result = await (async () => { %s })(); }
  catch (e) { problems.push(String(e)); }
  const asked = performance.getEntriesByType('resource').map((r) => r.name);
  document.body.dataset.result = JSON.stringify({ result, problems, asked });
})();
</script>"""


@pytest.fixture(scope='module')
def browser():
  names = ('chromium', 'chromium-browser', 'google-chrome')
  found = next(filter(None, map(shutil.which, names)), None)
  if found is None:
    pytest.skip(f'none of {", ".join(names)} is installed')
  return found


@pytest.fixture
def act(browser, tmp_path):
  """(page, script, width, more arguments) -> what the script returned."""

  def run(page, script, width=1280, *more):
    text = page.read_text()
    text = text.replace('<main>', PROBE + '<main>', 1).replace('</body>', ACT % script + '</body>')
    probed = tmp_path / 'probed.html'
    probed.write_text(text)
    # A window is never narrower than some 500 pixels: a phone is a frame in it.
    shown = tmp_path / 'shown.html'
    shown.write_text(
      f'<iframe id="f" src="probed.html" style="border:0;width:{width}px;height:2000px"></iframe>'
      '<script>const look = () => { const b = document.getElementById("f").contentDocument?.body;'
      'if (b?.dataset.result) document.body.dataset.result = b.dataset.result;'
      'else setTimeout(look, 50); }; look();</script>'
    )
    done = subprocess.run(
      [
        browser,
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        '--allow-file-access-from-files',
        '--enable-logging=stderr',
        '--virtual-time-budget=20000',
        '--window-size=1400,2100',
        f'--user-data-dir={tmp_path}/profile',
        *more,
        '--dump-dom',
        f'file://{shown}',
      ],
      capture_output=True,
      text=True,
      timeout=180,
    )
    found = re.search(r'data-result="([^"]*)"', done.stdout)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    out = json.loads(html.unescape(found[1]))
    assert not out['problems'] and not out['asked'], out
    said = [t for t in done.stderr.splitlines() if ':CONSOLE' in t]
    assert not said
    return out['result']

  return run


EVIL = '<img src=x onerror=alert(1)></script>'


def _runs(tmp_path, n, steps=40, name='run_{}'):
  out = []
  for i in range(n):
    path = tmp_path / name.format(i)
    path.mkdir()
    with tracking.Tracker(path, tensorboard=False) as t:
      t.log('model', 0, {'flops_per_token': 1e6 * (i + 1)})
      for s in range(1, steps + 1):
        values = {'loss': 2 + i + (-1) ** s / 4, 'grad_norm': 1.0, 'lr': 1e-3, 'other': 1.0 * s}
        values |= {'grad_norm/embed': 1.0, 'grad_norm/layer_0': 2.0, EVIL: 1.0}
        t.log('train', s, {'time': 1e9 + s, 'tokens': 100 * s, 'tokens_per_second': 50.0, **values})
        if s % 10 == 0:
          t.log('eval', s, {'loss': 2.0 + i, 'loss_stderr': 0.01})
          t.log('sample', s, {'prompt': 'a', 'text': f'a text {EVIL} of {i} at {s}'})
      t.log(
        'task', steps, {'task': 'lambada', 'name': 'accuracy', 'value': 0.1 * i, 'stderr': 0.01}
      )
    config = {'steps': steps, 'seed': i, 'optim': 'adam()' if i % 2 else 'lion()'}
    (path / 'config.json').write_text(json.dumps(config))
    out.append(str(path))
  return out


def _page(tmp_path, n, **more):
  runs = _runs(tmp_path, n, **more)
  return report.write_report(runs[0], others=runs[1:])


@pytest.mark.parametrize('n', [1, 3])
def test_drag_zooms_every_chart_and_a_double_click_shows_all(act, tmp_path, n):
  script = """
    const plot = document.querySelector('.u-over'), before = ink(), out = [];
    const drag = async (a, b) => { mouse(plot, 'mousemove', a); mouse(plot, 'mousedown', a);
      for (const x of [a, (a + b) / 2, b]) mouse(plot, 'mousemove', x);
      mouse(plot, 'mouseup', b); await sleep(100); };
    await drag(0.25, 0.75);
    out.push(document.body.dataset.zoom.split(' ').map(Number), ink() !== before);
    mouse(plot, 'dblclick', 0.5); await sleep(100);
    out.push(document.body.dataset.zoom, ink() === before);
    const img = document.querySelector('#charts [role=img]');
    for (const key of ['+', 'ArrowRight'])
      img.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
    out.push(document.body.dataset.zoom.split(' ').map(Number));
    document.querySelector('[data-move=all]').click();
    out.push(document.body.dataset.zoom);
    return out;"""
  zoomed, changed, after, same, by_keys, reset = act(_page(tmp_path, n), script)
  assert zoomed == pytest.approx([10.75, 30.25], abs=0.5) and changed
  assert after == reset == '' and same
  assert by_keys == pytest.approx([15.6, 35.1], abs=0.2)


def test_axes_by_step_token_flop_and_second_and_logarithms(act, tmp_path):
  script = """
    const out = {}, radio = (v) => document.querySelector('input[value=' + v + ']').click();
    for (const v of ['tokens', 'flops', 'seconds', 'step']) {
      radio(v); await sleep(50);
      document.querySelector('[data-move=in]').click();
      out[v] = [axis(0), document.body.dataset.zoom]; }
    radio('flops'); await sleep(50);
    const linear = ink();
    document.getElementById('logx').click(); await sleep(50); const x = ink();
    document.getElementById('logy').click(); await sleep(50); const both = ink();
    out.distinct = new Set([linear, x, both]).size;
    return out;"""
  out = act(_page(tmp_path, 2), script)
  for key, word, most in (
    ('tokens', 'tokens', 4000),
    ('seconds', 'time', 39),
    ('step', 'steps', 40),
  ):
    label, zoom = out[key]
    assert f'by {word}:' in label
    low, high = map(float, zoom.split())
    assert high == pytest.approx(low + (most - low) * 2 / 3, rel=0.35) and high < most
  assert 'by FLOPs:' in out['flops'][0] and 'B' in out['flops'][1]  # run 1 cost 8e9
  assert out['distinct'] == 3


def test_smoothing_narrows_the_curve(act, tmp_path):
  script = """
    const last = () => +axis(0).match(/training from [\\d.]+ to ([\\d.]+)/)[1];
    set('#smooth', 0); const raw = last(); set('#smooth', 0.95);
    return [raw, last(), document.querySelector('output[for=smooth]').textContent];"""
  raw, smooth, shown = act(_page(tmp_path, 1), script)
  assert raw == 2.25 and abs(smooth - 2) < 0.05 and shown == '0.95'


def test_tables_of_several_runs(act, tmp_path):
  script = """
    const cells = (r) => [...r.children].map((c) => c.textContent);
    const rows = (id) => all('#' + id + ' tbody tr').map(cells);
    const out = { differ: rows('differences'), scores: rows('scores'), runs: rows('runs').length };
    set('#differences input', 'optim'); out.filtered = rows('differences').map((r) => r[0]);
    set('#runs input', 'optim=lion'); out.lions = rows('runs').map((r) => r[1]);
    set('#runs input', '');
    all('#runs thead button')[1].click(); all('#runs thead button')[1].click();
    out.order = rows('runs').map((r) => r[1]);
    all('#runs tbody input')[0].click(); all('#runs tbody input')[1].click();
    out.after = rows('differences');
    out.lines = axis(0);
    set('#sampled', 0); out.samples = all('#texts figure').map((f) => f.textContent);
    out.images = all('img').length;
    return out;"""
  out = act(_page(tmp_path, 3), script)
  assert out['differ'] == [
    ['optim', 'lion()', 'adam()', 'lion()'],
    ['seed', '0', '1', '2'],
  ]
  assert out['scores'][1] == ['run_1', '3 ± 0.01', '0.1 ± 0.01'] and out['runs'] == 3
  assert out['filtered'] == ['optim'] and out['lions'] == ['run_0', 'run_2']
  assert out['order'] == ['run_2', 'run_1', 'run_0']
  assert len(out['after']) == 0  # one run is left
  assert 'run_0 training' in out['lines'] and 'run_1' not in out['lines']
  assert len(out['samples']) == 1 and f'text {EVIL} of 0 at 10' in out['samples'][0]
  assert out['images'] == 0


@pytest.mark.parametrize('n', [1, 3])
def test_groups_and_other_curves_are_drawn(act, tmp_path, n):
  script = """
    document.getElementById('more').open = true; await sleep(100);
    const family = document.querySelector('#families [role=img]');
    const choice = document.querySelector('#families select');
    if (choice) { choice.value = 'grad_norm/layer_0'; choice.dispatchEvent(new Event('change')); }
    const titles = all('#more h3').map((h) => h.textContent);
    return [family.getAttribute('aria-label'), titles, all('img').length];"""
  family, others, images = act(_page(tmp_path, n), script)
  assert 'from 2 to 2' in family and ('layer_0' in family or n > 1)
  assert others == ['other', EVIL] and images == 0


@pytest.mark.parametrize('n', [1, 14])
@pytest.mark.parametrize('dark', [False, True])
def test_a_phone_needs_no_sideways_scrolling(act, tmp_path, n, dark):
  script = """
    document.querySelectorAll('details').forEach((d) => { d.open = true; }); await sleep(200);
    const wide = all('body *').filter((e) => !e.closest('.scroll, .u-legend, .uplot') &&
      e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.tagName + '.' + e.className);
    const pixel = getComputedStyle(document.body).backgroundColor;
    const focus = all('button, input, select, [role=img], .scroll')
      .filter((e) => e.offsetParent && e.tabIndex < 0);
    const label = (e) => e.closest('label') || e.getAttribute('aria-label') || e.textContent;
    const named = all('input, select, button').filter((e) => !label(e));
    const all_of_it = document.documentElement.scrollWidth;
    return [innerWidth, all_of_it, wide, pixel, focus.length, named.length];"""
  page = _page(tmp_path, n, name='a_rather_long_name_of_a_run_without_any_break_{}')
  more = ['--blink-settings=preferredColorScheme=0'] if dark else []
  inner, scroll, wide, pixel, unreachable, unnamed = act(page, script, 390, *more)
  assert inner == 390 and scroll <= 390 and not wide
  assert pixel == ('rgb(20, 23, 26)' if dark else 'rgb(255, 255, 255)')
  assert unreachable == unnamed == 0


@pytest.fixture(params=[1, 3], ids=['one', 'several'])
def phone(browser, tmp_path, request):
  with _phone.Phone(browser, _page(tmp_path, request.param), tmp_path / 'profile') as p:
    p.zoom = lambda: [float(x) for x in p.ask('document.body.dataset.zoom || ""').split()]
    yield p


def test_one_finger_zooms_sideways_and_scrolls_up_and_down(phone):
  left, top, width, height = phone.box('.u-over')
  y = top + height / 2
  phone.move([(left + width / 4, y)], [(left + 3 * width / 4, y)])
  assert phone.zoom() == pytest.approx([10.75, 30.25], abs=0.5)
  phone.tap('.u-over', times=2)
  phone.until('document.body.dataset.zoom === ""')
  before = phone.ask('scrollY')
  phone.move([(left + width / 2, y)], [(left + width / 2 + 4, y - 150)])
  assert phone.ask('scrollY') > before + 50 and not phone.zoom()


@pytest.mark.parametrize('log', [False, True])
def test_two_fingers_spread_what_lies_under_them(phone, log):
  """The values under both stay under both, and the page itself keeps its size."""
  if log:
    phone.tap('#logx')
    phone.until('document.getElementById("logx").checked')
  left, top, width, height = phone.box('.u-over')
  at = lambda *parts: [(left + part * width, top + height / 2) for part in parts]
  value = lambda part: 100**part if log else 1 + 39 * part  # a log axis ends at a power of ten
  phone.move(at(0.45, 0.55), at(0.2, 0.8))
  span = 0.1 / 0.6  # of all that a plot shows
  low = 0.45 - 0.2 * span
  wanted = [value(low), value(low + span)]
  assert phone.zoom() == pytest.approx(wanted, rel=0.03)
  assert phone.ask('visualViewport.scale') == 1
  phone.move(at(0.2, 0.8), at(0.45, 0.55))
  back = phone.zoom()  # all, or nearly
  assert not back or back == pytest.approx([1, 40], rel=0.1)
  phone.move(at(0.9, 0.95), at(0.1, 0.9))  # what has an end there
  low, high = phone.zoom()
  assert 1 < low < high <= 40


def test_buttons_zoom_by_a_tap(phone):
  phone.tap('[data-move=in]')
  phone.until('document.body.dataset.zoom')
  assert phone.zoom() == pytest.approx([10.75, 30.25], abs=0.5)
  phone.tap('[data-move=right]')
  phone.until('!document.body.dataset.zoom.startsWith("10.75")')
  assert phone.zoom() == pytest.approx([15.6, 35.1], abs=0.2)
  phone.tap('[data-move=all]')
  phone.until('document.body.dataset.zoom === ""')


def test_ten_thousand_runs_open(act, tmp_path):
  one = json.dumps({'kind': 'eval', 'step': 20, 'time': 20, 'loss': 1.0}) + '\n'
  for i in range(10_000):
    path = tmp_path / 'many' / f'r{i}'
    path.mkdir(parents=True)
    lines = [{'kind': 'train', 'step': s, 'time': s, 'loss': i + 1 / s} for s in range(1, 20)]
    (path / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n' + one)
    (path / 'config.json').write_text(json.dumps({'seed': i}))
  runs = [str(tmp_path / 'many' / f'r{i}') for i in range(10_000)]
  page = report.write_report(runs[0], others=runs[1:])
  assert page.stat().st_size < 20_000_000
  script = """
    const out = [all('#runs tbody tr').length, document.getElementById('drawn').textContent];
    set('#runs input', 'r9999'); document.getElementById('first').click(); await sleep(50);
    return [...out, all('#runs tbody tr').length, axis(0)];"""
  rows, drawn, found, lines = act(page, script)
  assert rows == 100 and drawn.startswith('12 of 10,000 runs are drawn')
  assert found == 1 and 'r9999 training' in lines

// Curves: one chart a metric, all with one horizontal range.
const charts = [];

// The lines of a chart: {x, y, label, stroke, width, dash, points}.
function curves(spec) {
  const out = [];
  const add = (run, table, ys, look) => {
    if (!ys) return;
    const at = xs(run, table);
    const keep = at.map((x, i) => i).filter((i) => at[i] != null && !(state.logx && !(at[i] > 0)));
    const y = keep.map((i) => (ys[i] == null || (state.logy && !(ys[i] > 0)) ? null : ys[i]));
    if (y.some((v) => v != null)) out.push({ x: keep.map((i) => at[i]), y, ...look });
  };
  const soft = spec.smooth && state.smooth > 0;
  const line = (run, key, look) => {
    const ys = run.train[key];
    if (!ys) return;
    if (soft && !many && !spec.members) add(run, run.train, ys, { label: 'each step', stroke: look.stroke + '55', width: 1 });
    add(run, run.train, soft ? smoothed(ys, state.smooth) : ys, { width: 1.6, ...look });
  };
  [...drawn].sort((a, b) => a - b).forEach((i, place) => {
    const run = runs[i], at = many ? place : 0;
    const look = { stroke: color(at), dash: dash(at) };
    if (spec.members && !many) {
      spec.members.forEach((k, j) => line(run, k, { label: k.slice(spec.prefix.length), stroke: color(j), dash: dash(j) }));
      return;
    }
    const name = many ? run.name : spec.loss ? 'training' : soft ? 'smoothed' : 'value';
    line(run, spec.members ? spec.member : spec.key, { ...look, label: spec.loss && many ? name + ' training' : name });
    if (!spec.loss) return;
    Object.entries(run.evals).forEach(([label, e], j) => add(run, e, e.loss, {
      label: many ? name + ' ' + label : label, stroke: many ? look.stroke : color(j + 1), width: 2,
      dash: many ? [6, 3] : undefined, points: true }));
  });
  return out;
}

function describe(spec, lines) {
  const parts = lines.slice(0, 8).map((l) => {
    const v = l.y.filter((y) => y != null);
    return `${l.label} from ${compact(v[0])} to ${compact(v[v.length - 1])}`;
  });
  return `${spec.title} by ${AXES[state.axis]}: ${parts.join('; ')}`;
}

function options(spec, lines, width) {
  const axis = { stroke: () => css('--muted'), grid: { stroke: () => css('--line'), width: 1 },
    ticks: { stroke: () => css('--line'), width: 1 }, font: '12px system-ui, sans-serif' };
  // Between powers of ten a log axis has lines without numbers, but where it shows less than two.
  const sparse = (u, vs, key) => {
    const { min, max } = u.scales[key];
    return vs.map((v) => (v == null || (max / min > 100 && Math.abs(Math.log10(v) % 1) > 1e-9) ? null : v));
  };
  const zero = spec.zero && !state.logy ? (u, lo, hi) => [0, hi * 1.08 || 1] : undefined;
  return {
    width, height: spec.wide ? 320 : 220,
    scales: { x: { time: false, distr: state.logx ? 3 : 1 }, y: { distr: state.logy ? 3 : 1, range: zero } },
    cursor: { y: false, points: { size: 6 }, drag: { x: true, y: false, setScale: false, dist: 4 },
      sync: { key: 'lmjax', filters: { pub: (type) => type === 'mousemove' || type === 'mouseleave' } },
      bind: { dblclick: () => () => { zoom(null); return null; } } },
    legend: { markers: { width: 0, fill: (u, i) => u.series[i].stroke(u, i) } },
    axes: [
      { ...axis, space: 64, size: 36, values: (u, vs) => (state.logx ? sparse(u, vs, 'x') : vs).map((v) => (v == null ? '' : showX(v))) },
      { ...axis, size: 62, values: (u, vs) => (state.logy ? sparse(u, vs, 'y') : vs).map((v) => (v == null ? '' : compact(v))) },
    ],
    series: [{ label: AXES[state.axis], value: (u, v) => showX(v) },
      ...lines.map((l) => ({ label: l.label, stroke: l.stroke, width: l.width, dash: l.dash, spanGaps: true,
        points: { show: !!l.points || l.y.filter((y) => y != null).length < 2, size: 6, fill: l.stroke },
        value: (u, v) => compact(v) }))],
    hooks: {
      setSelect: [(u) => {
        if (u.select.width < 4) return;
        const range = [u.posToVal(u.select.left, 'x'), u.posToVal(u.select.left + u.select.width, 'x')];
        u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
        zoom(range);
      }],
      ready: [(u) => touch(u)],
    },
  };
}

// Fingers: drag one sideways or spread two to zoom, double tap to see all; up and down scrolls the page.
function touch(u) {
  const fingers = new Map();  // where each is, in pixels
  let from = null, last = 0, held = null;  // held: the values that two fingers lie on
  const at = (e) => Math.max(0, Math.min(u.over.clientWidth, e.clientX - u.over.getBoundingClientRect().left));
  const select = (left, width) => u.setSelect({ left, width, top: 0, height: width && u.over.clientHeight }, false);
  u.over.addEventListener('pointerdown', (e) => {
    if (e.pointerType !== 'touch') return;
    fingers.set(e.pointerId, at(e));
    from = fingers.size === 1 ? at(e) : null;
    held = fingers.size === 2 ? [...fingers].map(([id, x]) => [id, u.posToVal(x, 'x')]) : null;
    select(0, 0);
  });
  u.over.addEventListener('pointermove', (e) => {
    if (!fingers.has(e.pointerId)) return;
    const x = at(e);
    fingers.set(e.pointerId, x);
    if (held) spread(held.map(([id, v]) => [fingers.get(id), v]), u.over.clientWidth);
    else if (from != null) select(Math.min(from, x), Math.abs(x - from));
  });
  const lift = (e) => { fingers.delete(e.pointerId); from = held = null; select(0, 0); };
  u.over.addEventListener('pointercancel', lift);
  u.over.addEventListener('pointerup', (e) => {
    const x = at(e), start = from;
    lift(e);
    if (start == null) return;
    if (Math.abs(x - start) > 12) zoom([u.posToVal(Math.min(start, x), 'x'), u.posToVal(Math.max(start, x), 'x')]);
    else if (e.timeStamp - last < 350) zoom(null);
    last = e.timeStamp;
  });
}

// The range in which each of two values lies under its finger, [place, value], of so many pixels.
function spread([[p, v], [q, w]], width) {
  const to = state.logx ? Math.log : (x) => x, back = state.logx ? Math.exp : (x) => x;
  const [least, most] = extent().map(to), each = (to(w) - to(v)) / (q - p);
  if (Math.abs(q - p) < 12 || !(each > 0)) return;  // too near, or crossed
  if (each * width >= most - least) { zoom(null); return; }
  const lo = Math.max(least, Math.min(most - each * width, to(v) - p * each));
  zoom([back(lo), back(lo + each * width)]);
}

// ---- zoom: null is everything

function extent() {
  const all = charts.filter((c) => c.u).flatMap((c) => [c.data[0][0], c.data[0][c.data[0].length - 1]]);
  return all.length ? [Math.min(...all), Math.max(...all)] : [0, 1];
}

function zoom(range) {
  state.zoom = range;
  charts.filter((c) => c.u).forEach(show);
  document.body.dataset.zoom = range ? range.map(compact).join(' ') : '';
}

function show(chart) {
  const x = chart.data[0];
  const [lo, hi] = state.zoom || [x[0], x[x.length - 1]];
  const pad = lo === hi ? Math.abs(lo) / 2 || 1 : 0;
  chart.u.setScale('x', { min: lo - pad, max: hi + pad });
}

function move(how) {
  const to = state.logx ? Math.log : (v) => v, back = state.logx ? Math.exp : (v) => v;
  const whole = extent().map(to), [lo, hi] = (state.zoom || extent()).map(to);
  const span = hi - lo, shift = { left: -span / 4, right: span / 4 }[how] || 0;
  const grow = { in: -span / 4, out: span / 2 }[how] || 0;
  if (how === 'all' || (how === 'out' && span + 2 * grow >= whole[1] - whole[0])) return zoom(null);
  const width = span + 2 * grow;
  const start = Math.max(whole[0], Math.min(whole[1] - width, lo - grow + shift));
  return zoom([back(start), back(start + width)]);
}

const KEYS = { '+': 'in', '=': 'in', '-': 'out', ArrowLeft: 'left', ArrowRight: 'right', 0: 'all', Escape: 'all' };

// ---- drawing

function draw(chart) {
  const { spec, plot, figure } = chart;
  if (chart.u) chart.u.destroy();
  chart.u = null;
  if (!figure.offsetParent) return;
  const lines = curves(spec);
  plot.setAttribute('aria-label', lines.length ? describe(spec, lines) : `${spec.title}: no values to draw`);
  plot.textContent = lines.length ? '' : 'No values to draw: of these runs, on these axes.';
  if (!lines.length) return;
  chart.data = lines.length === 1 ? [lines[0].x, lines[0].y] : uPlot.join(lines.map((l) => [l.x, l.y]));
  chart.u = new uPlot(options(spec, lines, plot.clientWidth), chart.data, plot);
  if (state.zoom) show(chart);
}

const drawAll = () => charts.forEach(draw);

function make(spec, parent) {
  const figure = element('figure');
  const plot = element('div', null, { role: 'img', tabindex: '0' });
  const head = element('h3', spec.title);
  if (spec.wide) figure.className = 'wide';
  figure.append(head, plot);
  parent.append(figure);
  const chart = { spec, plot, figure, u: null };
  charts.push(chart);
  plot.addEventListener('keydown', (e) => {
    if (!KEYS[e.key] || e.ctrlKey || e.metaKey || e.altKey) return;
    e.preventDefault();
    move(KEYS[e.key]);
  });
  if (spec.members && many) {
    const choice = element('select', null, { 'aria-label': `${spec.title}: which` });
    spec.members.forEach((k) => choice.append(element('option', k.slice(spec.prefix.length), { value: k })));
    choice.addEventListener('change', () => { spec.member = choice.value; draw(chart); });
    spec.member = spec.members[0];
    figure.insertBefore(choice, plot);
  }
  new ResizeObserver(() => {
    if (chart.u && Math.abs(chart.u.width - plot.clientWidth) > 1) {
      chart.u.setSize({ width: plot.clientWidth, height: chart.u.height });
    }
  }).observe(plot);
  return chart;
}

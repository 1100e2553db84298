'use strict';
(() => {
  const runs = JSON.parse(document.getElementById('data').textContent).runs;
  const root = document.documentElement;
  const many = runs.length > 1;
  const charts = [];
  const state = { axis: 'step', log: false, smooth: 0.6 };
  const KNOWN = [
    { key: 'loss', title: 'Loss (nats per token)', wide: true, smooth: true, loss: true },
    { key: 'lr', title: 'Learning rate' },
    { key: 'grad_norm', title: 'Gradient norm', smooth: true },
    { key: 'tokens_per_second', title: 'Throughput (tokens per second)', smooth: true, zero: true },
    { key: 'data_wait', title: 'Data wait (seconds per step)', smooth: true, zero: true },
  ];
  const AXES = { step: 'steps', tokens: 'tokens', seconds: 'time' };
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const color = (i) => css('--s' + (i % 8));

  // ---- numbers

  function compact(v) {
    if (v == null) return '--';
    const a = Math.abs(v);
    if (a >= 1e4) return Intl.NumberFormat('en', { notation: 'compact', maximumSignificantDigits: 4 }).format(v);
    if (a !== 0 && a < 1e-3) return v.toExponential(2).replace(/\.?0+e/, 'e');
    return String(+v.toPrecision(5));
  }

  // One unit for the whole time axis, by the longest run.
  const longest = Math.max(0, ...runs.map((r) => r.train.seconds[r.train.seconds.length - 1] || 0));
  const [unit, unitSeconds] = longest < 180 ? ['s', 1] : longest < 10800 ? ['min', 60] : ['h', 3600];
  const scaleX = (v) => (state.axis === 'seconds' ? v / unitSeconds : v);
  const showX = (v) => compact(v) + (state.axis === 'seconds' && v != null ? ' ' + unit : '');

  // Exponential average, corrected for its start, so that the first values are not pulled to zero.
  function smoothed(ys, a) {
    let sum = 0, weight = 0;
    return ys.map((y) => {
      if (y == null) return null;
      sum = a * sum + (1 - a) * y;
      weight = a * weight + (1 - a);
      return sum / weight;
    });
  }

  // ---- one chart

  function curves(spec) {
    const out = [];
    const add = (run, xs, ys, look) => {
      if (!xs || !ys || !xs.some((x) => x != null)) return;
      const keep = xs.map((x, i) => i).filter((i) => xs[i] != null);
      const y = keep.map((i) => (state.log && spec.loss && !(ys[i] > 0) ? null : ys[i]));
      out.push({ x: keep.map((i) => scaleX(xs[i])), y, ...look });
    };
    runs.forEach((run, i) => {
      const t = run.train, ys = t[spec.key], name = many ? run.name + ' ' : '';
      const c = color(many ? i : 0);
      if (ys) {
        const soft = spec.smooth && state.smooth > 0;
        if (soft && !many) add(run, t[state.axis], ys, { label: 'each step', stroke: c + '55', width: 1 });
        add(run, t[state.axis], soft ? smoothed(ys, state.smooth) : ys,
          { label: name + (spec.loss ? 'training' : many ? '' : soft ? 'smoothed' : spec.short || 'value'), stroke: c, width: 1.6 });
      }
      if (spec.loss) {
        Object.entries(run.evals).forEach(([label, e], j) => add(run, e[state.axis], e.loss,
          { label: name + label, stroke: many ? c : color(j + 1), width: 2, dash: many ? [6, 3] : undefined, points: true }));
      }
    });
    return out;
  }

  function describe(spec, lines) {
    const parts = lines.map((l) => {
      const v = l.y.filter((y) => y != null);
      return v.length ? `${l.label.trim() || spec.title} from ${compact(v[0])} to ${compact(v[v.length - 1])}` : '';
    });
    return `${spec.title} by ${AXES[state.axis]}: ${parts.filter(Boolean).join('; ')}`;
  }

  function options(spec, lines, width) {
    const axis = { stroke: () => css('--muted'), grid: { stroke: () => css('--line'), width: 1 },
      ticks: { stroke: () => css('--line'), width: 1 }, font: '12px system-ui, sans-serif' };
    const log = state.log && spec.loss;
    return {
      width, height: spec.wide ? 320 : 220,
      scales: { x: { time: false }, y: { distr: log ? 3 : 1, range: spec.zero ? (u, lo, hi) => [0, hi * 1.08 || 1] : undefined } },
      cursor: { sync: { key: 'lmjax' }, y: false, points: { size: 6 } },
      legend: { markers: { width: 0, fill: (u, i) => u.series[i].stroke(u, i) } },
      axes: [
        { ...axis, space: 64, size: 36, values: (u, vs) => vs.map(showX) },
        { ...axis, size: 62, values: (u, vs) => vs.map((v) => (v == null ? '' : compact(v))) },
      ],
      series: [{ label: AXES[state.axis], value: (u, v) => showX(v) },
        ...lines.map((l) => ({ label: l.label.trim() || spec.key, stroke: l.stroke, width: l.width, dash: l.dash, spanGaps: true,
          points: { show: !!l.points || l.y.filter((y) => y != null).length < 2, size: 6, fill: l.stroke },
          value: (u, v) => compact(v) }))],
    };
  }

  function draw(chart) {
    const { spec, plot, figure } = chart;
    if (chart.u) chart.u.destroy();
    chart.u = null;
    const lines = curves(spec);
    plot.setAttribute('aria-label', lines.length ? describe(spec, lines) : `${spec.title}: no values for this axis`);
    plot.textContent = lines.length ? '' : 'No values for this axis.';
    if (!lines.length || !figure.offsetParent) return;
    const data = lines.length === 1 ? [lines[0].x, lines[0].y] : uPlot.join(lines.map((l) => [l.x, l.y]));
    chart.u = new uPlot(options(spec, lines, plot.clientWidth), data, plot);
  }

  function make(spec, parent) {
    const figure = document.createElement('figure');
    const title = document.createElement('h3');
    const plot = document.createElement('div');
    title.textContent = spec.title;
    plot.setAttribute('role', 'img');
    if (spec.wide) figure.className = 'wide';
    figure.append(title, plot);
    parent.append(figure);
    const chart = { spec, plot, figure, u: null };
    charts.push(chart);
    new ResizeObserver(() => {
      if (chart.u && Math.abs(chart.u.width - plot.clientWidth) > 1) {
        chart.u.setSize({ width: plot.clientWidth, height: chart.u.height });
      }
    }).observe(plot);
  }

  // ---- the page

  const drawAll = () => charts.forEach(draw);
  const host = document.getElementById('charts');
  if (host) {
    const has = (key) => runs.some((r) => r.train[key] || (key === 'loss' && Object.keys(r.evals).length));
    KNOWN.filter((s) => has(s.key)).forEach((s) => make(s, host));
    const known = new Set(['step', 'tokens', 'seconds', ...KNOWN.map((s) => s.key)]);
    const others = [...new Set(runs.flatMap((r) => Object.keys(r.train)))].filter((k) => !known.has(k)).slice(0, 60);
    const more = document.getElementById('more');
    if (others.length) {
      more.hidden = false;
      others.forEach((k) => make({ key: k, title: k.replace(/_/g, ' '), smooth: true }, more.querySelector('.grid')));
      more.addEventListener('toggle', drawAll);
    }
    const slider = document.getElementById('smooth');
    const read = () => {
      state.axis = document.querySelector('input[name=axis]:checked').value;
      state.log = document.getElementById('logy').checked;
      state.smooth = +slider.value;
      document.querySelector('output[for=smooth]').textContent = state.smooth.toFixed(2);
      drawAll();
    };
    document.querySelector('.controls').addEventListener('input', read);
    read();
  }
  const button = document.getElementById('theme');
  const dark = matchMedia('(prefers-color-scheme: dark)');
  button.hidden = false;
  button.addEventListener('click', () => {
    const now = root.dataset.theme || (dark.matches ? 'dark' : 'light');
    root.dataset.theme = now === 'dark' ? 'light' : 'dark';
    drawAll();
  });
  dark.addEventListener('change', drawAll);
})();

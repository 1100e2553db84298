// What the page knows, what is chosen, and how values are written.
const page = JSON.parse(document.getElementById('data').textContent);
const runs = page.runs;
const root = document.documentElement;
const many = runs.length > 1;
const MOST_DRAWN = 40;
const FIRST_DRAWN = 12;
const state = { axis: 'step', logx: false, logy: false, smooth: 0.6, zoom: null };
const AXES = { step: 'steps', tokens: 'tokens', flops: 'FLOPs', seconds: 'time' };
const byId = (id) => document.getElementById(id);
const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
const color = (i) => css('--s' + (i % 8));
const DASHES = [[], [6, 3], [2, 2], [10, 3, 2, 3], [4, 6]];
const dash = (i) => DASHES[Math.floor(i / 8) % DASHES.length];

// The runs that are drawn, by their numbers: the best few where there are many.
const score = (r) => r.best ?? r.loss ?? Infinity;
const best = runs.map((r, i) => i).sort((a, b) => score(runs[a]) - score(runs[b]) || a - b);
let drawn = new Set(runs.length <= FIRST_DRAWN ? runs.map((r, i) => i) : best.slice(0, FIRST_DRAWN));

function element(tag, text, attributes = {}) {
  const out = document.createElement(tag);
  if (text != null) out.textContent = text;
  Object.entries(attributes).forEach(([k, v]) => out.setAttribute(k, v));
  return out;
}

function compact(v) {
  if (v == null) return '--';
  const a = Math.abs(v);
  if (a >= 1e15) return v.toExponential(2).replace('e+', 'e');
  if (a >= 1e4) return Intl.NumberFormat('en', { notation: 'compact', maximumSignificantDigits: 4 }).format(v);
  if (a !== 0 && a < 1e-3) return v.toExponential(2).replace(/\.?0+e/, 'e');
  return String(+v.toPrecision(5));
}

// One unit for the whole time axis, by the longest run.
const longest = runs.reduce((m, r) => Math.max(m, r.seconds || 0), 0);
const [unit, unitSeconds] = longest < 180 ? ['s', 1] : longest < 10800 ? ['min', 60] : ['h', 3600];
const showX = (v) => compact(v) + (state.axis === 'seconds' && v != null ? ' ' + unit : '');

function xs(run, table) {
  if (state.axis === 'seconds') return table.seconds.map((v) => (v == null ? null : v / unitSeconds));
  if (state.axis === 'flops') return table.tokens.map((v) => (v == null || !run.flops ? null : v * run.flops));
  return table[state.axis];
}

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

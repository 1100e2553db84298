// The page: which charts there are, the controls, the theme.
const MOST_CURVES = 60;
const KNOWN = [
  { key: 'loss', title: 'Loss (nats per token)', wide: true, smooth: true, loss: true },
  { key: 'lr', title: 'Learning rate' },
  { key: 'grad_norm', title: 'Gradient norm', smooth: true },
  { key: 'tokens_per_second', title: 'Throughput (tokens per second)', smooth: true, zero: true },
  { key: 'data_wait', title: 'Data wait (seconds per step)', smooth: true, zero: true },
];
const words = (k) => k.replace(/_/g, ' ');

function tellDrawn(more = '') {
  byId('drawn').textContent = many && runs.length > FIRST_DRAWN
    ? `${drawn.size} of ${runs.length.toLocaleString('en')} runs are drawn; choose in the table of runs. ${more}` : more;
}

function redrawn() {
  if (byId('charts')) {
    tellDrawn();
    drawAll();
  }
  differences(byId('differences'));
  texts(byId('texts'));
}

// Metrics named a/b belong together: norms of layers and groups, losses of sources.
function families(keys) {
  const out = new Map();
  keys.filter((k) => k.includes('/')).forEach((k) => {
    const prefix = k.slice(0, k.indexOf('/') + 1);
    out.set(prefix, [...(out.get(prefix) || []), k]);
  });
  return out;
}

function moreCurves(keys) {
  const more = byId('more'), search = byId('curves'), grid = more.querySelector('.grid'), told = more.querySelector('.note');
  if (!keys.length) return;
  more.hidden = false;
  const fill = () => {
    charts.filter((c) => c.more).forEach((c) => c.u && c.u.destroy());
    charts.splice(0, charts.length, ...charts.filter((c) => !c.more));
    const found = keys.filter((k) => k.toLowerCase().includes(search.value.toLowerCase()));
    told.textContent = found.length > MOST_CURVES ? `${MOST_CURVES} of ${found.length.toLocaleString('en')}; filter to see others.` : '';
    grid.replaceChildren();
    found.slice(0, MOST_CURVES).forEach((k) => { make({ key: k, title: words(k), smooth: true }, grid).more = true; });
    charts.filter((c) => c.more).forEach(draw);
  };
  search.addEventListener('input', fill);
  more.addEventListener('toggle', fill);
}

function readControls() {
  const axis = document.querySelector('input[name=axis]:checked').value;
  const again = axis !== state.axis || byId('logx').checked !== state.logx;
  state.axis = axis;
  state.logx = byId('logx').checked;
  state.logy = byId('logy').checked;
  state.smooth = +byId('smooth').value;
  document.querySelector('output[for=smooth]').textContent = state.smooth.toFixed(2);
  if (again) state.zoom = null;
  drawAll();
}

function curvesSection() {
  const names = new Set(runs.flatMap((r) => Object.keys(r.train)));
  if (runs.some((r) => Object.keys(r.evals).length)) names.add('loss');
  KNOWN.filter((s) => names.has(s.key)).forEach((s) => make(s, byId('charts')));
  const known = new Set(['step', 'tokens', 'seconds', ...KNOWN.map((s) => s.key)]);
  const others = [...names].filter((k) => !known.has(k));
  const grouped = families(others);
  const inCharts = new Set();
  grouped.forEach((members, prefix) => {
    if (members.length < 2 || members.length > MOST_DRAWN && !many) return;
    members.forEach((k) => inCharts.add(k));
    make({ title: `${words(prefix.slice(0, -1))}, each`, prefix, members, smooth: true, wide: true }, byId('families'));
  });
  moreCurves(others.filter((k) => !inCharts.has(k)));
  [['flops', (r) => r.flops && r.tokens], ['tokens', (r) => r.tokens], ['seconds', (r) => r.seconds]].forEach(([v, known]) => {
    document.querySelector(`input[value=${v}]`).disabled = !runs.some(known);
  });
  const form = document.querySelector('.controls');
  form.addEventListener('input', readControls);
  form.addEventListener('submit', (e) => e.preventDefault());
  form.addEventListener('click', (e) => { if (e.target.dataset.move) move(e.target.dataset.move); });
}

if (byId('charts')) curvesSection();
if (many) {
  runsTable(byId('runs'));
  scoresTable(byId('scores'));
  redrawn();
}
if (byId('charts')) readControls();

const dark = matchMedia('(prefers-color-scheme: dark)');
byId('theme').hidden = false;
byId('theme').addEventListener('click', () => {
  const now = root.dataset.theme || (dark.matches ? 'dark' : 'light');
  root.dataset.theme = now === 'dark' ? 'light' : 'dark';
  drawAll();
});
dark.addEventListener('change', drawAll);

// Tables of several runs: filtered, sorted, a part at a time.
const PART = 100;

// columns: [{title, value(row), show(row)}], rows: anything; text(row) is what the filter reads.
function table(section, columns, rows, { text, label, start = null, headers = false }) {
  const filter = element('input', null, { type: 'search', 'aria-label': label });
  const bar = element('label', 'Filter ', { class: 'filter' });
  const told = element('p', null, { class: 'note', 'aria-live': 'polite' });
  const box = element('div', null, { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': label });
  const more = element('button', null, { type: 'button', class: 'more' });
  let order = start, upto = PART;
  bar.append(filter);
  function found() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const out = rows.filter((r) => words.every((w) => text(r).includes(w)));
    if (!order) return out;
    const { value } = columns[order.column];
    const empty = (v) => v == null || v === '';
    return out.map((r) => [value(r), r]).sort(([a], [b]) => {
      if (empty(a) || empty(b)) return empty(a) - empty(b); // last, whichever way
      const n = typeof a === 'number' && typeof b === 'number' ? a - b : String(a).localeCompare(String(b), 'en', { numeric: true });
      return order.down ? -n : n;
    }).map(([, r]) => r);
  }
  function head() {
    const row = element('tr');
    columns.forEach((c, i) => {
      const cell = element('th', null, { scope: 'col' });
      if (c.plain) cell.textContent = c.title;
      else {
        const on = order && order.column === i;
        const button = element('button', c.title + (on ? (order.down ? ' ▾' : ' ▴') : ''), { type: 'button' });
        if (on) cell.setAttribute('aria-sort', order.down ? 'descending' : 'ascending');
        button.addEventListener('click', () => {
          order = { column: i, down: on ? !order.down : false };
          fill();
          box.querySelectorAll('thead th')[i].querySelector('button').focus();
        });
        cell.append(button);
      }
      row.append(cell);
    });
    return row;
  }
  function fill() {
    const some = found(), shown = some.slice(0, upto);
    const out = element('table'), body = element('tbody'), top = element('thead');
    top.append(head());
    shown.forEach((r) => {
      const row = element('tr');
      columns.forEach((c, i) => {
        const cell = headers && i === 0 ? element('th', null, { scope: 'row' }) : element('td');
        const content = c.show ? c.show(r) : c.value(r);
        cell.append(content instanceof Node ? content : content == null ? '' : String(content));
        row.append(cell);
      });
      body.append(row);
    });
    out.append(top, body);
    box.replaceChildren(out);
    const n = some.length.toLocaleString('en'), all = rows.length.toLocaleString('en');
    told.textContent = some.length === rows.length ? '' : `${n} of ${all}`;
    more.hidden = shown.length === some.length;
    more.textContent = `Show ${Math.min(PART, some.length - shown.length)} more of ${n}`;
  }
  filter.addEventListener('input', () => { upto = PART; fill(); });
  more.addEventListener('click', () => { upto += PART; fill(); });
  section.replaceChildren(section.querySelector('h2'), bar, told, box, more);
  section.hidden = false;
  fill();
  return { found, fill };
}

const setting = (run, k) => page.values[k][run.config[k]];
const shown = (v) => (v == null ? '' : v === '' ? "''" : /^-?\d+\.\d{7,}(e-?\d+)?$/.test(v) ? String(+(+v).toPrecision(6)) : v);

function name(run) {
  return run.href ? element('a', run.name, { href: run.href }) : run.name;
}

function tick(i) {
  const box = element('input', null, { type: 'checkbox', 'aria-label': `Draw ${runs[i].name}` });
  box.checked = drawn.has(i);
  box.addEventListener('change', () => {
    if (box.checked && drawn.size >= MOST_DRAWN) {
      box.checked = false;
      return tellDrawn(`At most ${MOST_DRAWN} runs are drawn at a time.`);
    }
    drawn[box.checked ? 'add' : 'delete'](i);
    return redrawn();
  });
  return box;
}

function runsTable(section) {
  const number = (title, key) => ({ title, value: (i) => runs[i][key], show: (i) => (runs[i][key] == null ? '' : compact(runs[i][key])) });
  const columns = [
    { title: 'drawn', value: (i) => (drawn.has(i) ? 0 : 1), show: tick },
    { title: 'run', value: (i) => runs[i].name, show: (i) => name(runs[i]) },
    { title: 'state', value: (i) => runs[i].state },
    number('steps', 'steps'), number('tokens', 'tokens'),
    { title: 'best validation loss', value: (i) => runs[i].best, show: (i) => (runs[i].best == null ? '' : runs[i].best.toFixed(4) + (runs[i].error == null ? '' : ` ± ${runs[i].error.toFixed(4)}`)) },
    number('last validation loss', 'last'), number('last training loss', 'loss'), number('tokens/s', 'speed'),
    ...page.keys.slice(0, 8).map((k, j) => ({ title: k, value: (i) => setting(runs[i], j), show: (i) => shown(setting(runs[i], j)) })),
  ];
  const texts = runs.map((r) => [r.name, r.state, ...page.keys.map((k, j) => `${k}=${setting(r, j) ?? ''}`)].join(' ').toLowerCase());
  const start = runs.length > FIRST_DRAWN ? { column: 5, down: false } : null;
  const made = table(section, columns, runs.map((r, i) => i), { text: (i) => texts[i], label: 'Filter runs by name or setting', start });
  const button = element('button', `Draw the first ${FIRST_DRAWN} of the list`, { type: 'button', id: 'first' });
  button.hidden = runs.length <= FIRST_DRAWN;
  button.addEventListener('click', () => {
    drawn = new Set(made.found().slice(0, FIRST_DRAWN));
    made.fill();
    redrawn();
  });
  section.querySelector('.filter').after(button);
}

const chosen = () => [...drawn].sort((a, b) => a - b).map((i) => runs[i]);

function differences(section) {
  const some = chosen();
  const rows = page.keys.map((k, j) => j).filter((j) => new Set(some.map((r) => r.config[j])).size > 1);
  const columns = [{ title: 'setting', value: (j) => page.keys[j] },
    ...some.map((r) => ({ title: r.name, value: (j) => setting(r, j), show: (j) => shown(setting(r, j)) }))];
  if (rows.length) {
    const text = (j) => [page.keys[j], ...some.map((r) => setting(r, j) ?? '')].join(' ').toLowerCase();
    table(section, columns, rows, { text, label: 'Filter settings', headers: true });
  } else {
    section.hidden = false;
    section.replaceChildren(section.querySelector('h2'), element('p', some.length > 1 ? 'Nothing, between the runs that are drawn.' : 'Draw two runs or more to compare them.'));
  }
}

function scoresTable(section) {
  const rows = runs.map((r, i) => i).filter((i) => runs[i].scores.length);
  if (!rows.length) return;
  const found = runs.map((r) => new Map(r.scores.map(([k, v, e]) => [k, [v, e]])));
  const columns = [{ title: 'run', value: (i) => runs[i].name, show: (i) => name(runs[i]) },
    ...page.scores.map((title, k) => ({ title, value: (i) => (found[i].get(k) || [])[0], show: (i) => {
      const [v, e] = found[i].get(k) || [];
      return v == null ? '' : compact(v) + (e == null ? '' : ` ± ${compact(e)}`);
    } }))];
  table(section, columns, rows, { text: (i) => runs[i].name.toLowerCase(), label: 'Filter runs', headers: true });
}

// What the drawn runs wrote, at one step after the other.
function texts(section) {
  const some = chosen().filter((r) => r.samples.length);
  section.hidden = !some.length;
  if (!some.length) return;
  const steps = [...new Set(some.flatMap((r) => r.samples.map((s) => s[0])))].sort((a, b) => a - b);
  const label = element('label', 'Step ');
  const slider = element('input', null, { type: 'range', min: 0, max: steps.length - 1, step: 1, id: 'sampled' });
  const output = element('output', null, { for: 'sampled' });
  const grid = element('div', null, { class: 'grid' });
  slider.value = steps.length - 1;
  label.append(slider, output);
  const fill = () => {
    const step = steps[slider.value];
    output.textContent = step.toLocaleString('en');
    grid.replaceChildren(...some.map((r) => {
      const [at, prompt, text] = r.samples.filter((s) => s[0] <= step).pop() || [];
      const figure = element('figure'), pre = element('pre', null, { class: 'sample' });
      if (at != null) pre.append(element('b', prompt), text.startsWith(prompt) ? text.slice(prompt.length) : text);
      figure.append(element('h3', at == null ? `${r.name}: none so early` : `${r.name}, step ${at.toLocaleString('en')}`), pre);
      return figure;
    }));
  };
  slider.addEventListener('input', fill);
  section.replaceChildren(section.querySelector('h2'), label, grid);
  fill();
}

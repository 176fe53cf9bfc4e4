// Filters, sorting, tables and charts over the figures that Python embedded, whose texts are Python's too.

const byId = (id) => document.getElementById(id);

async function unpack(id) {
  const bytes = Uint8Array.from(atob(byId(id).textContent), (character) => character.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

const { keys, figures, texts, columns, tables, labels, filters, models, markers, stages, searches } = JSON.parse(await unpack("data"));
const count = labels.length;
const all = [...Array(count).keys()];
const form = byId("filters");
const [TABLE_ROWS, CHART_ROWS, ALONE, PANELS, LINES] = [100, 60, 36, 12, 36]; // more than this at once cannot be read
let shown = all;
let Plotly = null;

// ---- Figures as text ------------------------------------------------------------------------------------------------

const value = (column, trial) => figures[column][trial] ?? null;
const finished = (trial) => value("status", trial) === "ok";
const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const label = (trial, separator = " · ") => labels[trial].map(escaped).join(separator);
const text = (trial, column) => {
  const [figure, interval] = (texts[column][trial] || "not measured").split("\t");
  return escaped(interval ? `${figure} (${interval})` : figure);
};

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, content] of Object.entries(attributes)) element.setAttribute(name, content);
  element.append(...children);
  return element;
}

function marker(backend, fill = "") {
  const { path, colour } = markers[backend];
  const box = make("span", { class: "marker" });
  const ink = `var(--series-${colour})`;
  box.innerHTML = shape(path, ink, fill);
  return box.firstChild;
}

// fill: "" solid, "-open", "-dot", "-open-dot", as Plotly's symbols
const shape = (path, ink, fill) => `<svg class="marker" viewBox="0 0 16 16" aria-hidden="true"><path d="${path}" stroke="${ink}" stroke-width="1.6" ` +
  `fill="${fill.includes("open") ? "none" : ink}"/>${fill.includes("dot") ? `<circle cx="8" cy="8" r="1.8" fill="${fill.includes("open") ? ink : "var(--paper)"}"/>` : ""}</svg>`;
const FILLS = ["", "-open", "-open-dot", "-dot"];
const fillOf = (model) => FILLS[models.indexOf(model) % FILLS.length];

// ---- Views: what is drawn when it comes near the window, and again when the selection changed -------------------------

const views = new Map(); // element → { draw, stale, near }
const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const view = views.get(target);
    view.near = isIntersecting;
    refresh(view);
  }
}, { rootMargin: "600px" });

function addView(element, draw) {
  views.set(element, { draw, stale: true, near: false });
  observer.observe(element);
}

function refresh(view) {
  if (!view.stale || !view.near) return;
  view.stale = false;
  view.draw();
}

function redraw(everything = false) {
  for (const view of views.values()) {
    view.stale = true;
    if (everything) { view.stale = false; view.draw(); } else refresh(view);
  }
}

// ---- Filters, kept in the address -----------------------------------------------------------------------------------

function readHash() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  for (const box of form.querySelectorAll("input")) {
    box.checked = !wanted.has(box.name) || wanted.getAll(box.name).includes(box.value);
  }
  const trial = keys.indexOf(wanted.get("trial"));
  if (trial >= 0) openTrial(trial);
}

function writeHash(trial = null) {
  const wanted = new URLSearchParams();
  for (const name of Object.keys(filters)) {
    const boxes = [...form.querySelectorAll(`input[name=${name}]`)];
    const checked = boxes.filter((box) => box.checked);
    if (checked.length === boxes.length) continue;
    for (const box of checked) wanted.append(name, box.value);
    if (!checked.length) wanted.append(name, "");
  }
  if (trial !== null) wanted.append("trial", keys[trial]);
  const hash = wanted.toString();
  if (hash !== location.hash.slice(1)) history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
}

function select() {
  const off = [...form.querySelectorAll("input")].filter((box) => !box.checked);
  const hidden = new Set(off.map((box) => `${box.name} ${box.value}`));
  const names = Object.keys(filters);
  shown = all.filter((trial) => !names.some((name) => hidden.has(`${name} ${value(name, trial)}`)));
  byId("selection").textContent = off.length ? `${shown.length} of ${count} trials` : "";
  byId("all").hidden = !off.length;
  redraw();
}

form.addEventListener("change", () => { select(); writeHash(); });
form.addEventListener("reset", () => setTimeout(() => { select(); writeHash(); }));
form.addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", () => { readHash(); select(); });
if (innerWidth < 640) byId("filter-box").open = false;

// ---- Tables ---------------------------------------------------------------------------------------------------------

for (const box of document.querySelectorAll("[data-table]")) addTable(box);

function addTable(box) {
  const name = box.dataset.table;
  const state = { column: null, ascending: true, rows: TABLE_ROWS };
  const heading = (column, title, meaning) => {
    const cell = make("th", { scope: "col", "data-sort": column, title: meaning }, make("button", {}, title));
    cell.addEventListener("click", () => {
      Object.assign(state, { ascending: state.column !== column || !state.ascending, column });
      for (const other of head.cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", state.ascending ? "ascending" : "descending");
      draw();
    });
    return cell;
  };
  const head = make("tr", {}, heading("label", "Trial", "what was run"),
    ...tables[name].map((column) => heading(column, columns[column].title, columns[column].meaning + (columns[column].unit ? ` [${columns[column].unit}]` : ""))));
  const body = make("tbody");
  const more = make("button", { class: "link more" });
  more.addEventListener("click", () => { state.rows = Infinity; draw(); });
  box.append(make("table", { id: `table-${name}`, "aria-labelledby": `caption-${name}` }, make("thead", {}, head), body), more);

  function draw() {
    const key = state.column === "label" ? (trial) => labels[trial].join(" ") : (trial) => value(state.column, trial);
    const trials = shown.filter((trial) => name === "summary" || ((name === "failures") !== finished(trial) && tables[name].some((column) => value(column, trial) !== null)));
    if (state.column) {
      trials.sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === null || y === null) return (x === null) - (y === null); // not measured: last, both ways
        return (x < y ? -1 : x > y ? 1 : 0) * (state.ascending ? 1 : -1);
      });
    }
    more.hidden = trials.length <= state.rows;
    more.textContent = `Show all ${trials.length} rows`;
    body.replaceChildren(...trials.slice(0, state.rows).map((trial) => row(trial, tables[name])));
  }
  addView(box, draw);
}

const isWords = (column) => figures[column].some((figure) => typeof figure === "string");

function row(trial, names) {
  const button = make("button", { class: "open", title: "All that is known of this trial" }, labels[trial][0]);
  button.addEventListener("click", () => { openTrial(trial); writeHash(trial); });
  const first = make("th", { scope: "row" }, marker(labels[trial][0], fillOf(value("model", trial))), " ", button);
  if (labels[trial].length > 1) first.append(make("small", {}, labels[trial].slice(1).join(" · ")));
  return make("tr", { "data-trial": trial }, first, ...names.map((column) => {
    const [figure, interval] = texts[column][trial].split("\t");
    const cell = make("td", isWords(column) ? { class: "words" } : {}, figure);
    if (column === "status") cell.classList.add(`status-${figure}`);
    if (interval) cell.append(make("small", {}, interval));
    return cell;
  }));
}

// ---- One trial, with its raw record ---------------------------------------------------------------------------------

let records = null;

async function openTrial(trial) {
  records ??= JSON.parse(await unpack("records"));
  const record = records[trial];
  byId("trial-title").replaceChildren(marker(labels[trial][0], fillOf(value("model", trial))), ` ${labels[trial].join(" · ")}`);
  const body = byId("trial-body");
  body.replaceChildren(make("p", { class: `status-${record.status}` }, [record.status, record.reason].filter(Boolean).join(": ")));
  if (record.command) body.append(make("pre", {}, record.command));
  const facts = make("div", { class: "cards" });
  for (const part of ["parameters", "security", "operations", "notes", "network", "conditions"]) {
    const entries = Object.entries(record[part] || {});
    if (!entries.length) continue;
    const list = make("dl");
    for (const [name, fact] of entries) {
      const words = typeof fact === "object" ? JSON.stringify(fact).replace(/"/g, "").replace(/,/g, ", ") : String(fact);
      list.append(make("div", {}, make("dt", {}, name.replace(/_/g, " ")), make("dd", {}, words)));
    }
    facts.append(make("article", {}, make("h3", {}, part), list));
  }
  const address = `records/${encodeURIComponent(record.key)}.json`;
  body.append(facts, make("h3", {}, "Raw record, ", make("a", { href: address }, address)), make("pre", { class: "raw" }, JSON.stringify(record, null, 1)));
  if (!byId("trial").open) byId("trial").showModal();
  byId("trial").scrollTop = 0;
}

byId("trial").addEventListener("close", () => writeHash());
byId("trial").addEventListener("click", (event) => { if (event.target === byId("trial")) byId("trial").close(); });

// ---- Charts ---------------------------------------------------------------------------------------------------------

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const narrow = () => innerWidth < 640;
const SECONDS = [[1e-9, "ns"], [1e-6, "µs"], [1e-3, "ms"], [1, "s"]];
const BYTES = [[1, "B"], [1e3, "kB"], [1e6, "MB"], [1e9, "GB"]];
const PLAIN = [[1, ""]];

function tick(number, units) {
  const [factor, unit] = [...units].reverse().find(([factor]) => number >= factor * 0.999) || units[0];
  const digits = String(+(number / factor).toPrecision(3)).replace(/\B(?=(\d{3})+$)(?<!\.\d*)/g, "\u202f");
  return `${digits} ${unit}`.trim();
}

// A logarithmic axis over `values` with whole decades, or 1-2-5 steps where there are few, at most one a 70 px.
function logAxis(values, units, pixels) {
  let [low, high] = [Math.log10(Math.min(...values)), Math.log10(Math.max(...values))];
  const padding = Math.max(0.08 * (high - low), 0.12);
  [low, high] = [low - padding, high + padding];
  if (high - low < 1) [low, high] = [(low + high) / 2 - 0.5, (low + high) / 2 + 0.5];
  const room = Math.max(2, Math.floor(pixels / 70));
  const decades = [];
  for (let power = Math.ceil(low); power <= high; power++) decades.push(power);
  const step = Math.ceil(decades.length / room);
  let ticks = decades.filter((power) => power % step === 0).map((power) => 10 ** power);
  if (decades.length <= room / 3) {
    ticks = [];
    for (let power = Math.floor(low); power <= high; power++) ticks.push(...[1, 2, 5].map((digit) => digit * 10 ** power));
    ticks = ticks.filter((number) => Math.log10(number) >= low && Math.log10(number) <= high);
  }
  return { type: "log", range: [low, high], tickvals: ticks, ticktext: ticks.map((number) => tick(number, units)) };
}

function axis(options) {
  return {
    showline: true, linecolor: css("--rule"), gridcolor: css("--rule"), gridwidth: 0.5, zeroline: false, ticks: "outside",
    ticklen: 4, tickcolor: css("--rule"), fixedrange: true, automargin: true, ...options,
  };
}
const axisTitle = (text) => ({ text, font: { size: 13, color: css("--muted") }, standoff: 8 });

const limit = (drawn, of, what) => (drawn < of ? `${drawn} of ${of} ${what} are drawn: filter to see the others.` : "");

function plot(id, traces, layout, note = "") {
  const chart = byId(id);
  byId(`${id}-note`).textContent = note;
  chart.classList.toggle("empty", !traces);
  if (!traces) {
    Plotly.purge(chart);
    chart.replaceChildren("No finished trial in this selection has these figures.");
    return;
  }
  if (!chart.classList.contains("js-plotly-plot")) chart.replaceChildren();
  Plotly.react(chart, traces, {
    font: { family: css("--sans"), size: narrow() ? 12 : 13, color: css("--ink") },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 10, r: 12, t: 10, b: 10 },
    hoverlabel: { bgcolor: css("--soft"), bordercolor: css("--rule"), font: { color: css("--ink"), family: css("--sans") }, align: "left" },
    legend: { orientation: "h", traceorder: "normal", x: 0, y: 1, yanchor: "bottom", xanchor: "left" }, dragmode: false, width: chart.clientWidth, ...layout,
  }, { displayModeBar: false });
}

// Bars from the ends of the intervals: figure(item), figure(item, "low"), figure(item, "high"); none where null.
function errorBars(items, figure) {
  const side = (end, sign) => items.map((t) => (figure(t, end) === null ? null : Math.max(0, sign * (figure(t, end) - figure(t)))));
  return { type: "data", symmetric: false, array: side("high", 1), arrayminus: side("low", -1), thickness: 1, width: 3 };
}

const varying = (names, trials) => names.filter((name) => new Set(trials.map((t) => value(name, t))).size > 1);
const words = (name, trial) => ({ threads: `threads ${value(name, trial)}`, model_privacy: value(name, trial) === "encrypted" ? "encrypted model" : "" })[name] ?? String(value(name, trial));

// ---- Accuracy against latency ---------------------------------------------------------------------------------------

const diameter = (bytes) => Math.max(9, 6 + 4.5 * Math.log10(Math.max(bytes, 1000) / 1000));
const unlike = ["scenario", "model_privacy", "threads", "host"]; // trials that differ in these stand in panels of their own

// One panel for each kind of work: only what did the same work can be compared. Tasks side by side, the rest beneath.
function drawPareto() {
  const choice = byId("latency").value;
  const perImage = choice === "per_image";
  const column = (perImage ? "server_wall_s_median" : choice).replace("_median", "");
  const latency = (trial, end = "median") => {
    const seconds = value(`${column}_${end}`, trial);
    return seconds === null ? null : seconds / (perImage ? value("batch", trial) : 1);
  };
  const accuracy = (trial, end = "") => value(`accuracy_encrypted${end && "_"}${end}`, trial);
  const trials = shown.filter((t) => finished(t) && latency(t) > 0 && accuracy(t) !== null);
  drawLegend(trials);
  if (!trials.length) return plot("chart-pareto", null);

  const rank = (t) => unlike.map((name) => ({ "single-stream": "0", plain: "0" })[value(name, t)] || String(value(name, t))).join("\n");
  const apart = [...varying(unlike, trials), ...varying(["task"], trials)];
  const panels = new Map();
  for (const trial of [...trials].sort((a, b) => (rank(a) < rank(b) ? -1 : rank(a) > rank(b) ? 1 : value("task", a) < value("task", b) ? -1 : 1))) {
    const title = [...apart].reverse().map((name) => words(name, trial)).filter(Boolean).join(" · ") || value("task", trial);
    panels.set(title, [...(panels.get(title) || []), trial]);
  }
  const titles = [...panels.keys()].slice(0, PANELS);
  const width = byId("chart-pareto").clientWidth;
  const fit = Math.min(titles.length, Math.max(1, Math.floor(width / 330)));
  const taskCount = new Set(trials.map((t) => value("task", t))).size;
  const across = taskCount > 1 && taskCount <= fit ? taskCount : fit;
  const down = Math.ceil(titles.length / across);
  const height = down * (down > 1 ? 300 : 330) + 40;
  const gap = { x: across > 1 ? 62 / width : 0, y: down > 1 ? 70 / height : 0 };
  const cell = { width: (1 - gap.x * (across - 1)) / across, height: (1 - gap.y * (down - 1)) / down };
  const layout = { height, annotations: [], showlegend: false, margin: { l: 10, r: 12, t: 26, b: 10 } };
  const traces = [];

  titles.forEach((title, index) => {
    const here = panels.get(title);
    const known = here.filter((t) => value("telling", t));
    const [row, col] = [Math.floor(index / across), index % across];
    const suffix = index ? index + 1 : "";
    const [left, top] = [col * (cell.width + gap.x), 1 - row * (cell.height + gap.y)];
    const axes = { xaxis: `x${suffix}`, yaxis: `y${suffix}` };
    const inRow = titles.slice(row * across, (row + 1) * across).flatMap((other) => panels.get(other));
    const xAxis = logAxis(inRow.flatMap((t) => ["low", "median", "high"].map((end) => latency(t, end))).filter((seconds) => seconds > 0), SECONDS, width * cell.width);
    const heights = [...known.flatMap((t) => [accuracy(t, "low"), accuracy(t, "high")]), ...here.map((t) => accuracy(t))];
    const [low, high] = [Math.min(...heights), Math.max(...heights)];
    const padding = 0.06 * (high - low) + 0.01;
    const yRange = [low - padding, high + padding];
    layout[`xaxis${suffix}`] = axis({ ...xAxis, domain: [left, left + cell.width], anchor: `y${suffix}`,
      title: index + across >= titles.length ? axisTitle(byId("latency").selectedOptions[0].text) : undefined });
    layout[`yaxis${suffix}`] = axis({ domain: [Math.max(0, top - cell.height), top], anchor: `x${suffix}`, range: yRange,
      tickformat: ".2f", nticks: 6, title: col ? undefined : axisTitle("accuracy, encrypted") });
    layout.annotations.push({ text: `<b>${escaped(title)}</b>`, xref: `x${suffix} domain`, yref: `y${suffix} domain`, x: 0, y: 1,
      xanchor: "left", yanchor: "bottom", showarrow: false, font: { size: narrow() ? 11 : 13 } });

    const frontier = paretoFrontier(known, latency);
    if (frontier.length > 1) {
      traces.push({ ...axes, x: frontier.map((t) => latency(t)), y: frontier.map((t) => accuracy(t)), mode: "lines",
        line: { color: css("--muted"), width: 1.5, dash: "dash", shape: "hv" }, hoverinfo: "skip" });
    }
    traces.push({ ...axes, x: frontier.map((t) => latency(t)), y: frontier.map((t) => accuracy(t)), mode: "markers", hoverinfo: "skip",
      marker: { symbol: "circle-open", color: css("--ink"), size: frontier.map((t) => diameter(value("request_bytes", t) || 0) + 10), line: { width: 1.2 } } });
    const pixel = (t) => [(Math.log10(latency(t)) - xAxis.range[0]) / (xAxis.range[1] - xAxis.range[0]) * width * cell.width,
      (yRange[1] - accuracy(t)) / (yRange[1] - yRange[0]) * (height - 60) * cell.height];
    const names = frontier.map((t) => ({ trial: t, words: [value("backend", t), ...(models.length > 1 ? [value("model", t)] : [])].map(escaped).join(" ") }));
    for (const { trial, words, x, y, left } of placed(names, here, pixel, width * cell.width)) {
      layout.annotations.push({ text: words, xref: `x${suffix}`, yref: `y${suffix}`, x: Math.log10(latency(trial)), y: accuracy(trial), xshift: x, yshift: y,
        xanchor: left ? "right" : "left", yanchor: "middle", showarrow: false, font: { size: 12 }, name: "frontier" });
    }
    for (const backend of filters.backend) {
      const points = here.filter((trial) => value("backend", trial) === backend);
      if (!points.length) continue;
      const color = css(`--series-${markers[backend].colour}`);
      const fills = points.map((t) => fillOf(value("model", t)));
      traces.push({
        ...axes, x: points.map((t) => latency(t)), y: points.map((t) => accuracy(t)), name: escaped(backend), mode: "markers",
        marker: { color, opacity: points.map((t) => (known.includes(t) ? 0.9 : 0.4)), size: points.map((t) => diameter(value("request_bytes", t) || 0)),
          symbol: fills.map((fill) => markers[backend].symbol + fill), line: { width: fills.map((fill) => (fill.includes("open") ? 2 : 1)), color: css("--paper") } },
        error_x: { ...errorBars(points, latency), color },
        error_y: { ...errorBars(points, (t, end = "") => (end && !known.includes(t) ? null : accuracy(t, end))), color },
        hovertemplate: points.map((t) => `<b>${label(t)}</b><br>accuracy ${text(t, "accuracy_encrypted")}<br>server ${text(t, "server_wall_s_median")}` +
          `<br>round trip ${text(t, "request_wall_s_median")}<br>request ${text(t, "request_bytes")}, batch ${text(t, "batch")}` +
          `${frontier.includes(t) ? "<br>on the Pareto frontier" : ""}<extra></extra>`),
      });
    }
  });
  plot("chart-pareto", traces, layout, limit(titles.length, panels.size, "panels"));
}

// Trials that no other encrypted trial beats in both accuracy and latency, by latency.
function paretoFrontier(trials, latency) {
  const encrypted = trials.filter((trial) => value("encrypted", trial));
  const order = [...encrypted].sort((a, b) => latency(a) - latency(b) || value("accuracy_encrypted", b) - value("accuracy_encrypted", a));
  let best = -1;
  return order.filter((trial) => value("accuracy_encrypted", trial) > best && ((best = value("accuracy_encrypted", trial)), true));
}

// Where the names of points may stand without covering a marker, an interval or another name; a name without room is left out.
function placed(names, trials, pixel, width) {
  const taken = trials.map((trial) => {
    const [[x, y], half] = [pixel(trial), diameter(value("request_bytes", trial) || 0) / 2 + 2];
    return [x - half, y - half, x + half, y + half];
  });
  const bars = trials.map((trial) => pixel(trial)[0]);
  const found = [];
  for (const { trial, words } of names) {
    const [[x, y], half] = [pixel(trial), diameter(value("request_bytes", trial) || 0) / 2 + 8];
    const long = 6.6 * words.length + 4;
    const spots = [[half, 0], [-half, 0], [half, half + 6], [half, -half - 6], [-half, half + 6], [-half, -half - 6], [half, 26], [half, -26], [-half, 26], [-half, -26]];
    for (const [dx, dy] of spots) {
      const left = dx < 0;
      const box = [x + dx - (left ? long : 0), y - dy - 8, x + dx + (left ? 0 : long), y - dy + 8];
      const free = box[0] >= 0 && box[2] <= width && box[1] >= 0 && taken.every((other) => box[2] < other[0] || box[0] > other[2] || box[3] < other[1] || box[1] > other[3]);
      if (!free || bars.some((bar) => bar > box[0] && bar < box[2] && Math.abs(bar - x) > 1)) continue;
      taken.push(box);
      found.push({ trial, words, x: dx, y: dy, left });
      break;
    }
  }
  return found;
}

// Symbols of the backends, fills of the models and sizes of the requests that the chart has.
function drawLegend(trials) {
  const entry = (drawing, words) => make("span", {}, drawing, ` ${words}`);
  const has = (name) => filters[name].filter((each) => trials.some((t) => String(value(name, t)) === each));
  const circle = (size) => {
    const box = make("span");
    box.innerHTML = `<svg width="${size}" height="${size}" class="bubble" aria-hidden="true"><circle cx="${size / 2}" cy="${size / 2}" r="${size / 2}" fill="currentColor" opacity=".5"/></svg>`;
    return box.firstChild;
  };
  const fill = (model) => {
    const box = make("span");
    box.innerHTML = shape(markers[filters.backend[0]].path, "var(--muted)", fillOf(model));
    return box.firstChild;
  };
  byId("legend").replaceChildren(
    ...has("backend").map((backend) => entry(marker(backend), backend)),
    ...(models.length > 1 ? has("model").map((model) => entry(fill(model), model)) : []),
    ...[1e4, 1e6, 1e8].map((bytes) => entry(circle(diameter(bytes)), tick(bytes, BYTES))),
  );
}

// ---- Charts with one row a trial ------------------------------------------------------------------------------------

// Rows of a chart: a trial each or, of very many, medians over the tasks and seeds of the same configuration.
function rowsOf(trials, together = true) {
  if (trials.length <= ALONE || !together) return { rows: trials.slice(0, CHART_ROWS).map((t) => ({ trials: [t], parts: labels[t] })), note: limit(Math.min(trials.length, CHART_ROWS), trials.length, "trials") };
  const names = ["model", "scenario", "model_privacy", "threads", "host"].filter((name) => filters[name].length > 1);
  const groups = new Map();
  for (const trial of trials) {
    const parts = [value("backend", trial), ...names.map((name) => words(name, trial)).filter(Boolean)];
    const group = groups.get(parts.join("\n")) || { parts, trials: [] };
    group.trials.push(trial);
    groups.set(parts.join("\n"), group);
  }
  const rows = [...groups.values()].slice(0, CHART_ROWS);
  return { rows, note: `Each row is the median of the trials of one configuration over tasks and seeds (${trials.length} trials). ${limit(rows.length, groups.size, "configurations")}` };
}

function medianOf(column, row) {
  const known = row.trials.map((trial) => value(column, trial)).filter((figure) => figure !== null).sort((a, b) => a - b);
  return known.length ? (known[(known.length - 1) >> 1] + known[known.length >> 1]) / 2 : null;
}
const rowName = (row, separator = " · ") => row.parts.map(escaped).join(separator);
const rowText = (row, column, units) => (row.trials.length === 1 ? text(row.trials[0], column) : medianOf(column, row) === null ? "not measured" : tick(medianOf(column, row), units));

function rowLayout(rows, height, options) {
  return {
    height: Math.max(150, rows.length * height + 90), hovermode: "closest",
    yaxis: axis({ tickvals: rows.map((_, i) => i), ticktext: rows.map((row) => rowName(row, narrow() ? "  <br>" : " · ") + "  "), range: [rows.length - 0.5, -0.5],
      showgrid: false, showline: false, ticks: "" }),
    ...options,
  };
}
const rowHeight = (rows) => (narrow() ? 10 + 16 * Math.max(...rows.map((row) => row.parts.length)) : 30);

function drawStages() {
  const names = Object.keys(stages).filter((name) => shown.some((t) => value(`${name}_wall_s_median`, t) !== null));
  const share = byId("stages").value === "share";
  const { rows, note } = rowsOf(shown.filter((t) => finished(t) && names.some((name) => value(`${name}_wall_s_median`, t))));
  if (!rows.length) return plot("chart-stages", null);
  const seconds = (name, row) => medianOf(`${name}_wall_s_median`, row) || 0;
  const totals = rows.map((row) => names.reduce((sum, name) => sum + seconds(name, row), 0));
  const looks = {
    encode: ["--client-4", "+"], encrypt: ["--client-1", "/"], serialise_request: ["--client-2", "."], deserialise_request: ["--server-1", ""],
    infer: ["--server-2", ""], serialise_response: ["--server-3", ""], deserialise_response: ["--client-3", "x"], decrypt: ["--client-4", "\\"],
  };
  const traces = names.map((name) => ({
    type: "bar", orientation: "h", name: name.replace(/_/g, " "), y: rows.map((_, i) => i), width: 0.62,
    x: rows.map((row, i) => seconds(name, row) / (share ? totals[i] : 1)),
    marker: { color: css(looks[name][0]), line: { width: 0.5, color: css("--paper") }, pattern: { shape: looks[name][1], fillmode: "overlay", size: 6, solidity: 0.25, fgcolor: css("--ink"), fgopacity: 0.55 } },
    hovertemplate: rows.map((row, i) => `<b>${rowName(row)}</b><br>${stages[name]}: ${name.replace(/_/g, " ")} ${rowText(row, `${name}_wall_s_median`, SECONDS)}` +
      `<br>${(100 * seconds(name, row) / totals[i]).toPrecision(3)} % of ${tick(totals[i], SECONDS)}<extra></extra>`),
  }));
  traces.push({ x: rows.map((_, i) => (share ? 1 : totals[i])), y: rows.map((_, i) => i), mode: "text", textposition: "middle right",
    text: rows.map((row) => ` ${rowText(row, "request_wall_s_median", SECONDS).split(" (")[0]}`), hoverinfo: "skip", showlegend: false, cliponaxis: false });
  const most = share ? 1 : Math.max(...totals);
  plot("chart-stages", traces, rowLayout(rows, rowHeight(rows), {
    barmode: "stack", bargap: 0.3,
    xaxis: axis({ range: [0, most * (narrow() ? 1.35 : 1.12)], tickformat: share ? ".0%" : "", ticksuffix: share ? "" : " s",
      tickvals: share ? (narrow() ? [0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1]) : undefined, nticks: narrow() ? 3 : undefined }),
  }), note);
}

function dots(id, series, { units, axisOf, interval = false, dodge = 0, together = true, height = 30 }) {
  const { rows, note } = rowsOf(shown.filter((t) => finished(t) && series.some(({ column }) => value(column, t) !== null)), together);
  if (!rows.length) return plot(id, null);
  const shift = (index) => dodge * (index - (series.length - 1) / 2);
  const traces = series.map(({ column, name, symbol, colour }, index) => ({
    x: rows.map((row) => medianOf(column, row)), y: rows.map((_, i) => i + shift(index)), name, mode: "markers",
    marker: { symbol, size: 10, color: css(colour), line: { width: 1, color: css("--paper") } },
    error_x: interval ? { ...errorBars(rows, (row, end = "") => medianOf(`${column}${end && "_"}${end}`, row)), color: css(colour) } : undefined,
    hovertemplate: rows.map((row) => `<b>${rowName(row)}</b><br>${name} ${rowText(row, column, units)}<extra></extra>`),
  }));
  const known = traces.flatMap((trace) => trace.x).filter((x) => x > 0);
  const shapes = rows.map((_, i) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: i, y1: i, line: { color: css("--rule"), width: 1, dash: "dot" }, layer: "below" }));
  plot(id, traces, rowLayout(rows, Math.max(height, rowHeight(rows)), { shapes, showlegend: series.length > 1, xaxis: axis(axisOf(known, byId(id).clientWidth * (narrow() ? 0.55 : 0.75))) }), note);
}

const drawThroughput = () => dots("chart-throughput", [{ column: "throughput_images_per_s", name: "images per second", symbol: "diamond", colour: "--series-1" }],
  { units: PLAIN, axisOf: (values, pixels) => ({ ...logAxis(values, PLAIN, pixels), title: axisTitle("images per second") }) });

const drawSizes = () => dots("chart-sizes", [
  { column: "public_key_bytes", name: "public key", symbol: "star-square", colour: "--series-5" },
  { column: "evaluation_key_bytes", name: "evaluation keys", symbol: "square", colour: "--series-4" },
  { column: "request_bytes", name: "request", symbol: "triangle-right", colour: "--series-1" },
  { column: "response_bytes", name: "response", symbol: "triangle-left", colour: "--series-2" },
], { units: BYTES, axisOf: (values, pixels) => logAxis(values, BYTES, pixels) });

const drawMemory = () => dots("chart-memory", [
  { column: "client_peak_rss_bytes", name: "client", symbol: "circle", colour: "--series-1" },
  { column: "server_peak_rss_bytes", name: "server", symbol: "square", colour: "--series-2" },
], { units: BYTES, axisOf: (values) => {
  const most = Math.max(...values) * 1.06;
  const step = [1, 2, 5, 10].map((digit) => digit * 10 ** Math.floor(Math.log10(most / 4))).find((size) => most / size <= (narrow() ? 3 : 8));
  const ticks = [...Array(Math.floor(most / step) + 1).keys()].map((i) => i * step);
  return { range: [0, most], tickvals: ticks, ticktext: ticks.map((bytes) => (bytes ? tick(bytes, BYTES) : "0")) };
} });

const drawAccuracy = () => dots("chart-accuracy", [
  { column: "accuracy_float", name: "float, clear", symbol: "circle-open", colour: "--series-0" },
  { column: "accuracy_lowered", name: "lowered, clear", symbol: "diamond", colour: "--series-5" },
  { column: "accuracy_encrypted", name: "lowered, encrypted", symbol: "square", colour: "--series-1" },
], { units: PLAIN, interval: true, dodge: 0.22, together: false, height: 44, axisOf: (values) => ({ tickformat: ".2f", nticks: narrow() ? 4 : 8, title: axisTitle("accuracy"), range: tellingRange(values) }) });

// Of accuracies and the intervals of those over enough images, so that one of three images does not squeeze the others.
function tellingRange(points) {
  const telling = shown.filter((t) => finished(t) && value("telling", t));
  const ends = ["float", "lowered", "encrypted"].flatMap((step) => telling.flatMap((t) => ["low", "high"].map((end) => value(`accuracy_${step}_${end}`, t))));
  const known = [...points, ...ends].filter((figure) => figure !== null);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  return [low - 0.03 * (high - low), high + 0.03 * (high - low)];
}

// ---- Cost of a query when the keys are shared by many ------------------------------------------------------------------

function drawAmortised() {
  const bytes = byId("amortised").value === "bytes";
  const [once, each] = bytes ? [["evaluation_key_bytes", "public_key_bytes"], ["request_bytes", "response_bytes"]]
    : [["keygen_wall_s", "load_keys_wall_s"], ["request_wall_s_median"]];
  const names = ["scenario", "model_privacy", "threads", "host"].filter((name) => filters[name].length > 1);
  const groups = new Map();
  for (const trial of shown.filter((t) => finished(t) && value("encrypted", t) && value("batch", t) && each.every((column) => value(column, t) !== null))) {
    const parts = [value("backend", trial), ...names.map((name) => words(name, trial)).filter(Boolean)];
    const identity = [value("model", trial), ...parts].join("\n");
    const group = groups.get(identity) || { parts, trials: [], model: value("model", trial) };
    group.trials.push(trial);
    groups.set(identity, group);
  }
  const rows = [...groups.values()].slice(0, LINES);
  if (!rows.length) return plot("chart-amortised", null);
  const units = bytes ? BYTES : SECONDS;
  const images = [...Array(25).keys()].map((i) => Math.round(10 ** (i / 4)));
  const sum = (from, row) => from.reduce((total, column) => total + (medianOf(column, row) || 0), 0);
  const cost = (row) => images.map((n) => (sum(once, row) + Math.ceil(n / medianOf("batch", row)) * sum(each, row)) / n);
  const panels = [...new Set(rows.map((row) => row.model))];
  const width = byId("chart-amortised").clientWidth;
  const across = Math.min(panels.length, Math.max(1, Math.floor(width / 330)));
  const down = Math.ceil(panels.length / across);
  const listed = new Set(rows.map((row) => rowName(row))).size;
  const legend = 24 * Math.ceil(listed / Math.max(1, Math.floor(width / 260)));
  const height = down * 300 + 60 + legend;
  const gap = { x: across > 1 ? 62 / width : 0, y: down > 1 ? 70 / height : 0 };
  const cell = { width: (1 - gap.x * (across - 1)) / across, height: (1 - gap.y * (down - 1)) / down };
  const yAxis = logAxis(rows.flatMap(cost), units, 500);
  const layout = { height, annotations: [], margin: { l: 10, r: 12, t: 30 + legend, b: 10 }, hovermode: "closest",
    legend: { orientation: "h", traceorder: "normal", x: 0, xanchor: "left", y: 1 + 26 / (down * 300), yanchor: "bottom" } };
  const named = new Set();
  const traces = rows.map((row) => {
    const trial = row.trials[0];
    const suffix = panels.indexOf(row.model) || "";
    const y = cost(row);
    const { symbol, colour } = markers[value("backend", trial)];
    const name = rowName(row);
    const showlegend = !named.has(name);
    named.add(name);
    const dash = value("model_privacy", trial) === "encrypted" ? "dot" : value("scenario", trial) === "single-stream" ? "solid" : "dash";
    return { x: images, y, name, legendgroup: name, showlegend, mode: "lines+markers", xaxis: `x${suffix && suffix + 1}`, yaxis: `y${suffix && suffix + 1}`,
      line: { color: css(`--series-${colour}`), width: 1.6, dash },
      marker: { symbol, size: images.map((_, i) => (i % 4 ? 0 : 8)), color: css(`--series-${colour}`), opacity: 1 },
      hovertemplate: images.map((n, i) => `<b>${name}</b>, ${escaped(row.model)}<br>${tick(n, PLAIN)} images: ${tick(y[i], units)} an image<extra></extra>`) };
  });
  panels.forEach((model, index) => {
    const suffix = index ? index + 1 : "";
    const [left, top] = [(index % across) * (cell.width + gap.x), 1 - Math.floor(index / across) * (cell.height + gap.y)];
    layout[`xaxis${suffix}`] = axis({ ...logAxis(images, PLAIN, width * cell.width), domain: [left, left + cell.width], anchor: `y${suffix}`,
      title: index + across >= panels.length ? axisTitle("images of one client") : undefined });
    layout[`yaxis${suffix}`] = axis({ ...yAxis, domain: [Math.max(0, top - cell.height), top], anchor: `x${suffix}`,
      title: index % across ? undefined : axisTitle(byId("amortised").selectedOptions[0].text) });
    layout.annotations.push({ text: `<b>${escaped(model)}</b>`, xref: `x${suffix} domain`, yref: `y${suffix} domain`, x: 0, y: 1, xanchor: "left", yanchor: "bottom", showarrow: false });
  });
  plot("chart-amortised", traces, layout, limit(rows.length, groups.size, "configurations"));
}

// ---- Searches: not filtered, they are no trials ----------------------------------------------------------------------

function drawSearch(index) {
  const points = searches[index];
  const id = `chart-search-${index}`;
  if (!points.length) return plot(id, null);
  const x = points.map((point) => point.infer_s);
  plot(id, [{
    x, y: points.map((point) => point.accuracy), mode: "markers",
    marker: { size: points.map((point) => diameter(point.key_bytes) / 1.5), color: css("--series-1"), line: { width: 1, color: css("--paper") } },
    hovertemplate: points.map((point) => `<b>${(100 * point.accuracy).toFixed(1)} %, ${tick(point.infer_s, SECONDS)}</b><br>${escaped(point.choices).replace(/((?:[^,]*,){4}) /g, "$1<br>")}<br>keys ${tick(point.key_bytes, BYTES)}<extra></extra>`),
  }], { height: 340, showlegend: false, hovermode: "closest", xaxis: axis({ ...logAxis(x, SECONDS, byId(id).clientWidth), title: axisTitle("inference of an image") }),
    yaxis: axis({ tickformat: ".1%", nticks: 6, title: axisTitle("accuracy, validation") }) });
}

// ---- Start ----------------------------------------------------------------------------------------------------------

readHash();
select();
await new Promise((resolve) => setTimeout(resolve)); // the tables first
document.head.append(make("script", {}, await unpack("plotly")));
Plotly = window.Plotly;

const charts = { pareto: drawPareto, stages: drawStages, throughput: drawThroughput, sizes: drawSizes, memory: drawMemory, accuracy: drawAccuracy, amortised: drawAmortised };
for (const [name, draw] of Object.entries(charts)) addView(byId(`chart-${name}`), draw);
searches.forEach((_, index) => addView(byId(`chart-search-${index}`), () => drawSearch(index)));
byId("latency").addEventListener("change", drawPareto);
byId("stages").addEventListener("change", drawStages);
byId("amortised").addEventListener("change", drawAmortised);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());
addEventListener("beforeprint", () => { document.documentElement.classList.add("paper"); redraw(true); });
addEventListener("afterprint", () => { document.documentElement.classList.remove("paper"); redraw(); });
let [resizing, width] = [0, innerWidth];
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => { if (innerWidth !== width) { width = innerWidth; redraw(); } }, 150);
});
document.documentElement.dataset.ready = "";

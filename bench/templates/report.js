"use strict";
// Filters, sorting and charts over the figures that Python embedded. All text of figures is taken from the tables.

const { figures, labels, filters, markers, stages } = JSON.parse(document.getElementById("data").textContent);
const records = JSON.parse(document.getElementById("records").textContent);
const count = labels.length;
const all = [...Array(count).keys()];
const byId = (id) => document.getElementById(id);
const form = byId("filters");
const [CHART_ROWS, PANELS] = [60, 12]; // more than this in one chart cannot be read: filter
let shown = all;

// ---- Figures as text ------------------------------------------------------------------------------------------------

const texts = new Map();
for (const cell of document.querySelectorAll("td[data-column]")) {
  texts.set(`${cell.parentNode.dataset.trials} ${cell.dataset.column}`,
    [...cell.childNodes].map((node) => node.textContent).join(" | "));
}
const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const text = (trial, column) => {
  const [value, interval] = (texts.get(`${trial} ${column}`) || "").split(" | ");
  return escaped(value ? (interval ? `${value} (${interval})` : value) : "not measured");
};
const value = (column, trial) => figures[column][trial];
const finished = (trial) => value("status", trial) === "ok";
const label = (trial, separator = " · ") => labels[trial].map(escaped).join(separator);

// ---- Filters, kept in the address -----------------------------------------------------------------------------------

function readHash() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  for (const box of form.querySelectorAll("input")) {
    box.checked = !wanted.has(box.name) || wanted.getAll(box.name).includes(box.value);
  }
}

function writeHash() {
  const wanted = new URLSearchParams();
  for (const name of Object.keys(filters)) {
    const boxes = [...form.querySelectorAll(`input[name=${name}]`)];
    const checked = boxes.filter((box) => box.checked);
    if (checked.length === boxes.length) continue;
    for (const box of checked) wanted.append(name, box.value);
    if (!checked.length) wanted.append(name, "");
  }
  const hash = wanted.toString();
  if (hash !== location.hash.slice(1)) history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
}

function select() {
  const off = [...form.querySelectorAll("input")].filter((box) => !box.checked);
  shown = all.filter((trial) => !off.some((box) => String(value(box.name, trial)) === box.value));
  const visible = new Set(shown);
  for (const element of document.querySelectorAll("[data-trials]")) {
    element.hidden = !element.dataset.trials.split(" ").some((trial) => visible.has(+trial));
  }
  byId("selection").textContent = off.length ? `${shown.length} of ${count} trials` : "";
  byId("all").hidden = !off.length;
  writeHash();
  draw();
}

form.addEventListener("change", select);
form.addEventListener("reset", () => setTimeout(select));
form.addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", () => { readHash(); select(); });

// ---- Sorting --------------------------------------------------------------------------------------------------------

for (const heading of document.querySelectorAll("th[data-sort]")) {
  heading.addEventListener("click", () => {
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    const column = heading.dataset.sort;
    const key = column === "label" ? (trial) => labels[trial].join(" ") : (trial) => value(column, trial);
    const order = (a, b) => {
      const [x, y] = [key(+a.dataset.trials), key(+b.dataset.trials)];
      if (x === null || y === null) return (x === null) - (y === null); // not measured: last, both ways
      return (x < y ? -1 : x > y ? 1 : 0) * (ascending ? 1 : -1);
    };
    const table = heading.closest("table");
    for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  });
}

// ---- Charts ---------------------------------------------------------------------------------------------------------

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const narrow = () => innerWidth < 640;
const SECONDS = { units: [[1e-9, "ns"], [1e-6, "µs"], [1e-3, "ms"], [1, "s"]] };
const BYTES = { units: [[1, "B"], [1e3, "kB"], [1e6, "MB"], [1e9, "GB"]] };

function tick(number, { units }) {
  const [factor, unit] = [...units].reverse().find(([factor]) => number >= factor * 0.999) || units[0];
  return `${+(number / factor).toPrecision(3)} ${unit}`.replace(/(\d)(\d{3}) /, "$1\u2009$2 ");
}

// A logarithmic axis over `values` with whole decades, or 1-2-5 steps where there are few, at most one a 70 px.
function logAxis(values, scale, pixels) {
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
  return { type: "log", range: [low, high], tickvals: ticks, ticktext: ticks.map((number) => tick(number, scale)) };
}

function axis(options) {
  return {
    showline: true, linecolor: css("--rule"), gridcolor: css("--rule"), gridwidth: 0.5, zeroline: false, ticks: "outside",
    ticklen: 4, tickcolor: css("--rule"), fixedrange: true, automargin: true, ...options,
  };
}

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

// Bars from the ends of the intervals: figure(trial), figure(trial, "low"), figure(trial, "high"); none where null.
function errorBars(trials, figure) {
  const side = (end, sign) => trials.map((t) => (figure(t, end) === null ? 0 : Math.max(0, sign * (figure(t, end) - figure(t)))));
  return { type: "data", symmetric: false, array: side("high", 1), arrayminus: side("low", -1), thickness: 1, width: 3 };
}

const diameter = (bytes) => Math.max(9, 6 + 4.5 * Math.log10(Math.max(bytes, 1000) / 1000));

// One panel for each kind of work: only what did the same work can be compared.
function drawPareto() {
  const choice = byId("latency").value;
  const perImage = choice === "per_image";
  const column = (perImage ? "server_wall_s_median" : choice).replace("_median", "");
  const share = (trial) => (perImage ? value("batch", trial) : 1);
  const latency = (trial, end = "median") => {
    const seconds = value(`${column}_${end}`, trial);
    return seconds === null ? null : seconds / share(trial);
  };
  const accuracy = (trial) => value("accuracy_encrypted", trial);
  const trials = shown.filter((t) => finished(t) && latency(t) > 0 && accuracy(t) !== null);
  if (!trials.length) return plot("chart-pareto", null);

  const varying = ["task", "model", "scenario", "model_privacy", "threads"].filter((name) => new Set(trials.map((t) => value(name, t))).size > 1);
  const panels = new Map();
  for (const trial of trials) {
    const title = varying.map((name) => (name === "threads" ? `threads ${value(name, trial)}` : value(name, trial))).join(" · ") || value("task", trial);
    panels.set(title, [...(panels.get(title) || []), trial]);
  }
  const titles = [...panels.keys()].slice(0, PANELS);
  const width = byId("chart-pareto").clientWidth;
  const across = Math.min(titles.length, Math.max(1, Math.floor(width / 330)));
  const down = Math.ceil(titles.length / across);
  const height = down * (down > 1 ? 300 : 380) + 40;
  const gap = { x: across > 1 ? 62 / width : 0, y: down > 1 ? 70 / height : 0 };
  const cell = { width: (1 - gap.x * (across - 1)) / across, height: (1 - gap.y * (down - 1)) / down };
  const latencies = trials.flatMap((t) => ["low", "median", "high"].map((end) => latency(t, end))).filter((seconds) => seconds > 0);
  const xAxis = logAxis(latencies, SECONDS, width * cell.width);
  const quiet = { size: 13, color: css("--muted") };
  const layout = { height, annotations: [], showlegend: false, margin: { l: 10, r: 12, t: 26, b: 10 } };
  const traces = [];

  titles.forEach((title, index) => {
    const here = panels.get(title);
    const [row, col] = [Math.floor(index / across), index % across];
    const suffix = index ? index + 1 : "";
    const [left, top] = [col * (cell.width + gap.x), 1 - row * (cell.height + gap.y)];
    const axes = { xaxis: `x${suffix}`, yaxis: `y${suffix}` };
    const sameTask = trials.filter((trial) => value("task", trial) === value("task", here[0]));
    const [low, high] = [Math.min(...sameTask.map((t) => value("accuracy_encrypted_low", t))), Math.max(...sameTask.map((t) => value("accuracy_encrypted_high", t)))];
    const padding = 0.04 * (high - low) + 0.005;
    layout[`xaxis${suffix}`] = axis({ ...xAxis, domain: [left, left + cell.width], anchor: `y${suffix}`,
      title: index + across >= titles.length ? { text: byId("latency").selectedOptions[0].text, font: quiet, standoff: 8 } : undefined });
    layout[`yaxis${suffix}`] = axis({ domain: [Math.max(0, top - cell.height), top], anchor: `x${suffix}`, range: [low - padding, high + padding],
      tickformat: ".2f", nticks: 6, title: col ? undefined : { text: "accuracy, encrypted", font: quiet, standoff: 8 } });
    layout.annotations.push({ text: `<b>${escaped(title)}</b>`, xref: `x${suffix} domain`, yref: `y${suffix} domain`, x: 0, y: 1,
      xanchor: "left", yanchor: "bottom", showarrow: false, font: { size: 13 } });

    const frontier = paretoFrontier(here, latency);
    if (frontier.length > 1) {
      traces.push({ ...axes, x: frontier.map((t) => latency(t)), y: frontier.map(accuracy), mode: "lines",
        line: { color: css("--muted"), width: 1.5, dash: "dash", shape: "hv" }, hoverinfo: "skip" });
    }
    for (const backend of filters.backend) {
      const points = here.filter((trial) => value("backend", trial) === backend);
      if (!points.length) continue;
      const color = css(`--series-${markers[backend].colour}`);
      traces.push({
        ...axes, x: points.map((t) => latency(t)), y: points.map(accuracy), name: escaped(backend), mode: "markers",
        marker: { color, opacity: 0.9, size: points.map((t) => diameter(value("request_bytes", t) || 0)), symbol: markers[backend].symbol,
          line: { width: 1, color: css("--paper") } },
        error_x: { ...errorBars(points, latency), color },
        error_y: { ...errorBars(points, (t, end = "") => value(`accuracy_encrypted${end && "_"}${end}`, t)), color },
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

function rowLayout(trials, options) {
  return {
    height: Math.max(150, trials.length * options.row + 90), hovermode: "closest",
    yaxis: axis({ tickvals: trials.map((_, i) => i), ticktext: trials.map((t) => label(t, narrow() ? "  <br>" : " · ") + "  "), range: [trials.length - 0.5, -0.5],
      showgrid: false, showline: false, ticks: "" }),
    ...options.layout,
  };
}

function drawStages() {
  const names = Object.keys(stages);
  const share = byId("stages").value === "share";
  const found = shown.filter((t) => finished(t) && names.some((name) => value(`${name}_wall_s_median`, t)));
  const trials = found.slice(0, CHART_ROWS);
  if (!trials.length) return plot("chart-stages", null);
  const seconds = (name, trial) => value(`${name}_wall_s_median`, trial) || 0;
  const totals = trials.map((trial) => names.reduce((sum, name) => sum + seconds(name, trial), 0));
  const colours = ["--client-1", "--client-2", "--server-1", "--server-2", "--server-3", "--client-3", "--client-4"];
  const hatches = ["/", ".", "", "", "", "x", "\\"];
  const traces = names.map((name, index) => ({
    type: "bar", orientation: "h", name: name.replace(/_/g, " "), y: trials.map((_, i) => i), width: 0.62,
    x: trials.map((trial, i) => seconds(name, trial) / (share ? totals[i] : 1)),
    marker: { color: css(colours[index]), line: { width: 0.5, color: css("--paper") }, pattern: { shape: hatches[index], fillmode: "overlay", size: 6, solidity: 0.25, fgcolor: css("--ink"), fgopacity: 0.55 } },
    hovertemplate: trials.map((t, i) => `<b>${label(t)}</b><br>${stages[name]}: ${name.replace(/_/g, " ")} ${text(t, `${name}_wall_s_median`)}` +
      `<br>${(100 * seconds(name, t) / totals[i]).toPrecision(3)} % of ${tick(totals[i], SECONDS)}<extra></extra>`),
  }));
  traces.push({ x: trials.map((_, i) => (share ? 1 : totals[i])), y: trials.map((_, i) => i), mode: "text", textposition: "middle right",
    text: trials.map((t) => ` ${text(t, "request_wall_s_median").split(" (")[0]}`), hoverinfo: "skip", showlegend: false, cliponaxis: false });
  const most = share ? 1 : Math.max(...totals);
  plot("chart-stages", traces, rowLayout(trials, { row: narrow() ? 46 : 30, layout: {
    barmode: "stack", bargap: 0.3,
    xaxis: axis({ range: [0, most * (narrow() ? 1.3 : 1.12)], tickformat: share ? ".0%" : "", ticksuffix: share ? "" : " s",
      tickvals: share ? [0, 0.25, 0.5, 0.75, 1] : undefined }),
  } }), limit(trials.length, found.length, "trials"));
}

function dots(id, columns, options) {
  const found = shown.filter((t) => finished(t) && columns.some(({ column }) => value(column, t) !== null));
  const trials = found.slice(0, CHART_ROWS);
  if (!trials.length) return plot(id, null);
  const dodge = (series) => (options.dodge || 0) * (series - (columns.length - 1) / 2);
  const traces = columns.map(({ column, name, symbol, colour }, series) => ({
    x: trials.map((t) => value(column, t)), y: trials.map((_, i) => i + dodge(series)), name, mode: "markers",
    marker: { symbol, size: 10, color: css(colour), line: { width: 1, color: css("--paper") } },
    error_x: options.interval ? { ...errorBars(trials, (t, end = "") => value(`${column}${end && "_"}${end}`, t)), color: css(colour) } : undefined,
    hovertemplate: trials.map((t) => `<b>${label(t)}</b><br>${name} ${text(t, column)}<extra></extra>`),
  }));
  const known = traces.flatMap((trace) => trace.x).filter((x) => x > 0);
  const shapes = trials.map((_, i) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: i, y1: i, line: { color: css("--rule"), width: 1, dash: "dot" }, layer: "below" }));
  plot(id, traces, rowLayout(trials, { row: options.row || (narrow() ? 46 : 30), layout: { shapes, xaxis: axis(options.axis(known, byId(id).clientWidth * 0.75)) } }),
    limit(trials.length, found.length, "trials"));
}

function drawSizes() {
  dots("chart-sizes", [
    { column: "public_key_bytes", name: "public key", symbol: "star-square", colour: "--series-5" },
    { column: "evaluation_key_bytes", name: "evaluation keys", symbol: "square", colour: "--series-4" },
    { column: "request_bytes", name: "request", symbol: "triangle-right", colour: "--series-1" },
    { column: "response_bytes", name: "response", symbol: "triangle-left", colour: "--series-2" },
  ], { axis: (values, pixels) => logAxis(values, BYTES, pixels) });
}

function drawMemory() {
  dots("chart-memory", [
    { column: "client_peak_rss_bytes", name: "client", symbol: "circle", colour: "--series-1" },
    { column: "server_peak_rss_bytes", name: "server", symbol: "square", colour: "--series-2" },
  ], { axis: (values) => {
    const most = Math.max(...values) * 1.06;
    const step = [1, 2, 5, 10].map((digit) => digit * 10 ** Math.floor(Math.log10(most / 4))).find((size) => most / size <= (narrow() ? 4 : 8));
    const ticks = [...Array(Math.floor(most / step) + 1).keys()].map((i) => i * step);
    return { range: [0, most], tickvals: ticks, ticktext: ticks.map((bytes) => (bytes ? tick(bytes, BYTES) : "0")) };
  } });
}

function drawAccuracy() {
  dots("chart-accuracy", [
    { column: "accuracy_float", name: "float, clear", symbol: "circle-open", colour: "--series-0" },
    { column: "accuracy_lowered", name: "lowered, clear", symbol: "diamond", colour: "--series-5" },
    { column: "accuracy_encrypted", name: "lowered, encrypted", symbol: "square", colour: "--series-1" },
  ], { interval: true, dodge: 0.22, row: narrow() ? 54 : 44, axis: () => ({ tickformat: ".2f", nticks: narrow() ? 5 : 8, title: { text: "accuracy", font: { size: 13, color: css("--muted") }, standoff: 8 } }) });
}

function draw() {
  drawPareto();
  drawStages();
  drawSizes();
  drawMemory();
  drawAccuracy();
}

byId("latency").addEventListener("change", drawPareto);
byId("stages").addEventListener("change", drawStages);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
addEventListener("beforeprint", () => { document.documentElement.classList.add("paper"); draw(); });
addEventListener("afterprint", () => { document.documentElement.classList.remove("paper"); draw(); });
let resizing;
addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(draw, 150); });

// The sizes that the bubbles stand for.
byId("bubbles").innerHTML = [1e4, 1e6, 1e8].map((bytes) => {
  const size = diameter(bytes);
  return `<svg width="${size}" height="${size}" style="vertical-align:middle" aria-hidden="true"><circle cx="${size / 2}" cy="${size / 2}" r="${size / 2}" fill="currentColor" opacity=".55"/></svg> ${tick(bytes, BYTES)}`;
}).join(", ");

// ---- Raw records ----------------------------------------------------------------------------------------------------

for (const details of document.querySelectorAll(".record")) {
  details.addEventListener("toggle", () => {
    details.querySelector("pre").textContent = JSON.stringify(records[+details.dataset.trials], null, 1);
  }, { once: true });
}

for (const button of document.querySelectorAll("[data-record]")) {
  button.addEventListener("click", () => {
    const details = document.querySelector(`.record[data-trials="${button.dataset.record}"]`);
    details.open = true;
    details.scrollIntoView();
  });
}

readHash();
select();

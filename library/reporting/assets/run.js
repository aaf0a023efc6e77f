"use strict";
// The page of one run: live, where a server sends what changes, or as the report that the run left.

const data = dataOf("record");
const isLive = location.protocol !== "file:" && !document.getElementById("summary");
const charts = new Map();
const state = {smoothing: Number(remembered("smoothing") || 0.9), at: null, lost: false, asked: "", planned: false};

const byPrefix = (...prefixes) => Object.keys(data.series).filter((name) => prefixes.some((prefix) => name.startsWith(prefix))).sort();
const plain = (name, shown, colour, more = {}) => ({name: shown, colour, ...data.series[name], ...more});
const smoothed = (name, shown, colour) => ({name: shown, colour, steps: data.series[name].steps, mean: smooth(data.series[name].mean, state.smoothing)});
const scaled = (line, factor) => ({...line, low: null, mean: line.mean.map((value) => value === null ? null : value * factor)});
const tail = (name) => name.split("/").slice(1).join("/");

function lossLines() {
  const lines = [];
  if (data.series["loss/current"]) {
    lines.push(plain("loss/current", word("raw"), 0, {faint: true}), smoothed("loss/current", word("smoothed"), 0));
  }
  if (data.series["loss/average"]) lines.push(plain("loss/average", word("epoch mean"), 1));
  return lines;
}

const KNOWN = ["loss/", "lr/", "gpu/", "host/", "norm/", "max_norm/", "time/", "alert/", "eval/", "drift/"];
const dotted = (names) => names.map((name, i) => plain(name, word(name.split("/").pop()), i, {dots: true}));
const CHARTS = [
  {key: "loss", title: "loss", lines: lossLines, marks: () => data.alerts.map(([step, text]) => ({step, text}))},
  {key: "sigma", title: "loss by sigma", lines: () => byPrefix("loss/sigma_").map((name, i) => smoothed(name, name.slice(11), i))},
  {key: "validation", title: "validation loss", lines: () => byPrefix("loss/validation/").map((name, i) => plain(name, tail(tail(name)).replace("sigma_", "sigma "), i, {dots: true}))},
  {key: "difference", title: "loss beside the base", always: true, lines: () => dotted(byPrefix("eval/difference/").filter((name) => !name.includes("sigma_")))},
  {key: "held out", title: "loss of held-out pictures", always: true, lines: () => dotted(byPrefix("eval/loss/"))},
  {key: "auc", title: "AUC of trained and held-out pictures", lines: () => dotted(byPrefix("eval/auc"))},
  {key: "drift", title: "drift from the base", always: true, lines: () => dotted(byPrefix("drift/"))},
  {key: "lr", title: "learning rate", always: true, lines: () => byPrefix("lr/").map((name, i) => plain(name, tail(name), i))},
  {key: "memory", title: "memory", unit: "GiB", always: true, lines: () => byPrefix("gpu/mem_", "host/mem_").filter((name) => name.endsWith("_mb")).map((name, i) => scaled(plain(name, name.replace("/mem_", " ").replace("_mb", "").replaceAll("_", " "), i), 1 / 1024))},
  {key: "norm", title: "gradient norm", lines: () => byPrefix("norm/", "max_norm/").map((name, i) => plain(name, name, i))},
  {key: "speed", title: "speed", unit: "s", lines: () => byPrefix("time/").map((name, i) => plain(name, word("per step"), i))},
];

// Values that no chart above knows, together by the first part of their names, or by the first two of longer ones.
function otherCharts() {
  const groups = new Map();
  for (const name of Object.keys(data.series).filter((each) => !KNOWN.some((known) => each.startsWith(known))).sort()) {
    const parts = name.split("/"), group = parts.slice(0, parts.length > 2 ? 2 : 1).join("/");
    groups.set(group, [...(groups.get(group) || []), name]);
  }
  return [...groups].map(([group, names]) => ({
    key: `other ${group}`, title: group, always: true,
    lines: () => names.map((name, i) => plain(name, name.slice(group.length + 1) || name, i, {dots: true})),
  }));
}

function chartCards() {
  return [...CHARTS, ...otherCharts()].map((one) => {
    const lines = one.lines().filter((line) => line.steps.length);
    if (!lines.length) return null;
    if (!charts.has(one.key)) charts.set(one.key, chart({title: word(one.title), always: one.always}));
    charts.get(one.key).show(lines, one.marks ? one.marks() : []);
    const slider = one.key === "loss" ? smoothingSlider() : null;
    return el("section", {class: "card"}, el("div", {class: "row"}, el("h2", {}, word(one.title), one.unit ? el("span", {class: "unit"}, ` ${word(one.unit)}`) : null), slider), charts.get(one.key).box);
  });
}

function smoothingSlider() {
  return el("label", {}, `${word("smoothing")} `, el("input", {type: "range", min: 0, max: 0.99, step: 0.01, value: state.smoothing, oninput: (event) => {
    state.smoothing = Number(event.target.value);
    remembered("smoothing", String(state.smoothing));
    for (const one of CHARTS.slice(0, 2)) if (charts.has(one.key)) charts.get(one.key).show(one.lines(), one.marks ? one.marks() : []);
  }}));
}

const last = (name) => data.series[name] ? data.series[name].mean.at(-1) : undefined;
const figure = (value, name) => el("div", {class: "figure"}, el("b", {}, value), el("span", {}, name));

function head() {
  const status = state.lost ? "lost" : data.status, {outline} = data;
  const tone = {done: "good", failed: "bad", lost: "bad", stopped: "warn"}[status] || "";
  const buttons = isLive && !state.lost && ["running", "preparing"].includes(data.status) ? [
    el("button", {class: "main", onclick: () => ask("save")}, word("save")),
    el("button", {onclick: () => { if (confirm(word("sure"))) ask("save_quit"); }}, word("save and stop")),
  ] : [];
  return el("header", {}, el("h1", {}, outline.name, " ", el("span", {class: `pill ${tone}`}, word(status))), toolbar(rebuilt, buttons));
}

function overview() {
  const {outline} = data, seconds = data.stages.reduce((sum, [, each]) => sum + each, 0);
  const epoch = Math.min(outline.epochs, Math.floor(Math.max(data.step - 1, 0) / outline.steps_per_epoch) + 1);
  const figures = [figure(`${data.step} / ${outline.total_steps}`, word("step of")), figure(`${epoch} / ${outline.epochs}`, word("epoch"))];
  if (data.status === "running" && isLive) figures.push(figure(duration(data.seconds_left), word("time left")));
  if (data.status === "preparing") figures.push(figure(word(data.stage || "preparing"), word("stage")));
  if (data.status === "running" && isLive && !["", "run_epochs"].includes(data.stage)) figures.push(figure(word(data.stage), word("stage")));
  if (last("time/step") !== undefined) figures.push(figure(duration(last("time/step")), word("per step")));
  figures.push(figure(duration(seconds), word("took")));
  if (last("loss/average") !== undefined) figures.push(figure(number(last("loss/average")), word("loss mean")));
  if (last("loss/validation/average") !== undefined) figures.push(figure(number(last("loss/validation/average")), word("validation")));
  if (data.notes.length) figures.push(figure(String(data.notes.length), word("warnings")));
  const words = state.lost ? word("lost words", `${outline.name}_report.html`) : data.ended || state.asked;
  return wide(card(null, el("div", {class: "figures"}, figures),
    el("progress", {max: Math.max(outline.total_steps, 1), value: data.step, "aria-label": word("progress")}),
    words ? el("p", {class: `words ${data.status === "failed" ? "bad" : "soft"}`}, words) : null,
    outline.earlier ? el("p", {class: "words warn"}, word("earlier", outline.earlier)) : null));
}

// Kept as it is until there is a new picture: what is on the screen shall not be loaded anew.
let shownPreviews = {count: 0, box: null};
function previews() {
  if (shownPreviews.count !== data.pictures.length) shownPreviews = {count: data.pictures.length, box: makePreviews()};
  return shownPreviews.box;
}

function makePreviews() {
  const prompts = new Map();
  for (const picture of data.pictures) {
    if (!prompts.has(picture.number)) prompts.set(picture.number, []);
    prompts.get(picture.number).push(picture);
  }
  const rows = [...prompts.keys()].sort((a, b) => a - b).flatMap((place) => {
    const all = prompts.get(place).sort((a, b) => a.step - b.step), shown = [all[0]];
    if (all.length > 1) shown.push(all.at(-1), ...all.slice(1, -1).reverse());
    return [el("p", {class: "prompt"}, `${place + 1}. `, all.at(-1).prompt),
      el("div", {class: "strip"}, shown.map((picture, i) => preview(picture, i < 2, i === 0 && all.length > 1 ? "first" : i === 1 ? "newest" : "")))];
  });
  return wide(card(word("previews"), rows));
}

function preview(picture, isEdge, name) {
  const caption = `${name ? word(name) + " · " : ""}${word("step")} ${picture.step} · ${word("seed")} ${picture.seed}`;
  const image = picture.image ? el("img", {src: picture.image, alt: `${word("step")} ${picture.step}`, title: picture.file, loading: "lazy", onclick: () => enlarge(picture)}) : el("div", {class: "none"});
  return el("figure", {class: isEdge ? "edge" : ""}, image, el("figcaption", {}, caption, picture.image ? "" : ` ${word("no copy")}`));
}

function enlarge(picture) {
  const dialog = el("dialog", {onclick: () => dialog.close(), onclose: () => dialog.remove()}, el("img", {src: picture.image, alt: picture.prompt}));
  document.body.append(dialog);
  dialog.showModal();
}

// Norms of several adapters together: the root of the sum of squares.
const together = (norms) => { const known = norms.filter((norm) => norm !== null); return known.length ? Math.hypot(...known) : null; };

function strength() {
  if (!data.strengths.length || !data.places.length) return [];
  const steps = data.strengths.map((each) => each.step), kinds = [...new Set(data.places.map(([, kind]) => kind))];
  const blocks = [...new Set(data.places.map(([block]) => block))];
  const sum = (each, chosen) => together(each.norms.filter((_, i) => chosen(data.places[i])));
  const families = [...new Set(blocks.map((block) => block.replace(/\.?\d+$/, "")))];
  const groups = families.length > 1 && families.length <= 8 ? families.map((family) => [family, ([block]) => block.replace(/\.?\d+$/, "") === family])
    : kinds.slice(0, 8).map((kind) => [kind, ([, own]) => own === kind]);
  const lines = groups.map(([name, chosen], colour) => ({name: name || word("other"), colour, steps, mean: data.strengths.map((each) => sum(each, chosen)), dots: steps.length < 30}));
  lines.unshift({name: word("all blocks"), colour: 7, steps, mean: data.strengths.map((each) => together(each.norms)), dots: steps.length < 30});
  if (!charts.has("strength")) charts.set("strength", chart({title: word("strength"), always: true}));
  charts.get("strength").show(lines.slice(0, 9));
  const box = el("div"), shownStep = el("span", {class: "soft"});
  const slider = el("input", {type: "range", min: 0, max: steps.length - 1, step: 1, value: state.at ?? steps.length - 1, "aria-label": word("step"), oninput: (event) => {
    state.at = Number(event.target.value) === steps.length - 1 ? null : Number(event.target.value);
    heat();
  }});
  function heat() {
    const chosen = Math.min(state.at ?? steps.length - 1, steps.length - 1), norms = data.strengths[chosen].norms;
    const most = Math.max(...data.strengths.at(-1).norms.map((norm) => norm ?? 0), ...norms.map((norm) => norm ?? 0), 1e-30);
    shownStep.textContent = `${word("step")} ${steps[chosen]} `;
    box.replaceChildren(heatTable(data.places, norms, most, (block) => block || word("other")));
  }
  heat();
  return [
    wide(card(word("strength"), charts.get("strength").box, el("div", {class: "soft"}, word("norm")))),
    wide(card(null, el("div", {class: "row"}, el("h2", {}, word("strength by block and kind")), el("span", {}, shownStep, steps.length > 1 ? slider : null)), box)),
  ];
}

function notes() {
  const items = data.notes.slice().reverse().map((note) => el("li", {}, el("span", {class: note.level === "WARNING" ? "warn" : "bad"}, note.level === "WARNING" ? "⚠ " : "✖ "), el("span", {class: "soft"}, `${word("step")} ${note.step} · ${day(note.time)}  `), note.text));
  return card(word("alerts and warnings"), items.length ? el("ul", {class: "notes"}, items) : el("p", {class: "soft"}, word("nothing told")));
}

function stages() {
  const known = data.stages.filter(([, seconds]) => seconds >= 0.005), most = Math.max(...known.map(([, seconds]) => seconds), 1e-9);
  const bars = known.flatMap(([name, seconds]) => {
    const bar = el("span");
    bar.style.width = `${100 * seconds / most}%`;
    return [el("span", {}, word(name === "save" ? "save files" : name)), el("div", {}, bar), el("em", {}, duration(seconds))];
  });
  return card(word("time by stage"), el("div", {class: "bars"}, bars));
}

function settings() {
  const all = data.outline.options, changed = all.filter((row) => row[3]);
  const columns = ["name", "value", "default"], rows = (chosen) => chosen.map((row) => row.slice(0, 3));
  const differs = new Set(changed.map((row) => row[0]));
  const facts = data.outline.facts.map(([name, value]) => [word(name), value]);
  return [
    card(word("changed settings"), table(columns, rows(changed)),
      el("details", {}, el("summary", {}, `${word("all settings")} (${all.length})`), table(columns, rows(all), (row, place) => place === 1 && differs.has(row[0])))),
    card(word("facts"), table(["name", "value"], [[word("began"), day(data.outline.began)], ...facts])),
  ];
}

function tables() {
  const cards = data.tables.filter((each) => each.rows.length).map((each) => {
    const section = card(word(each.name), table(each.columns, each.rows));
    return each.columns.length > 6 ? wide(section) : section;
  });
  if (data.saved.length) cards.push(card(word("files"), table(["step", "name"], data.saved)));
  return cards;
}

function rebuilt() { charts.clear(); shownPreviews = {count: 0, box: null}; render(); }

// What moves between log points.
function renderHead() {
  document.title = `${data.step}/${data.outline.total_steps} ${data.outline.name}`;
  document.querySelector("header").replaceWith(head());
  document.querySelector(".grid").firstChild.replaceWith(overview());
}

function render() {
  state.planned = false;
  document.title = `${data.step}/${data.outline.total_steps} ${data.outline.name}`;
  const scrolled = [...document.querySelectorAll(".strip, .scroll")].map((each) => [each.scrollLeft, each.scrollTop]);
  const open = [...document.querySelectorAll("details")].map((each) => each.open);
  document.querySelector("main").replaceChildren(head(), el("div", {class: "grid"},
    ...[overview(), data.notes.length ? wide(notes()) : null, previews(), chartCards(), data.notes.length ? null : notes(), stages(), strength(), tables(), settings()].flat().filter(Boolean)),
    el("footer", {}, `${word("written")} ${day(data.written)}`, !isLive && ["running", "preparing"].includes(data.status) ? ` ${word("moment")}` : ""));
  document.querySelectorAll("details").forEach((each, i) => { each.open = open[i] || false; });
  document.querySelectorAll(".strip, .scroll").forEach((each, i) => { if (scrolled[i]) [each.scrollLeft, each.scrollTop] = scrolled[i]; });
}

// However much changes, it is drawn at most every half second, and not while a slider is held.
let held = false;
document.addEventListener("pointerdown", (event) => { held = event.target.matches?.("input, select"); });
document.addEventListener("pointerup", () => { held = false; });
function plan() {
  if (state.planned) return;
  state.planned = true;
  setTimeout(function draw() { if (held) setTimeout(draw, 500); else requestAnimationFrame(render); }, 500);
}

const APPLY = {
  outline: (value) => { data.outline = value; },
  values: ([step, values]) => {
    for (const [name, value] of Object.entries(values)) {
      const series = data.series[name] ||= {steps: [], mean: []};
      series.steps.push(step);
      series.mean.push(value);
      if (series.low) { series.low.push(value); series.high.push(value); }
    }
  },
  alert: (value) => data.alerts.push(value),
  note: (value) => data.notes.push(value),
  table: (value) => {
    const place = data.tables.findIndex((each) => each.name === value.name);
    if (place < 0) data.tables.push(value); else data.tables[place] = value;
  },
  picture: (value) => data.pictures.push(value),
  places: (value) => { data.places = value; },
  strength: (value) => data.strengths.push(value),
  saved: (value) => { data.saved.push(value); state.asked = ""; },
  stages: (value) => { data.stages = value; },
  end: (value) => Object.assign(data, value),
};

async function ask(what) {
  let said;
  try {
    const answer = await fetch(what, {method: "POST"});
    said = answer.ok ? (await answer.json()).error : `${answer.status}`;
  } catch { said = word("lost"); }
  state.asked = said || word("asked");
  render();
}

function listen() {
  const events = new EventSource(`events?after=${data.version}`);
  let lost = null;
  const over = () => { state.lost = !data.ended; plan(); };
  events.onopen = () => { clearTimeout(lost); lost = null; if (state.lost) { state.lost = false; plan(); } };
  events.onmessage = (event) => {
    for (const [kind, value] of Object.entries(JSON.parse(event.data))) APPLY[kind]?.(value);
    plan();
  };
  events.addEventListener("moment", (event) => { Object.assign(data, JSON.parse(event.data)); data.written = Date.now() / 1000; if (!state.planned) renderHead(); });
  events.addEventListener("again", () => location.reload());
  events.addEventListener("over", () => { events.close(); over(); });
  events.onerror = () => { lost ||= setTimeout(over, 3000); };
}

render();
if (isLive) listen();

"use strict";
// The index of a folder: its runs in a table, their losses over each other, the settings that differ.

const runs = dataOf("runs").sort((a, b) => b.began - a.began);
const hidden = new Set();
const link = (run) => el("a", {href: `./${encodeURIComponent(run.file)}`}, run.name);
const finalOf = (run, name) => run.curves[name] ? run.curves[name].mean.filter((value) => value !== null).at(-1) ?? null : null;

function list() {
  const head = ["show", "run", "began", "progress", "took", "last loss", "validation", "warnings"];
  return el("div", {class: "scroll"}, el("table", {}, el("thead", {}, el("tr", {}, head.map((name) => el("th", {}, word(name))))),
    el("tbody", {}, runs.map((run, i) => el("tr", {},
      el("td", {}, el("label", {}, el("input", {type: "checkbox", checked: !hidden.has(i), "aria-label": run.name, onchange: (event) => { event.target.checked ? hidden.delete(i) : hidden.add(i); render(); }}), " ", el("i", {class: `swatch b${i % COLOURS}`}))),
      el("td", {}, link(run), " ", el("span", {class: "soft"}, word(run.status))),
      el("td", {}, day(run.began)),
      el("td", {}, `${run.step} / ${run.total_steps}`), el("td", {}, duration(run.seconds)),
      el("td", {}, number(finalOf(run, "loss/average"))), el("td", {}, number(finalOf(run, "loss/validation/average"))),
      el("td", {}, String(run.warnings)))))));
}

function curves(name, title, dots) {
  const lines = runs.map((run, i) => ({run, i})).filter(({run, i}) => run.curves[name] && !hidden.has(i))
    .map(({run, i}) => ({name: run.name, colour: i, dots, ...run.curves[name]}));
  if (!lines.length) return null;
  const made = chart({title: word(title), always: true, height: 300});
  made.show(lines);
  return wide(card(word(title), made.box));
}

function differing() {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.settings)))].sort();
  const rows = names.map((name) => [name, ...runs.map((run) => Object.hasOwn(run.settings, name) ? run.settings[name] : null)])
    .filter(([, ...values]) => new Set(values).size > 1 && !values.every((value) => value === null));
  return wide(card(word("settings that differ"), rows.length ? table(["name", ...runs.map((run) => run.name)], rows) : el("p", {class: "soft"}, word("no difference"))));
}

function render() {
  document.querySelector("main").replaceChildren(
    el("header", {}, el("h1", {}, word("runs"), ` · ${runs.length}`), toolbar(render)),
    el("div", {class: "grid"}, ...[wide(card(null, list())), curves("loss/average", "loss", false), curves("loss/validation/average", "validation loss", true), differing()].filter(Boolean)));
}
render();

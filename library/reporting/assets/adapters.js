"use strict";
// The page about adapter files: figures, findings, heat maps, curves and tables, in the order they are given.

Object.assign(WORDS.zh, {"findings": "结论", "no findings": "没有发现问题。", "more places": "以及另外 {} 个", "all": "全部"});
Object.assign(WORDS.en, {"no findings": "Nothing was found wrong.", "more places": "and {} more"});

const data = dataOf("adapters");
const TONES = ["soft", "warn", "bad"];

// What has two languages is an object of them; names and numbers are themselves.
const say = (value) => value !== null && typeof value === "object" ? value[language] : value;

function head() {
  const tone = ["good", "warn", "bad"][data.verdict.severity];
  return el("header", {}, el("h1", {}, data.title, " ", el("span", {class: `pill ${tone}`}, say(data.verdict))), toolbar(render));
}

function overview() {
  const figures = data.figures.map(([name, value]) => {
    const told = say(value);
    return el("div", {class: "figure"}, el("b", {}, typeof told === "number" ? number(told) : told ?? "-"), el("span", {}, say(name)));
  });
  return wide(card(null, el("div", {class: "figures"}, figures), data.intro ? el("p", {class: "words soft"}, say(data.intro)) : null));
}

function finding(one) {
  return el("li", {}, el("span", {class: `pill ${TONES[one.severity]}`}, say(one.name)), " ", say(one.text),
    one.advice ? el("div", {class: "soft"}, `→ ${say(one.advice)}`) : null,
    one.where.length > 3 ? el("details", {}, el("summary", {}, `${one.where.length + one.more}`), places(one)) : one.where.length ? places(one) : null);
}

const places = (one) => el("div", {class: "where soft"}, one.where.join("\n"), one.more ? `\n${word("more places", one.more)}` : "");

function findings() {
  const items = data.findings.map(finding);
  return wide(card(word("findings"), items.length ? el("ul", {class: "notes whole"}, items) : el("p", {class: "soft"}, word("no findings"))));
}

// Buttons for one of several names; the first is chosen.
function choice(names, choose) {
  const buttons = names.map((name, i) => el("button", {class: i ? "" : "main", onclick: () => {
    buttons.forEach((button, k) => { button.className = k === i ? "main" : ""; });
    choose(i);
  }}, name));
  return names.length > 1 ? el("div", {class: "tools"}, buttons) : null;
}

// A table for each family of numbered blocks, and one for what is in none.
function heat(part) {
  const box = el("div");
  const most = part.most || Math.max(...part.values.flatMap(([, values]) => values.map((value) => Math.abs(value ?? 0))), 1e-30);
  const families = new Map();
  part.places.forEach(([block], i) => {
    const numbered = block.match(/^(.*?)\.?\d+$/), family = numbered ? numbered[1] : "";
    families.set(family, [...(families.get(family) || []), i]);
  });
  const draw = (chosen) => box.replaceChildren(...[...families].sort(([one], [other]) => !one - !other).filter(([, own]) => own.some((i) => part.values[chosen][1][i] !== null)).map(([family, own]) => el("div", {},
    families.size > 1 || family ? el("div", {class: "prompt soft"}, family || word("other")) : null,
    heatTable(own.map((i) => part.places[i]), own.map((i) => part.values[chosen][1][i]), most, (block) => family && block.startsWith(family) ? block.slice(family.length).replace(".", "") : block))));
  draw(0);
  return wide(card(say(part.title), el("div", {class: "note soft"}, say(part.note)), scale(part, most), choice(part.values.map(([name]) => name), draw), box));
}

function scale(part, most) {
  const least = part.values.some(([, values]) => values.some((value) => value < 0)) ? -most : 0;
  const ramp = el("i", {class: "ramp"});
  ramp.style.background = `linear-gradient(to right, rgba(var(--${least ? "cold), 1" : "heat), .06"}), ${least ? "transparent, " : ""}rgba(var(--heat), 1))`;
  return el("div", {class: "legend"}, el("span", {}, `${number(least)} `, ramp, ` ${number(most)}`));
}

function curves(part) {
  const lines = part.lines.map(([name, values], colour) => ({name, colour, steps: values.map((_, i) => i + 1), mean: values}));
  const made = chart({title: say(part.title), always: true, across: say(part.across), height: 260});
  made.show(lines);
  return wide(card(say(part.title), el("div", {class: "note soft"}, say(part.note)), made.box));
}

function rowsOf(part) {
  const made = table(part.columns.map(say), part.rows.map((row) => row.map(say)));
  const section = part.closed ? card(null, el("details", {}, el("summary", {}, `${say(part.title)} (${part.rows.length})`), made)) : card(say(part.title), made);
  return part.columns.length > 2 || part.closed ? wide(section) : section;
}

const DRAW = {heat, curves, table: rowsOf};

function render() {
  document.title = data.title;
  document.querySelector("main").replaceChildren(head(), el("div", {class: "grid"}, overview(), findings(), data.parts.map((part) => DRAW[part.kind](part))));
}
render();

"use strict";
// What is worth mending in pictures and captions: each kind with its places, their pictures and words.

Object.assign(WORDS.zh, {"looked at": "检查过的图片", "kinds": "发现", "nothing to mend": "没有发现要改的地方。", "more places": "以及另外 {} 处"});
Object.assign(WORDS.en, {"looked at": "pictures looked at", "kinds": "findings", "nothing to mend": "Nothing to mend was found.", "more places": "and {} more"});

const data = dataOf("findings");
const say = (text) => text[language];

const picture = (number, file, words) => el("figure", {},
  number === null ? el("div", {class: "none"}) : el("img", {src: data.pictures[number], loading: "lazy", alt: file}),
  el("figcaption", {}, file), words ? el("div", {class: "told"}, words) : null);

// Pictures that belong together stand in a row of their own; places of one picture stand side by side.
function group(one) {
  const rest = one.files.slice(one.pictures.length);
  return el("li", {}, el("div", {class: "strip"}, one.pictures.map((number, i) => picture(number, one.files[i], ""))),
    rest.length ? el("div", {class: "where soft"}, rest.join("\n")) : null);
}

function places(all) {
  const single = all.filter((one) => one.pictures.length === 1), several = all.filter((one) => one.pictures.length > 1);
  return [
    single.length ? el("div", {class: "strip wrapped"}, single.map((one) => picture(one.pictures[0], one.files.join(", "), one.words))) : null,
    several.length ? el("ul", {class: "notes whole"}, several.map(group)) : null,
  ];
}

function finding(one) {
  const more = one.count - one.places.length;
  const title = `${one.subset ? `${one.subset}: ` : ""}${say(one.title)}${one.places.some((each) => each.files.length) ? ` (${one.count})` : ""}`;
  return wide(card(title, el("p", {class: "soft"}, `→ ${say(one.cure)}`), places(one.places),
    more ? el("p", {class: "soft"}, word("more places", more)) : null));
}

function render() {
  document.title = data.title;
  const figures = [[data.looked_at, "looked at"], [data.findings.length, "kinds"]].map(([value, name]) =>
    el("div", {class: "figure"}, el("b", {}, number(value, 12)), el("span", {}, word(name))));
  const overview = wide(card(null, el("div", {class: "figures"}, figures), data.findings.length ? null : el("p", {class: "soft"}, word("nothing to mend"))));
  document.querySelector("main").replaceChildren(el("header", {}, el("h1", {}, data.title), toolbar(render)),
    el("div", {class: "grid"}, overview, data.findings.map(finding)));
}
render();

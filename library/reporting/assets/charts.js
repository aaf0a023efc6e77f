"use strict";
// Line charts in SVG (axes with units, a legend, the values under the pointer) and heat maps.

const EDGE = {left: 52, right: 20, top: 8, bottom: 34}, COLOURS = 8;

// The lines of a chart: {name, steps, mean, low, high, colour, faint, dots}. A gap is null.
function chart(options) {
  const plot = el("div", {class: "plot"}), tip = el("div", {class: "tip", hidden: true});
  const legend = el("div", {class: "legend"});
  const height = options.height || 220;
  let lines = [], marks = [], at = null, width = 0;

  function draw() {
    width = plot.clientWidth;
    if (!width) return;
    const [x0, x1] = reach(lines.flatMap((line) => [line.steps[0], line.steps.at(-1)]), 1);
    const [y0, y1] = heights(lines);
    const across = width - EDGE.left - EDGE.right, down = height - EDGE.top - EDGE.bottom;
    const x = (step) => EDGE.left + (step - x0) / (x1 - x0) * across;
    const y = (value) => EDGE.top + (1 - (value - y0) / (y1 - y0)) * down;
    const picture = svg("svg", {viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": options.title});
    const inside = svg("g");
    for (const tick of ticks(y0, y1, Math.max(2, Math.round(down / 45)))) {
      picture.append(svg("line", {class: "axis", x1: EDGE.left, x2: width - EDGE.right, y1: y(tick), y2: y(tick)}),
        svg("text", {x: EDGE.left - 6, y: y(tick) + 4, "text-anchor": "end"}, number(tick, 3)));
    }
    for (const tick of ticks(x0, x1, Math.max(2, Math.round(across / 70))).filter(Number.isInteger)) {
      picture.append(svg("text", {x: x(tick), y: height - 18, "text-anchor": "middle"}, String(tick)));
    }
    picture.append(svg("text", {x: width - EDGE.right, y: height - 4, "text-anchor": "end"}, word(options.across || "step")));
    for (const line of lines) {
      const part = thinned(line, x, across);
      if (part.low) {
        const back = part.points.map(([px], i) => [px, part.high[i]]).reverse();
        const band = [...part.points.map(([px], i) => [px, part.low[i]]), ...back].filter(([, v]) => v !== null);
        if (band.length > 3) inside.append(svg("path", {class: `band k${line.colour % COLOURS}`, d: "M" + band.map(([px, v]) => `${px.toFixed(1)},${clamp(y(v)).toFixed(1)}`).join("L") + "Z"}));
      }
      const kind = `k${line.colour % COLOURS}` + (line.faint ? " faint" : "");
      inside.append(svg("path", {class: kind, d: path(part.points, y)}));
      const finite = part.points.filter(([, value]) => value !== null);
      if (line.dots || finite.length === 1) for (const [px, value] of finite) {
        inside.append(svg("circle", {cx: px, cy: clamp(y(value)), r: 2.6, class: kind, fill: "none", "stroke-width": 1.8}));
      }
    }
    for (const mark of marks.filter((each) => each.step >= x0 && each.step <= x1)) {
      const px = x(mark.step);
      inside.append(svg("path", {class: "mark", d: `M${px - 4},${EDGE.top}L${px + 4},${EDGE.top}L${px},${EDGE.top + 7}Z`}, svg("title", {}, `${word("step")} ${mark.step}: ${mark.text}`)));
    }
    const cross = svg("line", {class: "cross", y1: EDGE.top, y2: height - EDGE.bottom, visibility: "hidden"});
    picture.append(inside, cross);
    picture.addEventListener("pointermove", (event) => point(event.clientX - plot.getBoundingClientRect().left));
    picture.addEventListener("pointerdown", (event) => point(event.clientX - plot.getBoundingClientRect().left));
    picture.addEventListener("pointerleave", () => point(null));
    plot.replaceChildren(picture, tip);

    function clamp(value) { return Math.min(Math.max(value, EDGE.top - 4), height - EDGE.bottom + 4); }
    function path(points, place) {
      let text = "", pen = "M";
      for (const [px, value] of points) {
        if (value === null) { pen = "M"; continue; }
        text += `${pen}${px.toFixed(1)},${clamp(place(value)).toFixed(1)}`;
        pen = "L";
      }
      return text;
    }
    function point(px) {
      at = px;
      tip.hidden = true;
      cross.setAttribute("visibility", "hidden");
      if (px === null || !lines.some((line) => line.steps.length)) return;
      const wanted = x0 + (px - EDGE.left) / across * (x1 - x0);
      const nearest = lines.map((line) => near(line.steps, wanted));
      const best = lines.reduce((found, line, i) => line.steps.length && (found === null || Math.abs(line.steps[nearest[i]] - wanted) < Math.abs(found - wanted)) ? line.steps[nearest[i]] : found, null);
      const rows = lines.map((line, i) => [line, line.mean[nearest[i]], line.steps[nearest[i]]]).filter(([line, , step]) => line.steps.length && Math.abs(step - best) <= Math.max((x1 - x0) / 40, 1e-9));
      cross.setAttribute("x1", x(best)); cross.setAttribute("x2", x(best)); cross.setAttribute("visibility", "visible");
      tip.replaceChildren(el("div", {class: "soft"}, `${word(options.across || "step")} ${number(best, 9)}`), ...rows.map(([line, value, step]) =>
        el("div", {}, el("i", {class: `b${line.colour % COLOURS}`}), `${line.name} `, el("b", {}, value === null ? word("non-finite") : number(value)), step === best ? "" : ` (${step})`)));
      tip.hidden = false;
      const left = x(best) + 12, room = tip.offsetWidth;
      tip.style.left = `${Math.max(0, left + room > width ? x(best) - room - 12 : left)}px`;
      tip.style.top = `${EDGE.top}px`;
    }
    if (at !== null) point(at);
  }

  new ResizeObserver(() => requestAnimationFrame(() => { if (plot.clientWidth !== width) draw(); })).observe(plot);
  return {
    box: el("div", {}, legend, plot),
    show(now, marked = []) {
      lines = now; marks = marked;
      legend.replaceChildren(...(now.length > 1 || options.always ? now : []).map((line) => el("span", {}, el("i", {class: `b${line.colour % COLOURS}` + (line.faint ? " faint" : "")}), line.name)));
      draw();
    },
  };
}

function reach(values, least) {
  const finite = values.filter((value) => value !== undefined && value !== null);
  if (!finite.length) return [0, least];
  const low = Math.min(...finite), high = Math.max(...finite);
  return high > low ? [low, high] : [low, low + least];
}

// All of the strong lines, and the faint ones but for their rarest values.
function heights(lines) {
  const found = [];
  for (const line of lines) {
    const values = line.mean.filter((value) => value !== null).sort((a, b) => a - b);
    if (!values.length) continue;
    const rare = line.faint ? Math.floor(values.length / 100) : 0;
    found.push(values[rare], values[values.length - 1 - rare]);
  }
  let [low, high] = found.length ? [Math.min(...found), Math.max(...found)] : [0, 1];
  if (low === high) { const room = Math.abs(low) / 10 || 1; low -= low === 0 ? 0 : room; high += room; }
  const room = (high - low) * 0.05;
  return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
}

function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const size = [1, 2, 5, 10].find((each) => each * power >= raw) * power, found = [];
  for (let i = Math.ceil(low / size); i * size <= high + size * 1e-9; i++) found.push(Number((i * size).toPrecision(12)));
  return found;
}

function near(steps, wanted) {
  let low = 0, high = steps.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < wanted) low = middle + 1; else high = middle;
  }
  return low > 0 && wanted - steps[low - 1] < steps[low] - wanted ? low - 1 : low;
}

// One point for what falls on the same pixel, with the extremes of the values that it stands for.
function thinned(line, x, across) {
  const count = line.steps.length, points = [], low = [], high = [];
  const group = Math.max(1, Math.ceil(count / Math.max(across, 1)));
  const banded = line.low || group > 1;
  for (let i = 0; i < count; i += group) {
    const end = Math.min(i + group, count), values = line.mean.slice(i, end).filter((value) => value !== null);
    points.push([x(line.steps[end - 1]), values.length ? values.reduce((a, b) => a + b) / values.length : null]);
    if (!banded) continue;
    const under = (line.low || line.mean).slice(i, end).filter((value) => value !== null);
    const over = (line.high || line.mean).slice(i, end).filter((value) => value !== null);
    low.push(under.length ? Math.min(...under) : null);
    high.push(over.length ? Math.max(...over) : null);
  }
  return {points, low: banded && line.faint ? low : null, high};
}

// A moving mean that forgets: weight from 0 (nothing is smoothed) to below 1, without a bias at the start.
function smooth(mean, weight) {
  let sum = 0, mass = 0;
  return mean.map((value) => {
    if (value === null) return mass ? sum / mass : null;
    sum = weight * sum + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return sum / mass;
  });
}

// Values by block and kind of layer; the deepest colour is for `most`, values below 0 have another.
function heatTable(places, values, most, nameOf) {
  const blocks = [...new Set(places.map(([block]) => block))], kinds = [...new Set(places.map(([, kind]) => kind))];
  const at = new Map(places.map(([block, kind], i) => [`${block}\n${kind}`, i]));
  const rows = blocks.map((block) => el("tr", {}, el("th", {}, nameOf(block)), kinds.map((kind) => {
    const value = values[at.get(`${block}\n${kind}`)] ?? null, made = el("td");
    if (value === null) return made;
    made.title = `${block ? `${block}.` : ""}${kind}: ${number(value)}`;
    const depth = Math.min(1, Math.abs(value) / most);
    made.style.background = `rgba(var(--${value < 0 ? "cold" : "heat"}), ${(0.06 + 0.94 * depth).toFixed(3)})`;
    return made;
  })));
  return el("div", {class: "scroll whole"}, el("table", {class: "heat"}, el("tr", {}, el("th"), kinds.map((kind) => el("th", {class: "turned", title: kind}, kind))), rows));
}

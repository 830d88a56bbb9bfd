// Curves as SVG, drawn with DOM calls only. One chart: a few series over the steps, the newest values in its head, a reading line
// under the pointer. Series differ by dash as well as by colour.

import { h, visible } from "./dom.js";

const SPACE = "http://www.w3.org/2000/svg";
const WIDTH = 380;
const HEIGHT = 150;
const LEFT = 44;
const RIGHT = 8;
const TOP = 6;
const BOTTOM = 18;
const FEW = 24;

function svg(tag, props = {}, ...children) {
  const element = document.createElementNS(SPACE, tag);
  for (const [name, value] of Object.entries(props)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/**
 * A figure. `series`: [{name, x, y}], at least one with a point; `unit` "share" keeps the axis within 0 and 1;
 * `marks`: steps with a line across; `width`: of the x axis in steps, or 0.
 */
export function chart(title, series, { unit = "", marks = [], width = 0 } = {}) {
  const drawn = series.filter((one) => one.x.length);
  const xs = drawn.flatMap((one) => [one.x[0], one.x[one.x.length - 1]]);
  const ys = drawn.flatMap((one) => one.y);
  const x = scale(Math.min(0, ...xs), Math.max(width, 1, ...xs), LEFT, WIDTH - RIGHT);
  const [low, high] = span(ys, unit);
  const y = scale(low, high, HEIGHT - BOTTOM, TOP);
  const reading = svg("line", { class: "reading", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  const plot = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title },
    ...ticks(low, high).map((value) => svg("g", { class: "tick" }, svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }), label(LEFT - 5, y(value) + 3.5, short(value), "end"))),
    label(LEFT, HEIGHT - 4, String(x.low), "start"),
    label(WIDTH - RIGHT, HEIGHT - 4, String(x.high), "end"),
    ...marks.map((step) => svg("line", { class: "mark-line", x1: x(step), x2: x(step), y1: TOP, y2: HEIGHT - BOTTOM })),
    ...drawn.flatMap((one, number) => line(one, number, x, y)),
    reading,
  );
  const values = h("span", { class: "values" });
  const tell = (step) => values.replaceChildren(...drawn.map((one, number) => legend(one, number, step)));
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const step = x.invert(((event.clientX - box.left) / box.width) * WIDTH);
    const nearest = drawn.map((one) => one.x[nearestIndex(one.x, step)]).sort((a, b) => Math.abs(a - step) - Math.abs(b - step))[0];
    for (const name of ["x1", "x2"]) reading.setAttribute(name, x(nearest));
    reading.setAttribute("visibility", "visible");
    tell(nearest);
  });
  plot.addEventListener("pointerleave", () => {
    reading.setAttribute("visibility", "hidden");
    tell(null);
  });
  tell(null);
  return h("figure", { class: "chart" }, h("figcaption", {}, h("b", {}, visible(title)), values), plot);
}

function line(one, number, x, y) {
  const points = one.x.map((step, i) => `${x(step).toFixed(1)},${y(one.y[i]).toFixed(1)}`);
  const path = svg("polyline", { class: `line s${number}`, points: points.join(" ") });
  const dots = one.x.length <= FEW ? one.x.map((step, i) => svg("circle", { class: `dot s${number}`, cx: x(step), cy: y(one.y[i]), r: 2.4 })) : [];
  return [path, ...dots];
}

function legend(one, number, step) {
  const at = step === null ? one.x.length - 1 : nearestIndex(one.x, step);
  const title = `${one.name} at step ${one.x[at]}`;
  return h("span", { class: `value s${number}`, title }, h("span", { class: "key" }), visible(one.label ?? one.name), " ", h("b", {}, short(one.y[at])), step === null ? "" : h("span", { class: "dim" }, ` @${one.x[at]}`));
}

function label(x, y, text, anchor) {
  const element = svg("text", { x, y, "text-anchor": anchor });
  element.textContent = text;
  return element;
}

function scale(low, high, from, to) {
  const wide = high - low || 1;
  const place = (value) => from + ((value - low) / wide) * (to - from);
  return Object.assign(place, { low, high, invert: (place) => low + ((place - from) / (to - from)) * wide });
}

/** What the y axis shows: all points, with some air; a share whole where its points leave no better choice. */
function span(ys, unit) {
  const low = Math.min(...ys);
  const high = Math.max(...ys);
  const air = (high - low || Math.abs(high) || 1) * 0.08;
  return unit === "share" ? [Math.max(0, low - air), Math.min(1, Math.max(high + air, low + 0.02))] : [low >= 0 ? Math.max(0, low - air) : low - air, high + air];
}

/** Three or four round numbers within. */
export function ticks(low, high) {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((size) => size >= rough) ?? 10 * power;
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9 && found.length < 6; value += step) found.push(Math.abs(value) < step * 1e-9 ? 0 : value);
  return found;
}

function nearestIndex(xs, step) {
  let best = 0;
  for (let i = 1; i < xs.length; i++) if (Math.abs(xs[i] - step) < Math.abs(xs[best] - step)) best = i;
  return best;
}

/** Three digits, however large or small. */
export function short(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${(value / 1e3).toPrecision(3)}k`;
  if (value !== 0 && size < 1e-3) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

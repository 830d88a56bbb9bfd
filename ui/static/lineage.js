// Where an adapter came from, as a picture: adapter <- training <- pairs and runs <- ratings <- raters. Text goes in as text nodes only.

import { showChecks } from "./checks.js";
import { h, visible } from "./dom.js";
import { useKeys } from "./keys.js";
import { addressOf, go } from "./place.js";
import { read } from "./save.js";

const SVG = "http://www.w3.org/2000/svg";
const COLUMNS = [
  ["adapter", "adapter"],
  ["training", "training"],
  ["data", "pairs, runs, parents"],
  ["ratings", "ratings"],
  ["rater", "raters"],
];
const WIDE = 1180;
const BOX = { width: 200, height: 44, gap: 14 };

export async function showLineage(view, { query, root, current }) {
  const { adapters } = await read("/api/lineage/adapters");
  const bar = h("div", { class: "filters" });
  view.append(bar);
  if (!adapters.length) {
    view.append(h("div", { class: "empty" }, h("p", {}, "There are no adapters yet."), h("p", { class: "dim" }, "`agentalign train` makes one.")));
    return;
  }
  const ref = query.get("ref") || adapters[0].ref;
  const found = await read("/api/lineage?" + new URLSearchParams({ ref }));
  const chooser = h("select", { class: "field", "aria-label": "Adapter", onchange: (event) => go("lineage", "", { ref: event.target.value }) }, adapters.map((one) => h("option", { value: one.ref, selected: one.ref === found.adapter }, visible(`${one.ref} (${one.recipe})`))));
  bar.append(chooser, h("span", { class: "dim" }, "What it was made from, left to right"), h("span", { class: "grow" }), h("button", { type: "button", "data-act": "Check and promote", onclick: () => showChecks(root, found.adapter) }, "Check and promote"));
  view.append(h("div", { class: "lineage" }, picture(found)), asList(found));
  useKeys([{ keys: ["a"], label: "a", does: "choose an adapter", act: () => chooser.focus() }], current);
}

function picture({ adapter, nodes, edges }) {
  const columns = COLUMNS.map(([kind]) => nodes.filter((node) => node.kind === kind));
  const rows = Math.max(...columns.map((column) => column.length));
  const height = 34 + rows * (BOX.height + BOX.gap);
  const places = new Map();
  const step = (WIDE - BOX.width) / (COLUMNS.length - 1);
  columns.forEach((column, x) => {
    const top = 30 + ((rows - column.length) * (BOX.height + BOX.gap)) / 2;
    column.forEach((node, y) => places.set(node.id, { x: x * step, y: top + y * (BOX.height + BOX.gap) }));
  });
  const drawing = svg("svg", { viewBox: `0 0 ${WIDE} ${height}`, role: "img", "aria-label": `Lineage of ${adapter}; the same as a list stands below` });
  COLUMNS.forEach(([, title], x) => columns[x].length && drawing.append(svg("text", { class: "column", x: x * step + 2, y: 14 }, title)));
  const counts = new Map();
  for (const { end, count } of edges) counts.set(end, (counts.get(end) ?? 0) + count);
  drawing.append(...edges.map((edge) => line(edge, places)));
  for (const node of nodes) drawing.append(box(node, places.get(node.id), counts.get(node.id) ?? 0));
  return drawing;
}

function line({ start, end }, places) {
  const from = places.get(start);
  const to = places.get(end);
  const [x1, y1, x2, y2] = [from.x + BOX.width, from.y + BOX.height / 2, to.x, to.y + BOX.height / 2];
  const middle = (x1 + x2) / 2;
  return svg("path", { class: "edge", d: `M${x1} ${y1} C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}` });
}

function box(node, { x, y }, count) {
  const group = svg("g", { class: `node ${node.ref ? "adapter" : node.kind}${node.missing ? " missing" : ""}`, transform: `translate(${x} ${y})` });
  const whole = node.detail ? `${node.title}: ${node.detail}` : node.title;
  group.append(svg("title", {}, whole + (node.missing ? " (not here)" : "")), svg("rect", { width: BOX.width, height: BOX.height, rx: 5 }), svg("text", { x: 9, y: node.detail ? 18 : 27 }, cut(node.title, node.kind === "rater" ? 24 : 28)));
  if (node.detail) group.append(svg("text", { class: "under", x: 9, y: 34 }, cut(node.detail, 34)));
  // Data and ratings say their own number in words, because one mark may stand behind several pairs.
  if (count && node.kind === "rater") group.append(svg("text", { class: "under", x: BOX.width - 9, y: 18, "text-anchor": "end" }, String(count)));
  if (!node.ref || node.missing || node.kind === "adapter") return group;
  const link = svg("a", { href: addressOf("lineage", "", { ref: node.ref }) });
  link.append(group);
  return link;
}

function cut(text, most) {
  return [...text].length > most ? [...text].slice(0, most - 1).join("") + "…" : text;
}

function svg(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  if (text !== undefined) element.append(...(tag === "title" ? [document.createTextNode(text)] : shown(text)));
  return element;
}

/** As `visible` does for the page: characters that cannot be seen stand as escapes; in a picture all is one text. */
function shown(text) {
  return visible(text).map((node) => document.createTextNode(node.textContent));
}

function asList({ nodes, edges }) {
  const title = new Map(nodes.map((node) => [node.id, node]));
  const lines = edges.map(({ start, end, count }) => {
    const [one, other] = [title.get(start), title.get(end)];
    return h("li", {}, visible(one.title), " ← ", count ? `${count} × ` : "", other.ref && !other.missing ? h("a", { href: addressOf("lineage", "", { ref: other.ref }) }, visible(other.title)) : visible(other.title), other.detail && h("span", { class: "dim" }, " ", visible(other.detail)));
  });
  return h("details", { class: "question-box as-list" }, h("summary", {}, "As a list"), h("ul", {}, lines));
}

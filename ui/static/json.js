// JSON as a tree whose branches fold. Nothing is parsed into values: every line is the text as it stands, white space aside.

import { capped, h, laidOut, visible } from "./dom.js";

const MOST_LINES = 400;
const FOLD_DEPTH = 3;
const FOLD_LINES = 12;
const SHORT = 72;

/** The JSON text as a foldable tree; capped plain text where it is very long; null where it is not JSON. */
export function jsonTree(text, className) {
  const shown = laidOut(text);
  if (shown === null) return null;
  const lines = shown.split("\n");
  if (lines.length < 2 || lines.length > MOST_LINES) return capped(shown, className);
  const box = h("div", { class: className + " json" });
  const open = [];
  let into = box;
  for (const line of lines) {
    if (open.length && /^\s*[\]}],?$/.test(line)) {
      const { branch, parent, started } = open.pop();
      if (inOneLine(branch, line)) {
        branch.replaceWith(row(inOneLine(branch, line)));
        into = parent;
        continue;
      }
      branch.append(row(line));
      const inside = branch.querySelectorAll(".line").length - 1;
      branch.firstChild.dataset.hidden = `${inside} more`;
      branch.open = started < FOLD_DEPTH || inside <= FOLD_LINES;
      into = parent;
    } else if (/[[{]$/.test(line)) {
      const branch = h("details", { class: "branch" }, h("summary", { "data-source": line }, parts(line)));
      into.append(branch);
      open.push({ branch, parent: into, started: open.length });
      into = branch;
    } else into.append(row(line));
  }
  return box;
}

/** A short branch without branches, as the one line that it fits into; null where it does not. */
function inOneLine(branch, last) {
  const inside = [...branch.children];
  if (inside.some((child) => child.tagName === "DETAILS")) return null;
  const [first, ...rest] = inside.map((child) => child.dataset.source);
  const text = `${first}${rest.map((line) => line.trim()).join(" ")}${last.trim()}`;
  return text.trim().length <= SHORT ? text : null;
}

function row(line) {
  return h("div", { class: "line", "data-source": line }, parts(line));
}

function parts(line) {
  const key = /^(\s*)("(?:[^"\\]|\\.)*")(: )/.exec(line);
  if (!key) return visible(line);
  return [visible(key[1]), h("span", { class: "key" }, visible(key[2])), ": ", visible(line.slice(key[0].length))];
}

// Two runs as aligned rows, and word by word where the same act differs. Differences become text nodes in marks, never HTML.

import { h, visible } from "./dom.js";
import { timeline } from "./timeline.js";

const MOST_WORDS = 600;

/** The rows of a pair as cells of a grid with two columns. */
export function alignedRows({ rows, left, right }) {
  const cells = rows.flatMap((row) => {
    const pair = [row.left === null ? null : left.timeline[row.left], row.right === null ? null : right.timeline[row.right]];
    if (row.kind !== "changed") return pair.map((entry) => cell(row.kind, entry, null));
    const parts = changes(...pair);
    return pair.map((entry, side) => cell(row.kind, entry, parts && parts.map((part) => [visible(part.names[side]), part.sides[side]])));
  });
  const ended = [left, right].map((run) => h("div", { class: "side" }, h("p", { class: "ended dim" }, `ended: ${run.stop_reason.replaceAll("_", " ")}`)));
  return [...cells, ...ended];
}

function cell(kind, entry, parts) {
  if (entry === null) return h("div", { class: `side nothing ${kind}`, "aria-label": "nothing like it on this side" });
  // The words stand below in full, so the entry itself may be folded; without them it is shown whole.
  const row = timeline([entry], { folded: parts !== null });
  return h("div", { class: `side ${kind}` }, row, parts && h("dl", { class: "words" }, parts.map(([name, words]) => [h("dt", {}, name), h("dd", {}, h("pre", {}, words))])));
}

/** What differs between two entries, [{names: [text, text], sides: [nodes, nodes]}]; null where it is too long to be compared by words. */
function changes(left, right) {
  const fields = (entry) => [["says", entry.text], ["could not be read", entry.malformed], ...entry.calls.flatMap((call) => [[call.name, call.arguments], [call.error ? "error" : "result", call.result ?? ""]])];
  const [ones, others] = [fields(left), fields(right)];
  const parts = [];
  for (let at = 0; at < Math.max(ones.length, others.length); at++) {
    const [name, one] = ones[at] ?? [others[at][0], ""];
    const [otherName, other] = others[at] ?? [name, ""];
    if (one === other && name === otherName) continue;
    const sides = words(one, other);
    if (sides === null) return null;
    parts.push({ names: [name, otherName], sides });
  }
  return parts.length ? parts : null;
}

/** Both texts as nodes, with the words that the other lacks marked; null where there are too many. */
function words(left, right) {
  const [a, b] = [left, right].map((text) => text.match(/[\p{L}\p{N}_]+|\s+|[^\p{L}\p{N}_\s]/gu) ?? []);
  if (a.length > MOST_WORDS || b.length > MOST_WORDS) return null;
  const longest = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--) longest[i][j] = a[i] === b[j] ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
  const sides = [[], []];
  const put = (side, word, isMarked) => {
    const last = sides[side].at(-1);
    if (last?.isMarked === isMarked) last.text += word;
    else sides[side].push({ text: word, isMarked });
  };
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      put(0, a[i++], false);
      put(1, b[j++], false);
    } else if (j >= b.length || (i < a.length && longest[i + 1][j] >= longest[i][j + 1])) put(0, a[i++], true);
    else put(1, b[j++], true);
  }
  return sides.map((side) => (side.length ? side.map(({ text, isMarked }) => (isMarked ? h("mark", {}, visible(text)) : visible(text))) : h("span", { class: "dim" }, "(nothing)")));
}

// Two runs of one task, side by side, without a word about where they come from; asked criterion by criterion.

import { alignedRows } from "./aligned.js";
import { ballot } from "./ballot.js";
import { h } from "./dom.js";
import { goldTest } from "./fill.js";
import { holdKeys, releaseKeys, useKeys } from "./keys.js";
import { LETTERS } from "./letters.js";
import { go, notice } from "./place.js";
import { onSave, read, unsaved } from "./save.js";
import { timeline, toggle } from "./timeline.js";

const OPEN_SHARED = 5;
const GOLD = "/api/queue/pairs/gold";

export async function showCompare(view, { query, session, root, current }) {
  const chosen = (query.get("runs") ?? "").split(",").filter(Boolean);
  const taskset = query.get("taskset") ?? session.tasksets[0] ?? "";
  const pair = await read("/api/compare", chosen.length === 2 ? { runs: chosen } : { taskset });
  const tasksets = h(
    "select",
    { "aria-label": "Taskset", onchange: (event) => go("compare", "", { taskset: event.target.value }) },
    session.tasksets.map((name) => h("option", { value: name, selected: name === taskset }, name)),
  );
  if (pair.draw === null) {
    view.append(h("div", { class: "filters" }, tasksets), h("div", { class: "empty" }, h("p", {}, "No pair is left to compare here."), h("p", { class: "dim" }, "A pair is two different runs of one task. Make more runs with `agentalign rollout --n 4`.")));
    return;
  }
  const again = () => (chosen.length === 2 ? go("compare", "", { taskset }) : window.dispatchEvent(new HashChangeEvent("hashchange")));
  const test = goldTest(view, { what: "pair", url: GOLD, body: { draw: pair.draw }, session, root });
  view.append(h("div", { class: "filters" }, tasksets, h("span", { class: "dim" }, "The sides are drawn by chance."), h("span", { class: "grow" }), test.button, h("span", { class: "count" }, chosen.length === 2 ? "the pair you chose" : `${pair.open} ${pair.open === 1 ? "pair" : "pairs"} left`)));
  const shown = showPair(view, pair, { root, leave: again });
  useKeys([...shown.keys, ...test.keys, { keys: [LETTERS.skip], label: LETTERS.skip, does: "skip to another pair", act: again }], current);
}

/** A pair with its ballot in `view`; `leave` is called once it is answered and every answer is acknowledged. Returns its keys. */
export function showPair(view, pair, { root, leave }) {
  let isLeaving = false;
  const held = () => unsaved().some((item) => item.body.draw === pair.draw);
  const go = () => {
    if (!isLeaving || held()) return;
    isLeaving = false;
    leave();
  };
  const done = () => {
    if (!asked.ready()) return;
    isLeaving = true;
    holdKeys();
    go();
  };
  const asked = ballot(pair, { root, done });
  const stop = onSave((change) => {
    if (change.kind === "refused" && change.item?.body.draw === pair.draw) {
      isLeaving = false;
      releaseKeys();
    }
    // Idle: another tab has sent what waited here.
    if (["saved", "idle"].includes(change.kind)) go();
  });
  view.addEventListener("gone", () => (stop(), asked.stop()));
  view.append(h("div", { class: "pair-box" }, sides(pair)), asked.box);
  const fold = (selector) => [...view.querySelectorAll(selector)];
  return {
    keys: [
      ...asked.keys,
      { keys: [LETTERS.shared], label: LETTERS.shared, does: "open or fold what both begin with", act: () => fold(".pair > .shared").forEach((box) => (box.open = !box.open)) },
      { keys: ["o"], label: "o", does: "fold or unfold everything", act: () => fold(".pair > .side .entry").forEach((box) => toggle(box)) },
      { keys: [LETTERS.next], label: LETTERS.next, does: "next difference", act: () => nextDifference(view, root) },
    ],
  };
}

/** Both runs as a grid: what they share, then row beside row. */
export function sides(pair) {
  const { shared, left } = pair;
  const grid = h("div", { class: "pair" });
  if (shared > 0) {
    grid.append(h("details", { class: "shared", open: shared <= OPEN_SHARED }, h("summary", {}, shared === 1 ? "1 message in common" : `${shared} messages in common`, " ", h("kbd", {}, LETTERS.shared)), timeline(left.timeline.slice(0, shared))));
    grid.append(h("p", { class: "part" }, "from here they differ"));
  }
  grid.append(h("h2", {}, "A"), h("h2", {}, "B"), ...alignedRows(pair));
  return grid;
}

function nextDifference(view, root) {
  const box = view.querySelector(".pair-box");
  const top = box.getBoundingClientRect().top + 34;
  const found = [...box.querySelectorAll(".pair > :is(.changed, .only_left, .only_right)")].map((cell) => cell.getBoundingClientRect().top - top);
  const below = found.filter((distance) => distance > 4);
  if (!found.length) return notice(root, "The two runs do nothing differently but how they ended.");
  box.scrollTop += below.length ? Math.min(...below) : Math.min(...found);
}

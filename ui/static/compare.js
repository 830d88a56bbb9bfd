// Two runs of one task, side by side, without a word about where they come from.

import { alignedRows } from "./aligned.js";
import { h } from "./dom.js";
import { useKeys } from "./keys.js";
import { go } from "./place.js";
import { onSave, read, save } from "./save.js";
import { timeline, toggle } from "./timeline.js";

const CHOICES = [
  ["left_far", "1", "A far better"],
  ["left", "2", "A better"],
  ["tie", "3", "Equal"],
  ["right", "4", "B better"],
  ["right_far", "5", "B far better"],
  ["both_bad", "0", "Both bad"],
];

const OPEN_SHARED = 5;

export async function showCompare(view, { query, session, root }) {
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
  const note = h("input", { type: "text", class: "field", maxLength: 4000, placeholder: "why? (m)", "aria-label": "Note" });
  const buttons = CHOICES.map(([choice, key, text]) => h("button", { type: "button", class: "choice", "data-choice": choice, onclick: () => vote(choice) }, h("kbd", {}, key), text));
  let sent = null;
  const vote = (choice) => {
    if (sent) return;
    for (const button of buttons) button.classList.toggle("chosen", button.dataset.choice === choice);
    for (const button of buttons) button.disabled = true;
    sent = save("/api/preferences", { draw: pair.draw, choice, note: note.value });
  };
  const stop = onSave((change) => {
    if (!sent || change.item?.body.key !== sent) return;
    // Only an acknowledged choice leads on; a refused one can be given again.
    if (change.kind === "saved") again();
    else {
      sent = null;
      for (const button of buttons) button.disabled = false;
    }
  });
  view.addEventListener("gone", () => stop());

  const { shared, left } = pair;
  const grid = h("div", { class: "pair" });
  if (shared > 0) {
    grid.append(h("details", { class: "shared", open: shared <= OPEN_SHARED }, h("summary", {}, shared === 1 ? "1 message in common" : `${shared} messages in common`, " ", h("kbd", {}, "i")), timeline(left.timeline.slice(0, shared))));
    grid.append(h("p", { class: "part" }, "from here they differ"));
  }
  grid.append(h("h2", {}, "A"), h("h2", {}, "B"), ...alignedRows(pair));
  view.append(
    h("div", { class: "filters" }, tasksets, h("span", { class: "dim" }, "Which run is better? The sides are drawn by chance."), h("span", { class: "grow" }), h("span", { class: "count" }, chosen.length === 2 ? "the pair you chose" : `${pair.open} ${pair.open === 1 ? "pair" : "pairs"} left`)),
    h("div", { class: "pair-box" }, grid),
    h("footer", { class: "choices" }, buttons, note),
  );
  useKeys([
    ...CHOICES.map(([choice, key, text]) => ({ keys: [key], label: key, does: text, act: () => vote(choice) })),
    { keys: ["m"], label: "m", does: "note", act: () => note.focus() },
    { keys: ["s"], label: "s", does: "skip to another pair", act: again },
    { keys: ["i"], label: "i", does: "open or fold what both begin with", act: () => [...root.querySelectorAll(".pair > .shared")].forEach((box) => (box.open = !box.open)) },
    { keys: ["o"], label: "o", does: "fold or unfold everything", act: () => [...root.querySelectorAll(".pair > .side .entry")].forEach((box) => toggle(box)) },
  ]);
}

// What becomes of a chat: a vote between two sides, or marks on the one, and the run that is kept.

import { SCALE } from "./ballot.js";
import { h, visible } from "./dom.js";

/** Whether changed calls are to be learned from; there only where some were. */
function correctionTick() {
  const input = h("input", { type: "checkbox", name: "corrections", checked: true });
  const box = h("label", { class: "tick", hidden: true, title: "A call as you made it stands over the one that the agent wrote, like a step that is corrected while rating" }, input, "changed calls are corrections");
  const tell = (chat) => (box.hidden = !chat.lanes.some((lane) => lane.changed));
  return { box, tell, said: () => ({ corrections: input.checked }) };
}

/** The vote that keeps a pair and tells who was who: {box, keys, tell(chat)}. */
export function voteBar(keep) {
  const note = h("input", { type: "text", class: "field", maxLength: 4000, placeholder: "why? (m)", "aria-label": "Note" });
  const tick = correctionTick();
  const vote = async (choice) => {
    for (const button of buttons) button.disabled = true;
    if (!(await keep({ choice, note: note.value, ...tick.said() }))) for (const button of buttons) button.disabled = false;
  };
  const buttons = SCALE.map(([choice, key, text]) => h("button", { type: "button", class: "choice", "data-choice": choice, onclick: () => vote(choice) }, h("kbd", {}, key), text));
  const box = h("footer", { class: "choices", "aria-label": "Which side is better? Voting keeps both and tells who they are" }, buttons, note, tick.box);
  return { box, tell: tick.tell, keys: [...SCALE.map(([choice, key, text]) => ({ keys: [key], label: key, does: `${text}: keep both, and be told who they are`, act: () => buttons[0].disabled || vote(choice) })), { keys: ["m"], label: "m", does: "note", act: () => note.focus() }] };
}

/** Marks by the team's criteria, and the button that keeps the run: {box, keys, tell(chat)}. */
export function keepPanel(criteria, mayQueue, keep) {
  const marks = new Map();
  const rows = criteria.map((criterion) => markRow(criterion, marks));
  const note = h("input", { type: "text", class: "field", maxLength: 4000, placeholder: "why? (m)", "aria-label": "Note" });
  const queue = h("input", { type: "checkbox", name: "queue" });
  const tick = correctionTick();
  const button = h("button", { type: "button", class: "main", onclick: () => give() }, "Keep as a run ", h("kbd", {}, "k"));
  const give = async () => {
    if (button.disabled) return;
    button.disabled = true;
    const said = [...marks].map(([criterion, value]) => ({ criterion, value }));
    if (!(await keep({ marks: said, queue: queue.checked, note: note.value, ...tick.said() }))) button.disabled = false;
  };
  // One word for all questions that weigh; a gate is a veto of its own and is answered by hand. What it sets is seen before it is kept.
  const all = (share) => {
    for (const row of rows.filter((one) => !one.criterion.gate)) row.set(share);
  };
  const quick = rows.some((row) => !row.criterion.gate) && [h("button", { type: "button", onclick: () => all(1), title: "The best mark on every question" }, "Good ", h("kbd", {}, "g")), h("button", { type: "button", onclick: () => all(0), title: "The worst mark on every question" }, "Bad ", h("kbd", {}, "b"))];
  const box = h("footer", { class: "keep" }, h("div", { class: "keep-marks" }, rows.map((row) => row.box)), h("div", { class: "row" }, quick, note, tick.box, mayQueue && h("label", { class: "tick" }, queue, "to the queue"), button));
  return {
    box,
    tell: tick.tell,
    keys: [
      ...(quick ? [{ keys: ["g"], label: "g", does: "good: the best mark on every question", act: () => all(1) }, { keys: ["b"], label: "b", does: "bad: the worst mark on every question", act: () => all(0) }] : []),
      ...(mayQueue ? [{ keys: ["q"], label: "q", does: "to the queue, or not", act: () => (queue.checked = !queue.checked) }] : []),
      { keys: ["m"], label: "m", does: "note", act: () => note.focus() },
      { keys: ["k"], label: "k", does: "keep the chat as a run", act: give },
    ],
  };
}

function markRow(criterion, marks) {
  const buttons = criterion.marks.map((mark) => h("button", { type: "button", class: "mark", title: mark.anchor, "aria-pressed": "false", "aria-label": `${criterion.name} ${mark.value} ${mark.anchor}`, onclick: () => choose(marks.get(criterion.key) === mark.value ? null : mark.value) }, String(mark.value)));
  const choose = (value) => {
    if (value === null) marks.delete(criterion.key);
    else marks.set(criterion.key, value);
    buttons.forEach((button, index) => {
      const on = criterion.marks[index].value === value;
      button.classList.toggle("chosen", on);
      button.setAttribute("aria-pressed", String(on));
    });
  };
  const ordered = [...criterion.marks].sort((a, b) => (criterion.higher_is_better ? a.value - b.value : b.value - a.value));
  return { criterion, set: (share) => choose(ordered.at(share ? -1 : 0).value), box: h("div", { class: "mark-row", "data-criterion": criterion.key }, h("span", { title: criterion.description }, visible(criterion.name.replaceAll("_", " "))), h("div", { class: "marks" }, buttons)) };
}

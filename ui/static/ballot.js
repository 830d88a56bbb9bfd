// What is asked about a pair: a row per criterion, the overall question last, each on one scale from A to B. Every answer is saved at once.

import { h, visible } from "./dom.js";
import { LETTERS } from "./letters.js";
import { notice } from "./place.js";
import { onSave, save, unsaved } from "./save.js";

const VOTES = "/api/preferences";
export const OVERALL = "overall";
const WITHDRAWN = "withdrawn";

/** The scale: choice, its key, and what it says. One table for buttons, badges and keys. */
export const SCALE = [
  ["left_far", "1", "A far better"],
  ["left", "2", "A better"],
  ["tie", "3", "Equal"],
  ["right", "4", "B better"],
  ["right_far", "5", "B far better"],
  ["both_bad", "0", "Both bad"],
];

/** The ballot of a pair: `box` to show, `keys` to use, `missing()` questions without an answer, and `stop()`. `done` is what Enter does. */
export function ballot(pair, { root, done }) {
  const questions = [...pair.criteria.map((one) => ({ key: one.key, name: one.name, asks: one.description, gate: one.gate })), { key: OVERALL, name: OVERALL, asks: "All in all, which run is better? Trainings learn from this answer." }];
  const answers = new Map(pair.answers.map((said) => [said.criterion, { choice: said.choice, note: said.note, state: "saved" }]));
  for (const { url, body } of unsaved()) {
    if (url !== VOTES || body.draw !== pair.draw) continue;
    if (body.choice === WITHDRAWN) answers.delete(body.criterion);
    else answers.set(body.criterion, { choice: body.choice, note: body.note, state: "pending", key: body.key });
  }
  const drafts = new Map();
  const past = [];
  const missing = () => questions.filter((one) => !answers.has(one.key));
  let active = questions.indexOf(missing()[0] ?? questions[questions.length - 1]);

  const rows = h("div", { class: "ballot-rows" });
  const note = h("input", { type: "text", class: "field", maxLength: 4000, placeholder: `why? (${LETTERS.note})`, "aria-label": "Note on this answer" });
  const asks = h("p", { class: "question" });
  const box = h("footer", { class: "ballot", "aria-label": "Your answers" }, h("div", { class: "ballot-ask" }, asks, note, h("button", { type: "button", class: "primary", onclick: () => done() }, "Done ", h("kbd", {}, LETTERS.done))), rows);

  const give = (question, choice, text) => {
    const words = text ?? drafts.get(question.key) ?? answers.get(question.key)?.note ?? "";
    drafts.delete(question.key);
    const key = save(VOTES, { draw: pair.draw, criterion: question.key, choice, note: choice === WITHDRAWN ? "" : words });
    if (choice === WITHDRAWN) answers.delete(question.key);
    else answers.set(question.key, { choice, note: words, state: "pending", key });
  };
  const choose = (at, choice) => {
    past.push([questions[at], answers.get(questions[at].key)]);
    give(questions[at], choice);
    const open = (one) => !answers.has(one.key);
    const next = questions.findIndex((one, place) => place > at && open(one));
    active = next >= 0 ? next : Math.max(at, questions.findIndex(open));
    draw();
  };
  const undo = () => {
    const [question, was] = past.pop() ?? [];
    if (!question) return;
    give(question, was ? was.choice : WITHDRAWN, was?.note ?? "");
    active = questions.indexOf(question);
    draw();
  };
  const pick = (at) => {
    active = (at + questions.length) % questions.length;
    draw();
  };
  // An acknowledgement draws everything anew while somebody types: what stands in the field is kept from the first letter on.
  note.addEventListener("input", () => drafts.set(questions[active].key, note.value));
  note.addEventListener("change", () => {
    const question = questions[active];
    const given = answers.get(question.key);
    if (given && given.note !== note.value) give(question, given.choice, note.value);
    draw();
  });
  note.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.isComposing) return;
    event.preventDefault();
    note.blur();
  });
  const draw = () => {
    const question = questions[active];
    asks.replaceChildren(h("b", {}, visible(nameOf(question))), " ", ...visible(question.asks));
    const words = drafts.get(question.key) ?? answers.get(question.key)?.note ?? "";
    if (note.value !== words) note.value = words;
    rows.replaceChildren(...questions.map((one, at) => row(one, answers.get(one.key), at === active, { pick: () => pick(at), choose: (choice) => choose(at, choice) })));
    // Scrolled by hand: scrollIntoView would move the runs above as well.
    const shown = rows.children[active];
    if (shown.offsetTop < rows.scrollTop || shown.offsetTop + shown.offsetHeight > rows.scrollTop + rows.clientHeight) rows.scrollTop = shown.offsetTop - 4;
  };
  const stop = onSave((change) => {
    if (!change.item) return;
    for (const [key, answer] of answers) {
      if (answer.key !== change.item.body.key) continue;
      if (change.kind === "saved") answer.state = "saved";
      else answers.delete(key);
      draw();
    }
  });
  draw();

  const press = (key) => choose(active, SCALE.find(([, digit]) => digit === key)[0]);
  const keys = [
    ...SCALE.map(([, key, does]) => ({ keys: [key], label: key, does, act: press })),
    { keys: ["ArrowDown", "j"], label: "↓ j", does: "next question", act: () => pick(active + 1) },
    { keys: ["ArrowUp", "k"], label: "↑ k", does: "question before", act: () => pick(active - 1) },
    { keys: [LETTERS.undo], label: LETTERS.undo, does: "undo the last answer", act: undo },
    { keys: [LETTERS.note], label: LETTERS.note, does: "note on this answer", act: () => note.focus() },
    { keys: [LETTERS.done], label: LETTERS.done, does: "done, and the next pair", act: () => done() },
  ];
  const ready = () => {
    const open = missing().find((one) => one.key === OVERALL);
    if (!open) return true;
    pick(questions.indexOf(open));
    notice(root, "Say first which run is better all in all.");
    return false;
  };
  return { box, keys, missing, ready, stop };
}

function nameOf(question) {
  return question.name.replaceAll("_", " ");
}

function row(question, answer, isActive, { pick, choose }) {
  const marks = SCALE.map(([choice, key, says]) => {
    const chosen = answer?.choice === choice;
    return h(
      "button",
      { type: "button", class: `mark ${choice}` + (chosen ? ` chosen ${answer.state}` : ""), title: `key ${key}`, "aria-pressed": String(chosen), "aria-label": `${nameOf(question)}: ${says}`, onclick: (event) => (event.stopPropagation(), choose(choice)) },
      says,
      isActive && h("kbd", {}, key),
    );
  });
  const gate = question.gate && h("span", { class: "chip gate", title: "A veto: failing it makes a run worth 0" }, "gate");
  return h(
    "div",
    { class: "ballot-row" + (isActive ? " active" : "") + (question.key === OVERALL ? " all" : ""), role: "group", "aria-label": nameOf(question), "data-criterion": question.key, onclick: pick },
    h("span", { class: "ballot-name" }, h("span", {}, visible(nameOf(question))), gate, answer?.note && h("span", { class: "dim", title: answer.note }, "✎")),
    h("span", { class: "marks" }, marks),
  );
}

// What is asked about a pair: a row per criterion, the overall question last, each on one scale from A to B or "I can't judge it", with the
// criterion's chips as reasons. Every answer is saved at once.

import { h, visible } from "./dom.js";
import { CHIP_LETTERS, LETTERS } from "./letters.js";
import { notice } from "./place.js";
import { CANT_JUDGE, WITHDRAWN } from "./rate.js";
import { onSave, save, unsaved } from "./save.js";

const VOTES = "/api/preferences";
export const OVERALL = "overall";

/** The scale: choice, its key, and what it says. One table for buttons, badges and keys. */
export const SCALE = [
  ["left_far", "1", "A far better"],
  ["left", "2", "A better"],
  ["tie", "3", "Equal"],
  ["right", "4", "B better"],
  ["right_far", "5", "B far better"],
  ["both_bad", "0", "Both bad"],
];

/** What a rater may say besides: not a choice, so neither a decision nor a vote offers it. */
const ANSWERS = [...SCALE, [CANT_JUDGE, LETTERS.cantJudge, "?"]];

/** The ballot of a pair: `box` to show, `keys` to use, `missing()` questions without an answer, and `stop()`. `done` is what Enter does. */
export function ballot(pair, { root, done }) {
  const questions = [...pair.criteria.map((one) => ({ key: one.key, name: one.name, asks: one.description, gate: one.gate, chips: one.chips })), { key: OVERALL, name: OVERALL, chips: [], asks: "All in all, which run is better? Trainings learn from this answer." }];
  const answers = new Map(pair.answers.map((said) => [said.criterion, { choice: said.choice, note: said.note, chips: said.chips, state: "saved" }]));
  for (const { url, body } of unsaved()) {
    if (url !== VOTES || body.draw !== pair.draw) continue;
    if (body.choice === WITHDRAWN) answers.delete(body.criterion);
    else answers.set(body.criterion, { choice: body.choice, note: body.note, chips: body.chips ?? [], state: "pending", key: body.key });
  }
  const drafts = new Map();
  // Chips that were ticked before there is an answer to keep them with.
  const ticked = new Map();
  const chipsOf = (question) => answers.get(question.key)?.chips ?? ticked.get(question.key) ?? [];
  const past = [];
  const missing = () => questions.filter((one) => !answers.has(one.key));
  let active = questions.indexOf(missing()[0] ?? questions[questions.length - 1]);

  const rows = h("div", { class: "ballot-rows" });
  const note = h("input", { type: "text", class: "field", maxLength: 4000, placeholder: `why? (${LETTERS.note})`, "aria-label": "Note on this answer" });
  const asks = h("p", { class: "question" });
  const reasons = h("div", { class: "reasons", role: "group" });
  const box = h("footer", { class: "ballot", "aria-label": "Your answers" }, h("div", { class: "ballot-ask" }, asks, note, h("button", { type: "button", class: "primary", onclick: () => done() }, "Done ", h("kbd", {}, LETTERS.done))), reasons, rows);

  const give = (question, choice, text, ticks) => {
    const words = text ?? drafts.get(question.key) ?? answers.get(question.key)?.note ?? "";
    const chips = choice === WITHDRAWN ? [] : (ticks ?? chipsOf(question));
    drafts.delete(question.key);
    ticked.delete(question.key);
    const key = save(VOTES, { draw: pair.draw, criterion: question.key, choice, note: choice === WITHDRAWN ? "" : words, chips });
    if (choice === WITHDRAWN) answers.delete(question.key);
    else answers.set(question.key, { choice, note: words, chips, state: "pending", key });
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
    give(question, was ? was.choice : WITHDRAWN, was?.note ?? "", was?.chips ?? []);
    active = questions.indexOf(question);
    draw();
  };
  const tick = (chip) => {
    const question = questions[active];
    if (chip === undefined) return;
    const [given, had] = [answers.get(question.key), chipsOf(question)];
    const chips = question.chips.filter((one) => (one === chip) !== had.includes(one));
    if (given) {
      past.push([question, given]);
      give(question, given.choice, given.note, chips);
    } else ticked.set(question.key, chips);
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
    reasons.replaceChildren(...question.chips.map((chip, at) => reason(chip, CHIP_LETTERS[at], chipsOf(question).includes(chip), () => tick(chip))));
    reasons.hidden = question.chips.length === 0;
    reasons.setAttribute("aria-label", `${nameOf(question)}: why`);
    rows.replaceChildren(...questions.map((one, at) => row({ ...one, ticked: chipsOf(one) }, answers.get(one.key), at === active, { pick: () => pick(at), choose: (choice) => choose(at, choice) })));
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

  const press = (key) => choose(active, ANSWERS.find(([, digit]) => digit === key)[0]);
  const keys = [
    ...ANSWERS.map(([choice, key, does]) => ({ keys: [key], label: key, does: choice === CANT_JUDGE ? "I can't judge it" : does, act: press })),
    { keys: CHIP_LETTERS, label: CHIP_LETTERS.join(" "), does: "tick a reason, in the order shown", act: (letter) => tick(questions[active].chips[CHIP_LETTERS.indexOf(letter)]) },
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

/** A reason, of the team's own words. */
function reason(chip, letter, isOn, onclick) {
  return h("button", { type: "button", class: "reason" + (isOn ? " chosen" : ""), "aria-pressed": String(isOn), onclick }, visible(chip), h("kbd", {}, letter));
}

function row(question, answer, isActive, { pick, choose }) {
  const marks = ANSWERS.map(([choice, key, says]) => {
    const chosen = answer?.choice === choice;
    const isSilent = choice === CANT_JUDGE;
    return h(
      "button",
      { type: "button", class: `mark ${choice}` + (chosen ? ` chosen ${answer.state}` : ""), title: isSilent ? `${key}: I can't judge it` : `key ${key}`, "aria-pressed": String(chosen), "aria-label": `${nameOf(question)}: ${isSilent ? "I can't judge it" : says}`, onclick: (event) => (event.stopPropagation(), choose(choice)) },
      says,
      isActive && h("kbd", {}, key),
    );
  });
  const gate = question.gate && h("span", { class: "chip gate", title: "A veto: failing it makes a run worth 0" }, "gate");
  return h(
    "div",
    { class: "ballot-row" + (isActive ? " active" : "") + (question.key === OVERALL ? " all" : ""), role: "group", "aria-label": nameOf(question), "data-criterion": question.key, onclick: pick },
    h("span", { class: "ballot-name" }, h("span", {}, visible(nameOf(question))), gate, (answer?.note || question.ticked.length > 0) && h("span", { class: "dim", title: [...question.ticked, answer?.note].filter(Boolean).join("; ") }, "✎")),
    h("span", { class: "marks" }, marks),
  );
}

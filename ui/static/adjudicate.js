// One case, to decide: what happened, everyone's answer side by side, and the lead's word with its reason. It adds a record and changes none.

import { answerChip, nameOf, who } from "./agreement.js";
import { SCALE } from "./ballot.js";
import { sides } from "./compare.js";
import { h, visible } from "./dom.js";
import { useKeys } from "./keys.js";
import { addressOf, notice } from "./place.js";
import { number } from "./rate.js";
import { onSave, read, save } from "./save.js";
import { timeline, toggle } from "./timeline.js";

export async function showCase(view, { query, root, current }) {
  const shown = await read("/api/agreement/case?" + query);
  const wanted = Object.fromEntries(query);
  const isPair = wanted.kind === "pair";
  const back = addressOf("agreement", "cases", { taskset: wanted.taskset, criterion: wanted.criterion, kind: wanted.kind });
  const choices = isPair ? SCALE.map(([value, key, label]) => ({ value, key, label, anchor: "" })) : marksOf(shown.criterion);
  const state = { choice: undefined, sent: null };

  const why = h("textarea", { class: "why", rows: 3, maxLength: 4000, "aria-label": "Why", placeholder: "why? (m) It is kept with the decision, and everyone can read it" });
  const buttons = choices.map((one) => h("button", { type: "button", class: "mark", "aria-pressed": "false", title: one.anchor, onclick: () => choose(one) }, one.label, one.label !== one.key && h("kbd", {}, one.key)));
  const done = h("button", { type: "button", class: "decide", onclick: () => decide() }, "Decide ", h("kbd", {}, "Enter"));
  const choose = (one) => {
    state.choice = one;
    buttons.forEach((button, at) => {
      button.classList.toggle("chosen", choices[at] === one);
      button.setAttribute("aria-pressed", String(choices[at] === one));
    });
    if (!why.value) why.focus();
  };
  const decide = () => {
    if (state.sent) return;
    if (!state.choice) return notice(root, "Choose what holds first.");
    if (!why.value.trim()) return notice(root, "Say why: a decision without a reason helps no rater.");
    notice(root, "");
    done.disabled = true;
    state.sent = isPair
      ? save("/api/decisions/pair", { draw: shown.draw, criterion: wanted.criterion, choice: state.choice.value, note: why.value })
      : save("/api/decisions", { trajectory: wanted.run, criterion: wanted.criterion, step: wanted.step === undefined ? null : Number(wanted.step), value: state.choice.value, note: why.value });
  };
  why.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    decide();
  });
  const stop = onSave((change) => {
    if (!state.sent || change.item?.body.key !== state.sent) return;
    if (change.kind === "saved") location.hash = back;
    else {
      state.sent = null;
      done.disabled = false;
    }
  });
  view.addEventListener("gone", () => stop());

  const side = h(
    "aside",
    { class: "rating", "aria-label": "Decision" },
    h("h2", {}, visible(nameOf(shown.case.question))),
    shown.criterion && h("p", { class: "question" }, visible(shown.criterion.description)),
    h("h2", {}, "What everyone says"),
    h("ul", { class: "said" }, shown.case.answers.map((answer) => h("li", {}, answerChip(sided(answer, shown)), answer.note && h("p", { class: "noted" }, visible(answer.note))))),
    shown.case.decision && h("div", { class: "standing" }, h("h2", {}, "Decided so far"), answerChip(sided(shown.case.decision, shown)), h("p", { class: "noted" }, visible(shown.case.decision.note), " (", who(["human", shown.case.decision.rater[1]]), ", ", shown.case.decision.time.slice(0, 16).replace("T", " "), ")")),
    h("h2", {}, shown.case.decision ? "Decide anew" : "What holds"),
    h("div", { class: "marks" + (isPair ? " sides" : ""), role: "group", "aria-label": "What holds" }, buttons),
    why,
    done,
    h("p", { class: "hint" }, "It counts alone from now on, in the overall value and where preferences are learned from. Nobody's answer is changed."),
  );
  view.append(
    h("div", { class: "run-head" }, h("a", { class: "back", href: back, title: "Back to the cases (l)" }, "‹"), h("h1", {}, "Decide"), h("span", { class: "dim" }, visible(nameOf(shown.case.question))), h("span", { class: "grow" }), !isPair && h("a", { class: "button quiet", href: addressOf("run", wanted.run, { s: wanted.step }) }, "The run's page")),
    h("div", { class: "split" }, h("div", { class: "left" }, isPair ? sides(shown) : runOf(shown, wanted.step)), side),
  );
  useKeys([
    { keys: choices.map((one) => one.key), label: choices.map((one) => one.key).join(" "), does: "choose what holds", act: (key) => choose(choices.find((one) => one.key === key)) },
    { keys: ["m"], label: "m", does: "say why (Enter decides)", act: () => why.focus() },
    { keys: ["Enter"], label: "Enter", does: "decide", act: decide },
    { keys: ["i"], label: "i", does: "open or fold what both begin with", act: () => view.querySelectorAll(".pair > .shared").forEach((box) => (box.open = !box.open)) },
    { keys: ["o"], label: "o", does: "fold or unfold all", act: () => [...view.querySelectorAll(".entry")].forEach((box) => toggle(box)) },
    { keys: ["l"], label: "l", does: "back to the cases", act: () => (location.hash = back) },
  ], current);
}

function marksOf(criterion) {
  const marks = (criterion?.marks ?? []).map((mark) => ({ value: mark.value, key: mark.key, label: number(mark.value), anchor: mark.anchor }));
  return [...marks, { value: null, key: "x", label: "n/a", anchor: "does not apply here" }];
}

/** "first" and "second" as the sides of this screen. */
function sided(answer, shown) {
  if (!shown.draw || answer.value === null || answer.value > 1) return answer;
  const isLeft = (answer.value === 0) !== shown.swapped;
  return { ...answer, word: isLeft ? "A is better" : "B is better" };
}

function runOf(shown, step) {
  const rows = h("div", { class: "timeline" }, timeline(shown.run.timeline));
  const at = step === undefined ? null : rows.querySelector(`.entry[data-step="${Number(step)}"]`);
  at?.classList.add("at");
  if (at) requestAnimationFrame(() => at.scrollIntoView({ block: "center" }));
  return [rows, h("p", { class: "ended dim" }, `ended: ${shown.run.stop_reason.replaceAll("_", " ")}`)];
}

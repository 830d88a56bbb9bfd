// The rating panel: a card per criterion of the team, for the whole run and for the step that is selected.

import { h, visible } from "./dom.js";
import { CHIP_LETTERS, LETTERS } from "./letters.js";
import { save, unsaved } from "./save.js";

const SCORES = "/api/scores";

/** Answers that are no value: the rater cannot tell, and an answer taken back. null is "does not apply". */
export const CANT_JUDGE = "cant_judge";
export const WITHDRAWN = "withdrawn";
const SILENT = [CANT_JUDGE, WITHDRAWN];

/** What a mark says: a value, null, or CANT_JUDGE. */
export function answerOf(mark) {
  return mark.status === CANT_JUDGE ? CANT_JUDGE : mark.value;
}

/** The newest word on every criterion and step: what the server knows, overlaid with what this browser has not saved yet. */
export function makeMarks(run) {
  const mine = new Map();
  const verdicts = new Map();
  for (const score of run.scores) {
    const place = placeOf(score.criterion, score.step);
    if (score.mine && score.status === WITHDRAWN) mine.delete(place);
    else if (score.mine) mine.set(place, { value: score.value, status: score.status, note: score.note, chips: score.chips, state: "saved" });
    else if (SILENT.includes(score.status)) continue;
    else verdicts.set(place, [...(verdicts.get(place) ?? []), score]);
  }
  const sent = new Map();
  for (const item of unsaved()) {
    const body = item.body;
    if (item.url !== SCORES || body.trajectory !== run.id) continue;
    sent.set(body.key, { place: placeOf(body.criterion, body.step), was: mine.get(placeOf(body.criterion, body.step)) });
    if (body.status === WITHDRAWN) mine.delete(placeOf(body.criterion, body.step));
    else mine.set(placeOf(body.criterion, body.step), { value: body.value, status: body.status, note: body.note, chips: body.chips ?? [], state: "pending", key: body.key });
  }
  // Chips that were ticked before there is an answer to keep them with, and by key what each mark that is on its way took the place of.
  return { mine, verdicts, ticked: new Map(), sent };
}

export function placeOf(criterion, step) {
  return `${criterion}|${step ?? ""}`;
}

/** Save a mark: a value, null, CANT_JUDGE or WITHDRAWN. It shows at once as pending and as given only when acknowledged. */
export function giveMark(run, marks, criterion, step, answer, text, ticks) {
  const place = placeOf(criterion.key, step);
  const note = text ?? marks.mine.get(place)?.note ?? "";
  const chips = answer === WITHDRAWN ? [] : (ticks ?? chipsOf(marks, place));
  marks.ticked.delete(place);
  const status = SILENT.includes(answer) ? answer : null;
  const value = status ? null : answer;
  const key = save(SCORES, { trajectory: run.id, criterion: criterion.key, step, value, status, note, chips });
  marks.sent.set(key, { place, was: marks.mine.get(place) });
  if (status === WITHDRAWN) marks.mine.delete(place);
  else marks.mine.set(place, { value, status, note, chips, state: "pending", key });
}

/** The chips that are ticked at a place, with an answer or before there is one. */
export function chipsOf(marks, place) {
  return marks.mine.get(place)?.chips ?? marks.ticked.get(place) ?? [];
}

/** Tick a chip, or take the tick away: with the answer where there is one, else kept until there is. */
export function tick(run, marks, { criterion, step }, chip) {
  const place = placeOf(criterion.key, step);
  const had = chipsOf(marks, place);
  const chips = criterion.chips.filter((one) => (one === chip) !== had.includes(one));
  const mine = marks.mine.get(place);
  if (mine) giveMark(run, marks, criterion, step, answerOf(mine), mine.note, chips);
  else marks.ticked.set(place, chips);
}

/** Take an acknowledgement or refusal; true if it was about one of these marks. */
export function settle(marks, change) {
  const key = change.item?.body.key;
  const { place, was } = marks.sent.get(key) ?? {};
  if (place === undefined) return false;
  marks.sent.delete(key);
  const now = marks.mine.get(place);
  if (change.kind === "saved") {
    if (now?.key === key) now.state = "saved";
  } else if (now === undefined || now.key === key) {
    // What stood there before still does, for the server.
    if (was) marks.mine.set(place, was);
    else marks.mine.delete(place);
  }
  return true;
}

/** The panel as nodes. `actions`: pick(index), mark(index, value), note(index, text). */
export function panel(cards, marks, active, actions, nSteps) {
  const draw = (card) => cardBox(card, cards.indexOf(card), marks, cards.indexOf(card) === active, actions);
  const part = (title, wanted) => {
    const found = cards.filter((card) => card.part === wanted);
    return found.length ? [h("h2", {}, title), ...found.map(draw)] : [];
  };
  const step = cards.find((card) => card.part === "step")?.step;
  const hint = step === undefined && nSteps > 0 && h("p", { class: "hint" }, h("kbd", {}, LETTERS.nextStep), " ", h("kbd", {}, LETTERS.stepBefore), " or a click selects a step to judge it alone");
  return [...part("The whole run", "run"), ...part(`Step ${step}`, "step"), ...(hint ? [hint] : []), ...part("Answered by code", "check")];
}

/** The cards in the order they are shown: the run's questions to people, the selected step's, and those that code answers. */
export function cardsOf(criteria, step) {
  const cards = criteria.map((criterion) => ({
    criterion,
    step: criterion.level === "step" ? step : null,
    part: criterion.level === "step" ? "step" : criterion.kind === "check" ? "check" : "run",
  }));
  const people = (card) => (card.criterion.kind === "check" ? 1 : 0);
  const inStep = step === null ? [] : cards.filter((card) => card.part === "step").sort((a, b) => people(a) - people(b));
  return [...cards.filter((card) => card.part === "run"), ...inStep, ...cards.filter((card) => card.part === "check")];
}

function cardBox(card, index, marks, isActive, actions) {
  const { criterion, step } = card;
  const place = placeOf(criterion.key, step);
  const mine = marks.mine.get(place);
  const verdicts = marks.verdicts.get(place) ?? [];
  const choices = [...criterion.marks.map((mark) => ({ ...mark, label: number(mark.value) })), { value: null, key: LETTERS.notApplicable, anchor: "does not apply here", label: "n/a" }, { value: CANT_JUDGE, key: LETTERS.cantJudge, anchor: "I can't judge it", label: "?" }];
  const anchors = criterion.marks.filter((mark) => mark.anchor);
  const noted = mine?.note;
  const box = h(
    "section",
    { class: "card" + (isActive ? " active" : "") + (criterion.kind === "check" ? " check" : ""), "data-criterion": criterion.key, onclick: () => actions.pick(index) },
    h("header", {}, h("h3", {}, visible(criterion.name.replaceAll("_", " "))), criterion.gate && h("span", { class: "chip gate", title: "A veto: failing it makes the run worth 0" }, "gate"), h("span", { class: "grow" }), verdicts.map(verdict)),
    h("p", { class: "question" }, visible(criterion.description)),
    h("div", { class: "marks", role: "group", "aria-label": criterion.name }, choices.map((choice) => markButton(choice, mine, index, actions))),
    isActive && anchors.length > 0 && h("ul", { class: "anchors" }, anchors.map((mark) => h("li", { class: mine && mine.value === mark.value ? "chosen" : "" }, h("b", {}, number(mark.value)), " ", visible(mark.anchor)))),
  );
  const ticked = chipsOf(marks, place);
  if (isActive && criterion.chips.length) box.append(chipBox(criterion, ticked, index, actions));
  else if (ticked.length) box.append(h("p", { class: "ticked" }, ticked.map((chip) => h("span", { class: "chip mine" }, visible(chip)))));
  if (isActive && mine) box.append(noteBox(mine, index, actions));
  else if (noted) box.append(h("p", { class: "noted" }, visible(noted)));
  return box;
}

/** Short reasons beside a value, of the team's own words. */
function chipBox(criterion, ticked, index, actions) {
  return h(
    "div",
    { class: "reasons", role: "group", "aria-label": `${criterion.name}: why` },
    criterion.chips.map((chip, at) => {
      const isOn = ticked.includes(chip);
      return h("button", { type: "button", class: "reason" + (isOn ? " chosen" : ""), "aria-pressed": String(isOn), onclick: (event) => (event.stopPropagation(), actions.tick(index, chip)) }, visible(chip), h("kbd", {}, CHIP_LETTERS[at]));
    }),
  );
}

function markButton(choice, mine, index, actions) {
  const chosen = mine && answerOf(mine) === choice.value;
  return h(
    "button",
    {
      type: "button",
      class: "mark" + (chosen ? ` chosen ${mine.state}` : "") + (choice.value === null || choice.value === CANT_JUDGE ? " none" : ""),
      title: choice.anchor ? `${choice.key}: ${choice.anchor}` : `key ${choice.key}`,
      "aria-pressed": chosen ? "true" : "false",
      onclick: (event) => (event.stopPropagation(), actions.mark(index, choice.value)),
    },
    choice.label,
    choice.label !== choice.key && h("kbd", {}, choice.key),
  );
}

function noteBox(mine, index, actions) {
  const field = h("textarea", { class: "note", rows: 1, maxLength: 4000, placeholder: `note (${LETTERS.note})`, value: mine.note, "aria-label": "Note", onclick: (event) => event.stopPropagation() });
  const fit = () => {
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight + 2}px`;
  };
  field.addEventListener("input", fit);
  field.addEventListener("blur", () => field.value !== mine.note && actions.note(index, field.value));
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    field.blur();
  });
  requestAnimationFrame(fit);
  return field;
}

/** What code, a judge or someone else said, as a chip. */
export function verdict(score) {
  const who = { check: "check", judge: "judge", reward_model: "reward", human: score.rater, adjudicator: "decided" }[score.rater_kind] ?? score.rater_kind;
  if (score.status === "error") return h("span", { class: "chip bad", title: score.note }, visible(who), " broke");
  if (score.status === "not_applicable") return h("span", { class: "chip calm", title: `${who}: does not apply` }, visible(who), " n/a");
  const tone = score.unit === null ? "calm" : score.unit >= 0.75 ? "good" : score.unit >= 0.4 ? "warn" : "bad";
  const sign = score.unit === 1 ? "✓" : score.unit === 0 ? "✗" : number(score.value);
  return h("span", { class: "chip " + tone, title: `${who}: ${score.value}${score.note ? " – " + score.note : ""}` }, visible(who), " ", sign);
}

/** A value without needless digits. */
export function number(value) {
  return String(Math.round(value * 100) / 100);
}

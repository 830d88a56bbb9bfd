// One run: what happened on the left, how good it was on the right. Everything works without a mouse.

import { corrections } from "./correct.js";
import { h, reveal, soon, visible } from "./dom.js";
import { goldTest } from "./fill.js";
import { useKeys } from "./keys.js";
import { relatives } from "./links.js";
import { listed, maker, meter, readMore, stopChip } from "./list.js";
import { minimap } from "./minimap.js";
import { addressOf, go, note, notice } from "./place.js";
import { toggleGuidelines } from "./guidelines.js";
import { CHIP_LETTERS, LETTERS } from "./letters.js";
import { answerOf, CANT_JUDGE, cardsOf, giveMark, makeMarks, number, panel, placeOf, settle, tick, verdict, WITHDRAWN } from "./rate.js";
import { onSave, read } from "./save.js";
import { timeline, toggle } from "./timeline.js";
import { tokenView } from "./tokens.js";

/** Show a run; `given` is what the server told of it already, in a queue, where it has no neighbours. */
export async function showRun(view, { id, query, root, given, session, current }) {
  const run = given ?? (await readRun(id));
  const marks = makeMarks(run);
  const nSteps = run.timeline.filter((entry) => entry.kind === "step").length;
  const asked = Number.parseInt(query.get("s") ?? "", 10);
  const screen = { step: asked >= 0 && asked < nSteps ? asked : null, card: null };

  const rows = h("div", { class: "timeline" });
  const side = h("aside", { class: "rating", "aria-label": "Rating" });
  const stepMarks = new Map();
  const extra = (entry) => {
    if (entry.kind !== "step") return null;
    const box = h("span", { class: "step-marks" });
    stepMarks.set(entry.step, box);
    return box;
  };
  rows.append(...timeline(run.timeline, { extra, onPick: (entry) => entry.kind === "step" && selectStep(entry.step, false) }));
  if (run.error) rows.append(h("article", { class: "entry has-error" }, h("header", {}, h("span", { class: "role" }, h("b", {}, "Error"))), h("pre", { class: "result" }, visible(run.error))));
  const tokens = tokenView(run, rows);
  const map = minimap(run, (entry) => {
    const box = rows.querySelector(`.entry[data-message="${entry.message}"]`);
    toggle(box, false);
    if (entry.step !== null) selectStep(entry.step);
    reveal(box);
  });

  const mended = corrections(run, rows);
  mended.ready.catch((error) => notice(root, error.message));

  let cards = [];
  const past = [];
  // Steps whose chips are to be drawn anew: a mark changes those of one step, and a run may have hundreds.
  const stale = new Set(stepMarks.keys());
  const drawMarks = () => {
    cards = cardsOf(run.criteria, screen.step);
    if (!cards.some((card) => card.criterion.key === screen.card)) screen.card = cards[0]?.criterion.key ?? null;
    const active = cards.findIndex((card) => card.criterion.key === screen.card);
    side.replaceChildren(...panel(cards, marks, active, actions, nSteps), run.criteria_missing ? h("p", { class: "fault" }, visible(run.criteria_missing)) : "");
    side.querySelector(".card.active")?.scrollIntoView({ block: "nearest" });
    for (const step of stale) redraw(stepMarks.get(step), stepChips(run, marks, step));
    stale.clear();
  };
  // Nothing is drawn anew under somebody who types, whose next letters would be keys, nor under the click that ends the typing.
  const drawSoon = soon(() => {
    const field = side.querySelector("textarea:focus");
    if (field) field.addEventListener("blur", drawLater, { once: true });
    else if (side.matches(":active")) drawLater();
    else drawMarks();
  });
  const drawLater = () => setTimeout(drawSoon, CLICK);
  const actions = {
    pick: (index) => {
      if (cards[index].criterion.key === screen.card) return;
      screen.card = cards[index].criterion.key;
      drawMarks();
    },
    mark: (index, value) => {
      const { criterion, step } = cards[index];
      past.push([before(criterion, step)]);
      give(criterion, step, value);
      screen.card = criterion.key;
      advance(index);
    },
    tick: (index, chip) => {
      const { criterion, step } = cards[index];
      past.push([before(criterion, step)]);
      stale.add(step);
      tick(run, marks, { criterion, step }, chip);
      screen.card = criterion.key;
      drawMarks();
    },
    note: (index, text) => {
      const { criterion, step } = cards[index];
      const given = marks.mine.get(placeOf(criterion.key, step));
      if (given) give(criterion, step, answerOf(given), text);
      drawLater();
    },
  };
  const give = (criterion, step, ...answer) => {
    stale.add(step);
    giveMark(run, marks, criterion, step, ...answer);
  };
  const before = (criterion, step) => ({ criterion, step, was: marks.mine.get(placeOf(criterion.key, step)), ticked: marks.ticked.get(placeOf(criterion.key, step)) });
  const undo = () => {
    for (const { criterion, step, was, ticked } of past.pop() ?? []) {
      const place = placeOf(criterion.key, step);
      if (was) give(criterion, step, answerOf(was), was.note, was.chips);
      else if (marks.mine.has(place)) give(criterion, step, WITHDRAWN, "");
      if (!was && ticked) marks.ticked.set(place, ticked);
      else if (!was) marks.ticked.delete(place);
    }
    drawMarks();
  };
  // Every step before the first error is as good as can be, that step and all after it are not; single ones can be marked otherwise.
  const firstError = () => {
    const active = cards.find((card) => card.criterion.key === screen.card)?.criterion;
    const criterion = active?.level === "step" ? active : run.criteria.find((one) => one.level === "step" && one.kind !== "check");
    if (screen.step === null || !criterion) return notice(root, criterion ? `Select the first wrong step (${LETTERS.nextStep}, ${LETTERS.stepBefore}), then press ${LETTERS.firstError}.` : "No criterion of this taskset is about single steps.");
    const values = criterion.marks.map((mark) => mark.value);
    const [worst, best] = criterion.higher_is_better ? [values[0], values[values.length - 1]] : [values[values.length - 1], values[0]];
    const steps = Array.from({ length: nSteps }, (_, step) => step);
    past.push(steps.map((step) => before(criterion, step)));
    for (const step of steps) give(criterion, step, step < screen.step ? best : worst);
    screen.card = criterion.key;
    drawMarks();
  };
  // After a mark the next open question is at hand: the next step for steps, the next unmarked card for the run.
  const advance = (index) => {
    const { criterion, step } = cards[index];
    if (step !== null) {
      if (step + 1 < nSteps) selectStep(step + 1);
      else drawMarks();
      return;
    }
    const isOpen = (card) => card.step === null && card.criterion.kind !== "check" && !marks.mine.has(placeOf(card.criterion.key, null));
    screen.card = (cards.slice(index + 1).find(isOpen) ?? cards[index]).criterion.key;
    drawMarks();
  };
  const selectStep = (step, scroll = true) => {
    for (const box of rows.querySelectorAll(".entry.at")) box.classList.remove("at");
    if (screen.step === null && step !== null) screen.card = run.criteria.find((c) => c.level === "step" && c.kind !== "check")?.key ?? screen.card;
    screen.step = step;
    const box = step === null ? null : rows.querySelector(`.entry[data-step="${step}"]`);
    box?.classList.add("at");
    if (scroll && box) reveal(box);
    map.mark(step);
    // In a queue the address stays the queue's: read again, it must bring the run in hand with its lease, and no other.
    if (!given) note("run", run.id, { s: step });
    drawMarks();
  };
  const moveStep = (by) => {
    if (!nSteps) return;
    selectStep(screen.step === null ? (by > 0 ? 0 : nSteps - 1) : Math.max(0, Math.min(nSteps - 1, screen.step + by)));
  };
  const moveCard = (by) => {
    if (!cards.length) return;
    const active = cards.findIndex((card) => card.criterion.key === screen.card);
    actions.pick((active + by + cards.length) % cards.length);
  };
  const press = (key) => {
    const index = cards.findIndex((card) => card.criterion.key === screen.card);
    if (index < 0) return;
    const value = key === LETTERS.notApplicable ? null : key === LETTERS.cantJudge ? CANT_JUDGE : cards[index].criterion.marks.find((mark) => mark.key === key)?.value;
    if (value !== undefined) actions.mark(index, value);
  };
  const pressChip = (key) => {
    const index = cards.findIndex((card) => card.criterion.key === screen.card);
    const chip = cards[index]?.criterion.chips[CHIP_LETTERS.indexOf(key)];
    if (chip !== undefined) actions.tick(index, chip);
  };
  const neighbours = { before: null, next: null, text: "", isKnown: false };
  const ways = h("span", { class: "ways" });
  const leave = (to, which) => (to ? go("run", to) : notice(root, neighbours.isKnown ? `There is no ${which} run in the list.` : "The list is still being read. Press again in a moment."));

  view.append(head(run, ways, run.bases > 0 && tokens.button, nSteps), map.box, h("div", { class: "split" }, h("div", { class: "left" }, rows, tokens.box), side));
  drawMarks();
  // Not in the queue, where all that is told of a run is the run.
  const test = given || run.hidden ? { button: null, keys: [] } : goldTest(view, { what: "run", url: GOLD, body: { run: run.id }, session, root });
  if (test.button) ways.before(test.button);
  // The run is shown before it is known what stands beside it in the list.
  ways.replaceChildren(...waysTo(neighbours));
  const beside = given ? Promise.resolve(null) : neighboursOf(run.id).catch(() => null);
  beside.then((found) => {
    ways.replaceChildren(...waysTo(Object.assign(neighbours, found, { isKnown: true })));
    if (found?.next) prefetch(found.next);
  });
  // Where a run in one's queue came from is told when it is rated.
  (run.hidden ? Promise.resolve(new Map()) : relatives(run.id)).then(
    (places) => {
      for (const [step, chips] of places) {
        const head = step === null ? view.querySelector(".run-head .relatives") : rows.querySelector(`.entry[data-step="${step}"] > header`);
        head?.append(...chips);
      }
    },
    (error) => notice(root, error.message),
  );
  const stop = onSave((change) => {
    if (!settle(marks, change)) return;
    stale.add(change.item.body.step);
    drawSoon();
  });
  view.addEventListener("gone", () => (stop(), mended.stop()));
  if (screen.step !== null)
    view.addEventListener("shown", () => {
      toggle(rows.querySelector(`.entry[data-step="${screen.step}"]`), false);
      selectStep(screen.step);
    });
  useKeys([...test.keys, ...keysOf(run, { press, pressChip, moveCard, moveStep, selectStep, rows, side, screen, tokens, leave, neighbours, undo, firstError, mended, root })], current);
}

const GOLD = "/api/queue/items/gold";
const CLICK = 300;
const FRESH = 60000;
const NONE = { id: "", asked: 0, run: null };
let ahead = NONE;

// What was read before a mark of one's own on the run was acknowledged lacks that mark.
onSave(({ item }) => {
  if (item?.body.trajectory === ahead.id) ahead = NONE;
});

/** Ask for the next run of the list while this one is rated. Others may rate it meanwhile, so it is not kept for long. */
export function prefetch(id) {
  if (ahead.id === id && performance.now() - ahead.asked < FRESH) return;
  const run = read("/api/runs/" + encodeURIComponent(id));
  run.catch(() => (ahead = NONE));
  ahead = { id, asked: performance.now(), run };
}

async function readRun(id) {
  const { id: known, asked, run } = ahead;
  ahead = NONE;
  if (known !== id || performance.now() - asked > FRESH) return read("/api/runs/" + encodeURIComponent(id));
  return run;
}

function keysOf(run, { press, pressChip, moveCard, moveStep, selectStep, rows, side, screen, tokens, leave, neighbours, undo, firstError, mended, root }) {
  return [
    { keys: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"], label: "0 … 9", does: "give the mark with this digit, then on to the next question", act: press },
    { keys: [LETTERS.notApplicable], label: LETTERS.notApplicable, does: "the criterion does not apply", act: press },
    { keys: [LETTERS.cantJudge], label: LETTERS.cantJudge, does: "it applies, but I can't judge it", act: press },
    { keys: CHIP_LETTERS, label: `${CHIP_LETTERS[0]} … ${CHIP_LETTERS.at(-1)}`, does: "tick the reason with this letter", act: pressChip },
    { keys: [LETTERS.undo], label: LETTERS.undo, does: "undo the last mark", act: undo },
    { keys: [LETTERS.firstError], label: LETTERS.firstError, does: "the selected step is the first error: good before it, bad from it on", act: firstError },
    { keys: [LETTERS.correct], label: LETTERS.correct, does: "correct the selected step (Ctrl+Enter saves)", act: () => (screen.step === null ? notice(root, `Select a step first (${LETTERS.nextStep}, ${LETTERS.stepBefore}).`) : mended.open(screen.step)) },
    { keys: [LETTERS.guidelines], label: LETTERS.guidelines, does: "guidelines of this taskset", act: () => toggleGuidelines(root, run.taskset) },
    { keys: [LETTERS.note], label: LETTERS.note, does: "note on the marked criterion (Enter saves)", act: () => side.querySelector(".card.active textarea")?.focus() },
    { keys: ["ArrowDown"], label: "↓", does: "next criterion", act: () => moveCard(1) },
    { keys: ["ArrowUp"], label: "↑", does: "criterion before", act: () => moveCard(-1) },
    { keys: [LETTERS.nextStep, "ArrowRight"], label: `${LETTERS.nextStep} →`, does: "next step", act: () => moveStep(1) },
    { keys: [LETTERS.stepBefore, "ArrowLeft"], label: `${LETTERS.stepBefore} ←`, does: "step before", act: () => moveStep(-1) },
    { keys: ["Escape"], label: "Esc", does: "no step: the whole run", act: () => selectStep(null, false) },
    { keys: ["o"], label: "o", does: "fold or unfold the step", act: () => toggleAt(rows) },
    { keys: ["O"], label: "O", does: "fold or unfold all", act: () => toggleAll(rows) },
    { keys: ["e"], label: "e", does: "next error", act: () => nextError(rows, screen, selectStep) },
    ...(run.bases ? [{ keys: [LETTERS.tokens], label: LETTERS.tokens, does: "as tokens: what is trained", act: () => tokens.toggle() }] : []),
    { keys: [LETTERS.next], label: LETTERS.next, does: "next run of the list", act: () => leave(neighbours.next, "next") },
    { keys: [LETTERS.before], label: LETTERS.before, does: "run before", act: () => leave(neighbours.before, "earlier") },
    { keys: [LETTERS.list], label: LETTERS.list, does: "back to the list", act: () => (location.hash = "#/runs" + (listed.query ? "?" + listed.query : "")) },
  ];
}

/** The links to the runs before and after this one in the list. */
function waysTo(neighbours) {
  const step = (to, text, key) => h("a", { class: "button quiet" + (to ? "" : " off"), href: to ? addressOf("run", to) : undefined, title: to ? "" : "no more runs in the list" }, text, " ", h("kbd", {}, key));
  return [h("span", { class: "dim position" }, neighbours.text), step(neighbours.before, "Before", LETTERS.before), step(neighbours.next, "Next", LETTERS.next)];
}

function redraw(box, nodes) {
  if (box && (nodes.length || box.firstChild)) box.replaceChildren(...nodes);
}

function head(run, ways, tokensButton, nSteps) {
  const calls = run.timeline.reduce((sum, entry) => sum + entry.calls.length, 0);
  const errors = run.timeline.reduce((sum, entry) => sum + entry.calls.filter((call) => call.error).length + (entry.malformed ? 1 : 0), 0);
  const fact = (value, name) => h("span", { class: "fact" }, h("b", {}, value), " ", name);
  return h(
    "div",
    { class: "run-head" },
    h("a", { class: "back", href: "#/runs" + (listed.query ? "?" + listed.query : ""), title: `Back to the list (${LETTERS.list})` }, "‹"),
    h("h1", { title: run.id }, visible(run.task_id ?? run.id.slice(0, 12))),
    run.family && h("span", { class: "chip calm" }, visible(run.family)),
    run.split && h("span", { class: "dim" }, visible(run.split)),
    !run.hidden && h("span", { class: "fact" }, h("span", { class: "dim" }, run.origin_kind, run.origin_kind === "import" ? " of " : " by "), maker(run.policy)),
    stopChip(run.stop_reason),
    fact(String(nSteps), nSteps === 1 ? "step" : "steps"),
    fact(String(calls), calls === 1 ? "call" : "calls"),
    errors > 0 && h("span", { class: "fact bad" }, h("b", {}, String(errors)), errors === 1 ? " error" : " errors"),
    run.seconds !== null && fact(number(run.seconds), "s"),
    !run.hidden && h("span", { class: "fact", title: "Overall value by the team's criteria" }, h("span", { class: "dim" }, "overall "), meter(run.overall)),
    h("span", { class: "relatives" }),
    h("span", { class: "grow" }),
    tokensButton,
    run.task_id && h("a", { class: "button quiet", href: addressOf("runs", "", { taskset: run.taskset, task_id: run.task_id }), title: "All runs of this task" }, "Same task"),
    !run.hidden && nSteps > 0 && h("a", { class: "button quiet", href: addressOf("play", "", { run: run.id }), title: "Talk with an adapter whose tools answer as they did here" }, "Replay"),
    ways,
  );
}

function stepChips(run, marks, step) {
  const chips = [];
  for (const criterion of run.criteria.filter((c) => c.level === "step")) {
    const place = placeOf(criterion.key, step);
    chips.push(...(marks.verdicts.get(place) ?? []).filter((score) => score.unit !== 1).map(verdict));
    const mine = marks.mine.get(place);
    if (mine) chips.push(h("span", { class: `chip mine ${mine.state}`, title: `${criterion.name}: my mark` }, mine.status === "cant_judge" ? "?" : mine.value === null ? "n/a" : number(mine.value)));
  }
  return chips;
}

const LEFT = 10;

/** Where the run stands in the list it was opened from, reading on as needed: before its end is reached, so that nobody waits for it. */
async function neighboursOf(id) {
  if (!listed.ids.includes(id)) await readMore(listed.query ?? "");
  let at = listed.ids.indexOf(id);
  if (at >= 0 && at === listed.ids.length - 1 && listed.next) {
    await readMore(listed.query);
    at = listed.ids.indexOf(id);
  } else if (at >= 0 && at >= listed.ids.length - LEFT && listed.next) readMore(listed.query).catch(() => {}); // asked again at the end
  if (at < 0) return { before: null, next: listed.ids[0] ?? null, text: "" };
  return { before: listed.ids[at - 1] ?? null, next: listed.ids[at + 1] ?? null, text: `${at + 1} / ${listed.total.toLocaleString("en")}${listed.isExact ? "" : "+"}` };
}

function toggleAt(rows) {
  const box = rows.querySelector(".entry.at");
  if (box) toggle(box);
}

function toggleAll(rows) {
  const boxes = [...rows.querySelectorAll(".entry")];
  const anyOpen = boxes.some((box) => !box.classList.contains("folded"));
  for (const box of boxes) toggle(box, anyOpen);
}

function nextError(rows, screen, selectStep) {
  const faulty = [...rows.querySelectorAll(".entry.has-error[data-step]")];
  const next = faulty.find((box) => Number(box.dataset.step) > (screen.step ?? -1)) ?? faulty[0];
  if (!next) return;
  toggle(next, false);
  selectStep(Number(next.dataset.step));
}

// The whole run as one strip: a cell per entry, as wide as what it says is long, coloured by who spoke or by what was thought of it.

import { h } from "./dom.js";

/** The strip: `box` to show and `mark(step)` for where we are. `go(entry)` is called for the cell that was chosen. */
export function minimap(run, go) {
  const steps = new Map();
  const cells = run.timeline.map((entry) => {
    const cell = h("span", { class: `cell ${entry.kind}` + (isFaulty(entry) ? " bad" : ""), title: titleOf(entry), onclick: () => go(entry) });
    cell.style.flexGrow = String(1 + Math.log2(1 + sizeOf(entry) / 60));
    if (entry.step !== null) steps.set(entry.step, cell);
    return cell;
  });
  const strip = h("div", { class: "strip", role: "img", "aria-label": `${cells.length} entries; j, k and e move through them` }, cells);
  const overlays = overlaysOf(run);
  const paint = (index) => {
    for (const cell of cells) cell.style.removeProperty("--unit");
    strip.classList.toggle("overlaid", index >= 0);
    for (const score of overlays[index]?.scores ?? []) steps.get(score.step)?.style.setProperty("--unit", String(score.unit));
  };
  const choose =
    overlays.length > 0 &&
    h(
      "select",
      { "aria-label": "Colour the strip by", title: "Colour the strip by", onchange: (event) => paint(Number(event.target.value)) },
      h("option", { value: "-1" }, "who spoke"),
      overlays.map((overlay, index) => h("option", { value: String(index) }, overlay.name)),
    );
  let at = null;
  const mark = (step) => {
    at?.classList.remove("at");
    at = step === null ? null : steps.get(step);
    at?.classList.add("at");
  };
  return { box: h("div", { class: "minimap" }, strip, choose), mark };
}

/** What steps were scored by, and by whom; only what has values on [0, 1]. */
function overlaysOf(run) {
  const found = new Map();
  for (const score of run.scores) {
    if (score.step === null || score.unit === null) continue;
    const kind = { human: "people", check: "check", judge: "judge", reward_model: "reward model", adjudicator: "decision" }[score.rater_kind];
    const name = `${score.criterion} · ${kind}`;
    found.set(name, [...(found.get(name) ?? []), score]);
  }
  return [...found].map(([name, scores]) => ({ name, scores }));
}

function isFaulty(entry) {
  return entry.error || entry.malformed !== "" || entry.calls.some((call) => call.error);
}

function sizeOf(entry) {
  return entry.text.length + entry.reasoning.length + entry.calls.reduce((sum, call) => sum + call.arguments.length + (call.result ?? "").length, 0);
}

function titleOf(entry) {
  if (entry.kind !== "step") return entry.kind;
  return `step ${entry.step}${entry.calls.length ? `: ${entry.calls.map((call) => call.name.slice(0, 60)).join(", ")}` : ""}`;
}

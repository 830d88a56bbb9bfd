// The list's rarer filters, in a fold: a criterion with a range, raters who disagree, calls that failed, the split.

import { h, visible } from "./dom.js";

/** A fold with the filters, as nodes. `wanted` is the list's query; `go` opens a list. */
export function scoreFilters(choices, wanted, go, split) {
  const open = (changed) => go("runs", "", { ...wanted, ...changed });
  const all = choices.criterion ?? [];
  const keys = wanted.criterion && !all.includes(wanted.criterion) ? [wanted.criterion, ...all] : all;
  const criterion = h(
    "select",
    { "aria-label": "Criterion", class: wanted.criterion ? "set" : "", onchange: (event) => open({ criterion: event.target.value, score_at_least: "", score_at_most: "" }) },
    h("option", { value: "" }, "any criterion"),
    keys.map((key) => h("option", { value: key, selected: key === wanted.criterion }, visible(key))),
  );
  const bound = (name, label) =>
    h("label", { class: "bound" }, label, h("input", { type: "number", step: "any", class: "field", value: wanted[name] ?? "", disabled: !wanted.criterion, onchange: (event) => open({ [name]: event.target.value }) }));
  const tick = (name, value, label, title) =>
    h("label", { class: "tick", title }, h("input", { type: "checkbox", checked: wanted[name] === value, onchange: (event) => open({ [name]: event.target.checked ? value : "" }) }), label);
  const set = ["criterion", "disagreement", "errors", "split"].filter((name) => wanted[name]).length;
  return h(
    "details",
    { class: "menu" + (set ? " set" : "") },
    h("summary", { title: "By score, disagreement, errors or split" }, set ? `More (${set})` : "More"),
    h(
      "div",
      { class: "menu-box scores" },
      criterion,
      h("div", { class: "bounds" }, bound("score_at_least", "from"), bound("score_at_most", "to")),
      tick("disagreement", "0", wanted.criterion ? "raters disagree on it" : "raters disagree", "People, judges and checks gave different values at the same place"),
      tick("errors", "true", "has errors", "A call failed or could not be read"),
      split,
    ),
  );
}

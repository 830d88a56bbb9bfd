// A run as the trainer sees it: grey is read, green is learned.

import { capped, h, visible } from "./dom.js";

/** The turns of /api/runs/<id>/tokens as nodes. */
export function tokenTurns(view) {
  const share = view.n_tokens ? Math.round((100 * view.n_trainable) / view.n_tokens) : 0;
  const head = h(
    "p",
    { class: "token-sum" },
    h("b", {}, String(view.n_trainable)),
    ` of ${view.n_tokens} tokens are learned (${share} %), under `,
    h("b", {}, visible(view.base)),
    h("span", { class: "legend" }, h("span", { class: "swatch" }, "learned"), h("span", { class: "dim" }, "read only")),
  );
  return [head, ...view.turns.map(turn)];
}

function turn(view) {
  const facts = [`${view.seen + view.context.length} read`, `${view.trained.length} learned`, view.recorded ? "as sampled" : "rendered"];
  if (view.rerendered) facts.push("written differently once past");
  return h(
    "article",
    { class: "entry token-turn", "data-step": view.step },
    h("header", {}, h("span", { class: "role" }, h("b", {}, "Agent"), h("span", { class: "index" }, ` step ${view.step}`)), h("span", { class: "dim" }, facts.join(" · "))),
    view.seen > 0 && h("p", { class: "dim seen" }, `${view.seen} tokens as before`),
    view.context.length > 0 && capped(view.context.join(""), "read"),
    h("pre", { class: "learned" }, view.trained.map((piece, index) => h("span", { class: index % 2 ? "odd" : "even" }, visible(piece)))),
  );
}

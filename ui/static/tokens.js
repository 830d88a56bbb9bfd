// A run as the trainer sees it: grey is read, green is learned; or every token coloured by a figure that a training noted.

import { capped, h, visible } from "./dom.js";
import { LETTERS } from "./letters.js";
import { read } from "./save.js";

const FIGURES = {
  weight: ["weight", "How much the token counts in the loss; below zero it is made less likely"],
  sampler: ["sampler log-prob", "Log-probability in nats when it was sampled"],
  old: ["old log-prob", "Under the policy that sampled it, on the training path"],
  reference: ["reference log-prob", "Under the frozen reference"],
  moved: ["old − reference", "How far the policy had moved from the reference, in nats"],
  advantage: ["advantage", "How much better the turn went than expected"],
};

/** The answer of /api/runs/<id>/tokens as nodes. `ask(seenAs)` shows another view. */
function tokenTurns(view, ask) {
  const share = view.n_tokens ? Math.round((100 * view.n_trainable) / view.n_tokens) : 0;
  const known = new Set(["weight"]);
  for (const turn of view.turns) {
    const { old, reference } = turn.figures;
    if (old && reference) turn.figures.moved = old.map((value, at) => (value === null || reference[at] === null ? null : value - reference[at]));
    for (const name of Object.keys(turn.figures)) known.add(name);
  }
  const turns = h("div", { class: "token-turns" });
  const draw = (figure) => turns.replaceChildren(...view.turns.map((turn) => turnBox(turn, figure)));
  const views = h(
    "select",
    { "aria-label": "As which recipe or training sees it", onchange: (event) => ask(event.target.value) },
    view.views.map((name) => h("option", { value: name, selected: name === view.seen_as }, visible(name === "sft" || name === "reward" ? `as ${name} sees it` : name))),
  );
  const colours = h(
    "select",
    { "aria-label": "Colour tokens by", title: "Colour tokens by", onchange: (event) => draw(event.target.value) },
    h("option", { value: "" }, "learned or read"),
    Object.keys(FIGURES).filter((name) => known.has(name)).map((name) => h("option", { value: name, title: FIGURES[name][1] }, FIGURES[name][0])),
  );
  const sum = view.seen_as === "reward" ? ["none of ", h("b", {}, String(view.n_trainable)), ` tokens that the agent wrote is learned; the reward is read at the last one`] : [h("b", {}, String(view.n_trainable)), ` of ${view.n_tokens} tokens are the agent's (${share} %)`];
  const head = h("div", { class: "token-sum" }, views, colours, h("span", {}, sum, ", under ", h("b", {}, visible(view.base))), h("span", { class: "grow" }), h("span", { class: "legend" }, h("span", { class: "swatch" }, "learned"), h("span", { class: "dim" }, "read only")));
  draw("");
  return [head, ...view.said.map((text) => h("p", { class: "dim" }, visible(text))), turns];
}

function turnBox(view, figure) {
  const facts = [`${view.seen + view.context.length} read`, `${view.trained.length} written`, view.recorded ? "as sampled" : "rendered"];
  if (view.rerendered) facts.push("written differently once past");
  if (view.value !== null) facts.push(`expected ${number(view.value)}`);
  const advantage = view.figures.advantage?.find((value) => value !== null);
  if (advantage !== undefined) facts.push(`advantage ${number(advantage)}`);
  return h(
    "article",
    { class: "entry token-turn", "data-step": view.step },
    h("header", {}, h("span", { class: "role" }, h("b", {}, "Agent"), h("span", { class: "index" }, ` step ${view.step}`)), h("span", { class: "dim" }, facts.join(" · "))),
    view.seen > 0 && h("p", { class: "dim seen" }, `${view.seen} tokens as before`),
    view.context.length > 0 && capped(view.context.join(""), "read"),
    h("pre", { class: "learned" }, view.trained.map((piece, at) => token(view, piece, at, figure))),
  );
}

function token(view, piece, at, figure) {
  const told = Object.entries(view.figures).filter(([, values]) => values[at] !== null && values[at] !== undefined).map(([name, values]) => `${FIGURES[name]?.[0] ?? name} ${number(values[at])}`);
  const box = h("span", { title: told.join("\n") }, visible(piece));
  if (figure === "") box.className = view.figures.weight[at] === 0 ? "ignored" : at % 2 ? "odd" : "even";
  else box.style.background = shade(figure, view.figures[figure]?.[at] ?? null);
  return box;
}

/** Green above zero, red below; a log-probability is red by how surprising it is. */
function shade(figure, value) {
  if (value === null || value === 0) return "none";
  const isLog = ["sampler", "old", "reference"].includes(figure);
  const strength = Math.min(1, Math.abs(value) / (isLog ? 5 : 1)) * 55 + (isLog ? 0 : 10);
  return `color-mix(in oklab, ${value > 0 ? "var(--good)" : "var(--bad)"} ${strength.toFixed(0)}%, transparent)`;
}

function number(value) {
  return (Math.round(value * 1000) / 1000).toString();
}

/** The token view: its button, its box, and `toggle`, which reads the tokens on first use. */
export function tokenView(run, rows) {
  const box = h("div", { class: "tokens", hidden: true });
  const button = h("button", { type: "button", class: "quiet", "aria-pressed": "false", title: "What a training sees, and which tokens it learns", onclick: () => toggle() }, "Tokens ", h("kbd", {}, LETTERS.tokens));
  const toggle = async () => {
    box.hidden = !box.hidden;
    rows.hidden = !box.hidden;
    button.setAttribute("aria-pressed", String(rows.hidden));
    if (!box.childNodes.length) await ask("sft");
  };
  const ask = async (seenAs) => {
    if (!box.childNodes.length) box.append(h("p", { class: "dim" }, "Reading the tokenizer …"));
    try {
      box.replaceChildren(...tokenTurns(await read(`/api/runs/${run.id}/tokens?seen_as=${encodeURIComponent(seenAs)}`), ask));
    } catch (error) {
      box.replaceChildren(h("p", { class: "fault" }, visible(error.message)));
    }
  };
  return { button, box, toggle };
}

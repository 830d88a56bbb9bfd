// A lead fills the queue: with pairs, so many of each task, of a family or of all; and, from Compare or a run's page, with what they have just
// answered, which every rater then meets once and is not told.

import { h } from "./dom.js";
import { LETTERS } from "./letters.js";
import { notice } from "./place.js";
import { onSave, read, save } from "./save.js";

const MOST_PER_TASK = 20;
const MOST_OVERLAP = 100;

/** The form, folded; `added` is called once pairs are in the queue. */
export function fillBox({ tasksets, root, added }) {
  const select = (name, options) => h("select", { name }, options);
  const number = (name, max) => h("input", { type: "number", class: "field", name, min: 1, max, value: 1, required: true });
  const taskset = select("taskset", tasksets.map((name) => h("option", { value: name }, name)));
  const family = select("family");
  const split = select("split");
  const perTask = number("per_task", MOST_PER_TASK);
  const overlap = number("overlap", MOST_OVERLAP);
  const told = h("span", { class: "dim", role: "status" });
  const button = h("button", { type: "submit", class: "primary" }, "Add pairs");
  const labelled = (text, control) => h("label", {}, text, control);

  const narrow = async () => {
    const choices = await read("/api/choices?" + new URLSearchParams({ taskset: taskset.value }));
    const options = (all, names) => [h("option", { value: "" }, all), ...names.map((name) => h("option", { value: name }, name))];
    family.replaceChildren(...options("all families", choices.family));
    split.replaceChildren(...options("all splits", choices.split));
  };
  const add = async () => {
    button.disabled = true;
    told.textContent = "";
    try {
      const wanted = { taskset: taskset.value, family: family.value || null, split: split.value || null, per_task: perTask.valueAsNumber, overlap: overlap.valueAsNumber };
      const done = await read("/api/queue/pairs", wanted);
      told.textContent = `${done.added} ${done.added === 1 ? "pair is" : "pairs are"} new, ${done.changed} ${done.changed === 1 ? "was" : "were"} there`;
      // Digits and letters answer what is in hand from here on.
      document.activeElement.blur();
      added();
    } catch (error) {
      notice(root, error.message);
    } finally {
      button.disabled = false;
    }
  };
  const asked = (work) => work().catch((error) => notice(root, error.message));
  taskset.addEventListener("change", () => asked(narrow));
  const form = h(
    "form",
    { class: "fill-form", onsubmit: (event) => (event.preventDefault(), add()) },
    labelled("Taskset", taskset),
    labelled("Family", family),
    labelled("Split", split),
    labelled("Pairs of each task", perTask),
    labelled("People for each", overlap),
    button,
    told,
  );
  const box = h("details", { class: "fill" }, h("summary", {}, "Add pairs to compare"), form);
  box.addEventListener("toggle", () => box.open && family.options.length === 0 && asked(narrow));
  return box;
}

/** A lead's own answers become the known ones. The button and its key for `what`, "run" or "pair"; `body` names it at `url`. Neither for a rater. */
export function goldTest(view, { what, url, body, session, root }) {
  if (session.role === "rater") return { button: null, keys: [] };
  // Answers go first, in their order: what the server knows by then is what raters are held to.
  const give = () => save(url, body);
  const isThis = (item) => item?.url === url && Object.entries(body).every(([name, value]) => item.body[name] === value);
  const stop = onSave(({ kind, item }) => {
    if (kind === "saved" && isThis(item)) notice(root, "It is in the queue: raters are held to your answers.");
  });
  view.addEventListener("gone", stop);
  const title = `Your answers on this ${what} become the known ones: every rater meets it once, and is not told`;
  const button = h("button", { type: "button", class: "quiet", title, onclick: give }, "Test ", h("kbd", {}, LETTERS.gold));
  return { button, keys: [{ keys: [LETTERS.gold], label: LETTERS.gold, does: `test raters with this ${what}, by my answers`, act: give }] };
}

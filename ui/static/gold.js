// A lead's own answers become the known ones: every rater meets the run or pair once, and is not told. Compare and a run's page share it.

import { h } from "./dom.js";
import { LETTERS } from "./letters.js";
import { notice } from "./place.js";
import { onSave, save } from "./save.js";

/** The button and its key for `what`, "run" or "pair"; `body` names it at `url`. Neither for a rater. */
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
  const button = h("button", { type: "button", class: "quiet", title, onclick: give }, "Test raters ", h("kbd", {}, LETTERS.gold));
  return { button, keys: [{ keys: [LETTERS.gold], label: LETTERS.gold, does: `test raters with this ${what}, by my answers`, act: give }] };
}

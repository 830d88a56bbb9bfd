// A lead puts the runs that are ticked in the list into the queue: each on its own, or two of them as a pair to compare.

import { h } from "./dom.js";
import { LIST_LETTERS } from "./letters.js";
import { notice } from "./place.js";
import { read } from "./save.js";

const MOST_OVERLAP = 100;

/** The form; `close` takes it away, `other` asks for the same runs the other way. */
export function queueForm({ runs, isPair, root, close, other }) {
  const overlap = h("input", { type: "number", class: "field", name: "overlap", min: 1, max: MOST_OVERLAP, value: 1, required: true });
  const button = h("button", { type: "submit", class: "primary" }, isPair ? "Add the pair" : runs.length === 1 ? "Add the run" : `Add ${runs.length} runs`, " ", h("kbd", {}, "Enter"));
  const add = async () => {
    button.disabled = true;
    try {
      const done = await read("/api/queue/items", { runs, overlap: overlap.valueAsNumber, pair: isPair });
      close();
      notice(root, told(done, isPair));
    } catch (error) {
      button.disabled = false;
      notice(root, error.message);
    }
  };
  const way = (text, key) => h("button", { type: "button", class: "quiet", onclick: other }, text, " ", h("kbd", {}, key));
  return h(
    "form",
    { class: "fill-form", onsubmit: (event) => (event.preventDefault(), add()) },
    h("span", { class: "dim" }, isPair ? "The two ticked runs, as one pair to compare" : "The ticked runs, each to be rated on its own"),
    h("label", {}, "People for each", overlap),
    button,
    runs.length === 2 && (isPair ? way("Each on its own", LIST_LETTERS.queue) : way("As one pair", LIST_LETTERS.pair)),
    h("button", { type: "button", class: "quiet", onclick: close }, "Close ", h("kbd", {}, "Esc")),
  );
}

function told({ added, changed }, isPair) {
  const [one, many] = isPair ? ["pair", "pairs"] : ["run", "runs"];
  const fresh = added ? `${added} ${added === 1 ? `${one} is` : `${many} are`} new in the queue` : "";
  const known = changed ? changed === 1 ? `1 ${one} was in it and has the new number of people` : `${changed} ${many} were in it and have the new number of people` : "";
  return [fresh, known].filter(Boolean).join(", ") + ".";
}

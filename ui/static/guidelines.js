// The team's guidelines beside the run, as plain text: what they hold is never parsed.

import { h, visible } from "./dom.js";
import { LETTERS } from "./letters.js";
import { notice } from "./place.js";
import { read } from "./save.js";

/** Show or hide the panel. */
export async function toggleGuidelines(root, taskset) {
  const open = root.querySelector(".guidelines");
  if (open) return open.remove();
  try {
    const { text } = await read("/api/guidelines?taskset=" + encodeURIComponent(taskset));
    const close = h("button", { type: "button", class: "quiet", onclick: () => panel.remove() }, "Close ", h("kbd", {}, LETTERS.guidelines));
    const shown = text ? h("pre", { class: "text" }, visible(text)) : h("p", { class: "dim" }, "This taskset has none. Write guidelines.md into its folder.");
    const panel = h("aside", { class: "guidelines", "aria-label": "Guidelines", tabIndex: -1 }, h("header", {}, h("h2", {}, "Guidelines"), h("span", { class: "grow" }), close), shown);
    root.append(panel);
    panel.focus();
  } catch (error) {
    notice(root, error.message);
  }
}

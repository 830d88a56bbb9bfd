// Keys. One table per screen serves the handler, the hints on the page and the sheet behind "?", so none can promise what another lacks.

import { h } from "./dom.js";

let bindings = [];
let isHeld = false;

/** Use these keys from now on: [{keys: ["j"], label: "j", does: "next step", act: fn}]. `act` gets the key.
 *
 * `current` says whether the screen is wanted still: one whose answer comes late must not take the keys of the one that is shown.
 */
export function useKeys(table, current) {
  if (!current()) return;
  bindings = table;
  isHeld = false;
}

/** Until other keys are used or `releaseKeys` is called none does anything: what is asked for next is not there yet, and the screen shows what is done with. */
export function holdKeys() {
  isHeld = true;
}

/** The keys do again what they did: nothing else came. */
export function releaseKeys() {
  isHeld = false;
}

/** Use these keys too; where one is in use already, these win. */
export function addKeys(table) {
  const taken = table.flatMap((entry) => entry.keys);
  bindings = [...table, ...bindings.filter((entry) => !entry.keys.some((key) => taken.includes(key)))];
}

/** Listen, once per page, whatever Gradio mounts again. */
export function listen(root) {
  window.agentalignKeys?.abort();
  const control = new AbortController();
  window.agentalignKeys = control;
  document.addEventListener("keydown", (event) => handle(root, event), { signal: control.signal });
}

function handle(root, event) {
  if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey || !root.isConnected) return;
  const sheet = root.querySelector(".sheet");
  if (event.key === "Escape") {
    if (sheet) sheet.remove();
    else if (isTyping(event.target)) event.target.blur();
    else run(event);
    return;
  }
  if (isTyping(event.target)) return;
  if (event.key === "?") {
    event.preventDefault();
    toggleSheet(root);
    return;
  }
  if (sheet) return;
  // Enter and space on a focused button or link keep their own meaning.
  if ((event.key === "Enter" || event.key === " ") && event.target.closest?.("button, a, select, summary")) return;
  run(event);
}

function run(event) {
  if (isHeld) return;
  const binding = bindings.find((entry) => entry.keys.includes(event.key));
  if (!binding) return;
  event.preventDefault();
  binding.act(event.key);
}

function isTyping(target) {
  return target.matches?.("input:not([type=checkbox]), textarea, select, [contenteditable]") ?? false;
}

/** Show or hide the sheet of all keys. */
export function toggleSheet(root) {
  const open = root.querySelector(".sheet");
  if (open) {
    open.remove();
    return;
  }
  const rows = [...bindings, { label: "?", does: "this sheet" }].filter((entry) => entry.label);
  const sheet = h(
    "div",
    { class: "sheet", role: "dialog", "aria-label": "Keys", onclick: () => sheet.remove() },
    h(
      "div",
      { class: "sheet-box", onclick: (event) => event.stopPropagation() },
      h("h2", {}, "Keys"),
      h("dl", {}, rows.map((entry) => [h("dt", {}, entry.label.split(" ").map((key) => h("kbd", {}, key))), h("dd", {}, entry.does)])),
      h("button", { type: "button", class: "quiet", onclick: () => sheet.remove() }, "Close"),
    ),
  );
  root.append(sheet);
  sheet.querySelector("button").focus();
}

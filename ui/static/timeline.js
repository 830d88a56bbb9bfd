// A run's timeline. Shared by the run's page and by the two sides of a comparison.

import { capped, h, visible } from "./dom.js";
import { jsonTree } from "./json.js";
import { pictures } from "./links.js";

const FOLD_FROM = 24;
const BUILDERS = new WeakMap();

/** The entries as rows; `extra(entry)` may add nodes at the right of a row's head. */
export function timeline(entries, { extra = () => null, onPick = () => {}, folded = entries.length > FOLD_FROM } = {}) {
  return entries.map((entry) => row(entry, extra, onPick, folded));
}

function row(entry, extra, onPick, folded) {
  const isLong = entry.kind === "system";
  const isFolded = isLong || (folded && !hasError(entry));
  const box = h("article", { class: `entry ${entry.kind}` + (isFolded ? " folded" : "") + (hasError(entry) ? " has-error" : ""), "data-step": entry.step ?? undefined, "data-message": String(entry.message) });
  const fold = h("button", { type: "button", class: "fold", "aria-label": "Fold or unfold", onclick: (event) => (event.stopPropagation(), toggle(box)) });
  const head = h("header", { ondblclick: () => toggle(box) }, fold, h("span", { class: "role" }, role(entry)), h("span", { class: "gist" }, gist(entry)), h("span", { class: "grow" }), extra(entry));
  const inside = h("div", { class: "content" });
  box.append(head, inside);
  // Hundreds of steps stay quick because a folded one is a single line until it is opened.
  BUILDERS.set(box, () => inside.append(...content(entry)));
  if (!isFolded) build(box);
  box.addEventListener("click", () => onPick(entry, box));
  return box;
}

/** Fold or unfold a row. */
export function toggle(box, folded) {
  if (!box.classList.toggle("folded", folded)) build(box);
}

function build(box) {
  BUILDERS.get(box)?.();
  BUILDERS.delete(box);
}

function role(entry) {
  if (entry.kind === "step") return [h("b", {}, "Agent"), h("span", { class: "index" }, ` step ${entry.step}`)];
  if (entry.kind === "tool") return [h("b", {}, "Result"), entry.tool ? [" ", visible(entry.tool)] : " without a call"];
  return h("b", {}, entry.kind === "system" ? "System" : "User");
}

/** One line of a folded row: what was called with what, and what came back. */
function gist(entry) {
  if (!entry.calls.length) return visible(line(entry.text || entry.reasoning, 240));
  const share = Math.max(40, Math.floor(240 / entry.calls.length));
  const parts = entry.calls.map((call) => [
    h("span", { class: "tool-name" }, visible(line(call.name, 60))),
    " ",
    visible(line(call.arguments, share / 2)),
    call.result === null ? " → nothing" : [call.error ? h("b", { class: "fault" }, " → error ") : " → ", visible(line(call.result, share / 2))],
  ]);
  return [entry.calls.length > 1 && h("span", { class: "chip calm" }, `${entry.calls.length} calls`), " ", parts.flatMap((part, index) => (index ? ["  ·  ", ...part] : part))];
}

function line(text, most) {
  const cut = text.slice(0, most);
  return (cut.charCodeAt(cut.length - 1) >>> 10 === 0x36 ? cut.slice(0, -1) : cut).replace(/\s+/g, " ") + (cut.length < text.length ? "…" : "");
}

function hasError(entry) {
  return entry.error || entry.malformed !== "" || entry.calls.some((call) => call.error);
}

function content(entry) {
  const parts = [];
  if (entry.reasoning) parts.push(h("details", { class: "reasoning" }, h("summary", {}, "reasoning"), capped(entry.reasoning, "text")));
  if (entry.text) parts.push(capped(entry.text, entry.kind === "tool" ? "result" : "text"), pictures(entry.text));
  if (entry.malformed) parts.push(h("p", { class: "fault" }, "The call could not be read: ", visible(entry.malformed)));
  // Calls of one step were made at once, so their order says nothing: the failed ones come first.
  const placed = entry.calls.map((call, index) => [call, entry.calls.length > 1 ? `${index + 1} of ${entry.calls.length}` : ""]);
  for (const [call, place] of [...placed.filter(([call]) => call.error), ...placed.filter(([call]) => !call.error)]) parts.push(callBox(call, place));
  if (!parts.length) parts.push(h("p", { class: "dim" }, "(empty message)"));
  return parts.filter((part) => part !== null);
}

function callBox(call, place) {
  const tree = jsonTree(call.arguments, "args");
  const inline = call.arguments.length <= 76 && tree !== null;
  const name = h("span", { class: "tool-name" }, visible(call.name));
  const box = h("div", { class: "call" }, h("div", { class: "call-head" }, name, inline && h("code", { class: "args" }, [...tree.childNodes]), place && h("span", { class: "dim" }, place)));
  if (!inline) box.append(tree ?? capped(call.arguments, "args"));
  if (tree === null) box.append(h("p", { class: "fault" }, "These arguments are not JSON."));
  if (call.result === null) box.append(h("p", { class: "dim no-result" }, "no result"));
  else box.append(result(call.result, call.error), pictures(call.result) ?? "");
  return box;
}

function result(text, error) {
  const tree = /^\s*[[{]/.test(text) ? jsonTree(text, "result") : null;
  const body = text === "" ? h("p", { class: "dim no-result" }, "(empty result)") : tree ?? capped(text, "result");
  return error ? h("div", { class: "failed" }, h("span", { class: "failed-label" }, "error"), body) : body;
}

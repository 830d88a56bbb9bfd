// A run's timeline. Shared by the run's page and by the two sides of a comparison.

import { capped, h, laidOut, visible } from "./dom.js";

const FOLD_FROM = 60;

/** The entries as rows; `extra(entry)` may add nodes at the right of a row's head. */
export function timeline(entries, { extra = () => null, onPick = () => {}, folded = entries.length > FOLD_FROM } = {}) {
  return entries.map((entry) => row(entry, extra, onPick, folded));
}

function row(entry, extra, onPick, folded) {
  const isLong = entry.kind === "system";
  const box = h("article", { class: `entry ${entry.kind}` + (folded || isLong ? " folded" : "") + (hasError(entry) ? " has-error" : ""), "data-step": entry.step ?? undefined, "data-message": String(entry.message) });
  const fold = h("button", { type: "button", class: "fold", "aria-label": "Fold or unfold", onclick: (event) => (event.stopPropagation(), toggle(box)) });
  const head = h("header", { ondblclick: () => toggle(box) }, fold, h("span", { class: "role" }, role(entry)), h("span", { class: "gist" }, gist(entry)), h("span", { class: "grow" }), extra(entry));
  box.append(head, h("div", { class: "content" }, content(entry)));
  box.addEventListener("click", () => onPick(entry, box));
  return box;
}

/** Fold or unfold a row. */
export function toggle(box, folded) {
  box.classList.toggle("folded", folded);
}

function role(entry) {
  if (entry.kind === "step") return [h("b", {}, "Agent"), h("span", { class: "index" }, ` step ${entry.step}`)];
  if (entry.kind === "tool") return [h("b", {}, "Result"), entry.tool ? [" ", visible(entry.tool)] : " without a call"];
  return h("b", {}, entry.kind === "system" ? "System" : "User");
}

/** One line of a folded row. */
function gist(entry) {
  const words = entry.calls.length ? entry.calls.map((call) => `${call.name} ${call.arguments}`).join("  ·  ") : entry.text;
  return visible(words.slice(0, 200).replace(/\s+/g, " "));
}

function hasError(entry) {
  return entry.error || entry.malformed !== "" || entry.calls.some((call) => call.error);
}

function content(entry) {
  const parts = [];
  if (entry.reasoning) parts.push(h("details", { class: "reasoning" }, h("summary", {}, "reasoning"), capped(entry.reasoning, "text")));
  if (entry.text) parts.push(capped(entry.text, entry.kind === "tool" ? "result" : "text"));
  if (entry.malformed) parts.push(h("p", { class: "fault" }, "The call could not be read: ", visible(entry.malformed)));
  for (const call of entry.calls) parts.push(callBox(call));
  if (!parts.length) parts.push(h("p", { class: "dim" }, "(empty message)"));
  return parts;
}

function callBox(call) {
  const args = laidOut(call.arguments);
  const shown = args ?? call.arguments;
  const inline = !shown.includes("\n");
  const name = h("span", { class: "tool-name" }, visible(call.name));
  const box = h("div", { class: "call" }, h("div", { class: "call-head" }, name, inline && h("code", { class: "args" }, visible(shown))));
  if (!inline) box.append(capped(shown, "args"));
  if (args === null) box.append(h("p", { class: "fault" }, "These arguments are not JSON."));
  if (call.result === null) box.append(h("p", { class: "dim no-result" }, "no result"));
  else box.append(result(call.result, call.error));
  return box;
}

function result(text, error) {
  const shown = /^\s*[[{]/.test(text) ? laidOut(text) ?? text : text;
  const body = shown === "" ? h("p", { class: "dim no-result" }, "(empty result)") : capped(shown, "result");
  return error ? h("div", { class: "failed" }, h("span", { class: "failed-label" }, "error"), body) : body;
}

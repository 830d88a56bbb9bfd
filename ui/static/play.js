// The playground's front: what is loaded, a new chat, and my chats. One chat stands in chat.js.

import { showChat } from "./chat.js";
import { h, visible } from "./dom.js";
import { useKeys } from "./keys.js";
import { addressOf, go, notice } from "./place.js";
import { read } from "./save.js";

const POLL = 700;
const TOOLS = [
  ["live", "run on a task", "The taskset's tools run in a world that is set up for one task."],
  ["replay", "come from a recorded run", "The same call gets the result it got then; any other call asks you."],
  ["hand", "are answered by me", "Every call asks you what comes back."],
];
// What was chosen last, for the next chat of this visit.
const chosen = { two: false, left: "", right: "", taskset: "", tools: "live", task: "", run: "", ask: true, temperature: "0", words: "" };

export async function showPlay(view, place) {
  if (place.id) return showChat(view, place);
  const found = await read("/api/play");
  if (/^[0-9a-f]{32}$/.test(place.query.get("run") ?? "")) Object.assign(chosen, { tools: "replay", run: place.query.get("run") });
  const model = h("div", { class: "filters play-model", role: "status" });
  const form = h("div", { class: "left" });
  view.append(model, h("div", { class: "split" }, form, h("aside", { class: "rating", "aria-label": "My chats" }, chats(found.chats))));
  const screen = { view, model, form, place };
  draw(screen, found);
  useKeys([{ keys: ["n"], label: "n", does: "new chat: to its form", act: () => form.querySelector("select, input, textarea, button")?.focus() }], place.current);
}

function draw(screen, found) {
  screen.model.replaceChildren(...modelBar(screen, found));
  screen.form.replaceChildren(...(found.model.state === "ready" ? newChat(screen, found) : nothing(found)));
  if (found.model.state !== "loading") return;
  setTimeout(async () => {
    if (!screen.view.isConnected && window.agentalignShown) return;
    try {
      draw(screen, await read("/api/play"));
    } catch (error) {
      notice(screen.place.root, error.message);
      draw(screen, found); // it still loads as far as is known, so it is looked again
    }
  }, POLL);
}

// ---------------------------------------------------------------- the model

function modelBar(screen, { model, may_load: mayLoad, adapters }) {
  const ask = (url, body) => async (event) => {
    event.target.disabled = true;
    try {
      await read(url, body());
      notice(screen.place.root, "");
    } catch (error) {
      notice(screen.place.root, error.message);
    }
    draw(screen, await read("/api/play"));
  };
  const loaded = model.state === "ready";
  const pick = h("select", { "aria-label": "Adapter to load", class: "load" }, adapters.map((ref) => h("option", { value: ref }, visible(ref))));
  const loads = mayLoad && model.state !== "loading" && [
    adapters.length ? pick : h("span", { class: "dim" }, "There is no adapter yet: train one first."),
    adapters.length > 0 && h("button", { type: "button", class: loaded ? "" : "main", onclick: ask("/api/play/model", () => ({ adapter: pick.value })) }, loaded ? "Load another base" : "Load"),
    loaded && h("button", { type: "button", class: "quiet", onclick: ask("/api/play/model/unload", () => ({})), title: "Give its memory back; chats with it can only be kept or discarded then" }, "Unload"),
  ];
  const told = {
    empty: [h("span", { class: "dim" }, mayLoad ? "No model is loaded." : "No model is loaded. A lead loads one here.")],
    loading: [h("span", { class: "chip mine" }, "loading"), h("span", {}, visible(model.step), " …"), h("progress", { "aria-label": "Loading" })],
    failed: [h("span", { class: "chip bad" }, "failed"), h("span", { class: "fault" }, visible(model.reason))],
    ready: [h("span", { class: "chip good" }, "loaded"), h("b", {}, visible(model.base)), h("span", { class: "dim" }, `${model.sides.length - 1} adapters fit on it`)],
  };
  return [...told[model.state], h("span", { class: "grow" }), ...[loads].flat(2).filter(Boolean)];
}

function nothing({ model, may_load: mayLoad }) {
  if (model.state === "loading") return [h("div", { class: "empty" }, h("p", {}, "The model is on its way."), h("p", { class: "dim" }, "A base that was never used here is converted first."))];
  return [h("div", { class: "empty" }, h("p", {}, "Talk with an adapter, or with two side by side."), h("p", { class: "dim" }, mayLoad ? "Load one above. It shares this machine with whatever trains here." : "When a lead has loaded a model, it can be talked with here."))];
}

// ---------------------------------------------------------------- a new chat

function newChat(screen, { model, tasksets }) {
  if (!model.sides.includes(chosen.left)) chosen.left = model.sides[0];
  if (!model.sides.includes(chosen.right)) chosen.right = model.sides.at(-1);
  if (!tasksets.includes(chosen.taskset)) chosen.taskset = model.taskset;
  const box = h("form", { class: "new-chat", "aria-label": "New chat", onsubmit: (event) => (event.preventDefault(), begin(screen, box)) });
  const redraw = (focus) => {
    box.replaceChildren(...fields(model, tasksets, redraw));
    box.querySelector(`[name="${focus}"]${focus === "tools" ? ":checked" : ""}`)?.focus();
  };
  redraw("");
  return [box];
}

function fields(model, tasksets, redraw) {
  const select = (name, label, values) => h("label", {}, h("span", { class: "dim" }, label), h("select", { name, onchange: (event) => ((chosen[name] = event.target.value), name === "taskset" && redraw(name)) }, values.map((value) => h("option", { value, selected: value === chosen[name] }, visible(value)))));
  const input = (name, label, more = {}) => h("label", {}, h("span", { class: "dim" }, label), h("input", { name, type: "text", class: "field", value: chosen[name], oninput: (event) => (chosen[name] = event.target.value), ...more }));
  const tick = (name, label) => h("label", { class: "tick" }, h("input", { name, type: "checkbox", checked: chosen[name], onchange: (event) => ((chosen[name] = event.target.checked), redraw(name)) }), label);
  const words = h("label", { class: "wide" }, h("span", { class: "dim" }, chosen.tools === "hand" ? "first words" : "first words; empty takes the task's own"), h("textarea", { name: "words", class: "field", rows: 3, maxLength: 20000, value: chosen.words, oninput: (event) => (chosen.words = event.target.value) }));
  const tasks = h("datalist", { id: "aa-play-tasks" });
  if (chosen.tools === "live") listTasks(tasks);
  return [
    h("h2", {}, "Who answers"),
    h("div", { class: "row" }, select("left", chosen.two ? "one" : "adapter", model.sides), chosen.two && select("right", "the other", model.sides), tick("two", "two side by side, blind")),
    chosen.two && h("p", { class: "dim" }, "Both answer your words. Which is which is drawn by chance and told after your vote."),
    h("h2", {}, "Results of tools …"),
    h("div", { class: "row" }, TOOLS.map(([value, label, title]) => h("label", { class: "tick", title }, h("input", { type: "radio", name: "tools", value, checked: chosen.tools === value, onchange: () => ((chosen.tools = value), redraw("tools")) }), label))),
    h("div", { class: "row" }, chosen.tools !== "replay" && select("taskset", "taskset", tasksets), chosen.tools === "live" && [input("task", "task; empty draws one", { placeholder: "by chance", maxLength: 200 }), tasks], chosen.tools === "replay" && input("run", "id of the run", { maxLength: 32, spellcheck: false })),
    chosen.tools !== "replay" && words,
    h("div", { class: "row" }, tick("ask", "ask before calls"), input("temperature", "temperature", { inputMode: "decimal", maxLength: 4 })),
    h("div", { class: "row" }, h("button", { type: "submit", class: "main" }, "Begin")),
  ].flat(2).filter(Boolean);
}

async function listTasks(list) {
  try {
    const found = await read("/api/play/tasks?taskset=" + encodeURIComponent(chosen.taskset));
    // An input finds its list by the attribute; there is no property to set.
    list.parentNode?.querySelector('[name="task"]')?.setAttribute("list", list.id);
    list.replaceChildren(...found.tasks.map((task) => h("option", { value: task.id }, visible([task.family, task.split].filter(Boolean).join(", ")))));
  } catch {
    // Typed ids do as well, and a task that is not there is refused with a sentence.
  }
}

async function begin(screen, box) {
  const button = box.querySelector("button.main");
  button.disabled = true;
  const { tools } = chosen;
  const words = tools === "replay" ? "" : chosen.words;
  const body = { sides: chosen.two ? [chosen.left, chosen.right] : [chosen.left], taskset: tools === "replay" ? "" : chosen.taskset, tools, task: tools === "live" ? chosen.task.trim() : "", run: tools === "replay" ? chosen.run.trim() : null, words, ask: chosen.ask, temperature: Number(chosen.temperature.replace(",", ".")) };
  try {
    const { id } = await read("/api/play/chats", body);
    chosen.words = "";
    go("play", id);
  } catch (error) {
    notice(screen.place.root, error.message);
    button.disabled = false;
  }
}

function chats(rows) {
  const line = (row) => h("li", {}, h("a", { href: addressOf("play", row.id) }, visible(row.said || row.task || "(nothing said yet)")), h("span", { class: "dim" }, visible(row.names.join(" and ") || "two, blind"), row.kept ? ", kept" : ""));
  return [h("h2", {}, "My chats"), rows.length ? h("ul", { class: "chats" }, rows.map(line)) : h("p", { class: "hint" }, "None yet. A chat is here until it is discarded or the server stops; what is kept becomes a run.")];
}

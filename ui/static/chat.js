// One chat, with one side or two: what was said, what is being written, calls that wait for a person, and what becomes of it all.

import { branching } from "./branch.js";
import { pretty } from "./correct.js";
import { capped, h, visible } from "./dom.js";
import { keepPanel, voteBar } from "./keep.js";
import { useKeys } from "./keys.js";
import { addressOf, go, notice } from "./place.js";
import { read } from "./save.js";
import { timeline } from "./timeline.js";

const QUICK = 250;
const SLOW = 4000;
const BUSY = ["opening", "writing", "calling"];
const STATES = { opening: "setting the scene", ready: "your turn", writing: "writing", asking: "waits for you", calling: "a tool runs", stopped: "stopped", failed: "cannot go on", over: "can say no more" };

export async function showChat(view, place) {
  const url = "/api/play/chats/" + encodeURIComponent(place.id);
  const screen = { url, place, view, seen: -1, chat: null, lanes: [], nodes: {}, timer: 0, heard: true, ended: false };
  screen.branching = branching(screen);
  const chat = await read(url);
  build(screen, chat);
  update(screen, chat);
  screen.again = () => {
    clearTimeout(screen.timer);
    const busy = screen.chat.lanes.some((lane) => BUSY.includes(lane.state));
    if (!screen.chat.kept && !screen.ended && place.current()) screen.timer = setTimeout(() => look(screen), busy ? QUICK : SLOW);
  };
  view.addEventListener("gone", () => clearTimeout(screen.timer));
  view.addEventListener("shown", () => bottom(screen));
  screen.again();
  useKeys(keysOf(screen), place.current);
}

async function look(screen) {
  try {
    if (!document.hidden) update(screen, await read(`${screen.url}?seen=${screen.seen}`));
    if (!screen.heard) notice(screen.place.root, "");
    screen.heard = true;
  } catch (error) {
    screen.heard = error.status !== undefined;
    failed(screen, error);
  }
  screen.again();
}

/** A chat that is not there any more cannot go on: the page says so once, and what stands on it stays to be read. */
function failed(screen, error) {
  if (error.status !== 404) return notice(screen.place.root, error.message);
  const { nodes } = screen;
  screen.ended = true;
  notice(screen.place.root, "");
  nodes.state.textContent = error.message;
  nodes.state.classList.add("fault");
  for (const button of screen.view.querySelectorAll(".speak button, .call-wait button, .run-head button")) button.disabled = true;
  nodes.lanes.classList.add("no-branch");
  nodes.end.replaceChildren();
  for (const lane of screen.lanes) lane.box.querySelector(".entry.live")?.remove();
}

/** Ask for something; the answer is the chat as it is then. */
async function act(screen, what, body = {}) {
  try {
    const chat = await read(`${screen.url}/${what}`, body);
    notice(screen.place.root, "");
    update(screen, chat);
    screen.again();
    return true;
  } catch (error) {
    failed(screen, error);
    return false;
  }
}

// ---------------------------------------------------------------- the page

function build(screen, chat) {
  const { nodes } = screen;
  nodes.head = h("div", { class: "run-head" });
  nodes.state = h("span", { class: "chat-state", role: "status" });
  screen.lanes = chat.lanes.map((_, index) => {
    const rows = h("div", { class: "timeline", role: "log", "aria-label": chat.lanes.length > 1 ? `Side ${"AB"[index]}` : "Conversation" });
    const title = chat.lanes.length > 1 && h("h2", {}, "AB"[index]);
    const more = h("div", { class: "chat-more" });
    return { rows, title, more, box: h("section", { class: "lane", "data-side": String(index) }, title, rows, more), known: [], shown: "" };
  });
  nodes.words = h("textarea", { class: "field", rows: 2, maxLength: 20000, "aria-label": "Your words", placeholder: "Say something (Enter sends)", onkeydown: (event) => typed(screen, event) });
  nodes.send = h("button", { type: "button", class: "main", onclick: () => send(screen) }, "Send ", h("kbd", {}, "Enter"));
  nodes.stop = h("button", { type: "button", onclick: () => act(screen, "stop") }, "Stop ", h("kbd", {}, "s"));
  nodes.resume = h("button", { type: "button", onclick: () => act(screen, "resume") }, "Go on ", h("kbd", {}, "r"));
  nodes.again = h("button", { type: "button", onclick: () => act(screen, "rewrite"), title: chat.temperature ? "The last turn is written once more" : "The last turn is written once more, drawn at temperature 1: at 0 the same would come again" }, "Again ", h("kbd", {}, "x"));
  nodes.customer = h("button", { type: "button", onclick: () => act(screen, "customer") }, "Customer answers ", h("kbd", {}, "c"));
  nodes.lanes = h("div", { class: "lanes" + (chat.lanes.length > 1 ? " two" : "") }, screen.lanes.map((lane) => lane.box));
  nodes.words.addEventListener("input", () => {
    nodes.words.rows = Math.min(8, nodes.words.value.split("\n").length + 1);
  });
  nodes.speak = h("footer", { class: "speak" }, nodes.state, nodes.words, nodes.send, nodes.customer, nodes.again, nodes.stop, nodes.resume);
  nodes.words.value = chat.draft;
  nodes.end = h("div", { class: "chat-end" });
  screen.view.append(nodes.head, nodes.lanes, nodes.speak, nodes.end);
}

function update(screen, chat) {
  const { nodes } = screen;
  const wasLow = nodes.lanes.scrollHeight - nodes.lanes.scrollTop - nodes.lanes.clientHeight < 60;
  const first = screen.chat === null;
  const changed = first || screen.chat.kept !== chat.kept;
  screen.chat = chat;
  screen.seen = chat.seen;
  chat.lanes.forEach((lane, index) => drawLane(screen, lane, index));
  const busy = chat.lanes.some((lane) => BUSY.includes(lane.state));
  const mayTalk = !chat.kept && !chat.problem && chat.lanes.every((lane) => ["ready", "stopped"].includes(lane.state) && !lane.proposals.length);
  nodes.words.disabled = chat.kept || Boolean(chat.problem);
  nodes.send.disabled = !mayTalk;
  nodes.stop.hidden = !busy;
  nodes.again.hidden = busy || chat.kept || !chat.lanes.some((lane) => lane.can_rewrite);
  nodes.lanes.classList.toggle("no-branch", busy || (chat.lanes.length > 1 && !chat.kept));
  nodes.resume.hidden = busy || chat.kept || !chat.lanes.some((lane) => lane.can_go_on);
  nodes.customer.hidden = busy || chat.kept || !chat.lanes.some((lane) => lane.customer !== null);
  const state = chat.kept ? "kept" : chat.problem || [...new Set(chat.lanes.map(stateText))].join(" · ");
  if (nodes.state.textContent !== state) nodes.state.textContent = state;
  nodes.state.classList.toggle("fault", Boolean(chat.problem));
  if (changed) {
    nodes.head.replaceChildren(...head(screen, chat));
    nodes.end.replaceChildren(...end(screen, chat));
    nodes.speak.hidden = chat.kept;
    if (chat.kept) screen.lanes.forEach((lane, index) => lane.title && lane.title.replaceChildren("AB"[index], " ", h("span", { class: "chip mine" }, visible(chat.names[index]))));
  }
  if (!chat.kept) screen.panel.tell(chat);
  if (wasLow || first) bottom(screen);
}

function bottom(screen) {
  screen.nodes.lanes.scrollTop = screen.nodes.lanes.scrollHeight;
}

function stateText(lane) {
  if (lane.state === "writing" && lane.ahead !== null) return lane.ahead ? `waits for the model, ${lane.ahead} before it` : "is next";
  if (lane.state === "writing" && !lane.count) return "reading";
  return STATES[lane.state];
}

function head(screen, chat) {
  const tools = { live: "tools run", replay: "results are replayed", hand: "results by hand" }[chat.tools_by];
  const many = chat.lanes.length > 1;
  return [
    h("a", { class: "back", href: "#/play", title: "Back to the playground (l)" }, "‹"),
    h("h1", {}, visible(chat.names.join(" and ") || "two adapters, blind")),
    h("span", { class: "chip calm" }, visible(chat.taskset)),
    chat.task && h("span", { class: "dim" }, "task ", visible(chat.task)),
    chat.branch && h("a", { class: "chip relative", href: addressOf("play", chat.branch[0]) }, `branched at step ${chat.branch[1]}`),
    h("span", { class: "dim" }, tools, chat.ask ? ", asked for first" : ""),
    h("span", { class: "grow" }),
    ...(chat.kept ? chat.runs.map((run, index) => h("a", { class: "button", href: addressOf("run", run) }, many ? `Run of ${"AB"[index]}` : "Open the run")).concat(chat.proposals.map((run) => h("a", { class: "button", href: addressOf("run", run), title: "What the agent wrote, and the call as you made it" }, "Correction"))) : [h("button", { type: "button", class: "quiet", onclick: () => discard(screen), title: "Nothing of it is kept" }, "Discard")]),
  ].filter(Boolean);
}

function end(screen, chat) {
  if (chat.kept) return [];
  const keep = (body) => act(screen, "keep", body);
  screen.panel = chat.lanes.length > 1 ? voteBar(keep) : keepPanel(chat.criteria, screen.place.session.role !== "rater", keep);
  return [screen.panel.box];
}

function drawLane(screen, lane, index) {
  const own = screen.lanes[index];
  if (lane.entries !== null) {
    const texts = lane.entries.map((entry) => JSON.stringify(entry));
    const same = texts.findIndex((text, at) => text !== own.known[at]);
    const from = same < 0 ? texts.length : same;
    while (own.rows.children.length > from) own.rows.lastElementChild.remove();
    own.rows.append(...timeline(lane.entries.slice(from), { folded: false, extra: screen.branching.extra, onPick: (entry, row) => entry.kind === "step" && screen.branching.pick(row) }));
    own.known = texts;
  }
  // What a person is typing into stays as it is until the calls themselves change.
  const shown = JSON.stringify([lane.proposals, lane.problem, lane.stop, lane.changes, lane.state === "writing", lane.customer]);
  if (shown !== own.shown) {
    own.shown = shown;
    own.live = lane.state === "writing" && h("article", { class: "entry step live" }, h("header", {}, h("span", { class: "role" }, h("b", {}, "Agent"))), h("div", { class: "content" }, h("pre", { class: "text" })));
    own.more.replaceChildren(
      ...[
        ...lane.proposals.map((call) => proposal(screen, index, call)),
        own.live,
        lane.customer !== null && h("p", { class: "dim customer" }, "The task's customer would say: ", visible(lane.customer)),
        lane.problem && h("p", { class: "fault" }, visible(lane.problem)),
        lane.stop && lane.state === "over" && h("p", { class: "dim" }, `It ended here: ${lane.stop.replace("_", " ")}.`),
        lane.changes.length > 0 && h("p", { class: "dim changes" }, visible(lane.changes.join("; "))),
      ].filter(Boolean),
    );
  }
  if (own.live) {
    const hint = lane.count && !lane.text ? "writing a call …" : "";
    own.live.querySelector("pre").replaceChildren(...(hint ? [h("span", { class: "dim" }, hint)] : visible(lane.text)), h("span", { class: "caret" }, ""));
  }
}

// ---------------------------------------------------------------- calls that wait

function proposal(screen, side, call) {
  const decide = (decision, more = {}) => act(screen, "call", { side, call: call.id, decision, ...more });
  const body = h("div", { class: "content" }, capped(pretty(call.arguments), "args"), call.wrote && h("p", { class: "dim" }, "the agent wrote ", h("code", { class: "args" }, visible(call.wrote))));
  const box = h("article", { class: "entry call-wait " + call.state, "data-state": call.state }, h("header", {}, h("span", { class: "tool-name" }, visible(call.name)), h("span", { class: "grow" }), h("span", { class: "dim" }, { asked: "may it?", free: "is next", running: "runs", wanting: "what comes back?", done: call.error ? "error" : "done" }[call.state])), body);
  const button = (act, key, text, run) => h("button", { type: "button", "data-act": act, onclick: run }, text, " ", h("kbd", {}, key));
  if (call.state === "asked") {
    box.append(h("footer", { class: "row" }, button("approve", "a", "Approve", () => decide("approve")), button("edit", "e", "Edit", () => ask(box, "arguments, JSON", pretty(call.arguments), "Make this call", (text) => decide("edit", { arguments: text }), true)), button("deny", "d", "Deny", () => ask(box, "why? The agent reads it", "", "Deny", (text) => decide("deny", { words: text })))));
  } else if (call.state === "wanting") {
    box.append(h("footer", { class: "row" }, button("answer", "w", "Write its result", () => ask(box, "what comes back", "", "Give it", (text, error) => decide("answer", { words: text, error }), true, true)), button("deny", "d", "Deny", () => ask(box, "why? The agent reads it", "", "Deny", (text) => decide("deny", { words: text })))));
  } else if (call.result !== null) body.append(h("div", { class: call.error ? "failed" : "" }, call.result === "" ? h("p", { class: "dim no-result" }, "(empty result)") : capped(call.result, "result")));
  return box;
}

/** A small form in a call's box: Ctrl+Enter gives, Escape closes. */
function ask(box, label, value, verb, give, mono = false, mayFail = false) {
  box.querySelector("form")?.remove();
  const text = h("textarea", { name: "text", class: "field" + (mono ? " mono" : ""), rows: Math.min(10, value.split("\n").length + 1), value, spellcheck: false, maxLength: 20000 });
  const failed = h("input", { type: "checkbox" });
  const submit = async () => {
    if (!(await give(text.value, failed.checked))) text.focus();
  };
  const form = h(
    "form",
    {
      class: "call-form",
      onsubmit: (event) => (event.preventDefault(), submit()),
      onkeydown: (event) => {
        if (event.key === "Escape") form.remove();
        else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit();
        else return;
        event.preventDefault();
        event.stopPropagation();
      },
    },
    h("label", {}, h("span", { class: "dim" }, label), text),
    mayFail && h("label", { class: "tick" }, failed, "it is an error"),
    h("div", { class: "row" }, h("button", { type: "submit", class: "primary" }, verb, " ", h("kbd", {}, "Ctrl+Enter")), h("button", { type: "button", class: "quiet", onclick: () => form.remove() }, "Cancel ", h("kbd", {}, "Esc"))),
  );
  box.append(form);
  text.focus();
  form.scrollIntoView({ block: "nearest" });
}

// ---------------------------------------------------------------- what a person does

function typed(screen, event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send(screen);
}

async function send(screen) {
  const { words, send: button } = screen.nodes;
  if (button.disabled || !words.value.trim()) return;
  button.disabled = true;
  if (await act(screen, "say", { words: words.value })) {
    words.value = "";
    words.rows = 2;
  }
  bottom(screen);
}

async function discard(screen) {
  if (!window.confirm("Discard this chat? Nothing of it is kept.")) return;
  try {
    await read(screen.url + "/discard", {});
    go("play");
  } catch (error) {
    notice(screen.place.root, error.message);
  }
}

function keysOf(screen) {
  const press = (name) => screen.view.querySelector(`.call-wait [data-act="${name}"]`)?.click();
  return [
    { keys: ["i"], label: "i", does: "write to the agent (Enter sends, Shift+Enter breaks the line)", act: () => screen.nodes.words.focus() },
    { keys: ["c"], label: "c", does: "let the task's customer answer", act: () => !screen.nodes.customer.hidden && act(screen, "customer") },
    { keys: ["s"], label: "s", does: "stop", act: () => !screen.nodes.stop.hidden && act(screen, "stop") },
    { keys: ["r"], label: "r", does: "go on after a stop", act: () => !screen.nodes.resume.hidden && act(screen, "resume") },
    { keys: ["x"], label: "x", does: "have the last turn written once more", act: () => !screen.nodes.again.hidden && !screen.nodes.again.disabled && act(screen, "rewrite") },
    ...screen.branching.keys,
    { keys: ["a"], label: "a", does: "approve the call that waits", act: () => press("approve") },
    { keys: ["e"], label: "e", does: "edit the call that waits (Ctrl+Enter makes it)", act: () => press("edit") },
    { keys: ["d"], label: "d", does: "deny the call that waits", act: () => press("deny") },
    { keys: ["w"], label: "w", does: "write the result of a call", act: () => press("answer") },
    ...(screen.panel?.keys ?? []),
    { keys: ["l"], label: "l", does: "back to the playground", act: () => go("play") },
  ];
}

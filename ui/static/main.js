// The page's frame: session, address, the bar on top with the saved state, and which screen is shown.
//
// The page begins before Gradio does: `open` draws the first screen, then Gradio's own scripts load, and `adopt` moves the page into its
// shell. Screens for rating come with it, the others when they are asked for.

import { h } from "./dom.js";
import { listen, toggleSheet, useKeys } from "./keys.js";
import { showList } from "./list.js";
import { address, notice } from "./place.js";
import { showQueue } from "./queue.js";
import { prefetch, showRun } from "./run.js";
import { onSave, openQueue, read, unsaved } from "./save.js";

const SCREENS = {
  queue: () => showQueue,
  runs: () => showList,
  run: () => showRun,
  compare: async () => (await import("./compare.js")).showCompare,
  training: async () => (await import("./training.js")).showTrainings,
  agreement: async () => (await import("./agreement.js")).showAgreement,
  lineage: async () => (await import("./lineage.js")).showLineage,
  play: async () => (await import("./play.js")).showPlay,
};
const PATIENCE = 5000;
const RELEASE = 50;
let generation = 0;
let page = null;

/** Begin at once, beside whatever else loads. Ends when the first screen is drawn, or after a while. */
export function open() {
  page = h("div", { class: "aa", "data-view": "loading" }, h("p", { class: "aa-loading" }, "Loading …"));
  document.body.append(page);
  return Promise.race([start(page), new Promise((resolve) => setTimeout(resolve, PATIENCE))]);
}

/** Gradio's shell is there: the page moves into it as it stands, or begins in it where it has not begun. */
export async function adopt(shell) {
  if (page === null) return start((page = shell));
  if (shell === page) return;
  // A press on what is moved, or no longer lies under the pointer, is no click.
  while (page.matches(":active")) await new Promise((resolve) => setTimeout(resolve, RELEASE));
  // A node that is taken out and put back loses focus and scrolls to its top: an older browser leaves it where it is.
  if (!page.isConnected) shell.before(page);
  else if (shell.parentNode.moveBefore) shell.parentNode.moveBefore(page, shell);
  shell.remove();
}

async function start(root) {
  arrive();
  const { screen: first, id } = address();
  if (first === "run" && id) prefetch(id);
  let session;
  try {
    session = await read("/api/session");
  } catch (error) {
    root.replaceChildren(h("p", { class: "fatal" }, error.message));
    return;
  }
  const screen = h("main", { class: "screen" });
  root.replaceChildren(bar(session, root), h("div", { class: "notice", role: "alert", hidden: true }), screen);
  listen(root);
  openQueue(session.id, session.rater);
  onSave((state) => {
    if (state.kind === "refused") notice(root, state.text);
  });
  const show = () => route(root, screen, session);
  window.addEventListener("hashchange", show, { signal: window.agentalignKeys.signal });
  await show();
}

/** /run/ID#s42 was redirected to /?run=ID#s42: put the address into the form that this page uses. */
function arrive() {
  const run = new URLSearchParams(location.search).get("run");
  if (!/^[0-9a-f]{32}$/.test(run ?? "")) return;
  const step = /^#s(\d+)$/.exec(location.hash);
  history.replaceState(history.state, "", `/#/run/${run}${step ? "?s=" + step[1] : ""}`);
}

async function route(root, screen, session) {
  const here = address();
  const mine = ++generation;
  const current = () => mine === generation;
  const next = h("div", { class: "view view-" + here.screen });
  useKeys([], current);
  notice(root, "");
  for (const link of root.querySelectorAll(".bar nav a")) link.toggleAttribute("aria-current", link.dataset.screen === here.screen);
  try {
    const show = await (SCREENS[here.screen] ?? SCREENS.runs)();
    await show(next, { ...here, session, root, current });
  } catch (error) {
    next.replaceChildren(h("p", { class: "fatal" }, error.message));
  }
  if (!current()) {
    next.dispatchEvent(new CustomEvent("gone"));
    return;
  }
  screen.firstElementChild?.dispatchEvent(new CustomEvent("gone"));
  screen.replaceChildren(next);
  root.dataset.view = here.screen;
  window.agentalignShown = (window.agentalignShown ?? 0) + 1;
  next.dispatchEvent(new CustomEvent("shown"));
}

function bar(session, root) {
  const state = h("span", { class: "save-state", role: "status" });
  onSave(({ kind, text }) => {
    state.dataset.kind = kind;
    state.textContent = text;
  });
  const link = (screen, text) => h("a", { href: "#/" + screen, "data-screen": screen }, text);
  return h(
    "header",
    { class: "bar" },
    h("span", { class: "brand" }, "agentalign"),
    h("nav", {}, link("queue", "Queue"), link("runs", "Runs"), link("compare", "Compare"), link("play", "Playground"), session.role !== "rater" && [link("training", "Training"), link("agreement", "Agreement"), link("lineage", "Lineage")]),
    h("span", { class: "grow" }),
    state,
    h("span", { class: "who", title: "You rate under this name" }, session.rater),
    session.team && leaving(root),
    h("button", { type: "button", class: "quiet", title: "All keys", onclick: () => toggleSheet(root) }, "Keys ", h("kbd", {}, "?")),
  );
}

/** On a team's server: the way back to the login. What waits here is kept for who gave it, so that is said before, once. */
function leaving(root) {
  let isWarned = false;
  const leave = async () => {
    const many = unsaved().length;
    if (many && !isWarned) {
      isWarned = true;
      return notice(root, `${many} ${many === 1 ? "mark is" : "marks are"} not saved yet. Press "Log out" again to go all the same: ${many === 1 ? "it waits" : "they wait"} in this browser until you log in.`);
    }
    try {
      await read("/api/logout", {});
      location.replace("/login");
    } catch (error) {
      notice(root, error.message);
    }
  };
  return h("button", { type: "button", class: "quiet", title: "End this session on this browser", onclick: leave }, "Log out");
}

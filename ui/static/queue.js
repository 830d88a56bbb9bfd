// The queue: one run or pair after the other, by keyboard. A run is shown and rated by its own screen, a pair by the comparison's.

import { h } from "./dom.js";
import { fillBox } from "./fill.js";
import { addKeys, holdKeys, releaseKeys, useKeys } from "./keys.js";
import { LETTERS } from "./letters.js";
import { notice } from "./place.js";
import { showRun } from "./run.js";
import { onSave, read, save, unsaved } from "./save.js";

const BEAT = 30000;

export async function showQueue(view, { root, session, current }) {
  const screen = { hand: null, ends: 0, timers: [], waiting: null, inner: null };
  const bar = h("div", { class: "queue-bar" });
  const box = h("div", { class: "in-hand" });
  const fill = session.role !== "rater" && session.tasksets.length > 0 && fillBox({ tasksets: session.tasksets, root, added: () => screen.hand || look() });
  view.append(...[bar, fill, box].filter(Boolean));

  const again = () => ({ keys: ["Enter"], label: "Enter", does: "look again", act: () => (notice(root, ""), look()) });
  const look = (given) =>
    next(given).catch((error) => {
      if (!current()) return;
      screen.hand = null;
      // What is done with must not stand there as if it could be rated still.
      box.replaceChildren(h("p", { class: "empty" }, "The next one did not come. ", h("kbd", {}, "Enter"), " looks again."));
      useKeys([again()], current);
      notice(root, error.message);
    });
  const leave = () => {
    screen.timers.splice(0).forEach((timer) => clearInterval(timer));
    screen.inner?.dispatchEvent(new CustomEvent("gone"));
    screen.inner = null;
  };
  // A finished run's acknowledgement brings the next one, page and all; only without it is the server asked.
  const next = async (given) => {
    leave();
    const { current: hand, progress, run } = given ?? (await read("/api/queue/next", {}));
    if (!current()) return;
    screen.hand = hand;
    screen.waiting = null;
    drawBar(bar, progress, hand, finish, skip);
    if (!hand) {
      box.replaceChildren(h("p", { class: "empty" }, fill ? "Nothing is left for you. Add pairs above, or runs by `agentalign queue add`." : "Nothing is left for you. A lead fills the queue."));
      useKeys([again()], current);
      return;
    }
    const inner = h("div", { class: "in-hand" });
    const own = hand.run ? await rateRun(inner, run) : await comparePair(inner, hand);
    if (!current()) {
      inner.dispatchEvent(new CustomEvent("gone"));
      return;
    }
    screen.inner = inner;
    box.replaceChildren(inner);
    inner.dispatchEvent(new CustomEvent("shown"));
    hold(hand);
    addKeys([...own, { keys: [LETTERS.skip], label: LETTERS.skip, does: "skip, with a reason", act: () => bar.querySelector("input")?.focus() }]);
  };
  const rateRun = async (inner, run) => {
    await showRun(inner, { id: run.id, query: new URLSearchParams(), root, session, current, given: run });
    return [
      { keys: [LETTERS.done], label: LETTERS.done, does: "done, and the next one", act: () => finish() },
      // Neighbours in a list would tell what the queue hides.
      { keys: [LETTERS.next, LETTERS.before], label: "", does: "", act: () => {} },
    ];
  };
  const comparePair = async (inner, { assignment }) => {
    const [pair, { showPair }] = await Promise.all([read("/api/compare", { assignment }), import("./compare.js")]);
    useKeys([], current);
    return showPair(inner, pair, { root, leave: () => finish() }).keys;
  };
  const hold = (hand) => {
    const keep = (left) => (screen.ends = performance.now() + left * 1000);
    keep(hand.left);
    const beat = async () => {
      try {
        keep((await read(`/api/queue/${hand.assignment}/beat`, {})).left);
      } catch {
        // The clock on the bar runs down; marks are kept and sent again by save.js.
      }
    };
    const tick = () => {
      const left = Math.max(0, Math.round((screen.ends - performance.now()) / 1000));
      bar.querySelector(".lease").textContent = left ? `yours for ${spoken(left)}` : "the lease has ended: your answer counts as late";
    };
    screen.timers.push(setInterval(beat, Math.min(BEAT, hand.lease * 333)), setInterval(tick, 1000));
    tick();
  };
  // From here until the next one stands there, a key would be a mark on what is done with.
  const end = (how, body) => {
    screen.waiting = save(`/api/queue/${screen.hand.assignment}/${how}`, { ...body, next: true });
    holdKeys();
  };
  const finish = () => {
    if (screen.hand && !screen.waiting) end("done", {});
  };
  const skip = (reason) => {
    if (screen.hand && !screen.waiting && reason.trim()) end("skip", { reason });
  };
  const stop = onSave(({ kind, item, text, answer }) => {
    if (!screen.waiting) return;
    // Another tab has sent it, and was closed before it told what came of it.
    const isLost = kind === "idle" && !unsaved().some((one) => one.body.key === screen.waiting);
    if (!isLost && item?.body.key !== screen.waiting) return;
    screen.waiting = null;
    if (isLost || kind === "saved") return look(answer?.next);
    releaseKeys();
    notice(root, text);
  });
  view.addEventListener("gone", () => {
    stop();
    leave();
  });
  await look();
}

function drawBar(bar, progress, hand, finish, skip) {
  const reason = h("input", { class: "field", placeholder: `skip because … (${LETTERS.skip})`, maxLength: 1000, "aria-label": "Reason for skipping" });
  reason.addEventListener("keydown", (event) => event.key === "Enter" && skip(reason.value));
  const time = (seconds) => (seconds === null ? "" : `, about ${spoken(seconds)}`);
  bar.replaceChildren(
    h("span", { class: "fact" }, h("b", {}, String(progress.mine)), " done by me"),
    h("span", { class: "fact" }, ...(progress.waiting ? ["up to ", h("b", {}, String(progress.waiting)), " left", time(progress.seconds_left)] : [h("b", {}, "0"), " left"])),
    h("span", { class: "fact dim", title: "Answers that are there, of those that are wanted; told in steps of ten, so that no run is told apart by it" }, `team ${progress.team_done} / ${progress.team_wanted}`, time(progress.team_seconds_left)),
    h("progress", { max: Math.max(1, progress.team_wanted), value: progress.team_done, "aria-label": "Answers of the team" }),
    h("span", { class: "grow" }),
    ...(hand ? [h("span", { class: "lease dim" }), reason, hand.run && h("button", { type: "button", class: "done", onclick: finish }, "Done ", h("kbd", {}, LETTERS.done))].filter(Boolean) : []),
  );
}

function spoken(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  return whole < 3600 ? `${Math.floor(whole / 60)} min` : `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

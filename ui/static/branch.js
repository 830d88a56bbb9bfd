// Going back in a chat: a turn of the agent is chosen, and a chat of its own goes on from before it.

import { h } from "./dom.js";
import { go, notice } from "./place.js";
import { read } from "./save.js";

/** Choosing among the turns of a chat: {extra, pick, keys} for its timelines and its table of keys. */
export function branching(screen) {
  let chosen = null;
  const rows = () => [...screen.view.querySelectorAll(".lane .entry.step[data-step]")];
  const pick = (row) => {
    chosen?.classList.remove("at");
    chosen = row;
    chosen?.classList.add("at");
  };
  const move = (by) => {
    const all = rows();
    if (!all.length) return;
    const at = all.indexOf(chosen);
    pick(all[at < 0 ? (by > 0 ? 0 : all.length - 1) : Math.max(0, Math.min(all.length - 1, at + by))]);
    chosen.scrollIntoView({ block: "nearest" });
  };
  const branch = async (row) => {
    // A blind side has no branch, for that would tell who it is; and one that acts is not where it will be.
    if (!row || screen.nodes.lanes.classList.contains("no-branch")) return;
    try {
      const { id } = await read(`${screen.url}/branch`, { side: Number(row.closest(".lane").dataset.side), step: Number(row.dataset.step) });
      go("play", id);
    } catch (error) {
      notice(screen.place.root, error.message);
    }
  };
  const extra = (entry) => entry.kind === "step" && h("button", { type: "button", class: "quiet branch", title: "A new chat that goes on from before this turn", onclick: (event) => (event.stopPropagation(), branch(event.target.closest(".entry"))) }, "Branch");
  const keys = [
    { keys: ["ArrowRight"], label: "→", does: "choose the next turn", act: () => move(1) },
    { keys: ["ArrowLeft"], label: "←", does: "choose the turn before", act: () => move(-1) },
    { keys: ["f"], label: "f", does: "fork: a new chat from before the chosen turn, or the last", act: () => branch(rows().includes(chosen) ? chosen : rows().at(-1)) },
  ];
  return { extra, pick, keys };
}

// Trainings: the list, and one training as it goes: curves, alarms, the runs of every evaluation. Polls while it runs and is looked at.

import { chart } from "./chart.js";
import { showChecks } from "./checks.js";
import { h, visible } from "./dom.js";
import { useKeys } from "./keys.js";
import { addressOf, go, notice } from "./place.js";
import { read } from "./save.js";
import { showStart } from "./start.js";

const POLL = 2000;
// [title, metrics with what they are called in the chart, unit]; a chart is shown where one of its metrics exists.
const CHARTS = [
  ["Loss", [["loss", "all"], ["loss/nll", "replay"]], ""],
  ["Dev", [["eval/success", "success"], ["eval/overall", "overall"]], "share"],
  ["Held-out pairs", [["eval/accuracy", "right"]], "share"],
  ["Reward", [["reward/mean", "mean"], ["reward/gain", "gain"]], ""],
  ["KL to the reference", [["kl", "nats a run"]], ""],
  ["Margin", [["rewards/margins", "implied"], ["eval/margin", "held out"]], ""],
  ["Pairs ranked right", [["rewards/accuracies", "train"], ["accuracy", "train"]], "share"],
  ["Success while acting", [["success/train", "train"]], "share"],
  ["Tokens a run", [["tokens_per_run", "train"], ["eval/tokens", "dev"]], ""],
  ["Gradient", [["grad_norm/policy", "policy"], ["grad_norm/reward", "reward"], ["grad_norm/value", "critic"]], ""],
  ["Critic: variance explained", [["explained_variance", "share"]], ""],
  ["Learning rate", [["learning_rate", "policy"]], ""],
  ["Tokens a second", [["tokens_per_second", "all"]], ""],
  ["Memory", [["peak_memory_gib", "GiB"]], ""],
];
const KNOWN = new Set(CHARTS.flatMap(([, metrics]) => metrics.map(([name]) => name)));
const QUIET = ["num_tokens", "seconds"];
const MOST_NAMES = 40;

export async function showTrainings(view, place) {
  if (place.id === "new") await showStart(view, place);
  else if (place.id) await showTraining(view, place);
  else await showList(view, place);
}

// ---------------------------------------------------------------- the list

async function showList(view, { current }) {
  const { rows } = await read("/api/trainings");
  view.append(h("div", { class: "filters" }, h("span", { class: "dim" }, "What trains, and what has trained, newest first."), h("span", { class: "grow" }), h("span", { class: "count" }, `${rows.length} ${rows.length === 1 ? "training" : "trainings"}`), h("a", { class: "button", href: "#/training/new" }, "New training ", h("kbd", {}, "n"))));
  const fresh = { keys: ["n"], label: "n", does: "new training", act: () => go("training", "new") };
  useKeys([fresh], current);
  if (!rows.length) {
    view.append(h("div", { class: "empty" }, h("p", {}, "Nothing has been trained yet."), h("p", { class: "dim" }, "Begin with sft on what an expert did.")));
    return;
  }
  const body = h("tbody", {}, rows.map(line));
  const heads = ["Training", "Recipe", "Taskset", "State", "Steps", "Adapter", "Note", "Begun"];
  view.append(h("div", { class: "table-box" }, h("table", { class: "runs trainings" }, h("thead", {}, h("tr", {}, heads.map((name) => h("th", { class: name === "Steps" ? "number" : undefined }, name)))), body)));
  let at = -1;
  const select = (index) => {
    body.rows[at]?.classList.remove("at");
    at = Math.max(0, Math.min(body.rows.length - 1, index));
    body.rows[at].classList.add("at");
    body.rows[at].scrollIntoView({ block: "nearest" });
  };
  useKeys([
    { keys: ["j", "ArrowDown"], label: "j ↓", does: "next training", act: () => select(at + 1) },
    { keys: ["k", "ArrowUp"], label: "k ↑", does: "training before", act: () => select(at - 1) },
    { keys: ["Enter", "o"], label: "Enter o", does: "open the training", act: () => at >= 0 && go("training", rows[at].id) },
    fresh,
  ], current);
}

function line(row) {
  return h(
    "tr",
    { onclick: (event) => event.target.closest("a") || go("training", row.id), "data-id": row.id },
    h("td", {}, h("a", { href: addressOf("training", row.id) }, visible(row.id))),
    h("td", {}, row.recipe),
    h("td", {}, visible(row.taskset)),
    h("td", {}, stateChip(row.state)),
    h("td", { class: "number" }, steps(row)),
    h("td", {}, visible(row.adapter)),
    h("td", { class: "request dim", title: row.note }, visible(row.note)),
    h("td", { class: "dim time" }, row.created.slice(0, 16).replace("T", " ")),
  );
}

function stateChip(state) {
  const tone = { running: "mine", starting: "mine", done: "good", failed: "bad", stopped: "warn", interrupted: "warn" }[state];
  return h("span", { class: `chip ${tone}`, "data-state": state }, state);
}

function steps(row) {
  return row.total === null ? (row.step ? String(row.step) : "") : `${row.step} / ${row.total}`;
}

// ---------------------------------------------------------------- one training

async function showTraining(view, { id, current, root }) {
  const training = await read("/api/trainings/" + encodeURIComponent(id));
  const facts = h("span", { class: "as-one" });
  const acts = h("span", { class: "as-one" });
  const head = h("div", { class: "run-head" }, h("a", { class: "back", href: "#/training", title: "Back to the list (l)" }, "‹"), h("h1", { title: id }, visible(id)), facts, h("span", { class: "grow" }), acts);
  const alarms = h("div", { class: "alarms", role: "status" });
  const charts = h("div", { class: "charts" });
  const more = h("div", { class: "more-figures" });
  const looks = h("div", { class: "looks" });
  const about = h("div", { class: "about" });
  const nodes = { facts, acts, alarms, charts, more, looks, about };
  const screen = { id, root, seen: -1, extra: new Set(), drawn: new Map(), nodes };
  screen.redraw = async () => {
    await look(screen, true);
    await readWords(screen);
  };
  draw(screen, "about", training, () => words(training));
  view.append(head, alarms, h("div", { class: "split" }, h("div", { class: "left" }, charts, more), h("aside", { class: "rating", "aria-label": "About" }, looks, about)));
  await look(screen, true);
  watch(view, screen, current);
  useKeys([{ keys: ["l"], label: "l", does: "back to the list", act: () => go("training") }], current);
}

/** Look again every two seconds while it runs and the page is seen. */
function watch(view, screen, current) {
  let timer = 0;
  const busy = () => isGoing(screen);
  const next = () => {
    clearTimeout(timer);
    if (busy() && !document.hidden && current()) timer = setTimeout(again, POLL);
  };
  const again = async () => {
    await look(screen, false);
    next();
  };
  document.addEventListener("visibilitychange", next);
  view.addEventListener("gone", () => {
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", next);
  });
  screen.watch = next;
  next();
}

/** Draw a part only where it shows something else than before: new nodes take the focus, a button that is held down, and a place in a text. */
function draw(screen, part, shown, make) {
  const key = JSON.stringify(shown);
  if (screen.drawn.get(part) === key) return;
  screen.drawn.set(part, key);
  screen.nodes[part].replaceChildren(...make());
}

async function look(screen, anew) {
  const { nodes } = screen;
  const wanted = [...KNOWN, ...screen.extra].slice(0, MOST_NAMES);
  const query = new URLSearchParams([...wanted.map((name) => ["name", name]), ["seen", String(anew ? -1 : screen.seen)]]);
  let found;
  try {
    found = await read(`/api/trainings/${encodeURIComponent(screen.id)}/curves?${query}`);
  } catch (error) {
    draw(screen, "alarms", error.message, () => [h("p", { class: "alarm bad" }, visible(error.message))]);
    return;
  }
  const before = screen.state;
  screen.state = found.row.state;
  draw(screen, "facts", found.row, () => facts(found.row));
  draw(screen, "acts", [isGoing(found.row), screen.state === "done", found.row.adapter], () => acts(found.row, screen));
  // Why it did not begin, or how it ended, is in its words; what it learns from is written down when it begins.
  if (before !== undefined && before !== screen.state) await readWords(screen);
  if (found.unchanged) return;
  screen.seen = found.rows;
  draw(screen, "alarms", found.alarms, () => found.alarms.map((alarm) => h("p", { class: `alarm ${alarm.level}` }, h("b", {}, alarm.name), " ", h("span", { class: "dim" }, `step ${alarm.step}`), " ", visible(alarm.text))));
  nodes.charts.replaceChildren(...figures(found, screen));
  chooser(found.names, screen);
  draw(screen, "looks", found.evaluations, () => evaluations(found.evaluations));
}

async function readWords(screen) {
  try {
    const training = await read("/api/trainings/" + encodeURIComponent(screen.id));
    draw(screen, "about", training, () => words(training));
  } catch (error) {
    notice(screen.root, error.message);
  }
}

function figures(found, screen) {
  const width = found.row.total ?? 0;
  const marks = found.evaluations.map((evaluation) => evaluation.step);
  const series = (metrics) => metrics.map(([name, label]) => ({ name, label, x: found.curves[name]?.[0] ?? [], y: found.curves[name]?.[1] ?? [] })).filter((one) => one.x.length);
  const all = [...CHARTS, ...[...screen.extra].map((name) => [name, [[name, ""]], ""])];
  const drawn = all.map(([title, metrics, unit]) => [title, series(metrics), unit]).filter(([, lines]) => lines.length);
  if (!drawn.length) return [h("p", { class: "dim nothing" }, "No step is done yet. Curves come with the first one.")];
  return drawn.map(([title, lines, unit]) => chart(title, lines, { unit, marks, width }));
}

/** Every other metric, to be drawn on demand. */
function chooser(names, screen) {
  const others = names.filter((name) => !KNOWN.has(name) && !QUIET.includes(name));
  const toggle = (name) => {
    if (!screen.extra.delete(name)) screen.extra.add(name);
    look(screen, true);
  };
  const choice = (name) => h("button", { type: "button", class: "quiet", "data-name": name, onclick: () => toggle(name) }, visible(name.replace(/^eval\//, "dev: ")));
  draw(screen, "more", others, () => (others.length ? [h("h2", {}, "More figures"), h("div", { class: "figure-names" }, others.map(choice))] : []));
  const room = MOST_NAMES - KNOWN.size;
  for (const button of screen.nodes.more.querySelectorAll("button")) {
    const chosen = screen.extra.has(button.dataset.name);
    button.setAttribute("aria-pressed", String(chosen));
    button.disabled = !chosen && screen.extra.size >= room;
  }
}

function acts(row, screen) {
  const ask = (what, body) => async (event) => {
    event.target.disabled = true;
    try {
      await read(`/api/trainings/${encodeURIComponent(row.id)}/${what}`, body ?? {});
      notice(screen.root, "");
    } catch (error) {
      notice(screen.root, error.message);
    }
    event.target.disabled = false;
    await screen.redraw();
    screen.watch();
  };
  const button = (text, act, title) => h("button", { type: "button", "data-act": text, onclick: act, title }, text);
  const going = isGoing(row);
  return [
    going && button("Stop", ask("stop"), "It saves what it has and ends; Resume goes on from there"),
    !going && row.state !== "done" && button("Resume", ask("resume"), "The same command again, on the data it began with"),
    row.adapter && button("Check and promote", () => showChecks(screen.root, row.adapter, screen.redraw), "Run its deploy-check; if it passes its gate, agents get it"),
  ].filter(Boolean);
}

function isGoing({ state }) {
  return ["running", "starting"].includes(state);
}

function facts(row) {
  const fact = (value, name) => h("span", { class: "fact" }, h("b", {}, value), " ", name);
  return [
    stateChip(row.state),
    (row.total !== null || row.step > 0) && fact(steps(row), "steps"),
    row.seconds_left !== null && fact(duration(row.seconds_left), "left, without evaluations"),
    row.adapter && h("span", { class: "fact" }, h("b", {}, visible(row.adapter))),
    row.note && h("span", { class: "dim note-line", title: row.note }, visible(row.note)),
  ].filter(Boolean);
}

/** Evaluations while training, the newest first, with the way to their runs. */
function evaluations(found) {
  if (!found.length) return [];
  const highest = Math.max(...found.map((one) => one.score));
  const best = found.find((one) => one.score === highest); // of equals the first, which is the one that is kept
  const percent = (value) => (value === null ? "–" : `${(100 * value).toFixed(1)} %`);
  const rows = [...found].reverse().map((one) =>
    h(
      "tr",
      { class: one === best ? "best" : "" },
      h("td", { class: "number" }, String(one.step)),
      h("td", { class: "number" }, one.score.toFixed(3), one === best ? h("span", { class: "star", title: "the best" }, " ★") : ""),
      h("td", { class: "number" }, percent(one.success)),
      h("td", {}, one.runs ? h("a", { href: addressOf("runs", "", { policy: one.policy }) }, `${one.runs} runs`) : h("span", { class: "dim" }, "not kept")),
    ),
  );
  return [h("h2", {}, "Evaluations"), h("table", { class: "small" }, h("thead", {}, h("tr", {}, ["Step", "Score", "Success", "Runs"].map((name) => h("th", {}, name)))), h("tbody", {}, rows))];
}

function words(training) {
  const pair = (name, value) => [h("dt", {}, name), h("dd", {}, visible(value))];
  return [
    h("h2", {}, "Data"),
    h(
      "dl",
      {},
      pair("frozen", training.items === null ? (training.row.state === "done" ? "which ids was not kept" : "not yet") : `${training.items.toLocaleString("en")} ids, written down before it began`),
      pair("digest", training.data_digest.slice(0, 12)),
      pair("seed", String(training.seed)),
      training.stages.length ? pair("stages", training.stages.join(", ")) : "",
    ),
    h("h2", {}, "Settings"),
    h("dl", {}, training.settings.map(({ name, value }) => pair(name, value))),
    ...(training.log ? [h("h2", {}, "Its words"), h("pre", { class: "log" }, visible(training.log))] : []),
  ];
}

/** Seconds as people say them. */
export function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

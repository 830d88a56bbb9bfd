// The list of runs: filters, pages, and the way to one run or to a comparison of two.

import { h, visible } from "./dom.js";
import { useKeys } from "./keys.js";
import { LIST_LETTERS } from "./letters.js";
import { addressOf, go, note, notice } from "./place.js";
import { read } from "./save.js";
import { scoreFilters } from "./score_filters.js";

const FILTERS = [
  ["taskset", "Taskset"],
  ["family", "Family"],
  ["split", "Split"],
  ["policy", "Made by"],
  ["stop_reason", "Ended"],
  ["tool", "Tool called"],
];

const SEARCHED = "Finds what stands in messages, reasoning, arguments and results; case is ignored. Three characters or more are found at once, fewer take longer. Not searched: tool schemas, error traces, notes.";

/** What the last list showed, so that a run's page can go to its neighbours. */
export const listed = { query: "", ids: [], next: null, total: 0, isExact: true };
let underWay = { ids: null, rows: null };

/** Read the next page of the list into `listed`; returns its rows. Asked again before it is there, it is read once. */
export function readMore(query) {
  if (listed.query !== query) Object.assign(listed, { query, ids: [], next: null, total: 0 });
  if (underWay.ids !== listed.ids) {
    const { ids } = listed;
    const done = () => (underWay.ids === ids ? (underWay = { ids: null, rows: null }) : null);
    underWay = { ids, rows: readPage(query, ids).finally(done) };
  }
  return underWay.rows;
}

/** One page into `ids`; nothing where the list has been read anew meanwhile. */
async function readPage(query, ids) {
  const wanted = new URLSearchParams(query);
  if (listed.next) wanted.set("after", listed.next);
  const page = await read("/api/runs?" + wanted);
  if (listed.ids !== ids || listed.query !== query) return [];
  ids.push(...page.rows.map((row) => row.id));
  listed.next = page.next;
  listed.total = page.total;
  listed.isExact = page.is_exact;
  return page.rows;
}

export async function showList(view, { query, root, session, current }) {
  const wanted = Object.fromEntries([...query].filter(([name]) => name !== "at"));
  const text = new URLSearchParams(wanted).toString();
  Object.assign(listed, { query: null });
  const [choices, rows] = await Promise.all([
    read("/api/choices" + (wanted.taskset ? "?taskset=" + encodeURIComponent(wanted.taskset) : "")),
    readMore(text),
  ]);
  const body = h("tbody");
  const count = h("span", { class: "count" });
  const more = h("button", { type: "button", class: "quiet more-runs", onclick: () => addPage() }, "More runs");
  const screen = { chosen: new Set(), at: -1 };
  const isLead = session.role !== "rater";
  const queueing = h("div", { class: "queueing" });
  const toQueue = h("button", { type: "button", class: "quiet", title: "People are to rate the ticked runs", onclick: () => fillQueue() }, "To the queue ", h("kbd", {}, LIST_LETTERS.queue));
  const pick = h("button", { type: "button", class: "quiet", title: "Compare the two ticked runs, blind", onclick: () => compareTicked() }, "Compare ", h("kbd", {}, "c"));

  const change = (name, value) => go("runs", "", { ...wanted, ...(name === "taskset" ? { task_id: "", family: "", policy: "", tool: "", criterion: "", score_at_least: "", score_at_most: "" } : {}), [name]: value });
  const addPage = async () => {
    more.disabled = true;
    try {
      add(await readMore(text));
    } catch (error) {
      notice(root, error.message);
    }
    more.disabled = false;
  };
  const add = (fresh) => {
    body.append(...fresh.map((row) => line(row, wanted, screen, ticked)));
    update();
  };
  const update = () => {
    const all = listed.total.toLocaleString("en") + (listed.isExact ? "" : "+");
    count.textContent = listed.isExact && listed.total === listed.ids.length ? `${all} ${listed.total === 1 ? "run" : "runs"}` : `${listed.ids.length} of ${all} runs`;
    more.hidden = !listed.next;
    pick.disabled = screen.chosen.size !== 2;
    // Room for the filters: what is done with ticked runs stands there once some are.
    pick.hidden = toQueue.hidden = screen.chosen.size === 0;
  };
  const ticked = () => {
    queueing.replaceChildren();
    update();
  };
  const compareTicked = () => {
    if (screen.chosen.size === 2) go("compare", "", { runs: [...screen.chosen].join(",") });
    else notice(root, "Tick two runs of one task to compare them.");
  };
  const fillQueue = async (isPair = false) => {
    const runs = [...screen.chosen];
    if (isPair ? runs.length !== 2 : !runs.length) return notice(root, isPair ? "Tick two runs of one task to have them compared." : "Tick the runs that people are to rate.");
    const { queueForm } = await import("./to_queue.js");
    const form = queueForm({ runs, isPair, root, close: () => queueing.replaceChildren(), other: () => fillQueue(!isPair) });
    queueing.replaceChildren(form);
    const field = form.querySelector("input");
    field.focus();
    field.select();
  };
  const tickAll = () => {
    const ticks = [...body.querySelectorAll(".tick-cell input")];
    const isOn = !ticks.every((tick) => tick.checked);
    for (const tick of ticks) if (tick.checked !== isOn) tick.click();
  };
  const select = (index) => {
    if (!body.rows.length) return;
    body.rows[screen.at]?.classList.remove("at");
    screen.at = Math.max(0, Math.min(body.rows.length - 1, index));
    body.rows[screen.at].classList.add("at");
    body.rows[screen.at].scrollIntoView({ block: "nearest" });
    if (screen.at === body.rows.length - 1 && listed.next && !more.disabled) addPage();
  };

  const search = h("input", { type: "search", class: "field", placeholder: "Search text", value: wanted.text ?? "", "aria-label": "Search text", title: SEARCHED });
  search.addEventListener("keydown", (event) => event.key === "Enter" && change("text", search.value));
  search.addEventListener("search", () => search.value === "" && wanted.text && change("text", ""));
  const tasks = [...new Set(rows.map((row) => row.task_id).filter(Boolean))].sort();
  const task = h("input", { class: "field task-field", placeholder: "Task", value: wanted.task_id ?? "", "aria-label": "Task", title: "A task's id, in full", autocomplete: "off" });
  const suggestions = h("datalist", { id: "aa-tasks" }, tasks.map((id) => h("option", { value: id })));
  task.setAttribute("list", suggestions.id);
  task.addEventListener("change", () => change("task_id", task.value.trim()));
  const unrated = h("input", { type: "checkbox", checked: wanted.unrated === "true", onchange: (event) => change("unrated", event.target.checked ? "true" : "") });
  const isFiltered = Object.keys(wanted).length > 0;

  view.append(
    h(
      "div",
      { class: "filters" },
      search,
      task,
      suggestions,
      FILTERS.filter(([name]) => name !== "split").map(([name, label]) => chooser(name, label, choices[name], wanted[name] ?? "", change)),
      scoreFilters(choices, wanted, go, chooser("split", "any split", choices.split, wanted.split ?? "", change)),
      h("label", { class: "tick" }, unrated, "Unrated by me"),
      isFiltered && h("button", { type: "button", class: "quiet", onclick: () => go("runs") }, "Clear"),
      h("span", { class: "grow" }),
      count,
      pick,
      isLead && toQueue,
      exporter(wanted.taskset),
      queueing,
    ),
  );
  if (wanted.task_id) view.append(h("p", { class: "only" }, "Only task ", h("b", {}, visible(wanted.task_id)), " ", h("button", { type: "button", class: "quiet", onclick: () => change("task_id", "") }, "all tasks")));
  if (rows.length) {
    const heads = [["", "Ticked"], ["Request"], ["Task"], ["Family"], ["Split"], ["Made by"], ["Ended"], ["Steps", "Assistant turns", 1], ["Calls", "Tool calls", 1], ["Errors", "Failed and unreadable calls", 1], ["Overall", "0 if a gate failed, else 0.1 to 1 by the team's criteria", 1], ["Mine", "Marks I gave", 1], ["Made"]];
    view.append(
      h("div", { class: "table-box" }, h("table", { class: "runs" }, h("thead", {}, h("tr", {}, heads.map(([name, title, number]) => h("th", { title, class: number ? "number" : undefined }, name)))), body)),
      more,
    );
    add(rows);
  } else {
    update();
    view.append(empty(isFiltered));
  }
  useKeys([
    { keys: ["j", "ArrowDown"], label: "j ↓", does: "next run", act: () => select(screen.at + 1) },
    { keys: ["k", "ArrowUp"], label: "k ↑", does: "run before", act: () => select(screen.at - 1) },
    { keys: ["Enter", "o"], label: "Enter o", does: "open the run", act: () => screen.at >= 0 && go("run", listed.ids[screen.at]) },
    { keys: ["x"], label: "x", does: isLead ? "tick the run, to be compared or queued" : "tick the run for a comparison", act: () => body.rows[screen.at]?.querySelector("input").click() },
    { keys: ["c"], label: "c", does: "compare the two ticked runs", act: compareTicked },
    ...(isLead ? leadKeys({ fillQueue, tickAll, close: () => queueing.replaceChildren() }) : []),
    { keys: ["u"], label: "u", does: "only runs I have not rated", act: () => unrated.click() },
    { keys: ["/"], label: "/", does: "search", act: () => search.focus() },
    { keys: ["t"], label: "t", does: "only the runs of a task (Enter takes its id)", act: () => (task.focus(), task.select()) },
  ], current);
}

function leadKeys({ fillQueue, tickAll, close }) {
  const { queue, pair, all } = LIST_LETTERS;
  return [
    { keys: [all], label: all, does: "tick all runs shown, or none", act: tickAll },
    { keys: [queue], label: queue, does: "put the ticked runs into the queue (Enter adds)", act: () => fillQueue() },
    { keys: [pair], label: pair, does: "put the two ticked runs into the queue as a pair", act: () => fillQueue(true) },
    { keys: ["Escape"], label: "Esc", does: "close the form of the queue", act: close },
  ];
}

function chooser(name, label, values, chosen, change) {
  const all = chosen && !values.includes(chosen) ? [chosen, ...values] : values;
  const options = all.map((value) => h("option", { value, selected: value === chosen }, visible(value)));
  return h("select", { "aria-label": label, class: chosen ? "set" : "", disabled: !all.length, onchange: (event) => change(name, event.target.value) }, h("option", { value: "" }, label), options);
}

function exporter(taskset) {
  const query = taskset ? "?taskset=" + encodeURIComponent(taskset) : "";
  const link = (what, form, text) => h("a", { href: `/api/export/${what}.${form}${query}`, download: `${what}.${form}` }, text);
  return h(
    "details",
    { class: "menu" },
    h("summary", { title: taskset ? "Ratings of this taskset" : "All ratings" }, "Export"),
    h("div", { class: "menu-box" }, link("scores", "csv", "Scores, CSV"), link("scores", "jsonl", "Scores, JSONL"), link("preferences", "csv", "Comparisons, CSV"), link("preferences", "jsonl", "Comparisons, JSONL")),
  );
}

function line(row, wanted, screen, ticked) {
  const tick = h("input", { type: "checkbox", "aria-label": "Tick the run" });
  tick.addEventListener("change", () => {
    if (tick.checked) screen.chosen.add(row.id);
    else screen.chosen.delete(row.id);
    ticked();
  });
  const link = h("a", { href: addressOf("run", row.id) }, row.excerpt ? visible(row.excerpt.replace(/\s+/g, " ")) : "(no user message)");
  const task = row.task_id && h("a", { href: addressOf("runs", "", { ...wanted, task_id: row.task_id }), title: "All runs of this task" }, visible(row.task_id));
  const open = (event) => {
    if (!event.target.closest("a, input, label") && !getSelection().toString()) go("run", row.id);
  };
  return h(
    "tr",
    { onclick: open, "data-id": row.id },
    h("td", { class: "tick-cell" }, tick),
    h("td", { class: "request" }, link),
    h("td", { class: "task" }, task),
    h("td", {}, visible(row.family)),
    h("td", { class: "dim" }, visible(row.split)),
    h("td", { class: "policy", title: row.policy }, maker(row.policy)),
    h("td", {}, stopChip(row.stop_reason)),
    h("td", { class: "number" }, String(row.n_steps)),
    h("td", { class: "number" }, String(row.n_calls)),
    h("td", { class: "number faults" }, row.n_errors ? String(row.n_errors) : ""),
    h("td", { class: "number" }, meter(row.overall)),
    h("td", { class: "number mine" }, row.mine ? String(row.mine) : ""),
    h("td", { class: "dim time" }, row.created ? row.created.slice(0, 16).replace("T", " ") : ""),
  );
}

function empty(isFiltered) {
  return h(
    "div",
    { class: "empty" },
    h("p", {}, isFiltered ? "No run matches these filters." : "There are no runs yet."),
    isFiltered ? null : h("p", { class: "dim" }, "Make some with `agentalign rollout`, read some with `agentalign import`, or run `agentalign demo`."),
  );
}

/** Who made a run; an imported file is named by the beginning of its digest. */
export function maker(policy) {
  return visible(/^[0-9a-f]{32,}$/.test(policy) ? `file ${policy.slice(0, 8)}` : policy);
}

/** Why a run ended, coloured where it is a reason for concern. */
export function stopChip(reason) {
  const tone = reason === "answered" ? "calm" : reason === "error" ? "bad" : reason === "unknown" ? "calm" : "warn";
  return h("span", { class: "chip " + tone }, visible(reason.replaceAll("_", " ")));
}

/** A value in [0, 1] as a small bar with its number; a dash where it is not known. */
export function meter(value) {
  if (value === null) return h("span", { class: "dim", title: "not scored yet" }, "–");
  const bar = h("span", { class: "meter " + (value === 0 ? "zero" : value < 0.5 ? "low" : "") });
  bar.style.setProperty("--value", String(value));
  return h("span", { class: "metered" }, bar, value.toFixed(2));
}

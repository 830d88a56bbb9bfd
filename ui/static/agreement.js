// How far raters agree: per question alpha and a matrix of kappas, each with n and interval; a cell opens the cases behind it.

import { showCase } from "./adjudicate.js";
import { h, visible } from "./dom.js";
import { useKeys } from "./keys.js";
import { addressOf, go } from "./place.js";
import { read } from "./save.js";

/** #/agreement: the report; #/agreement/cases: what is behind a cell; #/agreement/case: one of them, to decide. */
export async function showAgreement(view, screen) {
  view.classList.add("view-agreement-" + (screen.id || "report"));
  if (screen.id === "cases") return showCases(view, screen);
  if (screen.id === "case") return showCase(view, screen);
  return showReport(view, screen);
}

async function showReport(view, { query, session, current }) {
  const taskset = query.get("taskset") ?? session.tasksets[0] ?? "";
  const chooser = h(
    "select",
    { "aria-label": "Taskset", onchange: (event) => go("agreement", "", { taskset: event.target.value }) },
    session.tasksets.map((name) => h("option", { value: name, selected: name === taskset }, visible(name))),
  );
  const bar = h("div", { class: "filters" }, chooser, h("span", { class: "dim" }, "1 is perfect, 0 is chance. A cell opens its cases."));
  if (!taskset) {
    view.append(bar, h("div", { class: "empty" }, h("p", {}, "There are no runs yet.")));
    return;
  }
  const report = await read("/api/agreement?" + new URLSearchParams({ taskset }));
  const body = h("div", { class: "agreement" });
  if (report.criteria_missing) body.append(h("p", { class: "fault" }, visible(report.criteria_missing)));
  const isAnswered = (question) => question.raters.some((rater) => rater[0] === "human");
  const boxes = (answered) => report.questions.filter((question) => isAnswered(question) === answered).map((question) => questionBox(taskset, question));
  const empty = boxes(false);
  body.append(...boxes(true));
  if (empty.length) body.append(h("details", { class: "unanswered" }, h("summary", {}, `${empty.length} that no person has answered`), empty));
  if (!report.questions.length) body.append(h("div", { class: "empty" }, h("p", {}, "Nobody has rated or compared runs of this taskset.")));
  if (report.people.length) body.append(peopleBox(report.people));
  if (report.gold.length) body.append(goldBox(report.gold));
  view.append(bar, body);
  useKeys(keysOf(body), current);
}

/** Arrow keys move between cells; Enter opens, as on any link. */
function keysOf(body) {
  const cells = () => [...body.querySelectorAll("a.cell")].filter((cell) => cell.checkVisibility());
  const move = (by) => {
    const all = cells();
    if (!all.length) return;
    const at = all.indexOf(document.activeElement);
    all[at < 0 ? 0 : Math.max(0, Math.min(all.length - 1, at + by))].focus();
  };
  return [
    { keys: ["ArrowRight", "j"], label: "→ j", does: "next figure", act: () => move(1) },
    { keys: ["ArrowLeft", "k"], label: "← k", does: "figure before", act: () => move(-1) },
    { label: "Enter", keys: [], does: "open the cases behind the figure" },
  ];
}

export function nameOf(question) {
  const [criterion, kind] = question;
  return kind === "pair" ? (criterion === "overall" ? "Compared: which run is better" : `Compared: ${criterion.split("@")[0].replaceAll("_", " ")}`) : criterion.split("@")[0].replaceAll("_", " ");
}

function questionBox(taskset, q) {
  const to = (first, second) => addressOf("agreement", "cases", { taskset, criterion: q.question[0], kind: q.question[1], first: first && first.join(":"), second: second && second.join(":") });
  const people = q.raters.filter((rater) => rater[0] === "human");
  const figures = new Map();
  for (const k of q.kappas) {
    figures.set(JSON.stringify([k.first, k.second]), k);
    figures.set(JSON.stringify([k.second, k.first]), k);
  }
  const rows = people.map((row) =>
    h("tr", {}, h("th", { scope: "row" }, who(row)), q.raters.map((column) => h("td", {}, String(row) === String(column) ? h("span", { class: "dim", "aria-label": "the same" }, "·") : kappaCell(figures.get(JSON.stringify([row, column])), to(row, column))))),
  );
  const counts = `${q.shared} answered by two or more, ${q.split} split, ${q.open} open, ${q.decided} decided`;
  return h(
    "section",
    { class: "question-box", "data-question": q.question.join(" ") },
    h("header", {}, h("h2", {}, visible(nameOf(q.question))), h("span", { class: "dim" }, visible(q.question[0]), ` · ${q.level} · ${q.metric}`), h("span", { class: "grow" }), h("a", { class: "button quiet", href: to() }, q.open ? `${q.open} to decide` : "cases")),
    h("div", { class: "figures" }, h("div", { class: "alpha" }, h("span", { class: "dim" }, "alpha over people"), figureCell(q.alpha, to(), "alpha")), people.length > 0 && q.raters.length > 1 && matrix(q.raters, rows), h("p", { class: "dim counts" }, counts)),
    q.first_errors && firstErrors(q.first_errors),
    q.machines.map((machine) => machineBox(taskset, q, machine, to)),
  );
}

function matrix(raters, rows) {
  return h("table", { class: "matrix" }, h("caption", {}, "kappa for every two raters"), h("thead", {}, h("tr", {}, h("td"), raters.map((rater) => h("th", { scope: "col" }, who(rater))))), h("tbody", {}, rows));
}

export function who(rater) {
  return rater[0] === "human" ? visible(rater[1]) : [h("span", { class: "dim" }, rater[0].replaceAll("_", " "), " "), rater[1] === rater[0] ? "" : visible(rater[1])];
}

function kappaCell(k, href) {
  return k ? figureCell(k.kappa, href, "kappa", k.same) : h("span", { class: "dim", title: "no case in common" }, "–");
}

/** Colour and number, and never a number without its n and interval. */
function figureCell(estimate, href, name, same) {
  const known = estimate.value !== null;
  const tone = !known ? "none" : estimate.value >= 0.8 ? "high" : estimate.value >= 0.667 ? "fair" : estimate.value >= 0.4 ? "low" : "poor";
  const interval = known && estimate.low !== null ? `${signed(estimate.low)} to ${signed(estimate.high)}` : "";
  const title = known ? `${name} ${signed(estimate.value)}, 95 % from ${interval}, n ${estimate.n}${same === undefined || same === null ? "" : `; equal answers ${Math.round(same * 100)} %`}` : `${estimate.why}: ${estimate.n} in common`;
  return h("a", { class: "cell " + tone, href, title, "aria-label": title }, h("b", {}, known ? signed(estimate.value) : estimate.why), interval && h("small", {}, interval), h("small", {}, `n ${estimate.n}`));
}

function signed(value) {
  return (Math.round(value * 100) / 100 || 0).toFixed(2).replace("-", "−");
}

function percent(share) {
  return share === null ? h("span", { class: "dim" }, "–") : [`${Math.round(share.share * 100)} %`, h("small", { class: "dim" }, ` ${Math.round(share.low * 100)} to ${Math.round(share.high * 100)}, n ${share.n}`)];
}

function firstErrors(errors) {
  if (!errors.same && !errors.one_only && !errors.neither) return null;
  return h("p", { class: "first-errors" }, "First bad step: ", errors.same ? ["the same in ", percent(errors.same), `, on average ${errors.mean_distance.toFixed(1)} steps apart; `] : "", `${errors.one_only} times only one saw one, ${errors.neither} times neither.`);
}

function machineBox(taskset, q, machine, to) {
  const { labels, counts } = machine.confusion;
  const used = labels.map((_, at) => at).filter((at) => counts[at].some(Boolean) || counts.some((row) => row[at]));
  const most = Math.max(1, ...counts.flat());
  const table = h(
    "table",
    { class: "matrix confusion" },
    h("caption", {}, "people by row, ", who(machine.rater), " by column"),
    h("thead", {}, h("tr", {}, h("td"), used.map((at) => h("th", { scope: "col" }, labels[at])))),
    h("tbody", {}, used.map((row) => h("tr", {}, h("th", { scope: "row" }, labels[row]), used.map((column) => {
      const cell = h("td", { class: "count-cell" + (row === column ? " same" : "") }, String(counts[row][column]));
      cell.style.setProperty("--share", String(counts[row][column] / most));
      return cell;
    })))),
  );
  const rho = machine.correlation;
  const worst = machine.worst.map((one) => h("li", {}, h("a", { href: caseAddress(taskset, q.question, one.items) }, `people ${short(one.people, q)}, ${machine.rater[1]} ${short(one.machine, q)}`)));
  return h(
    "details",
    { class: "machine" },
    h("summary", {}, "People against ", who(machine.rater), rho && h("span", { class: "dim" }, rho.value === null ? ` · ${rho.why}, n ${rho.n}` : ` · rank correlation ${signed(rho.value)} (${signed(rho.low ?? rho.value)} to ${signed(rho.high ?? rho.value)}), n ${rho.n}`)),
    h("div", { class: "figures" }, table, worst.length > 0 && h("div", {}, h("p", { class: "dim" }, "The widest apart"), h("ul", {}, worst))),
  );
}

const PAIR_WORDS = ["first", "second", "tie", "both bad"];

function short(value, q) {
  return q.question[1] === "pair" ? PAIR_WORDS[value] : String(Math.round(value * 100) / 100);
}

export function caseAddress(taskset, question, items) {
  const [criterion, kind] = question;
  return addressOf("agreement", "case", { taskset, criterion, kind, run: items[0][0], step: kind === "mark" ? items[0][1] : null, other: items[1]?.[0] });
}

function peopleBox(people) {
  const heads = [["Person"], ["Marks"], ["Pairs"], ["Left side", "Of clear choices between two sides; 50 % is fair"], ["Said again alike", "Of cases answered again after an hour, or after ten other runs"], ["Sides swapped", "Of pairs shown again with their sides swapped: how often alike, overall"], ["Upheld", "Of decided cases; mostly disputed ones are decided"], ["Time per run", "Median, without breaks"], ["Beside the others, by week", "Own marks minus the others' on the same cases, from −1 stricter to +1 milder"]];
  const week = (w) => h("span", { class: "chip calm", title: w.low === null ? `${w.shared} in common: too few for an interval` : `95 % from ${signed(w.low)} to ${signed(w.high)}` }, `${w.week.slice(2)} ${w.lean === null ? "–" : signed(w.lean)} n ${w.shared}`);
  const rows = people.map((p) => [
    h("tr", {}, h("th", { scope: "row" }, visible(p.name)), h("td", {}, String(p.marks)), h("td", {}, String(p.pairs)), h("td", {}, percent(p.left)), h("td", {}, percent(p.repeat)), h("td", {}, percent(p.swapped)), h("td", {}, percent(p.upheld)), h("td", {}, p.seconds_per_run === null ? "–" : [`${Math.round(p.seconds_per_run)} s`, h("small", { class: "dim" }, ` n ${p.runs}`)]), h("td", { class: "weeks" }, p.weeks.slice(-6).map(week))),
    p.flags.length > 0 && h("tr", { class: "flags" }, h("td", { colSpan: heads.length }, p.flags.map((flag) => h("span", { class: "chip warn" }, visible(p.name), " ", visible(flag))))),
  ]);
  return h("section", { class: "question-box" }, h("header", {}, h("h2", {}, "People"), h("span", { class: "dim" }, "for a talk, not for deleting anyone's marks")), h("table", { class: "people" }, h("thead", {}, h("tr", {}, heads.map(([name, title]) => h("th", { title, scope: "col" }, name)))), h("tbody", {}, rows)));
}

function goldBox(gold) {
  const heads = [["Person"], ["Criterion"], ["Of"], ["Asked"], ["Right"], ["Off by", "Mean distance on the criterion's scale"], ["Answers set by", "Nobody is tested by their own"]];
  const cell = (...content) => h("td", {}, ...content);
  const row = (g) => h("tr", {}, h("th", { scope: "row" }, visible(g.person)), cell(visible(g.criterion)), cell(g.is_pair ? "pairs" : "runs"), cell(String(g.asked)), cell(String(g.right)), cell(g.off === null ? "–" : g.off.toFixed(2)), cell(g.set_by.length ? visible(g.set_by.join(", ")) : "–"));
  return h("section", { class: "question-box" }, h("header", {}, h("h2", {}, "Known answers"), h("span", { class: "dim" }, "runs and pairs that raters are tested with, once each")), h("table", { class: "people gold" }, h("thead", {}, h("tr", {}, heads.map(([name, title]) => h("th", { title, scope: "col" }, name)))), h("tbody", {}, gold.map(row))));
}

async function showCases(view, { query, current }) {
  const wanted = Object.fromEntries(query);
  const found = await read("/api/agreement/cases?" + query);
  const raters = [wanted.first, wanted.second].filter(Boolean).map((text) => text.split(":").slice(1).join(":"));
  const back = addressOf("agreement", "", { taskset: wanted.taskset });
  const body = h("tbody");
  for (const one of found.cases) {
    const href = caseAddress(wanted.taskset, one.question, one.items);
    const place = one.items.map(([run, step]) => run.slice(0, 8) + (step === null ? "" : ` step ${step}`)).join(" / ");
    body.append(
      h("tr", { onclick: (event) => !event.target.closest("a") && (location.hash = href) }, h("td", {}, h("a", { href, class: "open-case" }, place)), h("td", {}, h("span", { class: "chip " + (one.spread >= 0.5 ? "bad" : one.spread > 0 ? "warn" : "good") }, one.spread === 0 ? "alike" : `${Math.round(one.spread * 100)} % apart`)), h("td", { class: "answers" }, one.answers.map(answerChip)), h("td", {}, one.decision ? h("span", { class: "chip mine" }, "decided: ", visible(one.decision.word)) : "")),
    );
  }
  view.append(
    h("div", { class: "filters" }, h("a", { class: "back", href: back, title: "Back (l)" }, "‹"), h("b", {}, visible(nameOf([wanted.criterion, wanted.kind]))), raters.length > 0 && h("span", { class: "dim" }, visible(raters.join(" and "))), h("span", { class: "grow" }), h("span", { class: "count" }, found.total > found.cases.length ? `${found.cases.length} of ${found.total} cases` : `${found.total} cases`)),
    found.cases.length ? h("div", { class: "table-box" }, h("table", { class: "runs cases" }, h("thead", {}, h("tr", {}, ["Case", "Apart", "Answers", ""].map((name) => h("th", {}, name)))), body)) : h("div", { class: "empty" }, h("p", {}, "No case in common.")),
  );
  const links = [...body.querySelectorAll("a.open-case")];
  const move = (by) => links[Math.max(0, Math.min(links.length - 1, links.indexOf(document.activeElement) + by))]?.focus();
  useKeys([
    { keys: ["j", "ArrowDown"], label: "j ↓", does: "next case", act: () => move(1) },
    { keys: ["k", "ArrowUp"], label: "k ↑", does: "case before", act: () => move(-1) },
    { keys: [], label: "Enter", does: "open the case" },
    { keys: ["l"], label: "l", does: "back to the figures", act: () => (location.hash = back) },
  ], current);
  view.addEventListener("shown", () => links[0]?.focus());
}

export function answerChip(answer) {
  return h("span", { class: "chip " + (answer.rater[0] === "human" ? "calm" : "gate"), title: answer.note }, who(answer.rater), " ", h("b", {}, visible(answer.word)));
}

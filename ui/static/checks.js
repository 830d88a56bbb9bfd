// Deploy-check and promotion of one version, as a sheet over the page. Names, details and reasons are text nodes: cards may be anybody's.

import { h, visible } from "./dom.js";
import { read } from "./save.js";

const POLL = 1000;
const TONES = { green: "good", passed: "good", red: "bad", failed: "bad" };

/** Open the sheet of `ref`, "name@3". `done` is called when it closes. */
export async function showChecks(root, ref, done = () => {}) {
  const [name, version] = ref.split("@");
  const sheet = { url: `/api/adapters/${encodeURIComponent(name)}/${encodeURIComponent(version)}`, ref, timer: 0 };
  const box = h("div", { class: "sheet", role: "dialog", "aria-label": "Deploy-check" });
  const close = () => {
    clearTimeout(sheet.timer);
    sheet.closed = true;
    box.remove();
    done();
  };
  sheet.box = h("div", { class: "sheet-box checks-sheet" });
  sheet.status = h("div", { role: "status" });
  sheet.reports = h("div");
  sheet.start = h("button", { type: "button", "data-act": "Deploy-check", onclick: () => act(sheet, "checks", {}) }, "Run deploy-check");
  sheet.reason = h("input", { type: "text", class: "field reason", maxLength: 1000, "aria-label": "Reason", placeholder: "a reason, to go against the gate", oninput: () => allow(sheet) });
  sheet.answer = h("p", { class: "fault", role: "status" });
  sheet.stages = ["candidate", "production"].map((stage) => h("button", { type: "button", "data-stage": stage, onclick: () => promote(sheet, stage) }, stage === "candidate" ? "Make candidate" : "Put into production"));
  sheet.promotion = h("div", { class: "promotion" }, h("p", { class: "dim" }, "Promotion asks the whole gate: unchanged files, sound weights, an evaluation, a green deploy-check, not worse than production."), sheet.reason, sheet.answer, h("p", {}, sheet.stages));
  sheet.closer = h("button", { type: "button", class: "quiet", onclick: close }, "Close");
  sheet.box.append(h("h2", {}, "Deploy-check of ", visible(ref)), sheet.status, h("p", {}, sheet.start), sheet.reports, sheet.promotion, sheet.closer);
  box.append(sheet.box);
  box.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Escape") close();
  });
  root.append(box);
  sheet.start.focus();
  await look(sheet);
}

async function look(sheet) {
  clearTimeout(sheet.timer);
  try {
    draw(sheet, await read(`${sheet.url}/checks`));
  } catch (error) {
    sheet.status.replaceChildren(h("p", { class: "fault" }, visible(error.message)));
    return;
  }
  if (sheet.found.working && !sheet.closed) sheet.timer = setTimeout(() => look(sheet), POLL);
}

async function act(sheet, what, body) {
  sheet.start.disabled = true;
  try {
    await read(`${sheet.url}/${what}`, body);
    await look(sheet);
  } catch (error) {
    sheet.start.disabled = false;
    sheet.status.replaceChildren(h("p", { class: "fault" }, visible(error.message)));
  }
}

function draw(sheet, found) {
  sheet.found = found;
  sheet.start.disabled = found.working;
  const words = found.working
    ? [h("p", { class: "working" }, h("progress", {}), " ", visible(found.step), h("span", { class: "dim" }, ` ${Math.round(found.seconds)} s`))]
    : [h("p", {}, found.state ? [chip(found.state), " at the newest check"] : "No deploy-check of exactly these files yet.", found.stages.length ? [" In stage ", visible(found.stages.join(", ")), "."] : "")];
  if (found.reason && !found.working) words.push(h("p", { class: "fault" }, visible(found.reason)));
  sheet.status.replaceChildren(...words);
  sheet.reports.replaceChildren(...found.reports.map(report));
  allow(sheet);
}

/** A version that is not green goes nowhere without a reason; the server asks again. */
function allow(sheet) {
  const may = sheet.found && !sheet.found.working && (sheet.found.state === "green" || sheet.reason.value.trim() !== "");
  for (const button of sheet.stages) button.disabled = !may;
}

function report({ target, time, state, checks }, place) {
  const rows = checks.map((check) => h("tr", {}, h("td", {}, chip(check.verdict)), h("td", {}, h("b", {}, visible(check.name))), h("td", {}, visible(check.detail))));
  const summary = h("summary", {}, chip(state), " ", visible(target), h("span", { class: "dim" }, " ", time.slice(0, 16).replace("T", " ")));
  return h("details", { class: "question-box", open: place === 0 }, summary, h("table", { class: "small checks" }, h("tbody", {}, rows)));
}

function chip(word) {
  return h("span", { class: `chip ${TONES[word] ?? "warn"}`, "data-verdict": word }, word);
}

async function promote(sheet, stage) {
  for (const button of sheet.stages) button.disabled = true;
  sheet.answer.textContent = "Asking the gate …";
  try {
    const gate = await read(`${sheet.url}/promote`, { stage, reason: sheet.reason.value });
    sheet.answer.textContent = "";
    sheet.reason.value = "";
    const lines = gate.checks.map((check) => h("li", {}, chip(check.passed ? "passed" : "failed"), " ", h("b", {}, visible(check.name)), " ", visible(check.detail)));
    sheet.promotion.replaceChildren(h("h2", { class: "promoted" }, visible(`${gate.adapter} is ${stage} now`)), h("ul", { class: "checks" }, lines));
    sheet.closer.focus();
    await look(sheet);
  } catch (error) {
    sheet.answer.textContent = error.message;
    allow(sheet);
  }
}

// Correct this step: the call or reply as it should have been. What the agent did stays above it, untouched.

import { h, visible } from "./dom.js";
import { onSave, read, save } from "./save.js";
import { timeline, toggle } from "./timeline.js";

const SAVE = "/api/corrections";
const BACK = "/api/corrections/withdrawn";

/** What this rater corrected in a run: `open(step)` shows the form under a step, `stop()` ends listening. */
export function corrections(run, rows) {
  const waiting = new Map();
  let tools = [];
  const rowOf = (step) => rows.querySelector(`.entry[data-step="${step}"]`);
  const entryOf = (step) => run.timeline.find((entry) => entry.step === step);
  const clear = (step, kind) => rowOf(step)?.querySelector(kind)?.remove();
  // By step what this rater has corrected already: whoever corrects it again goes on from there.
  const own = new Map();

  const show = (step, entry, note) => {
    clear(step, ".corrected");
    own.set(step, { ...entry, note });
    const back = h("button", { type: "button", class: "quiet", onclick: (event) => (event.stopPropagation(), withdraw(step)) }, "Take back");
    const [shown] = timeline([{ ...entry, step: null, message: -1 }], { folded: false });
    rowOf(step)?.append(h("section", { class: "corrected", "aria-label": `Correction of step ${step}` }, h("header", {}, h("b", {}, "Corrected by you"), h("span", { class: "dim" }, visible(note)), h("span", { class: "grow" }), back), shown.querySelector(".content")));
  };
  const withdraw = (step) => waiting.set(save(BACK, { trajectory: run.id, step }), { step, entry: null });

  const open = (step) => {
    const box = rowOf(step);
    if (!box) return;
    toggle(box, false);
    const known = box.querySelector("form.correct");
    if (known) return known.querySelector("textarea").focus();
    const form = makeForm(own.get(step) ?? entryOf(step), tools, {
      give: (act) => {
        form.querySelector("fieldset").disabled = true;
        waiting.set(save(SAVE, { trajectory: run.id, step, ...act }), { step, act, form });
      },
      close: () => {
        form.remove();
        box.scrollIntoView({ block: "nearest" });
      },
    });
    box.append(form);
    form.querySelector("textarea").focus();
    form.scrollIntoView({ block: "nearest" });
  };

  const stop = onSave((change) => {
    const about = waiting.get(change.item?.body.key);
    if (!about) return;
    waiting.delete(change.item.body.key);
    // A refused correction stays in its form, to be mended; the reason stands above the page.
    if (change.kind !== "saved") {
      const fields = about.form?.querySelector("fieldset");
      if (fields) fields.disabled = false;
      about.form?.querySelector("textarea").focus();
    } else if (about.act) {
      about.form.remove();
      const calls = about.act.calls.map((call) => ({ ...call, result: "", error: false }));
      show(about.step, { kind: "step", text: about.act.content, reasoning: about.act.reasoning, malformed: "", calls, error: false }, about.act.note);
    } else {
      own.delete(about.step);
      clear(about.step, ".corrected");
    }
  });

  const ready = read(`/api/runs/${run.id}/corrections`).then((found) => {
    tools = found.tools;
    for (const one of found.corrections) show(one.step, one.entry, one.note);
  });
  return { open, stop, ready };
}

function makeForm(entry, tools, { give, close }) {
  const area = (label, value, rows, name) => h("label", {}, h("span", { class: "dim" }, label), h("textarea", { name, rows, value, spellcheck: false }));
  const calls = h("div", { class: "correct-calls" });
  const addCall = (call) => {
    const names = tools.includes(call.name) || !call.name ? tools : [call.name, ...tools];
    const remove = h("button", { type: "button", class: "quiet", onclick: () => box.remove() }, "Remove");
    const name = h("select", { "aria-label": "Tool", name: "tool" }, names.map((one) => h("option", { value: one, selected: one === call.name }, visible(one))));
    const box = h("div", { class: "correct-call" }, h("div", { class: "call-head" }, name, h("span", { class: "grow" }), remove), area("arguments, JSON", pretty(call.arguments), Math.min(12, pretty(call.arguments).split("\n").length + 1), "arguments"));
    calls.append(box);
    return box;
  };
  const text = area("reply", entry.text, 3, "content");
  const reasoning = entry.reasoning ? area("reasoning", entry.reasoning, 3, "reasoning") : null;
  const note = area("why? (note)", entry.note ?? "", 1, "note");
  const more = h("button", { type: "button", class: "quiet", disabled: !tools.length, onclick: () => addCall({ name: tools[0], arguments: "{}" }).querySelector("select").focus() }, "Add a call");
  const value = (name, inside) => inside.querySelector(`[name="${name}"]`)?.value ?? "";
  const submit = () => {
    const made = [...calls.children].map((box) => ({ name: value("tool", box), arguments: value("arguments", box) }));
    give({ content: value("content", form), reasoning: value("reasoning", form), calls: made, note: value("note", form) });
  };
  const form = h(
    "form",
    {
      class: "correct",
      "aria-label": "Correct this step",
      onsubmit: (event) => (event.preventDefault(), submit()),
      onclick: (event) => event.stopPropagation(),
      onkeydown: (event) => {
        if (event.key === "Escape") close();
        else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit();
        else return;
        event.preventDefault();
        event.stopPropagation();
      },
    },
    h("fieldset", {}, calls, text, reasoning, note, h("footer", {}, h("button", { type: "submit", class: "primary" }, "Save ", h("kbd", {}, "Ctrl+Enter")), h("button", { type: "button", class: "quiet", onclick: close }, "Cancel ", h("kbd", {}, "Esc")), more)),
  );
  for (const call of entry.calls) addCall(call);
  return form;
}

/** JSON laid out for editing. Numbers that JavaScript would round are left as they were written. */
export function pretty(text) {
  try {
    const value = JSON.parse(text);
    return JSON.stringify(value) === text ? JSON.stringify(value, null, 2) : text;
  } catch {
    return text;
  }
}

// A new training: settings, then what it would learn from, then the start. Nothing starts before its figures were seen.

import { h, visible } from "./dom.js";
import { useKeys } from "./keys.js";
import { go } from "./place.js";
import { read } from "./save.js";
import { duration } from "./training.js";

const POLL = 700;
const FIRST = ["base", "start", "learning_rate", "batch_size", "num_train_epochs", "max_steps", "iterations", "eval_every_steps", "seed"];

export async function showStart(view, { current }) {
  const form = await read("/api/trainings/form");
  // `changes` counts how often the settings were changed: figures that were asked for before one are of other settings.
  const screen = { recipe: "sft", taskset: form.tasksets[0] ?? "", values: {}, plan: null, changes: 0 };
  const dials = h("div", { class: "dials" });
  const outcome = h("div", { class: "outcome", role: "status" });
  const button = h("button", { type: "button", class: "main", onclick: () => plan() }, "See what it would learn from ", h("kbd", {}, "Enter"));

  const forget = () => {
    screen.plan = null;
    screen.changes += 1;
    outcome.replaceChildren();
  };
  const draw = () => {
    forget();
    const all = form.recipes[screen.recipe].filter((setting) => !["taskset", "training"].includes(setting.name));
    const first = all.filter((setting) => FIRST.includes(setting.name) || setting.name in screen.values);
    const rest = all.filter((setting) => !first.includes(setting));
    dials.replaceChildren(
      h("div", { class: "dial" }, h("label", { for: "aa-taskset" }, "taskset"), choice("aa-taskset", form.tasksets, screen.taskset, (value) => ((screen.taskset = value), forget()))),
      ...first.map((setting) => dial(setting, screen, forget)),
      h("details", { class: "rest" }, h("summary", {}, `${rest.length} more settings`), rest.map((setting) => dial(setting, screen, forget))),
    );
  };
  const recipes = choice("aa-recipe", Object.keys(form.recipes), screen.recipe, (value) => (Object.assign(screen, { recipe: value, values: {} }), draw()));
  const preset = h("select", { "aria-label": "Settings known to work", onchange: (event) => take(event.target.value) }, h("option", { value: "" }, "Settings known to work"), form.presets.map((one, index) => h("option", { value: String(index) }, visible(one.name))));
  const take = (index) => {
    if (index === "") return;
    const { recipe, settings } = form.presets[Number(index)];
    const { taskset = screen.taskset, ...values } = settings;
    Object.assign(screen, { recipe, taskset, values });
    recipes.value = recipe;
    draw();
  };

  const plan = async () => {
    const asked = screen.changes;
    button.disabled = true;
    outcome.replaceChildren(h("p", { class: "dim" }, "Reading the runs and measuring this machine. A base that was never used here is converted first."));
    try {
      let told = await read("/api/trainings/plans", { recipe: screen.recipe, settings: { taskset: screen.taskset, ...screen.values } });
      while (told.state === "working" && current() && view.isConnected) {
        await new Promise((done) => setTimeout(done, POLL));
        told = await read("/api/trainings/plans/" + told.plan);
      }
      if (told.state === "refused") throw new Error(told.reason);
      if (told.state === "ready" && asked === screen.changes) {
        screen.plan = told.plan;
        outcome.replaceChildren(...figures(told.figures), h("button", { type: "button", class: "main start", onclick: (event) => begin(event.target) }, "Start the training"));
        // Nobody who types somewhere is to find a button under the next Space.
        if ([button, document.body, null].includes(document.activeElement)) outcome.querySelector(".start").focus();
      }
    } catch (error) {
      if (asked === screen.changes) outcome.replaceChildren(h("pre", { class: "fault" }, visible(error.message)));
    }
    button.disabled = false;
    if (asked !== screen.changes) outcome.replaceChildren(h("p", { class: "dim" }, "The settings were changed while it looked. Ask again what these would learn from."));
  };
  const begin = async (pressed) => {
    pressed.disabled = true;
    try {
      const { id } = await read("/api/trainings", { plan: screen.plan });
      go("training", id);
    } catch (error) {
      outcome.append(h("p", { class: "fault" }, visible(error.message)));
      pressed.disabled = false;
    }
  };

  draw();
  view.append(
    h("div", { class: "filters" }, h("a", { class: "back", href: "#/training", title: "Back to the list (l)" }, "‹"), h("b", {}, "New training"), recipes, preset),
    h("div", { class: "split" }, h("div", { class: "left" }, dials), h("aside", { class: "rating", "aria-label": "What it would learn from" }, button, outcome)),
  );
  useKeys([
    { keys: ["Enter"], label: "Enter", does: "see what it would learn from", act: () => !button.disabled && plan() },
    { keys: ["l"], label: "l", does: "back to the list", act: () => go("training") },
  ], current);
}

function choice(id, values, chosen, change) {
  return h("select", { id, class: "set", onchange: (event) => change(event.target.value) }, values.map((value) => h("option", { value, selected: value === chosen }, visible(value))));
}

/** One setting. What is left empty keeps its default, which stands in the field as a hint. */
function dial(setting, screen, forget) {
  const id = "aa-dial-" + setting.name;
  const hint = setting.default === null ? "null" : Array.isArray(setting.default) ? `[${setting.default.join(", ")}]` : String(setting.default);
  const input = h("input", { id, class: "field", type: "text", maxLength: 1000, placeholder: hint, value: screen.values[setting.name] ?? "", title: setting.type });
  input.addEventListener("input", () => {
    if (input.value.trim() === "") delete screen.values[setting.name];
    else screen.values[setting.name] = input.value.trim();
    forget();
  });
  return h("div", { class: "dial" }, h("label", { for: id }, setting.name), input, h("p", { class: "dim" }, visible(setting.doc)));
}

function figures(done) {
  const pair = (name, value) => [h("dt", {}, name), h("dd", {}, visible(String(value)))];
  const number = (value) => value.toLocaleString("en");
  const { tokens, trainable, longest } = done.stats;
  return [
    h("h2", {}, "What it would learn from"),
    h(
      "dl",
      {},
      Object.entries(done.items).map(([what, count]) => pair(what, number(count))),
      tokens ? pair("tokens", `${number(tokens)}, ${Math.round((100 * trainable) / tokens)} % trained`) : pair("tokens", "none stored; it learns from what it does"),
      tokens ? pair("longest", `${number(longest)} tokens`) : [],
      pair("steps", number(done.steps)),
      pair("time", tokens ? `${duration(done.seconds)}, within a factor of two` : "not known before it acts"),
      pair("memory", `${done.memory_gb.toFixed(1)} GB${done.copy_gb ? `, and ${done.copy_gb.toFixed(1)} GB for the copy that acts, where there is room` : ""}`),
      pair("digest", done.training.data_digest.slice(0, 12)),
      pair("training", done.training.id),
    ),
    done.refused.length && h("details", {}, h("summary", {}, `${done.refused.length} runs are refused`), done.refused.slice(0, 20).map((one) => h("p", { class: "dim" }, visible(one.reason)))),
  ].filter(Boolean);
}

// Saving. A mark counts only when the server says {saved: true}; until then it waits in this browser and is sent again, in order,
// under the same key, so that a lost answer never makes two marks.

const RETRY = [1000, 2000, 4000, 8000, 15000, 30000];
const TIMEOUT = 15000;

const listeners = new Set();
let prefix = "agentalign.unsaved.";
let running = false;
let failures = 0;
let timer = 0;
let state = { kind: "idle", text: "" };

/** Call with {kind: "idle" | "saving" | "saved" | "waiting" | "refused", text, item?, answer?} at every change. */
export function onSave(listener) {
  listeners.add(listener);
  listener(state);
  return () => listeners.delete(listener);
}

/** Start with what an earlier visit left unsaved. Marks of another project on this port stay where they are. */
export function openQueue(project) {
  prefix = `agentalign.unsaved.${project}.`;
  window.addEventListener("online", () => flush());
  window.addEventListener("beforeunload", (event) => {
    if (unsaved().length) event.preventDefault();
  });
  flush();
}

/** Everything that is not acknowledged yet, oldest first. */
export function unsaved() {
  return Object.keys(localStorage)
    .filter((name) => name.startsWith(prefix))
    .sort()
    .map((name) => ({ name, ...JSON.parse(localStorage.getItem(name)) }));
}

/** Save `body` at `url`; it gets its idempotency key here. Returns the key. */
export function save(url, body) {
  const key = hex(16);
  const item = { url, body: { key, ...body } };
  // One entry per mark: two tabs can add and remove without overwriting each other.
  const name = prefix + String(Date.now()).padStart(15, "0") + String(counter++).padStart(6, "0") + key;
  localStorage.setItem(name, JSON.stringify(item));
  flush();
  return key;
}

let counter = 0;

function hex(bytes) {
  return Array.from(crypto.getRandomValues(new Uint8Array(bytes)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function tell(next) {
  state = next;
  for (const listener of listeners) listener(next);
}

/** Send what waits, one at a time. */
export async function flush() {
  if (running) return;
  running = true;
  clearTimeout(timer);
  try {
    for (let item = unsaved()[0]; item; item = unsaved()[0]) {
      tell({ kind: "saving", text: "saving …" });
      const answer = await send(item);
      if (answer.retry) {
        const wait = RETRY[Math.min(failures++, RETRY.length - 1)];
        timer = setTimeout(flush, wait);
        const many = unsaved().length;
        tell({ kind: "waiting", text: `${many} ${many === 1 ? "mark" : "marks"} not saved: ${answer.reason}. Trying again.` });
        return;
      }
      failures = 0;
      localStorage.removeItem(item.name);
      if (answer.saved) tell({ kind: "saved", text: `saved ${new Date().toLocaleTimeString("en-GB")}`, item, answer: answer.answer });
      else tell({ kind: "refused", text: `not saved: ${answer.reason}`, item });
    }
  } finally {
    running = false;
  }
}

async function send(item) {
  let response;
  try {
    response = await fetch(item.url, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(item.body),
      signal: AbortSignal.timeout(TIMEOUT),
    });
  } catch {
    return { retry: true, reason: "the server does not answer" };
  }
  let answer = null;
  try {
    answer = await response.json();
  } catch {
    // No JSON: a crash page or a cut connection. Not an acknowledgement.
  }
  if (response.ok && answer?.saved === true) return { saved: true, answer };
  const reason = typeof answer?.detail === "string" ? answer.detail : `the server answered ${response.status}`;
  const final = response.status >= 400 && response.status < 500 && ![401, 403, 408, 429].includes(response.status);
  return final ? { saved: false, reason } : { retry: true, reason };
}

/** Read JSON; throws an Error with the server's sentence. */
export async function read(url, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(url, options);
  } catch {
    throw new Error("The server does not answer. Is `agentalign ui` still running?");
  }
  let answer = null;
  try {
    answer = await response.json();
  } catch {
    // Told below by its status.
  }
  if (!response.ok) throw Object.assign(new Error(typeof answer?.detail === "string" ? answer.detail : `The server answered ${response.status}.`), { status: response.status });
  return answer;
}

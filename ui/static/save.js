// Saving. A mark counts only when the server says {saved: true}; until then it waits in this browser and is sent again, in order,
// under the same key, so that a lost answer never makes two marks.

const RETRY = [1000, 2000, 4000, 8000, 15000, 30000];
const TIMEOUT = 15000;

/** Where more than one mark can be sent at once, and how many; the server takes bodies of 256 KiB, and a character has up to 3 bytes. */
const TOGETHER = { "/api/scores": { url: "/api/scores/many", most: 100, characters: 80000 } };

const listeners = new Set();
let prefix = "agentalign.unsaved.";
let rater = "";
let tabs = null;
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

/** Start with what an earlier visit left unsaved. Marks of another project on this port, and of another person, stay where they are. */
export function openQueue(project, person) {
  rater = encodeURIComponent(person);
  prefix = `agentalign.unsaved.${project}.${rater}/`;
  // Whichever tab sends a mark, the one where it was given waits for the answer.
  tabs?.close();
  tabs = new BroadcastChannel(prefix);
  tabs.addEventListener("message", (event) => tell(event.data));
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

/** Send what waits, in order; marks that wait together go together. */
export async function flush() {
  if (running) return;
  running = true;
  clearTimeout(timer);
  let alone = 0;
  try {
    for (let items = together(unsaved(), alone); items.length; items = together(unsaved(), alone)) {
      tell({ kind: "saving", text: "saving …" });
      const answers = await send(items);
      if (!answers) {
        // The server takes these marks only one by one; then it says which of them it refuses.
        alone = items.length;
        continue;
      }
      alone = Math.max(0, alone - 1);
      if (answers[0].retry && unsaved().length) {
        const wait = RETRY[Math.min(failures++, RETRY.length - 1)];
        timer = setTimeout(flush, wait);
        const many = unsaved().length;
        tell({ kind: "waiting", text: `${many} ${many === 1 ? "mark" : "marks"} not saved: ${answers[0].reason}. Trying again.` });
        return;
      }
      failures = 0;
      // Where there is no answer and nothing waits any more, another tab has sent it.
      if (!answers[0].retry) items.forEach((item, index) => settled(item, answers[index]));
    }
    // Another tab sent what waited here.
    if (["saving", "waiting"].includes(state.kind)) tell({ kind: "idle", text: "" });
  } finally {
    running = false;
  }
}

function settled(item, answer) {
  localStorage.removeItem(item.name);
  const change = answer.saved
    ? { kind: "saved", text: `saved ${new Date().toLocaleTimeString("en-GB")}`, item, answer: answer.answer }
    : { kind: "refused", text: `not saved: ${answer.reason}`, item };
  tell(change);
  tabs?.postMessage(change);
}

/** The oldest of the waiting items, with those after it that can go in the same request. */
function together(waiting, alone) {
  const way = waiting.length && !alone ? TOGETHER[waiting[0].url] : undefined;
  if (!way) return waiting.slice(0, 1);
  let characters = 0;
  const fits = (item, index) => item.url === waiting[0].url && index < way.most && (characters += JSON.stringify(item.body).length) < way.characters;
  const end = waiting.findIndex((item, index) => !fits(item, index));
  return waiting.slice(0, end < 0 ? waiting.length : Math.max(1, end));
}

/** The answers to the items, one each; a single one where all are to be sent again; null where they must be sent one by one. */
async function send(items) {
  if (items.length === 1) return [await post(items[0].url, items[0].body)];
  const answer = await post(TOGETHER[items[0].url].url, { marks: items.map((item) => item.body) });
  if (answer.retry) return [answer];
  if (answer.answer?.marks?.length !== items.length) return null;
  return answer.answer.marks.map((mark) => (mark.saved === true ? { saved: true, answer: mark } : { saved: false, reason: mark.detail }));
}

async function post(url, body) {
  let response;
  try {
    response = await fetch(url, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Agentalign-Rater": rater },
      body: JSON.stringify(body),
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
  // A role that one has no more refuses for good; what waits behind it must not wait for ever.
  const passing = [401, 408, 429].includes(response.status) || (response.status === 403 && !response.headers.has("X-Agentalign-Needs-Role"));
  const final = response.status >= 400 && response.status < 500 && !passing;
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

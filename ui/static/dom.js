// Building the page. Everything that agents wrote becomes text nodes here; nothing is ever parsed as HTML.

/** An element. `props`: class, title, data-*, aria-*, on* functions, and plain properties; children are nodes, strings or null. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name.includes("-") || name === "for") element.setAttribute(name, value === true ? "" : value);
    else element[name] = value;
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Controls, bidirectional overrides, invisible blanks, tag characters and lone surrogates: a rater must see that they are there.
const UNSEEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]|[\ud800-\udfff]/gu;

/** The text as nodes, with characters that cannot be seen written as escapes. */
export function visible(text) {
  const nodes = [];
  let last = 0;
  for (const found of text.matchAll(UNSEEN)) {
    if (found.index > last) nodes.push(document.createTextNode(text.slice(last, found.index)));
    nodes.push(h("span", { class: "esc", title: "a character that cannot be seen" }, escape(found[0])));
    last = found.index + found[0].length;
  }
  if (last < text.length) nodes.push(document.createTextNode(text.slice(last)));
  return nodes;
}

function escape(character) {
  const code = character.codePointAt(0);
  return code > 0xffff ? `\\u{${code.toString(16)}}` : `\\u${code.toString(16).padStart(4, "0")}`;
}

const LINES = 14;
const CHARACTERS = 1400;
const CHUNK = 100000;

/** Long text, capped; "more" shows the next part. */
export function capped(text, className) {
  const box = h("pre", { class: className });
  const cut = firstCut(text);
  box.append(...visible(text.slice(0, cut)));
  if (cut >= text.length) return box;
  let shown = cut;
  const more = h("button", { class: "more", type: "button" });
  const label = () => (more.textContent = `more (${(text.length - shown).toLocaleString("en")} characters)`);
  more.addEventListener("click", (event) => {
    event.stopPropagation();
    const end = Math.min(text.length, shown + CHUNK);
    box.append(...visible(text.slice(shown, end)));
    shown = end;
    if (shown < text.length) label();
    else more.remove();
  });
  label();
  return h("div", { class: "capped" }, box, more);
}

function firstCut(text) {
  let cut = Math.min(text.length, CHARACTERS);
  let at = -1;
  for (let line = 0; line < LINES; line++) {
    at = text.indexOf("\n", at + 1);
    if (at < 0) break;
  }
  if (at >= 0) cut = Math.min(cut, at);
  // A few lines more are shown rather than hidden behind a button, and no surrogate pair is cut in two.
  if (text.length - cut < 200 && cut > LINES) cut = text.length;
  return cut < text.length && text.charCodeAt(cut - 1) >= 0xd800 && text.charCodeAt(cut - 1) < 0xdc00 ? cut - 1 : cut;
}

/** JSON text laid out for reading: white space only is added, every other character stays as written. */
export function laidOut(text) {
  try {
    JSON.parse(text);
  } catch {
    return null;
  }
  const wide = text.length > 76;
  let out = "";
  let depth = 0;
  let inString = false;
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (inString) {
      out += c;
      if (c === "\\") out += text[++i];
      else if (c === '"') inString = false;
    } else if (c === '"') {
      inString = true;
      out += c;
    } else if ("{[".includes(c)) {
      const empty = /^\s*[}\]]/.test(text.slice(i + 1, i + 20));
      depth += 1;
      out += empty || !wide ? c : c + "\n" + "  ".repeat(depth);
    } else if ("}]".includes(c)) {
      depth -= 1;
      out += !wide || /[[{]$/.test(out) ? c : "\n" + "  ".repeat(depth) + c;
    } else if (c === ",") out += wide ? ",\n" + "  ".repeat(depth) : ", ";
    else if (c === ":") out += ": ";
    else if (!/\s/.test(c)) out += c;
  }
  return out;
}

/** Time of day of an ISO time, or of now. */
export function clock(iso) {
  return (iso ? new Date(iso) : new Date()).toLocaleTimeString("en-GB");
}

const LOOKS = 10;
let sought = null;

/** Scroll `box` into view, and again while what lies above it turns out higher than it was taken to be before it was laid out. */
export function reveal(box) {
  sought = box;
  bring(box, LOOKS);
}

function bring(box, looks) {
  box.scrollIntoView({ block: "nearest" });
  const at = box.getBoundingClientRect().top;
  // Two frames: what came into view is laid out in the first, and stands in the second.
  requestAnimationFrame(() =>
    requestAnimationFrame(() => {
      if (looks && sought === box && box.isConnected && box.getBoundingClientRect().top !== at) bring(box, looks - 1);
    }),
  );
}

/** `act` as a function that does it once when the work at hand is done, however often it was called. */
export function soon(act) {
  let isDue = false;
  return () => {
    if (isDue) return;
    isDue = true;
    queueMicrotask(() => {
      isDue = false;
      act();
    });
  };
}

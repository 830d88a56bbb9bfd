// Where a run leads: to the run it came from, to runs that came from it, and to pictures in its text. Nothing is fetched before a click.

import { h, visible } from "./dom.js";
import { addressOf } from "./place.js";
import { read } from "./save.js";

const PICTURE = /data:image\/(png|jpeg|gif|webp);base64,([A-Za-z0-9+/=]{16,})/g;
const ELSEWHERE = /https?:\/\/[^\s"'<>()\\]+\.(?:png|jpe?g|gif|webp)(?:\?[^\s"'<>()\\]*)?/gi;
const MOST = 20;

/** Links to the pictures that a text holds or names; null where it has none. */
export function pictures(text) {
  const links = [];
  for (const [, kind, data] of text.matchAll(PICTURE)) {
    if (links.length >= MOST) break;
    const size = `${Math.max(1, Math.round((data.length * 3) / 4096))} KB`;
    links.push(h("a", { href: "#", class: "picture", onclick: (event) => save(event, kind, data) }, `image (${kind}, ${size})`));
  }
  for (const [url] of text.matchAll(ELSEWHERE)) {
    if (links.length >= MOST) break;
    links.push(h("a", { href: url, class: "picture", target: "_blank", rel: "noopener noreferrer", title: "On another server, which sees that you open it" }, "image at ", visible(new URL(url).host)));
  }
  return links.length ? h("p", { class: "pictures" }, links) : null;
}

/** A click saves the picture as a file: shown on a page of ours it could claim to be part of it. */
function save(event, kind, data) {
  event.preventDefault();
  event.stopPropagation();
  let bytes;
  try {
    bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  } catch {
    event.target.textContent = "image (damaged)";
    return;
  }
  const url = URL.createObjectURL(new Blob([bytes], { type: `image/${kind}` }));
  h("a", { href: url, download: `image.${kind}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** The run's relatives, as nodes by step of this run (null: the run as a whole). Read after the run is shown. */
export async function relatives(id) {
  const found = await read(`/api/runs/${id}/links`);
  const chip = (other, text) => h("a", { class: "chip relative", href: addressOf("run", other.id, { s: other.at }), onclick: (event) => event.stopPropagation() }, text, visible(other.id.slice(0, 8)));
  const places = new Map();
  if (found.parent) places.set(null, [chip({ id: found.parent.id, at: found.parent.step }, `began at step ${found.parent.step} of `)]);
  for (const child of found.children) places.set(child.step, [...(places.get(child.step) ?? []), chip({ id: child.id }, `${child.kind} → `)]);
  return places;
}

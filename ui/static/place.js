// Where we are: the address after "#", and the one sentence that a screen may say above itself.

/** {screen, id, query} of an address such as #/run/abc?s=2 */
export function address(hash = location.hash) {
  const [path, query] = hash.replace(/^#\/?/, "").split("?");
  const [screen, id] = path.split("/");
  return { screen: screen || "runs", id: id ?? "", query: new URLSearchParams(query ?? "") };
}

/** The address of a screen. */
export function addressOf(screen, id = "", query = {}) {
  const wanted = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined));
  const text = wanted.toString();
  return `#/${screen}${id ? "/" + id : ""}${text ? "?" + text : ""}`;
}

/** Go to a screen. */
export function go(screen, id = "", query = {}) {
  location.hash = addressOf(screen, id, query);
}

/** Put the address right without going anywhere. */
export function note(screen, id, query) {
  history.replaceState(history.state, "", addressOf(screen, id, query));
}

/** One sentence over the screen; "" takes it away. */
export function notice(root, text) {
  const box = root.querySelector(".notice");
  box.textContent = text;
  box.hidden = !text;
}

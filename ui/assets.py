"""Our scripts and styles, served from memory, and the head of the page that asks for them.

Each is read and packed once, when the server starts. The page names them under a digest of them all, so a browser keeps what it has for
good and a new release is a new address. Surprise: an address with another digest is answered too, from what there is now: a page that
stayed open over an update can still load its other screens.
"""

import gzip
import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
FIRST = ("main", "dom", "keys", "list", "place", "queue", "run", "save", "score_filters", "timeline", "json", "links", "minimap")
RATING = ("correct", "fill", "guidelines", "letters", "rate", "tokens")
"""With FIRST, the scripts of the list, of a run and of the queue: they load at once and side by side, not one after the other's import."""

SHEETS = ("app", "training", "agreement", "judge", "play", "compare")
FOREVER = "public, max-age=31536000, immutable"
_VERSIONED = re.compile(r"([0-9a-f]{16})/(.+)")


class Asset(NamedTuple):
    """A file as it is sent."""

    plain: bytes
    packed: bytes
    kind: str
    tag: str


class Assets:
    """An ASGI app for the files of a folder, with and without their digest in front."""

    def __init__(self, folder: Path) -> None:
        texts = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in TYPES}
        # One sheet in the order of SHEETS: later ones refine earlier ones, and a page waits for every sheet before it draws.
        texts["page.css"] = b"\n".join(texts[f"{name}.css"] for name in SHEETS)
        self.files = {name: _asset(name, text) for name, text in texts.items()}
        self.digest = hashlib.sha256("".join(f"{name} {self.files[name].tag} " for name in sorted(self.files)).encode()).hexdigest()[:16]

    def at(self, name: str) -> str:
        """The address of a file, for as long as it is what it is."""
        return f"/ui/{self.digest}/{name}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the file."""
        path = scope["path"].removeprefix(scope.get("root_path", "")).lstrip("/")
        version = _VERSIONED.fullmatch(path)
        name, is_current = (path, False) if version is None else (version[2], version[1] == self.digest)
        await self._answer(scope, name, is_current)(scope, receive, send)

    def _answer(self, scope: Scope, name: str, is_current: bool) -> Response:
        found = self.files.get(name)
        if found is None or scope["method"] not in ("GET", "HEAD"):
            return Response(status_code=404 if found is None else 405)
        asked = {key: value.decode("latin-1") for key, value in scope["headers"]}
        headers = {"Cache-Control": FOREVER if is_current else "no-cache", "ETag": found.tag, "Vary": "Accept-Encoding"}
        if found.tag in asked.get(b"if-none-match", ""):
            return Response(status_code=304, headers=headers)
        is_packed = "gzip" in asked.get(b"accept-encoding", "") and len(found.packed) < len(found.plain)
        if is_packed:
            headers["Content-Encoding"] = "gzip"
        return Response(found.packed if is_packed else found.plain, headers=headers, media_type=found.kind)


def _asset(name: str, text: bytes) -> Asset:
    return Asset(text, gzip.compress(text, 9, mtime=0), TYPES[Path(name).suffix], f'"{hashlib.sha256(text).hexdigest()[:16]}"')


def page_head(assets: Assets) -> str:
    """What stands first in the page's head: styles, scripts, and the beginning of the page."""
    ahead = "\n".join(f'<link rel="modulepreload" href="{assets.at(name + ".js")}">' for name in FIRST + RATING)
    return f"""
<link rel="icon" href="{assets.at("icon.svg")}">
<link rel="stylesheet" href="{assets.at("page.css")}">
{ahead}
<script type="module">import {{ open }} from "{assets.at("main.js")}"; window.agentalignDrawn = open();</script>
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
"""

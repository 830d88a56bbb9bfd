"""The page begins before Gradio: its head is put into Gradio's HTML, and Gradio's own scripts wait until the first screen is drawn.

By itself Gradio adds a page's head by script, after half a megabyte of scripts of its own have run, so styles and the first question to the
server would come last. Where Gradio's HTML no longer holds the script that is looked for here, it loads beside our page, as it likes.
"""

import re

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# https://vite.dev/guide/backend-integration: an entry is one module script.
_ENTRY = re.compile(r'<script type="module" crossorigin src="\./(assets/[\w.-]+\.js)"></script>')
_LATER = r"""<script type="module">Promise.resolve(window.agentalignDrawn).finally(() => import("/\1").catch(() => {}));</script>"""
"""Where the server is gone before Gradio's scripts have come, the page goes on without its shell."""


class EarlyPage:
    """The ASGI layer that rewrites the one page."""

    def __init__(self, app: ASGIApp, *, head: str) -> None:
        self.app = app
        self.head = head

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let everything through but the page."""
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] != "/":
            await self.app(scope, receive, send)
            return
        began: Message = {}
        body = b""

        async def rewrite(message: Message) -> None:
            nonlocal began, body
            if message["type"] == "http.response.start":
                began = message
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            headers = MutableHeaders(scope=began)
            if began["status"] == 200 and headers.get("content-type", "").startswith("text/html"):
                body = early(body.decode(), self.head).encode()
                headers["Content-Length"] = str(len(body))
            await send(began)
            await send({"type": "http.response.body", "body": body})

        # Seven kilobytes: packed they could not be read here.
        plain = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        await self.app({**scope, "headers": plain}, receive, rewrite)


def early(html: str, head: str) -> str:
    """Gradio's page with our head first and Gradio's entry last."""
    return _ENTRY.sub(_LATER, html.replace("<head>", "<head>" + head, 1), count=1)

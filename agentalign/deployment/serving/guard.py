"""Who may ask, and how much: one layer before every route.

With API keys, every route but /health wants one. Without, the server is for this machine: other host names (DNS rebinding) and pages of
other origins are refused, since a browser here can reach it. Surprise: keys are compared as hashes in constant time, and never kept.
"""

import hashlib
import hmac
import json
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from agentalign.deployment.serving.body import capped_body, replay

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
OWNER = "agentalign.owner"
"""Where the scope says whose key it is: a short hash, empty without keys."""


class Guard:
    """The ASGI layer."""

    def __init__(self, app: ASGIApp, *, keys: Sequence[str], max_body_bytes: int) -> None:
        self._app, self._max = app, max_body_bytes
        self._keys = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through with its body read, or answer for the app."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal:
            await _answer(send, *refusal)
            return
        body = await capped_body(receive, headers, most=self._max)
        if body is None:
            await _answer(send, 413, f"the request is larger than {self._max // 1024} KiB. Shorten it.", "invalid_request_error")
            return
        await self._app(scope, replay(body, receive), send)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str, str] | None:
        scope[OWNER] = ""
        if not self._keys:
            host = headers.get("host", "")
            name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
            if name.lower() not in LOOPBACK:
                return 400, "this server answers to localhost and 127.0.0.1 only, since it has no API keys.", "invalid_request_error"
            if headers.get("origin", f"http://{host}") != f"http://{host}":
                return 403, "this request comes from a web page of another origin.", "invalid_request_error"
            return None
        if scope["path"] == "/health":
            return None
        kind, _, key = headers.get("authorization", "").partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "replace")).digest()
        known = [hmac.compare_digest(given, one) for one in self._keys]
        if kind.lower() != "bearer" or not any(known):
            return 401, "no valid API key was given. Send `Authorization: Bearer KEY`.", "authentication_error"
        scope[OWNER] = given.hex()[:16]
        return None


async def _answer(send: Send, status: int, message: str, kind: str) -> None:
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": None}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

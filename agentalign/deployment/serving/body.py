"""A request's body, read before the app sees it: no more of it than is allowed, whoever asks."""

from starlette.datastructures import Headers
from starlette.types import Message, Receive


async def capped_body(receive: Receive, headers: Headers, *, most: int) -> bytes | None:
    """The whole body, or None where it is larger than `most` bytes; never holds more than that and one chunk."""
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > most:
        return None
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message["type"] == "http.request" and message.get("more_body", False)
        if len(body) > most:
            return None
    return body


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, then goes on with the connection."""
    waiting = [body]

    async def again() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return again

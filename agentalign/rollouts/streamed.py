"""One turn told while it is written: text that is certain comes out piece by piece, the whole turn as the generator's returned value.

A model in this process writes a few tokens at a time on its cache, and the clock is looked at between them. Surprise: half a call is never
told as text: the rule is the one of `agentalign serve`, and a call reaches the caller in the whole turn alone.
"""

import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from agentalign.training.completion import Completion
from agentalign.training.dialect import Dialect
from agentalign.training.generate import Session
from agentalign.training.streaming import Unfolding, certain_text

AT_ONCE = 4
"""Tokens between two looks at the clock."""


class Sampling(NamedTuple):
    """How a local turn is sampled."""

    budget: int
    """Most tokens."""
    temperature: float
    top_p: float
    seed: int


def write_in_pieces(
    session: Session, dialect: Dialect, slot: int, context: Sequence[int], sampling: Sampling, deadline: float
) -> Generator[str, None, Completion]:
    """Sample a turn; a turn that the deadline ends is one that did not stop by itself.

    At temperature 0 it is the turn that one call would have sampled; above, a sample as good but another one.
    """
    ids: list[int] = []
    logprobs: list[float] = []
    unfolding, said, stopped = Unfolding(dialect.decode), 0, False
    while not stopped and len(ids) < sampling.budget and time.monotonic() < deadline:
        found = session.generate(
            {slot: [*context, *ids]}, max_new_tokens=min(AT_ONCE, sampling.budget - len(ids)), temperature=sampling.temperature,
            top_p=sampling.top_p, seeds={slot: sampling.seed + len(ids)},
        )[slot]  # fmt: skip
        if not found.ids:  # the model's context is full
            break
        ids += found.ids
        logprobs += found.logprobs
        stopped = found.stopped
        text = ""
        for token in found.ids:
            text = text if token in dialect.stop_ids else unfolding.add(token)
        certain = certain_text(dialect.form, text)
        if len(certain) > said:
            yield certain[said:]
            said = len(certain)
    message = dialect.parse_ids(ids)
    if not message.malformed and len(message.content) > said:
        yield message.content[said:]
    return Completion(tuple(ids), tuple(logprobs), stopped)


class Late(Exception):  # noqa: N818 - an end, no error
    """The deadline passed while a server was still writing."""


def read_chunks(chunks: Iterable[Mapping[str, Any]], deadline: float) -> Generator[str, None, tuple[dict[str, Any], str | None]]:
    """The assistant message that a server's chunks add up to, and why it ended; None where they ended without a reason.

    Raises:
        Late: the deadline passed.
        KeyError, TypeError, AttributeError, ValueError: chunks of another shape.
    """
    content, reasoning, malformed, finish = "", "", "", None
    calls: list[dict[str, Any]] = []
    for chunk in chunks:
        if time.monotonic() > deadline:
            raise Late
        for choice in (chunk.get("choices") or ())[:1]:
            delta = choice.get("delta") or {}
            finish = choice.get("finish_reason") or finish
            malformed = choice.get("malformed") or malformed
            reasoning += delta.get("reasoning_content") or delta.get("reasoning") or ""
            for part in delta.get("tool_calls") or ():
                index, id = int(part.get("index") or 0), part.get("id") or ""
                call = next((one for one in reversed(calls) if one["index"] == index), None)
                # Some servers give parallel calls one index, or none: another id is another call.
                if call is None or (id and call["id"] not in ("", id)):
                    call = {"index": index, "id": "", "name": "", "arguments": ""}
                    calls.append(call)
                function = part.get("function") or {}
                call["id"] = call["id"] or id
                call["name"] += function.get("name") or ""
                call["arguments"] += function.get("arguments") or ""
            if delta.get("content"):
                content += delta["content"]
                yield delta["content"]
    calls.sort(key=lambda call: int(call["index"]))
    listed = [{"id": c["id"], "function": {"name": c["name"], "arguments": c["arguments"]}} for c in calls]
    return {"content": content, "reasoning_content": reasoning, "tool_calls": listed, "malformed": malformed}, finish

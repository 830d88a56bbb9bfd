"""Answers as the OpenAI API writes them: whole, or as a stream of chunks.

`model` names the version that answered, not the stage that was asked for. Surprise: `logprobs` and `token_ids` are about all ids that were
sampled, those of calls included; the id that ends the turn stands in `token_ids` alone, since it is no text.
"""

import json
from typing import Any

from agentalign.deployment.serving.chat import Asked, Chat, Turn
from agentalign.exchange.chat import write_message
from agentalign.training.continuous import Written


def whole(chat: Chat, asked: Asked, turn: Turn, written: list[Written]) -> dict[str, Any]:
    """A chat completion."""
    choice: dict[str, Any] = {"index": 0, "message": write_message(turn.message), "finish_reason": turn.finish}
    choice["logprobs"] = _logprobs(chat, written) if asked.request.logprobs else None
    reply = _head(asked, "chat.completion") | {"choices": [choice], "usage": usage(asked)}
    if asked.request.return_token_ids:
        choice |= {"token_ids": [one.token for one in written], "token_logprobs": [one.logprob for one in written]}
        reply["prompt_token_ids"] = list(asked.job.work.context)
    if turn.message.malformed:
        choice["malformed"] = turn.message.malformed
    return reply


def usage(asked: Asked) -> dict[str, Any]:
    """What it cost."""
    work = asked.job.work
    prompt, answer = len(work.context), len(work.ids)
    return {
        "prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": work.cached},
    }  # fmt: skip


class Chunks:
    """Makes the chunks of one stream; each is a line of server-sent events."""

    def __init__(self, chat: Chat, asked: Asked) -> None:
        self._chat, self._asked = chat, asked
        self._said = ""
        self._untold: list[Written] = []

    def first(self) -> str:
        """Who speaks."""
        more = {"prompt_token_ids": list(self._asked.job.work.context)} if self._asked.request.return_token_ids else {}
        return self._line({"role": "assistant", "content": ""}, more=more)

    def text(self, written: Written, certain: str) -> str:
        """New text, where some is certain; empty where there is nothing to send."""
        self._untold.append(written)
        new = certain[len(self._said) :]
        if not new:
            return ""
        self._said = certain
        return self._line({"content": new})

    def last(self, turn: Turn) -> list[str]:
        """The rest: text that had to wait, reasoning, calls, why it ended, and figures."""
        message, lines = turn.message, []
        if message.reasoning:
            lines.append(self._line({"reasoning_content": message.reasoning}))
        if len(message.content) > len(self._said):
            lines.append(self._line({"content": message.content[len(self._said) :]}))
        for index, call in enumerate(message.tool_calls):
            function = {"name": call.name, "arguments": call.arguments}
            lines.append(self._line({"tool_calls": [{"index": index, "id": call.id, "type": "function", "function": function}]}))
        lines.append(self._line({}, finish=turn.finish, malformed=message.malformed))
        options = self._asked.request.stream_options
        if options and options.include_usage:
            lines.append(_event(_head(self._asked, "chat.completion.chunk") | {"choices": [], "usage": usage(self._asked)}))
        return [*lines, "data: [DONE]\n\n"]

    def _line(self, delta: dict[str, Any], *, finish: str | None = None, malformed: str = "", more: dict[str, Any] | None = None) -> str:
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish}
        told, self._untold = self._untold, []
        choice["logprobs"] = _logprobs(self._chat, told) if self._asked.request.logprobs and told else None
        if self._asked.request.return_token_ids:
            choice |= {"token_ids": [one.token for one in told], "token_logprobs": [one.logprob for one in told]}
        if malformed:
            choice["malformed"] = malformed
        return _event(_head(self._asked, "chat.completion.chunk") | {"choices": [choice]} | (more or {}))


def _head(asked: Asked, kind: str) -> dict[str, Any]:
    return {"id": asked.id, "object": kind, "created": asked.created, "model": asked.version}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _logprobs(chat: Chat, written: list[Written]) -> dict[str, Any]:
    stop_ids = chat.dialect.stop_ids
    entries = [
        _entry(chat, one.token, one.logprob) | {"top_logprobs": [_entry(chat, token, logprob) for token, logprob in one.top]}
        for one in written
        if one.token not in stop_ids
    ]
    return {"content": entries, "refusal": None}


def _entry(chat: Chat, token: int, logprob: float) -> dict[str, Any]:
    text = chat.dialect.decode([token])
    # JSON has no minus infinity; the API itself writes -9999 for "as good as never".
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode("utf-8", "replace"))}

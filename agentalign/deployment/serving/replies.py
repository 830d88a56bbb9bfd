"""Answers as the OpenAI API writes them: whole, or as a stream of chunks.

`model` names the version that answered, not the stage that was asked for. Surprise: `logprobs` and `token_ids` are about all ids that were
sampled, those of calls included; the id that ends the turn stands in `token_ids` alone, since it is no text.
"""

import json
from typing import Any

from agentalign.deployment.serving.chat import Asked, Chat, Turn
from agentalign.exchange.chat import write_message
from agentalign.training.continuous import Written
from agentalign.training.streaming import Unfolding


def whole(chat: Chat, asked: Asked, turns: list[Turn], written: list[list[Written]]) -> dict[str, Any]:
    """A chat completion."""
    choices = [_choice(chat, asked, number, turn, ids) for number, (turn, ids) in enumerate(zip(turns, written, strict=True))]
    reply = _head(asked, "chat.completion") | {"choices": choices, "usage": usage(asked)}
    if asked.request.return_token_ids:
        reply["prompt_token_ids"] = list(asked.jobs[0].work.context)
    return reply


def _choice(chat: Chat, asked: Asked, number: int, turn: Turn, written: list[Written]) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": number, "message": write_message(turn.message), "finish_reason": turn.finish}
    choice["logprobs"] = _logprobs(chat, asked, written) if asked.request.logprobs else None
    if asked.request.return_token_ids:
        choice |= {"token_ids": [one.token for one in written], "token_logprobs": [one.logprob for one in written]}
    if turn.message.malformed:
        choice["malformed"] = turn.message.malformed
    return choice


def usage(asked: Asked) -> dict[str, Any]:
    """What it cost."""
    work = asked.jobs[0].work
    prompt, answer = len(work.context), sum(len(job.work.ids) for job in asked.jobs)
    return {
        "prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": work.cached},
    }  # fmt: skip


class Chunks:
    """Makes the chunks of one answer; each is a line of server-sent events."""

    def __init__(self, chat: Chat, asked: Asked, number: int) -> None:
        self._chat, self._asked, self._number = chat, asked, number
        self._unfolding, self._text = Unfolding(chat.dialect.decode), ""
        self._said = ""
        self._untold: list[Written] = []

    def first(self) -> str:
        """Who speaks."""
        told = self._asked.request.return_token_ids and not self._number
        more = {"prompt_token_ids": list(self._asked.jobs[0].work.context)} if told else {}
        return self._line({"role": "assistant", "content": ""}, more=more)

    def text(self, written: Written) -> str:
        """New text, where some is certain; empty where there is nothing to send."""
        self._untold.append(written)
        if written.token not in self._chat.dialect.stop_ids:
            self._text = self._unfolding.add(written.token)
        certain = self._asked.certain(self._text)
        new = certain[len(self._said) :]
        if not new:
            return ""
        self._said = certain
        return self._line({"content": new})

    def last(self, turn: Turn) -> list[str]:
        """The rest: text that had to wait, reasoning, calls, and why it ended."""
        message, lines = turn.message, []
        if message.reasoning:
            lines.append(self._line({"reasoning_content": message.reasoning}))
        if len(message.content) > len(self._said):
            lines.append(self._line({"content": message.content[len(self._said) :]}))
        for index, call in enumerate(message.tool_calls):
            function = {"name": call.name, "arguments": call.arguments}
            lines.append(self._line({"tool_calls": [{"index": index, "id": call.id, "type": "function", "function": function}]}))
        lines.append(self._line({}, finish=turn.finish, malformed=message.malformed))
        return lines

    def _line(self, delta: dict[str, Any], *, finish: str | None = None, malformed: str = "", more: dict[str, Any] | None = None) -> str:
        choice: dict[str, Any] = {"index": self._number, "delta": delta, "finish_reason": finish}
        told, self._untold = self._untold, []
        choice["logprobs"] = _logprobs(self._chat, self._asked, told) if self._asked.request.logprobs and told else None
        if self._asked.request.return_token_ids:
            choice |= {"token_ids": [one.token for one in told], "token_logprobs": [one.logprob for one in told]}
        if malformed:
            choice["malformed"] = malformed
        return _event(_head(self._asked, "chat.completion.chunk") | {"choices": [choice]} | (more or {}))


def end_of_stream(asked: Asked) -> str:
    """The figures, where they were asked for, and the end."""
    options = asked.request.stream_options
    figures = _head(asked, "chat.completion.chunk") | {"choices": [], "usage": usage(asked)}
    return (_event(figures) if options and options.include_usage else "") + "data: [DONE]\n\n"


def _head(asked: Asked, kind: str) -> dict[str, Any]:
    return {"id": asked.id, "object": kind, "created": asked.created, "model": asked.version}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _logprobs(chat: Chat, asked: Asked, written: list[Written]) -> dict[str, Any]:
    stop_ids, by_id = chat.dialect.stop_ids, bool(asked.request.return_tokens_as_token_ids)
    entries = [
        _entry(chat, one.token, one.logprob, by_id) | {"top_logprobs": [_entry(chat, token, logprob, by_id) for token, logprob in one.top]}
        for one in written
        if one.token not in stop_ids
    ]
    return {"content": entries, "refusal": None}


def _entry(chat: Chat, token: int, logprob: float, by_id: bool) -> dict[str, Any]:
    text = f"token_id:{token}" if by_id else chat.dialect.token_text(token)
    # JSON has no minus infinity; the API itself writes -9999 for "as good as never". Two ids can have one text: `id` tells them apart.
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(chat.dialect.token_bytes(token)), "id": token}

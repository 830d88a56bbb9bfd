"""Golden prompts asked of an OpenAI-compatible server: its answer, its log-probs, and what it made of the prompt."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from openai import AuthenticationError, BadRequestError, OpenAI, OpenAIError, PermissionDeniedError, UnprocessableEntityError

from agentalign.errors import ModelError
from agentalign.records.golden import GoldenTurn, TopTokens
from agentalign.rollouts.policy import openai_message
from agentalign.training.dialect import Dialect
from agentalign.training.top_tokens import TOP

AT_ONCE = 8
"""Requests under way in the interleaved round."""


class Answer(NamedTuple):
    """What a server said to one golden prompt."""

    content: str
    calls: tuple[tuple[str, str], ...]
    """(name, arguments as the server wrote them)."""
    tops: tuple[TopTokens, ...]
    """Along the golden completion, up to and including the first token that differs from it; empty where no log-probs came."""
    prompt_tokens: int | None
    prompt_ids: tuple[int, ...] | None
    """None where the server gives no ids."""


class Endpoint:
    """One server. Owns the connection, and whether the server takes the request for token ids."""

    def __init__(self, url: str, *, api_key: str, max_new_tokens: int, dialect: Dialect) -> None:
        self.url, self._limit, self._dialect, self._extras = url, max_new_tokens, dialect, True
        self._client = OpenAI(base_url=url, api_key=api_key, timeout=300, max_retries=1)

    def models(self) -> list[str]:
        """Every name that it serves; ModelError where it does not answer."""
        try:
            return [model.id for model in self._client.models.list()]
        except (AuthenticationError, PermissionDeniedError) as error:
            raise ModelError(f"{self.url}: the server does not take this API key, or wants one. Set AGENTALIGN_API_KEY.") from error
        except (OpenAIError, ValueError, AttributeError) as error:
            raise ModelError(f"{self.url}: the server does not say what it serves ({type(error).__name__}). Is it running?") from error

    def ask(self, model: str, turn: GoldenTurn) -> Answer:
        """Greedily; ModelError where there is no answer that can be read."""
        try:
            reply = self._reply(model, turn)
            choice = reply["choices"][0]
            message = choice["message"]
            calls = tuple((str(c["function"]["name"]), str(c["function"]["arguments"])) for c in message.get("tool_calls") or ())
            prompt_ids = reply.get("prompt_token_ids")
            return Answer(
                content=str(message.get("content") or ""),
                calls=calls,
                tops=self._tops(turn, (choice.get("logprobs") or {}).get("content") or []),
                prompt_tokens=(reply.get("usage") or {}).get("prompt_tokens"),
                prompt_ids=tuple(int(i) for i in prompt_ids) if prompt_ids else None,
            )
        except OpenAIError as error:
            raise ModelError(f"{self.url}: no answer to a golden prompt under the name {model} ({error}).") from error
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"{self.url}: an answer that cannot be read ({type(error).__name__}: {error}).") from error

    def ask_all(self, asked: Sequence[tuple[str, GoldenTurn]], *, at_once: int = AT_ONCE) -> list[Answer]:
        """Side by side, answered in order."""
        with ThreadPoolExecutor(at_once) as threads:
            return list(threads.map(lambda one: self.ask(*one), asked))

    def _reply(self, model: str, turn: GoldenTurn) -> dict[str, Any]:
        tools = json.loads(turn.tools)
        request: dict[str, Any] = {
            "model": model, "messages": [openai_message(message) for message in turn.messages], "temperature": 0.0,
            "max_tokens": self._limit, "logprobs": True, "top_logprobs": TOP, **({"tools": tools} if tools else {}),
        }  # fmt: skip
        if self._extras:
            try:
                return self._sent({**request, "extra_body": {"return_token_ids": True}})
            except (BadRequestError, UnprocessableEntityError):
                self._extras = False  # a server that knows no ids; what else it may refuse shows without them
        return self._sent(request)

    def _sent(self, request: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self._client.chat.completions.create(**request).model_dump(warnings=False)
        return found

    def _tops(self, turn: GoldenTurn, entries: Sequence[dict[str, Any]]) -> tuple[TopTokens, ...]:
        found: list[TopTokens] = []
        for position, entry in enumerate(entries[: len(turn.completion)]):
            known = {i for i, _ in (*turn.adapter[position], *turn.base[position])} | {turn.completion[position]}
            texts = {self._dialect.decode([i]): i for i in known}
            listed = {one["token"]: float(one["logprob"]) for one in (*(entry.get("top_logprobs") or ()), entry)}
            # A token that the record does not know keeps a place of its own: it bounds those that the server did not list.
            found.append(tuple((texts.get(text, -1 - n), logprob) for n, (text, logprob) in enumerate(listed.items())))
            if texts.get(entry["token"]) != turn.completion[position]:
                break
        return tuple(found)

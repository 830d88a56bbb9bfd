"""Golden prompts asked of an OpenAI-compatible server: its answer, its log-probs, and what it made of the prompt.

Log-probs are compared id by id where the server says ids. Surprise: where it says texts only, two ids can have one text (a first space that
a decoder strips, the bytes of one character), so both sides are put into a coarser alphabet, of classes of ids that one text may mean.
"""

import json
import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from openai import AuthenticationError, BadRequestError, OpenAI, OpenAIError, PermissionDeniedError, UnprocessableEntityError

from agentalign.errors import ModelError
from agentalign.records.golden import GoldenTurn, TopTokens
from agentalign.rollouts.openai_messages import openai_messages
from agentalign.rollouts.side_by_side import side_by_side
from agentalign.training.dialect import Dialect
from agentalign.training.top_tokens import TOP

AT_ONCE = 8
"""Requests under way in the interleaved round."""


class Along(NamedTuple):
    """Log-probs along the golden completion, up to and including the first token that differs from it, and the record beside them.

    All three are in one alphabet: ids, or classes of ids.
    """

    tops: tuple[TopTokens, ...] = ()
    adapter: tuple[TopTokens, ...] = ()
    """The record of the adapter, at all its positions."""
    base: tuple[TopTokens, ...] = ()
    """The record of the bare base."""


class Answer(NamedTuple):
    """What a server said to one golden prompt."""

    content: str
    calls: tuple[tuple[str, str], ...]
    """(name, arguments as the server wrote them)."""
    along: Along
    """Empty where no log-probs came."""
    foreign: bool
    """Log-probs came, but of texts that no id of the base has: nothing can be compared."""
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
            entries = (choice.get("logprobs") or {}).get("content") or []
            along = self._along(turn, entries, choice.get("token_ids") or ())
            return Answer(
                content=str(message.get("content") or ""),
                calls=calls,
                along=along,
                foreign=bool(entries) and not along.tops,
                prompt_tokens=(reply.get("usage") or {}).get("prompt_tokens"),
                prompt_ids=tuple(int(i) for i in prompt_ids) if prompt_ids else None,
            )
        except OpenAIError as error:
            raise ModelError(f"{self.url}: no answer to a golden prompt under the name {model} ({error}).") from error
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"{self.url}: an answer that cannot be read ({type(error).__name__}: {error}).") from error

    def ask_all(self, asked: Sequence[tuple[str, GoldenTurn]], *, at_once: int = AT_ONCE) -> list[Answer]:
        """Side by side, answered in order."""
        return side_by_side(lambda one: self.ask(*one), asked, at_once)

    def _reply(self, model: str, turn: GoldenTurn) -> dict[str, Any]:
        tools = json.loads(turn.tools)
        request: dict[str, Any] = {
            "model": model, "messages": openai_messages(turn.messages), "temperature": 0.0,
            "max_tokens": self._limit, "logprobs": True, "top_logprobs": TOP, **({"tools": tools} if tools else {}),
        }  # fmt: skip
        if self._extras:
            try:
                return self._sent({**request, "extra_body": {"return_token_ids": True, "return_tokens_as_token_ids": True}})
            except (BadRequestError, UnprocessableEntityError):
                self._extras = False  # a server that knows no ids; what else it may refuse shows without them
        return self._sent(request)

    def _sent(self, request: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self._client.chat.completions.create(**request).model_dump(warnings=False)
        return found

    def _along(self, turn: GoldenTurn, entries: Sequence[dict[str, Any]], written: Sequence[int]) -> Along:
        found: list[TopTokens] = []
        rows = [[*(entry.get("top_logprobs") or ()), entry] for entry in entries[: len(turn.completion)]]
        by_id = all(_token_id(one) is not None for row in rows for one in row)
        alphabet = _Alphabet({}, ()) if by_id else self._alphabet
        for row, token, position in zip(rows, turn.completion, range(len(rows)), strict=False):
            classes = [_token_id(one) if by_id else alphabet.of_text.get(one["token"]) for one in row]
            named = [one for one in classes if one is not None]
            if len(named) < len(row):  # a text that is none of the base's: which of the record's tokens it is, nobody knows
                break
            *tops, chosen = zip(named, (float(one["logprob"]) for one in row), strict=True)
            # The chosen token stands among the likeliest too, and counts once.
            found.append(_merged(tops if chosen[0] in named[:-1] else [*tops, chosen]))
            if written[position] != token if position < len(written) else chosen[0] != alphabet.of(token):
                break
        return Along(tuple(found), *(tuple(alphabet.merge(one) for one in record) for record in (turn.adapter, turn.base)))

    @cached_property
    def _alphabet(self) -> "_Alphabet":
        return _Alphabet.of_texts(self._dialect)


class _Alphabet(NamedTuple):
    """Classes of ids that one text may mean, each named by its smallest id. Without texts every id is a class of its own."""

    of_text: dict[str, int]
    of_id: Sequence[int]

    @classmethod
    def of_texts(cls, dialect: Dialect) -> "_Alphabet":
        """That of a base whose ids are known by their texts: each has one alone and one behind others, and servers write either."""
        first: dict[str, int] = {}
        smaller = list(range(len(dialect.tokenizer)))

        def name(token: int) -> int:
            while smaller[token] != token:
                smaller[token] = token = smaller[smaller[token]]
            return token

        for token in range(len(smaller)):
            for text in (dialect.decode([token]), dialect.token_text(token)):
                one, other = sorted((name(token), name(first.setdefault(text, token))))
                smaller[other] = one
        return cls({text: name(token) for text, token in first.items()}, [name(token) for token in range(len(smaller))])

    def of(self, token: int) -> int:
        return self.of_id[token] if token < len(self.of_id) else token

    def merge(self, tops: TopTokens) -> TopTokens:
        return _merged((self.of(token), logprob) for token, logprob in tops)


def _token_id(entry: dict[str, Any]) -> int | None:
    """The id that an entry is about: llama.cpp and `agentalign serve` give it beside the text, vLLM in its place where it is asked to."""
    if isinstance(entry.get("id"), int):
        return int(entry["id"])
    before, _, number = str(entry["token"]).partition("token_id:")
    return int(number) if not before and number.isdecimal() else None


def _merged(pairs: Iterable[tuple[int, float]]) -> TopTokens:
    """Log-probabilities of one class added up. Merging outcomes can only lower a divergence, so it stays a lower bound."""
    found: dict[int, list[float]] = {}
    for token, logprob in pairs:
        found.setdefault(token, []).append(logprob)
    return tuple((token, _sum(logprobs)) for token, logprobs in found.items())


def _sum(logprobs: Sequence[float]) -> float:
    most = max(logprobs)
    return most if len(logprobs) == 1 else most + math.log(sum(math.exp(one - most) for one in logprobs))

"""Who acts: a model in this process, the taskset's expert, or a model behind an OpenAI-compatible server.

A policy answers many runs at once: one `TurnRequest` per run in, one `PolicyTurn` per run out, in the same order. What breaks for one run
alone comes back as that turn's `error`; what breaks for all is raised.
Surprise: a sample's random stream depends on seed, task, sample and turn only, so a run does not depend on what was in the batch with it
(beyond the rounding of batched matrix products).
"""

import json
import math
import time
import traceback
import uuid
from collections.abc import Generator as Generating
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import httpx
from openai import APIConnectionError, APITimeoutError, AuthenticationError, NotFoundError, OpenAI, OpenAIError, PermissionDeniedError
from openai.types.chat import ChatCompletion

from agentalign.environments.task import Task
from agentalign.environments.team_code import Pool
from agentalign.errors import ConfigError, ModelError, TasksetError, TemplateError
from agentalign.records.base import digest
from agentalign.records.trajectory import Message, TurnTokens
from agentalign.rollouts.openai_messages import openai_messages, read_answer
from agentalign.rollouts.side_by_side import side_by_side
from agentalign.rollouts.streamed import Late, Sampling, read_chunks, write_in_pieces
from agentalign.training.completion import Completion
from agentalign.training.decode_attention import ROWS
from agentalign.training.dialect import Dialect
from agentalign.training.generate import Generator


class TurnRequest(NamedTuple):
    """One run waiting for its agent's next message."""

    slot: int
    """Names the run from its first turn to `finish`; used again by a later run."""
    task: Task
    sample: int
    """Which of several runs of the task this is."""
    messages: tuple[Message, ...]
    """All so far, the system prompt included."""
    tools: str
    """JSON text of the offered tools."""
    max_new_tokens: int
    """For this turn."""
    max_tokens: int
    """For the whole run, prompt included; counted only by policies that see tokens."""


class PolicyTurn(NamedTuple):
    """What the agent did with one request."""

    message: Message | None
    """None where nothing could be said: the run is already as long as it may be, or `error` says why."""
    tokens: TurnTokens | None = None
    stopped: bool = True
    """False where the turn was cut at a token limit."""
    error: str = ""
    """Traceback or sentence, where this run cannot go on."""
    by: str = ""
    """Which version answered, where a stage was asked for: "order_desk@4"; empty where it is the policy's own name."""


class Policy(Protocol):
    """Anything that can take the agent's part."""

    name: str
    """Who this is, as runs will say: "base", "order_desk@4", "expert", a served model's name."""
    tokens_digest: str
    """`Dialect.digest` that recorded tokens belong to; empty where none are recorded."""

    def act(self, requests: Sequence[TurnRequest]) -> list[PolicyTurn]:
        """The next turn of each run, in order."""
        ...

    def finish(self, slot: int) -> None:
        """The run in this slot is over."""
        ...

    def runs_at_once(self, max_tokens: int) -> int:
        """How many runs, each of up to this many tokens, it acts in best at the same time."""
        ...


Streamed = Generating[str, None, PolicyTurn]
"""A turn's text in pieces, and at the end the turn: `turn = yield from policy.stream(request, deadline)`."""


@runtime_checkable
class StreamingPolicy(Protocol):
    """A policy that can tell a turn while it is written, and be stopped by the clock."""

    def stream(self, request: TurnRequest, deadline: float) -> Streamed:
        """One turn; `deadline` is a time of `time.monotonic`. What it ends is a turn that did not stop, with what was written so far."""
        ...


def turn_seed(seed: int, request: TurnRequest) -> int:
    """Seed of one turn's random stream: 63 bits over seed, task, sample and turn."""
    turn = sum(message.role == "assistant" for message in request.messages)
    return int(digest([seed, request.task.id, request.sample, turn])[:16], 16) >> 1


class LocalPolicy:
    """A model in this process. Token in, token out: what was sampled is never encoded again, unless the template rewrites history."""

    def __init__(
        self, generator: Generator, dialect: Dialect, name: str, *, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0
    ) -> None:
        if not 0 <= temperature <= 2:
            raise ConfigError(f"temperature {temperature} is not between 0 and 2. 0 takes the likeliest token.")
        self.name, self.tokens_digest = name, dialect.digest
        self._dialect, self._generator, self._session = dialect, generator, generator.session()
        self._temperature, self._top_p, self._seed = temperature, top_p, seed
        self._last: dict[int, tuple[list[int], tuple[int, ...], str]] = {}
        """Slot -> context and completion of its last turn, and the tools that stood in it."""

    @property
    def computed_on(self) -> str:
        """Kind of processor, and precision: "cpu in bfloat16"."""
        model = self._generator.model
        return f"{model.device.type} in {str(model.dtype).removeprefix('torch.')}"

    def act(self, requests: Sequence[TurnRequest]) -> list[PolicyTurn]:
        """See `Policy.act`."""
        contexts: dict[int, list[int]] = {}
        errors: dict[int, str] = {}
        for request in requests:
            try:
                contexts[request.slot] = self._context(request)
            except TemplateError:
                errors[request.slot] = traceback.format_exc()
        budgets = {r.slot: min(r.max_new_tokens, r.max_tokens - len(contexts[r.slot])) for r in requests if r.slot in contexts}
        seeds = {r.slot: turn_seed(self._seed, r) for r in requests}
        found = self._session.generate(contexts, max_new_tokens=budgets, temperature=self._temperature, top_p=self._top_p, seeds=seeds)
        return [
            PolicyTurn(None, error=errors[r.slot]) if r.slot in errors else self._turn(r, contexts[r.slot], found[r.slot]) for r in requests
        ]

    def stream(self, request: TurnRequest, deadline: float) -> Streamed:
        """See `StreamingPolicy.stream`."""
        try:
            context = self._context(request)
        except TemplateError:
            return PolicyTurn(None, error=traceback.format_exc())
        budget = min(request.max_new_tokens, request.max_tokens - len(context))
        sampling = Sampling(budget, self._temperature, self._top_p, turn_seed(self._seed, request))
        completion = yield from write_in_pieces(self._session, self._dialect, request.slot, context, sampling, deadline)
        return self._turn(request, context, completion)

    def finish(self, slot: int) -> None:
        """See `Policy.finish`."""
        self._last.pop(slot, None)
        self._session.drop(slot)

    def runs_at_once(self, max_tokens: int) -> int:
        """See `Policy.runs_at_once`."""
        return self._generator.rows_at_once(max_tokens)

    def _context(self, request: TurnRequest) -> list[int]:
        last = self._last.get(request.slot)
        same_tools = last is not None and last[2] == request.tools
        ids = self._dialect.continue_ids(last[0], last[1], request.messages, request.tools) if last and same_tools else None
        return self._dialect.context_ids(request.messages, request.tools) if ids is None else ids

    def _turn(self, request: TurnRequest, context: list[int], completion: Completion) -> PolicyTurn:
        if not completion.ids:
            return PolicyTurn(None, stopped=False)
        self._last[request.slot] = (context, completion.ids, request.tools)
        first_call = sum(len(message.tool_calls) for message in request.messages)
        message = self._dialect.parse_ids(completion.ids, first_call=first_call)
        tokens = TurnTokens(
            message_index=len(request.messages), context=tuple(context), completion=completion.ids, logprobs=completion.logprobs
        )
        return PolicyTurn(message, tokens, completion.stopped)


class ExpertPolicy:
    """The taskset's own expert.py, run where team code runs."""

    name = "expert"
    tokens_digest = ""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def act(self, requests: Sequence[TurnRequest]) -> list[PolicyTurn]:
        """See `Policy.act`."""
        return [self._turn(request) for request in requests]

    def finish(self, slot: int) -> None:
        """See `Policy.finish`; an expert remembers nothing."""

    def runs_at_once(self, max_tokens: int) -> int:
        """See `Policy.runs_at_once`."""
        return ROWS

    def _turn(self, request: TurnRequest) -> PolicyTurn:
        try:
            return PolicyTurn(self._pool.expert(request.slot, request.task, request.messages))
        except TasksetError as error:
            return PolicyTurn(None, error=str(error))


class EndpointPolicy:
    """A model behind an OpenAI-compatible server. The server applies template and parser; token ids are not seen, so none are recorded."""

    tokens_digest = ""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str = "none",
        temperature: float = 0.0,
        seed: int = 0,
        seconds: float = 120,
        retries: int = 3,
        concurrency: int = 8,
    ) -> None:
        self.name = model
        self.answered = ""
        """What the server called itself in its last answer; `agentalign serve` names the version."""
        self._heard = False
        """It gave an answer once: what fails after that may be about one run alone."""
        self._own = False
        """It is `agentalign serve`, as a word of its own showed: it takes back what the OpenAI API has no field for."""
        self._conversations: dict[int, str] = {}
        """Slot -> the id of the conversation that began there; one that began elsewhere is known by its history alone."""
        self._temperature, self._seed, self._concurrency, self._seconds = temperature, seed, concurrency, seconds
        self._client = OpenAI(base_url=base_url, api_key=api_key, timeout=seconds, max_retries=retries)

    def served(self) -> list[str]:
        """Every name that the server answers to; ModelError where it does not say."""
        try:
            return [model.id for model in self._client.models.list()]
        except (AuthenticationError, PermissionDeniedError) as error:
            raise ModelError(f"{self._client.base_url}: the server does not take this API key, or wants one. Give api_key.") from error
        except (OpenAIError, ValueError, AttributeError) as error:
            where = self._client.base_url
            raise ModelError(f"{where}: the server does not say what it serves ({type(error).__name__}). Is it running?") from error

    def act(self, requests: Sequence[TurnRequest]) -> list[PolicyTurn]:
        """See `Policy.act`; requests are sent side by side."""
        turns = side_by_side(self._turn, requests, self._concurrency)
        if len(turns) > 1 and not self._heard and all(turn.error for turn in turns):
            raise ModelError(f"the server answered none of {len(turns)} requests, so no run is begun. {turns[0].error}")
        return turns

    def finish(self, slot: int) -> None:
        """See `Policy.finish`; the server is told everything each time."""
        self._conversations.pop(slot, None)

    def runs_at_once(self, max_tokens: int) -> int:
        """See `Policy.runs_at_once`."""
        return ROWS

    def stream(self, request: TurnRequest, deadline: float) -> Streamed:
        """See `StreamingPolicy.stream`; a server that keeps still is given up at the deadline."""
        left = min(self._seconds, max(0.001, deadline - time.monotonic()))
        try:
            retries = 0 if deadline < math.inf else self._client.max_retries
            with self._client.with_options(timeout=left, max_retries=retries).chat.completions.create(
                stream=True, **self._asked(request)
            ) as chunks:
                entry, finish = yield from read_chunks((self._seen(chunk) for chunk in chunks), deadline)
            if not finish:
                return PolicyTurn(None, error=f"{self._client.base_url}: the server's answer broke off.")
            return PolicyTurn(self._read(entry), stopped=finish != "length", by=self._version(self.answered))
        except Late:
            return PolicyTurn(None, stopped=False)
        except (OpenAIError, httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
            if time.monotonic() >= deadline:
                return PolicyTurn(None, stopped=False)
            return self._no_answer(error)

    def _seen(self, chunk: Any) -> dict[str, Any]:
        found: dict[str, Any] = chunk.model_dump(warnings=False)
        self._heard = True
        self.answered = str(found.get("model") or "")
        return found

    def _asked(self, request: TurnRequest) -> dict[str, Any]:
        tools = json.loads(request.tools)
        if not any(message.role == "assistant" for message in request.messages):
            self._conversations[request.slot] = uuid.uuid4().hex
        id = self._conversations.get(request.slot)
        return {
            "model": self.name,
            "messages": openai_messages(request.messages, own=self._own),
            "max_tokens": request.max_new_tokens,
            "temperature": self._temperature,
            "seed": turn_seed(self._seed, request) % 2**31,
            **({"tools": tools} if tools else {}),
            # `agentalign serve` keeps a conversation's version by its id; other servers do not look at it.
            **({"extra_headers": {"X-Conversation-Id": id}} if id else {}),
        }

    def _turn(self, request: TurnRequest) -> PolicyTurn:
        try:
            reply: ChatCompletion = self._client.chat.completions.create(**self._asked(request))
        except (OpenAIError, ValueError) as error:  # ValueError: a body that is no JSON
            return self._no_answer(error)
        self._heard = True
        try:
            if not reply.choices:
                return PolicyTurn(None, error=f"{self._client.base_url}: the server's answer has no choices.")
            self.answered = str(reply.model or "")
            choice = reply.choices[0]
            # The client does not check what a server sends: a page of HTML, a call without a name, arguments that are no text.
            entry = choice.message.model_dump(warnings=False) | {"malformed": (choice.model_extra or {}).get("malformed")}
            return PolicyTurn(self._read(entry), stopped=choice.finish_reason != "length", by=self._version(str(reply.model or "")))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            said = " ".join(str(error).split())
            return PolicyTurn(None, error=f"{self._client.base_url}: the server's answer cannot be read ({type(error).__name__}: {said}).")

    def _version(self, answered: str) -> str:
        """The version that a server of ours names; others may call themselves anything."""
        name, _, number = answered.partition("@")
        return answered if number.isdigit() and name == self.name.partition("@")[0] else ""

    def _no_answer(self, error: Exception) -> PolicyTurn:
        """The error of one turn; ModelError where nobody gets an answer: each run would be broken and stored for good."""
        said, where = " ".join(str(error).split()), self._client.base_url
        if isinstance(error, AuthenticationError) and not self._heard:
            raise ModelError(f"{where}: the server does not take this API key, or wants one ({said}). Set or correct the key.") from error
        if isinstance(error, NotFoundError) and not self._heard:
            raise ModelError(f"{where}: the server knows no model '{self.name}' there ({said}). Check address and name.") from error
        at_first = isinstance(error, PermissionDeniedError | APIConnectionError) and not isinstance(error, APITimeoutError)
        if at_first and not self._heard:
            raise ModelError(
                f"{where}: the server answers nobody ({type(error).__name__}: {said}). Check that it runs, and the key."
            ) from error
        return PolicyTurn(None, error=f"{where}: the server gave no answer ({type(error).__name__}: {said}).")

    def _read(self, entry: dict[str, Any]) -> Message:
        message = read_answer(entry)
        self._own = self._own or bool(message.malformed)
        return message

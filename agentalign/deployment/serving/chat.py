"""A chat request on its way to tokens and back: prompt, constraint, adapter; then text, calls and figures.

The prompt is what rollouts would send: a conversation that goes on is continued by the very tokens that were sampled for it, and the one
parser of the base reads what came. Surprise: without tools, or with `tool_choice: none`, no call can be written at all; it is not
written and then hidden.
"""

import json
import secrets
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from pydantic import JsonValue

from agentalign.deployment.serving.adapters import Adapters, conversation_key
from agentalign.deployment.serving.protocol import ChatRequest, NamedChoice, ObjectFormat, SchemaFormat
from agentalign.deployment.serving.worker import BusyError, Event, Job, Worker
from agentalign.errors import AgentAlignError, ConfigError, DataError, RegistryError, TemplateError
from agentalign.exchange.chat import read_messages
from agentalign.records.trajectory import Message, ToolCall
from agentalign.training import constraints
from agentalign.training.constraints import Grammars
from agentalign.training.continuous import Constraint, Work
from agentalign.training.dialect import Dialect
from agentalign.training.parsers import TurnForm
from agentalign.training.sampling import Penalties, Sampler
from agentalign.training.streaming import Silence, StopWords, certain_text, text_before, without_words
from agentalign.training.turn_grammar import ToolShape, TurnShape, turn_grammar

Told = Callable[[int, Event], None]
"""Called with the number of an answer and what happened to it."""
MAX_SCHEMA_BYTES = 64 * 1024
MAX_TURNS = 2000
"""Turns whose tokens are remembered."""


class RefusedError(AgentAlignError):
    """A request that gets an error for an answer."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


class Limits(NamedTuple):
    """What one request may cost."""

    max_tokens: int = 1024
    """Of an answer."""
    max_context: int = 4096
    """Of prompt and answer."""
    max_seconds: float = 300


@dataclass(frozen=True)
class Asked:
    """A request that was understood."""

    request: ChatRequest
    version: str
    """"name@version" that answers, or "base"."""
    owner: str
    messages: tuple[Message, ...]
    tools: str
    form: TurnForm
    """How the answer is read."""
    jobs: tuple[Job, ...]
    """One per answer; the prompt of all is that of the first."""
    id: str
    created: int

    @property
    def first_call(self) -> int:
        """Number of the first call's id."""
        return sum(len(message.tool_calls) for message in self.messages)

    def certain(self, text: str) -> str:
        """What may be shown of an answer that is still being written."""
        return without_words(certain_text(self.form, text), self.request.stops)


class Turn(NamedTuple):
    """An answer, read."""

    message: Message
    """`content` holds what may be shown; never half a call."""
    finish: str
    """stop, length or tool_calls."""


class Chat:
    """Understands requests and reads answers, for one base."""

    def __init__(self, dialect: Dialect, adapters: Adapters, worker: Worker, grammars: Grammars, limits: Limits) -> None:
        self.dialect, self.adapters, self.worker, self._grammars, self.limits = dialect, adapters, worker, grammars, limits
        self._turns: OrderedDict[str, array[int]] = OrderedDict()
        """Conversation up to an answer -> the ids of its prompt and answer."""

    def submit(self, request: ChatRequest, owner: str, named: str, tell: Told) -> Asked:
        """Hand a request to the worker. Events come, with the number of their answer, until one is the last of each.

        Raises:
            RefusedError: with status, sentence and parameter.
        """
        vain = request.in_vain
        if vain:
            raise RefusedError(400, vain.why, vain.param)
        messages, tools = self._read(request)
        may_call, held = self._constraints(request)
        conversation = named or (request.metadata or {}).get("conversation_id", "")
        key = conversation_key(request.model, owner, messages, tools, conversation)
        try:
            version = self.adapters.choose(request.model, key)
        except RegistryError as error:
            raise RefusedError(404, str(error), "model", "model_not_found") from None
        context = self._context(messages, tools, version, owner)
        budget = self._budget(request, len(context))
        adapter = self._acquire(version)
        if key and conversation:
            # Bound once it is there: to a version that cannot be served, a conversation would be bound for good.
            bound = self.adapters.bind(key, version)
            if bound != version:
                self.adapters.release(version)
                version, adapter = bound, self._acquire(bound)
        form = self.dialect.form if may_call else replace(self.dialect.form, call_format="text", calls=None)
        left = set(range(request.choices))

        def told(number: int, event: Event) -> None:
            if event.last:
                left.discard(number)
                if not left:
                    self.adapters.release(version)
            tell(number, event)

        work = partial(
            Work, context=context, adapter=adapter, owner=owner, budget=budget, top=(request.top_logprobs or 0) if request.logprobs else 0,
            sampler=Sampler(request.temperature or 0.0, 1.0 if request.top_p is None else request.top_p),
            penalties=Penalties(request.presence_penalty or 0.0, request.frequency_penalty or 0.0),
        )  # fmt: skip
        jobs = self._jobs(request, work, form, held, told)
        asked = Asked(request, version, owner, messages, tools, form, jobs, f"chatcmpl-{secrets.token_hex(12)}", int(time.time()))
        try:
            self.worker.submit(*jobs)
        except BusyError as error:
            self.adapters.release(version)
            raise self._busy(error) from None
        return asked

    def read(self, asked: Asked, number: int = 0, *, stopped: bool) -> Turn:
        """What was written as this answer, when it is over; the conversation is remembered with it."""
        work = asked.jobs[number].work
        text = self.text(work.ids).encode("utf-8", "replace").decode("utf-8")
        cut = text_before(certain_text(asked.form, text), asked.request.stops)
        if cut is not None:
            # What was sampled goes on behind what is said, so these ids are no beginning of what the conversation goes on with.
            message = Message(role="assistant", content=cut, reasoning=asked.form.split(text)[0])
            self._remember(asked, message, None)
            return Turn(message, "stop")
        parsed = asked.form.parse(text)
        content, reasoning = parsed.content, parsed.reasoning
        if parsed.malformed:
            reasoning, content = asked.form.split(text)
            content = content if stopped else certain_text(asked.form, text)
        # Only the end of a turn tells that it held no call, and text behind it may say one of the words. What looks like a call and cannot
        # be read is sent whole: a stop text within it is a word of its arguments.
        cut = None if parsed.malformed and stopped else text_before(content, asked.request.stops)
        calls = tuple(ToolCall(id=f"call_{asked.first_call + i}", name=c.name, arguments=c.arguments) for i, c in enumerate(parsed.calls))
        content = content if cut is None else cut
        message = Message(role="assistant", content=content, reasoning=reasoning, tool_calls=calls, malformed=parsed.malformed)
        self._remember(asked, message, work if cut is None else None)
        return Turn(message, "length" if not stopped else "tool_calls" if calls else "stop")

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer, without the ids that end it."""
        end = len(ids)
        while end and ids[end - 1] in self.dialect.stop_ids:
            end -= 1
        return self.dialect.decode(ids[:end])

    def _acquire(self, version: str) -> str | None:
        try:
            return self.adapters.acquire(version)
        except RegistryError as error:
            raise RefusedError(404, str(error), "model", "model_not_found") from None
        except BusyError as error:
            raise self._busy(error) from None

    def _busy(self, error: BusyError) -> RefusedError:
        return RefusedError(429 if self.worker.alive else 503, str(error), code="busy")

    # ------------------------------------------------------------------ understanding

    def _read(self, request: ChatRequest) -> tuple[tuple[Message, ...], str]:
        tools = [tool.model_dump(exclude_unset=True) for tool in request.tools or ()]
        for tool in tools:
            tool["function"].pop("strict", None)
        try:
            messages, _ = read_messages(list(request.messages))
            json.dumps([request.messages, tools], ensure_ascii=False).encode()
        except DataError as error:
            raise RefusedError(400, str(error), "messages") from None
        except (UnicodeEncodeError, RecursionError, ValueError):
            raise RefusedError(400, "the request holds half a surrogate pair, or is nested too deeply.", "messages") from None
        names = [tool.function.name for tool in request.tools or ()]
        if len(set(names)) != len(names):
            raise RefusedError(400, "two offered tools have one name.", "tools")
        return messages, json.dumps(tools, ensure_ascii=False)

    def _context(self, messages: tuple[Message, ...], tools: str, version: str, owner: str) -> list[int]:
        try:
            key = conversation_key(version, owner, messages, tools)
            held = self._turns.get(key or "")
            ids = self.dialect.continue_ids(held[:-1], held[-1:], messages, tools) if held else None
            return self.dialect.context_ids(messages, tools) if ids is None else ids
        except (TemplateError, RecursionError) as error:
            raise RefusedError(400, str(error), "messages") from None

    def _budget(self, request: ChatRequest, prompt: int) -> int:
        if request.max_tokens and request.max_completion_tokens:
            raise RefusedError(400, "max_tokens and max_completion_tokens say the same thing. Give one.", "max_tokens")
        name = "max_tokens" if request.max_tokens else "max_completion_tokens"
        wanted = request.max_tokens or request.max_completion_tokens or self.limits.max_tokens
        if wanted > self.limits.max_tokens:
            raise RefusedError(400, f"{name} is {wanted}, and an answer may have {self.limits.max_tokens} here. Ask for fewer.", name)
        if prompt >= self.limits.max_context:
            most = self.limits.max_context
            text = f"the prompt has {prompt} tokens, and prompt and answer together may have {most}. Shorten the conversation."
            raise RefusedError(400, text, "messages", "context_length_exceeded")
        return min(wanted, self.limits.max_context - prompt)

    def _jobs(
        self, request: ChatRequest, work: Callable[..., Work], form: TurnForm, held: Sequence[Constraint | None], told: Told
    ) -> tuple[Job, ...]:
        """One job per answer, each with a random stream of its own: the first has the one that it would have alone."""
        seed = secrets.randbits(62) if request.seed is None else request.seed
        deadline = time.monotonic() + self.limits.max_seconds
        jobs: list[Job] = []
        for number, constraint in enumerate(held):
            one = work(
                key=self.worker.next_key(), constraint=constraint, seed=(seed + number + 2**63) % 2**64 - 2**63,
                stop=StopWords(request.stops, form, self.dialect.decode) if request.stops else None,
            )  # fmt: skip
            jobs.append(Job(one, deadline, partial(told, number), leader=jobs[0] if jobs else None))
        return tuple(jobs)

    def _constraints(self, request: ChatRequest) -> tuple[bool, list[Constraint | None]]:
        """Whether there may be calls, and what each answer's turn is held to."""
        choice, offered = request.tool_choice or "auto", request.tools or []
        named = choice.function.name if isinstance(choice, NamedChoice) else ""
        if (named or choice == "required") and not offered:
            raise RefusedError(400, "there are no tools to choose from.", "tool_choice")
        if named and named not in [tool.function.name for tool in offered]:
            raise RefusedError(400, f"no tool '{named}' is offered.", "tool_choice")
        may_call = bool(offered) and choice != "none"
        why = self._why_grammar(request, may_call)
        if not why:
            silent = [None if may_call else Silence(self.dialect.form, self.dialect.decode) for _ in range(request.choices)]
            return may_call, list(silent)
        if not constraints.installed():
            text = f"{why} needs constrained decoding, which is not installed here (pip install '{constraints.REQUIREMENT}')."
            raise RefusedError(400, text, why, "not_supported")
        chosen = [tool.function for tool in offered if not named or tool.function.name == named] if may_call else []
        free: JsonValue = {"type": "object"}
        shapes = [ToolShape(f.name, f.parameters if f.strict and f.parameters else free) for f in chosen]
        shape = TurnShape(
            calls="no" if not may_call else "must" if named or choice == "required" else "may", tools=shapes,
            parallel=request.parallel_tool_calls is not False and not named, answer=_answer(request),
        )  # fmt: skip
        try:
            grammar = turn_grammar(self.dialect, shape)
            if len(grammar) > MAX_SCHEMA_BYTES:
                raise ConfigError(f"the schemas are larger than {MAX_SCHEMA_BYTES // 1024} KiB.")
            return may_call, [self._grammars.constraint(grammar) for _ in range(request.choices)]
        except ConfigError as error:
            raise RefusedError(400, f"{why} cannot be honoured: {error}", why, "not_supported") from None

    def _why_grammar(self, request: ChatRequest, may_call: bool) -> str:
        """The parameter that only a grammar can honour; empty where there is none."""
        if isinstance(request.response_format, ObjectFormat | SchemaFormat):
            return "response_format"
        if not may_call:
            return ""
        if isinstance(request.tool_choice, NamedChoice) or request.tool_choice == "required":
            return "tool_choice"
        if request.parallel_tool_calls is False:
            return "parallel_tool_calls"
        strict = [number for number, tool in enumerate(request.tools or ()) if tool.function.strict]
        return f"tools.{strict[0]}.function.strict" if strict else ""

    def _remember(self, asked: Asked, message: Message, work: Work | None) -> None:
        """Bind the conversation to its version; `work` where it may go on from the very ids that were sampled."""
        said = (*asked.messages, message.model_copy(update={"reasoning": "", "malformed": ""}))
        key = conversation_key(asked.request.model, asked.owner, said, asked.tools)
        own = conversation_key(asked.version, asked.owner, said, asked.tools)
        if key and own:
            self.adapters.go_on(key, asked.version)
            if work and not message.reasoning:  # clients do not send reasoning back: the next prompt is written without it
                self._turns[own] = array("i", [*work.context, *work.ids])
                while len(self._turns) > MAX_TURNS:
                    self._turns.popitem(last=False)


def _answer(request: ChatRequest) -> Any:
    if isinstance(request.response_format, ObjectFormat):
        return {"type": "object"}
    if isinstance(request.response_format, SchemaFormat):
        schema = request.response_format.json_schema.schema_
        return {} if schema is None else schema
    return None

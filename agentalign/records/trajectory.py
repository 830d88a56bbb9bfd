"""What an agent did: messages, tool calls, and where the run came from.

The id hashes content *and* origin, so two identical rollouts of one task stay two events (pass^k and group baselines need them);
`content_digest` hashes content alone and finds duplicates. Everything nested that the team or a model wrote is kept as JSON text:
typed columns would add `null` keys to tool arguments, and models learn to emit them.
"""

import json
import math
from collections.abc import Sequence
from decimal import Decimal
from enum import StrEnum
from functools import cached_property
from typing import Literal, NamedTuple

from pydantic import Field, JsonValue, field_validator

from agentalign.records.base import Record, canonical_json, digest


class StopReason(StrEnum):
    """Why a run ended."""

    ANSWERED = "answered"
    """The agent gave its last word and the customer had nothing more to say."""
    MAX_TURNS = "max_turns"
    """The limit of assistant turns was reached."""
    MAX_TOKENS = "max_tokens"
    """The run, or one turn of it, reached its token limit."""
    MAX_SECONDS = "max_seconds"
    """The run reached its wall-clock limit."""
    ERROR = "error"
    """Environment, tool or policy broke; `Trajectory.error` has the traceback."""
    UNKNOWN = "unknown"
    """Imported without a reason; or one step that a person corrected, after which nothing was acted out."""


def _without_double_keys(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice, and one value would be lost")
    return found


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number in JSON")


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _no_number(number)


def _unchanged(number: str) -> float:
    value = float(number)
    try:
        same = Decimal(repr(value)) == Decimal(number)
    except ArithmeticError:  # an exponent that no decimal takes
        same = False
    if not same:
        raise ValueError("a number has more digits than a float, and some would be lost")
    return value


class ToolCall(Record):
    """One call of a tool by the agent."""

    id: str
    """Links the call to its result message; unique within the run."""
    name: str
    arguments: str = "{}"
    """The arguments as JSON text: canonical where it parses and every number stays what it is, else the text that was given."""

    @field_validator("arguments")
    @classmethod
    def _canonical(cls, text: str) -> str:
        try:
            canonical = canonical_json(json.loads(text, object_pairs_hook=_without_double_keys, parse_float=_unchanged))
            canonical.encode()  # an escaped lone surrogate stays escaped: neither store nor tokenizer takes the bare character
            return canonical
        except (ValueError, RecursionError):
            return text

    def parsed(self) -> JsonValue:
        """The arguments as a value; ValueError where the agent wrote no valid JSON, a key twice, or a number that is none (NaN, 1e999)."""
        value: JsonValue = json.loads(
            self.arguments, object_pairs_hook=_without_double_keys, parse_constant=_no_number, parse_float=_finite
        )
        return value


class Message(Record):
    """One message of a run, in the field's usual four roles."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    reasoning: str = ""
    """What a reasoning model thought before it spoke; assistant only."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Assistant only."""
    tool_call_id: str | None = None
    """Tool only: which call this answers; None where it answers a malformed call."""
    name: str | None = None
    """Tool only: the tool's name, where known."""
    error: bool = False
    """Tool only: this result is an error message."""
    malformed: str = ""
    """Assistant only: why a call in `content` could not be read; empty where all could."""


class Origin(Record):
    """Where a run came from; part of its id."""

    kind: Literal["rollout", "expert", "import", "correction", "capture", "chat", "proposal"]
    """A chat is a run in which a person took the customer's part; `metadata` says what they did to its calls. A proposal is a chat up to a
    turn of which a person changed a call before it was made, with that turn as the agent wrote it."""
    reference: str
    """What made it: a policy such as "order_desk@4" or "base", a command, or the digest of the source file."""
    task: str = ""
    """Task id for rollouts, row number or name for imports."""
    sample: int = 0
    """Which of several runs of the same task by the same maker."""
    seed: int = 0


class Step(NamedTuple):
    """A view of one assistant turn and what came back for it."""

    index: int  # type: ignore[assignment]
    """0 for the first assistant turn of the run."""
    message_index: int
    """Where the assistant message stands in `Trajectory.messages`."""
    message: Message
    results: tuple[Message, ...]
    """Tool messages up to the next assistant or user message."""


class Trajectory(Record):
    """One run of an agent, whole."""

    taskset: str
    messages: tuple[Message, ...]
    tools: str = "[]"
    """The offered tools as JSON text: a list of OpenAI function schemas."""
    origin: Origin
    task_id: str | None = None
    """None for imported runs that name no task; see `same_task_key`."""
    family: str = ""
    """Kind of task, for per-family figures; empty where the taskset has none."""
    split: str = ""
    """"train", "dev" or "test"; empty for imported runs."""
    stop_reason: StopReason = StopReason.UNKNOWN
    error: str = ""
    """Traceback or sentence, for `stop_reason == ERROR`."""
    seconds: float | None = None
    """Wall-clock time of the rollout; None for imported runs."""
    parent: tuple[str, int] | None = None
    """(trajectory id, step index) where this run was forked from or corrects; step 0 of the run that a chat replays."""
    metadata: str = "{}"
    """Anything else the source recorded, as JSON text (labels of an import, task fields of a rollout)."""
    created: str = ""
    """UTC, ISO 8601; not part of the id."""
    id: str = Field(default="", validate_default=False)
    """32 hex digits over content, origin, parent and taskset; filled in when left empty, checked otherwise."""

    def model_post_init(self, _context: object) -> None:
        expected = digest([self.content_digest, self.origin.model_dump(mode="json"), list(self.parent or ()), self.taskset])
        if not self.id:
            object.__setattr__(self, "id", expected)
        elif self.id != expected:
            raise ValueError(
                f"trajectory id {self.id} does not match its content ({expected}): the record was changed since it was written."
            )

    @cached_property
    def content_digest(self) -> str:
        """Hash of what happened, without where it came from: equal for exact duplicates."""
        return digest([[m.model_dump(mode="json") for m in self.messages], self.tools])

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The assistant turns in order, each with its tool results."""
        return steps_of(self.messages)

    def accepted_calls(self, tool: str) -> list[dict[str, JsonValue]]:
        """The arguments of this tool's calls that were carried out, in order; what a tool refused, or no object of JSON, is not in it.

        What a check should look at: agents write calls with arguments that are missing, misnamed or cut.
        """
        accepted = []
        for step in self.steps:
            results = {message.tool_call_id: message for message in step.results}
            for call in step.message.tool_calls:
                if call.name == tool and call.id in results and not results[call.id].error:
                    try:
                        arguments = call.parsed()
                    except (ValueError, RecursionError):
                        continue
                    if isinstance(arguments, dict):
                        accepted.append(arguments)
        return accepted

    def same_task_key(self) -> str:
        """Equal for runs of one task: the task id, else a digest of tools and messages before the agent's first act."""
        if self.task_id is not None:
            return f"{self.taskset}/{self.task_id}"
        first = self.steps[0].message_index if self.steps else len(self.messages)
        return "digest/" + digest([self.tools, [m.model_dump(mode="json") for m in self.messages[:first]]])

    @property
    def is_corrected_step(self) -> bool:
        """True for a run that ends with one step that a person wrote anew: it shows a better act, not how well a task was done."""
        at_end = bool(self.steps) and self.steps[-1].message_index == len(self.messages) - 1
        return self.origin.kind == "correction" and self.parent is not None and at_end and self.parent[1] == len(self.steps) - 1

    @property
    def is_one_step(self) -> bool:
        """True for a run that is about its last step alone, for nothing was acted out after it: a corrected step, or a proposal."""
        return self.is_corrected_step or self.origin.kind == "proposal"

    @property
    def answer(self) -> str:
        """Text of the last assistant message; empty if there is none."""
        return self.steps[-1].message.content if self.steps else ""


def steps_of(messages: Sequence[Message]) -> tuple[Step, ...]:
    """The assistant turns among the messages, each with its tool results."""
    starts = [i for i, message in enumerate(messages) if message.role == "assistant"]
    steps = []
    for index, start in enumerate(starts):
        end = start + 1
        while end < len(messages) and messages[end].role == "tool":
            end += 1
        steps.append(Step(index, start, messages[start], tuple(messages[start + 1 : end])))
    return tuple(steps)


class TurnTokens(Record):
    """The exact tokens of one sampled assistant turn."""

    message_index: int
    context: tuple[int, ...]
    """Token ids the policy was given."""
    completion: tuple[int, ...]
    """Token ids it sampled, with the end-of-turn id where it wrote one."""
    logprobs: tuple[float, ...]
    """Log-probability (nats) of each sampled id under the sampler; empty where the server returned none."""


class TokenRecord(Record):
    """Recorded tokens of a run. They belong to one tokenizer and are not part of the run's digest."""

    trajectory: str
    base: str
    """Digest of the base model's tokenizer and template; tokens are reused only with an equal one."""
    turns: tuple[TurnTokens, ...]

"""From records to rows and back.

Records go in as JSON text, so that NUL characters and lone surrogates, which PostgreSQL or UTF-8 refuse, travel as escapes and come
back unaltered. Names that columns hold for filtering may not contain them: those are refused before anything is written.
"""

import hashlib
import json
import math
import struct
import sys
import zlib
from array import array
from typing import Any, TypeVar

from pydantic import ValidationError

from agentalign.errors import DataError, StoreError
from agentalign.records.adapter import Training
from agentalign.records.base import Record, now
from agentalign.records.criterion import Score
from agentalign.records.preference import Preference
from agentalign.records.trajectory import TokenRecord, Trajectory, TurnTokens
from agentalign.store.tables import NAME_LENGTH

R = TypeVar("R", bound=Record)
Row = dict[str, Any]

RESTORE = "Restore a backup with `agentalign restore FILE`."

MAX_RECORD_BYTES = 256 * 2**20
"""Longest JSON text of one record; both databases end at 1 GB, search text included."""

EXCERPT = 140
"""Characters of a run's first user message that a list shows."""

_TURN = struct.Struct("<iiii")


def record_columns(record: Record, what: str) -> Row:
    """The record as JSON text that any database takes and `read` reads back unaltered, and the digest of that text."""
    try:
        text = record.model_dump_json()
    except ValueError:  # lone surrogates: pydantic writes UTF-8 only
        text = json.dumps(record.model_dump(mode="python"), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    if len(text) > MAX_RECORD_BYTES:
        raise DataError(f"{what} is {len(text) / 2**20:.0f} MiB of JSON; {MAX_RECORD_BYTES // 2**20} MiB are the most. Shorten it.")
    return {"record": text, "digest": _digest(text.encode())}


def read(cls: type[R], text: object, digest: object, what: str) -> R:
    """The record as it was stored; StoreError where it was damaged."""
    # SQLite's columns take any type, and damage makes use of it.
    if not isinstance(text, str) or digest != _digest(text.encode()):
        raise StoreError(f"{what} is damaged in the store: its digest does not match. {RESTORE}")
    try:
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            return cls.model_validate(json.loads(text))
    except ValueError as error:
        raise StoreError(f"{what} cannot be read from the store ({_first_line(error)}). {RESTORE}") from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _first_line(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        return str(error.errors(include_url=False)[0]["msg"])
    return str(error).splitlines()[0]


def name(value: str, what: str) -> str:
    """A name as a column can hold it; DataError where it cannot."""
    if len(value) > NAME_LENGTH:
        raise DataError(f"{what} has {len(value)} characters; a name may have {NAME_LENGTH}. Shorten it.")
    if not storable(value):
        raise DataError(f"{what} is {value!a}; NUL characters and lone surrogates cannot stand in a name. Remove them.")
    return value


def storable(value: str) -> bool:
    """Whether a text column of both databases takes the value unaltered."""
    return "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)


def folded(text: str) -> str:
    """Text as it is searched: case removed by Python, so that both databases find the same; what they refuse is written as an escape."""
    return text.casefold().replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def tool_key(tool: str) -> str:
    """A tool's name as the `calls` table holds it. Models invent names of any length and content: they are cut, never refused."""
    return tool.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")[:NAME_LENGTH]


def trajectory_row(trajectory: Trajectory) -> Row:
    """The short row of `trajectories`."""
    what = f"trajectory {trajectory.id}: its"
    return {
        "id": trajectory.id,
        "taskset": name(trajectory.taskset, f"{what} taskset"),
        "task_id": None if trajectory.task_id is None else name(trajectory.task_id, f"{what} task id"),
        "family": name(trajectory.family, f"{what} family"),
        "split": name(trajectory.split, f"{what} split"),
        "policy": name(trajectory.origin.reference, f"{what} origin"),
        "origin_kind": trajectory.origin.kind,
        "stop_reason": trajectory.stop_reason.value,
        "content_digest": trajectory.content_digest,
        "n_steps": len(trajectory.steps),
        "n_calls": sum(len(step.message.tool_calls) for step in trajectory.steps),
        "seconds": trajectory.seconds,
        "created": name(trajectory.created, f"{what} time") or now(),
        "parent": None if trajectory.parent is None else name(trajectory.parent[0], f"{what} parent"),
        "n_errors": sum(message.error or bool(message.malformed) for message in trajectory.messages),
        "excerpt": excerpt(next((message.content for message in trajectory.messages if message.role == "user"), "")),
    }


def excerpt(text: str) -> str:
    """The beginning of a text as ASCII JSON, which any column takes unaltered."""
    return json.dumps(text[:EXCERPT])


def read_excerpt(stored: str) -> str:
    """The text of `excerpt`."""
    return str(json.loads(stored))


def body_row(trajectory: Trajectory) -> Row:
    """The long texts: the whole record, and what a text search looks at."""
    parts = []
    for message in trajectory.messages:
        parts += [message.content, message.reasoning]
        for call in message.tool_calls:
            parts += [call.name, call.arguments]
    search = folded("\n".join(part for part in parts if part))
    return {**record_columns(trajectory, f"trajectory {trajectory.id}"), "search": search}


def called_tools(trajectory: Trajectory) -> set[str]:
    """Keys of the tools that the agent called."""
    return {tool_key(call.name) for step in trajectory.steps for call in step.message.tool_calls}


def score_row(score: Score) -> Row:
    """The row of `scores`."""
    what = f"score {score.id!a} on {score.criterion!a}"
    return {
        "id": name(score.id, f"id of {what}"),
        "trajectory": name(score.trajectory, f"trajectory of {what}"),
        "criterion": name(score.criterion, f"criterion of {what}"),
        "person": name(score.rater, f"rater of {what}") if score.rater_kind == "human" else None,
        **record_columns(score, what),
    }


def preference_row(preference: Preference) -> Row:
    """The row of `preferences`."""
    what = f"preference {preference.id!a}"
    return {
        "id": name(preference.id, f"id of {what}"),
        "taskset": name(preference.taskset, f"taskset of {what}"),
        "criterion": name(preference.criterion, f"criterion of {what}"),
        "source": preference.source,
        "person": name(preference.rater, f"rater of {what}") if preference.source == "human" else None,
        "item": None if preference.pair is None else name(preference.pair, f"items of {what}"),
        **record_columns(preference, what),
    }


def training_row(training: Training) -> Row:
    """The row of `trainings`."""
    what = f"training {training.id!a}"
    return {
        "id": name(training.id, f"id of {what}"),
        "taskset": name(training.taskset, f"taskset of {what}"),
        "adapter": name(training.adapter, f"adapter of {what}"),
        **record_columns(training, what),
    }


def token_row(record: TokenRecord) -> Row:
    """The row of `tokens`, still with the trajectory's id in place of its number."""
    data = _pack(record)
    base = name(record.base, "base of a token record")
    return {"trajectory": name(record.trajectory, "trajectory of a token record"), "base": base, "data": data, "digest": _seal(base, data)}


def _seal(base: str, data: bytes) -> str:
    return _digest(base.encode() + b"\0" + data)


def _pack(record: TokenRecord) -> bytes:
    """Token ids as int32 and log-probabilities as float32, little-endian, zlib-packed. Log-probabilities lose what float32 cannot hold."""
    parts = []
    for turn in record.turns:
        parts.append(_TURN.pack(turn.message_index, len(turn.context), len(turn.completion), len(turn.logprobs)))
        try:
            parts.append(_little(array("i", (*turn.context, *turn.completion))).tobytes())
        except OverflowError as error:
            raise DataError(f"tokens of trajectory {record.trajectory} hold an id beyond 32 bits. Record the tokenizer's ids.") from error
        logprobs = array("f", turn.logprobs)
        if not all(map(math.isfinite, logprobs)):
            raise DataError(f"tokens of trajectory {record.trajectory} hold a log-probability beyond float32. Record nats.")
        parts.append(_little(logprobs).tobytes())
    return zlib.compress(b"".join(parts))


def read_tokens(trajectory: str, base: object, data: object, digest: object) -> TokenRecord:
    """The tokens as they were stored; StoreError where they were damaged."""
    if not isinstance(base, str) or not isinstance(data, bytes) or digest != _seal(base, data):
        raise StoreError(f"tokens of trajectory {trajectory} are damaged in the store: their digest does not match. {RESTORE}")
    raw, turns, at = zlib.decompress(data), [], 0
    while at < len(raw):
        message_index, n_context, n_completion, n_logprobs = _TURN.unpack_from(raw, at)
        at += _TURN.size
        middle, end = at + 4 * (n_context + n_completion), at + 4 * (n_context + n_completion + n_logprobs)
        ids, logprobs = _little(array("i", raw[at:middle])), _little(array("f", raw[middle:end]))
        at = end
        context, completion = tuple(ids[:n_context]), tuple(ids[n_context:])
        turns.append(TurnTokens(message_index=message_index, context=context, completion=completion, logprobs=tuple(logprobs)))
    return TokenRecord(trajectory=trajectory, base=base, turns=tuple(turns))


def _little(values: "array[Any]") -> "array[Any]":
    if sys.byteorder == "big":
        values.byteswap()
    return values

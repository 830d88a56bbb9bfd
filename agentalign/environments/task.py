"""A task: what one run is about, as a record."""

import json

from pydantic import Field, JsonValue, field_validator

from agentalign.records.base import Record, canonical_json


class Task(Record):
    """One thing to do. What it means is between the team's generator, environment, expert and criteria; the house reads only the labels."""

    id: str = Field(min_length=1, max_length=200)
    split: str
    """"train", "dev" or "test"."""
    family: str = ""
    """Kind of task, for per-family figures."""
    unseen: bool = False
    """Its family never occurs in training; reported apart."""
    tags: tuple[str, ...] = ()
    """"expert" marks tasks whose expert run may be shown to SFT."""
    data: str = "{}"
    """Everything else as JSON text: an object. `branch` names the side of a judgement; `prompt` is what a stateless environment says."""

    @field_validator("data", mode="before")
    @classmethod
    def _text(cls, data: JsonValue) -> str:
        value = json.loads(data) if isinstance(data, str) else data
        if not isinstance(value, dict):
            raise ValueError("data must be a JSON object.")
        return canonical_json(value)

    @property
    def values(self) -> dict[str, JsonValue]:
        """The data, parsed anew at each access: nobody can change a task."""
        parsed: dict[str, JsonValue] = json.loads(self.data)
        return parsed

    @property
    def branch(self) -> str:
        """The side of a judgement that is right here; empty where the family has one side only."""
        return str(self.values.get("branch", ""))

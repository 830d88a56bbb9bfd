"""What all records share: frozen, strict about unknown fields, and hashed over canonical JSON."""

import hashlib
import json
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, JsonValue


class Record(BaseModel):
    """Frozen data; an unknown field is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def canonical_json(value: JsonValue) -> str:
    """One text per value: sorted keys, no spaces, real characters; NaN and infinity are refused with ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: JsonValue) -> str:
    """First 32 hex digits (128 bits) of the sha256 over canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def now() -> str:
    """UTC time as ISO 8601 with microseconds, the form all records store."""
    return datetime.now(UTC).isoformat(timespec="microseconds")

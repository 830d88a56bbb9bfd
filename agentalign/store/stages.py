"""Which version of an adapter holds which stage: one file, replaced in one step, whose history only grows.

Pure functions from stages to stages; the registry reads, locks and writes. Surprise: a canary goes by sessions, not by requests: which
of production and candidate answers is a hash of adapter and session, so a conversation never changes its agent halfway.
"""

import hashlib
from pathlib import Path
from typing import Literal

from agentalign.errors import RegistryError
from agentalign.records.adapter import GateReport
from agentalign.records.base import Record, now
from agentalign.store.files import write_whole

STAGES = ("production", "candidate", "previous")
FILE = "stages.json"


class StageChange(Record):
    """One line of an adapter's history."""

    action: Literal["promote", "roll_back", "canary"]
    stage: str
    version: int
    content: str = ""
    """Content hash of the version; empty on lines from before it was kept."""
    replaced: int | None
    """The version that held the stage before."""
    weight: float | None = None
    """For a canary: the share of the sessions that the candidate answers from now on."""
    gate: GateReport | None = None
    """The report it was promoted on; None for a roll back."""
    time: str


class Stages(Record):
    """Content of stages.json."""

    stages: dict[str, int] = {}
    canary: float = 0.0
    """Share of the sessions that the candidate answers."""
    highest: int = 0
    """The highest version that was ever saved: a number is never given twice."""
    history: tuple[StageChange, ...] = ()


def read(home: Path) -> Stages:
    """The stages of the adapter in this folder; none where nothing was promoted."""
    try:
        return Stages.model_validate_json((home / FILE).read_bytes())
    except FileNotFoundError:
        return Stages()
    except (OSError, ValueError) as error:
        raise RegistryError(
            f"{home / FILE} cannot be read, so the stages of {home.name} are unknown. Put back a copy, or delete it and promote anew."
        ) from error


def write(home: Path, held: Stages) -> None:
    """Replace the file in one step."""
    write_whole(home / FILE, held.model_dump_json(indent=2) + "\n")


def after_promotion(held: Stages, stage: str, version: int, gate: GateReport, content: str) -> Stages:
    """With a version in its new stage; what was in production becomes previous, and a new candidate answers nobody yet."""
    before = held.stages.get("production")
    stages: dict[str, int] = {**held.stages, stage: version}
    if stage == "production":
        if before is not None and before != version:
            stages["previous"] = before
        if stages.get("candidate") == version:
            del stages["candidate"]
    change = StageChange(
        action="promote", stage=stage, version=version, content=content, replaced=held.stages.get(stage), gate=gate, time=now()
    )  # fmt: skip
    keeps = stages.get("candidate") is not None and stages.get("candidate") == held.stages.get("candidate")
    return _with(held, stages, change, held.canary if keeps else 0.0)


def after_roll_back(held: Stages, previous: int) -> Stages:
    """With the previous version in production again."""
    stages = {name: version for name, version in held.stages.items() if name != "previous"} | {"production": previous}
    change = StageChange(action="roll_back", stage="production", version=previous, replaced=held.stages.get("production"), time=now())
    return _with(held, stages, change, held.canary)


def after_canary(held: Stages, weight: float) -> Stages:
    """With another share for the candidate."""
    candidate = held.stages.get("candidate")
    if not 0 <= weight <= 1:
        raise RegistryError(f"a canary's share is from 0 to 1, not {weight:g}. Give e.g. 0.05 for every twentieth session.")
    if weight == held.canary == 0:
        return held  # nobody has a share, so there is nothing to take back
    if candidate is None or "production" not in held.stages:
        raise RegistryError("a canary needs a version in production and a candidate beside it. Promote both first.")
    change = StageChange(action="canary", stage="candidate", version=candidate, replaced=candidate, weight=weight, time=now())
    return _with(held, held.stages, change, weight)


def stage_of(held: Stages, name: str, session: str) -> str:
    """ "candidate" for the canary's share of the sessions, else "production"; the same for a session as long as the share is."""
    drawn = int.from_bytes(hashlib.sha256(f"{name}\0{session}".encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
    return "candidate" if drawn < held.canary and "candidate" in held.stages else "production"


def _with(held: Stages, stages: dict[str, int], change: StageChange, canary: float) -> Stages:
    return held.model_copy(update={"stages": stages, "canary": canary, "history": (*held.history, change)})

"""What was found out about a version after it was saved: kept in files beside its folder, because the version itself never changes.

`desk/3.checks.json` holds its deploy-checks, `desk/3.evaluations.json` the summaries of its evaluations, `desk/3.golden.json` the golden
prompts of a version that was saved without; all go into git with the card.
Surprise: a report is about the content it names and not about a number. Where the files behind `desk@3` are others, it says nothing.
"""

from pathlib import Path
from typing import TypeVar

from agentalign.errors import RegistryError
from agentalign.records.adapter import EvaluationSummary, GateReport
from agentalign.records.base import Record
from agentalign.records.golden import Golden
from agentalign.store.files import write_whole

MOST_CHECKS = 50
"""Of one version; older ones are let go."""


class Checks(Record):
    """Content of <version>.checks.json."""

    checks: tuple[GateReport, ...] = ()
    """Oldest first; the newest of a content is the one that counts."""


class Evaluations(Record):
    """Content of <version>.evaluations.json."""

    evaluations: tuple[EvaluationSummary, ...] = ()
    """The newest of every plan, oldest first."""


class Later(Record):
    """Content of <version>.golden.json."""

    content: str = ""
    """Content hash of the version that they are of."""
    golden: Golden | None = None


_Kind = TypeVar("_Kind", Checks, Evaluations, Later)


def read_checks(folder: Path) -> Checks:
    """The deploy-checks of the version in this folder."""
    return _read(folder, "checks", Checks)


def read_evaluations(folder: Path) -> Evaluations:
    """The evaluations of the version in this folder."""
    return _read(folder, "evaluations", Evaluations)


def read_golden(folder: Path) -> Later:
    """The golden prompts that were recorded of the version in this folder."""
    return _read(folder, "golden", Later)


def keep(folder: Path, content: str, report: GateReport | EvaluationSummary | Golden) -> None:
    """Add a deploy-check; put an evaluation in place of the last by the same plan, golden prompts in place of older ones.

    The caller holds the adapter's lock.
    """
    if isinstance(report, GateReport):
        _write(folder, "checks", Checks(checks=(*read_checks(folder).checks, report)[-MOST_CHECKS:]))
    elif isinstance(report, EvaluationSummary):
        held = [one for one in read_evaluations(folder).evaluations if one.plan != report.plan]
        _write(folder, "evaluations", Evaluations(evaluations=(*held, report)))
    else:
        _write(folder, "golden", Later(content=content, golden=report))


def _file(folder: Path, what: str) -> Path:
    return folder.with_name(f"{folder.name}.{what}.json")


def _read(folder: Path, what: str, kind: type[_Kind]) -> _Kind:
    file = _file(folder, what)
    try:
        return kind.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError) as error:
        raise RegistryError(f"{file} cannot be read, so the {what} in it are unknown. Put back a copy, or delete it.") from error


def _write(folder: Path, what: str, held: Checks | Evaluations | Later) -> None:
    write_whole(_file(folder, what), held.model_dump_json(indent=2) + "\n")

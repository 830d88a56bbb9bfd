"""What was found out about a version after it was saved: kept in files beside its folder, because the version itself never changes.

`desk/3.checks.json` holds its deploy-checks, `desk/3.evaluations.json` the summaries of its evaluations; both go into git with the card.
Surprise: a report is about the content it names and not about a number. Where the files behind `desk@3` are others, it says nothing.
"""

from pathlib import Path
from typing import TypeVar

from agentalign.errors import RegistryError
from agentalign.records.adapter import EvaluationSummary, GateReport
from agentalign.records.base import Record
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


_Kind = TypeVar("_Kind", Checks, Evaluations)


def read_checks(folder: Path) -> Checks:
    """The deploy-checks of the version in this folder."""
    return _read(folder, "checks", Checks)


def read_evaluations(folder: Path) -> Evaluations:
    """The evaluations of the version in this folder."""
    return _read(folder, "evaluations", Evaluations)


def keep_check(folder: Path, report: GateReport) -> None:
    """Add a deploy-check; the caller holds the adapter's lock."""
    held = read_checks(folder).checks
    _write(folder, "checks", Checks(checks=(*held, report)[-MOST_CHECKS:]))


def keep_evaluation(folder: Path, summary: EvaluationSummary) -> None:
    """Add an evaluation in place of the last by the same plan of the same content; the caller holds the adapter's lock."""
    held = [one for one in read_evaluations(folder).evaluations if one.plan != summary.plan]
    _write(folder, "evaluations", Evaluations(evaluations=(*held, summary)))


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


def _write(folder: Path, what: str, held: Checks | Evaluations) -> None:
    write_whole(_file(folder, what), held.model_dump_json(indent=2) + "\n")

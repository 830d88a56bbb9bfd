"""How far a taskset's raters agree, from its stored scores and preferences: what the page and the command line show."""

from collections.abc import Sequence

from agentalign.records.base import Record
from agentalign.records.criterion import Criterion
from agentalign.scoring.cases import Panel, panel
from agentalign.scoring.habits import Habits, habits
from agentalign.scoring.raters import QuestionAgreement, questions
from agentalign.store.store import Store


class AgreementReport(Record):
    """Questions and people."""

    taskset: str
    questions: tuple[QuestionAgreement, ...]
    people: tuple[Habits, ...]


def stored_panel(store: Store, taskset: str) -> Panel:
    """Everyone's answers about those of a taskset's runs that people judged, and about its pairs.

    Checks answer about every run there is, and a million of them would be held here to be compared with nobody.
    """
    return panel(store.scores(taskset=taskset, seen_by_people=True), store.preferences(taskset))


def agreement_report(found: Panel, taskset: str, criteria: Sequence[Criterion]) -> AgreementReport:
    """The whole report."""
    return AgreementReport(taskset=taskset, questions=tuple(questions(found, criteria)), people=tuple(habits(found, criteria)))

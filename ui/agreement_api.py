"""Routes of the agreement screen: how far raters agree, the cases behind a figure, and a lead's decision on one.

All of it is for leads: it shows everyone's answers side by side. A decision is one more record, by whom and why, and overwrites nothing.
Surprise: a pair is decided blind, on sides drawn for this lead as for any rater; what the others chose is told in those sides.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import Depends, FastAPI, HTTPException, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.responses import Response

from agentalign.errors import DataError
from agentalign.records.base import digest
from agentalign.records.criterion import Criterion, Score
from agentalign.records.preference import Item, Preference
from agentalign.scoring.agreement_report import AgreementReport, agreement_report, stored_panel
from agentalign.scoring.cases import Case, Panel, Question, Rater, panel
from agentalign.scoring.disputes import Dispute, dispute, disputes
from agentalign.scoring.gold import gold_rows
from agentalign.scoring.raters import Machine
from agentalign.ui import align, compare, hidden, views
from agentalign.ui.api import House, Key, RunId, Saved, ScoreIn, ascii_json, score_of, stored_run
from agentalign.ui.auth import Person, require_lead
from agentalign.ui.compare_api import own_draw

MOST_CASES = 200

Lead = Annotated[str, Depends(require_lead)]
Taskset = Annotated[str, Query(max_length=500)]
Why = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4000)]


class QuestionQuery(BaseModel):
    """Which question of a taskset."""

    model_config = ConfigDict(extra="forbid")

    taskset: Annotated[str, Field(max_length=500)]
    criterion: Annotated[str, Field(max_length=100)]
    kind: Literal["mark", "pair"]


class CasesQuery(QuestionQuery):
    """Whose cases: of all people, or those that both of two raters answered. A rater is "kind:name"."""

    first: Annotated[str, Field(max_length=600)] = ""
    second: Annotated[str, Field(max_length=600)] = ""


class CaseQuery(QuestionQuery):
    """One case: the run and step, or two runs."""

    run: RunId
    step: Annotated[int | None, Field(ge=0)] = None
    other: RunId | None = None


class CasesView(BaseModel):
    """Cases, those to decide first."""

    cases: list[Dispute]
    total: int


class CaseView(BaseModel):
    """A case with all that a decision needs."""

    case: Dispute
    criterion: views.CriterionView | None
    run: views.BlindRun | None = None
    draw: str | None = None
    """Of a pair: the token that a decision is given under."""
    swapped: bool = False
    """Of a pair: whether the case's first item is on the right."""
    shared: int = 0
    rows: list[align.Row] = []
    left: views.BlindRun | None = None
    right: views.BlindRun | None = None


class DecisionIn(ScoreIn):
    """What holds for a run or step, and why."""

    note: Why


class PairDecisionIn(BaseModel):
    """Which side of a drawn pair is better, and why."""

    model_config = ConfigDict(extra="forbid")

    key: Key
    draw: RunId
    criterion: Annotated[str, Field(max_length=100)]
    choice: compare.Choice
    note: Why


def add(app: FastAPI, house: House) -> None:
    """Add the routes."""
    reports: dict[str, tuple[object, AgreementReport]] = {}
    """Per taskset the last report and what it was made from: intervals over thousands of marks take seconds."""

    @app.get("/api/agreement")
    def agreement(lead: Lead, taskset: Taskset) -> Response:
        """The report, whose criteria it is about, and who was right where the answer is known.

        No single case is named that is about a run which this lead rates blind.
        """
        criteria, missing = house.criteria(taskset)
        found = stored_panel(house.store, taskset)
        kept = reports.get(taskset)
        if kept is None or kept[0] != (found, criteria):
            kept = reports[taskset] = ((found, criteria), agreement_report(found, taskset, criteria))
        gold = [row._asdict() for row in gold_rows(house.store.queue_items.gold_marks(taskset))]
        told = without_blind(house, lead, kept[1])
        return ascii_json({**told.model_dump(), "criteria_missing": missing, "gold": gold})

    @app.get("/api/agreement/cases", response_model=CasesView)
    def cases(lead: Lead, wanted: Annotated[CasesQuery, Query()]) -> Response:
        """The cases behind a figure, less those about runs that this lead rates blind."""
        found = stored_panel(house.store, wanted.taskset)
        between = [_rater(text) for text in (wanted.first, wanted.second) if text]
        listed = disputes(found, _question(wanted), _criterion(house, wanted.taskset, wanted.criterion), between)
        held = hidden.hidden_runs(house.store, Person(lead, "lead"), {item.trajectory for one in listed for item in one.items})
        told = [one for one in listed if held.keys().isdisjoint(item.trajectory for item in one.items)]
        return ascii_json(CasesView(cases=told[:MOST_CASES], total=len(told)))

    @app.get("/api/agreement/case", response_model=CaseView)
    def case(lead: Lead, wanted: Annotated[CaseQuery, Query()]) -> Response:
        """One case, to decide."""
        _refuse_blind(house, lead, [wanted.run, *([wanted.other] if wanted.other else [])])
        return ascii_json(case_view(house, wanted, lead))

    @app.post("/api/decisions", response_model=Saved)
    def decide(lead: Lead, decision: DecisionIn) -> Response:
        """Save a decision on a run or step."""
        _refuse_blind(house, lead, [decision.trajectory])
        criteria, missing = house.criteria(stored_run(house.store, decision.trajectory).taskset)
        score = decided_score(decision, criteria, missing, lead)
        report = house.store.add_scores([score])
        return ascii_json(Saved(id=score.id, known=report.stored == 0))

    @app.post("/api/decisions/pair", response_model=Saved)
    def decide_pair(lead: Lead, decision: PairDecisionIn) -> Response:
        """Save a decision on a pair."""
        preference = decided_pair(house, decision, lead)
        _refuse_blind(house, lead, [item.trajectory for item in preference.items])
        report = house.store.add_preferences([preference])
        return ascii_json(Saved(id=preference.id, known=report.stored == 0))


def without_blind(house: House, lead: str, report: AgreementReport) -> AgreementReport:
    """The report, less the single cases about runs that this lead rates blind."""
    machines = [machine for question in report.questions for machine in question.machines]
    named = {item.trajectory for machine in machines for one in machine.worst for item in one.items}
    held = hidden.hidden_runs(house.store, Person(lead, "lead"), named)
    if not held:
        return report

    def told(machine: Machine) -> Machine:
        worst = tuple(one for one in machine.worst if held.keys().isdisjoint(item.trajectory for item in one.items))
        return machine.model_copy(update={"worst": worst})

    questions = tuple(one.model_copy(update={"machines": tuple(map(told, one.machines))}) for one in report.questions)
    return report.model_copy(update={"questions": questions})


def _refuse_blind(house: House, lead: str, runs: Sequence[str]) -> None:
    """409 where a lead asks about a run that is open in their own queue: who has seen the answers cannot give one of their own."""
    for run in runs:
        hidden.refuse_hidden(house.store, Person(lead, "lead"), run)


def decided_score(decision: DecisionIn, criteria: Sequence[Criterion], missing: str, lead: str) -> Score:
    """The decision as a record; DataError where the criteria do not allow it."""
    mark = score_of(ScoreIn(**decision.model_dump()), criteria, missing, lead)
    return mark.model_copy(update={"rater_kind": "adjudicator", "id": digest(["decision", lead, decision.key])})


def decided_pair(house: House, decision: PairDecisionIn, lead: str) -> Preference:
    """The decision as a record."""
    drawn = own_draw(house, decision.draw, lead)
    if decision.criterion != "overall" and _criterion(house, drawn.taskset, decision.criterion) is None:
        raise DataError(f"there is no criterion '{decision.criterion}' in force here. Reload the page.")
    choice = compare.preference_of(drawn, decision.choice, id=digest(["decision", lead, decision.key]), note=decision.note)
    return choice.model_copy(update={"source": "adjudicator", "criterion": decision.criterion})


def case_view(house: House, wanted: CaseQuery, lead: str) -> CaseView:
    """The case with the run, or with both sides of the pair as drawn for this lead."""
    criterion = _criterion(house, wanted.taskset, wanted.criterion)
    is_mark = wanted.kind == "mark"
    if is_mark:
        found = panel(house.store.scores([wanted.run], taskset=wanted.taskset), ())
    else:
        found = panel((), house.store.preferences(wanted.taskset))
    card = None if criterion is None else views.criterion_view(criterion)
    if is_mark:
        case = _known(found, Case(_question(wanted), (Item(wanted.run, wanted.step),)))
        return CaseView(case=dispute(found, case, criterion), criterion=card, run=views.blind_view(stored_run(house.store, wanted.run)))
    if wanted.other is None or wanted.step is not None:
        raise DataError(
            "steps that were compared are listed, but only pairs of whole runs are decided here. Decide the runs they belong to."
        )
    first, second = sorted((wanted.run, wanted.other))
    case = _known(found, Case(_question(wanted), (Item(first), Item(second))))
    drawn = compare.draw_pair(house.store, lead, (stored_run(house.store, first), stored_run(house.store, second)))
    left, right = (views.blind_view(house.store.trajectory(id)) for id in (drawn.left, drawn.right))
    return CaseView(
        case=dispute(found, case, criterion),
        criterion=card,
        draw=drawn.id,
        swapped=drawn.left != first,
        shared=align.shared_entries(left.timeline, right.timeline),
        rows=align.align(left.timeline, right.timeline),
        left=left,
        right=right,
    )


def _known(found: Panel, case: Case) -> Case:
    if case not in found.answers:
        raise HTTPException(404, "nobody answered this question about this run. Reload the list of cases.")
    return case


def _question(wanted: QuestionQuery) -> Question:
    return Question(wanted.criterion, wanted.kind)


def _rater(text: str) -> Rater:
    kind, _, name = text.partition(":")
    return Rater(kind, name)


def _criterion(house: House, taskset: str, key: str) -> Criterion | None:
    return next((criterion for criterion in house.criteria(taskset)[0] if criterion.key == key), None)

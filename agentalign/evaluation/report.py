"""Reports: one HTML page that needs nothing else, and a JSON file beside it with the same figures.

`write_report` shows one evaluation or a comparison, `write_demo_report` the whole way from the base model on. The page loads nothing
(its policy forbids it), follows the reader's light or dark setting, and escapes every word a team or a model wrote.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import JsonValue

from agentalign.errors import DataError
from agentalign.evaluation.compare import Comparison, compare
from agentalign.evaluation.curves import Metrics, success_plot, time_plot, training_sections
from agentalign.evaluation.evaluate import Evaluation, TaskResult
from agentalign.evaluation.statistics import Rate
from agentalign.evaluation.tables import (
    Column,
    Section,
    Tile,
    comparison_table,
    cost_table,
    criteria_table,
    duration,
    family_changes_table,
    family_table,
    interval,
    overview_table,
    percent,
    points,
    tone,
    unseen_families,
)
from agentalign.records.base import now

LISTED_TASKS = 60
"""Changed or failed tasks named in a report; the JSON has all."""


class ReportPaths(NamedTuple):
    """The two files of a report."""

    html: Path
    json: Path


@dataclass(frozen=True)
class StageResult:
    """One stage of the demo, evaluated or not."""

    name: str
    """"base", "sft", "reward", "dpo", "ppo", or the name of a control."""
    adapter: str
    """"name@version", or "base"."""
    evaluation: Evaluation | None
    """None for a stage that makes no policy, such as the reward model."""
    seconds: float
    """Everything the stage took: sampling, training, its dev gate; not its evaluation on the held-out split."""
    metrics: Metrics = ()
    notes: Sequence[str] = ()
    """Such as "dev gate rolled back to step 8"."""
    compared_to: str = ""
    """Name of the stage it is compared to; the evaluated stage before it that is no control where empty."""
    control: bool = False
    """Only there to compare with: never what a later stage is compared to unless it says so."""


def write_report(folder: Path, evaluation: Evaluation, against: Evaluation | None = None) -> ReportPaths:
    """report.html and report.json of one evaluation, or of it against another that came before."""
    columns: list[Column] = [(one.adapter, one) for one in (against, evaluation) if one is not None]
    if len(columns) == 2 and columns[0][0] == columns[1][0]:
        columns = [(f"{columns[0][0]} (before)", columns[0][1]), (f"{columns[1][0]} (after)", columns[1][1])]
    comparison = compare(against, evaluation) if against else None
    sections = [Section("Overview", tables=(overview_table(columns),))]
    if comparison:
        sections.append(Section("Is it better?", tables=(comparison_table([(" → ".join(name for name, _ in columns), comparison)]),)))
    sections += [
        *([Section("Families", tables=(family_table(columns, comparison),))] if evaluation.families else []),
        Section("Criteria", tables=(criteria_table(columns, comparison),)),
        Section("Runs", tables=(cost_table(columns),)),
        *_task_lists(evaluation, against),
        _reading(evaluation, [f"{name}: {value}" for name, value in evaluation.settings.items()]),
    ]
    title = f"{evaluation.adapter} on {evaluation.taskset}/{evaluation.split}"
    if against:
        title = f"{evaluation.adapter} against {against.adapter} on {evaluation.taskset}/{evaluation.split}"
    html = _page(title, _lead(columns), _tiles(columns, {columns[-1][0]: comparison} if comparison else {}), sections)
    data: dict[str, JsonValue] = {
        "evaluation": evaluation.model_dump(mode="json"),
        "against": against.model_dump(mode="json") if against else None,
        "comparison": comparison.model_dump(mode="json") if comparison else None,
    }
    return _write(folder, html, data)


def write_demo_report(
    folder: Path, stages: Sequence[StageResult], *, base: str, seconds: float, title: str = "", notes: Sequence[str] = ()
) -> ReportPaths:
    """report.html and report.json of all stages.

    Args:
        base: the base model as configured.
        seconds: wall-clock time of the whole demo.
        notes: sentences for the foot of the page (where the runs are, how to load the adapter).
    """
    evaluated = [(stage, stage.evaluation) for stage in stages if stage.evaluation is not None]
    if not evaluated:
        raise DataError("None of the stages was evaluated, so there is nothing to report. Evaluate at least the base model.")
    columns: list[Column] = [(stage.name, one) for stage, one in evaluated]
    comparisons = _comparisons(stages)
    way: list[Column] = [(stage.name, one) for stage, one in evaluated if not stage.control]
    if not way or len({name for name, _ in columns}) < len(columns):
        raise DataError("Stages of a report need different names and at least one that is no control.")
    plots = (success_plot(columns), time_plot([(stage.name, stage.seconds) for stage in stages]))
    controls = [stage.name for stage in stages if stage.control]
    changes = (family_changes_table(list(comparisons.values()), unseen_families(columns)),) if comparisons else ()
    spent = [stage.seconds for stage, _ in evaluated]
    sections = [
        Section("Stages", tables=(overview_table(columns, spent, controls),), plots=plots, wide=True),
        *([Section("Does each stage help?", _HELP, tables=(comparison_table(list(comparisons.values())),))] if comparisons else []),
        *([Section("Families", _FAMILIES, tables=(family_table(columns, None), *changes))] if columns[0][1].families else []),
        Section("Criteria", tables=(criteria_table(columns),)),
        *training_sections([(stage.name, stage.metrics) for stage in stages]),
        Section("Runs", tables=(cost_table(columns),)),
        _reading(columns[0][1], [*(f"{stage.name}: {note}" for stage in stages for note in stage.notes), *notes]),
    ]
    taskset = columns[0][1].taskset
    lead = f"{_lead(way)} Base model {base}; the whole demo took {duration(seconds)}."
    html = _page(
        title or f"{taskset}: from the base model to {way[-1][0]}",
        lead,
        _tiles(way, {name: one for name, (_, one) in comparisons.items()}),
        sections,
    )
    return _write(folder, html, _demo_data(stages, list(comparisons.values()), base=base, seconds=seconds))


_HELP = (
    "Each stage against the one it continues, on the same tasks. A difference is shown only where its interval lies wholly on one side "
    "of 0; everything else is noise as far as these tasks can tell."
)
_FAMILIES = "A total hides a family that got worse: read the changes of each."


def _comparisons(stages: Sequence[StageResult]) -> dict[str, tuple[str, Comparison]]:
    """Per stage its comparison and a label: against the stage it names, or the one before it."""
    found: dict[str, tuple[str, Comparison]] = {}
    done: dict[str, Evaluation] = {}
    last = ""
    for stage in stages:
        if stage.evaluation is None:
            continue
        reference = stage.compared_to or last
        if reference and reference not in done:
            known = ", ".join(done)
            raise DataError(
                f"Stage {stage.name} is to be compared to '{reference}', which was not evaluated before it. Evaluated: {known}."
            )
        if reference:
            found[stage.name] = (f"{reference} → {stage.name}", compare(done[reference], stage.evaluation))
        done[stage.name] = stage.evaluation
        last = last if stage.control else stage.name
    return found


def _lead(columns: Sequence[Column]) -> str:
    (first, one), (last, other) = columns[0], columns[-1]
    tasks = f"{one.headline.n} held-out tasks" if one.split == "test" else f"{one.headline.n} tasks of split {one.split}"
    what = " of families seen in training" if one.seen and one.unseen else ""
    if len(columns) == 1:
        return f"{first} succeeds on {percent(one.headline.success.mean)} of {tasks}{what}."
    change = f"from {percent(one.headline.success.mean)} ({first}) to {percent(other.headline.success.mean)} ({last})"
    return f"Success on {tasks}{what} went {change}."


def _tiles(columns: Sequence[Column], changes: Mapping[str, Comparison]) -> list[Tile]:
    tiles = []
    for name, one in columns:
        success = one.headline.success
        difference = changes[name].headline.success if name in changes else None
        text = f"{points(difference)} {difference.verdict}" if difference else ""
        colour = tone(difference) if difference else ""
        tiles.append(Tile(name, percent(success.mean), interval(success.low, success.high), text, colour))
    return tiles


def _task_lists(evaluation: Evaluation, against: Evaluation | None) -> list[Section]:
    """Tasks to look at: those that changed, or those that failed."""
    if against is None:
        failed = [result for result in evaluation.tasks if result.success < 1]
        return [Section("Tasks that did not always succeed", items=_named(failed))] if failed else []
    before = {result.task: result.success for result in against.tasks}
    shared = [result for result in evaluation.tasks if result.task in before]
    won = [result for result in shared if result.success > before[result.task]]
    lost = [result for result in shared if result.success < before[result.task]]
    return [Section(f"Tasks {word}", items=_named(some)) for word, some in (("lost", lost), ("won", won)) if some]


def _named(results: Sequence[TaskResult]) -> tuple[str, ...]:
    names = [f"{r.task} ({r.family}{'/' + r.branch if r.branch else ''})" if r.family else r.task for r in results[:LISTED_TASKS]]
    return (*names, *([f"and {len(results) - LISTED_TASKS} more, see the JSON"] if len(results) > LISTED_TASKS else []))


def _reading(evaluation: Evaluation, notes: Sequence[str]) -> Section:
    items = (
        f"Success means: {evaluation.success_means}.",
        "Samples of one task are averaged first; n counts tasks. Runs whose check broke are left out and counted as not scored.",
        f"Criteria in force: {', '.join(evaluation.criteria)}.",
        *evaluation.trouble,
        *notes,
    )
    return Section("How to read this", items=items)


def _demo_data(
    stages: Sequence[StageResult], comparisons: Sequence[tuple[str, Comparison]], *, base: str, seconds: float
) -> dict[str, JsonValue]:
    return {
        "seconds": seconds,
        "base": base,
        "stages": [_stage_data(stage, stage.evaluation) for stage in stages if stage.evaluation is not None],
        "comparisons": [{"name": name, **one.model_dump(mode="json")} for name, one in comparisons],
        "trainings": [{"name": s.name, "adapter": s.adapter, "seconds": s.seconds, "notes": list(s.notes)} for s in stages],
        "created": now(),
    }


def _stage_data(stage: StageResult, one: Evaluation) -> JsonValue:
    unseen = {result.family for result in one.tasks if result.unseen}
    groups: dict[str, JsonValue] = {group.name: {"n": group.n, **_rate_data(group.success)} for group in one.families}
    return {
        "name": stage.name,
        "adapter": stage.adapter,
        "split": one.split,
        "n": one.headline.n,
        "success": one.headline.success.mean,
        "ci": [one.headline.success.low, one.headline.success.high],
        "unseen_families": {"n": one.unseen.n, **_rate_data(one.unseen.success), "families": {f: groups[f] for f in sorted(unseen) if f}}
        if one.unseen
        else {},
        "criteria": {name: {"mean": r.mean, "ci": [r.low, r.high], "n": r.n} for name, r in one.headline.criteria.items()},
        "families": {name: value for name, value in groups.items() if name not in unseen},
        "all_tasks": {"n": one.everything.n, **_rate_data(one.everything.success)},
        "gate_failed": one.headline.gate_failed.mean if one.headline.gate_failed else None,
        "overall": one.headline.overall.mean if one.headline.overall else None,
        "success_means": one.success_means,
        "unscored": one.unscored,
        "seconds": stage.seconds,
        "control": stage.control,
        "notes": list(stage.notes),
    }


def _rate_data(rate: Rate) -> dict[str, JsonValue]:
    return {"success": rate.mean, "ci": [rate.low, rate.high]}


def _page(title: str, lead: str, tiles: Sequence[Tile], sections: Sequence[Section]) -> str:
    environment = Environment(
        loader=PackageLoader("agentalign.evaluation", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # Our own stylesheet and our own plots are the only markup; every other value is escaped.
    css = Markup((Path(__file__).parent / "report.css").read_text(encoding="utf-8"))
    footer = f"Made by agentalign, {now()[:16].replace('T', ' ')} UTC."
    template = environment.get_template("report.html.jinja")
    return template.render(title=title, lead=lead, tiles=tiles, sections=sections, css=css, footer=footer)


def _write(folder: Path, html: str, data: Mapping[str, JsonValue]) -> ReportPaths:
    """Both files, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = ReportPaths(folder / "report.html", folder / "report.json")
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    for path, content in zip(paths, (html, text), strict=True):
        part = path.with_name(path.name + ".part")
        part.write_text(content + "\n", encoding="utf-8", errors="backslashreplace")
        os.replace(part, path)
    return paths

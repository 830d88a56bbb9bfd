"""The queue's commands: who is to rate what, gold items, and how far it is."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from agentalign.cli_arguments import Commands, add_filters, add_json, at_least, command, run_filter, verbs
from agentalign.cli_output import say, show_json, show_table
from agentalign.config.project import Project
from agentalign.errors import DataError, UsageError

if TYPE_CHECKING:
    from agentalign.records.criterion import Criterion

InForce: TypeAlias = "Mapping[str, tuple[Criterion, ...]]"
"""Taskset -> its criteria as they are now."""


def add(commands: Commands) -> None:
    """Declare them."""
    examples = "agentalign queue add --taskset order_desk --overlap 3\nagentalign queue list --status held"
    queue = verbs(command(commands, "queue", "who is to rate what", examples=examples))
    parser = command(
        queue,
        "add",
        "put runs, or pairs of them, into the queue",
        run=_queue_add,
        more="Runs that are there get the new overlap. Urgent ones come first: where raters disagree, where the reward model wavers, or "
        "where a kind of task has few ratings.",
        examples=(
            "agentalign queue add --taskset order_desk --policy order_desk@2 --overlap 3\n"
            "agentalign queue add --taskset order_desk --pairs 2\n"
            "agentalign queue add --run 3fa9 --gold tone@1=5\n"
            "agentalign queue add --run 3fa9 --run 77c0 --pairs 1 --gold overall=3fa9"
        ),
    )
    parser.add_argument("--run", dest="ids", action="append", default=[], metavar="ID", help="this run; may be given again")
    add_filters(parser)
    parser.add_argument(
        "--overlap", type=at_least(1), default=1, metavar="N", help="so many different people rate each; default: %(default)s"
    )
    parser.add_argument(
        "--gold",
        action="append",
        default=[],
        metavar="C@V=X",
        help="the right answer: every rater is tested with it. Of a pair the better run's id, tie or both_bad, by a criterion or overall",
    )
    parser.add_argument(
        "--by", metavar="NAME", help="who knows the right answer, as they rate: they are not tested by it. Default: this machine's account"
    )
    parser.add_argument(
        "--pairs",
        type=at_least(1),
        metavar="N",
        help="pairs to compare instead: up to N of each task, by different makers first",
    )
    parser = command(queue, "list", "list what is in the queue, the most urgent first", run=_queue_list)
    parser.add_argument("--taskset", metavar="NAME")
    parser.add_argument("--status", choices=("open", "full", "held", "closed"))
    parser.add_argument("--limit", type=at_least(1), default=20, metavar="N", help="default: %(default)s")
    add_json(parser)
    for verb, status, help in (("open", "open", "let skipped or closed runs be rated"), ("close", "closed", "take runs out of the queue")):
        parser = command(queue, verb, help, run=_queue_status)
        parser.set_defaults(status=status)
        parser.add_argument("ids", nargs="+", metavar="ID", help="a run, or a pair as `queue list` shows it: ID+ID")
    add_json(command(queue, "gold", "show how people answered where the answer is known", run=_queue_gold))


def _queue_add(arguments: argparse.Namespace) -> None:
    from agentalign.environments.taskset import find_taskset, load_criteria
    from agentalign.scoring.to_compare import queue_pairs
    from agentalign.scoring.urgency import urgency
    from agentalign.store.accounts import own_name
    from agentalign.store.filters import RunFilter
    from agentalign.store.store import Store

    if arguments.by and not arguments.gold:
        raise UsageError("--by says who knows the right answer, and none is given. Say it by --gold, or leave --by out.")
    by = arguments.by or own_name()
    project = Project.find()
    with Store(project.store_url) as store:
        ids = named_runs(store, arguments) or matching_runs(store, arguments)
        criteria = {name: load_criteria(find_taskset(name, project.tasks) / "criteria.yaml") for name in _tasksets(store, ids)}
        if arguments.gold and arguments.pairs:
            added, changed = _add_gold_pair(store, ids, arguments.gold, criteria, by)
        else:
            overlap = arguments.overlap
            if arguments.pairs:
                among = RunFilter(ids=tuple(ids))
                added, changed = queue_pairs(store, among, criteria, per_task=arguments.pairs, overlap=overlap, newest=len(ids) or 1)
            else:
                urgent = urgency(store, ids, criteria)
                known = _gold(arguments.gold, criteria)
                added, changed = store.queue_items.add(ids, overlap=overlap, gold=known, gold_by=by, priority=urgent)
    say(f"{added} {'pairs' if arguments.pairs else 'runs'} added to the queue, {changed} changed.")


def _add_gold_pair(store: "object", ids: list[str], said: list[str], criteria: "InForce", by: str) -> tuple[int, int]:
    from agentalign.scoring.to_compare import refuse_incomparable
    from agentalign.store.store import Store

    assert isinstance(store, Store)
    if len(ids) != 2:
        raise UsageError(f"--gold is about one pair, and {len(ids)} runs are named. Name its two runs by --run ID --run ID.")
    first, second = (store.trajectory(id) for id in ids)
    refuse_incomparable(first, second)
    known = {}
    for text in said:
        criterion, _, answer = text.partition("=")
        if criterion != "overall" and "@" not in criterion:
            raise UsageError(
                f"--gold {text}: write overall, or the criterion with its version, such as {criterion}@1={answer or ids[0][:6]}."
            )
        if criterion != "overall":
            _asked(criterion, criteria)
        known[criterion] = answer.replace("_", " ") if answer in ("tie", "both_bad") else store.resolve_id(answer)
    return store.pairs.add([(ids[0], ids[1])], gold=known, gold_by=by)


def _tasksets(store: "object", ids: list[str]) -> set[str]:
    from agentalign.store.filters import RunFilter
    from agentalign.store.store import Store

    assert isinstance(store, Store)
    return {row.taskset for row in store.runs(RunFilter(ids=tuple(ids)), limit=len(ids) or 1).rows}


def named_runs(store: "object", arguments: argparse.Namespace) -> list[str]:
    """The runs that --run names; UsageError where a filter stands beside it, because nobody can know which of the two is meant."""
    from agentalign.store.filters import RunFilter
    from agentalign.store.store import Store

    if arguments.ids and run_filter(arguments) != RunFilter():
        raise UsageError("--run names single runs, and the filter beside it would be ignored. Give the one or the other.")
    assert isinstance(store, Store)
    return [store.resolve_id(id) for id in arguments.ids]


def matching_runs(store: "object", arguments: argparse.Namespace) -> list[str]:
    """The runs that the filter matches; UsageError where there is none, so that nobody means all by saying nothing."""
    from agentalign.store.filters import RunFilter
    from agentalign.store.store import Store

    wanted = run_filter(arguments)
    if wanted == RunFilter():
        raise UsageError("say which runs: --run ID, or a filter such as --taskset NAME.")
    assert isinstance(store, Store)
    return [run.id for run in store.trajectories(wanted)]


def _asked(key: str, criteria: "InForce") -> "list[Criterion]":
    """A criterion of each of the tasksets; DataError where raters of one would never meet it, so that nobody could be tested by it."""
    for taskset, known in criteria.items():
        if key not in [one.key for one in known]:
            names = ", ".join(one.key for one in known)
            raise DataError(f"{taskset} has no criterion {key} in force, so nobody would answer it. Name one of {names}.")
    return [one for known in criteria.values() for one in known if one.key == key]


def _gold(said: list[str], criteria: "InForce") -> dict[str, float]:
    found = {}
    for text in said:
        criterion, _, value = text.partition("=")
        try:
            found[criterion] = float(value)
        except ValueError:
            raise UsageError(f"--gold {text}: write the criterion with its version and the right value, such as tone@1=5.") from None
        if "@" not in criterion:
            raise UsageError(f"--gold {text}: write the criterion with its version, such as {criterion}@1={value}.")
        for low, high in (one.scale for one in _asked(criterion, criteria)):
            if not low <= found[criterion] <= high:
                raise DataError(f"--gold {text}: {criterion} is answered from {low:g} to {high:g}. Give a value of that scale.")
    return found


def _queue_list(arguments: argparse.Namespace) -> None:
    from agentalign.store.store import Store

    with Store(Project.find().store_url) as store:
        items = store.queue_items.items(arguments.taskset, arguments.status, arguments.limit)
    if arguments.json:
        show_json([item._asdict() for item in items])
        return
    rows = [
        (
            "+".join(id[:12] for id in (i.trajectory, i.other) if id),
            i.taskset,
            i.status,
            i.priority,
            f"{i.done}/{i.overlap}",
            i.live,
            i.late,
            f"gold, by {i.gold_by or 'nobody known'}" if i.is_gold else "",
            "; ".join(i.skips),
        )
        for i in items
    ]
    show_table(
        ("run, or two", "taskset", "status", "urgency", "done", "in hand", "late", "", "skipped because"),
        rows,
        empty="Nothing is in the queue. `agentalign queue add --taskset NAME` fills it.",
    )


def _queue_status(arguments: argparse.Namespace) -> None:
    from agentalign.store.store import Store

    with Store(Project.find().store_url) as store:
        items = ["+".join(sorted(store.resolve_id(part) for part in id.split("+"))) for id in arguments.ids]
        changed = store.queue_items.set_status(items, arguments.status)
    say(f"{changed} changed.")


def _queue_gold(arguments: argparse.Namespace) -> None:
    from agentalign.scoring.gold import gold_rows
    from agentalign.store.store import Store

    with Store(Project.find().store_url) as store:
        marks = store.queue_items.gold_marks()
    if arguments.json:
        show_json([mark._asdict() for mark in marks])
        return
    rows = [
        (row.person, row.criterion, "pairs" if row.is_pair else "runs", row.asked, row.right, row.off, ", ".join(row.set_by))
        for row in gold_rows(marks)
    ]
    columns = ("person", "criterion", "of", "asked", "right", "off by, mean", "answers set by")
    show_table(columns, rows, empty="Nobody has met a gold run or pair yet.")

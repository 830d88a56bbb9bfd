"""Commands for a team: the queue, accounts, and forgetting."""

import argparse
import getpass
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from agentalign.cli_arguments import Commands, add_filters, add_json, at_least, command, run_filter, verbs
from agentalign.cli_output import say, show, show_json, show_table
from agentalign.config.project import Project
from agentalign.errors import DataError, UsageError

if TYPE_CHECKING:
    from agentalign.records.criterion import Criterion

InForce: TypeAlias = "Mapping[str, tuple[Criterion, ...]]"
"""Taskset -> its criteria as they are now."""


def add(commands: Commands) -> None:
    """Declare them."""
    _add_queue(commands)
    _add_users(commands)
    parser = command(
        commands,
        "forget",
        "delete runs, or all that a person said, for good",
        run=_forget,
        more=(
            "A run goes with its forks, corrections, tokens, scores and preferences, a person with their marks, comparisons, decisions, "
            "corrections and account. A chat that they kept names nobody: find it by --text, or name it by --run. What is left is a "
            "tombstone: id, date and reason, so that it does not come back and trainings can be told honestly. Adapters keep what they "
            "learned, and backups and exported files what they hold: delete those yourself. Without --yes it only says what would go."
        ),
        examples=(
            'agentalign forget --run 3fa9 --reason "the customer asked"\n'
            'agentalign forget --text "ada@example.org" --reason "the customer asked" --yes\n'
            'agentalign forget --person bob --reason "left the team" --yes'
        ),
    )
    parser.add_argument("--run", dest="ids", action="append", default=[], metavar="ID", help="this run; may be given again")
    parser.add_argument("--person", metavar="NAME", help="everything that this person rated, decided or corrected, and the account")
    add_filters(parser)
    parser.add_argument("--reason", required=True, help="stays in the tombstones")
    parser.add_argument("--yes", action="store_true", help="do it")


def _add_queue(commands: Commands) -> None:
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


def _add_users(commands: Commands) -> None:
    examples = "agentalign users add ada --role lead\nagentalign users list\nagentalign users remove ada"
    users = verbs(command(commands, "users", "accounts for `agentalign ui --team`", examples=examples))
    parser = command(
        users,
        "add",
        "make an account, or give one a new role and password",
        run=_users_add,
        more="The password is asked for, or read from standard input where that is no terminal. A new one ends the person's sessions.",
    )
    parser.add_argument("name")
    parser.add_argument("--role", choices=("rater", "lead", "admin"), default="rater", help="default: %(default)s")
    add_json(command(users, "list", "list the accounts", run=_users_list))
    command(users, "remove", "remove an account; what the person rated stays", run=_users_remove).add_argument("name")


def _queue_add(arguments: argparse.Namespace) -> None:
    from agentalign.environments.taskset import find_taskset, load_criteria
    from agentalign.scoring.to_compare import queue_pairs
    from agentalign.scoring.urgency import urgency
    from agentalign.store.filters import RunFilter
    from agentalign.store.store import Store

    project = Project.find()
    with Store(project.store_url) as store:
        ids = _named(store, arguments) or _matching(store, arguments)
        criteria = {name: load_criteria(find_taskset(name, project.tasks) / "criteria.yaml") for name in _tasksets(store, ids)}
        if arguments.gold and arguments.pairs:
            added, changed = _add_gold_pair(store, ids, arguments.gold, criteria)
        else:
            overlap = arguments.overlap
            if arguments.pairs:
                among = RunFilter(ids=tuple(ids))
                added, changed = queue_pairs(store, among, criteria, per_task=arguments.pairs, overlap=overlap, newest=len(ids) or 1)
            else:
                urgent = urgency(store, ids, criteria)
                added, changed = store.queue_items.add(ids, overlap=overlap, gold=_gold(arguments.gold, criteria), priority=urgent)
    say(f"{added} {'pairs' if arguments.pairs else 'runs'} added to the queue, {changed} changed.")


def _add_gold_pair(store: "object", ids: list[str], said: list[str], criteria: "InForce") -> tuple[int, int]:
    from agentalign.store.store import Store

    assert isinstance(store, Store)
    if len(ids) != 2:
        raise UsageError(f"--gold is about one pair, and {len(ids)} runs are named. Name its two runs by --run ID --run ID.")
    first, second = (store.trajectory(id) for id in ids)
    if first.same_task_key() != second.same_task_key():
        raise DataError("these two runs are not of one task, so neither can be better at it. Name two runs of the same task.")
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
    return store.pairs.add([(ids[0], ids[1])], gold=known)


def _tasksets(store: "object", ids: list[str]) -> set[str]:
    from agentalign.store.filters import RunFilter
    from agentalign.store.store import Store

    assert isinstance(store, Store)
    return {row.taskset for row in store.runs(RunFilter(ids=tuple(ids)), limit=len(ids) or 1).rows}


def _named(store: "object", arguments: argparse.Namespace) -> list[str]:
    """The runs that --run names; UsageError where a filter stands beside it, because nobody can know which of the two is meant."""
    from agentalign.store.filters import RunFilter
    from agentalign.store.store import Store

    if arguments.ids and run_filter(arguments) != RunFilter():
        raise UsageError("--run names single runs, and the filter beside it would be ignored. Give the one or the other.")
    assert isinstance(store, Store)
    return [store.resolve_id(id) for id in arguments.ids]


def _matching(store: "object", arguments: argparse.Namespace) -> list[str]:
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
            "gold" if i.is_gold else "",
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
    from agentalign.store.store import Store

    with Store(Project.find().store_url) as store:
        marks = store.queue_items.gold_marks()
    if arguments.json:
        show_json([mark._asdict() for mark in marks])
        return
    rows = []
    for person, criterion, is_pair in sorted({(mark.person, mark.criterion, mark.other is not None) for mark in marks}):
        theirs = [mark for mark in marks if (mark.person, mark.criterion, mark.other is not None) == (person, criterion, is_pair)]
        given = [(mark.expected, mark.given) for mark in theirs if mark.given is not None]
        right = sum(expected == value for expected, value in given)
        # Answers about pairs have no order, so they are right or not.
        off = sum(abs(expected - value) for expected, value in given) / len(given) if given and not is_pair else None
        rows.append((person, criterion, "pairs" if is_pair else "runs", len(theirs), right, off))
    show_table(("person", "criterion", "of", "asked", "right", "off by, mean"), rows, empty="Nobody has met a gold run or pair yet.")


def _users_add(arguments: argparse.Namespace) -> None:
    from agentalign.store.store import Store

    if sys.stdin.isatty():
        password = getpass.getpass("Password: ")
        if getpass.getpass("Again: ") != password:
            raise DataError("the two passwords differ. Nothing was changed.")
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    with Store(Project.find().store_url) as store:
        is_new = store.accounts.set(arguments.name, arguments.role, password)
    say(f"{arguments.name} is {'a new' if is_new else 'now'} {arguments.role}.")


def _users_list(arguments: argparse.Namespace) -> None:
    from agentalign.store.store import Store

    with Store(Project.find().store_url) as store:
        rows = [(account.name, account.role, account.created) for account in store.accounts.all()]
    if arguments.json:
        show_json([{"name": name, "role": role, "created": created} for name, role, created in rows])
    else:
        show_table(("name", "role", "made"), rows, empty="There are no accounts. `agentalign users add NAME` makes one.")


def _users_remove(arguments: argparse.Namespace) -> None:
    from agentalign.store.store import Store

    with Store(Project.find().store_url) as store:
        if not store.accounts.remove(arguments.name):
            raise DataError(f"there is no account {arguments.name!r}. `agentalign users list` lists them.")
    say(f"{arguments.name} can log in no more; what they rated stays.")


def _forget(arguments: argparse.Namespace) -> None:
    from agentalign.store.filters import RunFilter
    from agentalign.store.store import Store

    project = Project.find()
    with Store(project.store_url) as store:
        named = _named(store, arguments)
        ids = named if named or run_filter(arguments) == RunFilter() else _matching(store, arguments)
        if not ids and arguments.person is None:
            raise UsageError("say what to forget: --run ID, a filter such as --text WORDS, or --person NAME.")
        if not arguments.yes:
            would = store.foreseen(ids, arguments.person)
            account = f", and the account of {arguments.person}" if would.accounts else ""
            show(f"{len(would.runs)} runs, {len(would.scores)} scores and {len(would.preferences)} preferences would go{account}.")
            say("Nothing was deleted. Give --yes to delete it for good.")
            return
        made_by = _made_by(store, store.foreseen(ids, arguments.person).runs)
        gone = store.forget(ids, arguments.person, reason=arguments.reason)
    show(f"{len(gone.runs)} runs, {len(gone.scores)} scores and {len(gone.preferences)} preferences are deleted for good.")
    for line in _learned_from(project.trainings, set(gone.ids), made_by):
        show(f"  training {line}")


def _made_by(store: "object", ids: Collection[str]) -> set[str]:
    """Trainings that acted some of these runs out: they learned from them as they came, and no list of what they began with has them."""
    from agentalign.store.filters import RunFilter
    from agentalign.store.store import Store

    assert isinstance(store, Store)
    made = (run.origin.reference.partition("/") for run in store.trajectories(RunFilter(ids=tuple(ids))))
    return {training for training, _, iteration in made if iteration.isdigit()}


def _learned_from(trainings: Path, gone: set[str], made_by: Collection[str] = ()) -> list[str]:
    """What to do about every training that learned from what is gone, or may have."""
    import json

    lines = []
    for path in sorted(trainings.glob("*/data.json")):
        try:
            if path.parent.name in made_by or gone & set(json.loads(path.read_text("utf-8"))):
                undo = "Train anew and delete the adapter to undo it."
                lines.append(f"{path.parent.name} learned from some of it; its adapter keeps that. {undo}")
        except (OSError, ValueError, TypeError) as error:
            lines.append(f"{path.parent.name} may have learned from some of it: its data.json cannot be read ({error}).")
    return lines

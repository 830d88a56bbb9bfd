"""Commands for a team: accounts, and forgetting."""

import argparse
import getpass
import sys
from collections.abc import Collection
from pathlib import Path

from agentalign.cli_arguments import Commands, add_filters, add_json, command, run_filter, verbs
from agentalign.cli_output import say, show, show_json, show_table
from agentalign.cli_queue import matching_runs, named_runs
from agentalign.config.project import Project
from agentalign.errors import DataError, UsageError


def add(commands: Commands) -> None:
    """Declare them."""
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
    parser.add_argument(
        "--person",
        metavar="NAME",
        help="everything that this person rated, decided or corrected, and the account; known answers stay, without the name",
    )
    add_filters(parser)
    parser.add_argument("--reason", required=True, help="stays in the tombstones")
    parser.add_argument("--yes", action="store_true", help="do it")


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
        named = named_runs(store, arguments)
        ids = named if named or run_filter(arguments) == RunFilter() else matching_runs(store, arguments)
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

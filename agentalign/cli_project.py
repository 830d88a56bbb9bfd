"""Commands about the project as a whole: init, tasks, ui, demo, backup, restore."""

import argparse
from pathlib import Path

from agentalign.cli_arguments import Commands, add_json, command, verbs
from agentalign.cli_output import say, show, show_json, show_table
from agentalign.config.project import Project
from agentalign.errors import UsageError


def add_first(commands: Commands) -> None:
    """What comes before all runs."""
    parser = command(
        commands,
        "init",
        "make a project in a folder",
        run=_init,
        more=(
            "It gets tasks/ with a small taskset to change, adapters/ and a hidden .agentalign/ for runs, ratings and "
            "trainings. What is there already stays as it is."
        ),
        examples="agentalign init\nagentalign init my-agent",
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="default: the current folder")

    examples = "agentalign tasks\nagentalign tasks show order_desk --split dev\nagentalign tasks check hello"
    tasks = verbs(command(commands, "tasks", "look at tasksets, and check them", examples=examples))
    add_json(command(tasks, "list", "list the tasksets of the project and those that came with agentalign", run=_tasks_list))
    parser = command(
        tasks,
        "show",
        "list the tasks of a taskset, and its criteria",
        run=_tasks_show,
        examples="agentalign tasks show order_desk --split dev",
    )
    parser.add_argument("taskset")
    parser.add_argument("--split", help="train, dev or test")
    add_json(parser)
    parser = command(
        tasks,
        "check",
        "see whether a taskset keeps its promises",
        run=_tasks_check,
        more="The expert plays every task, its runs are replayed, and every check must be content with them.",
        examples="agentalign tasks check hello",
    )
    parser.add_argument("taskset")
    add_json(parser)


def add_last(commands: Commands) -> None:
    """What goes round everything."""
    parser = command(
        commands,
        "ui",
        "look at runs and rate them in a browser",
        run=_ui,
        more="It is served on this machine only, until Ctrl+C; with --team people log in (`agentalign users add` makes accounts).",
        examples="agentalign ui\nagentalign ui --port 8000\nagentalign ui --team --url https://rate.example.org",
    )
    parser.add_argument("--team", action="store_true", help="ask for a login")
    parser.add_argument("--url", metavar="URL", help="with --team: the https address that people open")
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="with --team: certificate, where no proxy in front speaks TLS")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="with --team: the certificate's key")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")

    parser = command(
        commands,
        "demo",
        "go the whole way once, and report it",
        run=_demo,
        more=(
            "Base model, SFT, DPO, reward model, PPO, each evaluated. Started again, it goes on where it stopped. The "
            "last line it prints is the path of report.json."
        ),
        examples="agentalign demo --quick\nagentalign demo --seed 1",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="preset", action="store_const", const="quick", help="every stage once, in minutes; proves little")
    size.add_argument("--full", dest="preset", action="store_const", const="full", help="takes hours")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.set_defaults(preset="default")

    parser = command(
        commands,
        "backup",
        "copy all runs, ratings and trainings into one file",
        run=_backup,
        more="Others may write meanwhile. Adapters are plain folders: copy adapters/ beside it.",
        examples="agentalign backup before-import.db",
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")
    parser = command(
        commands,
        "restore",
        "put a backup in the place of the store",
        run=_restore,
        more=(
            "The backup is read whole before anything is replaced, and so is the store; a damaged one is kept beside it. What the store "
            "has forgotten since stays forgotten, as long as the store is there to say so; accounts come back as the backup has them."
        ),
        examples="agentalign restore before-import.db --force",
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--force", action="store_true", help="also where the store holds records or is damaged")


def _init(arguments: argparse.Namespace) -> None:
    from agentalign.environments.skeleton import EXAMPLE, copy_taskset

    project = Project.create(arguments.folder)
    copy_taskset(EXAMPLE, project.tasks)
    say(f"A project is in {project.root}, with the taskset '{EXAMPLE}' in tasks/{EXAMPLE}. Next: agentalign tasks check {EXAMPLE}")


def _tasks_list(arguments: argparse.Namespace) -> None:
    from agentalign.environments.taskset import list_tasksets

    rows = [(found.name, "agentalign" if found.packaged else "project", str(found.folder)) for found in list_tasksets(_tasks_folder())]
    if arguments.json:
        show_json([{"name": name, "from": origin, "folder": folder} for name, origin, folder in rows])
    else:
        show_table(("taskset", "from", "folder"), rows, empty="There are no tasksets. `agentalign init` makes one to start from.")


def _tasks_show(arguments: argparse.Namespace) -> None:
    from agentalign.environments.taskset import load_taskset

    taskset = load_taskset(arguments.taskset, _tasks_folder())
    tasks = taskset.tasks(arguments.split)
    if arguments.json:
        criteria = [criterion.model_dump(mode="json") for criterion in taskset.criteria]
        show_json({"name": taskset.name, "criteria": criteria, "tasks": [task.model_dump(mode="json") for task in tasks]})
        return
    header = ("criterion", "kind", "level", "gate", "weight", "question")
    show_table(header, [(c.key, c.kind, c.level, "gate" if c.gate else "", c.weight, c.description) for c in taskset.criteria], empty="")
    show()
    rows = [(task.id, task.split, task.family, task.branch, " ".join(task.tags)) for task in tasks]
    show_table(("task", "split", "family", "branch", "tags"), rows, empty=f"{taskset.name} has no such tasks: its runs are imported.")


def _tasks_check(arguments: argparse.Namespace) -> int:
    from agentalign.environments.check import check_taskset
    from agentalign.environments.taskset import load_taskset
    from agentalign.environments.worker import WorkerPool

    taskset = load_taskset(arguments.taskset, _tasks_folder())
    with WorkerPool(taskset, 1) as pool:
        report = check_taskset(taskset, pool)
    if arguments.json:
        show_json(report._asdict())
    else:
        show(f"{report.taskset}: {_counts(report.tasks) or 'no tasks'}; the expert played {report.played}")
        for problem in report.problems:
            show(f"  {problem}")
        say(f"{len(report.problems)} problems." if report.problems else "All is well.")
    return 1 if report.problems else 0


def _ui(arguments: argparse.Namespace) -> None:
    from agentalign.ui.app import serve_ui

    if bool(arguments.tls_cert) != bool(arguments.tls_key):
        raise UsageError("--tls-cert and --tls-key go together. Give both or neither.")
    certificate = (arguments.tls_cert, arguments.tls_key) if arguments.tls_cert else None
    serve_ui(Project.find(), arguments.host, arguments.port, team=arguments.team, home=arguments.url, certificate=certificate)


def _demo(arguments: argparse.Namespace) -> None:
    from agentalign.demo import run

    show(str(run(Project.create(Path.cwd()), arguments.preset, arguments.seed)))


def _backup(arguments: argparse.Namespace) -> None:
    from agentalign.store.backup import backup

    report = backup(Project.find().store_url, arguments.file, force=arguments.force)
    say(f"{arguments.file} holds {_counts(_without_problems(report))}; every record was read again.")


def _restore(arguments: argparse.Namespace) -> None:
    from agentalign.store.backup import restore

    report = restore(arguments.file, Project.find().store_url, force=arguments.force)
    say(f"The store holds {_counts(_without_problems(report))} now; every record was read again.")
    if report.forgotten:
        say(f"{report.forgotten} records of the backup were forgotten since it was made; they were left out.")


def _tasks_folder() -> Path:
    """The project's tasks/; in a folder without a project the tasks/ there, if any."""
    from agentalign.errors import ConfigError

    try:
        return Project.find().tasks
    except ConfigError:
        return Path("tasks")


def _without_problems(report: "object") -> dict[str, int]:
    return {name: count for name, count in report._asdict().items() if name not in ("problems", "forgotten")}  # type: ignore[attr-defined]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())

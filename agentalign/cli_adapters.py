"""Commands about what was trained: adapters, promote, export."""

import argparse
from pathlib import Path

from agentalign import cli_foreign
from agentalign.cli_arguments import Commands, add_json, command, verbs
from agentalign.cli_output import say, show, show_json, show_table
from agentalign.config.project import Project
from agentalign.errors import UsageError


def add(commands: Commands) -> None:
    """Declare them in the order of use."""
    examples = "agentalign adapters\nagentalign adapters show order_desk@production\nagentalign adapters verify order_desk@3\n"
    examples += "agentalign adapters add downloads/their_lora --base ./base --taskset order_desk"
    adapters = verbs(command(commands, "adapters", "look at adapters: lineage, figures, files", examples=examples))
    add_json(command(adapters, "list", "list every version of every adapter", run=_list))
    parser = command(adapters, "show", "show one adapter's card", run=_show, examples="agentalign adapters show order_desk@production")
    parser.add_argument("ref", metavar="NAME@V")
    add_json(parser)
    parser = command(
        adapters,
        "verify",
        "see whether an adapter's files are what was saved",
        run=_verify,
        examples="agentalign adapters verify order_desk@3",
    )
    parser.add_argument("ref", metavar="NAME@V")
    cli_foreign.add(adapters)

    parser = command(
        commands,
        "promote",
        "let agents have an adapter",
        run=_promote,
        more=(
            "It must pass its gate: unchanged files, the same base and template, sound weights, an evaluation, and "
            "success not below production's beyond chance."
        ),
        examples=(
            "agentalign promote order_desk@3 production\n"
            "agentalign promote order_desk@3 candidate --force 'the tone matters more now'\n"
            "agentalign promote order_desk --rollback"
        ),
    )
    parser.add_argument("ref", metavar="NAME@V")
    parser.add_argument("stage", nargs="?", choices=("candidate", "production"))
    parser.add_argument("--force", metavar="REASON", default="", help="promote it although a check fails; the reason is kept")
    parser.add_argument("--rollback", action="store_true", help="put the previous version back into production")
    add_json(parser)

    parser = command(
        commands,
        "export",
        "write an adapter as a folder for PEFT and vLLM",
        run=_export,
        more="With its chat template, the tokenizer, and the command that serves it.",
        examples="agentalign export order_desk@production served/order_desk",
    )
    parser.add_argument("ref", metavar="NAME@V")
    parser.add_argument("folder", type=Path, help="a new folder")


def _list(arguments: argparse.Namespace) -> None:
    from agentalign.store.registry import Registry

    registry = Registry(Project.find().adapters)
    cards = registry.list()
    held = {card.name: registry.stages(card.name) for card in cards}
    stages = {card.ref: ", ".join(sorted(stage for stage, version in held[card.name].items() if version == card.version)) for card in cards}
    if arguments.json:
        show_json([{**card.model_dump(mode="json", exclude={"config", "files"}), "stages": stages[card.ref]} for card in cards])
        return
    rows = [(card.ref, card.kind, card.recipe, ", ".join(card.parents), card.base, stages[card.ref], card.created[:16]) for card in cards]
    header = ("adapter", "kind", "recipe", "parents", "base", "stage", "made")
    show_table(header, rows, empty="There are no adapters. `agentalign train` makes one.")


def _show(arguments: argparse.Namespace) -> None:
    from agentalign.store.registry import Registry

    registry = Registry(Project.find().adapters)
    card, folder = registry.resolve(arguments.ref)
    history = [change.model_dump(mode="json") for change in registry.history(card.name) if change.version == card.version]
    if arguments.json:
        show_json({**card.model_dump(mode="json"), "history": history})
        return
    show(f"{card.ref}, in {folder}")
    for name, value in card.model_dump(mode="json", exclude={"files", "packages", "metrics", "name", "version"}).items():
        show(f"  {name:<16} {value if not isinstance(value, list | dict) else _listed(value)}")
    show_table(("figure", "value"), sorted(card.metrics.items()), empty="No figures were kept.")
    for change in history:
        show(f"{change['time'][:16]}  {change['action']} {change['stage']}")


def _listed(value: "list[object] | dict[str, object]") -> str:
    items = [f"{name}: {item}" for name, item in value.items()] if isinstance(value, dict) else [str(item) for item in value]
    return ", ".join(items) or "none"


def _verify(arguments: argparse.Namespace) -> None:
    from agentalign.store.registry import Registry

    registry = Registry(Project.find().adapters)
    card, _ = registry.resolve(arguments.ref)
    registry.verify(card.ref)
    show(f"{card.ref}: all {len(card.files)} files are what was saved")


def _promote(arguments: argparse.Namespace) -> None:
    from agentalign.store.registry import Registry

    if arguments.rollback == bool(arguments.stage):
        raise UsageError("promote needs either a stage (candidate or production) or --rollback. Give one of them.")
    if arguments.rollback and arguments.force:
        raise UsageError("--rollback asks no gate, so there is nothing to --force. Leave one of them out.")
    project = Project.find()
    if arguments.rollback:
        show(f"{Registry(project.adapters).roll_back(arguments.ref).ref} is in production again")
        return
    from agentalign.deployment.check import promote

    report = promote(project, arguments.ref, arguments.stage, forced=arguments.force)
    if arguments.json:
        show_json(report.model_dump(mode="json"))
        return
    rows = [(check.name, "passed" if check.passed else "failed", check.detail) for check in report.checks]
    show_table(("check", "", "detail"), rows, empty="")
    say(f"{report.adapter} is {arguments.stage} now{', forced: ' + report.forced if report.forced else ''}.")


def _export(arguments: argparse.Namespace) -> None:
    from agentalign.deployment.export import export

    done = export(Project.find(), arguments.ref, arguments.folder)
    show(str(done.folder))
    say(f"{done.adapter} is exported, for the base {done.base}. Serve it with vLLM:\n  {done.command}")

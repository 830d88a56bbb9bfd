"""Commands about what was trained: adapters, deploy-check, promote; export is `cli_export`."""

import argparse
from contextlib import suppress

from agentalign import cli_export, cli_foreign, cli_registry
from agentalign.cli_arguments import Commands, add_json, at_least, command, verbs
from agentalign.cli_output import say, show, show_json, show_table
from agentalign.config.project import Project
from agentalign.errors import RegistryError, UsageError

_DAMAGED = "What cannot be read, such as a version that is being copied in, is told on stderr; the exit code is 1 then."


def add(commands: Commands) -> None:
    """Declare them in the order of use."""
    _add_adapters(commands)
    _add_deploy_check(commands)
    _add_promote(commands)
    cli_export.add(commands)


def _add_adapters(commands: Commands) -> None:
    examples = "agentalign adapters\nagentalign adapters show order_desk@production\nagentalign adapters verify order_desk@3\n"
    examples += "agentalign adapters add downloads/their_lora --base ./base --taskset order_desk"
    adapters = verbs(command(commands, "adapters", "look at adapters: lineage, figures, files", examples=examples))
    add_json(command(adapters, "list", "list every version of every adapter", run=_list, more=_DAMAGED))
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
    cli_registry.add(adapters)
    parser = command(
        adapters,
        "lineage",
        "show what an adapter was made from",
        run=_lineage,
        more="Its training, the pairs and runs it learned from, their ratings, and who rated.",
        examples="agentalign adapters lineage order_desk@3",
    )
    parser.add_argument("ref", metavar="NAME@V")
    add_json(parser)


def _add_deploy_check(commands: Commands) -> None:
    parser = command(
        commands,
        "deploy-check",
        "see whether what is deployed behaves like what was trained",
        run=_deploy_check,
        more=(
            "The golden prompts that training left are asked again, in this process or of a server: log-probs, adapter applied, a control "
            "beside it, tool calls, template. The answer is kept beside the version, and promote asks for a green one. "
            "A server's key is read from AGENTALIGN_API_KEY. Exit code 1 where a check fails or could not be measured."
        ),
        examples=(
            "agentalign deploy-check order_desk@3\n"
            "agentalign deploy-check order_desk --endpoint http://127.0.0.1:8000/v1 --quantization nf4"
        ),
    )
    parser.add_argument("ref", metavar="NAME@V")
    parser.add_argument("--endpoint", metavar="URL", default="", help="an OpenAI-compatible server; default: this process")
    parser.add_argument("--model", metavar="NAME", default="", help="the adapter's name there; default: NAME@V or NAME")
    parser.add_argument("--control", metavar="NAME", default="", help="a zero adapter or the base there; default: zero, identity or base")
    parser.add_argument(
        "--quantization",
        metavar="HOW",
        default="",
        help="how the base is rounded there: nf4, int8, none, or another word; and what it computes in, after a slash: nf4/bfloat16",
    )
    parser.add_argument(
        "--tasks", type=at_least(1), default=0, metavar="N", help="act out N held-out tasks through the server, paired with the evaluation"
    )
    add_json(parser)


def _add_promote(commands: Commands) -> None:
    parser = command(
        commands,
        "promote",
        "let agents have an adapter",
        run=_promote,
        more=(
            "It must pass its gate: unchanged files, the same base and template, sound weights, an evaluation, a green deploy-check "
            "of exactly these files, and neither success nor a criterion below production's beyond chance. Where one is missing, the "
            "refusal names the command."
        ),
        examples=(
            "agentalign promote order_desk@3 production\n"
            "agentalign promote order_desk@3 candidate --force 'the tone matters more now'\n"
            "agentalign promote order_desk@3 candidate --canary 0.05\n"
            "agentalign promote order_desk --canary 0\n"
            "agentalign promote order_desk --rollback"
        ),
    )
    parser.add_argument("ref", metavar="NAME@V")
    parser.add_argument("stage", nargs="?", choices=("candidate", "production"))
    parser.add_argument(
        "--force", metavar="REASON", default="", help="promote it although a check fails; the reason is kept in the adapter's history"
    )
    parser.add_argument(
        "--canary", type=float, metavar="SHARE", help="the candidate answers this share of the conversations, 0 to 1; 0 takes it back"
    )
    parser.add_argument("--rollback", action="store_true", help="put the previous version back into production")
    add_json(parser)


def _list(arguments: argparse.Namespace) -> int:
    from agentalign.store.registry import Registry

    registry = Registry(Project.find().adapters)
    cards, problems = registry.readable()
    stages: dict[str, str] = {}
    for card in cards:
        held: dict[str, int] = {}
        with suppress(RegistryError):  # among the problems
            held = registry.stages(card.name)
        stages[card.ref] = ", ".join(sorted(stage for stage, version in held.items() if version == card.version))
    for problem in problems:
        say(problem)
    if arguments.json:
        show_json([{**card.model_dump(mode="json", exclude={"config", "files"}), "stages": stages[card.ref]} for card in cards])
        return 1 if problems else 0
    rows = [(card.ref, card.kind, card.recipe, ", ".join(card.parents), card.base, stages[card.ref], card.created[:16]) for card in cards]
    header = ("adapter", "kind", "recipe", "parents", "base", "stage", "made")
    show_table(header, rows, empty="" if problems else "There are no adapters. `agentalign train` makes one.")
    return 1 if problems else 0


def _show(arguments: argparse.Namespace) -> None:
    from agentalign.store.registry import Registry

    registry = Registry(Project.find().adapters)
    card, folder = registry.resolve(arguments.ref)
    history = [change.model_dump(mode="json") for change in registry.history(card.name) if change.version == card.version]
    checks, evaluations = registry.checks(card.ref), registry.evaluations(card.ref)
    if arguments.json:
        beside = {
            "checks": [{**one.model_dump(mode="json"), "state": one.state} for one in checks],
            "evaluations": [one.model_dump(mode="json") for one in evaluations],
        }
        show_json({**card.model_dump(mode="json"), "content": registry.content(card.ref), "history": history, **beside})
        return
    show(f"{registry.identity(card.ref)}, in {folder}")
    for name, value in card.model_dump(mode="json", exclude={"files", "packages", "metrics", "name", "version"}).items():
        show(f"  {name:<16} {value if not isinstance(value, list | dict) else _listed(value)}")
    show_table(("figure", "value"), sorted(card.metrics.items()), empty="No figures were kept.")
    for found in evaluations:
        mean, low, high = found.success
        interval = f"{mean:.1%} [{low:.1%}, {high:.1%}]"
        show(f"{found.time[:16]}  evaluated on {found.tasks} tasks of {found.taskset}, {found.split}: success {interval}")
    for check in checks:
        show(f"{check.time[:16]}  deploy-check {check.state}, {check.target}")
    for change in history:
        reason = (change["gate"] or {}).get("forced")
        show(f"{change['time'][:16]}  {change['action']} {change['stage']}{', forced: ' + reason if reason else ''}")


def _listed(value: "list[object] | dict[str, object]") -> str:
    items = [f"{name}: {item}" for name, item in value.items()] if isinstance(value, dict) else [str(item) for item in value]
    return ", ".join(items) or "none"


def _verify(arguments: argparse.Namespace) -> None:
    from agentalign.store.registry import Registry

    registry = Registry(Project.find().adapters)
    card, _ = registry.resolve(arguments.ref)
    registry.verify(card.ref)
    show(f"{card.ref}: all {len(card.files)} files are what was saved")


def _lineage(arguments: argparse.Namespace) -> None:
    from agentalign.store.lineage import lineage
    from agentalign.store.registry import Registry
    from agentalign.store.store import Store

    project = Project.find()
    with Store(project.store_url) as store:
        found = lineage(store, Registry(project.adapters), project.trainings, arguments.ref)
    if arguments.json:
        show_json(found.model_dump(mode="json"))
        return
    titles = {node.id: node.title for node in found.nodes}
    made = {node.id: ", ".join(titles[edge.end] for edge in found.edges if edge.start == node.id) for node in found.nodes}
    rows = [(node.kind, node.title, node.detail + (" (not here)" if node.missing else ""), made[node.id]) for node in found.nodes]
    show_table(("what", "name", "detail", "made from"), rows, empty="")


def _deploy_check(arguments: argparse.Namespace) -> int:
    import os

    from agentalign.deployment.deploy_check import deploy_check

    if arguments.tasks and not arguments.endpoint:
        raise UsageError("--tasks acts through a server: give its --endpoint too. In this process `agentalign eval` does the same.")
    report = deploy_check(
        Project.find(), arguments.ref, endpoint=arguments.endpoint, model=arguments.model, control=arguments.control,
        quantization=arguments.quantization, api_key=os.environ.get("AGENTALIGN_API_KEY", "none"),
        tasks=arguments.tasks, told=lambda step: say(f"{step} ..."),
    )  # fmt: skip
    if arguments.json:
        show_json({**report.model_dump(mode="json"), "state": report.state})
    else:
        show(f"{report.adapter}, {report.target}")
        for check in report.checks:
            show(f"  {check.verdict:<20}  {check.name}: {check.detail}")
        say(f"{report.state.capitalize()}, kept beside {report.adapter}.")
    return 0 if report.state == "green" else 1


def _promote(arguments: argparse.Namespace) -> None:
    from agentalign.store.registry import Registry

    if arguments.canary is not None and (arguments.rollback or arguments.stage == "production"):
        raise UsageError("--canary is the share of a candidate. Promote to candidate, or give it alone: promote NAME --canary 0.05.")
    if arguments.canary is not None and not arguments.stage:
        if arguments.force:
            raise UsageError("a canary's share asks no gate, so there is nothing to --force. Leave it out, or name the stage: candidate.")
        _set_canary(arguments)
        return
    if arguments.rollback == bool(arguments.stage):
        raise UsageError("promote needs either a stage (candidate or production) or --rollback. Give one of them.")
    if arguments.rollback and arguments.force:
        raise UsageError("--rollback asks no gate, so there is nothing to --force. Leave one of them out.")
    project = Project.find()
    if arguments.rollback:
        card = Registry(project.adapters).roll_back(arguments.ref)
        if arguments.json:
            show_json({"adapter": card.ref, "stage": "production"})
        else:
            show(f"{card.ref} is in production again")
        return
    from agentalign.deployment.check import promote

    report = promote(project, arguments.ref, arguments.stage, forced=arguments.force, canary=arguments.canary)
    if arguments.json:
        show_json(report.model_dump(mode="json"))
        return
    rows = [(check.name, "passed" if check.passed else "failed", check.detail) for check in report.checks]
    show_table(("check", "", "detail"), rows, empty="")
    say(f"{report.adapter} is {arguments.stage} now{', forced: ' + report.forced if report.forced else ''}.")


def _set_canary(arguments: argparse.Namespace) -> None:
    from agentalign.store.registry import Registry

    registry = Registry(Project.find().adapters)
    registry.set_canary(arguments.ref, arguments.canary)
    name = arguments.ref.partition("@")[0]
    if arguments.json:
        show_json({"name": name, "canary": registry.canary(name)})
        return
    show(f"{name}@candidate answers {registry.canary(name):.1%} of the conversations" if arguments.canary else f"{name} has no canary now")

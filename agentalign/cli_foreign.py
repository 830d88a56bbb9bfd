"""Commands about adapters from elsewhere, and where adapters may go: adapters add, adapters check."""

import argparse
from pathlib import Path

from agentalign.cli_arguments import Commands, add_json, command
from agentalign.cli_output import say, show, show_json
from agentalign.config.project import Project


def add(adapters: Commands) -> None:
    """Declare them among the verbs of `adapters`."""
    parser = command(
        adapters,
        "add",
        "take in somebody else's LoRA adapter, checked",
        run=_add,
        more=(
            "Its folder is read by our own eyes: plain LoRA in safetensors or nothing, no code, no links, no base but the one "
            "that you name. rsLoRA and patterns of ranks and alphas are folded into plain LoRA. It acts on a few held-out tasks to "
            "leave golden prompts for deploy-check. It has no evaluation yet, so the gate asks for one."
        ),
        examples="agentalign adapters add downloads/their_lora --base ./base --taskset order_desk --name theirs",
    )
    parser.add_argument("folder", type=Path, help="holds adapter_config.json and adapter_model.safetensors")
    parser.add_argument("--base", required=True, help="the base that it was trained on: hub name, folder, GGUF file or built-in name")
    parser.add_argument("--taskset", required=True, help="whose tools and prompt it shall answer to")
    parser.add_argument("--name", default="", help="its name in the registry (default: the taskset's)")
    parser.add_argument("--quantization", choices=("nf4", "int8", "none"), default="none", help="how its base was rounded in training")
    parser.add_argument("--template", type=Path, metavar="FILE", help="the chat template it was trained under (default: the base's own)")
    add_json(parser)
    parser = command(
        adapters,
        "golden",
        "record golden prompts of a version that has none",
        run=_golden,
        more=(
            "It acts on a few held-out tasks in this process, and its answers with their log-probs are kept beside it, for deploy-check to "
            "hold servers against. What it computed where it was trained they cannot say."
        ),
        examples="agentalign adapters golden theirs@1",
    )
    parser.add_argument("ref", metavar="NAME@V")
    parser = command(
        adapters,
        "check",
        "which servers compute an adapter folder as PEFT does",
        run=_check,
        more="One line per target and objection. Versions in the registry are plain LoRA already; the gate asks about base and template.",
        examples="agentalign adapters check downloads/their_lora --base ./base",
    )
    parser.add_argument("folder", type=Path, help="holds adapter_config.json and adapter_model.safetensors")
    parser.add_argument("--base", required=True, help="the base that it was trained on: hub name, folder, GGUF file or built-in name")
    add_json(parser)


def _check(arguments: argparse.Namespace) -> None:
    from agentalign.deployment.targets import TARGETS, findings
    from agentalign.training.base import prepare_base
    from agentalign.training.base_layers import linear_layers

    base = prepare_base(arguments.base, Project.find().cache)
    layers, names = linear_layers(base.folder), (arguments.base, str(base.folder))
    found = {target: findings(arguments.folder, layers, target, base_names=names) for target in TARGETS}
    if arguments.json:
        show_json({target: [finding._asdict() for finding in rows] for target, rows in found.items()})
        return
    for target, rows in found.items():
        show(f"{target}: {'nothing speaks against it' if not rows else ''}".rstrip())
        for finding in rows:
            show(f"  {finding.number:>2}  {finding.verdict:<10}  {finding.question} ({finding.detail}). Do this: {finding.action}.")


def _add(arguments: argparse.Namespace) -> None:
    from agentalign.deployment.foreign import add_foreign

    added = add_foreign(
        Project.find(),
        arguments.folder,
        base=arguments.base,
        taskset=arguments.taskset,
        name=arguments.name,
        quantization=arguments.quantization,
        template=arguments.template,
    )
    if arguments.json:
        show_json({**added.card.model_dump(mode="json"), "named_base": added.named_base, "folded": added.folded})
        return
    show(added.card.ref)
    if added.named_base and added.named_base != added.card.base:
        say(
            f"Its config names the base {added.named_base}; it is saved for {added.card.base}, as you said. Be sure that they are the same."
        )
    if added.folded:
        say("Its scales were folded into plain LoRA: the same product, on every server.")
    if "chat_template.jinja" in added.ignored and arguments.template is None:
        say("Its own chat template was not used. If it was trained under that one, read it, and name it with --template.")
    if added.unrecorded:
        say(f"No golden prompts were recorded, so deploy-check can measure nothing: {added.unrecorded}")
        say(f"Record them when that is mended: `agentalign adapters golden {added.card.ref}`.")
    say(f"It is not evaluated yet: `agentalign eval {added.card.ref}`.")


def _golden(arguments: argparse.Namespace) -> None:
    from agentalign.deployment.record_golden import record_golden

    golden = record_golden(Project.find(), arguments.ref)
    show(f"{len(golden.turns)} golden prompts are kept beside {arguments.ref}{'' if golden.held_out else ', none of them held out'}")

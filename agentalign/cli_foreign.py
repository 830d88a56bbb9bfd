"""Commands about adapters from elsewhere: adapters add."""

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
            "that you name. rsLoRA and patterns of ranks and alphas are folded into plain LoRA. It has no evaluation yet, so "
            "the gate asks for one."
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
    say(f"It is not evaluated yet: `agentalign eval {added.card.ref}`.")

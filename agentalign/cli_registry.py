"""Commands that look at two adapters or send one away: adapters diff, adapters push."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from agentalign.cli_arguments import Commands, add_json, command
from agentalign.cli_output import say, show, show_json, show_table
from agentalign.config.project import Project

if TYPE_CHECKING:
    from agentalign.deployment.diff import AdapterDiff


def add(adapters: Commands) -> None:
    """Declare them among the verbs of `adapters`."""
    parser = command(
        adapters,
        "diff",
        "what is different between two versions",
        run=_diff,
        more="Card, dials, data, figures, and per layer how far what they add to the base lies apart.",
        examples="agentalign adapters diff order_desk@production order_desk@3",
    )
    parser.add_argument("before", metavar="NAME@V")
    parser.add_argument("after", metavar="NAME@V")
    parser.add_argument(
        "--layers", type=int, default=5, metavar="N", help="show the N layers that lie farthest apart; default: %(default)s"
    )
    add_json(parser)
    parser = command(
        adapters,
        "push",
        "push an adapter to a hub repository",
        run=_push,
        more=(
            "PEFT files, template, card, figures, and a model card made from them. A new repository is private. The token is "
            "huggingface_hub's own: HF_TOKEN, or its login. Look at a dry run first."
        ),
        examples=(
            "agentalign adapters push order_desk@3 my-team/order-desk --base org/base-model --dry-run pushed\n"
            "agentalign adapters push order_desk@production my-team/order-desk"
        ),
    )
    parser.add_argument("ref", metavar="NAME@V")
    parser.add_argument("repository", metavar="OWNER/NAME")
    parser.add_argument("--base", default="", metavar="OWNER/NAME", help="what the base is called on the hub; default: the card's name")
    parser.add_argument("--public", action="store_true", help="make a new repository that everybody may read, or push to one")
    parser.add_argument("--golden", action="store_true", help="with the golden prompts: held-out tasks and answers, word for word")
    parser.add_argument("--dry-run", type=Path, metavar="DIR", help="write what would be pushed to a new folder; send nothing")
    add_json(parser)


def _diff(arguments: argparse.Namespace) -> None:
    from agentalign.deployment.diff import diff

    found = diff(Project.find(), arguments.before, arguments.after)
    if arguments.json:
        parts = {
            name: [one._asdict() for one in getattr(found, name)] for name in ("card", "config", "data", "metrics", "evaluations", "layers")
        }
        show_json({"before": found.before, "after": found.after, **parts, "whole": found.whole._asdict()})
        return
    _show_diff(found, arguments.layers)


def _show_diff(found: "AdapterDiff", layers: int) -> None:
    rows = [(part, one.name, _short(one.before), _short(one.after)) for part in _PARTS for one in getattr(found, part)]
    show_table(("what", "", found.before, found.after), rows, empty="Cards, dials, data and figures are the same.")
    show()
    listed = [
        (one.layer, f"{one.before:.4g}", f"{one.after:.4g}", f"{one.apart:.4g}", "" if one.cosine is None else f"{one.cosine:.3f}")
        for one in (found.whole, *found.layers[:layers])
    ]
    show_table(("weights", "before", "after", "apart", "cosine"), listed, empty="")


_PARTS = ("card", "config", "data", "metrics", "evaluations")


def _short(value: object) -> str:
    text = "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _push(arguments: argparse.Namespace) -> None:
    from agentalign.deployment.push import push

    done = push(
        Project.find(), arguments.ref, arguments.repository, base=arguments.base, public=arguments.public, golden=arguments.golden,
        dry_run=arguments.dry_run,
    )  # fmt: skip
    if arguments.json:
        show_json(done._asdict())
        return
    show(done.where)
    sent = "would be pushed" if arguments.dry_run else "was pushed"
    say(f"{done.identity} {sent} to {done.repository}: {', '.join(done.files)}")

"""How commands and the arguments they share are declared."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from agentalign.errors import UsageError

if TYPE_CHECKING:
    from agentalign.store.filters import RunFilter

Run: TypeAlias = Callable[[argparse.Namespace], int | None]
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

KINDS = ("rollout", "expert", "import", "correction", "capture", "chat", "proposal")
STOPS = ("answered", "max_turns", "max_tokens", "max_seconds", "error", "unknown")
FILTERS = {
    "taskset": ("NAME", "runs of this taskset"),
    "task": ("ID", "runs of this task"),
    "family": ("NAME", "runs of this family of tasks"),
    "split": ("NAME", "runs of train, dev or test tasks"),
    "policy": ("NAME", "runs that this made: an adapter such as hello@2, base, expert"),
    "kind": ("KIND", ", ".join(KINDS)),
    "stop": ("REASON", f"runs that ended so: {', '.join(STOPS)} (as imported runs do)"),
    "tool": ("NAME", "runs that called this tool"),
    "text": ("TEXT", "runs in which this stands: in messages, reasoning, arguments or results; case is ignored"),
    "training": ("ID", "runs that belong to this training"),
}


class Help(argparse.RawDescriptionHelpFormatter):
    """The description wrapped, the examples as they are written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        raw = text.startswith(("examples:", "in the order"))
        return super()._fill_text(text, width, indent) if raw else argparse.HelpFormatter._fill_text(self, text, width, indent)


def command(
    commands: Commands, name: str, help: str, *, run: Run | None = None, more: str = "", examples: str = ""
) -> argparse.ArgumentParser:
    """Declare a command: one line of help, what more there is to know, and examples to copy."""
    epilog = "examples:\n" + "\n".join(f"  {line.strip()}" for line in examples.strip().splitlines()) if examples else None
    description = f"{help[0].upper()}{help[1:]}. {more}".strip()
    parser = commands.add_parser(name, help=help, description=description, epilog=epilog, allow_abbrev=False, formatter_class=Help)
    if run is not None:
        parser.set_defaults(run=run)
    return parser


def verbs(parser: argparse.ArgumentParser, title: str = "verbs") -> Commands:
    """Sub-commands of a command."""
    return parser.add_subparsers(title=title, required=True)


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Which runs."""
    for name, (metavar, help) in FILTERS.items():
        flags = ("--text", "--search") if name == "text" else (f"--{name}",)
        parser.add_argument(*flags, metavar=metavar, help=help, choices={"kind": KINDS, "stop": STOPS}.get(name))
    parser.add_argument("--errors", action="store_true", help="runs with a failed call, or one that could not be read")
    parser.add_argument("--unrated-by", metavar="PERSON", help="runs of which this person has scored nothing")
    parser.add_argument("--criterion", metavar="NAME@V", help="runs with a value by this criterion, such as tone@1")
    parser.add_argument("--score-at-least", type=float, metavar="X", help="with --criterion: runs worth X or more by it, on its own scale")
    parser.add_argument("--score-at-most", type=float, metavar="X", help="with --criterion: runs worth X or less by it")
    parser.add_argument("--disagreement", type=float, metavar="D", help="runs of which raters' answers lie further apart than D; 0: at all")


def run_filter(arguments: argparse.Namespace) -> "RunFilter":
    """The filter that the arguments of `add_filters` make."""
    from agentalign.store.filters import RunFilter

    named = {"task": "task_id", "kind": "origin_kind", "stop": "stop_reason"}
    more = ("errors", "unrated_by", "criterion", "score_at_least", "score_at_most", "disagreement")
    if arguments.criterion is None and not (arguments.score_at_least is None and arguments.score_at_most is None):
        raise UsageError("--score-at-least and --score-at-most need --criterion NAME@V: every criterion has its own scale.")
    return RunFilter(**{named.get(name, name): getattr(arguments, name) for name in (*FILTERS, *more)})


def at_least(lowest: int) -> Callable[[str], int]:
    """An argument type: a whole number that is not below `lowest`."""

    def whole_number(text: str) -> int:
        value = int(text)
        if value < lowest:
            raise argparse.ArgumentTypeError(f"{value} is below {lowest}")
        return value

    return whole_number


def temperature(text: str) -> float:
    """An argument type: from 0 to 2, as everywhere that something is sampled."""
    value = float(text)
    if not 0 <= value <= 2:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 2")
    return value

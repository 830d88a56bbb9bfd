"""The `agentalign` command. Each command reads its arguments, calls one function, and prints what that gives.

Exit codes: 0 done, 1 refused with a sentence on stderr, 2 wrong usage, 130 stopped by Ctrl+C.
Surprise: nothing heavy is imported up here, so `--help` answers at once; every command imports what it needs when it runs.
"""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence

from agentalign import cli_adapters, cli_agreement, cli_project, cli_queue, cli_runs, cli_serve, cli_team, cli_train
from agentalign.cli_arguments import Help
from agentalign.cli_output import say, show
from agentalign.errors import AgentAlignError, UsageError, disk_is_full

NOUNS = ("tasks", "runs", "adapters", "queue", "users")
"""Commands that list when no verb is given."""

ORDER = """\
in the order of use:
  agentalign init                                          make a project here, with a small taskset
  agentalign tasks check hello                             does the taskset keep its promises?
  agentalign rollout hello --policy expert --split train   runs of the expert, or: agentalign import FILE
  agentalign score hello                                   apply the criteria
  agentalign train sft --taskset hello --max_steps 60      a first adapter
  agentalign rollout hello --adapter hello --n 4           let it act
  agentalign score hello                                   how good is what it did?
  agentalign pairs hello                                   which runs and steps are better?
  agentalign train dpo --taskset hello                     a better one
  agentalign eval hello --against hello@1                  is it really better?
  agentalign deploy-check hello                            does it act outside of training as in it?
  agentalign promote hello production                      let agents have it

`agentalign COMMAND --help` says more about each.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    arguments = parse(words)
    _quiet()
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
    except UsageError as error:
        say(f"agentalign: {error} `agentalign {words[0]} --help` says more.")
        return 2
    except AgentAlignError as error:
        say(f"agentalign: {error}")
        return 1
    except KeyboardInterrupt:
        say("agentalign: stopped. What was stored is kept; a training goes on from its last checkpoint when the command is given again.")
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python would complain once more while closing it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not disk_is_full(error):
            raise
        problem = str(error).splitlines()[0]
        say(f"agentalign: the disk is full ({problem}). What was stored is kept: free some space, and give the command again.")
        return 1
    return code or 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the words of a command; SystemExit with 2 and the usage on stderr where they make none."""
    words = list(argv)
    if words[:1] and words[0] in NOUNS and (len(words) == 1 or words[1].startswith("-")) and words[1:2] not in (["-h"], ["--help"]):
        words.insert(1, "list")
    # What stands behind a recipe are its dials, which only its config knows: argparse sees the two words before them.
    dials = words[2:] if words[:1] == ["train"] and words[1:2] and words[1] in cli_train.RECIPES else []
    return build_parser().parse_args(words[: len(words) - len(dials)], argparse.Namespace(dials=dials))


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="agentalign", description="Align open language models to your team's own criteria.", epilog=ORDER,
        formatter_class=Help, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", required=True)
    cli_project.add_first(commands)
    cli_runs.add(commands)
    cli_agreement.add(commands)
    cli_train.add(commands)
    cli_adapters.add(commands)
    cli_queue.add(commands)
    cli_team.add(commands)
    cli_serve.add(commands)
    cli_project.add_last(commands)
    return parser


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        show(f"agentalign {version('agentalign')}")
        parser.exit()


def _quiet() -> None:
    """One line per step from ourselves, no advice from the libraries below, and their bars on a terminal only."""
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logger = logging.getLogger("agentalign")
    if not logger.handlers:
        logger.addHandler(_Sayer())
        logger.setLevel(logging.INFO)


class _Sayer(logging.Handler):
    """What the house logs is said like everything else."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


if __name__ == "__main__":
    sys.exit(main())

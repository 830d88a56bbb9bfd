"""The command that hands an adapter to somebody else's server: export."""

import argparse
from pathlib import Path

from agentalign.cli_arguments import Commands, add_json, at_least, command
from agentalign.cli_output import say, show, show_json
from agentalign.config.project import Project
from agentalign.errors import UsageError

TRIED_TASKS = 8


def add(commands: Commands) -> None:
    """Declare it among the commands."""
    parser = command(
        commands,
        "export",
        "write an adapter as a folder for PEFT, vLLM or llama.cpp, or merged into its base",
        run=_export,
        more=(
            "With chat template, tokenizer and the command that serves it. The target is asked first whether it computes such an adapter "
            "rightly, scales are folded into plain LoRA, and what was written is tried: a few held-out tasks, and the distance to the "
            "trained policy. A GGUF is made by llama.cpp's own converter, which you name."
        ),
        examples=(
            "agentalign export order_desk@production served/order_desk --with-base\n"
            "agentalign export order_desk@3 merged/order_desk --to merged\n"
            "agentalign export order_desk@3 gguf/order_desk --to gguf --converter llama.cpp/convert_lora_to_gguf.py --with-base"
        ),
    )
    parser.add_argument("ref", metavar="NAME@V")
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument(
        "--to", choices=("vllm", "peft", "merged", "gguf"), default="vllm",
        help="vllm: the adapter for PEFT, and what vLLM needs (default); peft: for PEFT alone; merged: one plain model; gguf: llama.cpp",
    )  # fmt: skip
    parser.add_argument(
        "--tasks", type=at_least(0), default=TRIED_TASKS, metavar="N", help="held-out tasks to try it on (default 8; 0: none)"
    )
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32", "nf4", "int8"),
        help="of weights that are merged, with --to merged (default bfloat16); nf4 and int8 are refused, with the reason",
    )  # fmt: skip
    parser.add_argument("--converter", type=Path, metavar="FILE", help="llama.cpp's convert_lora_to_gguf.py, for --to gguf")
    parser.add_argument(
        "--with-base", action="store_true", help="with --to gguf or vllm: write the base that training saw too, dequantised"
    )
    add_json(parser)


def _export(arguments: argparse.Namespace) -> None:
    if arguments.to != "gguf" and arguments.converter:
        raise UsageError(f"--converter makes a GGUF file, and this writes {arguments.to}. Give --to gguf too.")
    if arguments.to not in ("gguf", "vllm") and arguments.with_base:
        raise UsageError(
            f"--with-base is for servers that take base and adapter apart, and this is {arguments.to}. Give --to gguf or vllm."
        )
    if arguments.to != "merged" and arguments.dtype:
        raise UsageError(f"--dtype is of merged weights, and this writes {arguments.to}. Give --to merged too, or leave it out.")
    from agentalign.deployment.export import export

    done = export(
        Project.find(),
        arguments.ref,
        arguments.folder,
        arguments.to,
        tasks=arguments.tasks,
        dtype=arguments.dtype or "bfloat16",
        converter=arguments.converter,
        with_base=arguments.with_base,
    )
    if arguments.json:
        trial = done.trial.model_dump(mode="json") if done.trial else None
        show_json({**done._asdict(), "folder": str(done.folder), "trial": trial})
        return
    show(str(done.folder))
    serve = f" Serve it:\n  {done.command}" if done.command else " Its README.md says how to load it."
    say(f"{done.adapter} is exported, for the base {done.base}.{serve}")
    for sentence in [*done.unmeasured, *(done.trial.sentences() if done.trial else ())]:
        say(f"  {sentence}")

"""One base of 8B parameters on a card of so many GiB: every stage through the command line, with its seconds and its memory.

    .venv/bin/python benchmarks/card.py --gib 24              # what a 24 GB card would have; drawn weights of that shape, no hub needed
    .venv/bin/python benchmarks/card.py --gib 16 --steps 4
    .venv/bin/python benchmarks/card.py --base llama-toy-drawn --device cpu    # does the script work? no cap on a CPU

Torch is kept from taking more of the GPU than that, in a process of its own per stage; what CUDA itself takes (about half a GiB) comes on
top. Weights are drawn, so the policy writes nonsense as long as it may: seconds of sampling are upper bounds, and no figure here speaks of
quality. What gets no room is told by the stages themselves: smaller micro-batches, activations recomputed, no merged copy to act from.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from agentalign.config.project import Project

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from drawn import DRAWN, drawn_base  # a script beside these, no package

RUN = """
import sys, torch
if float(sys.argv[1]):
    share = float(sys.argv[1]) * 2**30 / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, share))
from agentalign.cli import main
code = main(sys.argv[2:])
if torch.cuda.is_available():
    print(f"peak {torch.cuda.max_memory_allocated() / 2**30:.2f}", file=sys.stderr)
raise SystemExit(code)
"""
TOLD = ("memory", "recompute")
"""A line of a stage with one of these words in it is shown."""


def main() -> None:
    """Run the stages, and print a line of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=24.0, help="what torch may take of the GPU; default: %(default)s")
    parser.add_argument("--base", default="llama-8b-drawn", choices=list(DRAWN))
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of each training; default: %(default)s")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA GPU here; --device cpu --base llama-toy-drawn tries the script out")
    cap = arguments.gib if arguments.device == "cuda" else 0.0
    base = drawn_base(arguments.base, Project.create(Path.cwd()).cache, torch.device(arguments.device))
    name = torch.cuda.get_device_name() if cap else platform.machine()
    print(f"{name}, torch {torch.__version__}, {arguments.base} in NF4, {f'at most {cap:g} GiB' if cap else 'no cap'}")
    with tempfile.TemporaryDirectory() as folder:
        for what, words in stages(base, arguments.steps):
            stage(what, words, cap, Path(folder))


def stages(base: str, steps: int) -> list[tuple[str, list[str]]]:
    """What is run, in turn."""
    short = ["--taskset", "order_desk", "--base", base, "--save_every_steps", "0"]
    steps_of = ["--max_steps", str(steps), "--eval_every_steps", "0"]
    acting = ["--iterations", str(max(1, steps // 2)), "--tasks_per_iteration", "4", "--samples_per_task", "4", "--num_mini_batches", "2"]
    return [
        ("a project", ["init"]),
        ("expert runs", ["rollout", "order_desk", "--policy", "expert", "--tag", "expert", "--limit", "40"]),
        ("sft", ["train", "sft", *short, *steps_of, "--batch_size", "8"]),
        ("12 runs of its policy", ["rollout", "order_desk", "--adapter", "order_desk@1", "--tag", "expert", "--limit", "6", "--n", "2"]),
        ("their scores", ["score", "order_desk"]),
        ("pairs of them", ["pairs", "order_desk"]),
        ("dpo", ["train", "dpo", *short, *steps_of, "--min_reference_prob", "0"]),
        ("reward", ["train", "reward", *short, *steps_of]),
        ("ppo", ["train", "ppo", *short, *acting, "--critic_warmup_steps", "1", "--replay", "4", "--eval_every_steps", "0"]),
    ]


def stage(what: str, words: list[str], cap: float, folder: Path) -> None:
    """One command in a process of its own, and what it took."""
    before = set(folder.glob(".agentalign/trainings/*"))
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", RUN, str(cap), *words], cwd=folder, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    lines = done.stderr.splitlines()
    if done.returncode:
        raise SystemExit(f"{what}: ended with {done.returncode}\n" + "\n".join([*done.stdout.splitlines()[-20:], *lines[-20:]]))
    peak = [line.removeprefix("peak ") for line in lines if line.startswith("peak ")]
    steps = [row for one in set(folder.glob(".agentalign/trainings/*")) - before for row in rows(one / "metrics.jsonl") if "loss" in row]
    each = ", ".join(format(row["seconds"], ".1f") for row in steps)
    print(f"{what}: {seconds:.0f} s in all{each and f'; steps of {each} s'}{f'; peak {peak[0]} GiB' if peak else ''}", flush=True)
    for line in dict.fromkeys([*done.stdout.splitlines(), *lines]):
        if any(word in line for word in TOLD) and not line.startswith("peak "):
            print(f"    {line[:240]}", flush=True)


def rows(file: Path) -> list[dict[str, float]]:
    """The steps of a training."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


if __name__ == "__main__":
    main()

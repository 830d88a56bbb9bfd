"""Ours beside TRL: the same weights, LoRA, token ids and rates, alternating, each side in a process of its own.

    .venv/bin/python benchmarks/peers.py                          # SFT, DPO and reward model on order-desk runs
    .venv/bin/python benchmarks/peers.py --full                   # all workloads and variants, for hours; again: goes on where it ended
    .venv/bin/python benchmarks/peers.py --workloads "rankings of 4" --recipes reward --repetitions 1

A speed counts only when the losses agree, so those come first. Per cell 4 steps, the first of which warms up, and 3 repetitions. A cell's
row is appended to benchmarks/results.json; what an interrupted run had measured stands in .cache/peers and is used by the next one.
Where there is a CUDA GPU both sides train on it. TRL lives in .cache/peers too, in an environment that shares our torch and
transformers. "tuned" gives both sides the rows sorted by length, and TRL its precomputed reference; in "default" TRL computes DPO's
reference inside each step, which ours does before the first and is not timed: compare DPO by "tuned". DPO is trained on what TRL
trains: everything after the prompt, tool results included. TRL's packing is left out: without flash attention it lets packed rows see
each other, and the losses differ. Run it alone on the machine.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch

from agentalign.config.project import Project
from agentalign.training.quantize import fast_bf16

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "peers"))
from workloads import DEVICE, WORKLOADS, by_length, length, make_job  # noqa: E402  scripts beside this one, no package

TRL = "1.16.0"
AGREE = {False: 2e-3, True: 3e-2}
"""Largest relative difference of the losses that rounding explains, by whether bf16 is at work."""
UNITS = {"sft": "samples/s", "dpo": "pairs/s", "reward": "pairs/s"}
Side = dict[str, Any]


class Cell(NamedTuple):
    """What is measured: both sides on one workload."""

    workload: str
    recipe: str
    variant: str

    def __str__(self) -> str:
        return ", ".join(self)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all workloads and variants")
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS))
    parser.add_argument("--recipes", nargs="+", choices=list(UNITS), default=list(UNITS))
    parser.add_argument("--variants", nargs="+", choices=["default", "tuned"])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument(
        "--micro-batch-tokens", type=int, help="ours; TRL takes the whole batch; default: 4096, behind the long prefix 16384"
    )
    parser.add_argument("--json", type=Path, default=HERE / "results.json", help="rows are appended here; default: %(default)s")
    arguments = parser.parse_args()
    workloads = arguments.workloads or (list(WORKLOADS) if arguments.full else ["order desk"])
    variants = arguments.variants or (["tuned", "default"] if arguments.full else ["tuned"])
    cells = [Cell(w, r, v) for w in workloads for r in WORKLOADS[w].recipes if r in arguments.recipes for v in variants]
    peer, folder = environment(), Project.create(Path.cwd()).root / ".cache" / "peers"
    print(
        f"{machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {'bf16' if fast_bf16(DEVICE) else 'fp32'}, TRL {TRL}"
    )
    progress = Progress(folder / "progress.json", f"{machine()} {torch.get_num_threads()} {torch.__version__} {arguments.base}")
    for cell in cells:
        if progress.is_done(cell):
            print(f"\n{cell}: measured before the interruption")
            continue
        measure(cell, arguments, peer, progress)
        row = report(cell, progress.sides(cell))
        before = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json.exists() else []
        arguments.json.write_text(json.dumps([*before, row], indent=1) + "\n", encoding="utf-8")
        progress.done(cell)
    progress.forget()


class Progress:
    """What was measured so far, kept over an interruption; of another machine, thread count, torch or base it keeps nothing."""

    def __init__(self, file: Path, about: str) -> None:
        self.file = file
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        self.kept: dict[str, Any] = found if found.get("about") == about else {"about": about, "cells": {}}

    def sides(self, cell: Cell) -> dict[str, list[Side]]:
        """Repetitions so far."""
        sides: dict[str, list[Side]] = self.kept["cells"].setdefault(str(cell), {"ours": [], "trl": []})
        return {side: sides[side] for side in ("ours", "trl")}

    def add(self, cell: Cell, ours: Side, theirs: Side) -> None:
        """One more repetition of both."""
        for side, one in (("ours", ours), ("trl", theirs)):
            self.sides(cell)[side].append(one)
        self._write()

    def is_done(self, cell: Cell) -> bool:
        """Its row is in the results."""
        return bool(self.kept["cells"].get(str(cell), {}).get("done"))

    def done(self, cell: Cell) -> None:
        """Its row is in the results now."""
        self.kept["cells"][str(cell)]["done"] = True
        self._write()

    def forget(self) -> None:
        """All was measured: the next run begins anew."""
        self.file.unlink(missing_ok=True)

    def _write(self) -> None:
        self.file.write_text(json.dumps(self.kept), encoding="utf-8")


def environment() -> str:
    """The Python of TRL's environment, made on the first call: our packages, and TRL beside them."""
    folder = Project.create(Path.cwd()).root / ".cache" / "peers" / f"trl-{TRL}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        (packages,) = folder.glob("lib/python3*/site-packages")
        (packages / "ours.pth").write_text(f"{Path(torch.__file__).parents[1]}\n", encoding="utf-8")
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-deps", f"trl=={TRL}"], check=True)
        (folder / "ready").touch()
    return str(python)


def measure(cell: Cell, arguments: argparse.Namespace, peer: str, progress: Progress) -> None:
    """The repetitions that are missing, both sides alternating."""
    with tempfile.TemporaryDirectory() as scratch:
        job = make_job(cell.workload, cell.recipe, arguments.base, Path(scratch))
        tuned = cell.variant == "tuned"
        budget = arguments.micro_batch_tokens or WORKLOADS[cell.workload].budget
        job |= {"rows": by_length(job) if tuned else job["rows"], "tuned": tuned, "micro_batch_tokens": budget}
        path = Path(scratch) / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        useful = [sum(map(length, job["rows"][i : i + job["batch"]])) for i in range(0, len(job["rows"]), job["batch"])]
        common = {"useful": useful, "batch": job["batch"], "bf16": job["bf16"]}
        while len(progress.sides(cell)["ours"]) < arguments.repetitions:
            ours = _run([sys.executable, str(HERE / "peers" / "our_side.py"), str(path)])
            theirs = _run([peer, str(HERE / "peers" / "trl_side.py"), str(path)])
            progress.add(cell, ours | common, theirs | common)


def report(cell: Cell, sides: dict[str, list[Side]]) -> dict[str, Any]:
    """Print a cell, and give its row."""
    ours, theirs = sides["ours"][0], sides["trl"][0]
    # The heads of the reward models learn at other scales: only the first step compares.
    compared = 1 if cell.recipe == "reward" else len(ours["losses"])
    pairs = list(zip(ours["losses"][:compared], theirs["losses"][:compared], strict=True))
    equal = all(abs(a - b) <= AGREE[ours["bf16"]] * max(abs(b), 0.1) for a, b in pairs)
    speed = {side: [one["batch"] / statistics.median(one["seconds"][1:]) for one in runs] for side, runs in sides.items()}
    tokens = {side: statistics.median(sum(one["useful"][1:]) / sum(one["seconds"][1:]) for one in runs) for side, runs in sides.items()}
    memory = {side: statistics.median(one["peak_gib"] for one in runs) for side, runs in sides.items()}
    ratio = statistics.median(speed["ours"]) / statistics.median(speed["trl"])
    print(f"\n{cell}: losses {', '.join(f'{a:.4f} and {b:.4f}' for a, b in pairs)}: {'equal' if equal else 'NOT EQUAL'}")
    print(f"  {sum(ours['useful'])} useful tokens, of which ours computed {sum(ours['computed'])}")
    for side, found in speed.items():
        figures = f"{statistics.median(found):7.3f} {UNITS[cell.recipe]} [{min(found):.3f}, {max(found):.3f}]"
        print(f"  {side:5} {figures}  {tokens[side]:7.0f} useful tokens/s  {memory[side]:.2f} GiB")
    print(f"  {ratio:.2f} times as fast, {memory['ours'] / memory['trl']:.2f} of the memory", flush=True)
    return {
        "workload": str(cell), "metric": UNITS[cell.recipe], "ours": statistics.median(speed["ours"]),
        "peer": statistics.median(speed["trl"]), "peer_name": "TRL", "peer_version": theirs["version"], "ratio": ratio,
        "memory_ratio": memory["ours"] / memory["trl"], "losses_equal": equal, "runs": speed, "useful_tokens_per_second": tokens,
        "machine": machine(), "date": date.today().isoformat(),
    }  # fmt: skip


def _run(command: list[str]) -> Side:
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(HERE.parent)})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    found: Side = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def machine() -> str:
    """The GPU's name where there is one, else the processor's."""
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()

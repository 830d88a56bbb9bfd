"""Ours beside TRL: the same weights, LoRA, token ids and rates, alternating, each side in a process of its own.

    .venv/bin/python benchmarks/peers.py                          # SFT, DPO and reward model on order-desk runs
    .venv/bin/python benchmarks/peers.py --full                   # all workloads and variants, for hours; again: goes on where it ended
    .venv/bin/python benchmarks/peers.py --workloads "rankings of 4" --recipes reward --repetitions 1
    .venv/bin/python benchmarks/peers.py --base llama-8b-drawn --quantization nf4       # drawn weights of that shape: on a GPU

A speed counts only when the losses agree, so those come first. Where bf16 is at work both sides also take two steps in fp32: there they
must agree to 0.2 %, and ours in bf16 must be within 3 % of that in the same two (TRL's may be further off: its rounding). A quantized
base is compared in its own precision, within 3 %. Per cell 4 steps, of which the first warms up, and 3 repetitions, all cells in turn.
A cell's row is appended to benchmarks/results.json; what an interrupted run had measured stands in .cache/peers and is used by the next
one. Where there is a CUDA GPU both sides train on it. TRL lives in .cache/peers too, in an environment that shares our torch and
transformers; it does without gradient checkpointing, except where its rows would not fit. "tuned" gives both sides the rows sorted by
length, and TRL its precomputed reference; in "default" TRL computes DPO's reference inside each step, which ours does before the first
and is not timed: compare DPO by "tuned". DPO is trained on what TRL trains: everything after the prompt, tool results included. TRL's
packing is left out: without flash attention it lets packed rows see each other, and the losses differ. Run it alone on the machine.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from agentalign.config.project import Project
from agentalign.training.quantize import fast_bf16

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "peers"))
from drawn import DRAWN, drawn_base  # noqa: E402  scripts beside this one, no package
from workloads import DEVICE, WORKLOADS, by_length, first_steps, length, load_maker, make_job  # noqa: E402

TRL = "1.16.0"
EXACT, ROUNDED = 2e-3, 3e-2
"""Largest relative difference of losses that rounding explains, in fp32 and in bf16."""
EXACT_STEPS = 2
"""Of the comparison in fp32: the second has the first one's gradient in it."""
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
    parser.add_argument("--base", default="smollm2-135m", help=f"a base, or drawn weights: {', '.join(DRAWN)}; default: %(default)s")
    parser.add_argument("--quantization", choices=["none", "nf4"], default="none", help="of the base, on both sides; default: %(default)s")
    parser.add_argument(
        "--micro-batch-tokens", type=int, help="ours; TRL takes the whole batch; default: 4096, behind the long prefix 16384"
    )
    parser.add_argument("--json", type=Path, default=HERE / "results.json", help="rows are appended here; default: %(default)s")
    arguments = parser.parse_args()
    workloads = arguments.workloads or (list(WORKLOADS) if arguments.full else ["order desk"])
    variants = arguments.variants or (["tuned", "default"] if arguments.full else ["tuned"])
    cells = [Cell(w, r, v) for w in workloads for r in WORKLOADS[w].recipes if r in arguments.recipes for v in variants]
    peer, folder = environment(), Project.create(Path.cwd()).root / ".cache" / "peers"
    about = f"{machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, base {arguments.base} in {precision(arguments)}"
    print(f"{about}, TRL {TRL}", flush=True)
    versions = f"TRL {TRL}, transformers {transformers.__version__}, micro-batches {arguments.micro_batch_tokens}, code {code()}"
    progress = Progress(folder / "progress.json", f"{about}, {versions}")
    with tempfile.TemporaryDirectory() as scratch:
        jobs = make_jobs([cell for cell in cells if not progress.is_done(cell)], arguments, Path(scratch))
        for repetition in range(arguments.repetitions):
            for cell, job in jobs.items():
                if len(progress.sides(cell)["ours"]) <= repetition:
                    measure(cell, job, peer, progress)
                if repetition == arguments.repetitions - 1:
                    keep(report(cell, job, progress), arguments.json)
                    progress.done(cell)
    progress.forget(cells)


def precision(arguments: argparse.Namespace) -> str:
    """How both sides compute."""
    return f"{arguments.quantization} and {'bf16' if fast_bf16(DEVICE) else 'fp32'}"


def make_jobs(cells: Sequence[Cell], arguments: argparse.Namespace, scratch: Path) -> dict[Cell, Side]:
    """What each cell trains on, from one loaded base, which is given up again before anything is timed."""
    base = drawn_base(arguments.base, Project.create(Path.cwd()).cache, DEVICE) if arguments.base in DRAWN else arguments.base
    maker, jobs = load_maker(base, arguments.quantization), {}
    for number, cell in enumerate(cells):
        job = make_job(maker, cell.workload, cell.recipe, scratch / str(number))
        tuned = cell.variant == "tuned"
        budget = arguments.micro_batch_tokens or WORKLOADS[cell.workload].budget
        jobs[cell] = job | {"rows": by_length(job) if tuned else job["rows"], "tuned": tuned, "micro_batch_tokens": budget}
    del maker
    torch.cuda.empty_cache()
    return jobs


def keep(row: dict[str, Any], file: Path) -> None:
    """One more row of the results."""
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    if before and before[-1] == row:
        return  # cut between this and the note that it was done
    _replace(file, json.dumps([*before, row], indent=1) + "\n")


def _replace(file: Path, text: str) -> None:
    """Whole or not at all: a run of hours may be cut at any time."""
    partial = file.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def code() -> str:
    """What is measured, in short: two versions of us do not belong into one row."""
    found = hashlib.sha256()
    for file in sorted([*HERE.parent.glob("agentalign/**/*.py"), *HERE.glob("peers/*.py"), Path(__file__)]):
        found.update(file.read_bytes())
    return found.hexdigest()[:12]


class Progress:
    """What was measured so far, kept over an interruption: of this machine, base, precision, versions and code alone."""

    def __init__(self, file: Path, about: str) -> None:
        self.file = file
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        self.kept: dict[str, Any] = found if found.get("about") == about else {"about": about, "cells": {}}

    def sides(self, cell: Cell) -> dict[str, list[Side]]:
        """Repetitions so far."""
        sides: dict[str, list[Side]] = self.kept["cells"].setdefault(str(cell), {"ours": [], "trl": []})
        return {side: sides[side] for side in ("ours", "trl")}

    def exact(self, cell: Cell) -> dict[str, Side]:
        """Both sides in fp32, where the cell is in bf16."""
        found: dict[str, Side] = self.kept["cells"][str(cell)].get("exact", {})
        return found

    def add_exact(self, cell: Cell, ours: Side, theirs: Side) -> None:
        """Both sides in fp32."""
        self.sides(cell)
        self.kept["cells"][str(cell)]["exact"] = {"ours": ours, "trl": theirs}
        self._write()

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

    def forget(self, cells: Sequence[Cell]) -> None:
        """These were measured: who asks for them next begins anew. What a longer run had measured of others stays."""
        for cell in cells:
            self.kept["cells"].pop(str(cell), None)
        self._write()

    def _write(self) -> None:
        _replace(self.file, json.dumps(self.kept))


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


def measure(cell: Cell, job: Side, peer: str, progress: Progress) -> None:
    """One more repetition of both sides, before the first also in fp32 where the losses of that decide."""
    if job["bf16"] and job["quantization"] == "none" and not progress.exact(cell):
        steps = 1 if cell.recipe == "reward" else EXACT_STEPS
        progress.add_exact(cell, *both(first_steps(job, steps) | {"bf16": False}, peer))
    progress.add(cell, *both(job, peer))


def both(job: Side, peer: str) -> tuple[Side, Side]:
    """Ours and TRL's of one job."""
    path = Path(job["scratch"]).parent / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    return (
        _run([sys.executable, str(HERE / "peers" / "our_side.py"), str(path)]),
        _run([peer, str(HERE / "peers" / "trl_side.py"), str(path)]),
    )


def compared(cell: Cell, job: Side, progress: Progress) -> tuple[list[tuple[float, float]], bool, str]:
    """The losses of both sides step by step, whether they are equal, and what decided."""
    ours, theirs = (runs[0]["losses"] for runs in progress.sides(cell).values())
    # The heads of the reward models learn at other scales: only the first step compares.
    pairs = list(zip(ours, theirs, strict=True))[: 1 if cell.recipe == "reward" else None]
    if exact := progress.exact(cell):
        in_fp32 = list(zip(exact["ours"]["losses"], exact["trl"]["losses"], strict=True))
        rounded = zip(ours, exact["ours"]["losses"], strict=False)
        equal = all(_close(a, b, EXACT) for a, b in in_fp32) and all(_close(a, b, ROUNDED) for a, b in rounded)
        return pairs, equal, f"in fp32 {_listed(in_fp32)}"
    bound = ROUNDED if job["bf16"] else EXACT
    return pairs, all(_close(a, b, bound) for a, b in pairs), f"within {bound:.1%}"


def _close(a: float, b: float, bound: float) -> bool:
    return abs(a - b) <= bound * max(abs(b), 0.1)


def _listed(pairs: Sequence[tuple[float, float]]) -> str:
    return ", ".join(f"{a:.4f} and {b:.4f}" for a, b in pairs)


def report(cell: Cell, job: Side, progress: Progress) -> dict[str, Any]:
    """Print a cell, and give its row."""
    sides = progress.sides(cell)
    pairs, equal, by = compared(cell, job, progress)
    useful = [sum(map(length, job["rows"][i : i + job["batch"]])) for i in range(0, len(job["rows"]), job["batch"])]
    speed = {side: [job["batch"] / statistics.median(one["seconds"][1:]) for one in runs] for side, runs in sides.items()}
    tokens = {side: statistics.median(sum(useful[1:]) / sum(one["seconds"][1:]) for one in runs) for side, runs in sides.items()}
    memory = {side: statistics.median(one["peak_gib"] for one in runs) for side, runs in sides.items()}
    ratio = statistics.median(speed["ours"]) / statistics.median(speed["trl"])
    print(f"\n{cell}: losses {_listed(pairs)}: {'equal' if equal else 'NOT EQUAL'} ({by})")
    print(f"  {sum(useful)} useful tokens, of which ours computed {sum(sides['ours'][0]['computed'])}")
    for side, found in speed.items():
        figures = f"{statistics.median(found):7.3f} {UNITS[cell.recipe]} [{min(found):.3f}, {max(found):.3f}]"
        each = job["batch"] / statistics.median(found)
        print(f"  {side:5} {figures}  {each:.2f} s a step  {tokens[side]:7.0f} useful tokens/s  {memory[side]:.2f} GiB")
    print(f"  {ratio:.2f} times as fast, {memory['ours'] / memory['trl']:.2f} of the memory", flush=True)
    return {
        "workload": str(cell), "metric": UNITS[cell.recipe], "ours": statistics.median(speed["ours"]),
        "peer": statistics.median(speed["trl"]), "peer_name": "TRL", "peer_version": sides["trl"][0]["version"], "ratio": ratio,
        "memory_ratio": memory["ours"] / memory["trl"], "losses_equal": equal, "runs": speed, "useful_tokens_per_second": tokens,
        "losses": {"ours": [a for a, _ in pairs], "trl": [b for _, b in pairs]},
        "losses_fp32": {side: one["losses"] for side, one in progress.exact(cell).items()},
        "base": Path(job["name"]).name, "quantization": job["quantization"], "bf16": job["bf16"], "machine": machine(),
        "date": date.today().isoformat(),
    }  # fmt: skip


def _run(command: list[str]) -> Side:
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": _path()})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found: Side = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _path() -> str:
    return os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))


def machine() -> str:
    """The GPU's name where there is one, else the processor's."""
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()

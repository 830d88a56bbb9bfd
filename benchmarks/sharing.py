"""What sharing a beginning is worth: one training step on order-desk runs, packed in a tree and run by run, same weights and tokens.

    .venv/bin/python benchmarks/sharing.py          # 3 repetitions
    .venv/bin/python benchmarks/sharing.py --full   # 10

Prints useful tokens per second (tokens of the separate runs, whatever was computed), and the losses first: a speed counts only when
they agree. Both ways alternate within one process, so that a noisy machine hurts both.
"""

import argparse
import platform
import resource
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from agentalign.config.project import Project
from agentalign.environments.check import expert_run
from agentalign.environments.taskset import load_taskset
from agentalign.environments.team_code import TeamCode
from agentalign.training.base import prepare_base
from agentalign.training.model import Model
from agentalign.training.render import Rendered, render
from agentalign.training.tree import TreeBatch, build_tree

BATCH = 8


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="10 repetitions instead of 3")
    repetitions = 10 if parser.parse_args().full else 3
    model = Model.load(prepare_base("smollm2-135m", Project.create(Path.cwd()).cache), quantization="nf4")
    model.add_adapter("policy", r=16, alpha=32)
    runs = expert_runs(model)
    shared, separate = [build_tree(runs)], [build_tree([run]) for run in runs]
    useful = sum(tree.n_tokens for tree in separate)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {model.dtype}, NF4")
    print(f"{BATCH} runs, {useful} tokens; in a tree {shared[0].n_tokens}: {useful / shared[0].n_tokens:.2f} times fewer")
    times: dict[str, list[float]] = {"tree": [], "run by run": []}
    for number in range(repetitions + 1):
        losses = {}
        for name, trees in (("tree", shared), ("run by run", separate)):
            began = time.perf_counter()
            losses[name] = step(model, trees)
            if number:  # the first of each warms up
                times[name].append(time.perf_counter() - began)
        print(f"loss: tree {losses['tree']:.5f}, run by run {losses['run by run']:.5f}")
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"{name:11} {middle:6.2f} s [{min(seconds):.2f}, {max(seconds):.2f}]  {useful / middle:7.0f} useful tokens/s")
    print(f"ratio of medians {statistics.median(times['run by run']) / statistics.median(times['tree']):.2f}")
    print(f"peak RSS of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


def expert_runs(model: Model) -> list[Rendered]:
    """Runs of eight tasks spread over the train split."""
    taskset = load_taskset("order_desk")
    pool, tasks = TeamCode(taskset.folder), taskset.tasks("train")
    chosen = tasks[:: len(tasks) // BATCH][:BATCH]
    return [render(expert_run(taskset, task, pool), model.dialect, max_tokens=4096) for task in chosen]


def step(model: Model, trees: Sequence[TreeBatch]) -> float:
    """Forward and backward of the mean token loss; returns it."""
    count = sum(len(tree.occurrences) for tree in trees)
    total = 0.0
    with model.using("policy"):
        for tree in trees:
            loss = -model.token_logprobs(tree).sum() / count
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
    return total


if __name__ == "__main__":
    main()

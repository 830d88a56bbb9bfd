"""What sharing a beginning is worth, and what it costs where there is none: training steps of the same weights on the same tokens.

    .venv/bin/python benchmarks/sharing.py          # 3 repetitions
    .venv/bin/python benchmarks/sharing.py --full   # 10

First order-desk runs, packed in a tree and run by run; then rows of random ids, of which no two begin alike, as a tree and as the rows
that transformers' own attention takes. Prints useful tokens per second (tokens of the separate runs, whatever was computed), and the
losses first: a speed counts only when they agree. Both ways alternate within one process, so that a noisy machine hurts both.
"""

import argparse
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from agentalign.config.project import Project
from agentalign.environments.check import expert_run
from agentalign.environments.taskset import load_taskset
from agentalign.environments.team_code import TeamCode
from agentalign.training.attention import TREE_ATTENTION
from agentalign.training.base import prepare_base
from agentalign.training.model import Model
from agentalign.training.render import Rendered, RenderedTurn, render
from agentalign.training.tree import TreeBatch, build_tree

BATCH, ROW = 8, 400


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="10 repetitions instead of 3")
    repetitions = 10 if parser.parse_args().full else 3
    model = Model.load(prepare_base("smollm2-135m", Project.create(Path.cwd()).cache), quantization="nf4")
    model.add_adapter("policy", r=16, alpha=32)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {model.dtype}, NF4")
    runs = expert_runs(model)
    trees = {"tree": [build_tree(runs)], "run by run": [build_tree([run]) for run in runs]}
    print(f"\n{BATCH} order-desk runs")
    compare(trees, lambda name: step(model, trees[name]), repetitions)
    rows = [build_tree(random_rows(int(model.head_weight.shape[0])))]
    print(f"\n{BATCH} rows of {ROW} random ids, nothing shared")
    compare({"tree": rows, "rows": rows}, lambda name: step(model, rows, as_rows=name == "rows"), repetitions)
    print(f"\npeak RSS of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


def compare(trees: Mapping[str, Sequence[TreeBatch]], run: Callable[[str], float], repetitions: int) -> None:
    """Both ways of a step, alternating; prints losses, then times."""
    first, second = trees
    useful, computed = (sum(tree.n_tokens for tree in trees[name]) for name in (second, first))
    print(f"{useful} tokens; in a tree {computed}: {useful / computed:.2f} times fewer")
    times: dict[str, list[float]] = {name: [] for name in trees}
    losses: dict[str, float] = {}
    for number in range(repetitions + 1):
        for name in trees:
            began = time.perf_counter()
            losses[name] = run(name)
            if number:  # the first of each warms up
                times[name].append(time.perf_counter() - began)
    print(f"loss: {first} {losses[first]:.5f}, {second} {losses[second]:.5f}")
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"{name:11} {middle:6.2f} s [{min(seconds):.2f}, {max(seconds):.2f}]  {useful / middle:7.0f} useful tokens/s")
    print(f"ratio of medians {statistics.median(times[second]) / statistics.median(times[first]):.2f}")


def random_rows(words: int) -> list[Rendered]:
    """Rows of one length, no two of which begin alike; the agent wrote the last quarter."""
    draw = torch.Generator().manual_seed(3)
    found = []
    for number in range(BATCH):
        ids = (number + 1, *torch.randint(words, (ROW - 1,), generator=draw).tolist())
        cut = ROW - ROW // 4
        found.append(Rendered(str(number), (RenderedTurn(0, ids[:cut], ids[cut:]),)))
    return found


def expert_runs(model: Model) -> list[Rendered]:
    """Runs of eight tasks spread over the train split."""
    taskset = load_taskset("order_desk")
    pool, tasks = TeamCode(taskset.folder), taskset.tasks("train")
    chosen = tasks[:: len(tasks) // BATCH][:BATCH]
    return [render(expert_run(taskset, task, pool), model.dialect, max_tokens=4096) for task in chosen]


def step(model: Model, trees: Sequence[TreeBatch], *, as_rows: bool = False) -> float:
    """Forward and backward of the mean token loss; returns it."""
    model.tree_capable = not as_rows
    model.network.set_attn_implementation("sdpa" if as_rows else TREE_ATTENTION)
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

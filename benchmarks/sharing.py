"""What sharing a beginning is worth, and what it costs where there is none: training steps of the same weights on the same tokens.

    .venv/bin/python benchmarks/sharing.py          # 3 repetitions
    .venv/bin/python benchmarks/sharing.py --full   # 10

First order-desk runs, packed in a tree, run by run, and as transformers itself can share a beginning: computed once into a cache of keys
and values that keeps its gradient, and the rest as padded rows behind it. Then rows of random ids, of which no two begin alike, as a tree
and as the rows that transformers' own attention takes. Prints useful tokens per second (tokens of the separate runs, whatever was
computed), and the losses first: a speed counts only when they agree. All ways alternate within one process, so that a noisy machine hurts
them alike.
"""

import argparse
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import DynamicCache

from agentalign.config.project import Project
from agentalign.environments.check import expert_run
from agentalign.environments.taskset import load_taskset
from agentalign.environments.team_code import TeamCode
from agentalign.training.attention import TREE_ATTENTION
from agentalign.training.base import prepare_base
from agentalign.training.logprobs import token_logprobs
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
    ways = {name: partial(step, model, trees[name]) for name in trees} | {"cached prefix": partial(cached_step, model, runs)}
    compare(ways, tokens_of(trees["run by run"]), tokens_of(trees["tree"]), repetitions)
    rows = [build_tree(random_rows(int(model.head_weight.shape[0])))]
    print(f"\n{BATCH} rows of {ROW} random ids, nothing shared")
    ways = {"tree": partial(step, model, rows), "rows": partial(step, model, rows, as_rows=True)}
    compare(ways, tokens_of(rows), tokens_of(rows), repetitions)
    print(f"\npeak RSS of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


def tokens_of(trees: Sequence[TreeBatch]) -> int:
    """Tokens that are computed."""
    return sum(tree.n_tokens for tree in trees)


def compare(ways: Mapping[str, Callable[[], float]], useful: int, computed: int, repetitions: int) -> None:
    """All ways of a step, alternating; prints losses, then times, and each beside the first."""
    print(f"{useful} tokens; in a tree {computed}: {useful / computed:.2f} times fewer")
    times: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, float] = {}
    for number in range(repetitions + 1):
        for name, run in ways.items():
            began = time.perf_counter()
            losses[name] = run()
            if number:  # the first of each warms up
                times[name].append(time.perf_counter() - began)
    print("loss: " + ", ".join(f"{name} {loss:.5f}" for name, loss in losses.items()))
    first = statistics.median(next(iter(times.values())))
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        figures = f"{middle:6.2f} s [{min(seconds):.2f}, {max(seconds):.2f}]  {useful / middle:7.0f} useful tokens/s"
        print(f"{name:14} {figures}  {middle / first:.2f} times the first")


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


def cached_step(model: Model, runs: Sequence[Rendered]) -> float:
    """The same loss from one forward of what all runs begin with, and one of the rows behind it; returns it."""
    model.network.set_attn_implementation("sdpa")
    ids = [[*run.turns[-1].context, *run.turns[-1].completion] for run in runs]
    shared = min(len(run.turns[0].context) for run in runs) - 1  # the last of them predicts the first word, and is a row's own
    shared = next((at for at in range(shared) if len({one[at] for one in ids}) > 1), shared)
    longest = max(map(len, ids)) - shared
    rows, valid = torch.zeros(len(ids), longest, dtype=torch.long), torch.ones(len(ids), shared + longest, dtype=torch.long)
    places: list[int] = []
    targets: list[int] = []
    for number, (run, one) in enumerate(zip(runs, ids, strict=True)):
        rows[number, : len(one) - shared] = torch.tensor(one[shared:])
        valid[number, len(one) :] = 0
        for turn in run.turns:
            places += [number * longest + len(turn.context) + i - 1 - shared for i in range(len(turn.completion))]
            targets += turn.completion
    with model.using("policy"), model.precision():
        before = model.backbone(input_ids=torch.tensor([ids[0][:shared]]), use_cache=True).past_key_values
        sides = [(layer.keys, layer.values) for layer in before.layers]
        every = DynamicCache([tuple(side.expand(len(ids), -1, -1, -1) for side in layer) for layer in sides])
        states = model.backbone(input_ids=rows, attention_mask=valid, past_key_values=every, use_cache=True).last_hidden_state
        loss = -token_logprobs(states.flatten(0, 1)[places], model.head_weight, torch.tensor(targets)).mean()
        loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


if __name__ == "__main__":
    main()

"""What benchmarks/peers.py trains on: rows of token ids, an adapter that does something, and a head, the same for every side.

A job is one JSON object, because each side runs in a process of its own and TRL's knows nothing of us. Surprise: rows are made of ids
and not of text, so no template, no tokenizer and no Arrow struct can make one side train on other tokens than the other.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch

from agentalign.config.project import Project
from agentalign.environments.check import expert_run
from agentalign.environments.taskset import load_taskset
from agentalign.environments.team_code import TeamCode
from agentalign.records.trajectory import Message, Trajectory
from agentalign.training.base import prepare_base
from agentalign.training.model import Model
from agentalign.training.quantize import Quantization, fast_bf16
from agentalign.training.render import Rendered, render

STEPS, RATE, BETA, MAX_LENGTH = 4, 1e-4, 0.5, 8192
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PREFIX_TOKENS = 4096

Row = dict[str, list[int]]
Job = dict[str, Any]


class Run(NamedTuple):
    """One run as a row of ids."""

    ids: list[int]
    mask: list[int]
    """1 where the agent wrote."""
    prompt: int
    """Ids before its first word."""


class Workload(NamedTuple):
    """A kind of data, and what is trained on it."""

    recipes: tuple[str, ...]
    batch: int
    """Runs, pairs or rankings per optimizer step."""
    groups: Callable[[int, "Maker"], list[list[Run]]]
    """(how many, maker) -> groups of runs, best first."""
    why: str
    budget: int = 4096
    """Our micro_batch_tokens. A budget that a prefix alone fills leaves nothing to share it with."""
    parts: int = 1
    """Forward passes that TRL makes a step of (gradient accumulation), where all rows at once need more than 23 GiB."""
    recompute: tuple[str, ...] = ()
    """Recipes for which TRL has to recompute activations, since one row by itself needs more than that."""


class Maker:
    """Renders order-desk runs for one base."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.taskset = load_taskset("order_desk")
        self.pool = TeamCode(self.taskset.folder)

    def runs(self) -> Iterator[Trajectory]:
        """The expert's runs of train tasks that need a call, in an order drawn once."""
        tasks = list(self.taskset.tasks("train"))
        random.Random(0).shuffle(tasks)
        for task in tasks:
            run = expert_run(self.taskset, task, self.pool)
            if any(step.message.tool_calls for step in run.steps):
                yield run

    def path(self, run: Trajectory) -> Run:
        """The run as a row."""
        found = render(run, self.model.dialect, max_tokens=MAX_LENGTH)
        last = found.turns[-1]
        return Run([*last.context, *last.completion], _mask(found), len(found.turns[0].context))


def _mask(run: Rendered) -> list[int]:
    mask = [0] * run.n_tokens
    for turn in run.turns:
        mask[len(turn.context) : len(turn.context) + len(turn.completion)] = [1] * len(turn.completion)
    return mask


def detour(run: Trajectory, *, times: int = 1, before: int = -1) -> Trajectory:
    """The same run with a needless call that fails, `times` over, before one of the agent's turns (by default its last)."""
    call = next(call for step in run.steps for call in step.message.tool_calls)
    added: list[Message] = []
    for number in range(times):
        again = call.model_copy(update={"id": f"again_{number}"})
        text = f"Error: this was looked up already ({number})."
        added += [
            Message(role="assistant", tool_calls=(again,)),
            Message(role="tool", tool_call_id=again.id, name=again.name, content=text, error=True),
        ]
    at = run.steps[before].message_index
    return Trajectory(**(run.model_dump(exclude={"id", "messages"}) | {"messages": (*run.messages[:at], *added, *run.messages[at:])}))


def desk(number: int, maker: Maker) -> list[list[Run]]:
    """The expert's run, and one that goes wrong on the way."""
    return [[maker.path(run), maker.path(detour(run))] for run, _ in zip(maker.runs(), range(number), strict=False)]


def long_prefix(number: int, maker: Maker) -> list[list[Run]]:
    """The same behind 4k tokens of tool schemas that all runs have in common."""
    tools = [
        {"name": f"tool_{i}", "description": f"Does thing {i} for the customer.", "parameters": {"type": "object", "properties": {
            f"field_{i}_{j}": {"type": "string", "description": f"What thing {i} needs as number {j}."} for j in range(4)}}}
        for i in range(80)
    ]  # fmt: skip
    text = "\n".join(json.dumps(tool) for tool in tools)
    prefix = maker.model.dialect.tokenizer.encode(text, add_special_tokens=False)[:PREFIX_TOKENS]
    assert len(prefix) == PREFIX_TOKENS
    return [
        [Run(prefix + path.ids, [0] * PREFIX_TOKENS + path.mask, PREFIX_TOKENS + path.prompt) for path in group]
        for group in desk(number, maker)
    ]


def rankings(number: int, maker: Maker) -> list[list[Run]]:
    """Four runs of a task: none to three detours."""
    runs = (run for run, _ in zip(maker.runs(), range(number), strict=False))
    return [[maker.path(run), *(maker.path(detour(run, times=n)) for n in (1, 2, 3))] for run in runs]


def rollouts(number: int, maker: Maker) -> list[list[Run]]:
    """Eight runs of one task, which part at different turns."""
    groups = []
    for run, _ in zip(maker.runs(), range(number // 8), strict=False):
        steps = len(run.steps)
        groups += [[maker.path(detour(run, times=1 + n // steps, before=n % steps))] for n in range(8)]
    return groups


def nothing_shared(number: int, maker: Maker) -> list[list[Run]]:
    """Rows of one length whose very first tokens differ: what sharing costs where it wins nothing."""
    draw = torch.Generator().manual_seed(3)
    words = int(maker.model.head_weight.shape[0])
    length, written = min(600, maker.model.network.config.max_position_embeddings), 150
    groups = []
    for first in range(number):
        ids = torch.randint(words, (length,), generator=draw).tolist()
        ids[0] = first + 1
        groups.append([Run(ids, [0] * (length - written) + [1] * written, length - written)])
    return groups


WORKLOADS = {
    "order desk": Workload(("sft", "dpo", "reward"), 4, desk, "a support desk: 389 of about 588 tokens are the same prompt"),
    "long prefix": Workload(("sft", "dpo"), 4, long_prefix, "4,096 tokens of tool schemas before it", 4 * PREFIX_TOKENS, 4, ("dpo",)),
    "rankings of 4": Workload(("reward",), 2, rankings, "6 pairs of 4 runs", parts=3),
    "groups of 8": Workload(("sft",), 8, rollouts, "8 rollouts of one task a step"),
    "nothing shared": Workload(("sft",), 4, nothing_shared, "random rows: what sharing costs where there is nothing to share"),
}


def load_maker(base: str, quantization: Quantization) -> Maker:
    """The base, loaded once for all jobs, with an adapter that does something."""
    prepared = prepare_base(base, Project.create(Path.cwd()).cache)
    small = quantization == "none"
    model = Model.load(
        prepared, quantization=quantization, device="cpu" if small else str(DEVICE), dtype=torch.float32 if small else torch.bfloat16
    )
    model.add_adapter("policy", r=16, alpha=32, seed=0)
    draw = torch.Generator().manual_seed(1)
    for key, tensor in sorted(model.adapter_tensors("policy").items()):
        if ".lora_B." in key:
            tensor.data.copy_(torch.randn(tensor.shape, generator=draw) * 0.01)
    return Maker(model)


def make_job(maker: Maker, workload: str, recipe: str, scratch: Path) -> Job:
    """All that a side needs for one cell."""
    model, kind = maker.model, WORKLOADS[workload]
    scratch.mkdir(parents=True, exist_ok=True)
    model.save_adapter("policy", scratch / "adapter")
    groups = kind.groups(kind.batch * STEPS, maker)
    assert len(groups) == kind.batch * STEPS, f"{workload}: {len(groups)} groups for {STEPS} steps of {kind.batch}"
    width = int(model.head_weight.shape[1])
    rows = ROWS[recipe](groups)
    draw = torch.Generator().manual_seed(2)
    return {
        "base": str(model.base.folder), "adapter": str(scratch / "adapter"), "scratch": str(scratch / "trl"), "steps": STEPS, "rate": RATE,
        "beta": BETA, "max_length": MAX_LENGTH, "bf16": fast_bf16(DEVICE), "device": DEVICE.type, "quantization": model.quantization,
        "threads": torch.get_num_threads(), "name": model.base.name, "recipe": recipe,
        "rows": rows, "batch": len(rows) // STEPS, "size": len(groups[0]),
        "parts": kind.parts, "recompute": recipe in kind.recompute,
        "head": (torch.randn(width, generator=draw) / width**0.5).tolist(),
    }  # fmt: skip


def first_steps(job: Job, steps: int) -> Job:
    """The same job, ended earlier."""
    return job | {"rows": job["rows"][: steps * job["batch"]], "steps": steps}


def _sft(groups: Sequence[list[Run]]) -> list[Row]:
    return [{"input_ids": best.ids, "assistant_masks": best.mask} for best, *_ in groups]


def _pairs(row: Callable[[Run, Run], Row], groups: Sequence[list[Run]]) -> list[Row]:
    # All ordered pairs of a group lie beside each other: our side puts the group together again.
    return [row(better, worse) for group in groups for better, worse in combinations(group, 2)]


def _dpo_row(a: Run, b: Run) -> Row:
    return {"prompt_ids": a.ids[: a.prompt], "chosen_ids": a.ids[a.prompt :], "rejected_ids": b.ids[b.prompt :]}


def _reward_row(a: Run, b: Run) -> Row:
    return {"chosen_ids": a.ids, "rejected_ids": b.ids}


ROWS: dict[str, Callable[[Sequence[list[Run]]], list[Row]]] = {
    "sft": _sft,
    "dpo": partial(_pairs, _dpo_row),
    "reward": partial(_pairs, _reward_row),
}


def by_length(job: Job) -> list[Row]:
    """The rows sorted by length, the pairs of one group together."""
    size = job["size"] * (job["size"] - 1) // 2 if job["recipe"] != "sft" else 1
    groups = [job["rows"][i : i + size] for i in range(0, len(job["rows"]), size)]
    return [row for group in sorted(groups, key=lambda group: sum(map(length, group))) for row in group]


def length(row: Row) -> int:
    """Tokens of a row as a trainer without sharing or padding would compute them."""
    prompts = len(row.get("prompt_ids", ()))
    return prompts + sum(len(values) for key, values in row.items() if key in ("input_ids", "chosen_ids", "rejected_ids", "prompt_ids"))

"""Several processes that train one adapter: each takes its share of every step, and all hold the same weights throughout.

Started by `accelerate launch` or `torchrun`, which set RANK, WORLD_SIZE and their like. All processes run the same recipe on the same
data; what changes store, registry and checkpoints is done by the first one alone, and its result or its error handed
to the others. With one process every function here is the plain thing it stands for.
"""

import logging
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from agentalign.errors import AgentAlignError, TrainingError

T = TypeVar("T")
SHARDING = {"FSDP": "ACCELERATE_USE_FSDP", "DeepSpeed": "ACCELERATE_USE_DEEPSPEED", "Megatron-LM": "ACCELERATE_USE_MEGATRON_LM"}
"""What `accelerate launch` sets where its config asks for these."""


class StopAskedError(BaseException):
    """Raised out of work that a request to end interrupts. Not an Exception: no handler of errors on its way may take it for one."""


class _Group:
    alone = False


def alone() -> bool:
    """Whether this process may break off by itself: it is the only one, or the others wait for what it does in `first`."""
    return world() == 1 or _Group.alone


def start() -> None:
    """Join the processes that a launcher started; nothing where there is one only.

    Raises:
        TrainingError: the launcher was told to cut the base into shards, which would not happen.
    """
    for name, variable in SHARDING.items():
        if os.environ.get(variable, "false").lower() in ("true", "1"):
            raise TrainingError(
                f"this accelerate config asks for {name}, which agentalign does not do: every process holds the whole base, and only the "
                "steps are shared. Take a config without it, and a base that fits one card; NF4 needs about 0.6 bytes a parameter."
            )
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # Objects and small facts go over gloo in any case; gradients over NCCL where they lie on GPUs.
    # The others wait for the first one's dev gate, however long that takes.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(days=7))
    if rank() > 0:
        logging.getLogger("agentalign").setLevel(logging.ERROR)  # the first one speaks for all


def stop() -> None:
    """Leave the group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world() -> int:
    """How many processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def gathered(value: T) -> list[T]:
    """What every process has, in the order of ranks."""
    if world() == 1:
        return [value]
    found: list[T | None] = [None] * world()
    dist.all_gather_object(found, value)
    return found  # type: ignore[return-value]


def first(work: Callable[[], T]) -> T:
    """The result of the first process, which alone does the work; its error, or a request to end, is raised in all.

    Raises:
        TrainingError: the first process failed with an error that is not one of ours.
    """
    if world() == 1:
        return work()
    box: list[tuple[T | None, AgentAlignError | StopAskedError | None]] = [(None, None)]
    if rank() > 0:
        dist.broadcast_object_list(box, src=0)
    else:
        _Group.alone = True
        try:
            box = [(work(), None)]
        except (AgentAlignError, StopAskedError) as error:
            box = [(None, error)]
        except Exception as error:
            dist.broadcast_object_list([(None, TrainingError(f"the first process failed: {type(error).__name__}: {error}"))], src=0)
            raise
        finally:
            _Group.alone = False
        dist.broadcast_object_list(box, src=0)
    result, failure = box[0]
    if failure is not None:
        raise failure
    return result  # type: ignore[return-value]


def share(items: Sequence[T], size: Callable[[T], int]) -> list[T]:
    """This process's items, in their order: the largest first to whoever has the least so far."""
    if world() == 1:
        return list(items)
    loads, owner = [0] * world(), [0] * len(items)
    for index in sorted(range(len(items)), key=lambda i: (-size(items[i]), i)):
        owner[index] = loads.index(min(loads))
        loads[owner[index]] += size(items[index])
    return [item for item, one in zip(items, owner, strict=True) if one == rank()]


@torch.no_grad()
def sum_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Add up the gradients of all processes, in one message; a process without one counts as zero."""
    if world() == 1 or not parameters:
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in parameters])
    dist.all_reduce(flat)
    parts: Sequence[Tensor] = torch.split(flat, [p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype)

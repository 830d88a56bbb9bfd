"""Several processes that train one adapter: each takes its share of every step, and all hold the same weights throughout.

Started by `accelerate launch` or `torchrun`, which set RANK, WORLD_SIZE and their like. All processes run the same recipe on the same
data; what changes store, registry and checkpoints is done by the first one alone, and its result or its error handed
to the others. With one process every function here is the plain thing it stands for.

Where each holds a part of the base only (`sharding`), a forward is everybody's: then they go *in step*. Surprise: the first one still
works alone, it only says before every forward that the others have to make one too.
"""

import logging
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from agentalign.errors import AgentAlignError, TrainingError

T = TypeVar("T")
FSDP = "ACCELERATE_USE_FSDP"
REFUSED = {"DeepSpeed": "ACCELERATE_USE_DEEPSPEED", "Megatron-LM": "ACCELERATE_USE_MEGATRON_LM"}
"""What `accelerate launch` sets where its config asks for these."""


BROKEN_OFF = (
    "a forward broke off in this process, and the others, each with a part of the base, wait for it there: the training cannot go on. "
    "Give the same command again; where memory was short, with a lower micro_batch_tokens, or eval_every_steps: 0 if it happened in a gate."
)


class StopAskedError(BaseException):
    """Raised out of work that a request to end interrupts. Not an Exception: no handler of errors on its way may take it for one."""


class Shards(NamedTuple):
    """How a base is cut, as an accelerate config says."""

    reshard_after_forward: bool
    """Whether a layer's whole weights are given back before its backward, and gathered again for it."""


class _Group:
    alone = False
    """This process is the first one, in work that the others wait for."""
    shards: Shards | None = None
    forward: Callable[[], None] | None = None
    """A forward of next to nothing: what the others make beside each forward of the first one."""
    within = False
    """A forward was begun and is not over."""
    asked = False
    """To end, while the first one worked alone and in step."""


def break_off() -> None:
    """Raise StopAskedError if this process may: it is the only one, or the others wait for what it does in `first`.

    Where they make its forwards with it, it is raised before the next one.
    """
    if _Group.alone and _Group.forward:
        _Group.asked = True
    elif world() == 1 or _Group.alone:
        raise StopAskedError


def shards() -> Shards | None:
    """How the base is to be cut among the processes; None where each holds all of it."""
    return _Group.shards


def start() -> None:
    """Join the processes that a launcher started; nothing where there is one only and the base is not cut.

    Raises:
        TrainingError: the launcher's config asks for what would not happen.
    """
    for name, variable in REFUSED.items():
        if _says_yes(variable):
            raise TrainingError(
                f"this accelerate config asks for {name}, which agentalign does not do. Take one without it, where every process holds the "
                "whole base (NF4 needs about 0.6 bytes a parameter), or one with FSDP (fsdp_version: 2), which cuts the base into shards."
            )
    if dist.is_initialized():
        return
    if _says_yes(FSDP):
        _Group.shards = _wanted_shards()
        os.environ[FSDP] = "false"  # or transformers would load weights in the first process alone, as accelerate's own wrapper wants it
    # Objects and small facts go over gloo in any case; gradients over NCCL where they lie on GPUs.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        if _Group.shards:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # The others wait for the first one's dev gate, however long that takes.
    dist.init_process_group(backend, timeout=timedelta(days=7))
    if rank() > 0:
        logging.getLogger("agentalign").setLevel(logging.ERROR)  # the first one speaks for all


def _says_yes(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")


def _wanted_shards() -> Shards:
    if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        raise TrainingError(f"this accelerate config asks for FSDP {version}, and a base is cut by FSDP 2 alone here; say fsdp_version: 2.")
    if _says_yes("FSDP_OFFLOAD_PARAMS"):
        raise TrainingError(
            "this accelerate config asks for shards in main memory (fsdp_offload_params), which agentalign does not do: "
            "say false, and take more cards or a smaller base."
        )
    if _says_yes("FSDP_ACTIVATION_CHECKPOINTING"):
        raise TrainingError(
            "this accelerate config asks for fsdp_activation_checkpointing, which is a recipe's setting here: "
            "say false, and gradient_checkpointing: true in the recipe."
        )
    return Shards(_says_yes("FSDP_RESHARD_AFTER_FORWARD"))


def stop() -> None:
    """Leave the group."""
    if dist.is_initialized():
        dist.destroy_process_group()
    _Group.shards = _Group.forward = None
    _Group.within = False


# -------------------------------------------------------------------- in step


def go_in_step(forward: Callable[[], None]) -> None:
    """From here on whatever the first one computes in `first`, the others compute with it, by `forward`."""
    _Group.forward = forward


def forward_begins() -> None:
    """To be called before every forward of a base that is cut.

    Raises:
        StopAskedError: a request to end came since the last one.
        TrainingError: an earlier forward broke off, and the others still wait inside of it.
    """
    if _Group.within:
        raise TrainingError(BROKEN_OFF)
    if _Group.asked:
        raise StopAskedError
    _Group.within = True
    if _Group.alone:
        _tell(more=True)


def forward_ends() -> None:
    """To be called after every one."""
    _Group.within = False


def _tell(*, more: bool = False) -> bool:
    """Whether the first one makes another forward; it says so, and the others hear it."""
    word = torch.tensor([int(more)])
    dist.broadcast(word, src=0)
    return bool(word.item())


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
        while _Group.forward and _tell():
            _Group.forward()
        dist.broadcast_object_list(box, src=0)
    else:
        box = [_alone(work)]
        _hand_out(box)
    result, failure = box[0]
    if failure is not None:
        raise failure
    return result  # type: ignore[return-value]


def _alone(work: Callable[[], T]) -> tuple[T | None, AgentAlignError | StopAskedError | None]:
    _Group.alone = True
    try:
        return work(), None
    except Exception as error:
        if _Group.within:
            # Nothing can be said to the others, who wait for the rest of this forward: the launcher ends them.
            raise TrainingError(BROKEN_OFF) from error
        if isinstance(error, AgentAlignError):
            return None, error
        _hand_out([(None, TrainingError(f"the first process failed: {type(error).__name__}: {error}"))])
        raise
    except StopAskedError as request:
        return None, request
    finally:
        _Group.alone = _Group.asked = False


def _hand_out(box: list[Any]) -> None:
    if _Group.forward:
        _tell(more=False)
    dist.broadcast_object_list(box, src=0)


def shares(items: Sequence[T], size: Callable[[T], int]) -> list[list[T]]:
    """Every process's items, in their order: the largest first to whoever has the least so far."""
    loads: list[int] = [0] * world()
    owner = [0] * len(items)
    for index in sorted(range(len(items)), key=lambda i: (-size(items[i]), i)):
        owner[index] = loads.index(min(loads))
        loads[owner[index]] += size(items[index])
    return [[item for item, one in zip(items, owner, strict=True) if one == place] for place in range(world())]


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

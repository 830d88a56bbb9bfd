"""Several processes that train one adapter: each takes its share of every step, and all hold the same weights throughout.

Started by `accelerate launch` or `torchrun`, which set RANK, WORLD_SIZE and their like. All processes run the same recipe on the same
data; what changes store, registry and checkpoints is done by the first one alone, and its result or its error handed
to the others. With one process every function here is the plain thing it stands for.

Where each holds a part of the base only (`sharding`), a forward is everybody's. Surprise: the first one still works alone, it only says
before every forward that the others have to make one too.
"""

import logging
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from agentalign.errors import AgentAlignError, TrainingError

T = TypeVar("T")
FSDP = "ACCELERATE_USE_FSDP"
REFUSED = {"DeepSpeed": "ACCELERATE_USE_DEEPSPEED", "Megatron-LM": "ACCELERATE_USE_MEGATRON_LM"}
"""What `accelerate launch` sets where its config asks for these."""


class BrokenOffError(TrainingError):
    """A forward or backward of a base in shards broke off in one process, and the others wait inside it."""


class StopAskedError(BaseException):
    """Raised out of work that a request to end interrupts. Not an Exception: no handler of errors on its way may take it for one."""


class _Group:
    alone = False
    """This process is the first one, in work that the others wait for."""
    sharded = False
    follow: Callable[[], None] | None = None
    """A forward of next to nothing: what the others make beside each forward of the first one."""
    within = False
    """A forward of a base in shards was begun and is not over."""
    asked = False
    """To end, in such a forward."""


def break_off() -> None:
    """Raise StopAskedError if this process may: it is the only one, or the others wait for what it does in `first`.

    Inside a forward that the others make with it, it is raised before the next one.
    """
    if world() == 1 or (_Group.alone and not _Group.within):
        raise StopAskedError
    if _Group.alone:
        _Group.asked = True


def sharded() -> bool:
    """Whether the base is to be cut among the processes; else each holds all of it."""
    return _Group.sharded


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
        _require_known_shards()
        _Group.sharded = True
        os.environ[FSDP] = "false"  # or transformers would load weights in the first process alone, as accelerate's own wrapper wants it
    # Objects and small facts go over gloo in any case; gradients over NCCL where they lie on GPUs.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        if _Group.sharded:
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


def _require_known_shards() -> None:
    if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        raise TrainingError(f"this accelerate config asks for FSDP {version}, and a base is cut by FSDP 2 alone here; say fsdp_version: 2.")
    if _says_yes("FSDP_OFFLOAD_PARAMS"):
        raise TrainingError(
            "this accelerate config asks for shards in main memory (fsdp_offload_params), which agentalign does not do: "
            "say false, and take more cards or a smaller base."
        )
    if os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() in ("false", "0"):
        raise TrainingError(
            "this accelerate config asks to keep whole layers after their forward (fsdp_reshard_after_forward: false), so that every "
            "process would hold the whole base while it acts and reads: say true."
        )
    if _says_yes("FSDP_ACTIVATION_CHECKPOINTING"):
        raise TrainingError(
            "this accelerate config asks for fsdp_activation_checkpointing, which is a recipe's setting here: "
            "say false, and gradient_checkpointing: true in the recipe."
        )


def stop() -> None:
    """Leave the group."""
    if dist.is_initialized():
        dist.destroy_process_group()
    _Group.sharded = _Group.within = _Group.asked = False
    _Group.follow = None


# -------------------------------------------------------------------- a base in shards


def follow_by(forward: Callable[[], None]) -> None:
    """From here on the others make `forward` beside every forward of the first one in `first`."""
    _Group.follow = forward


def forward_begins() -> None:
    """To be called before every forward of a base that is cut.

    Raises:
        StopAskedError: a request to end came since the last one.
        TrainingError: an earlier forward broke off, and the others still wait inside of it.
    """
    if _Group.within:
        raise broken_off()
    if _Group.asked:
        raise StopAskedError
    _Group.within = True
    if _Group.alone:
        _tell(more=True)


def forward_ends() -> None:
    """To be called after every one, and after one that every process broke off at the same place."""
    _Group.within = False


def broken_off(cause: BaseException | None = None, *, hint: str = "") -> BrokenOffError:
    """What is left to say then."""
    why = f" ({type(cause).__name__}: {' '.join(str(cause).split())[:300]})" if cause else ""
    what = hint or "Give the same command again; if memory was out, it takes more or larger cards, or a smaller base."
    return BrokenOffError(
        f"a forward or backward broke off in this process{why}. Where others hold parts of the base they wait inside it, so the training "
        f"ends here, and what was saved is kept. {what}"
    )


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
        while _Group.follow and _tell():
            _Group.follow()
        dist.broadcast_object_list(box, src=0)
    else:
        try:
            box = [_alone(work)]
        except BrokenOffError:
            raise
        except Exception as error:
            if _Group.within:  # nothing can be said to the others, who wait for the rest of that forward
                raise broken_off(error) from error
            _hand_out([(None, TrainingError(f"the first process failed: {type(error).__name__}: {error}"))])
            raise
        _hand_out(box)
    result, failure = box[0]
    if failure is not None:
        raise failure
    return result  # type: ignore[return-value]


def _alone(work: Callable[[], T]) -> tuple[T | None, AgentAlignError | StopAskedError | None]:
    found: T | None = None
    error: AgentAlignError | StopAskedError | None = None
    _Group.alone = True
    try:
        found = work()
    except (AgentAlignError, StopAskedError) as raised:
        error = raised
    finally:
        _Group.alone = _Group.asked = False
    if _Group.within:  # whoever caught what was raised there
        raise error or broken_off()
    return found, error


def _hand_out(box: list[Any]) -> None:
    if _Group.follow:
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

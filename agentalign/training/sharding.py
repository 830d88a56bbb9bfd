"""A base that outgrows one card: each process keeps a part of every layer, and all of it only about the time when the layer is computed.

torch's FSDP2 cuts the frozen layers and gathers them; adapters, heads, embeddings and the output matrix stay whole in every process, as
without it. Surprise: gathering needs every process, so all must make the same forwards and backwards in the same order, whatever each
has to compute. Who has less than the others makes up for it with forwards of two tokens that count for nothing.
"""

import logging
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import bitsandbytes as bnb
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from agentalign.errors import ModelError
from agentalign.training import ranks
from agentalign.training.generate import Generator
from agentalign.training.quantize import Quantization, load_network
from agentalign.training.tree import TreeBatch, build_tree

if TYPE_CHECKING:
    from agentalign.training.model import Model

logger = logging.getLogger("agentalign")
RESETS = hasattr(FSDPModule, "reset_iter_state")
"""Whether this torch can forget a forward, as 2.13 can."""
PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others inside a layer. They wait for tools and checks elsewhere, and for days if need be."""


def load_base(folder: Path, quantization: Quantization, *, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The frozen base, whole or, where the launcher asks for it, as this process's shards of it.

    For shards it is read, and quantized, in main memory first: there must be room for one quantized base a process there, and on the
    device for its share of the layers, two or three whole layers, and embeddings and output matrix.

    Raises:
        ModelError: as `load_network`; a base that cannot be cut.
    """
    if not ranks.sharded():
        return load_network(folder, quantization, dtype=dtype, device=device)
    if quantization == "int8":
        raise ModelError("int8 layers keep their scales apart from their weights and cannot be cut into shards; take nf4 or none.")
    network = load_network(folder, quantization, dtype=dtype, device=torch.device("cpu"))
    layers = _layers(network.get_decoder())
    if not layers:
        raise ModelError(f"{type(network).__name__} has no layers of its own as transformers marks them, so it cannot be cut into shards.")
    mesh = DeviceMesh.from_group(dist.new_group(backend="nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE), device.type)
    for layer in layers:
        _cut(layer, mesh, device)
    inside = {module for layer in layers for module in layer.modules()}
    for module in network.modules():
        if module not in inside:
            _move(module, device)
    whole = {parameter for parameter in network.parameters() if not isinstance(parameter, DTensor)}
    # The trunk has nothing to gather: as the layers' root it lets them be gathered ahead of their turn.
    fully_shard(network.get_decoder(), mesh=mesh, reshard_after_forward=False, ignored_params=whole)
    logger.info("the base is cut into shards: each of %d processes holds %.3f GiB of it", ranks.world(), bytes_of(network) / 2**30)
    return network


def _layers(trunk: nn.Module) -> list[nn.Module]:
    """The outermost ones; none where two of them share weights, which one shard cannot serve."""
    found: list[nn.Module] = []
    for module in trunk.modules():  # whoever holds others comes first
        if isinstance(module, GradientCheckpointingLayer) and not any(module in one.modules() for one in found):
            found.append(module)
    owned = [id(parameter) for layer in found for parameter in layer.parameters()]
    return found if len(owned) == len(set(owned)) else []


def _cut(layer: nn.Module, mesh: DeviceMesh, device: torch.device) -> None:
    layer.to(device)
    rounded = [(module, module.weight) for module in layer.modules() if isinstance(module, bnb.nn.Linear4bit)]
    fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    for module, weight in rounded:
        # What a 4-bit weight knows of itself is lost with its type: the layer asks itself then, and PEFT its shard.
        module.quant_state = weight.quant_state
        module.weight.quant_type, module.weight.compress_statistics = weight.quant_type, weight.compress_statistics


def _move(module: nn.Module, device: torch.device) -> None:
    """What a module outside of the layers holds itself; a leaf as a whole, since some (4-bit ones) hold more than tensors."""
    if not any(True for _ in module.children()):
        module.to(device)
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.to(device)
    for name, buffer in module.named_buffers(recurse=False):
        module._buffers[name] = buffer.to(device)


def bytes_of(network: nn.Module) -> int:
    """What its parameters take in this process."""
    parts = (p.to_local() if isinstance(p, DTensor) else p for p in network.parameters())
    return sum(part.numel() * part.element_size() for part in parts)


class _Turn(NamedTuple):
    context: tuple[int, ...]
    completion: tuple[int, ...]


class _Run(NamedTuple):
    turns: tuple[_Turn, ...]


def follow_first(model: "Model") -> None:
    """Let the other processes make every forward that the first one makes alone. Nothing to do for a base that is whole."""
    if not ranks.sharded():
        return
    model.backbone.register_forward_pre_hook(lambda *_: ranks.forward_begins())
    model.backbone.register_forward_hook(lambda *_: _forward_ends(model))
    small = _smallest(model)

    @torch.no_grad()
    def forward() -> None:
        model.hidden(small)

    # The first forward makes the room that layers are gathered in. Were it one of a policy that acts, in inference mode, no backward could
    # ever use that room. It also finds out whether trees are refused, and the generator whether batches are: here every process does.
    forward()
    model.batched_refusal = Generator(model.network, model.dialect.stop_ids, model.dialect.pad_id).refusal
    if model.batched_refusal:
        begin_anew(model)
    ranks.follow_by(forward)


def _forward_ends(model: "Model") -> None:
    ranks.forward_ends()
    if not torch.is_grad_enabled() and RESETS:
        # FSDP notes every layer's turn for the backward, and none comes: a gate would leave millions of notes, and a wrong layer gathered.
        model.backbone.reset_iter_state()  # type: ignore[operator]


def begin_anew(model: "Model") -> None:
    """After a refusal inside a forward, which every process met at the same place: as if that forward had not begun."""
    if not ranks.sharded():
        return
    if not RESETS:
        raise ModelError(
            f"{model.base.name} refuses trees or batches inside a forward, and torch {torch.__version__} cannot take one back from shards; "
            "torch 2.13 can."
        )
    model.backbone.reset_iter_state()  # type: ignore[operator]
    ranks.forward_ends()


def pad_forwards(model: "Model", missing: int) -> None:
    """Make forwards, and backwards where gradients are on, that add nothing. To be called inside `model.using`.

    Args:
        missing: how many the other processes make that this one does not.
    """
    if not ranks.sharded():
        return
    small = _smallest(model)
    for _ in range(missing):
        hidden = model.hidden(small)
        if hidden.requires_grad:
            hidden.backward(torch.zeros_like(hidden))  # type: ignore[no-untyped-call]


def _smallest(model: "Model") -> TreeBatch:
    token = model.dialect.pad_id
    return build_tree([_Run((_Turn((token,), (token,)),))]).to(model.device)

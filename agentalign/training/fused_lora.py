"""A LoRA forward that adds where PEFT's copies.

PEFT's 4-bit layers clone their output, cast the input to the adapter's fp32 and add in a pass of its own; on one adapter that is a
tenth of an 8B forward and more on small models. Here one `addmm` writes the sum of the base layer's output and the low-rank
product. In fp32 it is not even computed: it is added to the weight, which a 4-bit layer restores for each product anyway. (In bf16
that would round small updates away.) Only plain LoRA without dropout is fused, which is all this project trains; anything else
keeps PEFT's own forward.
"""

from typing import Any

import bitsandbytes as bnb
import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from agentalign.training.quantize import plain_weight, quant_state_of


def fuse_lora(network: nn.Module) -> None:
    """Give every LoRA layer the fused forward; safe to call again after adding an adapter."""
    for module in network.modules():
        if isinstance(module, LoraLayer) and "_peft_forward" not in module.__dict__:
            module.__dict__["_peft_forward"] = module.forward
            module.forward = _bind(module)


def _bind(module: LoraLayer) -> Any:
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        active = module.active_adapters
        plain = not module.disable_adapters and not module.merged and len(active) == 1 and active[0] in module.lora_A
        if not plain or args or kwargs or active[0] in module.lora_variant or not isinstance(module.lora_dropout[active[0]], nn.Identity):
            result: Tensor = module.__dict__["_peft_forward"](x, *args, **kwargs)
            return result
        return _fused(module, x, active[0])

    return forward


def _fused(module: LoraLayer, x: Tensor, adapter: str) -> Tensor:
    layer, scale = module.base_layer, float(module.scaling[adapter])
    lora_a, lora_b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
    rows = x.reshape(-1, x.shape[-1])
    if _foldable(layer, x):
        folded: Tensor = _FoldedLora.apply(rows, lora_a, lora_b, layer, scale)  # type: ignore[no-untyped-call]
        return folded.view(*x.shape[:-1], -1)
    base: Tensor = layer(x)
    down, up = lora_a.to(x.dtype), lora_b.to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        # Not addmm_: 8-bit layers, and 4-bit ones with a bias, hand out views that were made inside a custom Function.
        return torch.addmm(base.reshape(rows.shape[0], -1).to(x.dtype), rows @ down.t(), up.t(), alpha=scale).view(base.shape)


def _foldable(layer: nn.Module, x: Tensor) -> bool:
    """fp32 throughout, and a layer whose forward is a product with its plain weight (an int8 layer rounds its input)."""
    if x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type):
        return False
    return type(layer) is nn.Linear or (isinstance(layer, bnb.nn.Linear4bit) and quant_state_of(layer) is not None)


class _FoldedLora(torch.autograd.Function):
    """x (R, in) @ (W + scale B A).T + bias. The sum is made anew in the backward: nothing of the weight's size is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lora_a: Tensor, lora_b: Tensor, layer: nn.Linear, scale: float) -> Tensor:
        ctx.save_for_backward(x, lora_a, lora_b)
        ctx.settings = (layer, scale)
        return F.linear(x, _folded_weight(layer, lora_a, lora_b, scale), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, lora_a, lora_b = ctx.saved_tensors
        layer, scale = ctx.settings
        (d_out,) = gradients
        wants_x, wants_a, wants_b = ctx.needs_input_grad[:3]
        d_x = d_out @ _folded_weight(layer, lora_a, lora_b, scale) if wants_x else None
        d_a = ((d_out @ lora_b).t() @ x).mul_(scale) if wants_a else None
        d_b = (d_out.t() @ (x @ lora_a.t())).mul_(scale) if wants_b else None
        return d_x, d_a, d_b, None, None


def _folded_weight(layer: nn.Module, lora_a: Tensor, lora_b: Tensor, scale: float) -> Tensor:
    return torch.addmm(plain_weight(layer), lora_b, lora_a, alpha=scale)

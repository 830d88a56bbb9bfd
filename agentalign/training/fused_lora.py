"""A LoRA forward that adds in place of copying.

PEFT's 4-bit layers clone their output, cast the input to the adapter's fp32 and add in a pass of its own; on one adapter that is a
tenth of an 8B forward and more on small models. Here the low-rank product is accumulated into the base layer's output by one
`addmm`. Only plain LoRA without dropout is fused, which is all this project trains; anything else keeps PEFT's own forward.
"""

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


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
    base: Tensor = module.base_layer(x)
    down, up = module.lora_A[adapter].weight.to(x.dtype), module.lora_B[adapter].weight.to(x.dtype)
    rows = x.reshape(-1, x.shape[-1])
    with torch.autocast(x.device.type, enabled=False):
        return torch.addmm(base.reshape(rows.shape[0], -1).to(x.dtype), rows @ down.t(), up.t(), alpha=module.scaling[adapter]).view(
            base.shape
        )

"""The fused forward is the base layer's product plus the adapter's, and so are its gradients."""

from contextlib import nullcontext

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from agentalign.training.fused_lora import fuse_lora
from agentalign.training.quantize import plain_weight

IN, OUT, RANK, SCALE = 64, 96, 4, 2.0


class Net(nn.Module):
    """One layer, as PEFT wants to find it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def make_layer(kind, dtype):
    torch.manual_seed(0)
    plain = nn.Linear(IN, OUT, bias=kind != "nf4")
    if kind == "plain":
        return plain.to(dtype)
    if kind == "int8":
        made = bnb.nn.Linear8bitLt(IN, OUT, has_fp16_weights=False)
        made.weight = bnb.nn.Int8Params(plain.weight.data, requires_grad=False, has_fp16_weights=False).to("cpu")
    else:
        made = bnb.nn.Linear4bit(IN, OUT, bias=plain.bias is not None, compute_dtype=dtype, quant_type="nf4")
        made.weight = bnb.nn.Params4bit(plain.weight.data.to(dtype), requires_grad=False, quant_type="nf4").to("cpu")
        made.support_avx512bf16_for_cpu = False
    if plain.bias is not None:
        made.bias = nn.Parameter(plain.bias.data.to(dtype))
    return made


def make_lora(kind, dtype):
    """The layer under an adapter that does something, with fp32 weights."""
    net = Net(make_layer(kind, dtype))
    net.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=SCALE * RANK, target_modules=["layer"]), net)
    draw = torch.Generator().manual_seed(1)
    lora = [net.layer.lora_A["default"].weight, net.layer.lora_B["default"].weight]
    for weight in lora:
        weight.data = torch.randn(weight.shape, generator=draw) * 0.3
        weight.requires_grad_()
    return net, lora


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["plain", "nf4", "nf4 with a bias", "int8"])
@pytest.mark.parametrize("frozen_input", [False, True])
def test_output_and_gradients_are_those_of_the_two_products(kind, dtype, frozen_input):
    net, (lora_a, lora_b) = make_lora(kind, dtype)
    fuse_lora(net)
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(1, 7, IN, generator=draw).to(dtype).requires_grad_(not frozen_input)
    weights = torch.randn(1, 7, OUT, generator=draw)
    with torch.autocast("cpu", dtype=dtype) if dtype == torch.bfloat16 else nullcontext():
        out = net(x)
    (out.float() * weights).sum().backward()

    known = [x.detach().double(), lora_a.detach().double(), lora_b.detach().double()]
    for value in known:
        value.requires_grad_()
    base = net.layer.base_layer
    whole = plain_weight(base).double() + SCALE * known[2] @ known[1]
    expected = known[0] @ whole.t() + (0 if base.bias is None else base.bias.double())
    (expected * weights.double()).sum().backward()

    assert out.dtype == dtype and out.shape == (1, 7, OUT)
    found = [out, lora_a.grad, lora_b.grad, *([] if frozen_input else [x.grad])]
    wanted = [expected, known[1].grad, known[2].grad, *([] if frozen_input else [known[0].grad])]
    for one, other in zip(found, wanted, strict=True):
        off = float((one.detach().double() - other.detach()).abs().max() / other.detach().abs().max())
        # An int8 layer rounds its input as well.
        assert off < (1e-5 if dtype == torch.float32 and kind != "int8" else 3e-2), off


def test_what_is_not_plain_lora_keeps_pefts_own_forward():
    net, _ = make_lora("plain", torch.float32)
    x = torch.randn(1, 5, IN)
    expected = net(x)
    net.layer.lora_dropout["default"] = nn.Dropout(0.0)  # no Identity: PEFT computes it, to the same numbers here
    fuse_lora(net)
    torch.testing.assert_close(net(x), expected)

"""The base network: loaded once, quantized or not, and read back as plain weights for merging.

Surprise: bitsandbytes on a CPU with avx512_bf16 repacks 4-bit weights in place at the first forward without gradients, for a kernel
that has no backward; LoRA gradients are then 97-99 % wrong while the loss hardly moves. The switch that allows it is turned off on
every layer right after loading, and a test compares gradients before and after an evaluation.
"""

from pathlib import Path
from typing import Any, Literal

import bitsandbytes as bnb
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from agentalign.errors import ModelError

Quantization = Literal["nf4", "int8", "none"]


def fast_bf16(device: torch.device) -> bool:
    """True where bfloat16 products are computed by hardware; elsewhere fp32 is both faster and safer."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        cpu = torch.cpu
        return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())
    return False


def load_network(folder: Path, quantization: Quantization, *, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The frozen base from a local folder of safetensors.

    Raises:
        ModelError: the folder holds no causal language model, or one whose logits need more than a matrix product.
    """
    config = _quantization_config(quantization, dtype)
    try:
        network: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=dtype,
            quantization_config=config,
            device_map={"": str(device)} if config or device.type != "cpu" else None,
            local_files_only=True,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} cannot be loaded as a causal language model: {error}. Give a Hugging Face folder or name.") from error
    _refuse_scaled_logits(network)
    _refuse_biased_head(network)
    for module in network.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    _silence_dropout(network)
    network.requires_grad_(False)
    return network.eval()


def _silence_dropout(network: PreTrainedModel) -> None:
    # Layers have to be in training mode to recompute, and some (OPT's, Falcon's) then drop by a number of their own or of their config.
    for holder in (network.config, network.config.get_text_config(), *network.modules()):
        for name, value in list(vars(holder).items()):
            if "drop" in name and isinstance(value, float):
                setattr(holder, name, 0.0)


def _quantization_config(quantization: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if quantization == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    return BitsAndBytesConfig(load_in_8bit=True) if quantization == "int8" else None


def quantization_recipe(quantization: Quantization, dtype: torch.dtype) -> dict[str, str]:
    """How a base is rounded, in full, for the card: a merge or a server must do the same or say that it does not."""
    computed = {"dtype": str(dtype).removeprefix("torch.")}
    if quantization == "none":
        return computed
    library = {"library": f"bitsandbytes {bnb.__version__}", "bits": "4" if quantization == "nf4" else "8"}
    details = {"type": "nf4", "double_quantization": "true"} if quantization == "nf4" else {"type": "LLM.int8()"}
    return {**library, **details, **computed}


def _refuse_scaled_logits(network: PreTrainedModel) -> None:
    # A base that also sees or hears keeps its language model's settings a floor below its own.
    settings = [config.to_dict() for config in (network.config.get_text_config(), network.config)]
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if odd := [some[name] for some in settings if some.get(name) not in (None, 0, 1, 1.0)]:
            raise ModelError(
                f"{type(network).__name__} changes its logits after the output matrix ({name} = {odd[0]}), which training on "
                "log-probabilities here does not compute. Choose a base without it."
            )


def _refuse_biased_head(network: PreTrainedModel) -> None:
    if getattr(network.get_output_embeddings(), "bias", None) is not None:
        raise ModelError(
            f"{type(network).__name__} adds a bias to its logits, which training on log-probabilities here does not compute. "
            "Choose a base without it."
        )


def quant_state_of(module: bnb.nn.Linear4bit) -> Any:
    """What its bytes mean; None before they are quantized. Of a weight that was gathered from shards the layer knows it."""
    state = getattr(module.weight, "quant_state", None)
    return module.quant_state if state is None else state


def plain_weight(module: nn.Module) -> Tensor:
    """(out, in) weight of a linear layer as the quantized forward sees it, fp32.

    Raises:
        ModelError: a kind of layer that cannot be read back.
    """
    if isinstance(module, bnb.nn.Linear4bit):
        restored: Tensor = bnb.functional.dequantize_4bit(module.weight.data, quant_state_of(module))
        return restored.float()
    if isinstance(module, bnb.nn.Linear8bitLt):
        scale = module.state.SCB if module.state.SCB is not None else module.weight.SCB
        rescaled: Tensor = module.weight.data.float() * scale.float().view(-1, 1) / 127.0
        return rescaled
    if isinstance(module, nn.Linear):
        return module.weight.data.float()
    raise ModelError(f"a layer of type {type(module).__name__} cannot be merged; target only linear layers.")

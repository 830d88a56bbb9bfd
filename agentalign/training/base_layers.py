"""Names and shapes of a base's linear layers, from its config alone: no weight is loaded."""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM


def linear_layers(base_folder: Path) -> dict[str, tuple[int, int]]:
    """Name -> (outputs, inputs) of every linear layer of the base, the output matrix included."""
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(base_folder), local_files_only=True))
    return {name: (module.out_features, module.in_features) for name, module in network.named_modules() if isinstance(module, nn.Linear)}

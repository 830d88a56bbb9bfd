"""Every form of LoRA that computes W + s B A, and the one form that all servers compute alike.

rsLoRA and the patterns of ranks and alphas are other ways to write the scale s of a layer. Folded into B, with A and B padded by zeros to
one rank, they are plain LoRA with alpha = r: the same product, exactly, wherever it is loaded.
Surprise: llama.cpp converts the other forms without a word, and then scales every layer by alpha / rank.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from agentalign.training.adapter_files import AdapterConfig

PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class LoraForm:
    """What an adapter_config.json says about ranks and scales."""

    r: int
    alpha: float
    targets: tuple[str, ...]
    """Last names of the adapted layers, sorted."""
    rslora: bool = False
    """The scale is alpha / sqrt(r) and not alpha / r."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Layer name, or the end of one -> rank; the first that fits counts, as in PEFT."""
    alphas: Mapping[str, float] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """True where every server reads it alike."""
        return not (self.rslora or self.ranks or self.alphas)

    def rank(self, module: str) -> int:
        """Rank of the layer of that name."""
        return next((rank for name, rank in self.ranks.items() if _ends(module, name)), self.r)

    def scale(self, module: str) -> float:
        """What B A is multiplied by in the layer of that name."""
        alpha = next((alpha for name, alpha in self.alphas.items() if _ends(module, name)), self.alpha)
        rank = self.rank(module)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def shapes(self, layers: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        """PEFT's key -> shape of every tensor that this adapter has on these layers, name -> (outputs, inputs)."""
        found: dict[str, tuple[int, int]] = {}
        for module, (outputs, inputs) in layers.items():
            if module.rsplit(".", 1)[-1] in self.targets:
                found[f"{PREFIX}{module}{A}"] = (self.rank(module), inputs)
                found[f"{PREFIX}{module}{B}"] = (outputs, self.rank(module))
        return found


def canonical(form: LoraForm, tensors: Mapping[str, Tensor]) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """Plain LoRA that computes the same: one rank, alpha = rank, every scale inside B. A plain form stays as it is.

    Args:
        tensors: complete, by PEFT's keys, as `LoraForm.shapes` lists them.
    """
    if form.plain:
        return AdapterConfig(r=form.r, alpha=form.alpha, targets=form.targets), dict(tensors)
    modules = [key.removeprefix(PREFIX).removesuffix(A) for key in tensors if key.endswith(A)]
    rank = max(form.rank(module) for module in modules)
    folded: dict[str, Tensor] = {}
    for module in modules:
        a, b = tensors[f"{PREFIX}{module}{A}"].float(), tensors[f"{PREFIX}{module}{B}"].float()
        spare = rank - a.shape[0]
        folded[f"{PREFIX}{module}{A}"] = torch.cat([a, a.new_zeros(spare, a.shape[1])])
        folded[f"{PREFIX}{module}{B}"] = torch.cat([b * form.scale(module), b.new_zeros(b.shape[0], spare)], dim=1)
    return AdapterConfig(r=rank, alpha=float(rank), targets=form.targets), folded


def _ends(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")

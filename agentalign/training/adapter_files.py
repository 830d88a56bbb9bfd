"""Adapter folders: written as PEFT writes them, read by our own eyes.

A stranger's folder never reaches `from_pretrained`: PEFT loads NaNs, misnamed keys and truncated files without an error, follows
base paths in the config and treats a string of target modules as a regular expression. So the config is parsed here, tensors come
from safetensors alone, and everything is checked before it touches the model.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from agentalign.errors import RegistryError

CONFIG_FILE, WEIGHTS_FILE, HEADS_FILE = "adapter_config.json", "adapter_model.safetensors", "heads.safetensors"
MAX_RANK = 1024
_NAME = re.compile(r"[A-Za-z0-9_]{1,64}")
# What makes an adapter something other than plain LoRA: each would be ignored or refused by one server or another.
_UNSUPPORTED = (
    "use_dora",
    "use_rslora",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
    "layers_pattern",
    "lora_bias",
    "alora_invocation_tokens",
)


@dataclass(frozen=True)
class AdapterConfig:
    """Plain LoRA."""

    r: int
    alpha: float
    targets: tuple[str, ...]
    """Last names of the adapted layers, sorted."""


def write_adapter(folder: Path, config: AdapterConfig, tensors: Mapping[str, Tensor], *, base: str, heads: Mapping[str, nn.Linear]) -> None:
    """adapter_config.json, adapter_model.safetensors and, where there are any, heads.safetensors; readable by others, fsynced."""
    bad = [key for key, value in tensors.items() if not torch.isfinite(value).all()]
    if bad:
        raise RegistryError(
            f"the adapter is not saved: {bad[0]} and {len(bad) - 1} more tensors hold NaN or infinity. Lower the learning rate."
        )
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.r,
        "target_modules": sorted(config.targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    save_file({key: value.detach().float().cpu().contiguous() for key, value in tensors.items()}, folder / WEIGHTS_FILE)
    if heads:
        flat = {f"{name}.{part}": value.detach().float().cpu() for name, head in heads.items() for part, value in head.state_dict().items()}
        save_file(flat, folder / HEADS_FILE)
    for path in folder.iterdir():
        path.chmod(0o644)
        with path.open("rb") as file:
            os.fsync(file.fileno())


def read_adapter(folder: Path) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """Config and tensors of an adapter folder.

    Raises:
        RegistryError: a missing or unreadable file, anything but plain LoRA, absurd sizes, non-finite weights.
    """
    return _read_config(folder / CONFIG_FILE), _read_tensors(folder / WEIGHTS_FILE)


def _read_config(path: Path) -> AdapterConfig:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RegistryError(f"{path} is not a readable adapter config: {error}.") from error
    odd = [name for name in _UNSUPPORTED if isinstance(settings, dict) and settings.get(name)]
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA" or odd or settings.get("bias", "none") != "none":
        raise RegistryError(f"{path}: only plain LoRA can be loaded, this one is not ({', '.join(odd) or 'no LORA config'}).")
    r, alpha, targets = settings.get("r"), settings.get("lora_alpha"), settings.get("target_modules")
    if (
        not (isinstance(r, int) and 0 < r <= MAX_RANK)
        or not (isinstance(alpha, int | float) and 0 < alpha <= 1e5)
        or not (isinstance(targets, list) and targets and all(isinstance(t, str) and _NAME.fullmatch(t) for t in targets))
    ):
        raise RegistryError(f"{path}: r must be 1 to {MAX_RANK}, lora_alpha a positive number, target_modules a list of layer names.")
    return AdapterConfig(r=r, alpha=float(alpha), targets=tuple(sorted(targets)))


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise RegistryError(f"{path} is not a readable safetensors file: {error}.") from error
    bad = [key for key, value in tensors.items() if not value.is_floating_point() or not torch.isfinite(value).all()]
    if bad:
        raise RegistryError(f"{path}: tensor {bad[0]} is not made of finite numbers; the file is damaged or the training diverged.")
    return tensors


def read_heads(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Name -> (weight, bias) of heads.safetensors; empty where there is none."""
    path = folder / HEADS_FILE
    if not path.exists():
        return {}
    tensors = _read_tensors(path)
    names = sorted({key.rsplit(".", 1)[0] for key in tensors})
    for name in names:
        weight, bias = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
        if not _NAME.fullmatch(name) or weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise RegistryError(f"{path}: every head needs a (outputs, hidden) weight and a bias; found {', '.join(sorted(tensors))}.")
    return {name: (tensors[f"{name}.weight"], tensors[f"{name}.bias"]) for name in names}

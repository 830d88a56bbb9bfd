"""A GGUF LoRA held against the adapter that it was converted from: every number, in the place where llama.cpp will look for it.

llama.cpp turns pairs of neighbouring values of a head by their position, transformers pairs the two halves of a head. So the converter
has to deal the rows of q and k out anew for a Llama, and must not for a Qwen; done wrongly, the file has the right numbers, loads, and
computes nonsense. Here they are dealt back and compared one by one. Surprise: only B has these rows; A's stand on the layer's inputs.
"""

import json
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from agentalign.errors import RegistryError
from agentalign.training.adapter_files import AdapterConfig

TURNED = frozenset({"llama", "smollm3", "arcee", "granite"})
"""Architectures, as GGUF calls them, whose q and k are dealt out for pairs of neighbours: `undo_permute` in llama.cpp's conversion/."""
STRAIGHT = frozenset({"qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "olmo2", "starcoder2"})
"""Those whose layers stay as they are."""
OTHER_RELEASE = "Use the converter of another release."
Numbers = NDArray[np.float32]


def require_same_numbers(file: Path, base: Path, config: AdapterConfig, tensors: dict[str, Tensor]) -> str:
    """RegistryError where a GGUF LoRA does not hold the adapter's numbers in their places, or another alpha; says what was compared.

    Of an architecture in neither list it is not known which rows belong where. There all numbers of B are compared sorted, and those of A
    as a set, since a layer that is split repeats its A.

    Args:
        base: folder of the base, whose config.json says how many heads there are.
        tensors: the adapter, by PEFT's names.
    """
    architecture, alpha, found = _read(file)
    if alpha is None or alpha != np.float32(config.alpha):  # a GGUF keeps it as float32
        raise RegistryError(
            f"{file.name}: the converter wrote alpha {alpha} where the adapter has {config.alpha:g}. Use another release's."
        )
    if architecture in TURNED | STRAIGHT:
        _require_places(file, architecture, base, tensors, found)
        return "Every number of the adapter was found in its place in the file"
    sides = {side: [value for name, value in found.items() if name.endswith(f".lora_{side}")] for side in "ab"}
    if not np.array_equal(_sorted(sides["b"]), _sorted(_numbers(tensors, "B"))) or not np.array_equal(
        np.unique(_sorted(sides["a"])), np.unique(_sorted(_numbers(tensors, "A")))
    ):
        raise RegistryError(f"{file.name}: the converter wrote other numbers than the adapter has. {OTHER_RELEASE}")
    return f"Every number of the adapter was found in the file, but whether in its place is not known for the architecture {architecture!r}"


def _read(file: Path) -> tuple[str, float | None, dict[str, Numbers]]:
    """Architecture, alpha, and tensors by their GGUF names."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        architecture, alpha = reader.get_field("general.architecture"), reader.get_field("adapter.lora.alpha")
        # GGUF writes a shape with the innermost length first.
        found = {t.name: np.asarray(t.data, np.float32).reshape([int(n) for n in reversed(t.shape)]) for t in reader.tensors}
        return str(architecture.contents()) if architecture else "", float(alpha.contents()) if alpha else None, found
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise RegistryError(f"{file.name}: the converter wrote what cannot be read ({error}). {OTHER_RELEASE}") from error


def _require_places(file: Path, architecture: str, base: Path, tensors: dict[str, Tensor], found: dict[str, Numbers]) -> None:
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    settings = json.loads((base / "config.json").read_text("utf-8"))
    heads = int(settings["num_attention_heads"])
    rows_of = {"q_proj": heads, "k_proj": int(settings.get("num_key_value_heads") or heads)}
    (number,) = [number for number, name in MODEL_ARCH_NAMES.items() if name == architecture]
    names = get_tensor_name_map(number, int(settings["num_hidden_layers"]))
    left = set(found)
    for key, tensor in tensors.items():
        module, side = _module(key)
        name = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
        place = f"{name}.lora_{side}"
        expected = tensor.float().numpy()
        held = found.get(place)
        if held is None or held.shape != expected.shape:
            shape = "is not there" if held is None else f"has the shape {held.shape}, not {expected.shape}"
            raise RegistryError(f"{file.name}: {place}, which is {module} of the adapter, {shape}. {OTHER_RELEASE}")
        left.discard(place)
        layer = module.rpartition(".")[2]
        turned = architecture in TURNED and side == "b" and layer in rows_of
        if not np.array_equal(_dealt_back(held, rows_of[layer]) if turned else held, expected):
            raise RegistryError(f"{file.name}: {_difference(place, held, expected)}, so it would compute something else. {OTHER_RELEASE}")
    if left:
        raise RegistryError(f"{file.name}: it has {len(left)} tensors that the adapter has not, such as {min(left)}. {OTHER_RELEASE}")


def _module(key: str) -> tuple[str, str]:
    """("model.layers.0.self_attn.q_proj", "a") of PEFT's "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"."""
    match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", key)
    if match is None:
        raise RegistryError(f"{key!r} is no tensor of a plain LoRA. Export the adapter anew.")
    return match[1], match[2].lower()


def _dealt_back(rows: Numbers, heads: int) -> Numbers:
    """Rows of a head that stand as pairs (first half, second half), as the two halves one after the other."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _difference(place: str, held: Numbers, expected: Numbers) -> str:
    if np.array_equal(np.sort(held, axis=None), np.sort(expected, axis=None)):
        return f"{place} has the adapter's numbers in another order"
    return f"{place} has other numbers than the adapter"


def _numbers(tensors: dict[str, Tensor], side: str) -> list[Numbers]:
    return [value.float().numpy() for key, value in tensors.items() if f".lora_{side}." in key]


def _sorted(parts: list[Numbers]) -> Numbers:
    return np.sort(np.concatenate([part.ravel() for part in parts])) if parts else np.zeros(0, np.float32)

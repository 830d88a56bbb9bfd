"""Many LoRA adapters on one network at once: each token of a forward under the adapter of its own row.

A server answers several adapters' requests in one batch. The base's products are computed once for all tokens; what an adapter adds is
computed for its own tokens alone, so a row never sees another row's adapter, and a row without one sees the bare base.
Surprise: PEFT is not involved. Its way of mixing adapters leaves the network broken after one exception, and a layer that it has wrapped
changes its name; here an adapter is a dictionary of tensors beside the network, put in and taken out between two forwards.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from agentalign.errors import ModelError, RegistryError
from agentalign.training.adapter_files import AdapterConfig, read_adapter


class _Pair(NamedTuple):
    """One layer's part of an adapter."""

    down: Tensor
    """(r, in) A."""
    up: Tensor
    """(out, r) B, with the adapter's scale in it."""


Weights = Mapping[str, _Pair]
"""Layer name -> what the adapter adds there."""


class _Group(NamedTuple):
    """Tokens of one forward under one adapter."""

    weights: Weights
    places: Tensor | None
    """Where these tokens stand among the flat ones; None for all of them."""


class MixedLora:
    """The adapters of a network. Its hooks stay on the network and add nothing outside of `tokens_of`."""

    def __init__(self, network: PreTrainedModel) -> None:
        output = network.get_output_embeddings()
        self._layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear) and layer is not output}
        self._dtype, self._device = network.dtype, network.device
        self._adapters: dict[str, Weights] = {}
        self._groups: tuple[_Group, ...] = ()
        for name, layer in self._layers.items():
            layer.register_forward_hook(self._hook(name))

    @property
    def names(self) -> frozenset[str]:
        """Adapters in memory."""
        return frozenset(self._adapters)

    def read(self, folder: Path) -> Weights:
        """An adapter's tensors, checked against the network's layers; may run beside a forward, since nothing is changed.

        Raises:
            RegistryError: anything but plain LoRA; missing, surplus, misshapen or non-finite tensors.
        """
        config, tensors = read_adapter(folder)
        layers = {name: layer for name, layer in self._layers.items() if name.rsplit(".", 1)[-1] in config.targets}
        _require_fit(folder, config, tensors, layers)
        scale = config.alpha / config.r
        return {name: _Pair(self._placed(tensors[_key(name, "A")]), self._placed(tensors[_key(name, "B")] * scale)) for name in layers}

    def add(self, name: str, weights: Weights) -> None:
        """Put an adapter in memory."""
        self._adapters[name] = weights

    def remove(self, name: str) -> None:
        """Forget an adapter."""
        self._adapters.pop(name, None)

    @contextmanager
    def tokens_of(self, counts: Sequence[tuple[str | None, int]]) -> Iterator[None]:
        """Inside, a forward over this many flat tokens in a row belongs to these adapters, in order; None is the bare base."""
        self._groups = tuple(self._grouped(counts))
        try:
            yield
        finally:
            self._groups = ()

    def _grouped(self, counts: Sequence[tuple[str | None, int]]) -> Iterator[_Group]:
        missing = sorted({name for name, _ in counts if name is not None} - self._adapters.keys())
        if missing:
            raise ModelError(f"there is no adapter '{missing[0]}' in memory; loaded are: {', '.join(sorted(self._adapters)) or 'none'}.")
        owners = [name for name, count in counts for _ in range(count)]
        for name in dict.fromkeys(owners):
            if name is None:
                continue
            places = [place for place, owner in enumerate(owners) if owner == name]
            yield _Group(self._adapters[name], None if len(places) == len(owners) else torch.tensor(places, device=self._device))

    def _placed(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, self._dtype).contiguous()

    def _hook(self, name: str) -> Any:
        def add(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            own = [(group.weights[name], group.places) for group in self._groups if name in group.weights]
            if not own:
                return None
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])
            total = output.view(rows.shape[0], -1)  # a linear layer's output is its own: it may be added to in place
            for pair, places in own:
                some = rows if places is None else rows[places]
                product = ((some.to(pair.down.dtype) @ pair.down.t()) @ pair.up.t()).to(total.dtype)
                if places is None:
                    total += product
                else:
                    total.index_add_(0, places, product)
            return output

        return add


def _key(layer: str, side: str) -> str:
    """PEFT's name of a tensor."""
    return f"base_model.model.{layer}.lora_{side}.weight"


def _require_fit(folder: Path, config: AdapterConfig, tensors: Mapping[str, Tensor], layers: Mapping[str, nn.Linear]) -> None:
    expected = {_key(name, "A"): (config.r, layer.in_features) for name, layer in layers.items()}
    expected |= {_key(name, "B"): (layer.out_features, config.r) for name, layer in layers.items()}
    missing, surplus = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    wrong = sorted(name for name in expected.keys() & tensors.keys() if tuple(tensors[name].shape) != expected[name])
    for what, names in (("are missing", missing), ("have no place", surplus), ("have another shape", wrong)):
        if names:
            raise RegistryError(
                f"the adapter in {folder} does not fit the base: {len(names)} tensors {what}, the first {names[0]}. "
                "Load it on the base it was trained on."
            )

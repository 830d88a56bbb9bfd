"""One quantized base, named LoRA adapters and small heads on it.

Policy, reference, reward and value are adapters of one frozen base, never copies of it. Surprise: a loss must be computed *and*
back-propagated inside one `with model.using(name)`: under gradient checkpointing a backward outside would recompute the forward
with another adapter, silently. Leaving the context with an open graph therefore raises.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from agentalign.errors import ModelError, RegistryError
from agentalign.training.adapter_files import AdapterConfig, read_adapter, read_heads, write_adapter
from agentalign.training.attention import TREE_ATTENTION, TreeRefusedError, tree_capable
from agentalign.training.dialect import Dialect
from agentalign.training.fused_lora import fuse_lora
from agentalign.training.logprobs import token_logprobs
from agentalign.training.merging import MergedCopy
from agentalign.training.quantize import Quantization, fast_bf16
from agentalign.training.rows import row_hidden
from agentalign.training.sharding import begin_anew, follow_first, load_base
from agentalign.training.tree import TreeBatch

if TYPE_CHECKING:
    from agentalign.training.base import Base

logger = logging.getLogger("agentalign")


class _Adapter(NamedTuple):
    config: AdapterConfig
    trainable: bool


class Model:
    """The base, its adapters and heads. Owns which adapter is active."""

    def __init__(self, network: PreTrainedModel, base: "Base", dialect: Dialect, *, quantization: Quantization, dtype: torch.dtype) -> None:
        self.network = network
        self.base = base
        self.dialect = dialect
        self.quantization = quantization
        self.dtype = dtype
        self.device = next(network.parameters()).device
        self.heads = nn.ModuleDict()
        self.recomputes = False
        self.may_recompute = False
        """Whether the engine may call `recompute_activations` where memory runs out."""
        self.tree_capable = tree_capable(network.config)
        self.batched_refusal: str | None = None
        """Why a base in shards cannot act in batches; empty where it can, None where every generator finds it out for itself."""
        self.paths_checked = 0
        """How many paths the largest tree had that `tree_check` found right: 0, 1, or 2 for more."""
        self.most_read: int | None = None  # tokens at once without gradients, once more of them were too many for the memory
        self.plain_attention: str = network.config._attn_implementation
        """What transformers chose for separate rows."""
        self._peft: PeftModel | None = None
        self._adapters: dict[str, _Adapter] = {}
        self._active: str | None = None
        self._open: list[list[bool]] = []
        self._merged = MergedCopy(base.folder, dtype, self.device)
        if self.tree_capable:
            network.set_attn_implementation(TREE_ATTENTION)

    @classmethod
    def load(
        cls,
        base: "Base",
        *,
        quantization: Quantization = "nf4",
        device: str = "auto",
        dtype: torch.dtype | None = None,
        gradient_checkpointing: bool | Literal["auto"] = False,
    ) -> "Model":
        """Load the base once.

        Args:
            base: from `training.base.prepare_base`.
            quantization: nf4 and int8 go through bitsandbytes; none keeps `dtype`.
            device: "auto" takes CUDA where there is one.
            dtype: None probes: bfloat16 where the hardware multiplies it, else float32.
            gradient_checkpointing: recompute activations in the backward, 30 % slower in half the memory; "auto": see `may_recompute`.
        """
        place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        if place == torch.device("cuda"):
            place = torch.device("cuda", torch.cuda.current_device())  # of several processes each has its own
        precision = dtype or (torch.bfloat16 if fast_bf16(place) else torch.float32)
        network = load_base(base.folder, quantization, dtype=precision, device=place)
        model = cls(network, base, Dialect.load(base), quantization=quantization, dtype=precision)
        follow_first(model)
        model.may_recompute = gradient_checkpointing == "auto"
        if gradient_checkpointing is True:
            model.recompute_activations()
        return model

    def recompute_activations(self) -> None:
        """Gradient checkpointing from here on: the same gradient in half the memory."""
        self.network.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        for layer in self.network.modules():  # only these, or they do not recompute: what is in them may have dropout of its own
            layer.training |= isinstance(layer, GradientCheckpointingLayer)
        self.recomputes, self.may_recompute = True, False

    # ------------------------------------------------------------------ adapters

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters in memory."""
        return tuple(self._adapters)

    def linear_targets(self) -> tuple[str, ...]:
        """Last names of every linear layer except the output matrix: what "all-linear" means."""
        output = self.network.get_output_embeddings()
        found = {
            name.rsplit(".", 1)[-1]
            for name, module in self.network.named_modules()
            if isinstance(module, nn.Linear) and module is not output and "lora_" not in name and not name.endswith(".base_layer")
        }
        return tuple(sorted(found))

    def add_adapter(
        self, name: str, *, r: int, alpha: float, targets: Sequence[str] | None = None, seed: int = 0, trainable: bool = True
    ) -> None:
        """A new adapter that changes nothing yet (B = 0); A is drawn from `seed` alone."""
        chosen = targets or (next(iter(self._adapters.values())).config.targets if self._adapters else self.linear_targets())
        config = AdapterConfig(r=r, alpha=alpha, targets=tuple(sorted(chosen)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._insert(name, config, trainable)

    def load_adapter(self, name: str, folder: Path, *, trainable: bool = False) -> None:
        """An adapter from a registry or checkpoint folder, checked tensor by tensor, with its heads if it has any.

        Raises:
            RegistryError: missing, surplus, misshapen or non-finite tensors.
        """
        config, tensors = read_adapter(folder)
        self._insert(name, config, trainable)
        self._set_tensors(name, tensors, str(folder))
        for head, (weight, bias) in read_heads(folder).items():
            self.add_head(head, weight.shape[0])
            self._head(head).load_state_dict({"weight": weight, "bias": bias})

    def copy_adapter(self, source: str, target: str, *, trainable: bool) -> None:
        """A second adapter with the same weights: how a stage continues its parent, and how a reference is frozen."""
        config = self.adapter_config(source)
        tensors = {key: value.detach().clone() for key, value in self.adapter_tensors(source).items()}
        if target not in self._adapters:
            self._insert(target, config, trainable)
        self._adapters[target] = _Adapter(config, trainable)
        self._set_tensors(target, tensors, source)

    def save_adapter(self, name: str, folder: Path, *, heads: Sequence[str] = ()) -> None:
        """Pure-LoRA PEFT files, and the named heads in heads.safetensors beside them."""
        modules = {head: self._head(head) for head in heads}
        write_adapter(folder, self.adapter_config(name), self.adapter_tensors(name), base=self.base.name, heads=modules)

    def adapter_config(self, name: str) -> AdapterConfig:
        """Its form: rank, alpha and the layers it is on."""
        if name not in self._adapters:
            raise ModelError(f"there is no adapter '{name}' in memory; loaded are: {', '.join(self._adapters) or 'none'}.")
        return self._adapters[name].config

    def adapter_tensors(self, name: str) -> dict[str, Tensor]:
        """PEFT's key -> weight (not a copy)."""
        self.adapter_config(name)
        state: dict[str, Tensor] = get_peft_model_state_dict(self._peft, adapter_name=name, save_embedding_layers=False)
        return state

    def parameters_of(self, name: str) -> list[nn.Parameter]:
        """The adapter's weights, in a fixed order."""
        marker = re.compile(rf"\.lora_[AB]\.{re.escape(name)}\.")
        return [parameter for key, parameter in self.network.named_parameters() if marker.search(key)]

    def head_parameters(self, heads: Sequence[str]) -> list[nn.Parameter]:
        """The weights of these heads, in a fixed order."""
        return [parameter for head in heads for parameter in self._head(head).parameters()]

    def _insert(self, name: str, config: AdapterConfig, trainable: bool) -> None:
        if name in self._adapters:
            raise ModelError(f"an adapter '{name}' is already in memory; choose another name.")
        lora = LoraConfig(
            r=config.r, lora_alpha=config.alpha, target_modules=list(config.targets), lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"
        )
        if self._peft is None:
            self._peft = PeftModel(self.network, lora, adapter_name=name, autocast_adapter_dtype=True)
        else:
            self._peft.add_adapter(name, lora, autocast_adapter_dtype=True)
        fuse_lora(self.network)
        self._adapters[name] = _Adapter(config, trainable)
        self._activate(self._active)

    def _set_tensors(self, name: str, tensors: dict[str, Tensor], source: str) -> None:
        own = self.adapter_tensors(name)
        if own.keys() != tensors.keys():
            missing, surplus = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
            raise RegistryError(
                f"adapter {source} does not fit {self.base.name}: {len(missing)} tensors are missing "
                f"({', '.join(missing[:2]) or 'none'}) and "
                f"{len(surplus)} have no place ({', '.join(surplus[:2]) or 'none'}). Load it on the base it was trained on."
            )
        wrong = [key for key in own if own[key].shape != tensors[key].shape]
        if wrong:
            raise RegistryError(
                f"adapter {source}: {wrong[0]} has shape {tuple(tensors[wrong[0]].shape)}, the base needs {tuple(own[wrong[0]].shape)}."
            )
        set_peft_model_state_dict(self._peft, tensors, adapter_name=name)
        self._activate(self._active)

    # ------------------------------------------------------------------ contexts

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        """Compute and back-propagate under one adapter (None: the bare base). Restores what was active before.

        Raises:
            ModelError: on leaving, where a forward with gradients was not back-propagated.
        """
        before, outer = self._active, self._open
        self._open = []
        self._activate(adapter)
        try:
            yield
            if any(not done[0] for done in self._open):
                raise ModelError(
                    "a forward with gradients was not back-propagated inside `using`; outside it would use another adapter. "
                    "Call backward inside, or compute under torch.no_grad()."
                )
        finally:
            self._open = outer
            self._activate(before)

    def _activate(self, adapter: str | None) -> None:
        self._active = adapter
        if self._peft is None:
            if adapter is not None:
                raise ModelError(f"there is no adapter '{adapter}' in memory; add or load one first.")
            return
        if adapter is None:
            self._peft.base_model.disable_adapter_layers()
        else:
            if adapter not in self._adapters:
                raise ModelError(f"there is no adapter '{adapter}' in memory; loaded are: {', '.join(self._adapters)}.")
            self._peft.base_model.enable_adapter_layers()
            self._peft.base_model.set_adapter(adapter)
        for name, (_, trainable) in self._adapters.items():
            for parameter in self.parameters_of(name):
                parameter.requires_grad_(trainable and name == adapter)

    # ------------------------------------------------------------------ forward

    def hidden(self, batch: TreeBatch) -> Tensor:
        """(T, H) last hidden states after the final norm, one row per tree token."""
        with self.precision():
            hidden = self._states(batch)
        if hidden.requires_grad:
            done = [False]
            self._open.append(done)
            hidden.register_hook(lambda _gradient: done.__setitem__(0, True))  # type: ignore[no-untyped-call]
        return hidden

    def precision(self) -> AbstractContextManager[object]:
        """Autocast where bfloat16 is fast."""
        return torch.autocast(self.device.type, dtype=self.dtype) if self.dtype == torch.bfloat16 else nullcontext()

    def _states(self, batch: TreeBatch) -> Tensor:
        if self.tree_capable:
            try:
                return self._tree_hidden(batch)
            except TreeRefusedError as refusal:
                logger.warning("%s: %s; every run is computed by itself, more slowly", self.base.name, refusal)
                begin_anew(self)
                self.give_up_trees()
        return row_hidden(self.backbone, batch, pad_id=self.dialect.pad_id)

    def _tree_hidden(self, batch: TreeBatch) -> Tensor:
        ids, positions = batch.tokens[None], batch.positions[None]
        output = self.backbone(input_ids=ids, position_ids=positions, attention_mask=None, use_cache=False, agentalign_tree=batch)
        states: Tensor = output.last_hidden_state[0]
        return states

    @property
    def backbone(self) -> nn.Module:
        """The network without its output matrix."""
        backbone: nn.Module = self.network.get_decoder()
        return backbone

    @property
    def head_weight(self) -> Tensor:
        """(V, H) the frozen output matrix."""
        weight: Tensor = self.network.get_output_embeddings().weight
        return weight

    def label_logprobs(self, batch: TreeBatch, hidden: Tensor) -> Tensor:
        """(U,) log-probability of each distinct trainable token."""
        return token_logprobs(hidden[batch.parents[batch.labels]], self.head_weight, batch.tokens[batch.labels])

    def token_logprobs(self, batch: TreeBatch) -> Tensor:
        """(M,) log-probability of every trainable token of every run, in nats, fp32."""
        return self.label_logprobs(batch, self.hidden(batch))[batch.occurrences]

    def give_up_trees(self) -> None:
        """Padded rows and transformers' own attention from here on."""
        self.tree_capable = False
        self.network.set_attn_implementation(self.plain_attention)

    # ------------------------------------------------------------------ heads

    def add_head(self, name: str, outputs: int) -> None:
        """A linear head in fp32, zero at first: a critic or reward that knows nothing says 0."""
        head = nn.Linear(self.network.config.get_text_config().hidden_size, outputs, device=self.device, dtype=torch.float32)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        self.heads[name] = head

    def apply_head(self, name: str, rows: Tensor) -> Tensor:
        """(R, H) hidden rows -> (R, outputs), fp32.

        Rows are divided by sqrt(H): Adam moves every weight by its rate, so an output of a wide head would jump by rate x H x |row|.
        """
        values: Tensor = self._head(name)(rows.float() / rows.shape[-1] ** 0.5)
        return values

    def _head(self, name: str) -> nn.Linear:
        if name not in self.heads:
            raise ModelError(f"there is no head '{name}'; present are: {', '.join(self.heads) or 'none'}.")
        head = self.heads[name]
        assert isinstance(head, nn.Linear)
        return head

    # ------------------------------------------------------------------ merging

    def merged_copy(self, adapter: str | None) -> PreTrainedModel:
        """A plain network with the adapter merged into the *dequantised* base, for rollouts; rebuilt in place at each call.

        Merging into NF4 itself would round the adapter away (measured KL 0.78 against 0.005 this way).
        """
        return self._merged.of(self.network, adapter)

    def forget_merged_copy(self) -> bool:
        """Give the copy's memory back, until it is asked for again; False where there is none."""
        return self._merged.forget()

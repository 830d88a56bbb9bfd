"""Every error that agentalign raises on purpose.

The message says what is, why it cannot be, and what to do. `AgentAlignError` reaches the person as one sentence and exit code 1
(`UsageError` 2, as argparse has it); anything else is a bug and keeps its traceback. `ToolError` is different: it is written for the
agent, not for the person.
"""

import errno
from enum import StrEnum


class AgentAlignError(Exception):
    """Base of all: the CLI prints its text and exits with 1, or 2 for wrong usage."""


class ConfigError(AgentAlignError):
    """A setting, YAML file or command line that cannot be used."""


class UsageError(ConfigError):
    """Arguments that do not go together, or of which one is missing: wrong whatever the project holds."""


class DataError(AgentAlignError):
    """A record, file or run that cannot be read, stored or trained on."""


class StoreError(AgentAlignError):
    """The store is missing, damaged, locked or of another version."""


class RegistryError(AgentAlignError):
    """An adapter that does not exist, does not verify or may not be promoted."""


class Refusal(StrEnum):
    """Why a stranger's adapter folder was refused; the order is that of asking."""

    FOLDER = "folder"
    """No folder, or too much in it."""
    LINK = "link"
    """A link, a folder or a device among the files."""
    CODE = "code"
    """A file or a setting that can carry or fetch code."""
    FILE = "file"
    """A file that an adapter does not have, or one that is missing."""
    SIZE = "size"
    """More bytes, tensors or rank than any adapter needs."""
    CONFIG = "config"
    """adapter_config.json is no strict JSON, or says what nobody knows."""
    BASE = "base"
    """It names a base by a place."""
    KIND = "kind"
    """No plain LoRA for a causal language model."""
    TARGETS = "targets"
    """Regular expressions, or layers that servers cannot adapt."""
    HEADER = "header"
    """adapter_model.safetensors is damaged, or no such file."""
    KEYS = "keys"
    """Tensors missing, or without a place in the base."""
    SHAPES = "shapes"
    """Tensors of another shape than the base's layers need."""
    VALUES = "values"
    """NaN or infinity, or an adapter that changes nothing."""


class AdapterRefusedError(RegistryError):
    """A stranger's adapter that is not taken in. `reason` says of which kind the objection is."""

    def __init__(self, reason: Refusal, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class TemplateError(AgentAlignError):
    """A chat template or tokenizer that cannot say what a run contains."""


class ModelError(AgentAlignError):
    """A base model that cannot be loaded, quantized or trained as asked."""


class TrainingError(AgentAlignError):
    """A training that cannot start or go on (no trainable tokens, damaged checkpoint, non-finite loss)."""


class TrainingStoppedError(TrainingError):
    """A training that was asked to end, and can be taken up again."""


class TasksetError(AgentAlignError):
    """A taskset folder that cannot be loaded, or team code that broke its contract."""


def disk_is_full(error: BaseException) -> bool:
    """True for what the system raises when a disk has no room, and what safetensors makes of it; the store has a sentence of its own.

    Safetensors' error is known by name: nothing is imported down here.
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    return type(error).__name__ == "SafetensorError" and "No space left on device" in str(error)


class ToolError(Exception):
    """Raised by a tool for what the agent should read; becomes a tool message marked as an error."""

"""Every error that agentalign raises on purpose.

The message says what is, why it cannot be, and what to do. `AgentAlignError` reaches the person as one sentence and exit code 1
(`UsageError` 2, as argparse has it); anything else is a bug and keeps its traceback. `ToolError` is different: it is written for the
agent, not for the person.
"""


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


class ToolError(Exception):
    """Raised by a tool for what the agent should read; becomes a tool message marked as an error."""

"""What a training was and what it left: the run, the adapter's card, how good it is, and the gate it passed."""

from typing import Literal

from pydantic import Field

from agentalign.records.base import Record, now

AdapterKind = Literal["policy", "reward", "value"]
RecipeName = Literal["sft", "reward", "dpo", "kto", "ppo"]


class Training(Record):
    """One run of a recipe. Its folder `.agentalign/trainings/<id>/` exists before any adapter version does."""

    id: str
    recipe: RecipeName
    taskset: str
    config: str
    """The resolved config as JSON text: enough to repeat the run."""
    data_digest: str = ""
    """Hash of the ids of everything it trained on, in order."""
    seed: int = 0
    status: Literal["running", "done", "failed", "stopped"] = "running"
    adapter: str = ""
    """"name@version" once saved; empty before."""
    note: str = ""
    """Why it failed or what its dev gate did."""
    created: str = Field(default_factory=now)
    updated: str = Field(default_factory=now)


NAME = r"[a-z0-9][a-z0-9_.-]{0,99}"
"""What an adapter may be called, as a regular expression."""


class AdapterCard(Record):
    """Where an adapter came from. Written once as card.json beside the weights, never changed."""

    name: str = Field(pattern=f"^{NAME}$")
    version: int = Field(ge=1)
    kind: AdapterKind
    taskset: str
    recipe: RecipeName | Literal["foreign"]
    """What made it; "foreign": a stranger's, taken in by `agentalign adapters add`."""
    training: str
    """Training id; empty for a foreign one."""
    base: str
    """The base as configured: hub name, folder or built-in name."""
    base_digest: str
    """Hash over the base's weight and tokenizer files."""
    base_files: dict[str, str] = {}
    """sha256 of each of these files, by name; empty on cards from before it was kept."""
    quantization: Literal["nf4", "int8", "none"]
    quantization_recipe: dict[str, str] = {}
    """How exactly: library, type, double quantization, dtype that is computed in. Empty on cards from before it was kept."""
    template_digest: str
    """Hash of the chat template the adapter was trained under."""
    template_kwargs: str = "{}"
    """Fixed arguments of the chat template, as JSON text."""
    parents: tuple[str, ...] = ()
    """Adapters this one was continued from or trained against, "name@version"."""
    parent_contents: dict[str, str] = {}
    """Their content hashes: a parent that was replaced by another of its number is seen."""
    config: str = "{}"
    """The resolved recipe config as JSON text."""
    data_digest: str = ""
    data_counts: dict[str, int] = {}
    """How many runs or preferences of which source it was trained on."""
    criteria: tuple[str, ...] = ()
    """Criteria versions that were in force, "name@version"."""
    seed: int | None = None
    """Seed of the training; None on cards from before it had a field of its own (`config` has it too)."""
    metrics: dict[str, float] = {}
    """Last and best figures of the training."""
    dev_scores: dict[int, float] = {}
    """Score on held-out tasks by optimizer step, as the dev gate found it; empty where the training had none."""
    heads: tuple[str, ...] = ()
    """Names of the heads in heads.safetensors ("value", or one per reward output)."""
    packages: dict[str, str] = {}
    """Versions of torch, transformers, peft, bitsandbytes, agentalign."""
    files: dict[str, str] = {}
    """sha256 of every file of the version except card.json."""
    created: str = Field(default_factory=now)

    @property
    def ref(self) -> str:
        """The reference, "name@version"."""
        return f"{self.name}@{self.version}"


class EvaluationSummary(Record):
    """The figures of one evaluation, small enough to be kept beside the version that it is about."""

    content: str
    """Content hash of the version."""
    taskset: str
    split: str
    settings: dict[str, str | int | float]
    """How the runs were made."""
    tasks: int
    """So many are in the headline figures."""
    success: tuple[float, float, float]
    """Mean, low and high of the interval."""
    criteria: dict[str, float]
    """Mean in [0, 1] per criterion version, "name@version"."""
    time: str

    @property
    def plan(self) -> tuple[object, ...]:
        """What makes two of them be about the same thing."""
        return self.content, self.taskset, self.split, tuple(sorted(self.settings.items()))


class GateCheck(Record):
    """One question a gate asked."""

    name: str
    passed: bool
    detail: str
    """What was measured and what was needed."""
    measured: bool = True
    """False where it could not be asked; `detail` says why, and `passed` whether the gate may go on without it."""
    figures: dict[str, float] = {}
    """What was measured, as numbers."""

    @property
    def verdict(self) -> str:
        """As people read it: "passed", "failed", "not measured" or "failed, not measured"."""
        if self.measured:
            return "passed" if self.passed else "failed"
        return "not measured" if self.passed else "failed, not measured"


class GateReport(Record):
    """Whether an adapter may be promoted. Computed in deployment, handed to the registry as a record."""

    adapter: str
    content: str = ""
    """Content hash of the version it is about; empty on reports from before it was kept."""
    target: str = ""
    """Where it was asked: "in process", or the address of a server. Empty where only files and evaluations were looked at."""
    checks: tuple[GateCheck, ...]
    forced: str = ""
    """Reason given for promoting against a failed check; empty where none was needed."""
    time: str = Field(default_factory=now)

    @property
    def state(self) -> Literal["green", "red", "not measured"]:
        """What a deploy-check came to: green only where every question was asked and passed; red where one failed that was asked."""
        if any(check.measured and not check.passed for check in self.checks):
            return "red"
        return "green" if self.checks and all(check.measured for check in self.checks) else "not measured"

    @property
    def passed(self) -> bool:
        """True when every check passed, or someone gave a reason to go on."""
        return all(check.passed for check in self.checks) or bool(self.forced)

"""What each target does with each kind of adapter: a table of data, and its questions asked of a folder before it goes there.

Verdicts on peft 0.21, vLLM 0.32 (CPU) and llama.cpp of mid 2026 were measured, or read in their source (rows 9 and 10); what was neither
is "unmeasured". `transformers` means weights that PEFT merged, since its server takes no adapters: its "ok" follows from PEFT's.
Surprise: the worst verdict is not "error" but "silent": llama.cpp converts rsLoRA, and then computes with another scale.
"""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from pydantic import JsonValue

from agentalign.errors import AdapterRefusedError, Refusal
from agentalign.training.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from agentalign.training.foreign_config import is_hub_name, read_foreign_config, strict_object
from agentalign.training.foreign_folder import MAX_CONFIG_BYTES, read_header, read_values, require_plain_files, require_shapes

Target = Literal["peft", "vllm", "llama.cpp", "transformers"]
TARGETS: tuple[Target, ...] = get_args(Target)
Verdict = Literal["ok", "error", "silent", "abort", "unmeasured"]
"""ok: computes what it should; error: refuses it; silent: computes something else without a word; abort: the process ends."""
Settings = Mapping[str, JsonValue]
INSIDE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
OUTSIDE = ("lm_head", "embed_tokens")
VLLM_MOST_RANK = 512


class Question(NamedTuple):
    """One row."""

    number: int
    """As the deployment tests number them; 12, 13 and 15 (base, template, golden prompts) are asked by the gate."""
    question: str
    verdicts: tuple[Verdict, Verdict, Verdict, Verdict]
    """In the order of TARGETS, for an adapter of which it is true."""
    action: str
    """What to do about it."""
    answer: Callable[[Settings], str]
    """What is true of it, from its config; "" where it is not of this kind."""


class Finding(NamedTuple):
    """One row's answer for one adapter and target."""

    number: int
    question: str
    verdict: Verdict
    detail: str
    action: str


def _on(*names: str) -> Callable[[Settings], str]:
    return lambda settings: ", ".join(name for name in names if settings.get(name))


def _other_kind(settings: Settings) -> str:
    odd = [
        f"{key} {settings.get(key)!a:.40}"
        for key, wanted in (("peft_type", "LORA"), ("task_type", "CAUSAL_LM"))
        if settings.get(key) != wanted
    ]
    return ", ".join(odd)


def _rank(settings: Settings) -> str:
    pattern = settings.get("rank_pattern")
    ranks = [settings.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    most = max((rank for rank in ranks if isinstance(rank, int)), default=0)
    return f"rank {most}" if most > VLLM_MOST_RANK else ""


def _bias(settings: Settings) -> str:
    return "lora_bias" if settings.get("lora_bias") else f"bias {settings['bias']!a:.20}" if settings.get("bias", "none") != "none" else ""


def _targets(settings: Settings) -> list[str]:
    value = settings.get("target_modules")
    return [str(name) for name in value] if isinstance(value, list) else [str(value)]


def _elsewhere(settings: Settings) -> str:
    return ", ".join(ascii(name)[1:60] for name in _targets(settings) if name not in (*INSIDE, *OUTSIDE))


def _outside(settings: Settings) -> str:
    return ", ".join(name for name in _targets(settings) if name in OUTSIDE)


def _start(settings: Settings) -> str:
    value = settings.get("init_lora_weights")
    return value[:40] if isinstance(value, str) and value not in ("gaussian", "orthogonal") else ""


QUESTIONS = (
    Question(1, "another kind of adapter or task", ("unmeasured", "error", "error", "unmeasured"), "train a LoRA", _other_kind),
    Question(2, "DoRA", ("ok", "error", "error", "unmeasured"), "merge it, or train without", _on("use_dora")),
    Question(
        3, "rsLoRA or patterns", ("ok", "ok", "silent", "ok"),
        "fold the scales: `agentalign adapters add` does", _on("use_rslora", "alpha_pattern", "rank_pattern"),
    ),
    Question(4, f"rank above {VLLM_MOST_RANK}", ("ok", "error", "ok", "ok"), "train with a smaller rank", _rank),
    Question(
        5, "whole modules saved", ("ok", "error", "error", "unmeasured"),
        "merge it, or train without", _on("modules_to_save", "trainable_token_indices"),
    ),
    Question(6, "a bias", ("ok", "error", "unmeasured", "unmeasured"), "train without", _bias),
    Question(7, "layers beside attention and MLP", ("ok", "unmeasured", "unmeasured", "ok"), "try it there first", _elsewhere),
    Question(8, "output matrix or embeddings", ("ok", "ok", "abort", "unmeasured"), "train on layers inside only", _outside),
    Question(9, "a start that changes the base", ("silent", "error", "unmeasured", "silent"), "convert to plain LoRA with PEFT", _start),
    Question(
        10, "aLoRA, repeated layers and their kin", ("ok", "error", "unmeasured", "unmeasured"),
        "train a plain LoRA", _on("alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora"),
    ),
)  # fmt: skip


def findings(
    folder: Path, layers: Mapping[str, tuple[int, int]], target: Target, *, base_names: tuple[str, ...] = ()
) -> tuple[Finding, ...]:
    """What speaks against serving this folder on a target, worst known first asked; empty where nothing does.

    Args:
        layers: of the base: name -> (outputs, inputs), as `linear_layers` gives them.
        base_names: what the team calls the base that it chose: one of these may be named in the folder even if it is a path.
    """
    place = TARGETS.index(target)
    found: list[Finding] = []
    try:
        settings = _settings(folder)
    except AdapterRefusedError as error:
        return (Finding(14, "files and config", "error", str(error), "get a sound copy"),)
    for row in QUESTIONS:
        detail = row.answer(settings)
        if detail and row.verdicts[place] != "ok":
            found.append(Finding(row.number, row.question, row.verdicts[place], detail, row.action))
    # Whether tensors are complete can be known of plain forms only; of others the rows above have spoken.
    found += [] if any(row.answer(settings) for row in QUESTIONS if row.number not in (3, 4, 7)) else _weights(folder, layers, settings)
    named = settings.get("base_model_name_or_path")
    if named and not (named in base_names or is_hub_name(named)):
        found.append(
            Finding(12, "a base that is named by another place", "unmeasured", ascii(named)[:80], "be sure that it is the same base")
        )
    return tuple(found)


def require_deployable(folder: Path, layers: Mapping[str, tuple[int, int]], target: Target, *, besides: Collection[int] = ()) -> None:
    """AdapterRefusedError with the first finding, where there is one that was measured to go wrong.

    Args:
        besides: numbers of rows that the caller answers itself.
    """
    for finding in findings(folder, layers, target):
        if finding.verdict != "unmeasured" and finding.number not in besides:
            silent = "computes something else without a word" if finding.verdict == "silent" else f"answers it with: {finding.verdict}"
            raise AdapterRefusedError(
                Refusal.KIND, f"{folder}: {finding.question} ({finding.detail}); {target} {silent}. Do this: {finding.action}."
            )


def _settings(folder: Path) -> Settings:
    path = folder / CONFIG_FILE
    if not path.is_file() or path.is_symlink() or path.stat().st_size > MAX_CONFIG_BYTES:
        raise AdapterRefusedError(Refusal.FILE, f"{path} is no plain file of at most {MAX_CONFIG_BYTES} bytes.")
    return strict_object(path.read_bytes(), CONFIG_FILE, Refusal.CONFIG)


def _weights(folder: Path, layers: Mapping[str, tuple[int, int]], settings: Settings) -> list[Finding]:
    try:
        # Whatever base it names, it is held against the one that the team named; what is named is a finding of its own.
        form, _ = read_foreign_config(json.dumps({**settings, "base_model_name_or_path": None}).encode())
        weights = folder / WEIGHTS_FILE
        if weights.is_symlink() or not weights.is_file():
            raise AdapterRefusedError(Refusal.FILE, f"{weights} is no plain file. Put the adapter's weights there.")
        require_shapes(read_header(weights), form.shapes(layers), str(weights))
        read_values(weights, str(weights))
    except AdapterRefusedError as error:
        return [Finding(11, "weights that are whole, finite and fit the base", "error", str(error), "get a whole copy for this base")]
    try:
        require_plain_files(folder)
    except AdapterRefusedError as error:
        return [Finding(14, "plain files only", "error", str(error), "remove that file")]
    return []

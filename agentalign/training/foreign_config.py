"""A stranger's adapter_config.json, read by our own eyes: every key is known, and what is not plain LoRA is refused by its reason.

Nothing of it is handed to PEFT. PEFT follows the base path it names, imports the library it names, and reads target modules and patterns
as regular expressions that can run for hours; here they are names of layers or nothing.
Surprise: an unknown key is fine as long as it is null, false or empty: newer versions of PEFT write the switches of features that are off.
"""

import json
import math
import re
from collections.abc import Iterator

from pydantic import JsonValue

from agentalign.errors import AdapterRefusedError, Refusal
from agentalign.training.adapter_files import CONFIG_FILE, MAX_RANK
from agentalign.training.lora_form import LoraForm

MAX_DEPTH = 8
_LAYER = re.compile(r"[A-Za-z0-9_]{1,64}")
_PATH = re.compile(r"[A-Za-z0-9_]{1,64}(\.[A-Za-z0-9_]{1,64}){0,15}")
_HUB = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,95})?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+@-]{0,80}")
# Settings that reach an import, a download or another program, on their way through one library or another.
_CODE = (
    "auto_map",
    "auto_mapping",
    "trust_remote_code",
    "custom_pipelines",
    "parent_library",
    "megatron_config",
    "revision",
    "kernel",
    "kernels",
)
_SERVER_NAMES = ("lm_head", "embed_tokens", "wte", "embed_out", "output", "score", "classifier")
_READ = ("peft_type", "task_type", "r", "lora_alpha", "target_modules", "use_rslora", "rank_pattern", "alpha_pattern")
_BASE_CHANGES = ("pissa", "olora", "corda", "loftq", "eva", "lora_ga")


def read_foreign_config(text: bytes, *, base_names: tuple[str, ...] = ()) -> tuple[LoraForm, str]:
    """The adapter's form, and the base that it names ("" where it names none): a name, never opened.

    Args:
        text: content of the file, its size bounded by the caller.
        base_names: what the team calls the base that it chose: one of these may stand there even if it is a path.

    Raises:
        AdapterRefusedError: the file, or what it says.
    """
    settings = _object(text)
    for key, value in settings.items():
        if key in _CODE and value:
            raise _no(Refusal.CODE, f"{key} names code or a place to fetch it from. Nothing of that is followed; remove the setting.")
    base = _base(settings.get("base_model_name_or_path"), base_names)
    _require_lora(settings)
    for key, value in settings.items():
        _known(key, value)
    rank = _rank(settings.get("r"), "r")
    return (
        LoraForm(
            r=rank,
            alpha=_alpha(settings.get("lora_alpha"), "lora_alpha"),
            targets=_targets(settings.get("target_modules")),
            rslora=_bool(settings.get("use_rslora", False), "use_rslora"),
            ranks={name: _rank(value, f"rank_pattern of {name}") for name, value in _pattern(settings, "rank_pattern")},
            alphas={name: _alpha(value, f"alpha_pattern of {name}") for name, value in _pattern(settings, "alpha_pattern")},
        ),
        base,
    )


def strict_object(text: bytes, where: str, reason: Refusal) -> dict[str, JsonValue]:
    """A JSON object without duplicate keys, NaN, or nesting that would exhaust the reader."""

    def once(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands in it twice")
        return found

    def never(name: str) -> JsonValue:
        raise ValueError(f"{name} is no number")

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=once, parse_constant=never)
    except (ValueError, RecursionError) as error:
        raise AdapterRefusedError(reason, f"{where} is not strict JSON ({_short(error)}). Ask its maker for a sound file.") from error
    if not isinstance(value, dict):
        raise AdapterRefusedError(reason, f"{where} is not a JSON object. Ask its maker for a sound file.")
    return value


def _object(text: bytes) -> dict[str, JsonValue]:
    settings = strict_object(text, CONFIG_FILE, Refusal.CONFIG)
    if _deeper(settings, MAX_DEPTH):
        raise _no(Refusal.CONFIG, f"it is nested deeper than {MAX_DEPTH} levels, which no adapter needs. Ask its maker for a sound file.")
    return settings


def _deeper(value: JsonValue, limit: int) -> bool:
    """Level by level: what the reader of JSON has come through may still be too deep to be walked by calls."""
    level = [value]
    for _ in range(limit):
        level = [item for v in level for item in (v.values() if isinstance(v, dict) else v if isinstance(v, list) else ())]
    return bool(level)


def is_hub_name(value: JsonValue) -> bool:
    """Whether this names a repository of a hub, and no place on a machine."""
    return isinstance(value, str) and bool(_HUB.fullmatch(value)) and ".." not in value


def _base(value: JsonValue, base_names: tuple[str, ...]) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, str) and (value in base_names or is_hub_name(value)):
        return value
    raise _no(
        Refusal.BASE,
        f"base_model_name_or_path is {_short(value)}, a place and not a name on the hub. No place that an adapter names is ever "
        "opened: you name the base yourself. Remove the setting, and make sure that the base is the one it was trained on.",
    )


def _require_lora(settings: dict[str, JsonValue]) -> None:
    kind, task = settings.get("peft_type"), settings.get("task_type")
    if kind != "LORA":
        raise _no(Refusal.KIND, f"peft_type is {_short(kind)}; only LORA can be loaded. Merge it into its base, or train a LoRA.")
    if task not in ("CAUSAL_LM", None):
        raise _no(Refusal.KIND, f"task_type is {_short(task)}; an agent needs CAUSAL_LM. It gives no messages.")


def _known(key: str, value: JsonValue) -> None:
    """Anything beyond plain LoRA must be off."""
    if key in _READ or key == "base_model_name_or_path" or value is None or value is False or value in ("", [], {}):
        return
    fine = {
        "inference_mode": isinstance(value, bool),
        "lora_dropout": _number(value) and 0 <= float(value) <= 1,  # type: ignore[arg-type]  # a number, as just seen
        "bias": value == "none",
        "megatron_core": value == "megatron.core",  # PEFT's default, and of no use without megatron_config
        "qalora_group_size": _number(value),  # of no use without use_qalora
        "peft_version": isinstance(value, str) and _VERSION.fullmatch(value) is not None,
        "init_lora_weights": value is True or value in ("gaussian", "orthogonal"),
    }
    if fine.get(key):
        return
    if key == "megatron_core":
        raise _no(
            Refusal.CODE, f"megatron_core names a library to import ({_short(value)}). Nothing of that is followed; remove the setting."
        )
    if key == "init_lora_weights" and isinstance(value, str) and value.lower().startswith(_BASE_CHANGES):
        raise _no(Refusal.KIND, f"init_lora_weights {_short(value)} changes the base itself. Convert it to plain LoRA with PEFT first.")
    raise _no(
        Refusal.KIND if key in _OTHER_KINDS or key in fine else Refusal.CONFIG,
        f"{_short(key)} is {_short(value)}: not plain LoRA, and servers ignore or refuse it. Merge such an adapter, or train it without.",
    )


_OTHER_KINDS = (
    "use_dora", "use_qalora", "use_bdlora", "modules_to_save", "trainable_token_indices", "layer_replication", "lora_bias",
    "fan_in_fan_out", "alora_invocation_tokens", "layers_to_transform", "layers_pattern", "exclude_modules", "target_parameters",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config", "monteclora_config", "arrow_config",
    "kasa_config", "ensure_weight_tying",
)  # fmt: skip


def _targets(value: JsonValue) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) and _LAYER.fullmatch(name) for name in value):
        raise _no(
            Refusal.TARGETS,
            f"target_modules is {_short(value)}, not a list of layer names; regular expressions can run forever. List the names, such as "
            '["q_proj", "v_proj"].',
        )
    names = tuple(sorted({str(name) for name in value}))
    for name in names:
        if name in _SERVER_NAMES:
            raise _no(
                Refusal.TARGETS,
                f"target_modules names {name}: llama.cpp refuses adapters of the output matrix, and ends at once on those of embeddings. "
                "Train it on linear layers inside the network only.",
            )
    return names


def _pattern(settings: dict[str, JsonValue], key: str) -> Iterator[tuple[str, JsonValue]]:
    value = settings.get(key) or {}
    if not isinstance(value, dict):
        raise _no(Refusal.CONFIG, f"{key} is {_short(value)}, not a mapping from layer names. Ask its maker for a sound file.")
    for name, entry in value.items():
        if not _PATH.fullmatch(name):
            raise _no(
                Refusal.TARGETS, f"{key} names {_short(name)}, a regular expression and not a layer. Write the names of the layers in full."
            )
        yield name, entry


def _rank(value: JsonValue, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_RANK:
        raise _no(Refusal.SIZE, f"{what} is {_short(value)}; a rank is a whole number from 1 to {MAX_RANK}. Train it with a smaller one.")
    return value


def _alpha(value: JsonValue, what: str) -> float:
    if not _number(value) or not 0 < float(value) <= 1e5:  # type: ignore[arg-type]  # a number, as just seen
        raise _no(Refusal.SIZE, f"{what} is {_short(value)}; it must be a number above 0 and up to 100000. Correct it.")
    return float(value)  # type: ignore[arg-type]


def _bool(value: JsonValue, what: str) -> bool:
    if not isinstance(value, bool | None):
        raise _no(Refusal.CONFIG, f"{what} is {_short(value)}, neither true nor false. Ask its maker for a sound file.")
    return bool(value)


def _number(value: JsonValue) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _no(reason: Refusal, words: str) -> AdapterRefusedError:
    return AdapterRefusedError(reason, f"{CONFIG_FILE}: {words}")


def _short(value: object) -> str:
    """A stranger's value in a sentence: short, and without characters that a terminal would obey."""
    text = ascii(value) if not isinstance(value, Exception) else ascii(str(value))[1:-1]
    return text if len(text) <= 80 else f"{text[:77]}..."

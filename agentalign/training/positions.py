"""How long one run may be for a base: its positions, and those that its rotary frequencies stay the same for."""

from typing import Any

from transformers import PretrainedConfig

UNLIMITED = 2**31


def position_limit(config: PretrainedConfig) -> int:
    """Most tokens of one run.

    "longrope" and "dynamic" frequencies are those of the *longest* position of a forward, for all who are in it: beyond the length
    that they were trained for, log-probabilities would depend on what else is in a micro-batch, and a cache would hold keys of both kinds
    (transformers, `modeling_rope_utils.dynamic_rope_update`). So a run ends there.
    """
    text = config.get_text_config()
    # As an attribute: some keep it under another name, which they map.
    positions = int(getattr(text, "max_position_embeddings", None) or UNLIMITED)
    told: Any = getattr(text, "rope_parameters", None) or {}
    # By layer type where layers differ.
    kinds = [told, *(one for one in told.values() if isinstance(one, dict))]
    # A "dynamic" base's frequencies change beyond its positions, where it ends anyway.
    fixed = [one.get("original_max_position_embeddings") for one in kinds if one.get("rope_type") == "longrope"]
    return min([positions, *(int(length) for length in fixed if length)])

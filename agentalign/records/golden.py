"""Golden turns: a few held-out prompts with what the training engine answered, kept beside an adapter's weights.

They say what the adapter was when it was saved, in numbers: the likeliest tokens and their log-probabilities along the engine's own
greedy answer, under the adapter and under the bare base. Surprise: the base's are what makes them strong. A server that forgot the
adapter still answers well, but its numbers lie nearer to the base's than to the adapter's.
"""

from agentalign.records.base import Record
from agentalign.records.trajectory import Message

TopTokens = tuple[tuple[int, float], ...]
"""The likeliest token ids at one position with their log-probabilities (nats), likeliest first."""


class GoldenTurn(Record):
    """One prompt and the engine's answer."""

    task: str
    """Task or run it is taken from."""
    messages: tuple[Message, ...]
    """What the agent had before it, the system prompt included."""
    tools: str
    """JSON text of the offered tools."""
    context: tuple[int, ...]
    """The prompt's token ids."""
    completion: tuple[int, ...]
    """The first token ids of the greedy answer."""
    answer: Message
    """The whole greedy answer, parsed."""
    adapter: tuple[TopTokens, ...]
    """Per token of `completion`: what else could have stood there."""
    base: tuple[TopTokens, ...]
    """The same with the adapter off."""


class Golden(Record):
    """The golden turns of one adapter, golden.json beside its weights."""

    dialect: str
    """`Dialect.digest`: tokenizer, template and its arguments."""
    quantization: str
    """How the base was rounded: "nf4", "int8", "none"."""
    dtype: str
    """What it computed in: "bfloat16", "float32"."""
    device: str
    """"cpu" or "cuda"."""
    held_out: bool
    """False where the taskset had nothing held out, and prompts of the training data had to do."""
    noise: float
    """Mean divergence (nats) between two runs of the same weights: all turns in one batch, and each alone."""
    recorded: str = ""
    """When it was made of a version that had been saved without; empty where its training left it."""
    turns: tuple[GoldenTurn, ...]

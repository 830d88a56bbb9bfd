"""Multi-turn rollouts with mock tools on a drawn model: our sessions, which keep what is computed, and transformers' own `generate`.

Every turn writes as many tokens as it may, so both ways do the same work whatever they say; tool results are drawn. The peer gets all
contexts of a turn in one batch, left-padded, as a loop around `generate` does it: it computes every context anew each turn.
"""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from agentalign.training.generate import Generator
from agentalign.training.model import Model

NEVER = -1
"""No token has this id: no turn ends before its last token."""


class Shape(NamedTuple):
    """Lengths of a workload, in tokens."""

    slots: int
    shared: int
    """What all contexts begin with."""
    prompt: int
    turns: int
    words: int
    """Tokens that a turn writes."""
    result: int
    """Tokens of a tool's result."""


FULL = Shape(slots=16, shared=1500, prompt=200, turns=4, words=48, result=220)
SMALL = Shape(slots=4, shared=60, prompt=12, turns=3, words=6, result=10)


class Acted(NamedTuple):
    """What one way of acting came to."""

    seconds: float
    written: list[list[list[int]]]
    """Turn by turn, slot by slot, the ids."""
    peak: int
    """Bytes, on CUDA; else 0."""


def contexts_of(shape: Shape, vocabulary: int) -> tuple[list[list[int]], list[list[list[int]]]]:
    """First contexts, one per slot, and the tools' results, turn by turn."""
    draw = random.Random(2)

    def ids(count: int) -> list[int]:
        return [draw.randrange(1000, vocabulary) for _ in range(count)]

    system = ids(shape.shared)
    return [[*system, *ids(shape.prompt)] for _ in range(shape.slots)], [
        [ids(shape.result) for _ in range(shape.slots)] for _ in range(shape.turns)
    ]


@contextmanager
def speaking(model: Model) -> Iterator[None]:
    """The adapter and the precision that a policy acts in."""
    with model.using("policy"), model.precision():
        yield


def act(model: Model, shape: Shape, vocabulary: int, way: str) -> Acted:
    """All turns by one way, "session" or "generate"."""
    cuda = model.device.type == "cuda"
    contexts, results = contexts_of(shape, vocabulary)
    generator = Generator(model.network, frozenset({NEVER}), within=lambda: speaking(model))
    session = generator.session()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    began, written = time.perf_counter(), []
    for answers in results:
        if way == "session":
            found = session.generate(dict(enumerate(contexts)), max_new_tokens=shape.words)
            turn = [list(found[slot].ids) for slot in range(shape.slots)]
        else:
            turn = by_generate(model, contexts, shape.words)
        written.append(turn)
        contexts = [[*context, *new, *answer] for context, new, answer in zip(contexts, turn, answers, strict=True)]
    if cuda:
        torch.cuda.synchronize()
    return Acted(time.perf_counter() - began, written, torch.cuda.max_memory_allocated() if cuda else 0)


def by_generate(model: Model, contexts: Sequence[Sequence[int]], words: int) -> list[list[int]]:
    """One turn of every slot by transformers' loop with its own cache."""
    width, network = max(map(len, contexts)), model.network
    rows = torch.zeros((len(contexts), width), dtype=torch.long, device=model.device)
    valid = torch.zeros_like(rows)
    for row, context in enumerate(contexts):
        rows[row, width - len(context) :], valid[row, width - len(context) :] = torch.tensor(context, device=model.device), 1
    before = network.config._attn_implementation
    network.set_attn_implementation(model.plain_attention)
    network.generation_config.eos_token_id = None
    try:
        with speaking(model), torch.inference_mode():
            done = network.generate(input_ids=rows, attention_mask=valid, do_sample=False, max_new_tokens=words, pad_token_id=0)
    finally:
        network.set_attn_implementation(before)
    found: list[list[int]] = done[:, width:].tolist()
    return found


def alike(one: Acted, other: Acted) -> float:
    """Share of the first turn's tokens, slot by slot up to the first other one, that both ways wrote: later turns follow from these."""
    same = total = 0
    for mine, theirs in zip(one.written[0], other.written[0], strict=True):
        differs = next((place for place, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b), len(mine))
        same, total = same + differs, total + len(mine)
    return same / total

"""What one slot writes in one call of a generator, while it is written and after."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from agentalign.errors import ModelError


class Completion(NamedTuple):
    """What one slot sampled."""

    ids: tuple[int, ...]
    """Ends with the stop id where it stopped by itself."""
    logprobs: tuple[float, ...]
    """Model log-prob in nats of each id, at temperature 1."""
    stopped: bool
    """False where it was cut by `max_new_tokens` or by the model's context length."""


@dataclass
class Turn:
    """What a slot has written so far in the current call."""

    budget: int
    random: torch.Generator
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: bool = False

    def add(self, token: int, logprob: float, stop_ids: frozenset[int]) -> None:
        """This id was sampled.

        Raises:
            ModelError: its log-prob is no number.
        """
        if not math.isfinite(logprob):
            raise ModelError("the model's scores are no numbers here, so nothing can be sampled from them. Use another version.")
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.stopped = token in stop_ids

    @property
    def over(self) -> bool:
        """Nothing more is written."""
        return self.stopped or len(self.ids) >= self.budget

    def completion(self) -> Completion:
        """As the caller gets it."""
        return Completion(tuple(self.ids), tuple(self.logprobs), self.stopped)


def turns_of(budgets: Mapping[int, int], seeds: Mapping[int, int] | None) -> dict[int, Turn]:
    """An empty turn per slot, each with its own random stream."""
    return {slot: Turn(budget, torch.Generator().manual_seed((seeds or {}).get(slot, 0))) for slot, budget in budgets.items()}

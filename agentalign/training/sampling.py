"""Choosing the next ids: greedy or sampled, one random stream per row; and the plain loop for models without batched attention.

Surprise: the log-prob that is returned is the model's own, at temperature 1 and without top_p, whatever the id was sampled with.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

COLDEST = 1e-5
"""Below this temperature the likeliest id is taken: scores divided by less are beyond what a float holds, and the rest has no share."""


class Sampler(NamedTuple):
    """How ids are chosen."""

    temperature: float = 0.0
    """0, or less than `COLDEST`, takes the likeliest id."""
    top_p: float = 1.0
    """Smallest set of likeliest ids with at least this mass; 1 keeps all."""

    def __call__(
        self, logits: Tensor, random: Sequence[torch.Generator], allowed: Tensor | None = None, shift: Tensor | None = None
    ) -> tuple[list[int], list[float]]:
        """One id per row of logits (n, V), each from its own random stream, and the model's log-prob (nats) of it.

        A row that holds what is no number gets some id and a log-prob that is not finite: its caller says whose fault that is.

        Args:
            allowed: (n, V) which ids may be chosen, at least one per row.
            shift: (n, V) added to the logits before choosing, such as penalties. With either, the log-prob is that of the unhindered model.
        """
        scores = logits.float()
        if allowed is not None or shift is not None:
            bent = scores if shift is None else scores + shift
            ids, _ = self(bent if allowed is None else bent.masked_fill(~allowed, -torch.inf), random)
            own = torch.log_softmax(scores, dim=-1).gather(1, torch.tensor(ids, device=scores.device)[:, None])[:, 0]
            return ids, own.tolist()
        highest, likeliest = scores.max(dim=-1)
        probs = torch.softmax(scores, dim=-1)
        # log sum exp of the scores from what the softmax has computed already: exp over a vocabulary is a visible part of a step.
        total = highest - probs.gather(1, likeliest[:, None])[:, 0].log()
        chosen = likeliest
        if self.temperature >= COLDEST:
            tempered = probs if self.temperature == 1 else torch.softmax(scores / self.temperature, dim=-1)
            chosen = _draw(tempered, self.top_p, random)
        logprobs = scores.gather(1, chosen[:, None])[:, 0] - total
        return chosen.tolist(), logprobs.tolist()


class Penalties(NamedTuple):
    """What an id loses for having been written already, in logits; below 0 it gains. Only what was written counts, not the prompt.

    The OpenAI API's: logit - frequency * times written - presence * (written at all).
    """

    presence: float = 0.0
    frequency: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.presence or self.frequency)

    def shift(self, written: Sequence[int], like: Tensor) -> Tensor:
        """(1, V) what to add to logits (1, V)."""
        times = torch.bincount(torch.tensor(written, dtype=torch.long), minlength=like.shape[-1])[None].to(like.device)
        return -(self.frequency * times + self.presence * (times > 0))


def _draw(probs: Tensor, top_p: float, random: Sequence[torch.Generator]) -> Tensor:
    """Inverse of the cumulated distribution: one uniform number per row, however large the vocabulary."""
    order = None
    if top_p < 1:
        probs, order = probs.sort(dim=-1, descending=True)
        probs = probs * (probs.cumsum(dim=-1) - probs < top_p)
    cumulated = probs.cumsum(dim=-1)
    total = cumulated[:, -1:]
    uniform = torch.stack([torch.rand(1, generator=generator) for generator in random]).to(probs.device)
    # Just below the total at most: rounding up to it would pick an id of probability 0.
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    # Nothing is above NaN, so its place would be V; and an index out of bounds ends a GPU's whole process, not one row.
    place = torch.searchsorted(cumulated, target, right=True).clamp(max=probs.shape[-1] - 1)
    return (place if order is None else order.gather(1, place))[:, 0]


class _Choose(LogitsProcessor):  # type: ignore[misc]
    """Lets our sampler choose inside transformers' greedy loop: the chosen id alone keeps a finite score."""

    def __init__(self, sampler: Sampler, random: torch.Generator) -> None:
        self.sampler, self.random = sampler, random
        self.chosen: list[tuple[int, float]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        (token,), (logprob,) = self.sampler(scores, [self.random])
        self.chosen.append((token, logprob))
        return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([token], device=scores.device), 0.0)


def generate_one(
    model: PreTrainedModel, context: Sequence[int], budget: int, stop_ids: frozenset[int], sampler: Sampler, random: torch.Generator
) -> list[tuple[int, float]]:
    """Ids and their log-probs after one context, by transformers' own loop and the cache that this model needs."""
    choose = _Choose(sampler, random)
    ids = torch.tensor([list(context)], device=model.device)
    # Written out, since what is left open here is filled in from the model's own generation config.
    ends = {"eos_token_id": sorted(stop_ids), "pad_token_id": min(stop_ids)}
    config = GenerationConfig(max_new_tokens=budget, do_sample=False, num_beams=1, repetition_penalty=1.0, **ends)
    mask = torch.ones_like(ids)
    model.generate(ids, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList([choose]))
    return choose.chosen

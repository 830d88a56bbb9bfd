"""Which preferences a recipe may learn from, and what several words on the same items come to.

People before judges before scores: of the words on one place the highest rank alone counts, and a person's tie silences what scores
say. Several people who compared the same count together. The surprise: what is overruled is part of what a training is about all the
same, so that a vote that comes while it is down does not make another training of it (a lead's decision does).
"""

import logging
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import TypeVar

from agentalign.errors import DataError
from agentalign.recipes.workspace import Workspace
from agentalign.records.preference import Item, Preference, in_force
from agentalign.records.trajectory import Trajectory
from agentalign.scoring.corrected import standing
from agentalign.scoring.pair_words import from_scores
from agentalign.store.filters import RunFilter

logger = logging.getLogger("agentalign")
T = TypeVar("T", bound=Hashable)
RANKS = {"scores": 0, "judge": 1, "human": 2, "correction": 2, "adjudicator": 3}


def choose_preferences(work: Workspace, criterion: str) -> tuple[list[Preference], dict[str, Trajectory]]:
    """Every word on a criterion that takes part in what is learned, and the runs they speak of: of the train split, or imported.

    See `settled` for what they come to.

    Raises:
        DataError: none of them decides anything.
    """
    stored = [word for word in in_force(work.store.preferences(work.taskset.name, criterion=criterion)) if word.is_answer]
    decided = {runs_of(word) for word in stored if word.decided}
    # A tie is told of only where it stands against something.
    found = [word for word in stored if runs_of(word) in decided]
    wanted = tuple(sorted({item.trajectory for p in found for item in p.items}))
    runs = {r.id: r for r in work.store.trajectories(RunFilter(ids=wanted))} if wanted else {}
    replaced = {r.id for r in runs.values() if r.is_corrected_step} - standing(
        runs.values(), work.store.preferences(work.taskset.name, source="correction")
    ).keys()
    # Dev and test are for judging: a preference on such a run stays out of training, whoever made it.
    usable = [
        p for p in found if all(runs[item.trajectory].split in ("train", "") for item in p.items) and p.items[0].trajectory not in replaced
    ]
    if not any(p.decided for p in usable):
        raise DataError(
            f"there are no decided preferences on '{criterion}' among train runs of taskset '{work.taskset.name}'. Compare runs in "
            f"`agentalign ui`, or make pairs from scores with `agentalign pairs {work.taskset.name}`."
        )
    kept = {item.trajectory for p in usable for item in p.items}
    return usable, {r: t for r, t in runs.items() if r in kept}


def settled(words: Sequence[Preference], runs: Mapping[str, Trajectory]) -> list[Preference]:
    """What the words come to: one for the same items, with the mean strength of those who count there; a tie where they are even.

    Args:
        words: in force, in the order they were stored, ties among them.
        runs: those the words speak of, by id.

    Raises:
        DataError: they are even everywhere.
    """
    places: dict[frozenset[Item], list[Preference]] = {}
    for word in words:
        places.setdefault(frozenset(word.items), []).append(word)
    found: list[Preference] = []
    overruled = even = 0
    for said in places.values():
        ranks = [rank_of(word, runs) for word in said]
        count = [word for word, rank in zip(said, ranks, strict=True) if rank == max(ranks)]
        overruled += len(said) - len(count)
        order = net_order([(word.items, word.strength if word.decided else 0.0) for word in count])
        if order is None:
            even += 1
            found.append(count[0].model_copy(update={"tie": True, "both_bad": False}))
        elif len(count) == 1:
            found += count
        else:
            items, strength = order
            nearest = next((word for word in count if word.decided and word.items == items), count[0])
            found.append(nearest.model_copy(update={"items": items, "strength": strength, "tie": False, "both_bad": False}))
    if overruled or even:
        text = "preferences: %d overruled by who counts more there, people before judges before scores; %d comparisons are even"
        logger.info(text, overruled, even)
    if even == len(found):
        raise DataError(
            f"all {len(words)} preferences cancel out: those who count most are evenly split, or call a tie what others put in order. "
            "Compare further runs, or decide the disputed ones on the Agreement page of `agentalign ui`."
        )
    return found


def rank_of(word: Preference, runs: Mapping[str, Trajectory]) -> int:
    """How much a word counts: the higher one alone is heard where two speak of the same."""
    return RANKS["scores"] if from_scores(word, runs) else RANKS[word.source]


def net_order(words: Sequence[tuple[Sequence[T], float]]) -> tuple[tuple[T, ...], float] | None:
    """The order that words on the same items come to together (Borda), and how clear it is; None where they leave two items even.

    Args:
        words: (items best first, strength), a tie with strength 0.

    Returns:
        Items best first, and the mean over words and pairs of items of the strength, negative where a word has the pair the other way
        round: of two items what 2 of 3 prefer has a third of the strength.
    """
    standings: dict[T, float] = {}
    for items, strength in words:
        for place, item in enumerate(items):
            standings[item] = standings.get(item, 0.0) + strength * (len(items) - 1 - 2 * place)
    order = tuple(sorted(standings, key=lambda item: -standings[item]))
    if len({standings[item] for item in order}) < len(order) or len(order) < 2:
        return None
    pairs = list(combinations(order, 2))
    signs = [strength if items.index(better) < items.index(worse) else -strength for items, strength in words for better, worse in pairs]
    clear = sum(signs) / len(signs)
    return (order, clear) if clear > 0 else None


def runs_of(word: Preference) -> frozenset[str]:
    """Ids of the runs that a word is about, as a whole or at a step."""
    return frozenset(item.trajectory for item in word.items)

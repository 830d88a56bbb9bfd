"""Tasks from a seed: every family's share is exact, every branch of a family gets half, entities are disjoint between splits."""

import random
from collections import Counter
from collections.abc import Mapping
from typing import TypeVar

from agentalign.environments.task import Task
from agentalign.records.base import canonical_json

from .families import SEEN, UNSEEN, Family
from .world import Pool, World

NUMBERS = range(1000, 10_000)
CUSTOMERS = range(100, 1000)
T = TypeVar("T")


def generate(seed: int, splits: Mapping[str, int], unseen: int, demonstrations: Mapping[str, int]) -> list[Task]:
    """All tasks of all splits.

    Args:
        splits: tasks per split.
        unseen: how many of the test tasks are of families that occur nowhere else.
        demonstrations: expert runs per branch for SFT, by family; a family not named here shows all its training tasks.
    """
    pools = _pools(random.Random(f"{seed}/pools"), splits)
    tasks = []
    for split, size in splits.items():
        extra = unseen if split == "test" else 0
        counts = _shares(SEEN, size - extra) | _shares(UNSEEN, extra)
        drafts = [(family, number) for family, count in counts.items() for number in range(count)]
        random.Random(f"{seed}/{split}/order").shuffle(drafts)
        shown: Counter[tuple[str, str]] = Counter()
        for index, (family, number) in enumerate(drafts):
            rng = random.Random(f"{seed}/{split}/{family.name}/{number}")
            branch = family.branches[number % len(family.branches)]
            shown[family.name, branch] += 1
            limit = demonstrations.get(family.name, size)
            tags = ("expert",) if split == "train" and shown[family.name, branch] <= limit else ()
            tasks.append(_task(f"{split}-{index:04}", split, family, branch, tags, World(rng, pools[split])))
    return tasks


def _task(name: str, split: str, family: Family, branch: str, tags: tuple[str, ...], world: World) -> Task:
    draft = family.draft(world, branch)
    data = {"branch": branch, "world": world.rows(), "owner": world.owner["customer_id"], **draft}
    return Task(id=name, split=split, family=family.name, unseen=family in UNSEEN, tags=tags, data=canonical_json(data))


def _shares(families: tuple[Family, ...], size: int) -> dict[Family, int]:
    """Whole numbers that sum to `size` and follow the shares (largest remainders first)."""
    total = sum(family.share for family in families)
    exact = {family: family.share * size / total for family in families}
    counts = {family: int(value) for family, value in exact.items()}
    by_remainder = sorted(families, key=lambda family: counts[family] - exact[family])
    for family in by_remainder[: size - sum(counts.values())]:
        counts[family] += 1
    return counts


def _pools(rng: random.Random, splits: Mapping[str, int]) -> dict[str, Pool]:
    """Each split's own entities, as many as its share of the tasks."""
    orders = [f"W{number}" for number in rng.sample(NUMBERS, len(NUMBERS))]
    customers = [f"C{number}" for number in rng.sample(CUSTOMERS, len(CUSTOMERS))]
    names = Pool.all_names()
    rng.shuffle(names)
    total, start = sum(splits.values()), 0
    pools = {}
    for split, size in splits.items():
        share = start / total, (start + size) / total
        pools[split] = Pool(_part(orders, *share), _part(customers, *share), _part(names, *share))
        start += size
    return pools


def _part(items: list[T], start: float, end: float) -> list[T]:
    return items[round(len(items) * start) : round(len(items) * end)]

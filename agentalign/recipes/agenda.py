"""Which tasks PPO acts out, and in which iteration: those whose outcome is open, and all sides of a judgement together.

A judgement is a bias that a step moves one way for all its tasks. An iteration that acts out one side alone teaches to act always
alike, and the other side, however well it stood, is lost before its turn comes (measured: three requests that need no asking back in the
first iteration and one that does in the second, and in the third a policy asked back no more). So the sides of a family come together.
"""

import random
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from agentalign.environments.task import Task
from agentalign.recipes.standing import OPEN, UNKNOWN, Past, kind_of


class _Unit(NamedTuple):
    """Tasks that are acted out in one iteration: one of every side of a judgement, or a task that has no other side."""

    family: str
    tasks: tuple[int, ...]
    weight: float


def draw_weights(tasks: Sequence[Task], past: Mapping[str, Past]) -> list[float]:
    """How often each task should be acted out: by how open its outcome is, the same for all sides of a judgement.

    The side that still goes wrong alone would be drawn the most, and learning from it alone turns the error round (measured: a
    policy that had asked back where it should never did again after six steps).
    """
    own = [past[kind_of(task)].weight if kind_of(task) in past else UNKNOWN for task in tasks]
    sides: dict[str, dict[str, float]] = {}
    for task, weight in zip(tasks, own, strict=True):
        sides.setdefault(task.family, {})[task.branch] = weight
    return [float(np.mean(list(sides[task.family].values()))) for task in tasks]


def agenda(
    weights: Sequence[float], sides: Sequence[tuple[str, str]], *, iterations: int, per_iteration: int, seed: int
) -> tuple[tuple[int, ...], ...]:
    """Indices of the tasks of every iteration; the second half of the iterations acts the tasks of the first half out again.

    Drawn without replacement, in proportion to their weights (Efraimidis and Spirakis 2006). Going over them twice is what makes
    the reward comparable: otherwise every iteration has other tasks, and how hard they are moves it more than learning does.

    Args:
        weights: (N,) of the tasks.
        sides: (N,) family and branch of each; a family with several branches is a judgement.
    """
    draw, rounds = random.Random(seed), -(-iterations // 2)
    units = _units(weights, sides, draw)
    keys = sorted(((draw.random() ** (1 / unit.weight), place) for place, unit in enumerate(units)), reverse=True)
    chosen: list[_Unit] = []
    left: list[_Unit] = []
    room = rounds * per_iteration
    for _, place in keys:
        fits = len(units[place].tasks) <= room
        (chosen if fits else left).append(units[place])
        room -= len(units[place].tasks) if fits else 0
    if room and left:  # nothing is small enough for the last place
        chosen.append(left[0]._replace(tasks=left[0].tasks[:room]))
    total = sum(len(unit.tasks) for unit in chosen)
    size = min(per_iteration, total)
    hands = _dealt(chosen, rounds, size, draw) if total == rounds * size else _gone_round(chosen, rounds, size)
    return tuple(tuple(hands[iteration % rounds]) for iteration in range(iterations))


def _units(weights: Sequence[float], sides: Sequence[tuple[str, str]], draw: random.Random) -> list[_Unit]:
    """Every task once; a task of a judgement whose other sides have run out is hardly ever worth its turn."""
    families: dict[str, dict[str, list[int]]] = {}
    for index, (family, branch) in enumerate(sides):
        families.setdefault(family, {}).setdefault(branch, []).append(index)
    found = []
    for family, branches in families.items():
        for tasks in branches.values():
            draw.shuffle(tasks)
        for row in zip_longest(*branches.values()):
            unit = tuple(task for task in row if task is not None)
            found.append(_Unit(family, unit, weights[unit[0]] if len(unit) == len(branches) else min(OPEN, weights[unit[0]])))
    return found


def _dealt(units: Sequence[_Unit], hands: int, size: int, draw: random.Random) -> list[list[int]]:
    """Every family spread evenly over the hands; a unit is torn apart only where no hand has room for it."""
    dealt: list[list[int]] = [[] for _ in range(hands)]
    counts: list[dict[str, int]] = [{} for _ in range(hands)]

    def deal(tasks: tuple[int, ...], family: str) -> bool:
        free = [hand for hand in range(hands) if len(dealt[hand]) + len(tasks) <= size]
        if free:
            best = min(free, key=lambda hand: (counts[hand].get(family, 0), len(dealt[hand]), draw.random()))
            dealt[best].extend(tasks)
            counts[best][family] = counts[best].get(family, 0) + len(tasks)
        return bool(free)

    # Those with most tasks first: single ones fill the gaps that they leave.
    for unit in sorted(units, key=lambda unit: (-len(unit.tasks), unit.family)):
        if not deal(unit.tasks, unit.family):
            for task in unit.tasks:
                deal((task,), unit.family)
    return dealt


def _gone_round(units: Sequence[_Unit], hands: int, size: int) -> list[list[int]]:
    """Full hands of fewer tasks than there are places: whole units come again, none twice in a hand, each as often as any other.

    In a hand every family has the share that it has of all tasks; a unit is torn apart only where no whole one fits into what is left.
    """
    used = [0] * len(units)
    shares: dict[str, int] = {}
    for unit in units:
        shares[unit.family] = shares.get(unit.family, 0) + len(unit.tasks)
    dealt = []
    for _ in range(hands):
        hand: list[int] = []
        counts: dict[str, int] = dict.fromkeys(shares, 0)
        left = set(range(len(units)))

        def turn(place: int, counts: dict[str, int] = counts) -> tuple[int, float, int]:
            family = units[place].family
            return used[place], counts[family] / shares[family], place

        while (room := size - len(hand)) and left:
            place = min([one for one in left if len(units[one].tasks) <= room] or left, key=turn)
            unit, start = units[place], used[place]
            # Torn apart, it begins with another side every time.
            tasks = unit.tasks if len(unit.tasks) <= room else [unit.tasks[(start + i) % len(unit.tasks)] for i in range(room)]
            hand.extend(tasks)
            counts[unit.family] += len(tasks)
            used[place] += 1
            left.remove(place)
        dealt.append(hand)
    return dealt

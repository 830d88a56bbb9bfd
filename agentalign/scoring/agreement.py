"""Do raters agree beyond chance? Krippendorff's alpha over all of them, weighted kappa between two.

Both are 1 - observed / expected disagreement: 1 is perfect, 0 is what shuffled answers would give, below 0 is worse than that. Intervals
draw *runs* again, never single steps, because steps of one run are not independent. Surprise: agreement on answers that never vary is
no agreement; where everyone always said the same there is no number at all, and the estimate says so.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from agentalign.records.base import Record
from agentalign.scoring.intervals import bootstrap, no_more_than

FEWEST_ITEMS = 20
"""Items with two answers that a figure needs; below, chance says more than raters do."""
FEWEST_RUNS = 10
"""Runs that these items must lie in: forty steps of two runs are two cases."""

Metric = Literal["nominal", "ordinal", "interval"]
"""How far two answers are apart: equal or not; by the ranks between them; by their values, squared."""

Floats = NDArray[np.float64]
_NOTHING = 1e-12


class Estimate(Record):
    """A figure of agreement with its 95 % bootstrap interval."""

    value: float | None
    """None where there is too little to say one."""
    low: float | None = None
    high: float | None = None
    n: int
    """Items that two or more answered."""
    why: Literal["", "too few", "no variation"] = ""
    """Why there is no value."""


class _Parts(NamedTuple):
    """Per resample (R,) the two disagreements, and how often two answers taken by chance differ."""

    observed: Floats
    expected: Floats
    differ: Floats

    def values(self) -> Floats:
        """(R,) one minus their ratio; NaN where answers do not vary."""
        varies = self.expected > _NOTHING
        return np.where(varies, 1.0 - self.observed / np.where(varies, self.expected, 1.0), np.nan)


def alpha(items: Sequence[Sequence[float]], metric: Metric, runs: Sequence[Hashable] | None = None, *, seed: int = 0) -> Estimate:
    """Krippendorff's alpha (Krippendorff 2011, "Computing Krippendorff's alpha-reliability") for any number of raters and missing answers.

    Args:
        items: the answers to each item, in no order; items with fewer than two take no part.
        runs: the run of each item; None where every item stands for itself.
    """
    groups = list(range(len(items))) if runs is None else list(runs)
    paired = [(values, group) for values, group in zip(items, groups, strict=True) if len(values) > 1]
    categories, codes = np.unique([v for values, _ in paired for v in values], return_inverse=True)
    coincidences = _coincidences([len(values) for values, _ in paired], codes, len(categories))

    def parts(drawn: Floats) -> _Parts:
        table = np.asarray((coincidences.T @ drawn.T).T).reshape(len(drawn), len(categories), len(categories))
        return _alpha_parts(table, categories, metric)

    return _estimate(parts, [group for _, group in paired], seed)


def _coincidences(lengths: Sequence[int], codes: NDArray[np.int64], size: int) -> csr_array:
    """(n, C x C): which two categories stand beside each other in an item, over all ordered pairs of its answers."""
    rows, columns, weights = [], [], []
    start = 0
    for number, length in enumerate(lengths):
        own = codes[start : start + length]
        start += length
        first, second = np.nonzero(~np.eye(length, dtype=bool))
        rows.append(np.full(len(first), number))
        columns.append(own[first] * size + own[second])
        weights.append(np.full(len(first), 1 / (length - 1)))
    flat = [np.concatenate(part) if part else np.zeros(0) for part in (weights, rows, columns)]
    return csr_array((flat[0], (flat[1].astype(int), flat[2].astype(int))), shape=(len(lengths), size * size))


def _alpha_parts(coincidences: Floats, categories: Floats, metric: Metric) -> _Parts:
    """From (R, C, C) coincidences."""
    each = coincidences.sum(axis=2)  # (R, C) answers of each category
    total = each.sum(axis=1)
    if metric == "nominal":
        distance = (1.0 - np.eye(len(categories)))[None]
    else:
        # Krippendorff's ordinal metric is the distance of mid-ranks: half of both categories, and all that lies between.
        places = categories[None] if metric == "interval" else np.cumsum(each, axis=1) - each / 2
        distance = (places[:, :, None] - places[:, None, :]) ** 2
    chance = each[:, :, None] * each[:, None, :] / (total - 1)[:, None, None]
    observed, expected = ((part * distance).sum(axis=(1, 2)) / total for part in (coincidences, chance))
    differ = (chance.sum(axis=(1, 2)) - np.trace(chance, axis1=1, axis2=2)) / total
    return _Parts(observed, expected, differ)


def kappa(
    first: Sequence[float], second: Sequence[float], metric: Metric, runs: Sequence[Hashable] | None = None, *, seed: int = 0
) -> Estimate:
    """Cohen's kappa of two raters on the same items; quadratically weighted by the values unless nominal (Cohen 1960, 1968)."""
    one, other = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    labels = np.unique(np.concatenate([one, other]))
    is_one, is_other = ((values[:, None] == labels).astype(float) for values in (one, other))  # (n, C)

    def parts(drawn: Floats) -> _Parts:
        share = drawn / drawn.sum(axis=1, keepdims=True)
        differ = 1.0 - ((share @ is_one) * (share @ is_other)).sum(axis=1)
        if metric == "nominal":
            return _Parts(share @ (one != other), differ, differ)
        # The mean squared distance of an answer of one and any answer of the other: both variances, and the distance of the means.
        means = [(share @ values, share @ values**2) for values in (one, other)]
        spread = sum(square - mean**2 for mean, square in means)
        return _Parts(share @ (one - other) ** 2, spread + (means[0][0] - means[1][0]) ** 2, differ)

    return _estimate(parts, list(range(len(one))) if runs is None else list(runs), seed)


def correlation(first: Sequence[float], second: Sequence[float], runs: Sequence[Hashable] | None = None, *, seed: int = 0) -> Estimate:
    """Spearman's rank correlation of two raters on the same items, ties at their mean rank."""
    coded = [np.unique(np.asarray(values, dtype=float), return_inverse=True) for values in (first, second)]

    def parts(drawn: Floats) -> _Parts:
        share = drawn / drawn.sum(axis=1, keepdims=True)
        ranks = []
        for labels, codes in coded:
            each = share @ (codes[:, None] == np.arange(len(labels)))  # (R, C)
            ranks.append((np.cumsum(each, axis=1) - each / 2)[:, codes] - 0.5)  # mid-ranks about their mean, (R, n)
        one, other = ranks
        spread = np.sqrt((share * one**2).sum(axis=1) * (share * other**2).sum(axis=1))
        return _Parts(spread - (share * one * other).sum(axis=1), spread, np.ones(len(share)))

    return _estimate(parts, list(range(len(first))) if runs is None else list(runs), seed)


def _estimate(parts: Callable[[Floats], _Parts], runs: Sequence[Hashable], seed: int) -> Estimate:
    """The figure on the sample as it is, and its interval over runs drawn again."""
    n = len(runs)
    numbers = {run: number for number, run in enumerate(dict.fromkeys(runs))}
    if n < FEWEST_ITEMS or len(numbers) < FEWEST_RUNS:
        return Estimate(value=None, n=n, why="too few")
    found = parts(np.ones((1, n)))
    value = float(found.values()[0])
    if np.isnan(value):
        return Estimate(value=None, n=n, why="no variation")
    of_item = np.array([numbers[run] for run in runs])
    low, high = bootstrap(lambda drawn: parts(drawn[:, of_item]).values(), len(numbers), seed=seed) or (None, None)
    if found.observed[0] < _NOTHING:
        # Perfect on a sample: as many disagreements as may well have been missed, each as large as one by chance.
        low = max(-1.0, 1.0 - no_more_than(len(numbers)) / float(found.differ[0]))
    return Estimate(value=value, low=low, high=high, n=n)

"""Intervals that raters and adapters are both measured by: a rate's, and a statistic's over items drawn again.

Surprise: a sample without a single disagreement makes every resample perfect too, an interval without width. `no_more_than` is what
is honest there: how often something may happen that never did in n tries.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from agentalign.errors import DataError
from agentalign.records.base import Record

CONFIDENCE = 0.95
RESAMPLES = 1000
_CHUNK = 200
"""Resamples drawn at once: keeps memory small for thousands of items."""


def wilson(successes: float, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Score interval of a rate (Wilson 1927); honest near 0 and 1 and for small n. `successes` may be a sum of values in [0, 1]."""
    if n < 1 or not 0 <= successes <= n:
        raise DataError(f"no interval for {successes:g} successes of {n}: a rate needs at least one task and no more successes than tasks.")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


class Share(Record):
    """How many of n, with the 95 % Wilson interval."""

    share: float
    low: float
    high: float
    n: int


def share_of(count: int, n: int) -> Share:
    """`count` of `n` as a share."""
    low, high = wilson(count, n)
    return Share(share=count / n, low=low, high=high, n=n)


def no_more_than(n: int, confidence: float = CONFIDENCE) -> float:
    """Largest rate under which n tries without a single hit are still likely: the upper end of Clopper and Pearson's interval at 0 of n."""
    return 1.0 - math.exp(math.log((1 - confidence) / 2) / n)


def bootstrap(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]], n: int, *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """Percentile interval of a statistic over n items drawn with replacement (Efron 1979); None where most resamples have no value.

    Args:
        statistic: from how often each item was drawn in R resamples, (R, n), to R numbers; NaN where there is none.
    """
    rng = np.random.default_rng(seed)
    found = []
    for start in range(0, resamples, _CHUNK):
        count = min(_CHUNK, resamples - start)
        drawn = rng.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
        found.append(statistic(np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n).astype(float)))
    values = np.concatenate(found)
    values = values[~np.isnan(values)]
    if 2 * len(values) < resamples:
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)

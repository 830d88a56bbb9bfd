"""Intervals against scipy and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from agentalign.errors import DataError
from agentalign.scoring.intervals import bootstrap, no_more_than, wilson


@given(st.integers(1, 500), st.data())
def test_wilson_agrees_with_scipy(n, data):
    successes = data.draw(st.integers(0, n))
    expected = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_of_eighty_three_percent_of_120():
    assert wilson(100, 120) == pytest.approx((0.7565, 0.8894), abs=5e-4)


def test_wilson_of_no_task_is_refused():
    with pytest.raises(DataError):
        wilson(0, 0)


@given(st.integers(1, 500))
def test_what_never_happened_may_still_be_as_frequent_as_clopper_and_pearson_say(n):
    assert no_more_than(n) == pytest.approx(binomtest(0, n).proportion_ci(0.95, method="exact").high)


def test_the_bootstrap_of_a_mean_is_about_its_standard_error_wide():
    values = np.random.default_rng(0).normal(10, 2, 400)
    low, high = bootstrap(lambda drawn: drawn @ values / 400, 400)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert low < values.mean() < high


def test_a_statistic_that_mostly_has_no_value_has_no_interval():
    assert bootstrap(lambda drawn: np.where(drawn[:, 0] > 0, np.nan, 1.0), 3) is None

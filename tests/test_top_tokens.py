"""How far two lists of likely tokens lie apart, and the golden turns that a training leaves."""

import math

import pytest

from agentalign.training.top_tokens import apart, divergence


def test_equal_lists_are_not_apart_and_disjoint_ones_are() -> None:
    first = {1: math.log(0.7), 2: math.log(0.2)}
    assert divergence(first, first) == pytest.approx(0.0, abs=1e-9)
    assert divergence(first, {3: math.log(0.7), 4: math.log(0.2)}) > 0.5
    assert divergence(first, {}) == math.inf


def test_the_divergence_is_that_of_the_listed_tokens_and_the_lump_of_others() -> None:
    first, second = {1: math.log(0.5)}, {1: math.log(0.25)}
    assert divergence(first, second) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75))


def test_positions_that_one_side_lacks_are_not_compared() -> None:
    one = ((1, math.log(0.9)),)
    assert apart((one, one), (one,)) == pytest.approx(0.0, abs=1e-9)
    assert apart((one,), ()) == math.inf

"""Alpha and kappa against published worked examples, and against what must hold for any answers."""

import math
import random
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from agentalign.scoring import agreement
from agentalign.scoring.agreement import FEWEST_ITEMS, alpha, correlation, kappa

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section E: four observers, twelve units, missing answers.
OBSERVERS = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)
UNITS = [[float(value) for value in unit if value != "."] for unit in zip(*(row.split() for row in OBSERVERS), strict=True)]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worked examples are smaller than what a team would be shown a figure of."""
    monkeypatch.setattr(agreement, "FEWEST_ITEMS", 2)
    monkeypatch.setattr(agreement, "FEWEST_RUNS", 2)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(("metric", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_krippendorffs_on_his_own_example(metric, published):
    found = alpha(UNITS, metric)
    assert found.value == pytest.approx(published, abs=5e-4)
    assert found.n == 11, "the unit that one observer alone described says nothing about agreement"


# The worked example of Wikipedia's article on the coefficient: three coders, fifteen units, most answers missing.
CODERS = ("* * * * * 3 4 1 2 1 1 3 3 * 3", "1 * 2 1 3 3 4 3 * * * * * * *", "* * 2 1 3 4 4 * 2 1 1 3 3 * 4")


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(("metric", "published"), [("nominal", 0.691), ("interval", 0.811)])
def test_alpha_with_most_answers_missing(metric, published):
    units = [[float(value) for value in unit if value != "*"] for unit in zip(*(row.split() for row in CODERS), strict=True)]
    assert alpha(units, metric).value == pytest.approx(published, abs=5e-4)


@pytest.mark.usefixtures("few")
def test_alpha_of_binary_answers_by_hand():
    # Two observers, ten units, four of them split: o01 = 4, n0 = 14, n1 = 6, alpha = 1 - (20 - 1) * 4 / (14 * 6) = 0.095.
    units = [[0.0, 1.0]] * 4 + [[1.0, 1.0]] + [[0.0, 0.0]] * 5
    assert alpha(units, "nominal").value == pytest.approx(1 - 19 * 4 / 84)
    assert alpha(units, "ordinal").value == pytest.approx(1 - 19 * 4 / 84), "two categories have one distance"


@pytest.mark.usefixtures("few")
def test_kappa_is_cohens_on_the_textbook_table():
    # 50 grant proposals read by two: 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no. po = 0.7, pe = 0.5, kappa = 0.4.
    counts = {(1, 1): 20, (1, 0): 5, (0, 1): 10, (0, 0): 15}
    pairs = [pair for pair, count in counts.items() for _ in range(count)]
    for metric in ("nominal", "ordinal"):
        assert kappa(*zip(*pairs, strict=True), metric).value == pytest.approx(0.4), "weights change nothing on two categories"


@pytest.mark.usefixtures("few")
def test_quadratic_weights_by_hand_from_the_table_of_counts():
    # kappa_w = 1 - sum w o / sum w e over the cells, w = (i - j)^2 (Cohen 1968); rows 1-3 of one rater, columns of the other.
    table = np.array([[11, 3, 1], [1, 9, 4], [0, 2, 12]], dtype=float)
    weight = np.array([[(i - j) ** 2 for j in range(3)] for i in range(3)], dtype=float)
    expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
    by_hand = 1 - (weight * table).sum() / (weight * expected).sum()
    pairs = [(i + 1, j + 1) for i, j in product(range(3), repeat=2) for _ in range(int(table[i, j]))]
    assert kappa(*zip(*pairs, strict=True), "ordinal").value == pytest.approx(by_hand)


answers = st.lists(st.lists(st.integers(1, 5), min_size=2, max_size=4), min_size=FEWEST_ITEMS, max_size=30)


def alpha_by_definition(units, metric):
    """Mean distance within units over mean distance of all answers, pair by pair, as the definition says it."""
    everything = [value for unit in units for value in unit]
    count = Counter(everything)

    def distance(a, b):
        if metric == "nominal":
            return float(a != b)
        low, high = sorted((a, b))
        return (sum(n for value, n in count.items() if low <= value <= high) - (count[a] + count[b]) / 2) ** 2

    def total(values):
        return sum(distance(a, b) for i, a in enumerate(values) for j, b in enumerate(values) if i != j)

    n = len(everything)
    within = sum(total(unit) / (len(unit) - 1) for unit in units) / n
    chance = total(everything) / (n * (n - 1))
    return 1 - within / chance if chance else None


@given(answers, st.sampled_from(["nominal", "ordinal"]))
def test_alpha_is_what_its_definition_says_whoever_answered_first(units, metric):
    found = alpha(units, metric)
    expected = alpha_by_definition(units, metric)
    if expected is None:
        assert (found.value, found.why) == (None, "no variation")
        return
    assert found.value == pytest.approx(expected)
    shuffled = [random.Random(1).sample(unit, len(unit)) for unit in units]
    assert alpha(shuffled[::-1], metric).value == pytest.approx(expected), "neither the order of raters nor of items matters"
    assert alpha([*units, [3], []], metric).value == pytest.approx(expected), "an answer without a second one is missing data"
    assert found.low is None or found.low - 1e-9 <= found.value


marks = st.integers(1, 5)


@given(st.lists(st.tuples(marks, marks), min_size=FEWEST_ITEMS, max_size=40), st.sampled_from(["nominal", "ordinal"]))
def test_kappa_does_not_depend_on_which_rater_is_the_first(pairs, metric):
    one, other = zip(*pairs, strict=True)
    assert kappa(one, other, metric).value == pytest.approx(kappa(other, one, metric).value)


def test_perfect_agreement_is_one_and_its_interval_has_width():
    values = [1, 2, 3, 4, 5] * 6
    for found in (alpha([[v, v, v] for v in values], "ordinal"), kappa(values, values, "ordinal")):
        assert found.value == 1
        assert found.high == 1
        # 30 items without a disagreement allow for 11.6 % of them; answers differ by chance 80 % of the time.
        assert found.low == pytest.approx(1 - 0.1157 / 0.8, abs=0.01)


def test_shuffled_answers_agree_about_not_at_all():
    draw = random.Random(0)
    one, other = ([draw.randint(1, 5) for _ in range(2000)] for _ in range(2))
    for metric in ("nominal", "ordinal"):
        for found in (alpha(list(zip(one, other, strict=True)), metric), kappa(one, other, metric)):
            assert abs(found.value) < 0.06
            assert found.low < 0 < found.high


def test_two_who_always_say_the_opposite_are_below_zero():
    one = [0, 1] * 20
    assert kappa(one, one[::-1], "nominal").value == pytest.approx(-1)


def test_a_few_items_or_answers_that_never_vary_have_no_figure():
    assert alpha([[1, 2]] * (FEWEST_ITEMS - 1), "ordinal").why == "too few"
    same = alpha([[4, 4]] * FEWEST_ITEMS, "ordinal")
    assert (same.value, same.why, same.n) == (None, "no variation", FEWEST_ITEMS)
    assert kappa([4] * 30, [4] * 30, "ordinal").why == "no variation"
    assert alpha([[1, 2], [2, 2]] * 30, "ordinal", ["run a", "run b"] * 30).why == "too few", "sixty steps of two runs are two cases"
    assert alpha([], "nominal").n == 0


def test_steps_of_one_run_are_drawn_together():
    draw = random.Random(3)
    runs, units = [], []
    for run in range(20):
        agrees = draw.random() < 0.5
        for _ in range(10):
            value = draw.randint(0, 1)
            runs.append(run)
            units.append([value, value if agrees else 1 - value])
    alone, together = alpha(units, "nominal"), alpha(units, "nominal", runs)
    assert alone.value == together.value
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    # Two raters who both see a fair coin, and one of them says otherwise with chance 0.2: alpha is 1 - 0.2 / 0.5 = 0.6.
    held = 0
    for trial in range(100):
        draw = np.random.default_rng(trial)
        seen = draw.integers(0, 2, 80)
        told = np.where(draw.random(80) < 0.2, 1 - seen, seen)
        found = alpha(np.stack([seen, told], 1).tolist(), "nominal", seed=trial)
        held += found.low <= 0.6 <= found.high
    assert held >= 88


@given(st.lists(st.tuples(st.integers(1, 5), st.floats(0, 1)), min_size=FEWEST_ITEMS, max_size=40))
def test_correlation_is_spearmans(pairs):
    one, other = zip(*pairs, strict=True)
    found = correlation(one, other)
    if found.value is None:
        assert len(set(one)) == 1 or len(set(other)) == 1
        return
    assert found.value == pytest.approx(spearmanr(one, other).statistic, abs=1e-9)
    assert not math.isnan(found.value)

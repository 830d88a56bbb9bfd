"""What preferences mostly reject gets pairs that speak for it, from demonstrations that do it where it is right."""

from agentalign.recipes.contrast import contrasts
from agentalign.recipes.data import Part, Turn
from tests.test_dpo import rendered

CALL, TRACK, GET = 5, 6, 7


def side(prompt, token):
    """One compared token after the call's opening, which both sides wrote."""
    return Part((Turn((prompt, CALL), (token,)),))


def pair(prompt, better, worse):
    return side(prompt, better), side(prompt, worse), f"run {prompt}"


RUNS = {f"run {prompt}": rendered(f"run {prompt}", ((prompt,), (CALL, TRACK, 9))) for prompt in range(20, 30)}
TRACKS = [rendered(f"demo {prompt}", ((prompt,), (CALL, TRACK, 9)), ((prompt, CALL, TRACK, 9, 1), (8,))) for prompt in (40, 41)]
GETS = [rendered("demo 50", ((50,), (CALL, GET, 9)))]


def test_an_action_that_is_only_rejected_gets_as_many_pairs_for_it_evenly_over_the_demonstrations():
    found = contrasts([pair(20 + i, GET, TRACK) for i in range(4)], RUNS, [*TRACKS, *GETS])
    assert sorted(one.demonstration for one in found) == ["demo 40", "demo 40", "demo 41", "demo 41"]
    first = next(one for one in found if one.demonstration == "demo 40")
    assert first.chosen.turns == (Turn((40, CALL), (TRACK,)),)
    assert first.rejected.turns == (Turn((40, CALL), (GET,)),)


def test_what_is_preferred_about_as_often_as_rejected_needs_none():
    both = [pair(20, GET, TRACK), pair(21, GET, TRACK), pair(22, TRACK, GET)]
    assert contrasts(both, RUNS, [*TRACKS, *GETS]) == []
    found = contrasts([*both, pair(23, GET, TRACK)], RUNS, TRACKS)
    assert len(found) == 2, "three rejections against one preference: two are missing"


def test_another_place_is_another_choice_and_without_a_demonstration_there_is_nothing_to_say():
    assert contrasts([pair(20, GET, TRACK)], RUNS, GETS) == []
    later = rendered("demo later", ((60,), (8,)), ((60, 8, 1), (CALL, TRACK, 9)))
    assert contrasts([pair(20, GET, TRACK)], RUNS, [later]) == []

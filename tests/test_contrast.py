"""What preferences mostly reject gets pairs that speak for it, from demonstrations that do it where it is right."""

from agentalign.errors import DataError
from agentalign.recipes.contrast import Compared, contrasts
from agentalign.recipes.data import Part, Turn
from agentalign.training.render import Rendered
from tests.test_dpo import rendered
from tests.test_listed import cancelling, desk, tracking

CALL, TRACK, GET = 5, 6, 7


def talk(name, *answers):
    return desk(f"{name}?", *answers)


def pair(number, better, worse):
    """One compared token after the call's opening, which both sides wrote."""
    sides = (Part((Turn((number, CALL), (token,)),)) for token in (better, worse))
    return Compared(*sides, talk(number, "better"), talk(number, "worse"))


RUNS = {talk(n, "worse").id: rendered(talk(n, "worse").id, ((n,), (CALL, TRACK, 9))) for n in range(20, 30)}
TRACKS = [talk(n, "track", "done") for n in (40, 41)]
GETS = [talk(50, "get")]
LATER = talk(60, "look", "track")
SHOWN = {
    **{run.id: rendered(run.id, ((n,), (CALL, TRACK, 9)), ((n, CALL, TRACK, 9, 1), (8,))) for n, run in zip((40, 41), TRACKS, strict=True)},
    GETS[0].id: rendered(GETS[0].id, ((50,), (CALL, GET, 9))),
    LATER.id: rendered(LATER.id, ((60,), (8,)), ((60, 8, 1), (CALL, TRACK, 9))),
}


def found(pairs, demonstrations, *, without=()):
    shown = {id: run for id, run in SHOWN.items() if id not in without}
    return contrasts(pairs, demonstrations, {**RUNS, **shown}, no_copy)


def no_copy(altered, original) -> Rendered:
    raise AssertionError("there is no list to choose from")


def test_an_action_that_is_only_rejected_gets_as_many_pairs_for_it_evenly_over_the_demonstrations():
    made = found([pair(20 + i, GET, TRACK) for i in range(4)], [*TRACKS, *GETS])
    assert sorted(one.demonstration for one in made) == sorted([run.id for run in TRACKS] * 2)
    first = next(one for one in made if one.demonstration == TRACKS[0].id)
    assert first.chosen.turns == (Turn((40, CALL), (TRACK,)),)
    assert first.rejected.turns == (Turn((40, CALL), (GET,)),)


def test_what_is_preferred_about_as_often_as_rejected_needs_none():
    both = [pair(20, GET, TRACK), pair(21, GET, TRACK), pair(22, TRACK, GET)]
    assert found(both, [*TRACKS, *GETS]) == []
    made = found([*both, pair(23, GET, TRACK)], TRACKS)
    assert len(made) == 2, "three rejections against one preference: two are missing"


def test_another_place_is_another_choice_and_without_a_demonstration_there_is_nothing_to_say():
    assert found([pair(20, GET, TRACK)], GETS) == []
    assert found([pair(20, GET, TRACK)], [LATER]) == []
    assert found([pair(20, GET, TRACK)], TRACKS, without=[run.id for run in TRACKS]) == [], "demonstrations that were refused"


def test_the_place_in_a_list_that_is_mostly_rejected_gets_demonstrations_that_take_it():
    better, worse, shown = cancelling("W2"), cancelling("W1"), tracking("W7")
    turns = ((1, 2), (CALL, 11, 9)), ((1, 2, CALL, 11, 9, 3), (CALL, TRACK, 30, 9))
    runs = {run.id: rendered(run.id, *turns) for run in (worse, shown)}

    def copy(altered, original) -> Rendered:
        assert original == shown.id
        assert altered.steps[1].message.tool_calls[0].parsed() == {"order_id": "W8"}
        return rendered(altered.id, turns[0], (turns[1][0], (CALL, TRACK, 31, 9)))

    sides = (Part((Turn((1, 2, CALL, 11, 9, 3, CALL), (token,)),)) for token in (8, 7))
    (made,) = contrasts([Compared(*sides, better, worse)], [shown], runs, copy)
    assert made.demonstration == shown.id
    assert made.chosen.turns == (Turn((*turns[1][0], CALL, TRACK), (30,)),)
    assert made.rejected.turns == (Turn((*turns[1][0], CALL, TRACK), (31,)),)


def test_a_demonstration_whose_other_entry_cannot_be_rendered_is_passed_over(caplog):
    caplog.set_level("INFO")
    better, worse, shown = cancelling("W2"), cancelling("W1"), tracking("W7")
    runs = {run.id: rendered(run.id, ((1,), (CALL, 9)), ((1, CALL, 9), (CALL, TRACK, 9))) for run in (worse, shown)}

    def refuse(altered, original) -> Rendered:
        raise DataError("the template cannot say it.")

    sides = (Part((Turn((1, CALL), (token,)),)) for token in (8, 7))
    assert contrasts([Compared(*sides, better, worse)], [shown], runs, refuse) == []
    assert "the template cannot say it" in caplog.text

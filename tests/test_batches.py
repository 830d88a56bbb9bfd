"""What a step trains on is a function of seed and step, and sees everything."""

from collections import Counter

import pytest

from agentalign.training.batches import epoch_order, even_items, step_items, steps_for


def test_epochs_see_every_item_once():
    seen = [item for step in range(5) for item in step_items(10, batch_size=4, seed=1, step=step)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_a_step_depends_on_seed_and_step_alone():
    assert step_items(10, batch_size=4, seed=1, step=7) == step_items(10, batch_size=4, seed=1, step=7)
    assert epoch_order(50, seed=1, epoch=0) != epoch_order(50, seed=2, epoch=0)


def test_small_groups_are_replayed_as_often_as_large_ones():
    groups = [list("a" * 50), ["b"], list("ccc")]
    seen = Counter(item for step in range(30) for item in even_items(groups, batch_size=2, seed=0, step=step))
    assert seen == {"a": 20, "b": 20, "c": 20}


def test_all_of_a_large_group_come_in_time():
    groups = [list(range(5)), [99]]
    assert {item for step in range(10) for item in even_items(groups, batch_size=2, seed=3, step=step)} == {0, 1, 2, 3, 4, 99}


@pytest.mark.parametrize("sizes", [[20], [20, 20, 20], [3] * 17])
def test_a_step_replays_no_item_twice_while_its_group_has_others(sizes):
    groups = [[(group, item) for item in range(size)] for group, size in enumerate(sizes)]
    for step in range(40):
        found = even_items(groups, batch_size=8, seed=0, step=step)
        assert len(set(found)) == 8, found


def test_all_items_of_a_group_come_as_often():
    seen = Counter(item for step in range(15) for item in even_items([list(range(20))], batch_size=8, seed=2, step=step))
    assert seen == dict.fromkeys(range(20), 6)


def test_steps_cover_the_epochs():
    assert steps_for(10, batch_size=4, epochs=1.0) == 3
    assert steps_for(1, batch_size=8, epochs=0.1) == 1

"""Which samples of a file are whole groups, wherever it was cut."""

import pytest

from subq_jax.evaluation.resuming import finished, group_of, with_group_size


def group(haystack, control=None, size=3, **more):
    return with_group_size([dict(task="mqar", length=512, haystack=haystack, mechanism="dense", budget=None, seed=0,
                                 control=control, index=haystack * size + number) | more for number in range(size)])


GROUPS = [group(0), group(0, "vote 256"), group(1, size=1), group(0, seed=1), group(2)]
ROWS = [row for rows in GROUPS for row in rows]


@pytest.mark.parametrize("cut", range(len(ROWS) + 1))
def test_what_is_left_and_asked_again_are_the_rows_of_an_uninterrupted_run(cut):
    left = finished(ROWS[:cut])
    done = set(map(group_of, left))
    assert left + [row for rows in GROUPS if group_of(rows[0]) not in done for row in rows] == ROWS


def test_a_part_in_the_middle_is_left_out():
    assert finished(ROWS[:4] + ROWS[6:]) == ROWS[:3] + ROWS[6:]


def test_rows_that_do_not_say_how_many_they_are_stay():
    old = [{name: value for name, value in row.items() if name != "questions"} for row in ROWS]
    assert finished(old) == old

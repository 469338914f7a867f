"""Which of many log lines are written."""

from siprec_bridge.signalling.complaints import Complaints


def test_the_first_line_is_due_and_the_next_one_after_a_while_with_the_count_between() -> None:
    now = 0.0
    complaints = Complaints(lambda: now, every=60.0)

    at_first = [complaints.due("a"), complaints.due("b"), complaints.due("a"), complaints.due("a")]
    now = 60.0
    later = [complaints.due("a"), complaints.due("b")]

    assert at_first == [0, 0, None, None]
    assert later == [2, 0]


def test_lines_are_few_also_about_things_without_number() -> None:
    now = 0.0
    complaints = Complaints(lambda: now, every=60.0)

    at_once = [complaints.due(number) for number in range(2000)]
    now = 59.0
    soon = [complaints.due("new"), complaints.due(5)]
    now = 61.0
    later = [complaints.due("new"), complaints.due(5)]

    assert at_once.count(0) == 1000
    assert (soon, later) == ([None, None], [0, 1])


def test_what_is_over_is_forgotten_with_its_count() -> None:
    complaints = Complaints(lambda: 0.0, every=60.0)
    for _ in range(5):
        complaints.due("a")

    assert complaints.forget("a") == 4
    assert complaints.forget("a") == 0
    assert complaints.due("a") == 0

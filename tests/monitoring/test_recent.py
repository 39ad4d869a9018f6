import numpy as np

from meguri_monitoring.predictions import recent
from meguri_monitoring.predictions.predictions import read
from meguri_monitoring.predictions.recent import Recent
from tests.monitoring.conftest import message, values


def batch(sequence, rows=10, version=1, role=None):
    (one,) = read(message("m", values(rows, sequence), version=version, role=role), sequence)
    return one


def held(*groups) -> Recent:
    """Groups of messages, each from its first to its last sequence."""
    found = Recent()
    for first, last in groups:
        found.add(first, last, [batch(sequence) for sequence in range(first, last + 1)])
    return found


def test_what_was_just_written_is_there_in_the_order_of_the_stream():
    rows = held((1, 3), (4, 6)).between("m", 1, 2, 5)

    assert rows["sequence"].unique(maintain_order=True).to_list() == [2, 3, 4, 5]
    assert np.array_equal(rows.filter(rows["sequence"] == 4).select("x", "y").to_numpy(), values(10, 4))


def test_nothing_is_there_unless_all_of_it_is():
    assert held((4, 6)).between("m", 1, 3, 5) is None
    assert held((4, 6)).between("m", 1, 5, 7) is None
    assert held((4, 6)).between("other", 1, 5, 6) is None
    assert Recent().between("m", 1, 1, 1) is None


def test_after_a_gap_what_was_before_is_forgotten():
    assert held((1, 3), (5, 6)).between("m", 1, 1, 6) is None
    assert held((1, 3), (5, 6)).between("m", 1, 5, 6).height == 20
    assert held((1, 3), (1, 3)).between("m", 1, 1, 3).height == 30


def test_answers_of_shadows_are_none():
    found = Recent()
    found.add(1, 2, [batch(1, role="champion"), batch(2, role="shadow")])

    assert found.between("m", 1, 1, 2).height == 10


def test_no_more_is_held_than_the_latest(monkeypatch):
    assert held(*((n, n) for n in range(1, 6))).between("m", 1, 3, 5).height == 30
    assert held(*((n, n) for n in range(1, 6))).between("m", 1, 2, 5) is None

    monkeypatch.setattr(recent, "MAX_BYTES", 1)
    assert held((1, 1), (2, 2)).between("m", 1, 2, 2).height == 10
    assert held((1, 1), (2, 2)).between("m", 1, 1, 2) is None


def test_columns_of_several_types_are_read_from_the_table_where_they_are_of_one():
    """Such as numbers of several replicas, whole ones and others, or a text that nobody filled in."""
    found = Recent()
    for sequence, x in enumerate(([1.5, 2.5], [1, 2], [None, None]), 1):
        found.add(sequence, sequence, read(message("m", values(2, 1), x=x, y=[0.5, 0.5]), sequence))

    assert found.between("m", 1, 1, 2) is None
    assert found.between("m", 1, 2, 3) is None
    assert found.between("m", 1, 2, 2)["x"].to_list() == [1, 2]

"""A version is worse when ADWIN says that its errors changed, and they have become so many more as the spec says."""

import numpy as np
import pytest

from meguri_contracts.spec import Performance
from meguri_monitoring.quality.degrading import Detector, loss
from meguri_monitoring.quality.performing import culprit


def errors(*parts: tuple[int, float], seed: int = 0) -> list[float]:
    """So many answers, with such a share of them wrong, one part after the other."""
    random = np.random.default_rng(seed)
    return [float(one) for rows, share in parts for one in random.random(rows) < share]


def fed(detector: Detector, found: list[float]) -> list[int]:
    """The places where it became worse, one for each time that it had been as before meanwhile."""
    begun: list[int] = []
    before: float | None = None
    for place, error in enumerate(found):
        detector.feed(error, place)
        if before is None and detector.degraded:
            begun.append(place)
            before = detector.before.mean
        elif before is not None and detector.is_back(before):
            before = None
    return begun


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5])
def test_errors_that_stay_as_they_are_say_nothing(share):
    assert [fed(Detector(Performance(), relative=False), errors((20_000, share), seed=seed)) for seed in range(5)] == [
        []
    ] * 5


@pytest.mark.parametrize(("share", "within"), [(0.12, 1500), (0.25, 400)])
def test_more_errors_are_noticed_and_held_against_the_beginning(share, within):
    for seed in range(5):
        detector = Detector(Performance(), relative=False)
        (begun,) = fed(detector, errors((5000, 0.05), (within, share), seed=seed))

        assert 5000 < begun < 5000 + within
        assert detector.before.mean == pytest.approx(0.05, abs=0.02)
        assert detector.now.mean == pytest.approx(share, abs=0.08)
        assert detector.before.last < detector.now.first
        assert detector.now.count >= Performance().min_labels


def test_a_loss_that_is_smaller_than_the_drop_says_nothing():
    assert fed(Detector(Performance(drop=0.1), relative=False), errors((5000, 0.05), (5000, 0.1))) == []


def test_small_losses_one_after_the_other_are_held_against_the_beginning_too():
    steps = errors((4000, 0.05), (4000, 0.09), (4000, 0.13), (4000, 0.17))

    assert len(fed(Detector(Performance(drop=0.1), relative=False), steps)) == 1


def test_fewer_errors_are_a_new_beginning():
    detector = Detector(Performance(), relative=False)
    assert fed(detector, errors((3000, 0.3), (3000, 0.1))) == []

    assert len(fed(detector, errors((2000, 0.25), seed=1))) == 1


def test_it_is_back_when_the_latest_errors_are_near_what_they_were():
    detector = Detector(Performance(), relative=False)
    fed(detector, errors((3000, 0.05), (1000, 0.3)))
    assert not detector.is_back(0.05)

    fed(detector, errors((1000, 0.05), seed=2))
    assert detector.is_back(0.05)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_errors_of_a_regression_are_told_apart_in_any_unit(unit):
    random = np.random.default_rng(0)
    calm = np.abs(random.standard_t(4, 3000)) * unit
    for factor, times in ((1.0, 0), (2.0, 1)):
        worse = np.abs(random.standard_t(4, 2000)) * unit * factor
        assert len(fed(Detector(Performance(), relative=True), [*calm.tolist(), *worse.tolist()])) == times


def test_a_version_that_was_never_wrong_is_worse_once_it_is():
    assert len(fed(Detector(Performance(), relative=True), [0.0] * 500 + [1.0] * 500)) == 1


def test_a_loss_is_a_difference_or_a_share():
    assert loss(0.1, 0.3, relative=False) == pytest.approx(0.2)
    assert loss(2.0, 3.0, relative=True) == pytest.approx(0.5)
    assert (loss(0.0, 1.0, relative=True), loss(0.0, 0.0, relative=True)) == (1.0, 0.0)


def test_the_culprit_is_who_lost_most_and_one_that_is_new_is_held_against_all():
    before = {"a": (100, 90.0), "b": (100, 50.0)}

    assert culprit(before, {"a": (50, 45.0), "b": (50, 5.0)}) == ("b", 1.0)
    assert culprit(before, {"a": (50, 40.0), "new": (50, 20.0)}) == ("new", pytest.approx(0.75))
    # Of a regression scores are minus the errors.
    assert culprit({"a": (10, -10.0)}, {"a": (10, -30.0)}) == ("a", 1.0)

import asyncio
from itertools import pairwise

import pytest

from meguri_contracts.errors import TemporaryError
from meguri_contracts.events import RolloutObserved
from meguri_inference import observing
from meguri_inference.observing import Observer
from tests.conftest import until
from tests.inference.replicas import as_version


@pytest.fixture(autouse=True)
def soon(monkeypatch) -> None:
    monkeypatch.setattr(observing, "SOONEST", 0.01)


class Said:
    """Everything that was said; refuses while `errors` last."""

    def __init__(self) -> None:
        self.reports: list[RolloutObserved] = []
        self.told: list[tuple[str, int]] = []
        self.errors: list[Exception] = []

    async def __call__(self, report: RolloutObserved, journey: str, hops: int) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.reports.append(report)
        self.told.append((journey, hops))

    def requests(self) -> dict[tuple[int, str], int]:
        return {(arm.version, arm.role): arm.requests for arm in self.reports[-1].arms}


@pytest.fixture
async def said():
    return Said()


@pytest.fixture
async def observer(said):
    observer = Observer(said, "replica-1")
    yield observer
    await observer.close()


async def test_the_numbers_of_a_plan_are_said_from_its_beginning_and_only_when_there_are_new_ones(
    replica, iris, said, observer
):
    await replica.follow(iris)
    await replica.answer(iris, iris.x[:1])
    served = await replica.follow(iris, shadows=((as_version(iris, 4), 1.0),))
    observer.follow(served, "journey-1", 2)
    replies = await asyncio.gather(*(replica.answer(iris, iris.x[:1]) for _ in range(3)))
    assert {reply.status for reply in replies} == {200}

    await until(lambda: said.reports and said.requests() == {(3, "champion"): 3, (4, "shadow"): 3})
    await replica.answer(iris, iris.x[:1])
    await until(lambda: said.requests() == {(3, "champion"): 4, (4, "shadow"): 4})

    assert all(earlier.arms != later.arms for earlier, later in pairwise(said.reports))
    assert [report.number for report in said.reports] == list(range(1, len(said.reports) + 1))
    assert {report.rollout for report in said.reports} == {"rollout-1"}
    assert len({report.replica for report in said.reports}) == 1
    assert set(said.told) == {("journey-1", 2)}
    assert said.reports[-1].arms[1].pairs == 4


async def test_nothing_is_said_of_a_champion_alone(replica, iris, said, observer):
    observer.follow(await replica.follow(iris), "journey-1", 0)

    assert observer._watching == {}


async def test_what_is_answered_before_the_observer_has_its_first_turn_counts(replica, iris, said, observer):
    served = await replica.follow(iris, shadows=((as_version(iris, 4), 1.0),))
    observer.follow(served, "journey-1", 0)
    served.champion.tally.answered(0.001, 1)

    await until(lambda: said.reports, "the report")
    assert said.requests() == {(3, "champion"): 1, (4, "shadow"): 0}


async def test_a_later_plan_is_reported_on_in_the_place_of_the_one_before(replica, iris, said, observer):
    observer.follow(await replica.follow(iris, canary=(as_version(iris, 4), 0.5)), "journey-1", 0)
    await replica.answer(iris, iris.x[:1])
    await until(lambda: said.reports, "the first report")
    later = await replica.follow(iris, canary=(as_version(iris, 5), 0.5))
    later.rollout = "rollout-2"
    observer.follow(later, "journey-2", 0)
    before = len(said.reports)

    for _ in range(10):
        await replica.answer(iris, iris.x[:1])
    await until(lambda: len(said.reports) > before and sum(said.requests().values()) == 10)

    assert {report.rollout for report in said.reports[before:]} == {"rollout-2"}
    assert said.reports[before].number == 1
    observer.follow(await replica.follow(iris), "journey-3", 0)
    assert observer._watching == {}


async def test_what_the_log_did_not_take_is_in_the_next_report(replica, iris, said, observer):
    said.errors = [TemporaryError("the log is away")] * 2
    observer.follow(await replica.follow(iris, canary=(as_version(iris, 4), 0.5)), "journey-1", 0)
    await replica.answer(iris, iris.x[:1])

    await until(lambda: said.reports, "the report")

    assert sum(said.requests().values()) == 1
    assert said.reports[0].number == 3
    assert said.errors == []


async def test_another_life_of_a_replica_reports_under_another_name(said):
    assert Observer(said, "replica-1")._life != Observer(said, "replica-1")._life

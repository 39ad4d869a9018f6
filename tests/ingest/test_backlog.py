import asyncio
from dataclasses import dataclass, field

import pytest

from meguri_contracts.errors import Busy
from meguri_ingest.backlog import FIRST_GUESS, LONGEST, Backlog, Look


@dataclass
class Broker:
    """What the broker would say, and how often it was asked."""

    now: float = 0
    waiting: int = 0
    done: int = 0
    asked: list[float] = field(default_factory=list)

    async def look(self) -> Look:
        self.asked.append(self.now)
        return Look(at=self.now, waiting=self.waiting, done=self.done)

    def backlog(self, limit: int) -> Backlog:
        return Backlog(self.look, lambda: self.now, limit=limit)


async def told_to_wait(backlog: Backlog) -> int:
    with pytest.raises(Busy) as told:
        await backlog.require_room()
    return told.value.seconds


async def test_there_is_room_below_the_limit_and_the_broker_is_asked_once_a_second():
    broker = Broker(waiting=9)
    backlog = broker.backlog(limit=10)
    await asyncio.gather(*(backlog.require_room() for _ in range(5)))
    broker.now = 0.9
    await backlog.require_room()
    broker.now = 1
    await backlog.require_room()

    assert broker.asked == [0, 1]
    assert backlog.warning() is None


async def test_what_was_taken_since_the_last_look_counts():
    backlog = Broker(waiting=8).backlog(limit=10)
    for _ in range(2):
        await backlog.require_room()
        backlog.took()

    assert await told_to_wait(backlog) == FIRST_GUESS
    assert backlog.warning() == "10 arrivals wait, at most 10 may: whoever sends over HTTP is told to wait"


async def test_the_time_to_wait_follows_from_how_fast_the_backlog_is_worked_off():
    broker = Broker(waiting=200, done=1000)
    backlog = broker.backlog(limit=100)
    assert await told_to_wait(backlog) == FIRST_GUESS
    broker.now, broker.waiting, broker.done = 2, 199, 1020

    assert await told_to_wait(backlog) == 10
    broker.now, broker.done = 4, 1021
    assert await told_to_wait(backlog) == LONGEST


async def test_a_warning_does_not_outlive_those_who_send():
    broker = Broker(waiting=10)
    backlog = broker.backlog(limit=10)
    await told_to_wait(backlog)
    broker.now = LONGEST + 1

    assert backlog.warning() is None

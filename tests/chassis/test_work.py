"""Work that any replica may do."""

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest

from meguri_chassis.work import WorkQueue
from meguri_contracts.errors import TemporaryError
from meguri_contracts.topology import MONITORING_WINDOWS, WINDOW_PREFIX
from tests.conftest import until
from tests.services import wire

SUBJECT = f"{WINDOW_PREFIX}.m"


@asynccontextmanager
async def working(broker, do):
    """A replica that does the work until the block is left."""
    async with wire(broker) as beside:
        task = asyncio.create_task(WorkQueue(lambda: beside.js, MONITORING_WINDOWS).work(do))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@pytest.fixture
async def queue(broker):
    async with wire(broker) as beside:
        yield WorkQueue(lambda: beside.js, MONITORING_WINDOWS)


async def test_replicas_share_the_work_and_each_task_is_done_once(broker, queue):
    done: dict[str, list[bytes]] = {"one": [], "other": []}
    both_at_work = asyncio.Event()

    def by(replica):
        async def do(msg):
            done[replica].append(msg.data)
            if all(done.values()):
                both_at_work.set()
            await both_at_work.wait()

        return do

    async with working(broker, by("one")), working(broker, by("other")):
        for number in range(10):
            await queue.put(SUBJECT, b"%d" % number, {})
        await until(lambda: sum(map(len, done.values())) == 10, "ten tasks")

    assert sorted([*done["one"], *done["other"]]) == [b"%d" % number for number in range(10)]


async def test_what_a_replica_had_in_hand_when_it_went_is_done_by_another(broker, queue):
    begun, done = asyncio.Event(), []

    async def never(_msg):
        begun.set()
        await asyncio.Event().wait()

    async def do(msg):
        done.append((msg.data, msg.metadata.num_delivered))

    await queue.put(SUBJECT, b"task", {})
    async with working(broker, never):
        await begun.wait()
    async with working(broker, do):
        await until(lambda: done, "the task")

    assert done == [(b"task", 2)]


async def test_a_task_that_fails_comes_again_and_the_trouble_is_told_until_it_is_done(broker):
    tries, seen = [], []

    async def do(msg):
        tries.append(msg.data)
        if len(tries) == 1:
            raise TemporaryError("the disk is away")

    async with wire(broker) as beside:
        queue = WorkQueue(lambda: beside.js, MONITORING_WINDOWS)
        await queue.put(SUBJECT, b"task", {})
        task = asyncio.create_task(queue.work(do))
        seen.append(await until(queue.trouble, "trouble"))
        await until(lambda: queue.trouble() is None, "no trouble")
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    assert tries == [b"task", b"task"]
    assert "the disk is away" in seen[0]


async def test_work_that_the_broker_does_not_take_is_a_temporary_error(broker):
    async with wire(broker) as beside:
        impatient = WorkQueue(lambda: beside.js._nc.jetstream(timeout=0.1), MONITORING_WINDOWS)
        broker.kill()

        with pytest.raises(TemporaryError, match="takes no work"):
            await impatient.put(SUBJECT, b"task", {})


async def test_tasks_that_never_succeed_do_not_keep_others_from_being_done(broker, queue):
    done = []

    async def do(msg):
        if msg.data == b"bad":
            raise TemporaryError("the file is lost")
        done.append(msg.data)

    for _ in range(MONITORING_WINDOWS.max_ack_pending + 1):
        await queue.put(SUBJECT, b"bad", {})
    last = await queue.put(SUBJECT, b"good", {})
    async with working(broker, do):
        await until(lambda: done, "the good one")
        await until(lambda: queue.is_done_up_to(last), "an end")

    assert done == [b"good"]


async def test_what_waits_is_not_done(broker, queue):
    before = await queue.last()
    last = await queue.put(SUBJECT, b"task", {})

    assert (last, await queue.last()) == (before + 1, last)
    assert await queue.is_done_up_to(before)
    assert not await queue.is_done_up_to(last)

import asyncio

from meguri_ingest.budget import Budget
from tests.conftest import PATIENCE


async def let_others_go_on() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_does_not_fit_waits_until_enough_is_given_back():
    budget = Budget(10)
    await budget.take(6)
    waiting = asyncio.create_task(budget.take(5))
    await let_others_go_on()
    assert not waiting.done()
    budget.give_back(6)

    await asyncio.wait_for(waiting, PATIENCE)
    assert not budget.try_take(6)
    assert budget.try_take(5)


async def test_what_is_larger_than_the_budget_gets_through_alone():
    budget = Budget(10)
    await budget.take(1)
    large = asyncio.create_task(budget.take(50))
    await let_others_go_on()
    assert not large.done()
    budget.give_back(1)

    await asyncio.wait_for(large, PATIENCE)
    assert not budget.try_take(0)
    budget.give_back(50)
    assert budget.try_take(10)


async def test_the_small_do_not_overtake_the_large():
    budget = Budget(10)
    await budget.take(6)
    large = asyncio.create_task(budget.take(8))
    await let_others_go_on()
    small = asyncio.create_task(budget.take(1))
    await let_others_go_on()

    assert not budget.try_take(1)
    assert not small.done()
    budget.give_back(6)
    await asyncio.wait_for(asyncio.gather(large, small), PATIENCE)


async def test_who_gives_up_waiting_keeps_nothing():
    budget = Budget(10)
    async with budget.of(10):
        waiting = asyncio.create_task(budget.take(1))
        await let_others_go_on()
        waiting.cancel()
        await let_others_go_on()

    assert budget.try_take(10)

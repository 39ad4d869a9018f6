"""Reactors that answer every run with a reason for the next one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from meguri_chassis.log import Message
from meguri_contracts.events import (
    Event,
    LoopBroken,
    ModelTrained,
    PromotionRejected,
    RolloutChanged,
    TrainingRequested,
    TrainingStarted,
)
from meguri_registry import app as registry
from meguri_registry.settings import Settings as RegistrySettings
from tests.conftest import until
from tests.services import name, running
from tests.training.flowers import FLOWERS, Training, spec

LIMIT = 16
"""Reactions that are allowed by default."""


@asynccontextmanager
async def answering(
    training: Training, kind: type[Event], model: str, answer: Callable[[Message], Awaitable[Any]]
) -> AsyncIterator[None]:
    """Answer every event of a kind, for ever."""

    async def react() -> None:
        answered = 0
        while True:
            heard = await training.wire.heard(kind, model)
            for message in heard[answered:]:
                await answer(message)
            answered = len(heard)
            await asyncio.sleep(0.01)

    reacting = asyncio.create_task(react())
    try:
        yield
        assert not reacting.done(), reacting.exception()
    finally:
        reacting.cancel()


async def at_rest(training: Training, model: str) -> dict[str, Any]:
    """The state of a model once nothing runs and nothing is due."""

    async def rests() -> dict[str, Any] | None:
        state = await training.state(model)
        return state if state["running"] is None and not state["waits_for"].startswith("nothing: ") else None

    return await until(rests, f"the rest of {model}")


async def test_a_registry_that_asks_for_the_next_run_for_ever_is_broken_off_and_a_person_begins_again(training):
    model = name("flowers")
    asks = True

    async def reject(trained: Message) -> None:
        run, hops = trained.event.run, trained.hops + 1
        rejected = PromotionRejected(model=model, version=1, run=run, reason="another champion serves now")
        request = TrainingRequested(model=model, reason="compared with another", actor="registry")
        if asks:
            await training.wire.say(request, id=f"request-{run}", cause=trained.id, hops=hops)
        await training.wire.say(rejected, id=f"rejected-{run}", cause=trained.id, hops=hops)

    async with answering(training, ModelTrained, model, reject):
        await training.wire.apply(spec(model))
        committed = await training.commit(model, FLOWERS)
        (loop,) = await training.said(LoopBroken, model)
        state = await at_rest(training, model)
        runs = await training.said(TrainingStarted, model)
        assert [run.hops(0) for run in runs] == [2, 5, 8, 11, 14, 17]
        assert (loop.limit, [trigger.hops for trigger in loop.triggers]) == (LIMIT, [19])
        assert f"new data or `meguri train {model}` begin again" in loop.reason
        assert state["loop_broken"]["reason"] == loop.reason
        assert state["waits_for"] == "0 new rows since the last run, 1 are enough"

        kinds = [link.kind for link in loop.chain]
        cycle = ["training-requested", "model-trained", "training-started"]
        assert kinds[:3] == cycle
        # Whichever of the two was in hand when the run before had its verdict.
        assert kinds[3] in ("promotion-rejected", "training-requested")
        assert kinds[4:6] == ["model-trained", "training-started"]
        # Whichever of the two was looked at last set the first run going.
        assert kinds[-2] == "training-started"
        assert kinds[-1] in ("data-committed", "spec-applied")
        assert (loop.chain[-1].event == committed) == (kinds[-1] == "data-committed")
        assert loop.chain[0].event == f"request-{runs[-1].run}"
        sequences = [link.sequence for link in loop.chain]
        assert sequences == sorted(sequences, reverse=True)

        asks = False
        await training.wire.say(TrainingRequested(model=model, reason="it is put right", actor="ada"))
        await training.said(ModelTrained, model, len(runs) + 1)
        assert (await at_rest(training, model))["loop_broken"] is None
    assert len(await training.wire.said(LoopBroken, model)) == 1


async def test_an_upstream_that_answers_every_rollout_with_data_is_broken_off(training, broker):
    model = name("flowers")
    settings = RegistrySettings(
        nats_url=broker.url, database_url=f"sqlite:///{training.folder}/registry.db", var=training.folder
    )

    async def send_data(rollout: Message) -> None:
        # Arrived, then committed.
        await training.commit(model, FLOWERS, rollout.hops + 2)

    async with running(registry.build(settings)), answering(training, RolloutChanged, model, send_data):
        await training.wire.apply(spec(model, gate="accuracy > 0"))
        await training.commit(model, FLOWERS)
        (loop,) = await training.said(LoopBroken, model)
        state = await at_rest(training, model)

        runs = await training.said(TrainingStarted, model)
        assert [run.hops(0) for run in runs] == [2, 7, 12, 17]
        assert [trigger.hops for trigger in loop.triggers] == [21]
        assert [link.kind for link in loop.chain] == ["data-committed"]
        assert state["waits_for"] == f"nothing happened since the last run: {loop.reason}"
        assert len(await training.wire.said(LoopBroken, model)) == 1

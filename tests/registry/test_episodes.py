"""Episodes that ask for the champion before, through a running registry."""

from typing import Any

import pytest

from meguri_contracts.events import AnomalyDetected, Artifact, PerformanceDegraded, RolloutChanged
from tests.conftest import until
from tests.registry.registering import Registry, model_trained, spec
from tests.services import name


def degraded(model: str, version: int, **said: Any) -> PerformanceDegraded:
    return PerformanceDegraded(
        model=model,
        version=version,
        episode=name("episode"),
        metric="accuracy",
        before=0.9,
        now=0.6,
        labels=200,
        text="60 % of the answers are right, 90 % were",
        **({"action": "rollback"} | said),
    )


async def heard(known: Registry, sequence: int) -> None:
    """Wait until the consumer of episodes has dealt with an event."""

    async def acknowledged() -> bool:
        info = await known.wire.js.consumer_info("MEGURI", "registry-episodes")
        return info.ack_floor.stream_seq >= sequence

    await until(acknowledged, "the acknowledgement")


async def two_versions(known: Registry) -> None:
    await known.apply(spec(known.model))
    await known.trained(0.9)
    await known.trained(0.95)
    assert (await known.get()).json()["champion"] == 2


async def test_an_episode_that_asks_for_it_brings_the_champion_before_back(registry):
    await two_versions(registry)
    sequence = await registry.wire.say(degraded(registry.model, 2), id=(id_ := name("e")))
    await heard(registry, sequence)

    changed = (await registry.wire.heard(RolloutChanged, registry.model))[-1]
    event = changed.event
    assert isinstance(event, RolloutChanged)
    assert (event.plan.champion.version, event.previous, event.back, changed.cause) == (1, 2, True, id_)
    assert event.reason == (
        "rollback: an episode of performance of version 2 asks for it: 60 % of the answers are right, 90 % were"
    )
    await serves(registry, 1)


async def serves(known: Registry, version: int) -> None:
    """Wait until a version is champion: the tables follow the log a moment later."""

    async def champion() -> bool:
        return bool((await known.get()).json()["champion"] == version)

    await until(champion, f"version {version} as champion")


async def test_a_model_that_an_episode_took_back_is_not_promoted_again_by_itself(known):
    await two_versions(known)
    await heard(known, await known.wire.say(degraded(known.model, 2)))
    file = (await known.get("/versions/2")).json()["trained"]["onnx"]
    again = model_trained(known.model, await known.run(), 0.97, 1, 1)
    await known.wire.say(again.model_copy(update={"onnx": Artifact.model_validate(file)}))

    async def judged() -> dict[str, Any] | None:
        versions = {one["version"]: one for one in (await known.get()).json()["versions"]}
        return versions[3] if 3 in versions and versions[3]["verdict"] != "none yet" else None

    assert (await until(judged))["verdict"] == "approval requested"
    assert (await known.get()).json()["champion"] == 1


async def test_a_canary_that_an_episode_is_about_is_taken_back_once(known):
    await two_versions(known)
    await known.trained(0.96)
    await known.http.post(f"/models/{known.model}/promote", json={"version": 1})
    await known.http.post(f"/models/{known.model}/canary", json={"version": 2})
    before = len(await known.wire.heard(RolloutChanged, known.model))
    await heard(known, await known.wire.say(degraded(known.model, 2, role="canary", action="notify")))
    await heard(known, await known.wire.say(degraded(known.model, 3, role="canary")))
    assert len(await known.wire.heard(RolloutChanged, known.model)) == before
    for _ in range(2):
        await heard(known, await known.wire.say(degraded(known.model, 2, role="canary")))

    event = (await known.wire.heard(RolloutChanged, known.model))[-1].event
    assert isinstance(event, RolloutChanged)
    assert len(await known.wire.heard(RolloutChanged, known.model)) == before + 1
    assert (event.plan.champion.version, event.plan.canary, event.previous, event.back) == (1, None, 1, False)
    assert event.reason == (
        "canary: version 2 is taken back, an episode of performance asks for it: 60 % of the answers are right, 90 % were"
    )


@pytest.mark.parametrize("action", ["ignore", "notify", "retrain"])
async def test_an_episode_that_asks_for_something_else_changes_no_plan(known, action):
    await two_versions(known)
    await heard(known, await known.wire.say(degraded(known.model, 2, action=action)))

    assert (await known.get()).json()["champion"] == 2


async def test_an_episode_of_a_version_that_no_longer_serves_changes_no_plan(known):
    await two_versions(known)
    await heard(known, await known.wire.say(degraded(known.model, 1)))

    assert (await known.get()).json()["champion"] == 2


async def test_without_a_champion_before_there_is_nothing_to_go_back_to_and_nothing_is_parked(known):
    await known.trained(0.9)
    silent = AnomalyDetected(
        model=known.model,
        version=1,
        episode=name("episode"),
        about="silence",
        subject="predictions",
        value=600,
        expected=60,
        action="rollback",
    )
    before = await known.wire.parked("registry-episodes")
    await heard(known, await known.wire.say(silent))

    assert (await known.get()).json()["champion"] == 1
    assert await known.wire.parked("registry-episodes") == before

"""Answers that become worse are told once, of each version that gives some, and once when they are as good as before."""

from typing import Any

import pytest

from meguri_contracts.events import EpisodeResolved, PerformanceDegraded
from tests.conftest import until
from tests.monitoring.answers import RULE, answered, begun, label, quality
from tests.monitoring.conftest import Monitoring
from tests.monitoring.state import settled
from tests.services import name


async def known(monitoring: Monitoring, episode: str) -> dict[str, Any] | None:
    """An episode once the tables have it."""
    found = await monitoring.http.get(f"/episodes/{episode}")
    return found.json() if found.status_code == 200 else None


async def rolled_out(monitoring: Monitoring, version: int, **plan: Any) -> None:
    await settled(monitoring, await monitoring.roll_out(version, **plan))


async def test_quality_that_drops_is_said_once_with_who_lost_it_and_again_when_it_is_back(at):
    async with at() as monitoring, at():
        await begun(monitoring, performance=RULE, prediction=False)
        wrong: dict[str, list[str]] = {}
        for producer, share in (("camera-a", 0.05), ("camera-b", 0.05), ("camera-b", 0.6), ("camera-a", 0.05)):
            wrong[producer] = await answered(monitoring, 300, producer, share)
        (degraded,) = await monitoring.said(PerformanceDegraded)

        assert (degraded.version, degraded.metric, degraded.about) == (1, "accuracy", "performance")
        assert degraded.before == pytest.approx(0.95, abs=0.04)
        assert degraded.before - degraded.now >= RULE["drop"]
        assert degraded.labels >= RULE["min_labels"]
        assert (degraded.producer, degraded.action) == ("camera-b", "retrain")
        assert degraded.share > 0.9
        assert set(degraded.samples) <= set(wrong["camera-b"])
        assert len(degraded.traces) == 1
        (resolved,) = await monitoring.said(EpisodeResolved)
        assert (resolved.episode, resolved.about) == (degraded.episode, "performance")
        assert len(await monitoring.wire.said(PerformanceDegraded, monitoring.model)) == 1


async def test_an_open_episode_of_performance_is_known_after_a_restart_and_ends_with_another_version(at):
    async with at() as monitoring:
        await begun(monitoring, performance=RULE)
        await answered(monitoring, 300, "camera-a", 0.02)
        await answered(monitoring, 200, "camera-a", 0.5)
        (degraded,) = await monitoring.said(PerformanceDegraded)
    async with at() as monitoring:
        await answered(monitoring, 100, "camera-a", 0.5)
        assert await monitoring.wire.said(EpisodeResolved, monitoring.model) == []
        await monitoring.roll_out(2)
        (resolved,) = await monitoring.said(EpisodeResolved)
        assert (resolved.episode, resolved.reason) == (degraded.episode, "version 2 serves")
        assert len(await monitoring.wire.said(PerformanceDegraded, monitoring.model)) == 1


async def test_a_canary_whose_answers_become_worse_has_an_episode_of_its_own_and_is_to_be_taken_back(at):
    async with at() as monitoring, at():
        await begun(monitoring, performance=RULE, prediction=False, cooldown=3600)
        await rolled_out(monitoring, 1, canary=2)
        await answered(monitoring, 300, "camera-a", 0.02, 2, "canary")
        await answered(monitoring, 300, "camera-a", 0.02)
        await answered(monitoring, 200, "camera-a", 0.5, 2, "canary")
        (degraded,) = await monitoring.said(PerformanceDegraded)

        assert (degraded.version, degraded.role, degraded.action) == (2, "canary", "rollback")
        assert degraded.text.startswith("version 2, the canary: ")
        episode = await until(lambda: known(monitoring, degraded.episode), "the episode")
        assert (episode["version"], episode["role"], episode["subject"]) == (2, "canary", "accuracy")
        assert "the main model answers everything again" in episode["timeline"][0]["text"]
        await rolled_out(monitoring, 1)
        (resolved,) = await monitoring.said(EpisodeResolved)
        assert (resolved.version, resolved.reason) == (2, "version 2 no longer answers, version 1 serves")


async def test_a_version_of_an_ab_test_is_watched_and_a_shadow_is_only_measured(at):
    async with at() as monitoring:
        await begun(monitoring, performance=RULE, prediction=False)
        await rolled_out(monitoring, 1, arms=(2, 3), shadow=4)
        for rows, share in ((300, 0.02), (200, 0.5)):
            asked = [name("p") for _ in range(rows)]
            await answered(monitoring, rows, "camera-a", share, 4, "shadow", ids=asked)
            await answered(monitoring, rows, "camera-a", share, 3, "arm")
        (degraded,) = await monitoring.said(PerformanceDegraded)

        assert (degraded.version, degraded.role, degraded.action) == (3, "arm", "notify")
        (shadow,) = (await quality(monitoring))["shadows"]
        assert (shadow["version"], shadow["labels"]) == (4, 500)
        assert len(await monitoring.wire.said(PerformanceDegraded, monitoring.model)) == 1


async def test_a_version_that_comes_back_does_not_answer_for_what_it_did_before(at):
    async with at() as monitoring:
        await begun(monitoring, performance=RULE, prediction=False)
        await answered(monitoring, 300, "camera-a", 0.02)
        await answered(monitoring, 200, "camera-a", 0.5)
        await monitoring.said(PerformanceDegraded)
        await rolled_out(monitoring, 2)
        await rolled_out(monitoring, 1)
        # Too few to be worse or better by themselves.
        await answered(monitoring, 20, "camera-a", 0.02)
        await answered(monitoring, 200, "camera-a", 0.02)
        assert len(await monitoring.wire.said(PerformanceDegraded, monitoring.model)) == 1

        await answered(monitoring, 200, "camera-a", 0.5)
        assert len(await monitoring.said(PerformanceDegraded, 2)) == 2


async def test_wrong_labels_that_are_corrected_end_what_they_began(at):
    async with at() as monitoring, at():
        await begun(monitoring, performance=RULE, prediction=False)
        await answered(monitoring, 300, "camera-a", 0.02)
        wrong = await answered(monitoring, 200, "camera-a", 0.5)
        (degraded,) = await monitoring.said(PerformanceDegraded)
        await label(monitoring, dict.fromkeys(wrong, 7))

        (resolved,) = await monitoring.said(EpisodeResolved)
        assert resolved.episode == degraded.episode

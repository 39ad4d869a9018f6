"""Episodes of every kind are recomputed from what is kept: without a change, to the very episode that there was."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from sqlmodel import Session, col, select

from meguri_chassis.profiles import profile_of
from meguri_chassis.store import Database
from meguri_contracts.events import (
    AnomalyDetected,
    DriftDetected,
    EpisodeResolved,
    PerformanceDegraded,
    Plan,
    RolloutChanged,
    Shadow,
)
from meguri_contracts.topology import LOG, PREDICTIONS
from meguri_monitoring import store
from meguri_monitoring.app import MIGRATIONS
from meguri_monitoring.windows.store import WindowRow
from tests.conftest import until
from tests.monitoring.answers import RULE, answered, begun, label
from tests.monitoring.conftest import FEATURES, Monitoring, message, values
from tests.monitoring.evaluators import evaluated, evaluating, replay, request
from tests.monitoring.state import settled
from tests.services import name


@dataclass
class History:
    """Predictions of a model, by chance: quiet, then other than before in one respect, then quiet again."""

    model: str
    random: np.random.Generator
    time: datetime
    seconds: float = 0.5
    """Between two rows."""

    def bodies(self, rows: int, *, moved: float = 0, colour: str = "red", missing: float = 0, faster: float = 1) -> Any:
        """Yield messages of about so many rows together, of any size and from several producers."""
        left = rows
        while left > 0:
            size = int(min(left, self.random.integers(1, 130)))
            left -= size
            x, y = self.random.normal(size=(2, size))
            x = np.where(self.random.random(size) < missing, np.nan, x + moved)
            colours = np.where(self.random.random(size) < 0.3, colour, "blue").tolist()
            probability = np.clip(self.random.normal(0.7 - (moved == -1) * 0.3, 0.1, size), 0, 1)
            producer = str(self.random.choice(["camera-a", "camera-b"]))
            columns = {"x": x + (moved == -1), "y": y, "colour": colours}
            answer = {"label": [7] * size, "probability": probability.tolist()}
            self.time += timedelta(seconds=self.seconds * size / faster)
            yield message(self.model, np.stack([x, y], 1), producer, time=self.time, answer=answer, **columns)


async def roll_out(monitoring: Monitoring, shadow: int | None = None) -> None:
    """Version 1 with a reference of numbers, a category and an answer; perhaps with a shadow that has the same."""
    random = np.random.default_rng(99)
    rows, colours = random.normal(size=(2000, 2)), np.where(random.random(2000) < 0.3, "red", "blue").tolist()
    profile = profile_of(FEATURES, rows, {"colour": colours}, {"probability": random.normal(0.7, 0.1, 2000).clip(0, 1)})
    deployed = await monitoring.deployed(1)
    deployed = deployed.model_copy(update={"profile": await monitoring.artifacts.put(profile.to_json())})
    beside = [Shadow(candidate=deployed.model_copy(update={"version": shadow, "run": "run-2"}))] if shadow else []
    plan = Plan(champion=deployed, shadows=beside)
    await monitoring.wire.say(
        RolloutChanged(model=monitoring.model, plan=plan, previous=None, reason="the gate holds", actor="registry")
    )


async def ask(monitoring: Monitoring, episode: str, **asked: Any) -> dict[str, Any]:
    answer = await monitoring.http.get(f"/episodes/{episode}/whatif", params=asked, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def refused(monitoring: Monitoring, episode: str, **asked: Any) -> str:
    answer = await monitoring.http.get(f"/episodes/{episode}/whatif", params=asked)
    assert answer.status_code in (404, 422), answer.text
    return answer.json()["error"]


async def everything(monitoring: Monitoring) -> Any:
    """All that a question could change."""
    digest = (await monitoring.http.get("/log/digest")).json()
    last = (await monitoring.wire.js.stream_info(LOG)).state.last_seq
    tables = {
        str(path): path.stat().st_mtime_ns for path in monitoring.folder.glob("data/**/*") if path.suffix != ".crc"
    }
    return digest, last, tables


async def concluded(monitoring: Monitoring, database_url: str) -> None:
    """Wait until all is said that follows from windows of the predictions that there are."""
    last = (await monitoring.wire.js.stream_info(PREDICTIONS)).state.last_seq

    def question(session: Session) -> bool:
        waiting = select(WindowRow.id).where(col(WindowRow.number).is_not(None), col(WindowRow.decided).is_(False))
        return store.position(session) == last and session.exec(waiting.limit(1)).first() is None

    database = Database(database_url, MIGRATIONS)
    await until(lambda: database.ask(question), "all windows concluded", within=90)


async def resolved(monitoring: Monitoring, about: str) -> dict[str, Any]:
    """The first episode of a kind once it is over."""

    async def over() -> dict[str, Any] | None:
        found = (await monitoring.http.get("/episodes", params={"model": monitoring.model, "about": about})).json()
        known = (await monitoring.http.get(f"/episodes/{found[-1]['episode']}")).json() if found else {}
        return known if known.get("resolved") else None

    return await until(over, f"an episode of {about} that is over", within=60)


CHANGES = {
    "drift": {"moved": 1.0},
    "missing": {"missing": 0.4},
    "categories": {"colour": "green"},
    "prediction": {"moved": -1},
    "volume": {"faster": 12},
}
RULES = [
    {"window_rows": 100, "min_rows": 50, "windows": 2, "volume": 4},
    {"window_rows": 170, "min_rows": 50, "windows": 3, "distance": 0.2, "volume": 4},
    {"window_seconds": 60, "late_seconds": 0, "min_rows": 50, "windows": 2, "volume": 4, "p_value": 0.01},
]


@pytest.mark.parametrize("seed", range(len(RULES)))
@pytest.mark.timeout(240)
async def test_without_a_change_each_episode_of_windows_is_the_one_that_there_was(broker, monitoring, seed):
    told: dict[str, Any] = {}
    for about, change in CHANGES.items():
        here = replace(monitoring, model=name("m"))
        await here.apply(**RULES[seed])
        await roll_out(here)
        history = History(here.model, np.random.default_rng([seed, len(about)]), datetime.now(UTC) - timedelta(hours=2))
        await here.predict(*history.bodies(900))
        # A clock that is ahead by hours closes no window that others still fill.
        ahead = message(
            here.model,
            values(3, 1),
            time=datetime.now(UTC) + timedelta(hours=9),
            x=[0.0] * 3,
            y=[0.0] * 3,
            colour=["red"] * 3,
        )
        await here.predict(ahead, *history.bodies(900 if about != "volume" else 2500, **change), *history.bodies(1200))
        told[about] = here
    await concluded(monitoring, f"sqlite:///{monitoring.folder}/monitoring.db")
    before = await everything(monitoring)

    for about, here in told.items():
        known = await resolved(here, about)
        found = await ask(here, known["episode"])
        assert found["windows"][-1]["said"] == "resolved"
        (would,) = [one for one in found["would"] if one["same"]]
        assert [one | {"said": ""} for one in found["windows"]] == found["happened"]["windows"]
        assert (would["subject"], would["producer"], would["share"]) == (
            known["subject"],
            known["producer"],
            known["share"],
        )
        assert not would["or_before"]
        assert found["changed"] == {}
        assert found["in_force"]["spec"] == 1
        assert (await ask(here, known["episode"], threshold=50 if about in ("drift", "prediction", "volume") else 1))[
            "would"
        ] == []
    assert await everything(monitoring) == before


async def test_the_rule_that_was_in_force_is_the_start_and_what_was_asked_goes_on_top(monitoring):
    await monitoring.apply(2, distance=0.3)
    await monitoring.predict(*(message(monitoring.model, values(100, seed)) for seed in range(3)))
    await monitoring.windows(3)
    await monitoring.predict(*(message(monitoring.model, values(100, seed, 0.8)) for seed in (5, 6)))
    (detected,) = await monitoring.said(DriftDetected)
    await monitoring.apply(3, distance=2.0, window_rows=60)
    await monitoring.predict(*(message(monitoring.model, values(120, seed)) for seed in range(8, 13)))
    await monitoring.said(EpisodeResolved)

    found = await ask(monitoring, detected.episode)
    (would,) = found["would"]
    assert would["same"]
    assert (found["in_force"]["spec"], found["in_force"]["threshold"], found["changed"]) == (2, 0.3, {})
    assert "version 3" in found["notes"][0]
    found = await ask(monitoring, detected.episode, windows=1)
    assert (found["in_force"]["threshold"], found["changed"]) == (0.3, {"windows": 1})
    assert found["would"][0]["number"] == would["number"] - 1
    assert (await ask(monitoring, detected.episode, threshold=1.5))["would"] == []


async def test_of_quality_labels_and_answers_are_followed_once_more(at, database_url):
    async with at() as monitoring:
        await begun(monitoring, performance=RULE, prediction=False)
        for producer, share in (("camera-a", 0.05), ("camera-b", 0.05), ("camera-b", 0.6)):
            await answered(monitoring, 300, producer, share)
        (degraded,) = await monitoring.said(PerformanceDegraded)
        await answered(monitoring, 300, "camera-a", 0.05)
        await monitoring.said(EpisodeResolved)
        await concluded(monitoring, database_url)
        before = await everything(monitoring)

        found = await ask(monitoring, degraded.episode)
        (would,) = found["would"]
        assert (would["same"], would["subject"], would["producer"]) == (True, "accuracy", "camera-b")
        assert (would["share"], would["text"]) == (degraded.share, degraded.text)
        assert [one["said"] for one in found["windows"]] == ["", "", "opened", "resolved"]
        assert found["in_force"] == {"spec": 1, "threshold": 0.1, "delta": 0.002, "min_labels": 50}
        assert (await ask(monitoring, degraded.episode, threshold=0.7))["would"] == []
        assert (await ask(monitoring, degraded.episode, min_labels=700))["would"] == []
        assert (await ask(monitoring, degraded.episode, delta=1e-300))["would"] == []
        assert "--p-value changes nothing about an episode of performance" in await refused(
            monitoring, degraded.episode, p_value=0.1
        )
        assert "version 2 was not asked these rows" in await refused(monitoring, degraded.episode, version=2)
        assert await everything(monitoring) == before


async def test_of_silence_the_times_without_predictions_are_looked_at(at):
    async with at() as monitoring:
        await monitoring.watch(silence=3)
        long_ago = datetime.now(UTC) - timedelta(seconds=40)
        for seconds in (0, 0.5, 4, 4.5, 11.5, 12):
            when = long_ago + timedelta(seconds=seconds)
            await monitoring.predict(message(monitoring.model, values(5, 1), time=when))
        (silent,) = await monitoring.said(AnomalyDetected)
        await monitoring.predict(message(monitoring.model, values(5, 1), time=datetime.now(UTC)))
        await monitoring.said(EpisodeResolved)
        # What is asked begins with what was in force then; now nothing more is said.
        await settled(monitoring, await monitoring.apply(2))
        before = await everything(monitoring)

        found = await ask(monitoring, silent.episode)
        assert [one["same"] for one in found["would"]] == [False, False, True]
        assert [round(one["score"], 1) for one in found["windows"] if one["said"] == "resolved"][:2] == [3.5, 7.0]
        assert len((await ask(monitoring, silent.episode, threshold=5))["would"]) == 2
        assert (await ask(monitoring, silent.episode, threshold=1000))["would"] == []
        assert "--rule changes nothing about an episode of silence; there may be given: --threshold" in await refused(
            monitoring, silent.episode, rule="evidently"
        )
        assert await everything(monitoring) == before


async def test_of_an_evaluator_its_rows_are_cut_and_judged_once_more_without_what_was_filled_in_later(
    broker, tmp_path, plugin
):
    async with evaluating(broker, tmp_path) as monitoring:

        async def sent(rows: int, of: int) -> None:
            await monitoring.predict(*(request(monitoring, 1, size=number % of)[1] for number in range(rows)))

        await sent(140, 4)
        await evaluated(monitoring, 140)
        (plugin / "at_most").write_text("1")
        await sent(120, 4)
        (opened,) = await monitoring.said(AnomalyDetected)
        await evaluated(monitoring, 200)
        (plugin / "at_most").unlink()
        assert (await replay(monitoring))["written"] == 60
        await sent(100, 4)
        await monitoring.said(EpisodeResolved)
        before = await everything(monitoring)

        found = await ask(monitoring, opened.episode)
        (would,) = found["would"]
        assert (would["same"], would["subject"], would["producer"]) == (True, "sizes.size", opened.producer)
        assert [one | {"said": ""} for one in found["windows"]] == found["happened"]["windows"]
        assert found["windows"][-1]["said"] == "resolved"
        assert (await ask(monitoring, opened.episode, threshold=5))["would"] == []
        wider = await ask(monitoring, opened.episode, window_rows=40, baseline_rows=120)
        assert {one["rows"] for one in wider["windows"]} == {40}
        assert wider["changed"] == {"window_rows": 40, "baseline_rows": 120}
        assert "--min-rows changes nothing" in await refused(monitoring, opened.episode, min_rows=30)
        assert await everything(monitoring) == before


async def test_an_episode_of_columns_that_do_not_fit_is_refused_in_a_sentence(monitoring):
    await monitoring.predict(message(monitoring.model, values(5, 1), other=[1.0] * 5))
    (opened,) = await monitoring.said(AnomalyDetected)

    assert "meguri dead" in await refused(monitoring, opened.episode)


async def test_another_version_is_asked_by_its_answers_to_the_same_rows_and_by_its_reference(at, database_url):
    """Version 1 answers less and less surely; version 2, its shadow, does not; version 3 never was asked."""
    async with at() as monitoring:
        await monitoring.apply(performance=RULE)
        await roll_out(monitoring, shadow=2)
        await settled(monitoring, (await monitoring.wire.js.stream_info(LOG)).state.last_seq)
        random = np.random.default_rng(4)
        for number in range(11):
            await asked_both(monitoring, random, unsure=number in (4, 5, 6))
            if number == 6:
                (prediction,) = await monitoring.said(DriftDetected)
                (degraded,) = await monitoring.said(PerformanceDegraded)
        await monitoring.said(EpisodeResolved, 2)
        await concluded(monitoring, database_url)
        before = await everything(monitoring)

        for episode in (prediction.episode, degraded.episode):
            assert [one["same"] for one in (await ask(monitoring, episode))["would"]] == [True]
            found = await ask(monitoring, episode, version=2)
            assert (found["would"], found["changed"]) == ([], {"version": 2})
            assert "version 3" in await refused(monitoring, episode, version=3)
        notes = (await ask(monitoring, prediction.episode, version=2))["notes"]
        assert notes == ["version 2 was asked 900 of these 900 rows too; the others are left out"]
        assert await everything(monitoring) == before


async def asked_both(monitoring: Monitoring, random: np.random.Generator, *, unsure: bool) -> None:
    """A hundred rows that version 1 answers and version 2 beside it, and their labels."""
    ids = [name("p") for _ in range(100)]
    rows = random.normal(size=(100, 2))
    colours = np.where(random.random(100) < 0.3, "red", "blue").tolist()
    columns = {"x": rows[:, 0], "y": rows[:, 1], "colour": colours}
    for version, role, level in ((1, "champion", 0.4 if unsure else 0.7), (2, "shadow", 0.7)):
        answer = {"label": [7] * 100, "probability": random.normal(level, 0.1, 100).clip(0, 1).tolist()}
        told = {"ids": ids, "role": role, "version": version, "time": datetime.now(UTC), "answer": answer}
        if unsure and version == 1:
            answer["label"] = [8] * 100
        await monitoring.predict(message(monitoring.model, rows, **told, **columns))
    await label(monitoring, dict.fromkeys(ids, 7))

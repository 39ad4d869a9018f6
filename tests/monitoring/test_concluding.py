"""What a running service says of windows, of predictions that do not fit, and of silence."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import pytest

from meguri_chassis.reader import BATCH
from meguri_contracts.events import (
    AnomalyDetected,
    DriftDetected,
    EpisodeAcknowledged,
    EpisodeResolved,
    NoticeSent,
    PromotionRejected,
    TrainingPostponed,
    TrainingStarted,
    Trigger,
)
from meguri_contracts.spec import ModelSpec
from meguri_contracts.topology import PREDICTION_PREFIX, PREDICTIONS
from meguri_monitoring.episodes import concluding
from meguri_monitoring.episodes.episodes import CHANGED
from meguri_monitoring.episodes.timeline import sentence
from tests.conftest import until
from tests.monitoring.conftest import WINDOW, Monitoring, message, monitoring_in, values
from tests.services import name, wire

WATCHED = {"silence": 1}


@pytest.fixture
async def listening(broker, database_url, tmp_path) -> AsyncIterator[Monitoring]:
    """A model whose silence is watched, on each kind of database."""
    async with monitoring_in(tmp_path, broker, database_url, tmp_path / "artifacts", name("m")) as monitoring:
        await monitoring.apply(**WATCHED)
        await monitoring.roll_out(1)
        yield monitoring


async def predict(monitoring: Monitoring, rows: int = 1, **given: Any) -> int:
    now = datetime.now(UTC)
    return await monitoring.predict(message(monitoring.model, values(rows, 1), time=now, **given))


async def ask_until_it_is_over(monitoring: Monitoring) -> EpisodeResolved:
    """Ask for predictions, more than one: what is recorded after a second is no end of a silence of a second."""

    async def over() -> list[EpisodeResolved]:
        await predict(monitoring)
        return await monitoring.wire.said(EpisodeResolved, monitoring.model)

    return (await until(over, "the end of the silence"))[0]


async def drift(monitoring: Monitoring) -> DriftDetected:
    await monitoring.predict(*(message(monitoring.model, values(WINDOW, seed, moved=3.0)) for seed in (1, 2)))
    (detected,) = await monitoring.said(DriftDetected)
    return detected


async def shown(monitoring: Monitoring, episode: str, lines: int = 1) -> dict[str, Any]:
    """An episode once it has so many lines."""

    async def enough() -> dict[str, Any] | None:
        answer = await monitoring.http.get(f"/episodes/{episode}")
        found = answer.json() if answer.status_code == 200 else {"timeline": []}
        return found if len(found["timeline"]) >= lines else None

    return await until(enough, f"{lines} lines")


# --- silence ----------------------------------------------------------------------------------------------------------


async def test_silence_is_told_once_and_over_with_the_next_prediction(listening):
    await predict(listening)
    (silent,) = await listening.said(AnomalyDetected)
    assert (silent.about, silent.expected, silent.version, silent.action) == ("silence", 1, 1, "notify")
    assert silent.value >= 1
    assert silent.text.startswith("no prediction was asked for since ")

    over = await ask_until_it_is_over(listening)
    assert (over.episode, over.about, over.reason) == (silent.episode, "silence", "predictions are asked for again")

    again = (await listening.said(AnomalyDetected, 2))[1]
    assert again.episode != silent.episode


class Later(datetime):
    """What a clock shows in ten minutes."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        return datetime.now(tz) + timedelta(minutes=10)


async def test_silence_that_began_before_a_restart_is_told_after_it(broker, database_url, tmp_path, monkeypatch):
    model, artifacts = name("m"), tmp_path / "artifacts"
    async with monitoring_in(tmp_path, broker, database_url, artifacts, model) as monitoring:
        await monitoring.apply(silence=3600)
        await monitoring.roll_out(1)
        long_ago = datetime.now(UTC) - timedelta(seconds=3000)
        await monitoring.predict(message(model, values(WINDOW, 1), time=long_ago))
        await monitoring.windows(1)
        assert await monitoring.wire.said(AnomalyDetected, model) == []

    monkeypatch.setattr(concluding, "datetime", Later)
    async with monitoring_in(tmp_path, broker, database_url, artifacts, model) as monitoring:
        (silent,) = await monitoring.said(AnomalyDetected)
    assert silent.value >= 3600


async def test_what_waits_to_be_recorded_is_no_silence(broker, tmp_path):
    """More messages than are recorded at once, of which only the last is fresh, wait when the service comes back."""
    model, database_url = name("m"), f"sqlite:///{tmp_path}/monitoring.db"
    async with monitoring_in(tmp_path, broker, database_url, tmp_path / "artifacts", model) as monitoring:
        await monitoring.apply(silence=600)
        await monitoring.roll_out(1)
    now = datetime.now(UTC)
    old = [message(model, values(1, seed), time=now - timedelta(hours=1)) for seed in range(BATCH + 1)]
    fresh = message(model, values(2 * WINDOW, 1), time=now)
    async with wire(broker) as beside:
        for body in (*old, fresh):
            await beside.js.publish(f"{PREDICTION_PREFIX}.{model}", body, stream=PREDICTIONS)

    async with monitoring_in(tmp_path, broker, database_url, tmp_path / "artifacts", model) as monitoring:
        await monitoring.windows((BATCH + 1) // WINDOW + 2)
        assert await monitoring.wire.said(AnomalyDetected, model) == []


async def test_two_replicas_tell_a_silence_once(listening, broker, database_url, tmp_path):
    other = monitoring_in(tmp_path / "other", broker, database_url, tmp_path / "artifacts", listening.model)
    async with other:
        await predict(listening)
        (silent,) = await listening.said(AnomalyDetected)
        await ask_until_it_is_over(listening)
        said = await listening.said(AnomalyDetected, 2)

    assert said[0] == silent
    assert len({one.episode for one in said}) == len(said)


async def test_silence_is_not_told_unless_the_spec_asks_and_is_when_it_does(listening):
    await listening.apply(2)
    await predict(listening, WINDOW)
    await listening.windows(1)
    assert await listening.wire.said(AnomalyDetected, listening.model) == []

    await listening.apply(3, **WATCHED)
    await listening.said(AnomalyDetected)


async def test_what_the_spec_no_longer_has_watched_is_over(listening):
    await predict(listening)
    (silent,) = await listening.said(AnomalyDetected)
    await listening.apply(2)

    (over,) = await listening.said(EpisodeResolved)
    assert (over.episode, over.reason) == (silent.episode, CHANGED)


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "column"),
    [
        ({"x": [1.0] * 3, "y": [1.0] * 3, "z": [2.0] * 3}, "z"),
        ({"x": [1.0] * 3}, "y"),
        ({"x": [1.0] * 3, "y": ["high"] * 3}, "y"),
    ],
    ids=["came", "went", "changed type"],
)
async def test_the_subject_of_an_episode_about_columns_is_the_column_that_came_went_or_changed_type(
    monitoring, columns, column
):
    await monitoring.predict(message(monitoring.model, values(3, 1), **columns))
    (refused,) = await monitoring.said(AnomalyDetected)
    assert (refused.about, refused.subject) == ("schema", column)
    assert f"'{column}'" in refused.text

    async def listed() -> bool:
        found = (await monitoring.http.get(f"/episodes?model={monitoring.model}")).json()
        return [(one["about"], one["subject"], one["feature"]) for one in found] == [("schema", column, column)]

    await until(listed, "the episode")
    page = (await monitoring.http.get(f"/episodes/{refused.episode}/report?format=html")).text
    assert f"data that does not fit ({column})" in page


async def test_where_a_table_has_the_column_otherwise_that_is_the_subject(monitoring):
    """Of a version without a reference that can be read, the table alone tells."""
    model = monitoring.model
    await monitoring.predict(message(model, values(3, 1), x=[1.0] * 3, y=[1.0] * 3, t=["a"] * 3))
    await until(lambda: has_rows(monitoring, 3), "the rows")
    await monitoring.predict(message(model, values(3, 1), x=[1.0] * 3, y=[1.0] * 3))

    (refused,) = await monitoring.said(AnomalyDetected)
    assert (refused.about, refused.subject) == ("schema", "t")


def has_rows(monitoring: Monitoring, rows: int) -> bool:
    try:
        return monitoring.kept().height == rows
    except FileNotFoundError:
        return False


async def test_predictions_that_do_not_fit_are_told_once_until_windows_fit_again(monitoring):
    model = monitoring.model
    odd = [message(model, values(3, seed), x=[1.0] * 3, z=[2.0] * 3) for seed in (1, 2)]
    last = await monitoring.predict(*odd)
    (refused,) = await monitoring.said(AnomalyDetected)
    assert (refused.about, refused.value, refused.action) == ("schema", 3, "notify")
    assert refused.text.startswith("predictions do not fit what the model was trained on: ")

    async def both_set_aside() -> bool:
        return [sequence for sequence, _ in await monitoring.dead_letters()] == [last - 1, last]

    await until(both_set_aside, "two dead letters")
    await monitoring.predict(*(message(model, values(WINDOW, seed)) for seed in (3, 4)))
    (over,) = await monitoring.said(EpisodeResolved)
    assert (over.episode, over.reason) == (refused.episode, "all predictions fit again for 2 windows in a row")
    assert len(await monitoring.wire.said(AnomalyDetected, model)) == 1


# --- what happened in an episode --------------------------------------------------------------------------------------


async def test_an_episode_tells_what_it_led_to_in_the_order_of_the_log(monitoring):
    detected = await drift(monitoring)
    opened = (await monitoring.wire.heard(DriftDetected, monitoring.model))[0]
    trigger = Trigger(event=opened.id, kind=opened.kind, hops=2)
    other = Trigger(event="another", kind="data-committed")
    waits = TrainingPostponed(
        model=monitoring.model, triggers=(trigger,), rows=0, needed=1, reason="new rows that show it are needed"
    )
    spec = (await monitoring.wire.stored("MEGURI", f"meguri.events.spec-applied.{monitoring.model}"))[0]
    started = TrainingStarted(
        model=monitoring.model,
        run="run-9",
        spec=ModelSpec.model_validate_json(_spec_of(spec.data)),
        spec_version=1,
        dataset_version=3,
        dataset_digest="d",
        dataset_rows=700,
        triggers=(trigger, other),
    )
    unrelated = started.model_copy(update={"run": "run-8", "triggers": (other,)})
    rejected = PromotionRejected(model=monitoring.model, version=2, run="run-9", reason="the gate does not hold")
    told = NoticeSent(
        model=monitoring.model, episode=detected.episode, moment="opened", target="mailto://ada", subject="drift"
    )
    for event in (told, waits, unrelated, started, rejected):
        await monitoring.wire.say(event)
    await monitoring.wire.say(rejected.model_copy(update={"run": "run-8", "version": 3}))

    episode = await shown(monitoring, detected.episode, 5)
    assert [(line["kind"], line["text"]) for line in episode["timeline"]] == [
        ("drift-detected", sentence(detected)),
        ("notice-sent", "mailto://ada was told that it began."),
        ("training-postponed", "A new model is wanted and waits: new data that shows it is needed."),
        ("training-started", "Training began on 700 rows."),
        ("promotion-rejected", "Version 2 was turned away: the gate does not hold."),
    ]
    assert episode["timeline"][0]["text"].startswith("It began: change in the incoming data (x). Very strong: ")
    assert (episode["timeline"][0]["event"], len(episode["timeline"][0]["trace"])) == (opened.id, 32)
    assert (episode["run"], episode["state"]) == ("run-9", "opened")


async def test_an_episode_keeps_what_its_windows_looked_like_until_it_has_ended(monitoring):
    await monitoring.predict(message(monitoring.model, values(WINDOW, 7)))
    detected = await drift(monitoring)
    await monitoring.predict(*(message(monitoring.model, values(WINDOW, seed)) for seed in (3, 4, 5)))
    await monitoring.said(EpisodeResolved)
    await monitoring.windows(6)

    async def whole() -> list[dict[str, Any]] | None:
        found = (await monitoring.http.get(f"/episodes/{detected.episode}")).json()["evidence"]
        return found if len(found) >= 4 else None

    evidence = await until(whole, "the evidence")
    assert [one["number"] for one in evidence] == [1, 2, 3, 4]
    moved = [sum(found["moved"] for found in one["findings"] if found["about"] == "drift") for one in evidence]
    assert moved == [1, 1, 0, 0]


async def test_somebody_acknowledges_an_open_episode_once(monitoring):
    detected = await drift(monitoring)
    route = f"/episodes/{detected.episode}/acknowledge"
    await shown(monitoring, detected.episode)
    headers = {"Meguri-Actor": "ada", "Idempotency-Key": "one"}
    answers = [
        await monitoring.http.post(route, json={"note": "the lamp"}, headers=headers),
        await monitoring.http.post(route, json={"note": "the lamp"}, headers=headers),
        await monitoring.http.post(route, headers={"Meguri-Actor": "ben"}),
    ]

    assert {answer.status_code for answer in answers} == {200}
    assert {(one.json()["state"], one.json()["actor"], one.json()["note"]) for one in answers} == {
        ("acknowledged", "ada", "the lamp")
    }
    (said,) = await monitoring.wire.said(EpisodeAcknowledged, monitoring.model)
    assert (said.episode, said.about, said.actor, said.note) == (detected.episode, "drift", "ada", "the lamp")

    await monitoring.roll_out(2)
    await shown(monitoring, detected.episode, 3)
    assert (await monitoring.http.post(route)).status_code == 409
    assert (await monitoring.http.post(route, headers=headers)).status_code == 200
    assert (await monitoring.http.post("/episodes/unknown/acknowledge")).status_code == 404


async def test_episodes_are_found_by_what_they_are_about(monitoring):
    detected = await drift(monitoring)
    await shown(monitoring, detected.episode)
    known = {"model": monitoring.model}

    (found,) = (await monitoring.http.get("/episodes", params=known | {"about": "drift"})).json()
    assert (found["episode"], found["subject"], found["action"]) == (detected.episode, "x", "retrain")
    assert (await monitoring.http.get("/episodes", params=known | {"about": "silence"})).json() == []
    assert (await monitoring.http.get("/episodes", params={"about": "nothing"})).status_code == 422


def _spec_of(applied: bytes) -> bytes:

    return json.dumps(json.loads(applied)["spec"]).encode()


# --- in spite of others -----------------------------------------------------------------------------------------------


async def test_a_model_that_nothing_can_be_concluded_for_keeps_no_other_waiting(broker, tmp_path, monkeypatch):
    url, artifacts = f"sqlite:///{tmp_path}/monitoring.db", tmp_path / "artifacts"
    follows = concluding._follows
    broken = {"a-broken"}

    def of_windows(row, session):
        if row.model in broken:
            raise ValueError("this is odd")
        return follows(row, session)

    async with monitoring_in(tmp_path, broker, url, artifacts, "a-broken") as monitoring:
        well = Monitoring(monitoring.http, monitoring.wire, monitoring.artifacts, tmp_path, "b-well")
        for one in (monitoring, well):
            await one.watch()
        monkeypatch.setattr(concluding, "_follows", of_windows)
        for one in (monitoring, well):
            await one.predict(*(message(one.model, values(WINDOW, seed, 3.0)) for seed in (1, 2)))
        await well.said(DriftDetected)

        async def reasons() -> list[str]:
            return (await monitoring.http.get("/health/ready")).json()["reasons"]

        assert await until(reasons, "a reason") == ["nothing is concluded from windows: a-broken: this is odd"]

        broken.clear()
        await monitoring.said(DriftDetected)

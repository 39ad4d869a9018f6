"""Which events of a model belong to an episode, as the projection keeps them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from sqlmodel import Session

from meguri_chassis.log import Message
from meguri_chassis.store import Database
from meguri_contracts.events import (
    AnomalyDetected,
    ApprovalRequested,
    DriftDetected,
    EpisodeAcknowledged,
    EpisodeResolved,
    EpisodeWorsened,
    Event,
    MeasuresRefilled,
    ModelTrained,
    PromotionRejected,
    TrainingFailed,
    Window,
)
from meguri_monitoring import projection, store
from meguri_monitoring.app import MIGRATIONS
from meguri_monitoring.episodes import store as episode_store
from meguri_monitoring.episodes import timeline
from meguri_monitoring.episodes.episodes import State, evolve
from tests.monitoring.runs import FILE, SIGNATURE, deployed, rollout, started

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def opening(episode: str = "ep", about: str = "drift") -> DriftDetected:
    return DriftDetected(
        model="m",
        version=1,
        episode=episode,
        about=about,  # type: ignore[arg-type]
        feature="x",
        producer="camera-c",
        share=0.9,
        distance=1.5,
        ks=0.6,
        p_value=0,
        drifted=("x",),
        window=Window(first=1, last=2, rows=3),
    )


def measure(episode: str, subject: str) -> AnomalyDetected:
    return AnomalyDetected(model="m", version=1, episode=episode, about="measure", subject=subject, value=1, expected=0)


@dataclass
class Told:
    """A log as the projection sees it."""

    session: Session
    state: State = field(default_factory=lambda: State("m"))
    said: list[str] = field(default_factory=list)

    def say(self, event: Event, cause: str = "") -> str:
        """Let an event happen; returns its id."""
        sequence = len(self.said) + 1
        id_ = f"{event.kind()}-{sequence}"
        time = NOON + timedelta(minutes=sequence)
        trace = {"traceparent": f"00-{sequence:032x}-{1:016x}-01"}
        message = Message(sequence, event.kind(), event.key, id_, "test", time, id_, 0, trace, b"", 1, cause)
        projection.evolve(self.session, event, message)
        self.session.flush()
        self.state = evolve(self.state, event, sequence, 0, time)
        self.said.append(id_)
        return id_

    def kinds(self, episode: str = "ep") -> list[str]:
        return [line.kind for line in episode_store.lines(self.session, episode)]

    def stage(self, episode: str = "ep") -> tuple[str, str]:
        row = episode_store.episode(self.session, episode)
        return row.run, row.stage


@pytest.fixture
def told(database_url) -> Iterator[Told]:
    database = Database(database_url, MIGRATIONS)
    database.migrate()
    with database.write() as session:
        told = Told(session)
        told.say(rollout(deployed(1, "run-1")))
        yield told
    database.close()


def test_what_the_tables_say_is_what_the_state_machine_says(told):
    told.say(opening())
    told.say(opening("other", "missing"))
    for event in (
        EpisodeWorsened(model="m", version=1, episode="ep", about="drift", subject="x", before=1.5, now=4),
        EpisodeAcknowledged(model="m", version=1, episode="ep", about="drift", actor="ada"),
        EpisodeResolved(model="m", version=1, episode="other", about="missing", reason="over"),
    ):
        told.say(event)
        assert store.state(told.session, "m") == told.state

    assert told.kinds() == ["drift-detected", "episode-worsened", "episode-acknowledged"]
    assert told.kinds("other") == ["drift-detected", "episode-resolved"]
    statuses = [row.status for row in episode_store.found(told.session, "m", open_only=False)]
    assert statuses == ["resolved", "acknowledged"]


def test_a_run_is_followed_until_its_version_is_champion(told):
    event, canary = told.say(opening()), deployed(2, "run-2")
    told.say(started("run-2", event))
    told.say(rollout(deployed(1, "run-1"), canary))
    assert told.stage() == ("run-2", "tried")
    told.say(rollout(canary))
    told.say(EpisodeResolved(model="m", version=1, episode="ep", reason="version 2 serves"))
    told.say(rollout(canary, deployed(3, "run-3")))

    assert told.kinds() == [
        "drift-detected",
        "training-started",
        "rollout-changed",
        "rollout-changed",
        "episode-resolved",
    ]
    assert told.stage() == ("run-2", "ended")


def test_a_canary_that_is_taken_back_is_told(told):
    event = told.say(opening())
    told.say(started("run-2", event))
    told.say(rollout(deployed(1, "run-1"), deployed(2, "run-2")))
    told.say(rollout(deployed(1, "run-1")))
    told.say(rollout(deployed(1, "run-1"), deployed(3, "run-3")))

    assert told.kinds().count("rollout-changed") == 2
    assert told.stage() == ("run-2", "ended")


@pytest.mark.parametrize("end", [PromotionRejected, ApprovalRequested, TrainingFailed])
def test_the_end_of_a_run_is_told_where_it_is_not_the_run_of_another(told, end):
    event = told.say(opening())
    told.say(started("run-2", event))
    for run in ("run-3", "run-2"):
        verdict = {"model": "m", "run": run, "reason": "why"}
        told.say(end.model_validate(verdict | ({} if end is TrainingFailed else {"version": 2})))

    assert told.kinds() == ["drift-detected", "training-started", end.kind()]


def test_a_version_that_somebody_said_yes_to_is_told_too(told):
    event = told.say(opening())
    told.say(started("run-2", event))
    told.say(ApprovalRequested(model="m", version=2, run="run-2", reason="rolled back before"))
    told.say(rollout(deployed(2, "run-2")))

    assert told.kinds()[-2:] == ["approval-requested", "rollout-changed"]


def test_a_trained_model_is_told_in_every_episode_that_led_to_it(told):
    events = [told.say(opening()), told.say(opening("other", "missing"))]
    told.say(started("run-2", *events))
    trained = ModelTrained.model_validate(
        {
            "model": "m",
            "run": "run-2",
            "spec_version": 1,
            "dataset": "d",
            "dataset_version": 1,
            "dataset_digest": "d",
            "train_rows": 100,
            "holdout_rows": 50,
            "candidate": {"version": 0, "metrics": {}},
            "onnx": FILE,
            "skops": FILE,
            "profile": FILE,
            "signature": SIGNATURE,
            "parity": 0,
            "environment": {},
            "seconds": 2.5,
            "fit_seconds": 1,
        }
    )
    told.say(trained)

    for episode in ("ep", "other"):
        line = episode_store.lines(told.session, episode)[-1]
        assert (line.kind, line.text) == ("model-trained", "A model was trained on 100 rows in 2.5 seconds.")


def test_a_rollback_is_told_in_the_episode_that_asked_for_it(told):
    event = told.say(opening())
    told.say(opening("other", "missing"))
    told.say(rollout(deployed(1, "run-1")), cause=event)

    assert told.kinds() == ["drift-detected", "rollout-changed"]
    assert told.kinds("other") == ["drift-detected"]
    line = episode_store.lines(told.session, "ep")[-1]
    assert (line.sequence, line.trace) == (4, f"{4:032x}")


def test_rows_that_were_missing_are_told_in_the_last_episode_of_each_number(told):
    told.say(measure("first", "persons.mean"))
    told.say(EpisodeResolved(model="m", version=1, episode="first", about="measure", reason="over"))
    told.say(measure("second", "persons.mean"))
    told.say(measure("others", "persons_2.mean"))
    told.say(MeasuresRefilled(model="m", evaluator="persons", rows=10, written=4, first=1, last=9, actor="ada"))

    assert told.kinds("second") == ["anomaly-detected", "measures-refilled"]
    assert (told.kinds("first")[-1], told.kinds("others")) == ("episode-resolved", ["anomaly-detected"])
    said = episode_store.lines(told.session, "second")[-1].text
    assert said == "ada had the numbers of persons computed again: 4 of 10 rows were missing and are there now."

    again = MeasuresRefilled(
        model="m", evaluator="persons", rows=9, written=0, left_out=2, first=1, last=9, actor="ada"
    )
    assert timeline.sentence(again).endswith(
        "0 of 9 rows were missing and are there now, 2 were left out by its writer again."
    )

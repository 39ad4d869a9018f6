import polars as pl
import pytest

from meguri_contracts.events import DriftDetected, EpisodeResolved
from tests.conftest import until
from tests.monitoring.conftest import TRACE, WINDOW, message, monitoring_in, values
from tests.monitoring.state import counted
from tests.services import name

# --- windows ----------------------------------------------------------------------------------------------------------


async def test_predictions_are_kept_and_counted_into_windows(monitoring):
    sequence = await monitoring.predict(*(message(monitoring.model, values(60, seed)) for seed in range(1, 5)))

    first, second = await monitoring.windows(2)
    assert [
        (one["window"]["rows"], one["judged"], sum(found["moved"] for found in one["findings"]))
        for one in (first, second)
    ] == [
        (WINDOW, True, 0),
        (WINDOW, True, 0),
    ]
    assert first["window"]["last"] == sequence - 2
    kept = monitoring.kept()
    assert (kept.height, kept["trace_id"].unique().to_list()) == (240, [TRACE])
    assert await monitoring.wire.said(DriftDetected, monitoring.model) == []


async def test_drift_is_said_once_and_names_feature_and_producer(monitoring):
    await monitoring.predict(
        *(
            body
            for seed in range(1, 9)
            for body in (
                message(monitoring.model, values(50, seed), "camera-a"),
                message(monitoring.model, values(50, 100 + seed, moved=3.0), "camera-b"),
            )
        )
    )
    windows = await monitoring.windows(8)
    (detected,) = await monitoring.said(DriftDetected)

    assert (detected.feature, detected.producer, detected.version) == ("x", "camera-b", 1)
    assert detected.drifted == ("x",)
    assert detected.share > 0.8
    assert detected.window.model_dump() == windows[1]["window"]
    kept = monitoring.kept().filter(pl.col("prediction_id").is_in(detected.samples))
    assert kept["producer"].unique().to_list() == ["camera-b"]
    assert kept["sequence"].is_between(detected.window.first, detected.window.last).all()


async def test_an_episode_ends_when_another_version_serves(monitoring):
    moved = (message(monitoring.model, values(WINDOW, seed, moved=3.0)) for seed in (1, 2))
    await monitoring.predict(*moved)
    (detected,) = await monitoring.said(DriftDetected)
    await monitoring.roll_out(2)

    (resolved,) = await monitoring.said(EpisodeResolved)
    assert (resolved.episode, resolved.reason) == (detected.episode, "version 2 serves")


async def test_an_episode_ends_when_rows_look_like_the_reference_again_and_a_later_one_is_another(monitoring):
    for moved in (3.0, 0.0, 3.0):
        await monitoring.predict(*(message(monitoring.model, values(WINDOW, seed, moved)) for seed in (1, 2)))

    first, second = await monitoring.said(DriftDetected, 2)
    (resolved,) = await monitoring.said(EpisodeResolved)
    assert (resolved.episode, first.episode != second.episode) == (first.episode, True)


async def test_a_version_without_a_reference_is_kept_and_not_judged(monitoring):
    await monitoring.predict(message(monitoring.model, values(2 * WINDOW, 1), version=9))
    await monitoring.predict(message(monitoring.model, values(WINDOW, 1)))

    (window,) = await monitoring.windows(1)
    assert window["version"] == 1
    assert monitoring.kept(9).height == 2 * WINDOW


# --- what does not fit ------------------------------------------------------------------------------------------------


def odd(kind: str, model: str) -> bytes:
    n = 5
    return {
        "no Arrow": b"no Arrow",
        "other features": message(model, values(n, 1), z=[0.5] * n),
        "a feature too many": message(model, values(n, 1), x=[0.5] * n, y=[0.5] * n, z=[0.5] * n),
        "a model that leads elsewhere": message("../../elsewhere", values(n, 1)),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("no Arrow", "Malformed: not an Arrow IPC stream"),
        ("other features", "no column 'x', which their reference has"),
        ("a feature too many", "a column 'z', which is no feature of their reference"),
        ("a model that leads elsewhere", "which is no name"),
    ],
)
async def test_predictions_that_do_not_fit_are_set_aside_and_the_others_counted(monitoring, kind, reason):
    before = await monitoring.predict(message(monitoring.model, values(60, 1)))
    await monitoring.predict(odd(kind, monitoring.model), message(monitoring.model, values(60, 2)))

    (window,) = await monitoring.windows(1)
    (letter,) = await until(monitoring.dead_letters)
    assert (window["window"]["first"], window["window"]["last"]) == (before, before + 2)
    assert letter[0] == before + 1
    assert reason in letter[1]
    assert monitoring.kept().height == 120
    assert not (monitoring.folder / "elsewhere").exists()


async def test_the_first_predictions_of_a_version_do_not_decide_for_those_that_fit(monitoring):
    await monitoring.predict(odd("other features", monitoring.model), message(monitoring.model, values(WINDOW, 2)))

    await monitoring.windows(1)
    assert monitoring.kept().columns[9:11] == ["x", "y"]


async def test_a_version_without_a_reference_that_changes_its_columns_stops_nobody(monitoring):
    await monitoring.predict(message(monitoring.model, values(5, 1), version=9))
    await monitoring.predict(message(monitoring.model, values(5, 1), version=9, z=[0.5] * 5))
    await monitoring.predict(message(monitoring.model, values(WINDOW, 1)))

    await monitoring.windows(1)
    (letter,) = await monitoring.dead_letters()
    assert "in predictions and" in letter[1]
    assert monitoring.kept(9).height == 5


# --- in spite of crashes ----------------------------------------------------------------------------------------------


async def test_a_service_that_was_stopped_in_between_counts_every_prediction_once(broker, database_url, tmp_path):
    model, artifacts = name("m"), tmp_path / "artifacts"
    for part in range(3):
        async with monitoring_in(tmp_path / "one", broker, database_url, artifacts, model) as monitoring:
            if part == 0:
                await monitoring.watch()
            last = await monitoring.predict(
                *(message(model, values(30, 10 * part + n), f"camera-{n}") for n in range(5))
            )
            await until(lambda last=last: counted(database_url)["position"] == [last], "the count")

    whole = f"sqlite:///{tmp_path}/whole.db"
    async with monitoring_in(tmp_path / "other", broker, whole, artifacts, model) as undisturbed:
        await until(lambda: counted(whole)["position"] == [last], "the count")
    assert len(counted(whole)["judged"]) == 4
    assert counted(database_url) == counted(whole)
    assert monitoring.kept().equals(undisturbed.kept())
    assert monitoring.kept().height == 450


async def test_what_was_kept_and_not_counted_before_a_crash_is_counted(broker, tmp_path):
    """A crash after the rows were kept and before they were counted: the same messages come again."""
    model, artifacts = name("m"), tmp_path / "artifacts"
    whole, again = f"sqlite:///{tmp_path}/whole.db", f"sqlite:///{tmp_path}/again.db"
    async with monitoring_in(tmp_path, broker, again, artifacts, model) as monitoring:
        await until(lambda: counted(again)["position"] == [0], "the beginning")
    # Another keeps them in the same table: what this one would have done before it crashed.
    async with monitoring_in(tmp_path, broker, whole, artifacts, model) as monitoring:
        await monitoring.watch()
        last = await monitoring.predict(*(message(model, values(30, n)) for n in range(5)))
        await until(lambda: counted(whole)["position"] == [last], "the count")

    async with monitoring_in(tmp_path, broker, again, artifacts, model) as monitoring:
        await until(lambda: counted(again)["position"] == [last], "the count")
    assert monitoring.kept().height == 150
    assert counted(again) == counted(whole)

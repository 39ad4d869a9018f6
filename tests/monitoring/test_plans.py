"""Traffic plans with several versions: whose windows are whose, and what shadows would have answered."""

from datetime import UTC, datetime

import pytest

from meguri_contracts.events import DriftDetected, EpisodeResolved
from tests.conftest import until
from tests.monitoring.conftest import WINDOW, message, values
from tests.monitoring.state import settled


async def test_a_step_of_a_canary_neither_ends_the_episode_nor_begins_the_windows_of_the_champion_anew(monitoring):
    model = monitoring.model
    await monitoring.predict(message(model, values(WINDOW, 1, 3.0)), message(model, values(60, 2, 3.0)))
    await monitoring.windows(1)
    await until(lambda: monitoring.kept().height == WINDOW + 60, "all rows")
    await settled(monitoring, await monitoring.roll_out(1, canary=2))
    await monitoring.predict(message(model, values(40, 3, 3.0), role="champion"))

    assert [one["window"]["rows"] for one in await monitoring.windows(2)] == [WINDOW, WINDOW]
    (detected,) = await monitoring.said(DriftDetected)
    await settled(monitoring, await monitoring.roll_out(1, canary=3, shadow=2))
    await monitoring.predict(*(message(model, values(WINDOW, seed, 0.0), role="champion") for seed in (4, 5)))
    (resolved,) = await monitoring.said(EpisodeResolved)
    assert (resolved.episode, resolved.reason[:22]) == (detected.episode, "like the reference aga")


async def test_each_answering_version_has_windows_and_only_those_of_the_champion_begin_an_episode(monitoring):
    model = monitoring.model
    await monitoring.roll_out(1, arms=(2, 3))
    for seed in range(1, 9, 2):
        await monitoring.predict(
            message(model, values(WINDOW, seed), version=1, role="champion"),
            message(model, values(WINDOW, seed + 1, 3.0), version=2, role="arm"),
            message(model, values(WINDOW, seed + 1), version=3, role="arm"),
        )

    found = sorted(await monitoring.windows(12), key=lambda one: (one["number"], one["version"]))
    assert [(one["version"], any(finding["moved"] for finding in one["findings"])) for one in found] == [
        (1, False),
        (2, True),
        (3, False),
    ] * 4
    # With two arms between them, windows of the champion still follow each other.
    await monitoring.predict(
        *(
            message(model, values(WINDOW, 20 + seed, 3.0), version=1 + seed % 3, role="arm" if seed % 3 else "champion")
            for seed in range(6)
        )
    )
    (detected,) = await monitoring.said(DriftDetected)
    assert detected.version == 1


async def test_answers_of_shadows_are_kept_beside_those_that_were_given_and_not_counted(monitoring):
    model, ids = monitoring.model, [f"{monitoring.model}-{i}" for i in range(WINDOW)]
    await monitoring.roll_out(1, shadow=2)
    await monitoring.predict(
        message(model, values(WINDOW, 1), version=2, ids=ids, role="shadow", answer=classes([7] * 98 + [8, 8], 0.7)),
        message(model, values(WINDOW, 1), ids=ids, role="champion", answer=classes([7] * WINDOW, 0.9)),
    )
    await monitoring.windows(1)
    await until(lambda: monitoring.kept(2).height == WINDOW, "the rows of the shadow")

    found = (await monitoring.http.get(f"/predictions/{ids[99]}")).json()
    assert (found["version"], found["label"], found["_entity"], found["_latency"]) == (1, 7, "customer-7", 1500)
    assert [(one["version"], one["label"], one["_role"]) for one in found["shadows"]] == [(2, 8, "shadow")]
    assert [one["version"] for one in await monitoring.windows(1)] == [1]
    compared = (await monitoring.http.get(f"/models/{model}/shadows/2", params={"worst": 3})).json()
    assert (compared["pairs"], compared["disagreed"]) == (WINDOW, 2)
    assert compared["mean_difference"] == pytest.approx(0.2)
    assert [(one["prediction_id"], one["disagreed"]) for one in compared["worst"]] == [
        (ids[98], True),
        (ids[99], True),
        (ids[0], False),
    ]
    since = {"since": datetime.now(UTC).isoformat()}
    later = (await monitoring.http.get(f"/models/{model}/shadows/2", params=since)).json()
    assert (later["pairs"], later["disagreed"], later["mean_difference"], later["worst"]) == (0, 0, None, [])
    assert (await monitoring.http.get(f"/models/{model}/shadows/9")).status_code == 404


async def test_predictions_of_a_shadow_disagree_from_a_thousandth_on(monitoring):
    model, ids = monitoring.model, [f"{monitoring.model}-{i}" for i in range(4)]
    await monitoring.roll_out(1, shadow=2)
    given, asked = [1.0, 2.0, 3.0, float("nan")], [1.0005, 2.5, 3.0, 1.0]
    await monitoring.predict(
        message(model, values(4, 1), ids=ids, role="champion", answer={"prediction": given}),
        message(model, values(4, 1), version=2, ids=ids, role="shadow", answer={"prediction": asked}),
    )

    async def compared() -> dict | None:
        answer = await monitoring.http.get(f"/models/{model}/shadows/2", params={"worst": 2})
        return answer.json() if answer.status_code == 200 and answer.json()["pairs"] == 4 else None

    found = await until(compared)
    assert found["disagreed"] == 2
    assert found["mean_difference"] == pytest.approx(0.5005 / 3)
    assert [one["prediction_id"] for one in found["worst"]] == [ids[1], ids[3]]


def classes(labels: list[int], probability: float) -> dict:
    return {"label": labels, "probability": [probability] * len(labels)}

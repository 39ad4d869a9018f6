import json

import pytest

from meguri_chassis.profiles import profile_of
from meguri_contracts.errors import Invalid
from meguri_contracts.events import DriftDetected, EpisodeResolved, ModelTrained, PromotionRejected
from meguri_contracts.spec import Monitor
from meguri_contracts.topology import LOG
from meguri_monitoring.whatif import asking
from tests.conftest import ROOT, until
from tests.monitoring.conftest import FEATURES, WINDOW, message, values


async def drifted(monitoring) -> str:
    """Three quiet windows, three that are moved by 0.8 sd, three quiet ones; the id of the episode."""
    for number, moved in enumerate([0.0] * 3 + [0.8] * 3 + [0.0] * 3):
        rows = values(WINDOW, number, moved)
        # Windows begin and end within messages, and producers are mixed.
        cut = 30 + number
        await monitoring.predict(message(monitoring.model, rows[:cut], "camera-a"))
        await monitoring.predict(message(monitoring.model, rows[cut:], "camera-b"))
    (detected,) = await monitoring.said(DriftDetected)
    await monitoring.said(EpisodeResolved)

    async def ended() -> bool:
        windows = (await ask(monitoring, detected.episode))["happened"]["windows"]
        return len(windows) == 8

    # The window that ended it is kept with it a moment after that was said.
    await until(ended, "eight windows of the episode")
    return detected.episode


async def ask(monitoring, episode: str, **asked) -> dict:
    answer = await monitoring.http.get(f"/episodes/{episode}/whatif", params=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_without_a_change_what_would_have_been_is_what_was(monitoring):
    episode = await drifted(monitoring)

    found = await ask(monitoring, episode)
    (would,) = found["would"]
    known = (await monitoring.http.get(f"/episodes/{episode}")).json()
    assert (found["changed"], found["about"]) == ({}, "drift")
    assert (would["subject"], would["producer"], would["share"]) == ("x", known["producer"], known["share"])
    unsaid = [one | {"said": ""} for one in found["windows"]]
    assert unsaid == found["happened"]["windows"]
    assert [one["said"] for one in found["windows"]] == ["", "", "", "", "opened", "", "", "resolved"]


async def test_a_larger_threshold_may_mean_no_episode_and_a_smaller_one_the_same(monitoring):
    episode = await drifted(monitoring)

    assert (await ask(monitoring, episode, threshold=1.5))["would"] == []
    assert len((await ask(monitoring, episode, threshold=0.05))["would"]) == 1
    assert (await ask(monitoring, episode, windows=4))["would"] == []
    assert (await ask(monitoring, episode, p_value=1e-30))["would"] == []


async def test_windows_may_be_cut_otherwise(monitoring):
    episode = await drifted(monitoring)

    found = await ask(monitoring, episode, window_rows=50)
    assert [one["rows"] for one in found["windows"]] == [50] * 16
    assert [one["said"] for one in found["windows"]].index("opened") == 7
    assert found["changed"] == {"window_rows": 50}


async def test_another_rule_or_the_reference_of_another_version_may_be_asked_for(monitoring):
    episode = await drifted(monitoring)
    await monitoring.roll_out(2, seed=5)

    assert (await ask(monitoring, episode, rule="evidently"))["changed"] == {"rule": "evidently"}
    found = await ask(monitoring, episode, version=2)
    assert found["changed"] == {"version": 2}
    assert [one["score"] for one in found["windows"]] != [one["score"] for one in found["happened"]["windows"]]


async def test_a_version_that_was_trained_and_never_served_has_a_reference_too(monitoring):
    episode = await drifted(monitoring)
    # Trained on what the live rows look like now.
    profile = await monitoring.artifacts.put(profile_of(FEATURES, values(1000, 8, 0.8)).to_json())
    example = json.loads((ROOT / "tests/contracts/examples/model-trained.json").read_text())["body"]
    trained = ModelTrained.model_validate(example | {"model": monitoring.model, "run": "r-5", "profile": profile})
    await monitoring.wire.say(trained)
    await monitoring.wire.say(
        PromotionRejected(model=monitoring.model, version=5, run="r-5", reason="the gate does not hold")
    )

    async def found() -> dict | None:
        answer = await monitoring.http.get(f"/episodes/{episode}/whatif", params={"version": 5})
        return answer.json() if answer.status_code == 200 else None

    moved = [one["moved"] for one in (await until(found, "the reference of version 5"))["windows"]]
    assert moved == [True, True, True, False, False, False, True, True]


async def test_nothing_is_changed_by_asking(monitoring):
    episode = await drifted(monitoring)

    async def everything() -> object:
        digest = (await monitoring.http.get("/log/digest")).json()
        last = await monitoring.wire.js.stream_info(LOG)
        return digest, last.state.last_seq, (await monitoring.http.get(f"/models/{monitoring.model}/windows")).json()

    before = await everything()
    await ask(monitoring, episode, threshold=1.5)
    await ask(monitoring, episode, threshold=0.01)
    assert await everything() == before


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"window_rows": 50, "min_rows": 60}, "no window could be judged"),
        ({"rule": "evidently", "threshold": 0.3}, "thresholds of its own"),
        ({"version": 7}, "no reference profile"),
    ],
)
async def test_what_cannot_be_asked_is_refused_in_words(monitoring, asked, reason):
    episode = await drifted(monitoring)

    answer = await monitoring.http.get(f"/episodes/{episode}/whatif", params=asked)
    assert answer.status_code in (404, 422)
    assert reason in answer.text


def test_a_threshold_is_that_of_the_kind():
    rule = Monitor(missing=0.05)

    assert asking.changed(rule, "missing", "x", {"threshold": 0.3}).missing == 0.3
    assert asking.changed(rule, "drift", "x", {"threshold": 0.3}).distance == 0.3
    with pytest.raises(Invalid, match="window"):
        asking.changed(rule, "drift", "x", {"window_rows": 100})

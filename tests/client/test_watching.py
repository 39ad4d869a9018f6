"""Episodes and reports as an operator asks for them, against a running monitoring."""

import json
from collections.abc import AsyncIterator

import pytest

from meguri_chassis.artifacts import Artifacts
from meguri_contracts.events import EpisodeAcknowledged, EpisodeResolved, NoticeFailed
from meguri_monitoring.app import build
from meguri_monitoring.settings import Settings
from tests.client.conftest import meguri, reachable
from tests.conftest import until
from tests.monitoring.answers import answer, label, quality
from tests.monitoring.conftest import Monitoring
from tests.monitoring.episodes_of import TRACE, opening
from tests.monitoring.sinks import spec
from tests.monitoring.state import settled
from tests.services import name


@pytest.fixture
async def model(own, broker, tmp_path, monkeypatch) -> AsyncIterator[str]:
    """A model with an episode that is over and one that is open, at a monitoring that the commands find."""
    model = name("m")
    settings = Settings(nats_url=broker.url, database_url=f"sqlite:///{tmp_path}/monitoring.db", var=tmp_path)
    async with reachable(build(settings), monkeypatch.setenv) as http:
        await own.say(opening(model, "e-1"))
        await own.say(EpisodeResolved(model=model, version=3, episode="e-1", reason="version 4 [serves]"))
        await own.say(opening(model, "e-2", "volume", subject="", producer="", share=0))
        last = await own.say(opening(name("other"), "e-3", "measure"))
        await http.get("/episodes", headers={"Meguri-After": str(last)})
        yield model


async def test_episodes_are_listed(model):
    listed = await meguri("episodes", model)
    still_open = await meguri("episodes", model, "--open", "--json")
    everything = await meguri("episodes", "--json")

    first, second = (line.split() for line in listed.out.splitlines()[1:3])
    assert (first[:4], first[-1]) == (["e-2", model, "3", "volume"], "open")
    assert second[:7] == ["e-1", model, "3", "drift", "brightness", "camera-b", "(94%)"]
    assert "e-1 ended" in listed.out
    assert "version 4 [serves]" in listed.out
    assert [one["episode"] for one in still_open.data] == ["e-2"]
    assert len(everything.data) == 3


async def test_episodes_say_whom_nobody_could_tell_of_them(own, model):
    failed = NoticeFailed(model=model, episode="e-2", moment="opened", target="json://[host]", error="no [answer]")
    await own.say(failed)

    line = "json://[host] was not told that e-2 was opened: no [answer]; `meguri dead` has the message"

    async def told() -> bool:
        return line in (await meguri("episodes", model)).out

    await until(told)


async def test_that_somebody_has_seen_an_episode_is_said(own, model):
    seen = await meguri("ack", "e-2", "--note", "a [test] of load")
    over = await meguri("ack", "e-1")
    unknown = await meguri("ack", "e/9")

    assert seen.out == f"episode e-2 of {model} was seen by ada: a [test] of load\n"
    (said,) = await own.said(EpisodeAcknowledged, model)
    assert (said.actor, said.note) == ("ada", "a [test] of load")
    assert (over.code, unknown.code) == (1, 1)
    assert "e-1" in over.error
    assert len((over.error + unknown.error).splitlines()) == 2


async def test_a_report_of_an_episode_is_told_in_short_and_written_whole(model, tmp_path):
    told = await meguri("report", "e-1")
    page, data = tmp_path / "e-1.html", tmp_path / "e-1.json"
    written = await meguri("report", "e-1", "--output", page, "--language", "ja")
    await meguri("report", "e-1", "--output", data, "--json")

    assert f"The values of “brightness” that {model} receives" in told.out
    assert "94% of it comes from “camera-b”." in told.out
    assert "version 4 [serves]" in told.out
    assert written.out == f"written to {page}\n"
    assert "解消済み" in page.read_text()
    assert json.loads(data.read_text()) == (await meguri("report", "e-1", "--json")).data


async def test_a_report_of_an_episode_leads_to_an_example_that_can_be_looked_at(model):
    of_predictions, of_an_evaluator = await meguri("report", "e-1"), await meguri("report", "e-3")

    assert "an example: `meguri why p-1`" in of_predictions.out
    assert f"an example: `meguri trace {TRACE}`" in of_an_evaluator.out


async def test_a_report_of_a_model_is_told_and_written(model, tmp_path):
    page = tmp_path / "week.html"
    told = await meguri("report", model, "--days", 2)
    await meguri("report", model, "--output", page)

    assert f"{model} had 2 episodes in these 2 days; 1 still open." in told.out
    assert "Report of 7 days" in page.read_text()


async def test_what_cannot_be_reported_is_said_in_a_line(model, tmp_path):
    unknown = await meguri("report", "nothing")
    odd = await meguri("report", "no model/at all")
    nowhere = await meguri("report", "e-1", "--output", tmp_path / "no/folder")
    language = await meguri("report", "e-1", "--language", "tlh")

    assert unknown.error == (
        "meguri: there is neither an episode nor a watched model 'nothing'; `meguri episodes` and `meguri models` list them\n"
    )
    assert "neither an episode" in odd.error
    assert "No such file or directory" in nowhere.error
    assert "'tlh' is not one of en, ja" in language.error
    assert {one.code for one in (unknown, odd, nowhere, language)} == {1}


async def test_the_quality_of_each_version_is_shown_with_its_coverage(own, broker, tmp_path, monkeypatch):
    settings = Settings(nats_url=broker.url, database_url=f"sqlite:///{tmp_path}/monitoring.db", var=tmp_path)
    async with reachable(build(settings), monkeypatch.setenv) as http:
        monitoring = Monitoring(http, own, Artifacts(settings.artifacts_url), tmp_path, name("m"))
        await monitoring.watch()
        await settled(monitoring, await monitoring.roll_out(1, canary=2, shadow=3))
        ids = await answer(monitoring, 1, "champion", [7, 7, 8, 7])
        await answer(monitoring, 3, "shadow", [7, 8, 8, 7], ids=ids)
        await answer(monitoring, 2, "canary", [7])
        await label(monitoring, dict.fromkeys(ids[:2], 7) | {"of nobody": 7})

        async def counted() -> bool:
            found = await quality(monitoring)
            return [one["labels"] for one in (*found["versions"], *found["shadows"])] == [2, 0, 2]

        await until(counted, "the labels")
        told = await meguri("quality", monitoring.model)
        sliced = await meguri("quality", monitoring.model, "--slices")
        data = await meguri("quality", monitoring.model, "--json")
    lines = [line.split() for line in told.out.splitlines()]

    assert lines[1][:5] == ["version", "answers", "labels", "coverage", "accuracy"]
    assert [line[:5] for line in lines[2:4]] == [["1", "4", "2", "50.0%", "1"], ["2", "1", "0", "0.0%"]]
    assert lines[4][:6] == ["3", "(shadow)", "4", "2", "50.0%", "0.5"]
    assert told.out.endswith("labels about no answer that is counted here: 1\n")
    assert ["producer", "camera-a", "4", "2", "50.0%", "1"] in [line.split()[:6] for line in sliced.out.splitlines()]
    assert data.data["versions"][0]["coverage"] == 0.5


async def test_a_model_without_an_episode_is_told_from_one_that_is_not_known(own, model):
    quiet, typo = name("quiet"), model[:-1] + "_"
    await own.apply(spec(quiet))

    async def known() -> bool:
        return (await meguri("episodes", quiet)).out == "no episode yet\n"

    await until(known)
    for words in (("episodes", typo), ("report", typo), ("evaluate", typo, "person_counter")):
        unknown = await meguri(*words)
        assert (unknown.code, unknown.out) == (1, ""), words
        assert f"{typo!r}; near are: {model}" in unknown.error
    assert (await meguri("episodes", "nothing", "--json")).error == (
        "meguri: no model 'nothing'; `meguri models` lists those that are known\n"
    )


async def test_an_episode_that_is_not_there_is_said_with_what_may_have_been_meant(model):
    for command in ("ack", "whatif"):
        asked = [await meguri(command, what) for what in ("episode-1", model)]

        assert {one.code for one in asked} == {1}
        assert [one.error.partition("; ")[2] for one in asked] == [
            "`meguri episodes` lists those that there are\n",
            f"{model!r} is a model: `meguri episodes {model}` lists its episodes\n",
        ]
    evaluated = await meguri("evaluate", model, "person_counter")
    assert (evaluated.code, evaluated.error) == (
        1,
        f"meguri: evaluator 'person_counter' has evaluated nothing of {model!r} yet; the spec of {model} asks for: none\n",
    )


async def test_who_could_not_be_told_is_said_when_the_spec_is_applied(registry, model, tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_THERE", "json://127.0.0.1:9/hook")
    urls = ("${NOTIFY_THERE}", "mailto://ops:${NOTIFY_NOWHERE}@mail.example.com", "slack://hunter2")
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(spec(name("m"), *urls).model_dump_json())
    bad.write_text(spec(name("m"), "mailtoo://ops:hunter2@mail.example.com").model_dump_json())

    applied, refused = await meguri("apply", good), await meguri("apply", bad)

    assert (applied.code, applied.out) == (0, "said meguri.spec-applied.v1 version 1\n")
    first, second = applied.error.splitlines()
    assert first == (
        "meguri: applied, but mailto://mail.example.com:25 cannot be told of episodes: "
        "the variable NOTIFY_NOWHERE is not set where monitoring runs"
    )
    assert second.startswith("meguri: applied, but notify.urls[2] cannot be told of episodes: this is no URL")
    assert (refused.code, refused.out) == (1, "")
    assert refused.error.startswith("meguri: notify.urls[0]: messages cannot be sent by what stands before ://")
    assert "hunter2" not in applied.error + refused.error


async def test_a_spec_is_applied_when_nobody_can_say_whether_its_messages_could_be_sent(
    registry, tmp_path, monkeypatch
):
    monkeypatch.setenv("MEGURI_MONITORING_URL", "http://127.0.0.1:9")
    file = tmp_path / "spec.json"
    file.write_text(spec(name("m"), "json://127.0.0.1:9").model_dump_json())

    applied = await meguri("apply", file)

    assert applied.code == 0
    assert "whether anybody can be told of episodes is not known: monitoring does not answer" in applied.error

"""Is anything stuck, are the tables right, and what was known when: commands against a running service."""

from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import sqlalchemy
from nats.js.api import ConsumerConfig

from meguri.client import Meguri
from meguri_contracts.topology import CONSUMERS, LOG
from meguri_inference.app import build as inference
from meguri_inference.settings import Settings as InferenceSettings
from tests.client.conftest import apply, meguri, reachable, train
from tests.conftest import Broker, until


def spoil(tmp_path: Path, *statements: str) -> None:
    """Change a table by hand, as nobody should."""
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/registry.db")
    with engine.begin() as connection:
        for statement in statements or ("UPDATE registry_spec SET actor = 'somebody else'",):
            connection.exec_driver_sql(statement)
    engine.dispose()


# --- status -----------------------------------------------------------------------------------------------------------


def nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for service in ("INGEST", "TRAINING", "REGISTRY", "INFERENCE", "MONITORING"):
        monkeypatch.setenv(f"MEGURI_{service}_URL", "http://127.0.0.1:1")


async def test_status_says_what_each_consumer_has_to_do_and_who_does_not_answer(own, monkeypatch):
    nobody_there(monkeypatch)
    await own.publish("training-started", "m", b"{}")
    found = await meguri("status", "--json")
    fits = next(one for one in found.data["consumers"] if one["consumer"] == "training-fits")

    assert found.code == 1
    assert {one["consumer"] for one in found.data["consumers"]} == {consumer.name for consumer in CONSUMERS}
    assert (fits["waiting"], fits["in_hand"], fits["again"]) == (1, 0, 0)
    assert all(not one["ready"] and one["log"] is None for one in found.data["services"])


async def test_status_says_what_is_parked_and_how_far_behind_a_service_is(own, registry):
    last = await own.publish("model-trained", "m", b"no JSON")

    async def parked() -> dict:
        log = (await registry.get("/log")).json()
        return log if log["parked"] and log["position"] == log["last"] else {}

    await until(parked, "the dead letter")
    found = await meguri("status", "--json")
    shown = await meguri("status")
    one = next(one for one in found.data["services"] if one["service"] == "registry")

    assert one["ready"]
    assert [letter["sequence"] for letter in one["log"]["parked"]] == [last]
    assert "registry    ready, at 2 of the log, 1 parked" in shown.out
    assert "see `meguri dead`" in shown.out
    assert "registry-judge" in shown.out


async def test_status_names_a_consumer_that_is_missing(own, monkeypatch):
    nobody_there(monkeypatch)
    await own.js.delete_consumer(LOG, "training-fits")
    await own.js.add_consumer(LOG, ConsumerConfig(durable_name="someone-else"))
    found = (await meguri("status", "--json")).data

    assert [one["consumer"] for one in found["consumers"] if one["missing"]] == ["training-fits"]
    assert "missing" in (await meguri("status")).out


async def test_status_says_when_the_broker_does_not_answer(monkeypatch):
    nobody_there(monkeypatch)
    monkeypatch.setenv("MEGURI_NATS_URL", "nats://127.0.0.1:1")
    shown = await meguri("status")

    assert shown.code == 1
    assert "the broker at nats://127.0.0.1:1 does not answer" in shown.out


@pytest.mark.parametrize(
    "words", [("backup", "new"), ("publish", "digits", "--uri", "file:///x"), ("dead",), ("events",)]
)
async def test_without_a_broker_a_command_ends_with_one_line(monkeypatch, tmp_path, words):
    monkeypatch.chdir(tmp_path)
    nobody_there(monkeypatch)
    monkeypatch.setenv("MEGURI_NATS_URL", "nats://127.0.0.1:1")
    done = await meguri(*words)

    assert done.code == 1
    assert done.error.startswith("meguri: ")
    assert done.error.count("\n") <= 1


# --- replay -----------------------------------------------------------------------------------------------------------


async def test_a_replay_of_tables_that_are_right_changes_nothing(own, registry):
    await apply(registry, "m")
    await train(own, registry, "m", "run-1", 0.9)
    before = (await registry.get("/log/digest")).json()
    checked = await meguri("replay", "registry", "--check")
    done = (await meguri("replay", "registry", "--json")).data

    assert checked.code == 0
    assert "the tables are what the log says" in checked.out
    assert (done["before"], done["after"], done["differ"]) == (before["digest"], before["digest"], [])
    assert (await registry.get("/log/digest")).json() == before


async def test_a_check_says_what_an_older_release_did_not_keep(own, registry, tmp_path):
    await apply(registry, "m")
    spoil(tmp_path, "DELETE FROM log_journal WHERE kind = 'spec-applied'", "DELETE FROM registry_spec")
    checked = await meguri("replay", "registry", "--check")

    assert checked.code == 1
    assert "made by an older release, which did not keep 1 spec-applied: nothing is lost" in " ".join(
        checked.out.split()
    )
    assert (await meguri("replay", "registry")).code == 0
    assert (await meguri("replay", "registry", "--check")).code == 0


async def test_a_check_finds_what_was_spoilt_and_a_replay_puts_it_right(own, registry, tmp_path):
    await apply(registry, "m")
    right = (await registry.get("/log/digest")).json()["digest"]
    spoil(tmp_path)
    checked = await meguri("replay", "registry", "--check")
    spoilt = (await registry.get("/log/digest")).json()["digest"]
    done = await meguri("replay", "registry")

    assert checked.code == 1
    assert "not what the log says: registry_spec; `meguri replay registry` puts it right" in checked.out
    assert "of an upgraded service that is to be expected once" in " ".join(checked.out.split())
    assert spoilt != right
    assert done.code == 0
    assert "put right: registry_spec" in done.out
    assert (await registry.get("/log/digest")).json()["digest"] == right
    assert (await meguri("replay", "registry", "--check")).code == 0


async def test_the_digest_at_a_sequence_is_the_one_that_the_tables_had(own, registry):
    await apply(registry, "m")
    then = (await registry.get("/log/digest")).json()
    await apply(registry, "n")
    found = await meguri("replay", "registry", "--until", then["position"], "--json")
    shown = await meguri("replay", "registry", "--until", then["position"], "--check")

    assert (found.code, found.data["after"], found.data["kept"]) == (0, then["digest"], False)
    assert (shown.code, then["digest"] in shown.out) == (0, True)
    assert (await registry.get("/log")).json()["position"] == then["position"] + 1


async def test_a_service_without_tables_cannot_be_replayed(own, broker: Broker, tmp_path, monkeypatch):
    service = inference(InferenceSettings(nats_url=broker.url, var=tmp_path))
    async with reachable(service, monkeypatch.setenv):
        ran = await meguri("replay", "inference")

    assert (ran.code, ran.out) == (1, "")
    assert ran.error == "meguri: inference keeps no tables: there is nothing to make again\n"


@pytest.mark.parametrize(
    ("service", "reason"),
    [("registry", "registry does not answer at "), ("nobody", "no service 'nobody'; known are: ")],
)
async def test_a_service_that_does_not_answer_or_exist_is_an_error_of_one_line(monkeypatch, service, reason):
    nobody_there(monkeypatch)
    ran = await meguri("replay", service)

    assert (ran.code, ran.out, ran.error.count("\n")) == (1, "", 1)
    assert reason in ran.error


# --- what the registry knew -------------------------------------------------------------------------------------------


async def test_what_the_registry_knew_at_a_time_is_told(own, registry):
    await apply(registry, "m")
    await train(own, registry, "m", "run-1", 0.9)
    first = datetime.now(UTC).isoformat()
    await apply(registry, "n")
    await apply(registry, "m", gate="accuracy >= 0.85")
    await train(own, registry, "m", "run-2", 0.5)
    await train(own, registry, "m", "run-3", 0.95)
    then = (await meguri("registry", "at", first, "--json")).data["models"]
    now = (await meguri("registry", "at", "0s", "--json")).data["models"]
    one = (await meguri("registry", "at", "0s", "n", "--json")).data["models"]
    shown = await meguri("registry", "at", "0s")

    assert then == [
        {
            "model": "m",
            "spec_version": 1,
            "champion": 1,
            "plan": [{"version": 1, "role": "champion", "share": 1}],
            "past": [],
            "versions": [{"version": 1, "run": "run-1", "verdict": "promoted"}],
        }
    ]
    assert [(model["model"], model["spec_version"], model["champion"], model["past"]) for model in now] == [
        ("m", 2, 3, [1]),
        ("n", 1, None, []),
    ]
    assert [version["verdict"] for version in now[0]["versions"]] == ["promoted", "rejected", "promoted"]
    assert one == now[1:]
    assert "m: spec version 2, champion 3, before that 1" in shown.out
    assert "no model was known" in (await meguri("registry", "at", "1000d")).out


@pytest.mark.parametrize("event", ["a?b", "a#b", "50%25", "a/../b", "a b"])
def test_a_receipt_is_asked_for_by_the_whole_id_whatever_is_in_it(event):
    with Meguri() as client:
        client._http = httpx.Client(
            transport=httpx.MockTransport(lambda asked: httpx.Response(200, json=asked.url.path))
        )
        assert client.receipt(event) == f"/receipts/{event}"

"""Dead letters are listed and sent back, as they were or put right, each once."""

import json
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
import yaml

from meguri import redriving
from meguri_chassis.dead_letters import DeadLetters, Undeliverable
from meguri_chassis.log import EventLog, Message
from meguri_contracts.events import MessageRedriven, ModelTrained, RolloutChanged
from meguri_contracts.topology import DEAD, DEAD_PREFIX, FORMER_TRACE, LOG, PREDICTIONS
from tests.client.conftest import Ran, meguri
from tests.conftest import until
from tests.registry.registering import model_trained, spec
from tests.services import Wire

CONSUMER = "registry-judge"
TRACE = "1" * 32


async def apply(registry: httpx.AsyncClient, model: str = "m") -> None:
    assert (await registry.post("/specs", content=yaml.safe_dump(spec(model)))).is_success


async def parked(own: Wire, sequence: int) -> str:
    """Wait until the message at a sequence is a dead letter that everybody knows; returns its id."""
    await until(lambda: own.stored(DEAD, f"{DEAD_PREFIX}.{CONSUMER}.{LOG}.{sequence}"), "the dead letter")
    return f"{CONSUMER}/{sequence}"


async def trained(own: Wire, **headers: str) -> str:
    """Say that a model was trained which has no spec, so that nobody can judge it; returns the id of the dead letter."""
    body = model_trained("m", "run-1", 0.9, None, 1).model_dump_json().encode()
    return await parked(own, await own.publish("model-trained", "m", body, headers or None))


async def listed(*words: object) -> list[dict]:
    return (await meguri("dead", "--json", *words)).data


async def champion(registry: httpx.AsyncClient) -> int:
    """Wait for a champion and return its version."""

    async def found() -> int | None:
        return (await registry.get("/models/m")).json().get("champion")

    return await until(found, "a champion")


async def returned(own: Wire) -> Message:
    """The last message that was sent back to the log."""
    return (await own.heard(ModelTrained, "m"))[-1]


async def test_a_dead_letter_is_listed_with_all_that_an_operator_needs(own, registry):
    event = uuid4().hex
    traceparent = f"00-{TRACE}-{'2' * 16}-01"
    id_ = await trained(own, **{"ce-id": event, "ce-source": "werk%204", "traceparent": traceparent})
    (one,) = await listed()
    shown = await meguri("dead")

    assert (one["id"], one["consumer"], one["service"], one["deliveries"]) == (id_, CONSUMER, "registry", 1)
    assert (one["event"], one["producer"], one["trace"]) == (event, "werk 4", TRACE)
    assert one["reason"] == "NotFound: model 'm' has no spec: apply one with `meguri apply`"
    assert one["subject"] == "meguri.events.model-trained.m"
    assert one["headers"]["ce-id"] == event
    assert json.loads(one["body"])["run"] == "run-1"
    assert id_ in shown.out
    assert "has no spec" in shown.out
    assert await listed("--consumer", "training-fits") == []


async def test_a_letter_that_is_sent_back_is_handled_under_its_id_and_no_longer_listed(own, registry):
    id_ = await trained(own, **{"ce-id": "the-id", "ce-source": "trainer", "ce-journeyid": "j", "ce-hops": "3"})
    await apply(registry)
    done = await meguri("redrive", id_)

    assert (done.code, done.out) == (0, f"sent back {id_} as event the-id\n")
    assert await champion(registry) == 1
    first, second = await own.heard(ModelTrained, "m")
    assert (second.id, second.source, second.journey, second.hops) == ("the-id", "trainer", "j", 3)
    assert second.body == first.body
    assert await listed() == []
    (said,) = await own.heard(MessageRedriven, CONSUMER)
    assert (said.event.event, said.event.edited, said.event.actor) == ("the-id", False, "ada")
    assert (said.headers["ce-causeid"], said.journey) == ("the-id", "j")
    await until(lambda: none_parked(registry), "the service to know")


async def none_parked(registry: httpx.AsyncClient) -> bool:
    return (await registry.get("/log")).json()["parked"] == []


async def test_a_letter_is_sent_back_once(own, registry):
    id_ = await trained(own)
    await apply(registry)
    await meguri("redrive", id_)
    again = await meguri("redrive", id_)

    assert (again.code, again.out) == (1, "")
    assert again.error.startswith(f"meguri: {id_} was sent back before, by ada at ")
    assert len(await own.heard(ModelTrained, "m")) == 2
    assert len(await own.heard(MessageRedriven, CONSUMER)) == 1
    (one,) = await listed("--all")
    assert (one["id"], one["redriven_by"], one["reason"][:8]) == (id_, "ada", "NotFound")


@pytest.mark.parametrize("id_", [f"{CONSUMER}/7", f"{CONSUMER}/PREDICTIONS/7"])
async def test_a_letter_that_does_not_exist_is_an_error_of_one_line(own, id_):
    ran = await meguri("redrive", id_)

    assert (ran.code, ran.error) == (1, f"meguri: there is no dead letter {id_}: `meguri dead` lists them\n")


@pytest.mark.parametrize("id_", ["7", "a b/7", "registry-judge/x", "registry-judge/*/7", "registry-judge/>", "/", ""])
async def test_what_is_no_id_of_a_letter_is_an_error_of_one_line(own, id_):
    ran = await meguri("redrive", id_)

    assert (ran.code, ran.error) == (1, f"meguri: {id_!r} is no id of a dead letter: `meguri dead` lists them\n")


async def test_all_letters_are_sent_back_at_once(own, registry):
    body = model_trained("m", "run-1", 0.9, None, 1).model_dump_json().encode()
    for _ in range(3):
        await parked(own, await own.publish("model-trained", "m", body))
    nothing = await meguri("redrive", "--all", "--consumer", "training-fits")
    done = await meguri("redrive", "--all", "--json")

    assert nothing.out == "nothing was sent back\n"
    assert len(done.data) == 3
    assert len(await own.heard(ModelTrained, "m")) == 6


@pytest.mark.parametrize("step", ["_mark", "_say"])
async def test_what_was_interrupted_is_done_again_without_doing_anything_twice(own, registry, monkeypatch, step):
    id_ = await trained(own)
    await apply(registry)

    async def interrupted(*_: object) -> None:
        raise OSError("the terminal was closed")

    with monkeypatch.context() as during:
        during.setattr(redriving, step, interrupted)
        assert (await meguri("redrive", id_)).code == 1
    assert (await meguri("redrive", id_)).code == 0
    assert (await meguri("redrive", id_)).code == 1

    assert len(await own.heard(ModelTrained, "m")) == 2
    assert len(await own.heard(MessageRedriven, CONSUMER)) == 1
    await until(lambda: none_parked(registry), "the service to know")


async def test_an_event_without_attributes_keeps_those_that_the_log_filled_in(own, registry):
    id_ = await trained(own)
    await apply(registry)
    await meguri("redrive", id_)
    first, second = await own.heard(ModelTrained, "m")

    assert (second.id, second.source, second.journey) == (first.id, first.source, first.journey)
    assert second.id == f"meguri-{first.sequence}"
    assert second.time == first.time


async def test_a_structured_event_keeps_its_attributes(own, registry):
    data = json.loads(model_trained("m", "run-1", 0.9, None, 1).model_dump_json())
    envelope = {
        "specversion": "1.0",
        "id": "böse",
        "source": "trainer 4",
        "type": ModelTrained.type,
        "time": "2026-01-01T00:00:00Z",
        "journeyid": "j",
        "data": data,
    }
    id_ = await parked(own, await own.publish("model-trained", "m", json.dumps(envelope).encode()))
    await apply(registry)
    await meguri("redrive", id_)
    first, second = await own.heard(ModelTrained, "m")

    assert await champion(registry) == 1
    for name in ("id", "source", "time", "journey", "event"):
        assert getattr(second, name) == getattr(first, name)
    assert second.id == "böse"


@pytest.mark.parametrize(
    ("name", "value"), [("ce-source", "Münze"), ("ce-id", "Jürgen"), ("Status", "503"), ("x-note", "ü")]
)
async def test_a_letter_with_odd_headers_is_sent_back(own, registry, name, value):
    id_ = await trained(own, **{name: value})
    await apply(registry)
    done = await meguri("redrive", id_)

    assert (done.code, done.error) == (0, "")
    first, second = (await meguri("events", "--type", "model-trained", "--json")).lines
    assert (second["id"], second["source"]) == (first["id"], first["source"])
    assert value in (first["id"], first["source"], "503", "ü")
    assert await champion(registry) == 1


async def test_a_letter_is_sent_back_in_a_trace_of_its_own_that_names_the_old_one(own, registry):
    traceparent = f"00-{TRACE}-{'2' * 16}-01"
    id_ = await trained(own, traceparent=traceparent, tracestate="a=b")
    await meguri("redrive", id_)
    headers = (await returned(own)).headers

    assert headers[FORMER_TRACE] == traceparent
    assert TRACE not in headers["traceparent"]
    assert "tracestate" not in headers


async def test_nobody_can_send_a_message_whose_letter_looks_as_if_it_had_been_sent_back(own, registry):
    id_ = await trained(own, **{"meguri-redriven": "2026-01-01T00:00:00+00:00", "meguri-parked": "never"})

    assert [one["id"] for one in await listed()] == [id_]
    assert (await meguri("redrive", id_)).code == 0


async def test_a_body_that_the_letter_holds_only_in_part_is_sent_back_whole(own, registry):
    body = b'{"padding": "' + b"x" * 5_000_000 + b'"}'
    id_ = await parked(own, await own.publish("model-trained", "m", body))
    await meguri("redrive", id_)

    assert (await returned(own)).body == body


# --- put right --------------------------------------------------------------------------------------------------------


async def with_editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, *words: object) -> Ran:
    editor = tmp_path / "an editor"
    editor.write_text(f"#!/bin/sh\n{script}\n")
    editor.chmod(0o755)
    monkeypatch.setenv("EDITOR", f"'{editor}' --wait")
    monkeypatch.delenv("VISUAL", raising=False)
    return await meguri("redrive", *words, "--edit")


async def test_an_event_is_put_right_in_an_editor_and_is_another_event_caused_by_the_old(
    own, registry, tmp_path, monkeypatch
):
    id_ = await trained(own, **{"ce-id": "old", "ce-source": "trainer"})
    await apply(registry)
    done = await with_editor(tmp_path, monkeypatch, """sed -i 's/"accuracy": 0.9/"accuracy": 0.95/' "$2" """, id_)
    event = await returned(own)

    assert done.code == 0, done.error
    assert await champion(registry) == 1
    assert event.event.candidate.metrics == {"accuracy": 0.95}
    assert event.id != "old"
    assert (event.headers["ce-causeid"], event.journey, event.source) == ("old", "old", "trainer")
    (said,) = await own.said(MessageRedriven, CONSUMER)
    assert (said.event, said.sent, said.edited) == ("old", event.id, True)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("true", "nothing was changed, so nothing was sent"),
        (': > "$2"', "nothing was changed, so nothing was sent"),
        ('echo "{" > "$2"', "the new body is not JSON, so nothing was sent: "),
        ("exit 1", "an editor failed, nothing was sent"),
    ],
)
async def test_what_comes_out_of_the_editor_unchanged_or_empty_or_broken_is_not_sent(
    own, registry, tmp_path, monkeypatch, script, reason
):
    id_ = await trained(own)
    done = await with_editor(tmp_path, monkeypatch, script, id_)

    assert done.code == 1
    assert reason in done.error
    assert len(await own.heard(ModelTrained, "m")) == 1
    assert len(await listed()) == 1


async def test_a_body_that_cannot_be_read_is_put_right_from_a_file(own, registry, tmp_path):
    id_ = await parked(own, await own.publish("model-trained", "m", b"\xff not JSON", {"ce-id": "old"}))
    await apply(registry)
    good = tmp_path / "good.json"
    good.write_text(model_trained("m", "run-1", 0.9, None, 1).model_dump_json(indent=2))
    (one,) = await listed()
    done = await meguri("redrive", id_, "--body", good)

    assert one["body_base64"] == "/yBub3QgSlNPTg=="
    assert done.code == 0
    assert await champion(registry) == 1
    (rollout,) = await own.heard(RolloutChanged, "m")
    assert rollout.journey == "old"
    assert (await own.heard(ModelTrained, "m"))[-1].id == "old", "what nobody could read keeps its id"
    (said,) = await own.said(MessageRedriven, CONSUMER)
    assert (said.event, said.sent, said.edited) == ("old", "", True)


async def test_an_edit_that_was_interrupted_stands_as_it_was_first_sent(own, registry, tmp_path, monkeypatch):
    id_ = await trained(own)
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    one.write_text(model_trained("m", "run-1", 0.91, None, 1).model_dump_json())
    other.write_text(model_trained("m", "run-1", 0.92, None, 1).model_dump_json())

    async def interrupted(*_: object) -> None:
        raise OSError("the terminal was closed")

    with monkeypatch.context() as during:
        during.setattr(redriving, "_mark", interrupted)
        await meguri("redrive", id_, "--body", one)
    await meguri("redrive", id_, "--body", other)

    (_, sent) = await own.heard(ModelTrained, "m")
    assert sent.event.candidate.metrics == {"accuracy": 0.91}
    (said,) = await own.said(MessageRedriven, CONSUMER)
    assert (said.sent, said.edited) == (sent.id, True)


# --- other streams ----------------------------------------------------------------------------------------------------


async def test_a_letter_of_another_stream_is_sent_back_there_as_it_was(own):
    ack = await own.js.publish("meguri.predictions.m", b"\x00rows", headers={"Nats-Msg-Id": "batch-1", "x-a": "b"})
    js = lambda: own.js  # noqa: E731 - what the chassis asks for
    letters = DeadLetters(js, EventLog(js, "meguri/monitoring"))
    message = Undeliverable(PREDICTIONS, ack.seq, "meguri.predictions.m", {"x-a": "b"}, b"\x00rows", 1)
    await letters.park("monitoring-predictions", message, "too odd")
    (one,) = await listed()
    edited = await meguri("redrive", one["id"], "--edit")
    done = await meguri("redrive", one["id"])
    sent = await own.js.get_msg(PREDICTIONS, ack.seq + 1)

    assert one["id"] == f"monitoring-predictions/PREDICTIONS/{ack.seq}"
    assert edited.error == f"meguri: {one['id']} is no event: it can only be sent back as it was\n"
    assert done.code == 0
    assert (sent.subject, sent.data, sent.headers["x-a"]) == ("meguri.predictions.m", b"\x00rows", "b")
    assert not any(name.startswith("ce-") for name in sent.headers)
    assert await listed() == []


async def test_a_message_that_its_stream_no_longer_has_is_sent_back_from_the_letter_unless_that_was_cut(own):
    js = lambda: own.js  # noqa: E731 - what the chassis asks for
    letters = DeadLetters(js, EventLog(js, "meguri/monitoring"))
    for sequence, body in ((1, b"rows"), (2, b"x" * 5_000_000)):
        gone = Undeliverable(PREDICTIONS, sequence, "meguri.predictions.m", {"x-a": "b"}, body, 1)
        await letters.park("monitoring-predictions", gone, "too odd")
    done = await meguri("redrive", "--all", "--json")

    assert [one["sequence"] for one in done.data] == [1]
    assert done.code == 1
    assert (
        "PREDICTIONS/2 has the first 4194304 of 5000000 bytes, and PREDICTIONS no longer has the message" in done.error
    )
    assert (await own.js.get_msg(PREDICTIONS, 1)).data == b"rows"


async def test_a_letter_from_before_the_log_was_put_back_does_not_send_back_what_stands_in_its_place_now(own):
    js = lambda: own.js  # noqa: E731 - what the chassis asks for
    letters = DeadLetters(js, EventLog(js, "meguri/monitoring"))
    place = await own.publish("model-trained", "m", b"somebody else's", {"ce-id": "another"})
    parked = Undeliverable(LOG, place, "meguri.events.model-trained.m", {"ce-id": "mine"}, b"broken", 1)
    await letters.park("monitoring-rollouts", parked, "cannot be read")
    done = await meguri("redrive", "--all", "--json")

    sent = await own.js.get_last_msg(LOG, "meguri.events.model-trained.m")
    assert [(one["event"], one["sent"]) for one in done.data] == [("mine", "")]
    assert (sent.data, sent.headers["ce-id"]) == (b"broken", "mine")


async def test_a_file_that_cannot_be_read_is_named_instead_of_the_broker(own, registry, tmp_path):
    await apply(registry)
    id_ = await parked(own, await own.publish("model-trained", "m", b"{broken"))
    done = await meguri("redrive", id_, "--body", str(tmp_path / "nowhere.json"))

    assert done.code == 1
    assert "nowhere.json" in done.error
    assert "broker" not in done.error

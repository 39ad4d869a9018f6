"""Every event as it stands on the wire: an example of each type is kept here, and must be readable for ever."""

import json
import re
from datetime import datetime
from typing import Any

import pytest
from pydantic import ValidationError

from meguri_chassis.log import Message, ce_headers, ce_value
from meguri_contracts.errors import Malformed
from meguri_contracts.events import BY_KIND, BY_TYPE, EVENTS, DataArrived, ModelLoaded, TrainingRequested
from meguri_contracts.names import derived_id
from tests.contracts.kept import EXAMPLES, NOW, example

of_every_event = pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.kind())


def test_every_event_has_one_example_and_every_example_an_event():
    assert {path.stem for path in EXAMPLES.iterdir()} == {kind.kind() for kind in EVENTS}


@of_every_event
def test_an_example_is_read_as_its_event(kind):
    event = example(kind).binary.event

    assert type(event) is kind
    assert example(kind).subject == f"meguri.events.{kind.kind()}.{event.key}"


@of_every_event
def test_an_example_says_all_that_its_event_says(kind):
    event, body = example(kind).binary.event, example(kind).body

    assert event.model_dump(mode="json", exclude_unset=True) == body


@of_every_event
def test_an_event_survives_a_round_trip(kind):
    event = example(kind).binary.event

    assert kind.model_validate_json(event.model_dump_json()) == event


@of_every_event
def test_the_three_forms_on_the_wire_give_the_same_event(kind):
    of = example(kind)

    assert of.binary.event == of.structured.event == of.bare.event


@of_every_event
def test_binary_and_structured_form_have_the_same_attributes(kind):
    binary, structured = example(kind).binary, example(kind).structured

    for name in ("id", "source", "time", "journey", "kind", "key"):
        assert getattr(binary, name) == getattr(structured, name), name


@of_every_event
def test_unknown_fields_are_ignored_at_every_depth(kind):
    of = example(kind)

    assert of.read(of.headers, with_unknown_fields(of.body)).event == of.binary.event


def with_unknown_fields(value: Any, path: tuple[str, ...] = ()) -> Any:
    # Values of these are the upstream's or the operator's own, and a spec is refused rather than misread.
    if {"records", "spec", "metrics", "environment", "candidate", "champion"} & set(path[-1:]):
        return value
    if isinstance(value, dict):
        return {"unknown": [1]} | {key: with_unknown_fields(part, (*path, key)) for key, part in value.items()}
    return [with_unknown_fields(part, path) for part in value] if isinstance(value, list) else value


@of_every_event
def test_the_headers_carry_what_cloudevents_requires(kind):
    headers = example(kind).headers

    assert headers["ce-specversion"] == "1.0"
    assert BY_TYPE[headers["ce-type"]] is kind
    assert headers["ce-id"] == headers["Nats-Msg-Id"]
    assert headers["ce-source"]
    assert headers["ce-subject"] == example(kind).binary.key
    assert datetime.fromisoformat(headers["ce-time"]).tzinfo is not None
    assert headers["ce-datacontenttype"] == headers["content-type"] == "application/json"
    assert all(re.fullmatch("[a-z0-9]+", name[3:]) for name in headers if name.startswith("ce-"))
    assert all(re.fullmatch(r"[!#-~]*", value) for name, value in headers.items() if name.startswith("ce-"))


@of_every_event
def test_the_headers_that_are_written_today_are_those_of_the_example(kind):
    kept = example(kind)
    written = ce_headers(kept.binary.event, id=kept.binary.id, source=kept.binary.source, time=kept.binary.time)

    assert written.items() <= kept.headers.items()


@of_every_event
def test_an_event_cannot_be_changed(kind):
    event = example(kind).binary.event

    with pytest.raises(ValidationError, match="frozen"):
        setattr(event, kind.key_field, "another")


def test_a_kind_a_type_and_an_event_are_one_to_one():
    assert len(BY_KIND) == len(BY_TYPE) == len(EVENTS)
    assert all(re.fullmatch(r"meguri\.[a-z]+(-[a-z]+)*\.v\d+", kind.type) for kind in EVENTS)


@pytest.mark.parametrize("text", ["plain", "crm/werk 4", "100 %", 'a "b"', "巡り", "a\r\nInjected: b"])
def test_a_header_value_is_printable_ascii_and_read_back_as_it_was(text):
    headers = ce_headers(TrainingRequested(model="m", reason="", actor=""), id=text, source=text, time=NOW)
    message = Message.of("meguri.events.training-requested.m", headers, b"{}", 1, NOW)

    assert re.fullmatch("[!#-~]*", ce_value(text))
    assert (message.id, message.source) == (text, text)


def test_an_id_follows_from_its_cause_and_from_nothing_else():
    assert derived_id("cause", "type", "key") == derived_id("cause", "type", "key")
    # Kept in every log: another value would let effects happen twice after an upgrade.
    assert derived_id("cause", "type", "key") == "72df9dfb-0be6-577f-a478-8b2ba5df6a67"


@pytest.mark.parametrize("other", [("cause2", "type", "key"), ("cause", "type", "key", ""), ("cause", "typek", "ey")])
def test_another_cause_type_or_key_gives_another_id(other):
    assert derived_id(*other) != derived_id("cause", "type", "key")


def test_replicas_that_say_the_same_thing_have_an_id_each():
    one, other = (ModelLoaded(model="m", version=1, replica=name, seconds=0) for name in ("a", "b"))

    assert one.identity != other.identity


def test_a_bare_message_gets_its_id_from_the_stream_and_its_producer_from_the_body():
    message = Message.of("meguri.events.data-arrived.d", {}, b'{"records": [], "producer": "plc"}', 7, NOW)

    assert (message.id, message.source, message.journey, message.time) == ("meguri-7", "plc", "meguri-7", NOW)
    assert not message.has_own_id
    assert message.event == DataArrived(dataset="d", records=(), producer="plc")


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
@pytest.mark.parametrize(("kind", "field"), [("drift-detected", "distance"), ("episode-worsened", "now")])
def test_an_episode_with_a_number_that_no_table_can_keep_is_no_event(kind, field, number):
    example = json.loads((EXAMPLES / f"{kind}.json").read_text())
    body = json.dumps(example["body"] | {field: number}).encode()

    with pytest.raises(Malformed, match=field):
        _ = Message.of(example["subject"], example["headers"], body, 7, NOW).event

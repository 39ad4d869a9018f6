"""Who says what and who hears it fits together."""

import re

import pytest

from meguri_contracts.events import EVENTS
from meguri_contracts.names import is_name
from meguri_contracts.topology import (
    CONSUMERS,
    DEAD,
    EVERY_SERVICE,
    LOG,
    OPERATOR,
    PORTS,
    SAID_BY,
    STREAMS,
    dead_subject,
    key_subjects,
    subject,
)


def test_every_event_is_said_by_someone_who_exists():
    assert set(SAID_BY) == set(EVENTS)
    assert set(SAID_BY.values()) <= {"upstream", EVERY_SERVICE, OPERATOR, *PORTS}


def test_what_comes_from_outside_is_data_and_labels():
    assert [event.kind() for event, by in SAID_BY.items() if by == "upstream"] == ["data-arrived", "labels-arrived"]


@pytest.mark.parametrize("consumer", CONSUMERS, ids=lambda consumer: consumer.name)
def test_a_consumer_hears_events_that_exist_each_once(consumer):
    assert set(consumer.hears) <= set(EVENTS)
    assert len(set(consumer.subjects)) == max(len(consumer.hears), 1)
    assert (consumer.stream == LOG) == bool(consumer.hears)


@pytest.mark.parametrize("consumer", CONSUMERS, ids=lambda consumer: consumer.name)
def test_a_consumer_is_named_after_its_service(consumer):
    service, _, purpose = consumer.name.partition("-")

    assert service in PORTS
    assert purpose
    # It is also the last part of its dead letters' subject.
    assert is_name(consumer.name)


@pytest.mark.parametrize(
    "names",
    [
        [consumer.name for consumer in CONSUMERS],
        [stream.name for stream in STREAMS],
        [subject for stream in STREAMS for subject in stream.subjects],
        list(PORTS.values()),
    ],
    ids=["consumers", "streams", "subjects", "ports"],
)
def test_names_are_unique(names):
    assert len(set(names)) == len(names)


def test_every_event_of_a_key_is_kept_in_the_log_and_found_by_its_key():
    kept = next(stream for stream in STREAMS if stream.name == LOG)

    assert (kept.max_age, kept.max_bytes) == (0, -1)
    for event in EVENTS:
        of_key = subject(event.kind(), "k")
        assert any(matches(pattern, of_key) for pattern in kept.subjects)
        assert matches(key_subjects("k"), of_key)
        assert not matches(key_subjects("other"), of_key)


@pytest.mark.parametrize("consumer", CONSUMERS, ids=lambda consumer: consumer.name)
def test_a_dead_letter_has_a_place(consumer):
    dead = next(stream for stream in STREAMS if stream.name == DEAD)

    assert any(matches(pattern, dead_subject(consumer.name, LOG, 4711)) for pattern in dead.subjects)


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject matches a pattern, by the rules of NATS."""
    return re.fullmatch(re.escape(pattern).replace(r"\*", "[^.]+").replace(">", ".+"), subject) is not None

"""All journals together are the whole log, so that it can be made again when it is lost."""

from importlib import import_module

import pytest

from meguri_chassis.projection import KEPT
from meguri_contracts.events import BY_KIND
from meguri_contracts.topology import subject
from tests.house.folders import SERVICES, package

WITH_TABLES = [service for service in SERVICES if (package(service) / "projection.py").exists()]


@pytest.mark.parametrize("kind", sorted(BY_KIND))
def test_every_kind_of_event_is_journaled_by_a_service(kind):
    heard = {event.kind() for event in KEPT}
    for service in WITH_TABLES:
        heard |= {event.kind() for event in import_module(f"meguri_{service}.projection").HEARS}

    assert kind in heard, f"no projection hears {kind}: add it to HEARS of one, or restore-log cannot bring it back"


def test_one_service_journals_what_is_no_event(tmp_path, monkeypatch):
    monkeypatch.setenv("MEGURI_VAR", str(tmp_path))
    keeping = []
    for service in WITH_TABLES:
        built = import_module(f"meguri_{service}.app").build()
        if built.projection._keeps_the_rest:
            keeping.append(service)
        built.database.close()

    assert keeping == ["ingest"]


@pytest.mark.parametrize("said", ["meguri.events.foo", "meguri.events.foo.a", "meguri.events.foo.a.b.c"])
def test_the_subject_of_a_message_follows_from_kind_and_key_whatever_its_parts(said):
    kind, _, key = said.removeprefix("meguri.events.").partition(".")

    assert subject(kind, key) == said

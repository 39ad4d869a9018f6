"""What a receipt says of the models that learned from an arrival."""

import pytest
from sqlmodel import Session

from meguri_chassis.log import Message
from meguri_chassis.store import Database
from meguri_contracts.events import Event, Plan, RolloutChanged
from meguri_contracts.topology import subject
from meguri_ingest.app import MIGRATIONS
from meguri_ingest.projection import evolve
from meguri_ingest.store import UseRow
from tests.registry.registering import model_trained
from tests.training.versions import deployed


@pytest.fixture
def session(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/ingest.db", MIGRATIONS)
    database.migrate()
    with database.write() as session:
        yield session
    database.close()


def hear(session: Session, event: Event) -> None:
    message = Message.of(subject(event.kind(), event.key), {}, event.model_dump_json().encode(), 1, None)
    evolve(session, event, message)


def plan(**parts) -> RolloutChanged:
    given = Plan.model_validate({"champion": deployed("one", 1)} | parts)
    return RolloutChanged(model="m", plan=given, reason="r", actor="a")


def verdicts(session: Session) -> dict[str, str]:
    return {run: session.get(UseRow, run).verdict for run in ("one", "two", "three")}


def test_a_use_has_the_verdict_that_its_version_s_part_in_the_plan_gives_it(session):
    for run in ("one", "two", "three"):
        hear(session, model_trained("m", run, 0.9, None, 1))
    part = {"candidate": deployed("two", 2), "weight": 0.1}
    hear(session, plan(canary=part | {"step": 0, "policy": {}}))
    canary = verdicts(session)
    hear(session, plan())
    taken_back = verdicts(session)
    hear(session, plan(trial={"arms": [part], "policy": {}}, shadows=[{"candidate": deployed("three", 3)}]))
    tested = verdicts(session)
    hear(session, plan(champion=deployed("two", 2)))

    assert canary == {"one": "promoted", "two": "canary", "three": "none yet"}
    assert taken_back == {"one": "promoted", "two": "taken back", "three": "none yet"}
    assert tested == {"one": "promoted", "two": "A/B test", "three": "shadow"}
    assert verdicts(session) == {"one": "promoted", "two": "promoted", "three": "shadow"}

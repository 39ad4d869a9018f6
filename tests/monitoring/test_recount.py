"""However badly labels come, what is shown is what somebody counts who trusts nobody: from the tables and the labels alone."""

import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sqlmodel import Session

from meguri_chassis.log import Message
from meguri_chassis.store import Database
from meguri_contracts.events import Artifact, Label, LabelsArrived
from meguri_contracts.topology import subject
from meguri_monitoring import projection, store
from meguri_monitoring.app import MIGRATIONS
from meguri_monitoring.predictions import predictions, tables, writing
from meguri_monitoring.quality import joining, showing
from meguri_monitoring.quality.joining import Joiner
from tests.monitoring import recount
from tests.monitoring.conftest import message, values
from tests.monitoring.recount import Row, Said

START = datetime(2026, 5, 1, 12, tzinfo=UTC)
NOW = datetime(2026, 5, 2, 12, tzinfo=UTC)
SPAN = 40
"""Seconds in which predictions are made: few, so that some of one entity are made at the same time."""
MODEL, ENTITIES = "m", ("ada", "bob", "eve")
CHAMPION, CANARY, SHADOW = (1, "champion"), (2, "canary"), (3, "shadow")
FILE = Artifact(uri="file:///none", digest="0", size=1)
CLASSES: dict[str, list[Any]] = {"binary": ["no", "yes"], "classes": [0, 1, 2]}
TRUTHS: dict[str, list[Any]] = {
    "binary": ["no", "yes", "no", "yes", "maybe", 1],
    "classes": [0, 1, 2, 3, "1", 2.0, "two", 0.5, True],
    "regression": [50, 49.25, "49.5", True, 1e300, "none", float("inf")],
    "outliers": [True, False, 1, 0, "true", "False", 0.0],
}


class Chaos:
    """Predictions and labels in any order, some of them twice, wrong, too early or about nothing; and two replicas that join
    them, one of which may die in a step."""

    def __init__(self, database: Database, folder: Path, task: str, seed: int) -> None:
        self.database, self.folder, self.task = database, folder, task
        self.random, self.numbers = random.Random(seed), np.random.default_rng(seed)
        self.ids: list[str] = []
        self.early: list[str] = []
        self.labels: list[Label] = []
        self.said: list[Said] = []
        self.sequence = self.named = 0

    def step(self) -> None:
        self.random.choice([self.predict, self.predict, self.label, self.label, self.catch_up, self.join, self.die])()

    def predict(self) -> None:
        rows = self.random.randint(1, 12)
        ids = [self.name("p") for _ in range(rows)]
        self.ids += ids
        entity = self.random.choice(ENTITIES)
        who = [self.random.choice([CHAMPION, CHAMPION, CANARY]), *([SHADOW] if self.random.random() < 0.5 else [])]
        self.random.shuffle(who)
        for version, role in who:
            self.publish(ids, entity, version, role)

    def catch_up(self) -> None:
        """Predictions whose labels came first."""
        if self.early:
            self.publish(self.early, self.random.choice(ENTITIES), *CHAMPION)
            self.ids, self.early = self.ids + self.early, []

    def publish(self, ids: list[str], entity: str, version: int, role: str) -> None:
        self.sequence += 1
        at = START + timedelta(seconds=self.random.randint(0, SPAN))
        rows, answer = values(len(ids), self.random.randint(0, 10**6)), self.answers(len(ids))
        body = message(MODEL, rows, version=version, ids=ids, role=role, entity=entity, time=at, answer=answer)
        # Delivered twice now and then: the table takes it once.
        for _ in range(self.random.choice([1, 1, 2])):
            writing.Writer().append(self.uri(version), predictions.read(body, self.sequence))

    def answers(self, rows: int) -> dict[str, list[Any]]:
        if self.task == "regression":
            return {"prediction": (50 + 10 * self.numbers.normal(size=rows)).tolist()}
        if self.task == "outliers":
            return {
                "label": (self.numbers.random(rows) < 0.3).tolist(),
                "score": self.numbers.normal(size=rows).tolist(),
            }
        classes = CLASSES[self.task]
        probability = self.numbers.uniform(1 / len(classes), 1, rows)
        # Sure answers that are wrong, too: there is a logarithm in it.
        probability[self.numbers.random(rows) < 0.1] = 1.0
        return {"label": self.random.choices(classes, k=rows), "probability": probability.tolist()}

    def label(self) -> None:
        fresh = [self.truth() for _ in range(self.random.randint(1, 20))]
        self.labels += fresh
        arrived = LabelsArrived(model=MODEL, labels=[*fresh, *self.random.sample(self.labels, min(3, len(fresh)))])
        self.sequence += 1
        heard = Message.of(subject("labels-arrived", MODEL), {}, arrived.model_dump_json().encode(), self.sequence, NOW)
        with self.database.write() as session:
            projection.evolve(session, arrived, heard)
        self.said.append(Said(self.sequence, NOW, arrived.labels))

    def truth(self) -> Label:
        draw, true = self.random.random(), self.random.choice(TRUTHS[self.task])
        if draw < 0.35:
            # Around the time of answers, before the first, long after the last, or now.
            after = self.random.choice([self.random.randint(-5, SPAN + 5), self.random.uniform(0, SPAN), 10**5, None])
            time = None if after is None else START + timedelta(seconds=after)
            return Label(entity=self.random.choice([*ENTITIES, "nobody"]), time=time, label=true)
        if draw < 0.45 or not self.ids:
            self.early.append(self.name("early"))
            return Label(prediction_id=self.early[-1], label=true)
        return Label(prediction_id=self.random.choice([*self.ids, *self.early]), label=true)

    def join(self) -> None:
        """Two replicas at once: one takes the step that the other has begun."""
        one, other = self.joiner(), self.joiner()
        standing = other._standing

        def overtaken(session: Session) -> Any:
            found = standing(session)
            one.step()
            return found

        other._standing = overtaken  # type: ignore[method-assign]
        other.step()

    def die(self) -> None:
        """In a step, after it was written and before it was committed."""
        joiner = self.joiner()
        keep = joiner._keep

        def dying(*found: Any) -> None:
            keep(*found)
            raise SystemExit

        joiner._keep = dying  # type: ignore[method-assign]
        try:
            joiner.step()
        except SystemExit:
            return

    def joiner(self) -> Joiner:
        return Joiner(self.database, str(self.folder), MODEL, ("x",), {})

    def uri(self, version: int) -> str:
        return tables.table_uri(str(self.folder), MODEL, version)

    def name(self, kind: str) -> str:
        self.named += 1
        # In no order that anything else has.
        return f"{kind}-{self.random.getrandbits(32):08x}-{self.named}"

    def shown(self) -> dict[tuple[int, bool], dict[str, Any]]:
        with self.database.read() as session:
            plan = store.plan(session, MODEL)
            assert plan is not None

            def answers(version: int, shadow: bool) -> pl.LazyFrame | None:
                return tables.scan(self.uri(version), shadow=shadow)

            found = showing.of_plan(session, plan, answers, {}, START, None)
        sides = (("versions", False), ("shadows", True))
        return {(one["version"], shadow): one for side, shadow in sides for one in found[side]}

    def kept(self) -> dict[int, list[Row]]:
        found = {}
        for version in (1, 2, 3):
            rows = tables.scan(self.uri(version), shadow=None)
            found[version] = [] if rows is None else rows.collect().to_dicts()
        return found


@pytest.fixture
def database(tmp_path: Path) -> Any:
    database = Database(f"sqlite:///{tmp_path}/monitoring.db", MIGRATIONS)
    database.migrate()
    with database.write() as session:
        for version in (1, 2, 3):
            store.keep_version(session, MODEL, version, FILE, shadow=version == SHADOW[0])
        session.add(
            store.PlanRow(model=MODEL, champion=1, challengers=[2], since=START, rollout=0, hops=0, measured=[])
        )
    yield database
    database.close()


@pytest.mark.parametrize("seed", range(1))
@pytest.mark.parametrize("task", list(TRUTHS))
def test_quality_is_that_of_a_recount_however_badly_labels_come(database, tmp_path, monkeypatch, task, seed):
    monkeypatch.setattr(joining, "LABELS", 7)
    monkeypatch.setattr(joining, "ROWS", 10)
    monkeypatch.setattr(writing, "COMPACT_EVERY", 5)
    chaos = Chaos(database, tmp_path / "data", task, seed)
    for _ in range(60):
        chaos.step()
    while chaos.joiner().step():
        pass

    expected, found = recount.quality(task, chaos.kept(), chaos.said), chaos.shown()
    assert len(expected) == 3
    assert sum(one["labels"] for one in expected.values()) > 30
    for key, one in expected.items():
        assert seen(found[key], one) == pytest.approx(seen(one, one), rel=1e-9, abs=1e-9)


def seen(found: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in ("answers", "labels", "coverage")} | {
        key: found["metrics"].get(key) for key in expected["metrics"]
    }

"""Live quality is what an offline recount says, whichever of label and prediction is late, and whoever dies on the way."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from sqlmodel import select

from meguri_chassis.store import Database
from meguri_contracts.events import Label, LabelsArrived
from meguri_monitoring.app import MIGRATIONS
from meguri_monitoring.quality import joining, label_store
from meguri_monitoring.quality import store as score_store
from meguri_monitoring.quality.joining import Joiner
from meguri_monitoring.quality.store import Range
from tests.conftest import until
from tests.monitoring import recount
from tests.monitoring.answers import begun, label
from tests.monitoring.conftest import Monitoring, message, values
from tests.monitoring.state import digest, settled, wipe
from tests.services import name

START = datetime(2026, 5, 1, 12, tzinfo=UTC)
SINCE = {"since": START.isoformat()}
KEYS = ("answers", "labels", "coverage", "mean_score")


def classes(rows: int, random: np.random.Generator) -> dict[str, list[Any]]:
    return {"label": random.integers(0, 3, rows).tolist(), "probability": random.uniform(0.3, 1, rows).tolist()}


def numbers(rows: int, random: np.random.Generator) -> dict[str, list[Any]]:
    return {"prediction": (1e6 + random.normal(size=rows)).tolist()}


def outliers(rows: int, random: np.random.Generator) -> dict[str, list[Any]]:
    return {"label": (random.random(rows) < 0.3).tolist(), "score": random.normal(size=rows).tolist()}


ANSWERS = {"classification": classes, "regression": numbers, "outliers": outliers}


def true_of(answer: dict[str, list[Any]], place: int, random: np.random.Generator) -> Any:
    """What it should have been: mostly what was said."""
    if "prediction" in answer:
        return answer["prediction"][place] + random.normal()
    said = answer["label"][place]
    if isinstance(said, bool):
        return said if random.random() < 0.8 else not said
    return said if random.random() < 0.8 else int(random.integers(0, 4))


class Traffic:
    """Predictions of a model, as inference publishes them, and what is true of them."""

    def __init__(self, monitoring: Monitoring, task: str = "classification", seed: int = 0) -> None:
        self.monitoring, self.task = monitoring, task
        self.random = np.random.default_rng(seed)
        self.truth: dict[str, Any] = {}

    async def predict(
        self,
        rows: int,
        version: int = 1,
        role: str = "champion",
        *,
        producer: str = "camera-a",
        ids: list[str] | None = None,
        after: float = 0,
        publish: bool = True,
    ) -> tuple[list[str], bytes]:
        answer = ANSWERS[self.task](rows, self.random)
        ids = ids or [name("p") for _ in range(rows)]
        body = message(
            self.monitoring.model,
            values(rows, int(self.random.integers(1e6))),
            producer,
            version,
            ids=ids,
            role=role,
            time=START + timedelta(seconds=after),
            answer=answer,
        )
        for place, id_ in enumerate(ids):
            self.truth.setdefault(id_, true_of(answer, place, self.random))
        if publish:
            await self.monitoring.predict(body)
        return ids, body


async def shown(monitoring: Monitoring, labels: int, version: int = 1, **asked: str) -> dict[str, Any]:
    """The quality of a version, once as many labels of it are counted."""

    async def enough() -> dict[str, Any] | None:
        found = await monitoring.http.get(f"/models/{monitoring.model}/quality", params=asked or SINCE)
        arms = {arm["version"]: arm for arm in found.json()["versions"]}
        return arms[version] if version in arms and arms[version]["labels"] == labels else None

    return await until(enough, f"{labels} labels of version {version}")


def same(found: dict[str, Any], expected: dict[str, float]) -> None:
    assert {key: found[key] for key in expected} == {key: pytest.approx(one, abs=1e-9) for key, one in expected.items()}


# --- equal to an offline recount --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", list(ANSWERS))
async def test_with_most_labels_late_and_some_corrected_quality_is_that_of_an_offline_recount(at, task):
    async with at() as monitoring:
        await monitoring.watch(slices=["x"])
        await settled(monitoring, await monitoring.roll_out(1, canary=2, shadow=3))
        traffic = Traffic(monitoring, task)
        first, _ = await traffic.predict(300)
        beside, _ = await traffic.predict(200, 2, "canary", producer="camera-b")
        await traffic.predict(300, 3, "shadow", ids=first)
        early, late = [*first[:30], *beside[:20]], [*first[30:280], *beside[20:]]
        await label(monitoring, {id_: traffic.truth[id_] for id_ in early})
        await shown(monitoring, 30)
        # A minute later: the rest, before and after predictions that are on their way, and corrections.
        more, body = await traffic.predict(100, publish=False)
        await label(monitoring, {id_: traffic.truth[id_] for id_ in [*late, *more]})
        await monitoring.predict(body)
        await label(monitoring, dict.fromkeys(first[:10], traffic.truth[first[0]]))
        await shown(monitoring, 200, 2)
        found = await until(lambda: corrected(monitoring, task, 380), "the recount")

        pairs = await recount.labelled(monitoring, (1, 2, 3))
        metrics = recount.METRICS[task]
        for arm in found["versions"][1:]:
            same(arm["metrics"], metrics(pairs[arm["version"]]))
            assert arm["coverage"] == len(pairs[arm["version"]]) / arm["answers"]
        assert [(arm["version"], arm["answers"], arm["labels"]) for arm in found["versions"]] == [
            (3, 0, 0),
            (2, 200, 200),
            (1, 400, 380),
        ]
        (shadow,) = found["shadows"]
        assert (shadow["version"], shadow["labels"]) == (3, 280)
        same(shadow["metrics"], metrics(pairs[3]))
        sliced(found["versions"][-1], pairs[1], metrics)


async def corrected(monitoring: Monitoring, task: str, labels: int) -> dict[str, Any] | None:
    """The answer once the last correction is in it."""
    pairs = (await recount.labelled(monitoring, (1,)))[1]
    answer = (await monitoring.http.get(f"/models/{monitoring.model}/quality", params=SINCE)).json()
    arm = answer["versions"][-1]
    expected = recount.METRICS[task](pairs)
    first = next(iter(expected))
    # Rows of the shadow may have come between labels.
    if (arm["labels"], len(pairs), answer["shadows"][0]["labels"]) != (labels, labels, 280):
        return None
    return answer if arm["metrics"][first] == pytest.approx(expected[first], abs=1e-9) else None


def sliced(arm: dict[str, Any], pairs: list, metrics: Any) -> None:
    """Quarters of the reference and producers say of their rows what a recount of these says."""
    reference = pl.Series(values(1000, 0)[:, 0])
    by_quarter = [one for one in arm["slices"] if one["slice"] == "x"]
    assert len(by_quarter) == 4
    # From the lowest quarter to the highest.
    by_quarter.sort(
        key=lambda one: (one["value"].startswith(">"), not one["value"].startswith("<="), upper(one["value"]))
    )
    for place, one in enumerate(by_quarter):
        own = [(row, true) for row, true in pairs if recount.quarter(reference, row["x"]) == place]
        assert one["labels"] == len(own)
        same(one["metrics"], metrics(own))
    (producer,) = [one for one in arm["slices"] if one["slice"] == "producer"]
    assert producer["value"] == "camera-a"
    assert {key: producer[key] for key in KEYS} == {key: arm[key] for key in KEYS}


def upper(value: str) -> float:
    return float(value.rsplit(maxsplit=1)[-1])


async def test_quality_is_shown_of_a_stretch_of_time_too(at):
    async with at() as monitoring:
        await begun(monitoring)
        traffic = Traffic(monitoring)
        old, _ = await traffic.predict(10)
        new, _ = await traffic.predict(20, after=60)
        await label(monitoring, {id_: traffic.truth[id_] for id_ in [*old, *new[:5]]})

        await shown(monitoring, 15)
        minute = (START + timedelta(minutes=1)).isoformat()
        found = await shown(monitoring, 5, since=minute)
        assert (found["answers"], found["coverage"]) == (20, 0.25)
        found = await shown(monitoring, 10, until=START.isoformat())
        assert (found["answers"], found["coverage"]) == (10, 1.0)


# --- of entities ------------------------------------------------------------------------------------------------------


def of(entity: str, true: Any, after: float | None = None) -> Label:
    return Label(entity=entity, label=true, time=None if after is None else START + timedelta(seconds=after))


async def say(monitoring: Monitoring, *labels: Label) -> int:
    return await monitoring.wire.say(LabelsArrived(model=monitoring.model, labels=labels), source="billing")


async def about(
    monitoring: Monitoring, entity: str, after: float, said: int, version: int = 1, role: str = "champion"
) -> str:
    """An answer about an entity; returns its id."""
    id_ = name("p")
    body = message(
        monitoring.model,
        values(1, 1),
        version=version,
        ids=[id_],
        role=role,
        time=START + timedelta(seconds=after),
        answer={"label": [said], "probability": [0.9]},
        entity=entity,
    )
    await monitoring.predict(body)
    return id_


async def scored(monitoring: Monitoring, url: str, *expected: tuple[int, str, str]) -> None:
    """Wait until these are the versions, predictions and labels that are scored, and no others."""
    database = Database(url, MIGRATIONS)

    def now() -> set[tuple[int, str, str | None]]:
        with database.read() as session:
            rows = session.exec(select(score_store.ScoredRow).where(score_store.ScoredRow.model == monitoring.model))
            return {(row.version, row.prediction_id, row.label) for row in rows}

    try:
        await until(lambda: now() == set(expected), f"{expected}")
    finally:
        database.close()


async def test_a_label_of_an_entity_is_of_the_last_answer_about_it_up_to_its_time(at, database_url):
    async with at() as monitoring:
        await monitoring.watch()
        await settled(monitoring, await monitoring.roll_out(1, canary=2, shadow=3))
        await about(monitoring, "a", 0, 7)
        meant = await about(monitoring, "a", 10, 7, 2, "canary")
        await about(monitoring, "a", 15, 7, 3, "shadow")
        await about(monitoring, "b", 12, 7)
        await about(monitoring, "a", 30, 7)
        await say(monitoring, of("a", 8, 20), of("nobody", 8, 20))

        await scored(monitoring, database_url, (2, meant, "8"))
        last = await about(monitoring, "a", 40, 7)
        # Without a time it is of the last answer of all; at the time of an answer, of that one.
        await say(monitoring, of("a", 9), of("a", 10, 10))
        await scored(monitoring, database_url, (2, meant, "10"), (1, last, "9"))


async def test_an_answer_that_comes_late_takes_over_the_label_that_an_earlier_one_had(at, database_url):
    async with at() as monitoring:
        await monitoring.watch()
        await settled(monitoring, await monitoring.roll_out(1, canary=2))
        first = await about(monitoring, "a", 0, 7)
        await label(monitoring, {first: 5})
        await scored(monitoring, database_url, (1, first, "5"))
        await say(monitoring, of("a", 8, 20))
        await scored(monitoring, database_url, (1, first, "8"))
        nearer = await about(monitoring, "a", 19, 7, 2, "canary")

        await scored(monitoring, database_url, (2, nearer, "8"), (1, first, "5"))
        await about(monitoring, "a", 18, 7)
        waiting = of("late", 6, 50)
        await say(monitoring, waiting, waiting)
        much_later = await about(monitoring, "late", -90_000, 7)
        await scored(monitoring, database_url, (2, nearer, "8"), (1, first, "5"), (1, much_later, "6"))


async def test_labels_of_entities_are_made_again_from_the_log_and_the_last_one_wins(at, database_url):
    async with at() as monitoring:
        await monitoring.watch()
        id_ = await about(monitoring, "a", 0, 7)
        await say(monitoring, of("a", 8, 20), of("a", 9, 20))
        await say(monitoring, of("a", 7, 20))
        await scored(monitoring, database_url, (1, id_, "7"))
        before = await digest(monitoring)
    wipe(database_url)

    async with at() as monitoring:
        assert await digest(monitoring) == before
        await scored(monitoring, database_url, (1, id_, "7"))


# --- once, whoever dies -----------------------------------------------------------------------------------------------


async def test_two_replicas_and_one_that_dies_in_a_step_score_each_label_once(at, database_url, monkeypatch, tmp_path):
    async with at() as monitoring:
        await begun(monitoring)
        traffic = Traffic(monitoring)
        ids, _ = await traffic.predict(200)
        await until(lambda: recorded(monitoring, 200), "the predictions")
    monkeypatch.setattr(joining, "LABELS", 20)
    database = Database(database_url, MIGRATIONS)
    fill(database, monitoring.model, traffic.truth)
    one, two, dying = (Joiner(database, str(tmp_path / "var/data"), monitoring.model, (), {}) for _ in range(3))
    keep = dying._keep

    def die(*what: Any) -> None:
        keep(*what)
        raise SystemExit

    monkeypatch.setattr(dying, "_keep", die)
    with pytest.raises(SystemExit):
        dying.step()
    await asyncio.gather(*(asyncio.to_thread(drain, joiner) for joiner in (one, two)))

    with database.read() as session:
        rows = score_store.order(session, Range(monitoring.model, 1), 0, 1000)
        assert score_store.total(session, Range(monitoring.model, 1))[0] == 200
    assert sorted(row.prediction_id for row in rows) == sorted(ids)
    assert [row.number for row in rows] == list(range(1, 201))
    assert [row.label_sequence for row in rows] == sorted(row.label_sequence for row in rows)
    database.close()


def fill(database: Database, model: str, truth: dict[str, Any]) -> None:
    """Labels as the projection would put them there, three an event."""
    rows = [
        {
            "model": model,
            "prediction_id": id_,
            "text": str(true),
            "number": true,
            "time": START,
            "sequence": 100 + at // 3,
        }
        for at, (id_, true) in enumerate(truth.items())
    ]
    with database.write() as session:
        label_store.keep_labels(session, label_store.LabelRow, rows)


def drain(joiner: Joiner) -> None:
    while joiner.step():
        pass


def recorded(monitoring: Monitoring, rows: int) -> bool:
    try:
        return monitoring.kept().height == rows
    except FileNotFoundError:
        return False

"""Labels and predictions find each other whoever comes first, and each counts once."""

import asyncio
import json
import math
from dataclasses import replace
from urllib.parse import unquote

import polars as pl
import pytest

from meguri_contracts.events import LabelsArrived, QualityMeasured
from meguri_contracts.topology import MONITORING_LABELS
from meguri_monitoring.quality.quality import Cell, Sums, as_number, as_text, metrics, scored, task_of
from tests.conftest import until
from tests.monitoring.answers import answer, label, measured, quality, sums
from tests.monitoring.conftest import Monitoring
from tests.monitoring.state import digest, settled, wipe
from tests.services import name


async def test_labels_are_counted_for_the_version_that_answered_whether_they_come_before_or_after(at):
    async with at() as monitoring:
        await monitoring.watch()
        await settled(monitoring, await monitoring.roll_out(1, canary=2))
        early = [name("early"), name("early")]
        await label(monitoring, dict.fromkeys(early, 7) | {"of nobody": 7})
        mine = await answer(monitoring, 1, "champion", [7, 7, 8, 7])
        await answer(monitoring, 2, "canary", [7, 6], ids=early)
        await measured(monitoring, 0, 2)
        await label(monitoring, dict.fromkeys(mine[:3], 7))

        arms = await measured(monitoring, 3, 2)
        assert sums(arms) == [(1, 3, 2.0, 2.0), (2, 2, 1.0, 1.0)]
        found = await quality(monitoring)
        keys = ("version", "answers", "labels", "coverage", "mean_score")
        assert [{key: one[key] for key in keys} for one in found["versions"]] == [
            {"version": 1, "answers": 4, "labels": 3, "coverage": 0.75, "mean_score": pytest.approx(2 / 3)},
            {"version": 2, "answers": 2, "labels": 2, "coverage": 1.0, "mean_score": 0.5},
        ]
        assert found["labels_waiting"] == 1


async def test_the_latest_label_of_a_prediction_wins_and_none_counts_twice(at):
    async with at() as monitoring:
        await monitoring.watch()
        await settled(monitoring, await monitoring.roll_out(1, canary=2))
        one, two = await answer(monitoring, 2, "canary", [7, 7])
        await label(monitoring, {one: 7, two: 7}, id=name("e"))
        assert (await measured(monitoring, 0, 2))[1].total == 2
        await label(monitoring, {one: 8})
        await label(monitoring, {one: 8})

        async def corrected() -> bool:
            return sums(await measured(monitoring, 0, 2))[1] == (2, 2, 1.0, 1.0)

        await until(corrected)
        assert (await quality(monitoring))["versions"][1]["labels"] == 2


async def test_answers_of_before_the_plan_and_of_shadows_are_not_counted(at):
    async with at() as monitoring:
        await monitoring.watch()
        before = await answer(monitoring, 1, "champion", [7])
        await settled(monitoring, await monitoring.roll_out(1, canary=2, shadow=3))
        ids = await answer(monitoring, 1, "champion", [7])
        await answer(monitoring, 3, "shadow", [8], ids=ids)
        await label(monitoring, {before[0]: 7, ids[0]: 7})

        assert sums(await measured(monitoring, 1, 0)) == [(1, 1, 1.0, 1.0), (2, 0, 0.0, 0.0)]
        # A step of the canary leaves who answers as it was, another candidate does not.
        await settled(monitoring, await monitoring.roll_out(1, canary=2))
        assert [arm["labels"] for arm in (await quality(monitoring))["versions"]] == [1, 0]
        await settled(monitoring, await monitoring.roll_out(1, canary=3))
        assert [(arm["version"], arm["labels"]) for arm in (await quality(monitoring))["versions"]] == [(1, 0), (3, 0)]


async def test_without_challengers_nothing_is_said_and_the_quality_is_still_shown(at):
    async with at() as monitoring:
        await monitoring.watch()
        await settled(monitoring, (await monitoring.wire.js.stream_info("MEGURI")).state.last_seq)
        ids = await answer(monitoring, 1, "champion", [7, 8])
        await settled(monitoring, await label(monitoring, dict.fromkeys(ids, 7)))

        async def shown() -> bool:
            return [arm["mean_score"] for arm in (await quality(monitoring))["versions"]] == [0.5]

        await until(shown)
        assert await monitoring.wire.said(QualityMeasured, monitoring.model) == []
        assert (await monitoring.http.get("/models/unheard-of/quality")).status_code == 404


async def test_a_label_that_cannot_be_read_is_parked_and_others_go_on(at):
    async with at() as monitoring:
        await monitoring.watch()
        await settled(monitoring, await monitoring.roll_out(1, canary=2))
        for body in (b"{}", b"no JSON", b'{"labels": [{"prediction_id": "", "label": 1}]}'):
            await monitoring.wire.publish("labels-arrived", monitoring.model, body)
        ids = await answer(monitoring, 2, "canary", [7])
        # As far as Python reads it as JSON, a label may be anything.
        odd = {"nan": math.nan, "far": 10**400, "text\x00": "seven", "yes": True, "endless": -math.inf}
        body = json.dumps({"labels": [{"prediction_id": id_, "label": true} for id_, true in odd.items()]})
        await monitoring.wire.publish("labels-arrived", monitoring.model, body.encode())
        await label(monitoring, {ids[0]: "7"})

        assert sums(await measured(monitoring, 0, 1))[1] == (2, 1, 1.0, 1.0)
        # But for the one that says nothing.
        assert (await quality(monitoring))["labels_waiting"] == len(odd) - 1
        await until(lambda: parked(monitoring, 3), "three dead letters")


async def test_a_label_of_both_or_of_nothing_or_of_no_time_is_parked_with_the_reason(at):
    async with at() as monitoring:
        await monitoring.watch()
        for odd in (
            {"label": 1},
            {"prediction_id": "p", "entity": "e", "label": 1},
            {"entity": "e", "label": 1, "time": "2026-05-01T12:00:00"},
            {"entity": "e", "label": 1, "time": "0001-01-01T00:00:00+14:00"},
        ):
            body = json.dumps({"labels": [{"prediction_id": "q", "label": 1}, odd]}).encode()
            await monitoring.wire.publish("labels-arrived", monitoring.model, body)
        await until(lambda: parked(monitoring, 4), "four dead letters")

        reasons = [unquote(one["meguri-reason"]) for one in await monitoring.wire.parked(MONITORING_LABELS.name)]
        said = ("give one of both", "give one of both", "timezone", "outside the years")
        assert [part in reason for part, reason in zip(said, reasons, strict=True)] == [True] * 4


async def test_a_model_that_cannot_be_counted_keeps_no_other_from_it_and_is_named(at):
    async with at() as monitoring:
        broken = replace(monitoring, model=name("a"))
        for one in (broken, monitoring):
            await one.watch()
            await settled(one, await one.roll_out(1, canary=2))
        ids = await answer(monitoring, 2, "canary", [7])
        log = monitoring.folder / f"data/_predictions/{broken.model}/v2/_delta_log"
        log.mkdir(parents=True)
        (log / f"{0:020}.json").write_text("no table")
        await label(broken, {"p": 7})
        await until(lambda: warned(monitoring, broken.model), "the warning")
        await label(monitoring, {ids[0]: 7})

        assert sums(await measured(monitoring, 0, 1))[1] == (2, 1, 1.0, 1.0)


async def warned(monitoring: Monitoring, model: str) -> bool:
    warnings = (await monitoring.http.get("/health/ready")).json()["warnings"]
    return any(warning.startswith(f"labels of {model} cannot be counted") for warning in warnings)


async def parked(monitoring: Monitoring, count: int) -> bool:
    return len(await monitoring.wire.parked(MONITORING_LABELS.name)) == count


async def test_after_death_redelivery_and_a_wiped_database_each_label_has_counted_once(at, database_url):
    async with at() as monitoring:
        await monitoring.watch()
        await settled(monitoring, await monitoring.roll_out(1, canary=2))
        ids = await answer(monitoring, 2, "canary", [7, 7, 7, 8])
        await label(monitoring, dict.fromkeys(ids[:2], 7))
        await measured(monitoring, 0, 2)
    async with at() as monitoring, at() as other:
        mine = await answer(monitoring, 1, "champion", [7, 8])
        again = await monitoring.wire.heard(LabelsArrived, monitoring.model)
        await monitoring.wire.publish("labels-arrived", monitoring.model, again[0].body, {"ce-id": name("again")})
        await asyncio.gather(*(label(monitoring, {one: 7}) for one in [*ids[2:], *mine]))
        arms = await measured(monitoring, 2, 4)
        assert sums(arms) == [(1, 2, 1.0, 1.0), (2, 4, 3.0, 3.0)]
        before = await digest(monitoring)
        assert await digest(other) == before
        said = await all_said(monitoring)
    wipe(database_url)

    async with at() as monitoring:
        assert await digest(monitoring) == before
        await until(lambda: counts(monitoring, (1, 2), (2, 4)))
        assert await all_said(monitoring) == said
        more = await answer(monitoring, 2, "canary", [7])
        await label(monitoring, {more[0]: 7})
        assert sums(await measured(monitoring, 2, 5)) == [(1, 2, 1.0, 1.0), (2, 5, 4.0, 4.0)]


async def counts(monitoring: Monitoring, *expected: tuple[int, int]) -> bool:
    return [(arm["version"], arm["labels"]) for arm in (await quality(monitoring))["versions"]] == list(expected)


async def all_said(monitoring: Monitoring) -> list[str]:
    return [one.id for one in await monitoring.wire.heard(QualityMeasured, monitoring.model)]


@pytest.mark.parametrize(
    ("label", "text", "number"),
    [
        (7, "7", 7.0),
        (7.0, "7", 7.0),
        (0.5, "0.5", 0.5),
        (True, "true", 1.0),
        ("7", "7", 7.0),
        ("seven", "seven", None),
        ("False", "False", 0.0),
        (math.inf, "inf", None),
        (10**400, str(10**400), None),
    ],
)
def test_a_label_is_compared_as_text_and_as_a_number(label, text, number):
    assert (as_text(label), as_number(label)) == (text, number)


# --- one label, one answer --------------------------------------------------------------------------------------------


def said_of(answers: dict[str, list], labels: dict[str, object]) -> pl.DataFrame:
    """What labels say of answers to `p0`, `p1`, … as a table keeps them."""
    count = len(next(iter(answers.values())))
    rows = pl.DataFrame({"prediction_id": [f"p{i}" for i in range(count)]} | answers, strict=False)
    truths = [(id_, as_text(true), as_number(true)) for id_, true in labels.items()]
    schema = {"prediction_id": pl.String(), "_text": pl.String(), "_number": pl.Float64()}
    return scored(rows.join(pl.DataFrame(truths, schema, orient="row"), on="prediction_id"), tuple(answers))


@pytest.mark.parametrize(
    ("answers", "labels", "expected"),
    [
        (
            {"label": [7, 8], "probability": [0.5, 0.5]},
            {"p0": 7.0, "p1": "7", "p9": 8},
            [("7", "7", 1.0), ("7", "8", 0.0)],
        ),
        (
            {"label": ["7", "no"], "probability": [0.5, None]},
            {"p0": 7, "p1": "no"},
            [("7", "7", 1.0), ("no", "no", 1.0)],
        ),
        (
            {"label": [True, False], "probability": [0.5, 0.5]},
            {"p0": "true", "p1": 1},
            [("true", "true", 1.0), ("true", "false", 0.0)],
        ),
        (
            {"label": [1, 1], "score": [0.5, -0.5]},
            {"p0": 1, "p1": "unheard of"},
            [("1", "1", 1.0), ("unheard of", "1", 0.0)],
        ),
        (
            {"label": [0.5, 2.0], "probability": [0.5, 0.5]},
            {"p0": "0.5", "p1": 2},
            [("0.5", "0.5", 1.0), ("2", "2", 1.0)],
        ),
        (
            {"prediction": [1.5, 2.0, 3.0]},
            {"p0": 1, "p1": "4", "p2": "no number"},
            [(None, None, -0.5), (None, None, -2.0)],
        ),
        ({"prediction": [math.nan, None, 1.0]}, {"p0": 1, "p1": 1, "p2": 1}, [(None, None, 0.0)]),
        ({"prediction": [1.0]}, {}, []),
    ],
)
def test_a_score_is_one_for_the_right_class_or_minus_the_error(answers, labels, expected):
    found = said_of(answers, labels)

    assert list(found.select("label", "answer", "score").iter_rows()) == expected


def test_the_log_loss_is_that_of_the_statement_that_the_answer_is_right():
    found = said_of({"label": [1, 1, 1], "probability": [0.8, 0.8, 1.0]}, {"p0": 1, "p1": 0, "p2": 0})

    assert found["loss"].to_list() == pytest.approx([-math.log(0.8), -math.log(0.2), -math.log(2.220446049250313e-16)])
    assert found["bin"].to_list() == [8, 8, 9]


def test_calibration_says_how_far_the_probabilities_are_from_the_share_that_is_right():
    sums = Sums()
    sums.add(Cell("a", "a", 9, rows=3, score=3, squares=3, loss=0, probability=2.85, off=0, off_squares=0))
    sums.add(Cell("b", "a", 9, rows=1, score=0, squares=0, loss=3, probability=0.95, off=0, off_squares=0))
    found = metrics("classification", sums)

    assert found["calibration"] == [
        {"from": 0.9, "to": 1.0, "labels": 4, "probability": pytest.approx(0.95), "accuracy": 0.75}
    ]
    assert found["calibration_error"] == pytest.approx(0.2)


def test_what_rows_do_not_tell_is_null():
    assert metrics("regression", Sums()) == {}
    never = Sums()
    never.add(Cell("false", "false", None, rows=2, score=2, squares=2, loss=0, probability=0, off=0, off_squares=0))
    assert metrics("outliers", never) == {"accuracy": 1.0, "precision": None, "recall": None, "f1": None}
    assert task_of(("prediction_id", "x", "label", "score", "sequence")) == "outliers"

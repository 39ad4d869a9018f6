import asyncio
import threading

import numpy as np
import orjson
import pytest

from meguri_contracts.errors import PermanentError
from meguri_contracts.spec import PredictionLog as Logging
from meguri_inference import shadowing
from meguri_inference.answering import Head
from meguri_inference.shadowing import TOLERANCE, compare
from tests.conftest import PATIENCE, until
from tests.inference.replicas import as_version, noted


class Gate:
    """An engine that waits until it may answer."""

    def __init__(self, engine) -> None:
        self._engine = engine
        self.open = threading.Event()
        self.asked = threading.Event()

    blocks = False

    def run(self, x):
        self.asked.set()
        assert self.open.wait(PATIENCE)
        return self._engine.run(x)


def gated(seat) -> Gate:
    gate = seat.batcher.model._engine = Gate(seat.batcher.model._engine)
    return gate


async def idle(replica) -> None:
    await until(lambda: not replica.shadowing._tasks, "the shadows to have been asked")


async def test_what_a_shadow_says_is_compared_and_logged_under_the_id_of_the_answer(replica, iris, contrary):
    wrong = as_version(contrary, 4)
    served = await replica.follow(iris, shadows=((wrong, 1.0),))
    questions = [iris.x[at : at + 1 + at % 3] for at in range(0, 140, 5)]

    replies = [await replica.answer(iris, rows, entity="a") for rows in questions[:10]]
    replies += await asyncio.gather(*(replica.answer(iris, rows, entity="a") for rows in questions[10:]))
    await idle(replica)

    assert {orjson.loads(reply.body)["model_version"] for reply in replies} == {"3"}
    await replica.log.close()
    rows = [row for table in replica.outlet.tables for row in table.to_pylist()]
    by_role = {
        role: {row["prediction_id"]: row for row in rows if row["_role"] == role} for role in ("champion", "shadow")
    }
    assert by_role["champion"].keys() == by_role["shadow"].keys()
    pairs = [(by_role["champion"][one], by_role["shadow"][one]) for one in by_role["champion"]]
    for given, said in pairs:
        assert said["version"] == 4
        same = ("time", "producer", "trace_id", "_entity", *iris.deployed.signature.features)
        assert [given[name] for name in same] == [said[name] for name in same]
        x = np.array([[said[name] for name in iris.deployed.signature.features]])
        assert said["label"] == wrong.estimator.predict(x)[0]
    tally = served.version("4").tally
    assert tally.pairs == len(pairs) == sum(map(len, questions))
    assert tally.disagreed == sum(given["label"] != said["label"] for given, said in pairs) > 0
    assert tally.difference == pytest.approx(sum(abs(g["probability"] - s["probability"]) for g, s in pairs))
    assert (tally.requests, tally.rows, tally.errors, tally.skipped) == (len(questions), len(pairs), 0, 0)


async def test_answers_do_not_wait_for_a_slow_shadow_and_rows_beyond_the_bound_are_skipped(replica, iris, monkeypatch):
    monkeypatch.setattr(shadowing, "MAX_PENDING_ROWS", 10)
    served = await replica.follow(iris, shadows=((as_version(iris, 4), 1.0),))
    gate, tally = gated(served.version("4")), served.version("4").tally
    await replica.answer(iris, iris.x[:1])
    await asyncio.to_thread(gate.asked.wait, 10)

    statuses = [(await replica.answer(iris, iris.x[:2])).status for _ in range(20)]
    skipped = tally.skipped
    gate.open.set()
    await idle(replica)

    assert statuses == [200] * 20
    assert skipped == tally.skipped == 30
    assert tally.pairs == 11
    assert replica.shadowing._rows == {}
    await replica.answer(iris, iris.x[:1])
    await idle(replica)
    assert tally.pairs == 12


async def test_a_shadow_that_fails_harms_nobody_and_only_its_own_requests_are_counted(replica, iris):
    served = await replica.follow(iris, shadows=((as_version(iris, 4), 1.0),))
    tally = served.version("4").tally
    engine = noted(served.version("4"))
    run = engine.run

    def picky(x):
        if (x[:, 0] > 100).any():
            raise PermanentError("too long a leaf")
        return run(x)

    engine.run = picky
    odd = np.array([[101.0, 3, 1, 1]])

    replies = await asyncio.gather(*(replica.answer(iris, odd if at == 7 else iris.x[[at]]) for at in range(20)))
    await idle(replica)

    assert {reply.status for reply in replies} == {200}
    assert (tally.requests, tally.errors, tally.pairs) == (20, 1, 19)
    assert served.champion.tally.errors == 0


async def test_a_shadow_is_asked_a_share_of_the_requests(replica, iris):
    served = await replica.follow(iris, shadows=((as_version(iris, 4), 0.3), (as_version(iris, 5), 1.0)))

    await asyncio.gather(*(replica.answer(iris, iris.x[at : at + 1 + at % 2]) for at in range(140)))
    await idle(replica)

    some, all_ = (served.version(version).tally for version in ("4", "5"))
    assert 15 <= some.requests <= 80
    assert all_.requests == 140
    assert (some.disagreed, some.difference) == (0, 0)
    rows = [row for table in await tables(replica) for row in table.to_pylist()]
    assert sum(row["version"] == 4 for row in rows) == some.pairs == some.rows


async def tables(replica) -> list:
    await replica.log.close()
    return replica.outlet.tables


async def test_of_requests_that_are_not_logged_a_shadows_answers_are_compared_and_not_logged(replica, iris):
    served = await replica.follow(iris, Logging(sampled=0.5), shadows=((as_version(iris, 4), 1.0),))

    await asyncio.gather(*(replica.answer(iris, iris.x[[at]]) for at in range(100)))
    await idle(replica)

    rows = [row for table in await tables(replica) for row in table.to_pylist()]
    ids = {
        role: sorted(row["prediction_id"] for row in rows if row["_role"] == role) for role in ("champion", "shadow")
    }
    assert ids["champion"] == ids["shadow"]
    assert 20 <= len(ids["champion"]) <= 80
    assert served.version("4").tally.pairs == 100


async def test_a_shadow_of_another_precision_is_asked_in_its_own(replica, iris, forest):
    served = await replica.follow(iris, shadows=((as_version(forest, 4, like=iris), 1.0),))

    await replica.answer(iris, iris.x)
    await idle(replica)

    expected = forest.estimator.predict(iris.x) != iris.estimator.predict(iris.x)
    assert served.version("4").tally.disagreed == expected.sum()


async def test_a_shadow_that_is_asked_by_its_version_is_not_asked_twice(replica, iris):
    served = await replica.follow(iris, shadows=((as_version(iris, 4), 1.0),))
    await replica.answering.answer(Head("iris", "4"), orjson.dumps(iris.body(iris.x[:1])))

    assert not replica.shadowing._tasks
    assert served.version("4").tally.pairs == 0


async def test_nothing_is_left_of_shadows_when_the_replica_goes(replica, iris):
    served = await replica.follow(iris, shadows=((as_version(iris, 4), 1.0),))
    gate = gated(served.version("4"))
    await replica.answer(iris, iris.x[:1])
    await asyncio.to_thread(gate.asked.wait, 10)

    await replica.shadowing.close()
    gate.open.set()

    assert not replica.shadowing._tasks
    assert replica.shadowing._pending == {}


def test_predictions_agree_within_the_tolerance(ridge):
    signature = ridge.deployed.signature
    given, said = np.array([1.0, 2.0, 3.0]), np.array([[1.0], [2.0 + TOLERANCE / 2], [4.0]])

    assert compare(signature, [given], signature, [said]) == (1, pytest.approx(1 + TOLERANCE / 2))


def test_labels_and_predictions_never_agree(iris, ridge):
    labels, values = iris.load().compute([iris.x[:3]]).outputs, [np.zeros(3)]

    assert compare(iris.deployed.signature, labels, ridge.deployed.signature, values) == (3, 0.0)

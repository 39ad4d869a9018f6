import asyncio
from collections import Counter
from itertools import pairwise

import numpy as np
import orjson
import pytest

from meguri_contracts.errors import NotFound, PermanentError, TemporaryError
from meguri_contracts.events import Tensor
from meguri_contracts.spec import PredictionLog as Logging
from meguri_inference import answering
from meguri_inference.answering import Head
from tests.conftest import until
from tests.inference.replicas import TRACE_ID, Replica, as_version, noted

CUSTOMERS = [f"customer-{number}" for number in range(200)]


def version_of(reply) -> int:
    return int(orjson.loads(reply.body)["model_version"])


async def test_a_plan_is_followed_by_entity_and_what_is_logged_says_who_answered_as_what(replica, iris):
    served = await replica.follow(iris, canary=(as_version(iris, 4), 0.4))

    replies = {who: await replica.answer(iris, iris.x[[60]], entity=who) for who in CUSTOMERS}
    again = await asyncio.gather(*(replica.answer(iris, iris.x[[60]], entity=who) for who in CUSTOMERS))
    named = await replica.answering.answer(Head("iris", "4"), orjson.dumps(iris.body(iris.x[[60]])))

    assert {who: version_of(reply) for who, reply in replies.items()} == {
        who: served.choose(who).version for who in CUSTOMERS
    }
    assert [version_of(reply) for reply in again] == [version_of(reply) for reply in replies.values()]
    assert version_of(named) == 4
    await replica.log.close()
    rows = [row for table in replica.outlet.tables for row in table.to_pylist()]
    assert len(rows) == 401
    for row in rows:
        expected = served.choose(row["_entity"]) if row["_entity"] else served.version("4")
        assert (row["version"], row["_role"]) == (expected.version, expected.role)


@pytest.mark.parametrize(
    ("header", "body", "entity"),
    [(None, None, None), ("a", None, "a"), (None, "b", "b"), ("a", "b", "b"), ("巡り", None, "巡り"), ("", None, "")],
)
async def test_the_entity_comes_from_the_body_or_else_from_the_header(replica, iris, header, body, entity):
    await replica.follow(iris)
    more = {"parameters": {"entity": body}} if body else {}

    await replica.answer(iris, iris.x[:1], entity=header, **more)

    assert (await replica.predictions())["_entity"].to_pylist() == [entity]


# --- challengers ------------------------------------------------------------------------------------------------------


async def test_where_a_challenger_has_no_answer_the_champion_is_asked_and_the_error_is_the_challengers(replica, iris):
    served = await replica.follow(iris, canary=(as_version(iris, 4), 0.5))
    noted(served.version("4")).error = PermanentError("broken")

    replies = [await replica.answer(iris, iris.x[[60]], entity=who) for who in CUSTOMERS]

    assert {(reply.status, version_of(reply)) for reply in replies} == {(200, 3)}
    asked = sum(served.choose(who).version == 4 for who in CUSTOMERS)
    champion, canary = (served.version(version).tally for version in ("3", "4"))
    assert (canary.requests, canary.errors, sum(canary.latency)) == (asked, asked, 0)
    assert (champion.requests, champion.errors) == (200, 0)
    assert replica.tallies.statuses == {("iris", 200): 200}
    assert replica.answering._under_way == 0


async def test_who_asks_for_a_challenger_by_its_version_is_told_that_it_has_no_answer(replica, iris):
    served = await replica.follow(iris, canary=(as_version(iris, 4), 0.5))
    noted(served.version("4")).error = PermanentError("broken")

    reply = await replica.answering.answer(Head("iris", "4"), orjson.dumps(iris.body(iris.x[:1])))

    assert reply.status == 400
    assert replica.tallies.statuses == {("iris", 400): 1}


async def test_where_both_have_no_answer_the_champions_error_is_told(replica, iris):
    served = await replica.follow(iris, canary=(as_version(iris, 4), 0.9999))
    for version in ("3", "4"):
        noted(served.version(version)).error = PermanentError(f"broken {version}")

    reply = await replica.answer(iris, iris.x[:1])

    assert (reply.status, "broken 3" in orjson.loads(reply.body)["error"]) == (400, True)
    assert [served.version(version).tally.errors for version in ("3", "4")] == [1, 1]
    assert replica.answering._under_way == 0


def with_label_only(fitted):
    """The same model, which says no probabilities."""
    signature = fitted.deployed.signature
    outputs = (Tensor(name="label", datatype="INT64", shape=(-1,)),)
    deployed = fitted.deployed.model_copy(update={"signature": signature.model_copy(update={"outputs": outputs})})
    return type(fitted)(fitted.name, fitted.estimator, fitted.x, deployed, fitted.onnx)


async def test_a_challenger_may_have_other_outputs_than_the_champion(replica, iris):
    canary = with_label_only(as_version(iris, 4))
    await replica.follow(iris, canary=(canary, 0.5))

    replies = [await replica.answer(iris, iris.x[[60]], entity=who) for who in CUSTOMERS]

    assert {reply.status for reply in replies} == {200}
    outputs = {version_of(r): [one["name"] for one in orjson.loads(r.body)["outputs"]] for r in replies}
    assert outputs == {3: ["label", "probabilities"], 4: ["label"]}


@pytest.mark.parametrize("asked_for", ["probabilities", None])
async def test_what_only_the_champion_can_read_it_answers_and_the_error_is_the_challengers(
    replica, iris, forest, asked_for
):
    if asked_for:
        served = await replica.follow(iris, canary=(with_label_only(as_version(iris, 4)), 0.9999))
        reply = await replica.answer(iris, iris.x[:1], outputs=[{"name": asked_for}])
    else:
        served = await replica.follow(iris, canary=(as_version(forest, 4, like=iris), 0.9999))
        reply = await replica.answer(iris, np.array([[1e300, 3.5, 1.4, 0.2]]))

    assert (reply.status, version_of(reply)) == (200, 3)
    tally = served.version("4").tally
    assert (tally.requests, tally.errors) == (1, 1)
    assert replica.answering._under_way == 0


async def test_where_a_challenger_cannot_be_loaded_again_the_champion_answers(replica, iris):
    served = await replica.follow(iris, canary=(as_version(iris, 4), 0.9999))
    challenger = served.version("4")
    challenger.batcher = None
    replica.models._loaded.popitem()
    replica.load_error = NotFound("its file is gone")

    replies = await asyncio.gather(*(replica.answer(iris, iris.x[:1]) for _ in range(3)))

    assert {(reply.status, version_of(reply)) for reply in replies} == {(200, 3)}
    assert (challenger.tally.requests, challenger.tally.errors) == (3, 3)
    assert replica.answering._under_way == 0


async def test_the_champion_answers_for_a_challenger_of_less_precision_from_what_was_sent(replica, iris, forest):
    rough = as_version(forest, 4, like=iris)
    served = await replica.follow(iris, canary=(rough, 0.9999))
    noted(served.version("4")).error = PermanentError("broken")

    await replica.answer(iris, np.array([[5.123456789012345, 3.5, 1.4, 0.2]]))

    assert (await replica.predictions())["sepal_length"].to_pylist() == [5.123456789012345]


async def test_the_champion_of_its_own_plan_answers_for_a_challenger_that_fails_after_the_plan_has_changed(
    replica, iris, ridge
):
    served = await replica.follow(iris, canary=(as_version(iris, 4), 0.9999))
    noted(served.version("4")).error = PermanentError("broken")
    asked = asyncio.create_task(replica.answer(iris, iris.x[[60]]))
    await asyncio.sleep(0)
    await replica.follow(as_version(ridge, 5, like=iris))

    reply = await asked

    assert (reply.status, version_of(reply)) == (200, 3)


# --- failures of ours -------------------------------------------------------------------------------------------------


async def test_an_answer_that_cannot_be_written_is_a_500_and_the_model_goes_on(replica, iris, caplog):
    engine = noted((await replica.follow(iris)).champion)
    run = engine.run
    engine.run = lambda x: [np.array([{1, 2}] * len(x)), run(x)[1]]

    broken = await asyncio.gather(*(replica.answer(iris, iris.x[:1]) for _ in range(3)))
    engine.run = run

    assert [reply.status for reply in broken] == [500] * 3
    assert orjson.loads(broken[0].body) == {"error": "the prediction failed; the log of inference says why"}
    assert "a prediction failed" in caplog.text
    assert (await replica.answer(iris, iris.x[:1])).status == 200
    assert replica.answering._under_way == 0


async def test_too_many_that_wait_are_told_to_try_again(iris):
    replica = Replica(max_waiting=3)
    await replica.follow(iris)

    replies = await asyncio.gather(*(replica.answer(iris, iris.x[:1]) for _ in range(5)))

    assert Counter(reply.status for reply in replies) == {200: 3, 503: 2}
    assert (await replica.answer(iris, iris.x[:1])).status == 200


# --- what is logged ---------------------------------------------------------------------------------------------------


async def test_of_a_model_that_logs_nothing_nothing_is_logged(replica, iris):
    await replica.follow(iris, Logging(sampled=0))

    assert (await replica.answer(iris, iris.x[:3])).status == 200
    await replica.log.close()
    assert replica.outlet.messages == []


async def test_a_share_of_the_requests_is_logged_with_all_their_rows_and_their_own(replica, iris):
    await replica.follow(iris, Logging(sampled=0.3))

    replies = await asyncio.gather(*(replica.answer(iris, iris.x[at : at + 1 + at % 3]) for at in range(147)))

    answered = {}
    for at, reply in enumerate(replies):
        answered[orjson.loads(reply.body)["parameters"]["prediction_id"]] = iris.x[at : at + 1 + at % 3, 0].tolist()
    logged: dict[str, list[float]] = {}
    for row in (await replica.predictions()).to_pylist():
        logged.setdefault(row["prediction_id"].partition(":")[0], []).append(row["sepal_length"])
    assert 15 <= len(logged) <= 80
    assert logged == {prediction_id: answered[prediction_id] for prediction_id in logged}


async def test_prediction_ids_of_a_process_rise(replica, iris):
    await replica.follow(iris)
    ids = [
        orjson.loads((await replica.answer(iris, iris.x[:1])).body)["parameters"]["prediction_id"] for _ in range(20)
    ]

    assert all(earlier < later for earlier, later in pairwise(ids))


# --- durable ----------------------------------------------------------------------------------------------------------


async def test_a_durable_prediction_is_answered_only_when_it_is_on_the_brokers_disk(replica, iris):
    await replica.follow(iris, Logging(durable=True))
    replica.outlet.open.clear()
    asked = [asyncio.create_task(replica.answer(iris, iris.x[[at]])) for at in range(3)]
    await replica.outlet.until(lambda: replica.outlet.tries == 1)
    assert not any(task.done() for task in asked)
    assert replica.tallies.statuses == {}

    replica.outlet.open.set()
    replies = await asyncio.gather(*asked)

    logged = (await replica.predictions())["prediction_id"].to_pylist()
    assert [orjson.loads(reply.body)["parameters"]["prediction_id"] for reply in replies] == logged
    assert replica.tallies.statuses == {("iris", 200): 3}


async def test_a_durable_prediction_that_cannot_be_logged_is_a_503_and_counted_and_traced_as_that_alone(replica, iris):
    await replica.follow(iris, Logging(durable=True))
    replica.outlet.errors = [PermanentError("the stream is sealed")]
    head = Head("iris", context={"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"})

    reply = await replica.answering.answer(head, orjson.dumps(iris.body(iris.x[:1])))

    assert (reply.status, "log: durable" in orjson.loads(reply.body)["error"]) == (503, True)
    assert replica.tallies.statuses == {("iris", 503): 1}
    assert [status for status, _ in replica.finished] == [503]
    assert replica.answering._under_way == 0


async def test_a_durable_prediction_does_not_wait_for_ever(replica, iris, monkeypatch):
    monkeypatch.setattr(answering, "DURABLE_PATIENCE", 0.01)
    await replica.follow(iris, Logging(durable=True))
    replica.outlet.open.clear()

    reply = await replica.answer(iris, iris.x[:1])
    replica.outlet.open.set()
    await replica.log.close()

    assert reply.status == 503
    assert replica.tallies.statuses == {("iris", 503): 1}


async def test_while_the_broker_is_away_not_more_than_the_bound_wait_for_its_disk(iris):
    replica = Replica(max_waiting=2)
    await replica.follow(iris, Logging(durable=True))
    replica.outlet.open.clear()
    asked = [asyncio.create_task(replica.answer(iris, iris.x[:1])) for _ in range(2)]
    await replica.outlet.until(lambda: replica.outlet.tries == 1)

    assert (await replica.answer(iris, iris.x[:1])).status == 503
    replica.outlet.open.set()
    assert [(await task).status for task in asked] == [200, 200]


async def test_a_durable_prediction_is_tried_again_while_the_broker_is_away(replica, iris):
    await replica.follow(iris, Logging(durable=True))
    replica.outlet.errors = [TemporaryError("away")]

    assert (await replica.answer(iris, iris.x[:1])).status == 200
    await until(lambda: len(replica.outlet.messages) == 1)

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from meguri_contracts.errors import TooLarge
from meguri_inference.predicting import LoadedModel
from meguri_inference.prediction_log import MAX_MESSAGE_BYTES, PredictionIds, PredictionLog, read_batch
from meguri_inference.protocol import Answer, Batch

NOON = 1_700_000_000_000_000


class Broker:
    """Keeps what is published; refuses while `errors` last."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.errors: list[Exception] = []
        self.tries = 0
        self._news = asyncio.Condition()

    async def publish(self, model: str, body: bytes) -> None:
        async with self._news:
            self.tries += 1
            self._news.notify_all()
            if self.errors:
                raise self.errors.pop(0)
            self.messages.append((model, body))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with self._news:
            await asyncio.wait_for(self._news.wait_for(condition), 5)

    @property
    def tables(self) -> list[pa.Table]:
        return [read_batch(body) for _, body in self.messages]

    @property
    def ids(self) -> list[str]:
        return [prediction_id for table in self.tables for prediction_id in table["prediction_id"].to_pylist()]


@pytest.fixture
def broker() -> Broker:
    return Broker()


def add(log: PredictionLog, model: LoadedModel, prediction_id: str, x: np.ndarray, **more) -> None:
    (answer,) = model._compute([x])
    told = {"microseconds": NOON, "producer": "cam-7", "trace_id": "t1"} | more
    log.add(model, prediction_id=prediction_id, answer=answer, **told)


async def test_a_batch_holds_who_asked_what_and_what_was_answered(broker, iris):
    log = PredictionLog(broker.publish)
    add(log, iris.load(), "p1", iris.x[[0]])
    add(log, iris.load(), "p2", iris.x[[50]], microseconds=NOON + 1, producer="unknown", trace_id="")

    await log.close()

    assert [model for model, _ in broker.messages] == ["iris", "iris"]
    table = pa.concat_tables(broker.tables)
    probabilities = iris.estimator.predict_proba(iris.x[[0, 50]]).max(axis=1)
    assert table.drop_columns(["probability"]).to_pylist() == [
        {
            "prediction_id": prediction_id,
            "time": datetime(2023, 11, 14, 22, 13, 20, micro, tzinfo=UTC),
            "model": "iris",
            "version": 3,
            "producer": producer,
            "trace_id": trace_id,
            **dict(zip(iris.deployed.signature.features, x.tolist(), strict=True)),
            "label": label,
        }
        for prediction_id, micro, producer, trace_id, x, label in [
            ("p1", 0, "cam-7", "t1", iris.x[0], 0),
            ("p2", 1, "unknown", "", iris.x[50], 1),
        ]
    ]
    np.testing.assert_allclose(table["probability"], probabilities)


async def test_rows_of_one_request_are_numbered_and_share_what_is_said_of_it(broker, iris):
    log, model = PredictionLog(broker.publish), iris.load()
    add(log, model, "a", iris.x[:1], producer="one")
    add(log, model, "b", iris.x[:3], producer="three")

    await log.close()

    (table,) = broker.tables
    assert table["prediction_id"].to_pylist() == ["a", "b:0", "b:1", "b:2"]
    assert table["producer"].to_pylist() == ["one", "three", "three", "three"]


async def test_requests_computed_together_keep_their_own_rows_whatever_the_order_they_are_logged_in(broker, iris):
    log, model = PredictionLog(broker.publish), iris.load()
    questions = {"one": iris.x[[0]], "two": iris.x[[50, 60]], "three": iris.x[[100]], "alone": iris.x[[120]]}
    together = await asyncio.gather(*(model.predict(questions[name]) for name in ("one", "two", "three")))
    answers = dict(zip(("one", "two", "three"), together, strict=True)) | {"alone": await model.predict(iris.x[[120]])}
    assert answers["one"].batch is answers["three"].batch
    for name in ("three", "alone", "two"):
        log.add(model, prediction_id=name, microseconds=NOON, producer=name, trace_id="", answer=answers[name])

    await log.close()

    (table,) = broker.tables
    x = iris.x[[100, 120, 50, 60]]
    assert table["prediction_id"].to_pylist() == ["three", "alone", "two:0", "two:1"]
    assert [table[name].to_pylist() for name in iris.deployed.signature.features] == x.T.tolist()
    assert table["label"].to_pylist() == iris.estimator.predict(x).tolist()


async def test_the_columns_have_the_types_of_the_model(broker, flowers, forest, ridge):
    log = PredictionLog(broker.publish)
    for fitted in (flowers, forest, ridge):
        add(log, fitted.load(), "p", fitted.x[:2])

    await log.close()

    text, single, regression = broker.tables
    assert text.schema.field("label").type == pa.string()
    assert text["label"].to_pylist() == flowers.estimator.predict(flowers.x[:2]).tolist()
    assert text.schema.field("sepal_width").type == pa.float64()
    assert single.schema.field("sepal_width").type == pa.float32()
    assert text.schema.field("time").type == pa.timestamp("us", "UTC")
    np.testing.assert_allclose(regression["prediction"], ridge.estimator.predict(ridge.x[:2]))
    assert "label" not in regression.column_names


async def test_versions_never_share_a_message(broker, iris):
    log, old, new = PredictionLog(broker.publish), iris.load(), iris.load()
    new.version = 4
    for at, model in enumerate([old, new, old]):
        add(log, model, str(at), iris.x[:1])

    await log.close()

    assert [set(table["version"].to_pylist()) for table in broker.tables] == [{3}, {4}]
    assert sorted(broker.ids) == ["0", "1", "2"]


async def test_nothing_is_sent_before_the_linger_is_over_and_all_of_it_after(broker, iris):
    log, model = PredictionLog(broker.publish, linger=0.02), iris.load()
    add(log, model, "a", iris.x[:1])
    add(log, model, "b", iris.x[:1])
    assert broker.tries == 0

    await broker.until(lambda: len(broker.messages) == 1)

    assert broker.ids == ["a", "b"]


async def test_enough_rows_are_sent_without_waiting(broker, iris):
    log, model = PredictionLog(broker.publish, max_rows=3, linger=3600), iris.load()
    for name in "abcd":
        add(log, model, name, iris.x[:1])

    await broker.until(lambda: len(broker.messages) == 1)

    assert broker.ids == ["a", "b", "c"]
    await log.close()
    assert broker.ids == ["a", "b", "c", "d"]


async def test_closing_sends_what_one_round_leaves_over(broker, iris):
    log, model = PredictionLog(broker.publish, max_rows=3, linger=3600), iris.load()
    for name in "abcd":
        add(log, model, name, iris.x[:1])

    await log.close()

    assert broker.ids == ["a", "b", "c", "d"]


async def test_an_idle_log_has_neither_timer_nor_task(broker, iris):
    log = PredictionLog(broker.publish, linger=0.001)
    add(log, iris.load(), "a", iris.x[:1])
    await broker.until(lambda: len(broker.messages) == 1)
    await asyncio.gather(*(task for task in asyncio.all_tasks() if task is not asyncio.current_task()))

    assert log._timer is None
    assert log._sender is None


async def test_many_rows_are_split_into_messages_below_the_limit(broker, forest):
    log, model = PredictionLog(broker.publish, max_rows=100_000), forest.load()
    x = np.repeat(forest.x, 100, axis=0)
    add(log, model, "big", x, producer="a name " * 100)
    add(log, model, "small", x[:1])

    await log.close()

    assert len(broker.messages) > 1
    assert max(len(body) for _, body in broker.messages) <= MAX_MESSAGE_BYTES
    assert broker.ids == [f"big:{row}" for row in range(15_000)] + ["small"]
    together = pa.concat_tables(broker.tables)
    assert together["sepal_width"].to_numpy().tolist() == [*x[:, 1].tolist(), x[0, 1]]


async def test_long_labels_make_smaller_messages(broker, flowers):
    log, model = PredictionLog(broker.publish), flowers.load()
    labels = np.array([f"{row:02000}" for row in range(800)], object)
    batch = Batch(np.zeros((800, 4)), [labels, np.full((800, 3), 1 / 3)])
    answer = Answer(batch, 0, 800)
    log.add(model, prediction_id="p", microseconds=NOON, producer="cam-7", trace_id="", answer=answer)

    await log.close()

    assert max(len(body) for _, body in broker.messages) <= MAX_MESSAGE_BYTES
    assert pa.concat_tables(broker.tables)["label"].to_pylist() == labels.tolist()


async def test_a_message_that_failed_is_sent_again_and_nothing_is_lost_or_doubled(broker, iris, caplog):
    log, model = PredictionLog(broker.publish, linger=0.001, retry=0.001), iris.load()
    broker.errors = [ConnectionError("broker away")] * 3
    add(log, model, "a", iris.x[:1])
    await broker.until(lambda: broker.tries == 2)
    add(log, model, "b", iris.x[:1])

    await broker.until(lambda: len(broker.messages) == 2)

    assert broker.ids == ["a", "b"]
    assert log.dropped == 0
    assert "broker away" in caplog.text


async def test_a_message_that_can_never_be_sent_is_counted_and_does_not_block_the_rest(broker, iris):
    log, model = PredictionLog(broker.publish, linger=3600), iris.load()
    broker.errors = [TooLarge("the stream takes 1 byte")]
    add(log, model, "a", iris.x[:2])
    log._send_soon()
    await broker.until(lambda: broker.tries == 1)
    add(log, model, "b", iris.x[:1])

    await log.close()

    assert broker.ids == ["b"]
    assert log.dropped == 2


async def test_what_cannot_be_written_is_counted_and_does_not_block_the_rest(broker, iris):
    log, model = PredictionLog(broker.publish, max_rows=1, linger=0.001), iris.load()
    add(log, model, "a", iris.x[:1], trace_id="\ud800")
    (sender,) = asyncio.all_tasks() - {asyncio.current_task()}
    with pytest.raises(ExceptionGroup):
        await sender
    add(log, model, "b", iris.x[:1])

    await log.close()

    assert broker.ids == ["b"]
    assert log.dropped == 1


async def test_while_the_broker_is_away_the_oldest_are_dropped_beyond_the_bound(broker, iris, caplog):
    log, model = PredictionLog(broker.publish, linger=3600, max_pending_bytes=20_000), iris.load()
    with caplog.at_level(logging.ERROR):
        for at in range(100):
            add(log, model, f"{at:02}", iris.x[:1])

    await log.close()

    kept = broker.ids
    assert kept == [f"{at:02}" for at in range(100 - len(kept), 100)]
    assert 10 <= len(kept) <= 20
    assert log.dropped == 100 - len(kept)
    assert "dropped" in caplog.text


async def test_closing_gives_up_after_its_patience_and_counts_what_is_lost(broker, iris):
    log, model = PredictionLog(broker.publish, retry=3600), iris.load()
    broker.errors = [ConnectionError("broker away")]
    add(log, model, "a", iris.x[:2])
    log._send_soon()
    await broker.until(lambda: broker.tries == 1)
    add(log, model, "b", iris.x[:3])

    await log.close(patience=0.01)

    assert broker.messages == []
    assert log.dropped == 5


def test_prediction_ids_are_unique_and_sort_by_time():
    one, other = PredictionIds(), PredictionIds()

    ids = [one.next(NOON + at // 100) for at in range(1000)]

    assert ids == sorted(set(ids))
    assert {len(made) for made in ids} == {28}
    assert one.next(NOON) != other.next(NOON)
    assert other.next(NOON) < one.next(NOON + 1)

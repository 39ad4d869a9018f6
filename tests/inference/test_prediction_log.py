import asyncio
import logging
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from meguri_contracts.errors import TooLarge
from meguri_contracts.predictions import FEATURES
from meguri_inference.predicting import LoadedModel
from meguri_inference.prediction_ids import MAX_AT_ONCE, MAX_NUMBER, PredictionIds
from meguri_inference.prediction_log import PredictionLog
from meguri_inference.prediction_messages import MAX_MESSAGE_BYTES, Logged
from meguri_inference.protocol import Batch
from tests.inference.replicas import Outlet

NOON = 1_700_000_000_000_000
IDS = PredictionIds()


def add(log: PredictionLog, model: LoadedModel, x: np.ndarray, **more: Any) -> None:
    """Log one request of these rows."""
    batch, rows = more.pop("batch", None) or model.compute([x]), more.pop("rows", slice(None))
    told = {
        "role": "champion",
        "x": batch.x[rows],
        "outputs": [values[rows] for values in batch.outputs],
        "counts": [len(x)],
        "microseconds": NOON,
        "numbers": IDS.take(1),
        "producers": ["cam-7"],
        "entities": None,
        "trace_ids": {},
        "seconds": np.array([7e-6]),
    }
    log.add(Logged(model=model, **(told | more)))


def numbers(outlet: Outlet) -> list[int]:
    """The numbers of the published predictions, in their order."""
    ids = [one for table in outlet.tables for one in table["prediction_id"].to_pylist()]
    return [int(one.partition(":")[0][-6:], 16) for one in ids]


def prediction_id(number: int, microseconds: int = NOON) -> str:
    return f"{microseconds:014x}{IDS.process}{number:06x}"


async def test_a_batch_holds_who_asked_what_and_what_was_answered(outlet, iris):
    log = PredictionLog(outlet.publish, IDS)
    own, trace_id = (
        {"producers": ["unknown"], "trace_ids": {0: "t2"}, "entities": ["customer-9"]},
        IDS.trace_suffix,
    )
    add(log, iris.load(), iris.x[[0]], numbers=[1])
    add(
        log,
        iris.load(),
        iris.x[[50]],
        numbers=[2],
        microseconds=NOON + 1,
        role="canary",
        seconds=np.array([8.1e-6]),
        **own,
    )

    await log.close()

    assert [model for model, _ in outlet.messages] == ["iris", "iris"]
    table = pa.concat_tables(outlet.tables)
    probabilities = iris.estimator.predict_proba(iris.x[[0, 50]]).max(axis=1)
    assert table.drop_columns(["probability"]).to_pylist() == [
        {
            "prediction_id": prediction_id(micro + 1, NOON + micro),
            "time": datetime(2023, 11, 14, 22, 13, 20, micro, tzinfo=UTC),
            "model": "iris",
            "version": 3,
            "producer": producer,
            "trace_id": trace_id,
            "_entity": entity,
            "_role": role,
            "_latency": 7 + micro,
            **dict(zip(iris.deployed.signature.features, x.tolist(), strict=True)),
            "label": label,
        }
        for micro, producer, trace_id, entity, role, x, label in [
            (0, "cam-7", prediction_id(1) + trace_id, None, "champion", iris.x[0], 0),
            (1, "unknown", "t2", "customer-9", "canary", iris.x[50], 1),
        ]
    ]
    np.testing.assert_allclose(table["probability"], probabilities)


async def test_rows_of_one_request_are_numbered_and_share_what_is_said_of_it(outlet, iris):
    log, model = PredictionLog(outlet.publish, IDS), iris.load()
    add(log, model, iris.x[:1], numbers=[1], producers=["one"])
    add(log, model, iris.x[:3], numbers=[2], producers=["three"])

    await log.close()

    (table,) = outlet.tables
    assert table["prediction_id"].to_pylist() == [prediction_id(1), *(f"{prediction_id(2)}:{row}" for row in range(3))]
    assert table["producer"].to_pylist() == ["one", "three", "three", "three"]


async def test_requests_computed_together_keep_their_own_rows_whatever_the_order_they_are_logged_in(outlet, iris):
    log, model = PredictionLog(outlet.publish, IDS), iris.load()
    together = model.compute([iris.x[[0]], iris.x[[50, 60]], iris.x[[100]]])
    one = {"batch": together, "counts": [1], "rows": np.array([3]), "numbers": [3]}
    two = {"batch": together, "counts": [2, 1], "rows": np.array([1, 2, 0]), "numbers": [2, 1]}
    pair = {"producers": ["a", "b"], "seconds": np.array([1e-6, 2e-6])}
    add(log, model, iris.x[[100]], **one)
    add(log, model, iris.x[[120]], numbers=[4])
    add(log, model, iris.x[:3], **two, **pair)

    await log.close()

    (table,) = outlet.tables
    x = iris.x[[100, 120, 50, 60, 0]]
    assert numbers(outlet) == [3, 4, 2, 2, 1]
    assert table["producer"].to_pylist() == ["cam-7", "cam-7", "a", "a", "b"]
    assert [table[name].to_pylist() for name in iris.deployed.signature.features] == x.T.tolist()
    assert table["label"].to_pylist() == iris.estimator.predict(x).tolist()


async def test_the_columns_have_the_types_of_the_model(outlet, flowers, forest, ridge):
    log = PredictionLog(outlet.publish, IDS)
    for fitted in (flowers, forest, ridge):
        add(log, fitted.load(), fitted.x[:2])

    await log.close()

    text, single, regression = outlet.tables
    assert text["label"].to_pylist() == flowers.estimator.predict(flowers.x[:2]).tolist()
    precisions = [pa.ipc.open_stream(body).schema.field(FEATURES).type.value_type for _, body in outlet.messages]
    assert precisions == [pa.float64(), pa.float32(), pa.float64()]
    assert single["sepal_width"].to_pylist() == np.float32(forest.x[:2, 1]).tolist()
    assert text.schema.field("time").type == pa.timestamp("us", "UTC")
    np.testing.assert_allclose(regression["prediction"], ridge.estimator.predict(ridge.x[:2]))
    assert "label" not in regression.column_names


async def test_versions_never_share_a_message(outlet, iris):
    log, old, new = PredictionLog(outlet.publish, IDS), iris.load(), iris.load()
    new.version = 4
    for at, model in enumerate([old, new, old]):
        add(log, model, iris.x[:1], numbers=[at])

    await log.close()

    assert [set(table["version"].to_pylist()) for table in outlet.tables] == [{3}, {4}]
    assert sorted(numbers(outlet)) == [0, 1, 2]


async def test_nothing_is_sent_before_the_linger_is_over_and_all_of_it_after(outlet, iris):
    log, model = PredictionLog(outlet.publish, IDS, linger=0.02), iris.load()
    add(log, model, iris.x[:1], numbers=[0])
    add(log, model, iris.x[:1], numbers=[1])
    assert outlet.tries == 0

    await outlet.until(lambda: len(outlet.messages) == 1)

    assert numbers(outlet) == [0, 1]


async def test_enough_rows_are_sent_without_waiting(outlet, iris):
    log, model = PredictionLog(outlet.publish, IDS, max_rows=3, linger=3600), iris.load()
    for number in range(4):
        add(log, model, iris.x[:1], numbers=[number])

    await outlet.until(lambda: len(outlet.messages) == 1)

    assert numbers(outlet) == [0, 1, 2]
    await log.close()
    assert numbers(outlet) == [0, 1, 2, 3]


async def test_closing_sends_what_one_round_leaves_over(outlet, iris):
    log, model = PredictionLog(outlet.publish, IDS, max_rows=3, linger=3600), iris.load()
    for number in range(4):
        add(log, model, iris.x[:1], numbers=[number])

    await log.close()

    assert numbers(outlet) == [0, 1, 2, 3]


async def test_an_idle_log_has_neither_timer_nor_task(outlet, iris):
    log = PredictionLog(outlet.publish, IDS, linger=0.001)
    add(log, iris.load(), iris.x[:1], numbers=[0])
    await outlet.until(lambda: len(outlet.messages) == 1)
    await asyncio.gather(*(task for task in asyncio.all_tasks() if task is not asyncio.current_task()))

    assert log._timer is None
    assert log._sender is None


async def test_many_rows_are_split_into_messages_below_the_limit(outlet, forest):
    log, model = PredictionLog(outlet.publish, IDS, max_rows=100_000), forest.load()
    x = np.repeat(forest.x, 100, axis=0)
    add(log, model, x, numbers=[1], producers=["a name " * 100])
    add(log, model, x[:1], numbers=[2])

    await log.close()

    assert len(outlet.messages) > 1
    assert max(len(body) for _, body in outlet.messages) <= MAX_MESSAGE_BYTES
    together = pa.concat_tables(outlet.tables)
    rows = [f"{prediction_id(1)}:{row}" for row in range(15_000)]
    assert together["prediction_id"].to_pylist() == [*rows, prediction_id(2)]
    assert together["sepal_width"].to_numpy().tolist() == [*x[:, 1].tolist(), x[0, 1]]


async def test_long_labels_make_smaller_messages(outlet, flowers):
    log, model = PredictionLog(outlet.publish, IDS), flowers.load()
    labels = np.array([f"{row:02000}" for row in range(800)], object)
    batch = Batch(np.zeros((800, 4)), [labels, np.full((800, 3), 1 / 3)])
    add(log, model, batch.x, batch=batch)

    await log.close()

    assert max(len(body) for _, body in outlet.messages) <= MAX_MESSAGE_BYTES
    assert pa.concat_tables(outlet.tables)["label"].to_pylist() == labels.tolist()


async def test_a_message_that_failed_is_sent_again_and_nothing_is_lost_or_doubled(outlet, iris, caplog):
    log, model = PredictionLog(outlet.publish, IDS, linger=0.001, retry=0.001), iris.load()
    outlet.errors = [ConnectionError("outlet away")] * 3
    add(log, model, iris.x[:1], numbers=[0])
    await outlet.until(lambda: outlet.tries == 2)
    add(log, model, iris.x[:1], numbers=[1])

    await outlet.until(lambda: len(outlet.messages) == 2)

    assert numbers(outlet) == [0, 1]
    assert log.dropped == 0
    assert "outlet away" in caplog.text


async def test_a_message_that_can_never_be_sent_is_counted_and_does_not_block_the_rest(outlet, iris):
    log, model = PredictionLog(outlet.publish, IDS, linger=3600), iris.load()
    outlet.errors = [TooLarge("the stream takes 1 byte")]
    add(log, model, iris.x[:2], numbers=[0])
    log._send_soon()
    await outlet.until(lambda: outlet.tries == 1)
    add(log, model, iris.x[:1], numbers=[1])

    await log.close()

    assert numbers(outlet) == [1]
    assert log.dropped == 2


async def test_what_cannot_be_written_is_counted_and_does_not_block_the_rest(outlet, iris):
    log, model = PredictionLog(outlet.publish, IDS, max_rows=1, linger=0.001), iris.load()
    add(log, model, iris.x[:1], numbers=[0], trace_ids={0: "\ud800"})
    (sender,) = asyncio.all_tasks() - {asyncio.current_task()}
    with pytest.raises(ExceptionGroup):
        await sender
    add(log, model, iris.x[:1], numbers=[1])

    await log.close()

    assert numbers(outlet) == [1]
    assert log.dropped == 1


async def test_while_the_broker_is_away_the_oldest_are_dropped_beyond_the_bound(outlet, iris, caplog):
    log, model = PredictionLog(outlet.publish, IDS, linger=3600, max_pending_bytes=42_000), iris.load()
    with caplog.at_level(logging.ERROR):
        for at in range(100):
            add(log, model, iris.x[:1], numbers=[at])

    await log.close()

    kept = numbers(outlet)
    assert kept == list(range(100 - len(kept), 100))
    assert 30 <= len(kept) <= 40
    assert log.dropped == 100 - len(kept)
    assert "dropped" in caplog.text


async def test_closing_gives_up_after_its_patience_and_counts_what_is_lost(outlet, iris):
    log, model = PredictionLog(outlet.publish, IDS, retry=3600), iris.load()
    outlet.errors = [ConnectionError("outlet away")]
    add(log, model, iris.x[:2], numbers=[0])
    log._send_soon()
    await outlet.until(lambda: outlet.tries == 1)
    add(log, model, iris.x[:3], numbers=[1])

    await log.close(patience=0.01)

    assert outlet.messages == []
    assert log.dropped == 5


def test_prediction_ids_are_unique_and_sort_by_time():
    one, other = PredictionIds(), PredictionIds()

    ids = [f"{one.prefix(NOON + at // 100)}{one.take(1)[0]:06x}" for at in range(1000)]

    assert ids == sorted(set(ids))
    assert {len(made) for made in ids} == {28}
    assert one.prefix(NOON) != other.prefix(NOON)
    assert other.prefix(NOON)[:14] < one.prefix(NOON + 1)[:14]


def test_the_numbers_of_predictions_begin_anew_before_they_need_a_seventh_digit():
    ids = PredictionIds()
    ids._next = MAX_NUMBER - MAX_AT_ONCE - 1

    assert ids.take(MAX_AT_ONCE)[-1] < MAX_NUMBER
    assert ids.take(2) == range(2)


# --- durable ----------------------------------------------------------------------------------------------------------


async def test_who_waits_for_the_disk_is_told_when_all_messages_of_his_have_arrived(outlet, forest):
    log, model, told = PredictionLog(outlet.publish, IDS, linger=3600), forest.load(), []
    outlet.open.clear()
    add(log, model, np.repeat(forest.x, 100, axis=0), then=lambda safe: told.append((safe, len(outlet.messages))))
    await outlet.until(lambda: outlet.tries > 1)
    assert told == []

    outlet.open.set()
    await log.close()

    assert told == [(True, len(outlet.messages))]


async def test_who_waits_for_the_disk_is_told_that_his_prediction_is_lost(outlet, iris):
    log, model, told = PredictionLog(outlet.publish, IDS, linger=3600), iris.load(), []
    outlet.errors = [TooLarge("the stream takes 1 byte")]
    add(log, model, iris.x[:1], then=told.append)
    await outlet.until(lambda: outlet.tries == 1)

    await log.close()

    assert told == [False]


async def test_who_waits_for_the_disk_is_told_when_his_prediction_makes_room_for_later_ones(outlet, iris):
    log, model, told = PredictionLog(outlet.publish, IDS, linger=3600, max_pending_bytes=4000), iris.load(), []
    for _ in range(4):
        add(log, model, iris.x[:1], then=told.append)

    assert told == [False]
    await log.close()
    assert told == [False, True, True, True]


async def test_what_cannot_be_written_is_told_to_those_who_wait_for_it(outlet, iris):
    log, told = PredictionLog(outlet.publish, IDS, linger=3600), []
    add(log, iris.load(), iris.x[:1], trace_ids={0: "\ud800"}, then=told.append)
    (sender,) = asyncio.all_tasks() - {asyncio.current_task()}
    with pytest.raises(ExceptionGroup):
        await sender

    assert told == [False]

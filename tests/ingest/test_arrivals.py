import asyncio
import json
from datetime import UTC, datetime
from urllib.parse import unquote

import polars as pl
import pytest

from meguri_contracts.events import DataCommitted, DataRejected
from meguri_contracts.names import derived_id
from meguri_ingest.tables import Batch, DatasetTable
from tests.conftest import until
from tests.ingest.upstream import ARRIVED, body, headers, ingesting, spec
from tests.services import name, wire

# --- what is taken ----------------------------------------------------------------------------------------------------


async def test_records_in_binary_mode_become_rows_with_a_receipt(ingest):
    id_ = name("e")
    sequence = await ingest.send(body(1, 2), headers(id_))

    receipt = await ingest.receipt(id_)
    (committed,) = await ingest.wire.said(DataCommitted, ingest.dataset)
    assert receipt["status"] == "committed"
    assert (receipt["producer"], receipt["rows"], receipt["sequence"]) == ("sensor-1", 2, sequence)
    assert receipt["dataset_version"] == committed.version
    assert committed.causes == (id_,)
    assert ingest.stored().select("x", "_event", "_producer").rows() == [(1.0, id_, "sensor-1"), (2.0, id_, "sensor-1")]


async def test_bare_json_gets_its_id_from_the_stream_and_its_producer_from_the_body(ingest):
    sequence = await ingest.send(body(1, producer="a camera"))

    receipt = await ingest.receipt(f"meguri-{sequence}")
    assert (receipt["status"], receipt["producer"]) == ("committed", "a camera")


async def test_a_file_under_the_allowed_root_is_read(ingest):
    incoming = ingest.folder / "incoming" / "new files"
    incoming.mkdir(parents=True)
    (incoming / "rows.csv").write_text("x,label\n1.5,1\n2.5,0\n")
    id_ = name("e")
    await ingest.send(json.dumps({"uri": (incoming / "rows.csv").as_uri()}).encode(), headers(id_))

    assert (await ingest.receipt(id_))["status"] == "committed"
    assert ingest.stored()["x"].to_list() == [1.5, 2.5]


async def test_bad_rows_are_set_aside_with_the_reason_and_the_good_ones_committed(ingest):
    id_ = name("e")
    await ingest.send(body(1, 101, 2), headers(id_))

    receipt = await ingest.receipt(id_)
    assert (receipt["status"], receipt["rows"], receipt["quarantined"]) == ("committed", 2, 1)
    assert ingest.stored()["x"].to_list() == [1.0, 2.0]
    (bad,) = ingest.quarantined().rows(named=True)
    assert bad["reason"] == "x: 101.0 is above the maximum 100"
    assert (bad["_event"], bad["_producer"]) == (id_, "sensor-1")


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b'{"records": [{"y": 1}]}', "the batch lacks x, label and has undeclared y"),
        (b'{"records": []}', "the batch is empty"),
        (b"{}", "exactly one of 'records' (rows) and 'uri' (a file) is needed"),
        (b'{"records": [], "uri": "file:///x.csv"}', "exactly one of 'records' (rows) and 'uri' (a file) is needed"),
        (body(101, 102, 1), "2 of 3 rows are bad, at most 50% may be"),
    ],
    ids=["other-columns", "empty", "nothing", "both", "too-many-bad"],
)
async def test_what_can_be_read_but_not_taken_gets_a_receipt_that_says_why(ingest, sent, reason):
    id_ = name("e")
    await ingest.send(sent, headers(id_))

    receipt = await ingest.receipt(id_)
    assert (receipt["status"], receipt["dataset"], receipt["producer"]) == ("rejected", ingest.dataset, "sensor-1")
    assert reason in receipt["reason"]
    (rejected,) = await ingest.wire.said(DataRejected, ingest.dataset)
    assert (rejected.event, rejected.reason) == (id_, receipt["reason"])


async def test_an_unknown_dataset_is_refused_with_the_known_ones(ingest):
    id_ = name("e")
    await ingest.send(body(1), headers(id_), dataset=name("unknown"))

    receipt = await ingest.receipt(id_)
    assert receipt["status"] == "rejected"
    assert "no applied model spec declares it" in receipt["reason"]
    assert ingest.dataset in receipt["reason"]


async def test_a_file_that_is_not_there_is_refused(ingest):
    id_ = name("e")
    uri = (ingest.folder / "incoming/nothing.csv").as_uri()
    await ingest.send(json.dumps({"uri": uri}).encode(), headers(id_))

    assert (await ingest.receipt(id_))["reason"] == f"there is nothing at {uri!r}"


@pytest.mark.parametrize("way", ["plain", "dots", "link", "encoded"])
async def test_a_file_outside_the_roots_is_refused_however_it_is_named(ingest, way):
    incoming, secret = ingest.folder / "incoming", ingest.folder / "secret.csv"
    incoming.mkdir()
    secret.write_text("x,label\n1,1\n")
    (incoming / "link.csv").symlink_to(secret)
    uri = {
        "plain": secret.as_uri(),
        "dots": f"{incoming.as_uri()}/../secret.csv",
        "link": f"{incoming.as_uri()}/link.csv",
        "encoded": f"{incoming.as_uri()}/%2e%2e/secret.csv",
    }[way]
    id_ = name("e")
    await ingest.send(json.dumps({"uri": uri}).encode(), headers(id_))

    receipt = await ingest.receipt(id_)
    assert receipt["status"] == "rejected"
    assert "is not under an allowed root" in receipt["reason"]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b'{"records": [', "the body is not JSON"),
        (b"[1]", "the body is a JSON list, an object is expected"),
        (b'{"records": 5}', "records: Input should be a valid tuple"),
        (b'{"dataset": "other"}', "dataset is 'other' in the body"),
        (body(*range(60_000)), "bytes, at most 1,048,576 are allowed: put the rows into a file and send its uri"),
    ],
    ids=["no-json", "a-list", "no-rows", "another-dataset", "too-large"],
)
async def test_what_cannot_be_read_is_a_dead_letter_and_its_receipt_says_why(ingest, sent, reason):
    id_ = name("e")
    sequence = await ingest.send(sent, headers(id_))

    receipt = await ingest.receipt(id_)
    assert (receipt["status"], receipt["dataset"], receipt["producer"]) == ("parked", ingest.dataset, "sensor-1")
    assert (receipt["sequence"], receipt["letter"], receipt["heard"]) == (sequence, sequence, 1)
    assert reason in receipt["reason"]
    assert reason in unquote((await ingest.parked(sequence))["meguri-reason"])
    assert await ingest.wire.said(DataRejected, ingest.dataset) == []


@pytest.mark.parametrize("key", ["Upper", "a.b", "x" * 64])
async def test_what_names_no_possible_dataset_is_a_dead_letter(ingest, key):
    id_ = name("e")
    sequence = await ingest.send(body(1), headers(id_), dataset=key)

    assert (await ingest.receipt(id_))["dataset"] == key

    letter = await ingest.parked(sequence)
    assert "which is no name" in unquote(letter["meguri-reason"])
    assert letter["meguri-subject"] == f"meguri.events.{ARRIVED}.{key}"


# --- ids --------------------------------------------------------------------------------------------------------------


async def test_an_event_sent_twice_is_in_the_table_once(ingest):
    id_ = name("e")
    first = await ingest.send(body(1, 2), headers(id_, **{"Nats-Msg-Id": id_}))
    again = await ingest.send(body(1, 2), headers(id_, **{"Nats-Msg-Id": id_}))
    await ingest.receipt(id_)
    # As after the broker has forgotten the id.
    await ingest.send(body(1, 2), headers(id_))
    await ingest.send(body(1, 2), headers(id_))
    await ingest.settle()

    assert again == first
    assert ingest.stored()["x"].to_list() == [1.0, 2.0, 100.0]
    assert (await ingest.receipt(id_))["heard"] == 3


async def test_the_same_event_twice_at_once_is_in_the_table_once(ingest):
    id_ = name("e")
    await asyncio.gather(*(ingest.send(body(1, 2), headers(id_)) for _ in range(5)))

    assert (await ingest.receipt(id_))["status"] == "committed"
    await ingest.settle()
    assert ingest.stored()["x"].to_list() == [1.0, 2.0, 100.0]


@pytest.mark.parametrize("second", [body(9), body(101)], ids=["good", "bad"])
async def test_an_id_that_another_producer_used_is_a_dead_letter_and_the_first_receipt_stands(ingest, second):
    id_ = name("e")
    await ingest.send(body(1), headers(id_, "sensor-1"))
    first = await ingest.receipt(id_)
    taken = await ingest.send(second, headers(id_, "sensor-2"))

    letter = await ingest.parked(taken)
    assert f"id '{id_}' was used by sensor-1" in unquote(letter["meguri-reason"])
    assert await ingest.receipt(id_) == first
    assert ingest.stored()["x"].to_list() == [1.0]
    assert await ingest.wire.said(DataRejected, ingest.dataset) == []


@pytest.mark.parametrize("source", ["sensor-1", "sensor-2"])
async def test_what_cannot_be_read_under_a_used_id_is_a_dead_letter_and_the_first_receipt_stands(ingest, source):
    id_ = name("e")
    await ingest.send(body(1), headers(id_))
    first = await ingest.receipt(id_)
    sequence = await ingest.send(b"no JSON", headers(id_, source))

    await ingest.parked(sequence)
    await ingest.settle()
    assert await ingest.receipt(id_) == first


# --- what was parked and put right ------------------------------------------------------------------------------------


async def test_a_dead_letter_that_is_put_right_is_committed_once(ingest):
    id_ = name("e")
    parked = await ingest.send(b'{"records": [', headers(id_))
    assert (await ingest.receipt(id_))["status"] == "parked"
    repaired = await ingest.redrive(parked, id_, body(1, 2))

    receipt = await ingest.receipt(id_)
    assert (receipt["status"], receipt["sequence"], receipt["reason"]) == ("committed", repaired, "")
    # The letter, the repaired message and the word of it may each come again.
    await ingest.redrive(parked, id_, body(1, 2))
    await ingest.settle()
    assert (await ingest.receipt(id_))["status"] == "committed"
    assert ingest.stored()["x"].to_list() == [1.0, 2.0, 100.0]


async def test_a_producer_that_only_the_repaired_body_names_is_the_producer(ingest):
    id_ = name("e")
    parked = await ingest.send(b'{"records": [', {"ce-id": id_})
    assert (await ingest.receipt(id_))["producer"] == "unknown"
    await ingest.redrive(parked, id_, body(1, producer="a camera"), source=None)

    receipt = await ingest.receipt(id_)
    assert (receipt["status"], receipt["producer"]) == ("committed", "a camera")


async def test_a_dead_letter_that_is_sent_back_as_it_was_is_parked_again(ingest):
    id_ = name("e")
    parked = await ingest.send(b"no JSON", headers(id_))
    await ingest.receipt(id_)
    again = await ingest.redrive(parked, id_, b"no JSON")

    await until(lambda: ingest.has_letter(id_, again))
    receipt = await ingest.receipt(id_)
    assert (receipt["status"], receipt["letter"], receipt["heard"]) == ("parked", again, 2)


async def test_what_could_be_read_and_was_parked_all_the_same_is_committed_when_it_is_sent_back(ingest):
    id_ = name("e")
    async with ingest.held():
        sequence = await ingest.send(body(1), headers(id_))
        await ingest.park(sequence, id_)
        assert (await ingest.receipt(id_))["status"] == "parked"
        await ingest.redrive(sequence, id_, body(1))
        waiting = (await ingest.http.get(f"/receipts/{id_}")).json()
        assert (waiting["status"], waiting["reason"]) == ("waiting", "sent back by test")

    assert (await ingest.receipt(id_))["status"] == "committed"
    await ingest.settle()
    assert ingest.stored()["x"].to_list() == [1.0, 100.0]


async def test_the_id_of_a_letter_that_nobody_could_read_belongs_to_the_first_that_can_be_read(ingest):
    id_ = name("e")
    parked = await ingest.send(b"no JSON", headers(id_, "sensor-1"))
    await ingest.receipt(id_)
    await ingest.send(body(2), headers(id_, "sensor-2"))
    assert (await ingest.receipt(id_))["status"] == "committed"
    late = await ingest.redrive(parked, id_, body(1))

    assert "was used by sensor-2" in unquote((await ingest.parked(late))["meguri-reason"])
    receipt = await ingest.receipt(id_)
    assert (receipt["status"], receipt["producer"]) == ("committed", "sensor-2")
    assert ingest.stored()["x"].to_list() == [2.0]


async def test_an_id_that_is_too_long_harms_no_neighbour(ingest):
    long, ids = "x" * 257, [name("e") for _ in range(3)]
    await asyncio.gather(ingest.send(body(9), headers(long)), *(ingest.send(body(1), headers(id_)) for id_ in ids))

    assert {(await ingest.receipt(id_))["status"] for id_ in (derived_id(long), *ids)} == {"committed"}
    assert ingest.stored()["x"].to_list() == [1.0] * 3 + [9.0]


# --- many, and in spite of crashes ------------------------------------------------------------------------------------


async def test_what_arrives_together_becomes_few_versions_and_each_gets_its_receipt(ingest):
    ids = [name("e") for _ in range(50)]
    await asyncio.gather(*(ingest.send(body(n, n + 0.5), headers(id_)) for n, id_ in enumerate(ids)))

    receipts = [await ingest.receipt(id_) for id_ in ids]
    assert {receipt["status"] for receipt in receipts} == {"committed"}
    versions = await ingest.versions()
    assert len(versions) <= 10
    assert sum(version["rows"] for version in versions) == versions[0]["total_rows"] == 100
    assert ingest.stored()["x"].to_list() == sorted([*range(50), *(n + 0.5 for n in range(50))])


async def test_a_commit_that_a_crash_left_unsaid_is_said_once_and_its_rows_stand_once(broker, database_url, tmp_path):
    dataset, id_ = name("d"), name("e")
    async with wire(broker) as beside:
        await beside.apply(spec(dataset))
        await beside.publish(ARRIVED, dataset, body(1, 2), headers(id_))
        # This is how far ingest came before it died.
        good = pl.DataFrame({"x": [1.0, 2.0], "label": [1, 1]})
        batch = Batch(event=id_, producer="sensor-1", good=good)
        unsaid = DatasetTable(str(tmp_path / "data" / dataset)).commit(dataset, [batch], datetime.now(UTC))

    async with ingesting(broker, database_url, tmp_path, dataset) as ingest:
        receipt = await ingest.receipt(id_)
        later = name("e")
        await ingest.send(body(3), headers(later))
        await ingest.receipt(later)

        assert (receipt["status"], receipt["dataset_version"]) == ("committed", unsaid.version)
        said = await ingest.wire.said(DataCommitted, dataset)
        assert said[0] == unsaid
        assert [event.causes for event in said] == [(id_,), (later,)]
        assert ingest.stored()["x"].to_list() == [1.0, 2.0, 3.0]


async def test_replicas_share_a_dataset_and_each_row_stands_once(broker, database_url, tmp_path):
    dataset, ids = name("d"), [name("e") for _ in range(100)]
    async with (
        ingesting(broker, database_url, tmp_path, dataset) as one,
        ingesting(broker, database_url, tmp_path, dataset) as other,
    ):
        await one.wire.apply(spec(dataset))
        await asyncio.gather(*((one, other)[n % 2].send(body(n), headers(id_)) for n, id_ in enumerate(ids)))
        receipts = [await one.receipt(id_) for id_ in ids]

        assert {receipt["status"] for receipt in receipts} == {"committed"}
        assert one.stored()["x"].to_list() == [float(n) for n in range(100)]
        said = await one.wire.said(DataCommitted, dataset)
        assert [event.version for event in said] == sorted({event.version for event in said})
        assert sorted(cause for event in said for cause in event.causes) == sorted(ids)
        assert said[-1].total_rows == 100
        assert await other.versions() == await one.versions()


async def test_odd_hops_of_a_cause_do_not_keep_what_it_led_to_from_being_committed(ingest):
    cause, id_ = name("e"), name("e")
    await ingest.send(body(1), headers(cause, **{"ce-hops": "²"}))
    await ingest.receipt(cause)
    await ingest.send(body(2), headers(id_, **{"ce-causeid": cause}))

    assert (await ingest.receipt(id_))["status"] == "committed"

import asyncio
import io
import json
from typing import Any

import polars as pl
import pytest

from meguri_contracts.events import DataArrived, LabelsArrived
from meguri_contracts.spec import ModelSpec
from meguri_ingest.app import build
from meguri_ingest.settings import Settings
from tests.conftest import PATIENCE, until
from tests.services import name, running, wire

RECORDS = [{"x": 1.0, "label": 1}, {"x": 2.0, "label": 0}]
FRAME = pl.DataFrame(RECORDS)
STRUCTURED, BATCH = "application/cloudevents+json", "application/cloudevents-batch+json"


@pytest.fixture
def dataset() -> str:
    return name("d")


@pytest.fixture
async def http(broker, tmp_path, dataset):
    """A running ingest that knows `dataset` and takes files of up to 10 kB."""
    spec = {
        "model": dataset,
        "task": "classification",
        "dataset": {"name": dataset, "columns": {"x": {"type": "number"}, "label": {"type": "integer"}}},
        "target": "label",
        "estimator": {"name": "LogisticRegression"},
        "gate": "accuracy > 0",
        "retrain": {"rows": None},
    }
    settings = Settings(
        nats_url=broker.url,
        database_url=f"sqlite:///{tmp_path}/ingest.db",
        var=tmp_path,
        max_file_bytes=10_000,
    )
    async with running(build(settings)) as http, wire(broker) as beside:
        await beside.apply(ModelSpec.model_validate(spec))
        await until(lambda: knows(http, dataset))
        yield http


async def knows(http, dataset: str) -> bool:
    return (await http.get(f"/datasets/{dataset}/versions")).status_code == 200


def event(dataset: str, id: str, **more: Any) -> dict[str, Any]:
    """A structured CloudEvent."""
    attributes = {"specversion": "1.0", "id": id, "source": "sensor-1", "type": DataArrived.type, "subject": dataset}
    return attributes | {"data": {"records": RECORDS}} | more


async def receipt(http, id: str) -> dict[str, Any]:
    return (await http.get(f"/receipts/{id}", params={"wait": 30})).json()


# --- events -----------------------------------------------------------------------------------------------------------


async def test_an_event_in_binary_mode_is_taken_with_the_id_and_source_of_its_headers(http, dataset):
    id_ = name("e")
    headers = {
        "ce-specversion": "1.0",
        "ce-id": id_,
        "ce-source": "sensor-1",
        "ce-type": DataArrived.type,
        "ce-subject": dataset,
    }
    answer = await http.post("/events", json={"records": RECORDS}, headers=headers)

    assert (answer.status_code, answer.json()) == (202, [{"event": id_, "receipt": f"/receipts/{id_}"}])
    found = await receipt(http, id_)
    assert (found["status"], found["dataset"], found["producer"]) == ("committed", dataset, "sensor-1")


async def test_a_structured_event_is_taken(http, dataset):
    id_ = name("e")
    answer = await http.post("/events", content=json.dumps(event(dataset, id_)), headers={"content-type": STRUCTURED})

    assert answer.status_code == 202
    found = await receipt(http, id_)
    assert (found["status"], found["producer"], found["rows"]) == ("committed", "sensor-1", 2)


async def test_each_event_of_a_batch_gets_a_receipt(http, dataset):
    ids = [name("e") for _ in range(3)]
    batch = [event(dataset, id_) for id_ in ids]
    answer = await http.post("/events", content=json.dumps(batch), headers={"content-type": BATCH})

    assert [accepted["event"] for accepted in answer.json()] == ids
    assert {(await receipt(http, id_))["status"] for id_ in ids} == {"committed"}


async def test_bare_json_names_its_dataset_and_gets_an_id(http, dataset):
    sent = {"dataset": dataset, "records": RECORDS, "producer": "a camera"}
    (accepted,) = (await http.post("/events", json=sent)).json()

    found = (await http.get(accepted["receipt"], params={"wait": 30})).json()
    assert (found["status"], found["producer"]) == ("committed", "a camera")


async def test_the_same_event_posted_twice_has_its_effect_once(http, dataset):
    id_ = name("e")
    for _ in range(2):
        await http.post("/events", json=event(dataset, id_))
    await receipt(http, id_)

    assert [version["rows"] for version in (await http.get(f"/datasets/{dataset}/versions")).json()] == [2]


LABELS = {"labels": [{"prediction_id": "p:1", "label": 7}, {"prediction_id": "p:2", "label": "seven"}]}


async def test_labels_are_put_into_the_log_in_every_form_and_beside_data(http, broker, dataset):
    model, ids = name("m"), [name("e") for _ in range(3)]
    binary = {"ce-specversion": "1.0", "ce-id": ids[0], "ce-source": "billing", "ce-type": LabelsArrived.type}
    answers = [
        await http.post("/events", json=LABELS, headers=binary | {"ce-subject": model}),
        await http.post("/events", json=event(model, ids[1], type=LabelsArrived.type, data=LABELS)),
        await http.post(
            "/events",
            content=json.dumps(
                [event(model, ids[2], type=LabelsArrived.type, data=LABELS), event(dataset, ids[2] + "-data")]
            ),
            headers={"content-type": BATCH},
        ),
    ]

    assert [answer.status_code for answer in answers] == [202] * 3
    assert answers[0].json() == [{"event": ids[0], "receipt": None}]
    assert [bool(one["receipt"]) for one in answers[2].json()] == [False, True]
    async with wire(broker) as beside:
        heard = await beside.heard(LabelsArrived, model)
    assert [(one.id, one.source) for one in heard] == list(zip(ids, ["billing", "sensor-1", "sensor-1"], strict=True))
    assert {one.event.labels for one in heard} == {LabelsArrived(model=model, **LABELS).labels}


async def test_labels_that_cannot_be_read_or_belong_to_no_model_are_refused(http):
    headers = {"ce-specversion": "1.0", "ce-id": name("e"), "ce-source": "billing", "ce-type": LabelsArrived.type}
    nobody = await http.post("/events", json=LABELS, headers=headers)
    unread = await http.post("/events", json={"model": "m", "labels": [{"label": 7}]}, headers=headers)

    assert (nobody.status_code, unread.status_code) == (400, 400)
    assert "no model is named" in nobody.json()["error"]
    assert "labels.0: a label is of a prediction_id or of an entity: give one of both" in unread.json()["error"]


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        (b"no JSON", {}, 400, "the body is not JSON"),
        (b'{"records": []}', {}, 400, "no dataset is named: give it as the CloudEvents subject (ce-subject)"),
        (b'{"dataset": "Upper", "records": []}', {}, 400, "'Upper', which is no name"),
        (b'{"dataset": "d"}', {}, 422, "exactly one of 'records' (rows) and 'uri' (a file) is needed"),
        (b'{"dataset": "d", "records": 5}', {}, 400, "records: Input should be a valid tuple"),
        (b'{"dataset": "d", "records": [], "format": "xls"}', {}, 400, "format: Input should be 'csv'"),
        (b"{}", {"ce-subject": "d", "ce-type": "else"}, 400, "type 'else' is not known for subject 'data-arrived'"),
        (b'{"dataset": "e"}', {"ce-subject": "d"}, 400, "dataset is 'e' in the body but 'd' in the subject"),
        (b'{"records": "' + b"x" * 1024**2 + b'"}', {}, 413, "at most 1,048,576 are allowed: upload a file instead"),
        (b"{}", {"content-type": BATCH}, 400, "a batch is a JSON array of 1 to 1000 CloudEvents"),
        (b"[]", {"content-type": BATCH}, 400, "a batch is a JSON array of 1 to 1000 CloudEvents"),
        (b"[1]", {"content-type": BATCH}, 400, "no dataset is named"),
        (b"[", {"content-type": BATCH}, 400, "the batch is not JSON"),
    ],
)
async def test_what_is_no_event_is_refused_in_words(http, body, headers, status, reason):
    answer = await http.post("/events", content=body, headers=headers)

    assert answer.status_code == status
    assert reason in answer.json()["error"]


async def test_a_batch_with_one_wrong_event_is_refused_whole(http, dataset):
    id_ = name("e")
    batch = [event(dataset, id_), event(dataset, name("e"), data=[])]
    answer = await http.post("/events", content=json.dumps(batch), headers={"content-type": BATCH})

    assert answer.status_code == 400
    assert (await http.get(f"/receipts/{id_}")).status_code == 404


# --- files ------------------------------------------------------------------------------------------------------------


def written(kind: str) -> bytes:
    sink = io.BytesIO()
    {"csv": FRAME.write_csv, "jsonl": FRAME.write_ndjson, "parquet": FRAME.write_parquet}[kind](sink)
    return sink.getvalue()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
async def test_an_uploaded_file_becomes_rows(http, dataset, tmp_path, kind):
    id_ = name("e")
    headers = {"Meguri-Producer": "lab", "Idempotency-Key": id_}
    files = {"file": (f"rows.{kind}", written(kind))}
    answers = [await http.post(f"/datasets/{dataset}/data", files=files, headers=headers) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [202, 202]
    found = await receipt(http, id_)
    assert (found["status"], found["producer"], found["rows"]) == ("committed", "lab", 2)
    assert pl.read_delta(str(tmp_path / "data" / dataset)).select("x", "label").equals(FRAME)


@pytest.mark.parametrize(
    ("path", "file", "status", "reason"),
    [
        ("d", ("rows.xls", b"x"), 400, "does not end in one of .csv"),
        ("d", ("rows.csv", b"x" * 10_001), 413, "the file has more than 10,000 bytes"),
        ("Upper", ("rows.csv", b"x"), 422, "path.dataset: String should match pattern"),
    ],
)
async def test_a_file_that_cannot_be_taken_is_refused_in_words(http, path, file, status, reason):
    answer = await http.post(f"/datasets/{path}/data", files={"file": file})

    assert answer.status_code == status
    assert reason in answer.json()["error"]


async def test_what_is_wrong_inside_of_a_file_stands_in_its_receipt(http, dataset):
    files = {"file": ("rows.csv", b"x,label\n1,2,3\n")}
    accepted = (await http.post(f"/datasets/{dataset}/data", files=files)).json()

    found = (await http.get(accepted["receipt"], params={"wait": 30})).json()
    assert (found["status"], found["reason"]) == ("rejected", "csv: line 2: 3 fields, but the header names 2")


# --- receipts ---------------------------------------------------------------------------------------------------------


async def test_a_receipt_is_there_as_soon_as_its_event_was_accepted(http, dataset):
    for _ in range(5):
        (accepted,) = (await http.post("/events", json=event(dataset, name("e")))).json()
        assert (await http.get(accepted["receipt"])).status_code == 200


async def test_who_waits_for_a_receipt_is_answered_when_it_is_decided(http, dataset):
    id_ = name("e")
    (accepted,) = (await http.post("/events", json=event(dataset, id_))).json()

    async with asyncio.timeout(PATIENCE):
        assert (await receipt(http, id_))["status"] == "committed"
    assert accepted["receipt"] == f"/receipts/{id_}"


async def test_an_unknown_event_has_no_receipt(http):
    answer = await http.get("/receipts/never-sent")

    assert answer.status_code == 404
    assert "no event 'never-sent' was heard" in answer.json()["error"]


async def test_an_id_with_slashes_and_spaces_finds_its_receipt(http, dataset):
    id_ = f"{name('e')}/a b?c#é"
    (accepted,) = (await http.post("/events", json=event(dataset, id_))).json()

    found = await http.get(accepted["receipt"], params={"wait": 30})
    assert (found.status_code, found.json().get("event")) == (200, id_)


async def test_receipts_are_listed_by_dataset_and_status(http, dataset):
    good, bad = name("e"), name("e")
    await http.post("/events", json=event(dataset, good))
    await http.post("/events", json=event(dataset, bad, data={"records": []}))
    assert {(await receipt(http, id_))["status"] for id_ in (good, bad)} == {"committed", "rejected"}

    listed = (await http.get("/receipts", params={"dataset": dataset})).json()
    rejected = (await http.get("/receipts", params={"dataset": dataset, "status": "rejected"})).json()
    assert [row["event"] for row in listed] == [bad, good]
    assert [row["event"] for row in rejected] == [bad]


async def test_the_versions_of_an_unknown_dataset_are_not_found(http, dataset):
    answer = await http.get("/datasets/nobody-knows-it/versions")

    assert answer.status_code == 404
    assert dataset in answer.json()["error"]

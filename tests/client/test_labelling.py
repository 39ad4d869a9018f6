"""Labels from a file into the log."""

import json

import pytest

from meguri import labelling
from meguri_contracts.events import Label, LabelsArrived
from tests.client.conftest import meguri

CSV = "prediction_id,label,remark\np:1,7,sure\np:2,seven,\n"


async def labels_of(own, model: str) -> list[tuple[str, object]]:
    return [(one.prediction_id, one.label) for event in await own.said(LabelsArrived, model) for one in event.labels]


async def test_labels_of_a_csv_file_are_in_the_log_with_their_sender(own, tmp_path):
    (tmp_path / "truth.csv").write_text(CSV)
    ran = await meguri("labels", "digits", tmp_path / "truth.csv", "--producer", "billing", "--id", "e1", "--json")

    assert (ran.code, ran.data) == (0, {"model": "digits", "labels": 2, "events": ["e1"]})
    (heard,) = await own.heard(LabelsArrived, "digits")
    assert (heard.id, heard.source) == ("e1", "billing")
    assert await labels_of(own, "digits") == [("p:1", "7"), ("p:2", "seven")]


async def test_labels_of_json_lines_keep_their_types_and_the_same_id_has_its_effect_once(own, tmp_path):
    given = [("p", 1), ("q", 0.5), ("r", True), ("s", "no")]
    lines = [json.dumps({"prediction_id": id_, "label": true}) for id_, true in given]
    (tmp_path / "truth.jsonl").write_text("\n\n".join(lines))
    for _ in range(2):
        ran = await meguri("labels", "digits", tmp_path / "truth.jsonl", "--id", "e1")

    assert ran.out == "4 labels of digits, in event e1\n"
    assert await labels_of(own, "digits") == given


async def test_many_labels_are_several_events_that_every_reader_takes(own, monkeypatch):
    monkeypatch.setattr(labelling, "EVENT_BYTES", 100)
    labels = [Label(prediction_id=f"p{i}", label=i) for i in range(10)]
    events = await labelling.publish_labels("digits", labels, producer="billing", id="e")

    assert events == ["e", "e-1", "e-2", "e-3"]
    assert await labels_of(own, "digits") == [(f"p{i}", i) for i in range(10)]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", b"id,label\np,1\n", "no column 'prediction_id'"),
        ("a.csv", b"prediction_id,label\np,1\nq\n", "line 3: label"),
        ("a.csv", b"prediction_id,label\n\xff,1\n", "codec can't decode"),
        ("a.jsonl", b'{"prediction_id": "p", "label": 1}\n{"label": 1}\n', "line 2: prediction_id: Field required"),
        ("a.jsonl", b"no JSON\n", "line 1: Invalid JSON"),
        ("a.parquet", b"", "labels are read from .csv and .jsonl"),
    ],
)
async def test_a_file_with_a_mistake_in_it_changes_nothing(own, tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    ran = await meguri("labels", "digits", tmp_path / name)

    assert (ran.code, await labels_of(own, "digits")) == (1, [])
    assert reason in ran.error


async def test_without_a_broker_it_says_so_in_a_line(monkeypatch, tmp_path):
    monkeypatch.setenv("MEGURI_NATS_URL", "nats://127.0.0.1:1")
    (tmp_path / "truth.csv").write_text(CSV)
    ran = await meguri("labels", "digits", tmp_path / "truth.csv")

    assert ran.code == 1
    assert ran.error.startswith("meguri: the broker at nats://127.0.0.1:1 did not take the labels")

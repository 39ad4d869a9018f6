"""Labels from a file into the log."""

import json
from datetime import UTC, datetime

import pytest

from meguri import labelling
from meguri_contracts.events import Label, LabelsArrived
from tests.client.conftest import meguri

NOWHERE = "http://127.0.0.1:1"
CSV = "prediction_id,label,remark\np:1,7,sure\np:2,seven,\n"


@pytest.fixture(autouse=True)
def _no_registry(monkeypatch):
    monkeypatch.setenv("MEGURI_REGISTRY_URL", NOWHERE)


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


async def test_labels_of_entities_stand_beside_labels_of_predictions(own, tmp_path):
    (tmp_path / "truth.csv").write_text(
        "label,entity,time,prediction_id\n1,customer-7,2026-05-01T14:00:00+02:00,\n2,customer-8,,\n3,,,p:1\n"
    )
    ran = await meguri("labels", "digits", tmp_path / "truth.csv", "--json")

    assert (ran.code, ran.data["labels"]) == (0, 3)
    (event,) = await own.said(LabelsArrived, "digits")
    assert [(one.entity, one.time, one.prediction_id, one.label) for one in event.labels] == [
        ("customer-7", datetime(2026, 5, 1, 12, tzinfo=UTC), None, "1"),
        ("customer-8", None, None, "2"),
        (None, None, "p:1", "3"),
    ]


async def test_labels_of_a_model_that_the_registry_does_not_know_are_refused(own, registry, tmp_path):
    (tmp_path / "truth.csv").write_text(CSV)
    ran = await meguri("labels", "digits", tmp_path / "truth.csv")

    assert (ran.code, await labels_of(own, "digits")) == (1, [])
    assert ran.error == "meguri: no model 'digits'; known are: none\n"


async def test_without_a_registry_labels_are_sent_and_it_says_what_was_not_asked(own, tmp_path):
    (tmp_path / "truth.csv").write_text(CSV)
    ran = await meguri("labels", "digits", tmp_path / "truth.csv")

    assert (ran.code, len(await labels_of(own, "digits"))) == (0, 2)
    assert "whether there is a model 'digits' could not be asked: registry does not answer" in ran.error


async def test_many_labels_are_several_events_that_every_reader_takes(own, monkeypatch):
    monkeypatch.setattr(labelling, "EVENT_BYTES", 100)
    labels = [Label(prediction_id=f"p{i}", label=i) for i in range(10)]
    events = await labelling.publish_labels("digits", labels, producer="billing", id="e")

    assert events == ["e", "e-1", "e-2", "e-3"]
    assert await labels_of(own, "digits") == [(f"p{i}", i) for i in range(10)]


async def test_a_label_that_is_not_known_is_refused_before_it_is_sent(own):
    labels = [Label(prediction_id="p", label=1), Label(prediction_id="q", label=float("nan"))]

    with pytest.raises(labelling.NoLabels, match="the label of q is NaN: leave out what is not known"):
        await labelling.publish_labels("digits", labels, producer="billing")
    assert await labels_of(own, "digits") == []


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", b"id,label\np,1\n", "no column 'prediction_id'"),
        ("a.csv", b"prediction_id,label\np,1\nq\n", "line 3: label"),
        ("a.csv", b"prediction_id,label\n\xff,1\n", "no text in UTF-8: "),
        ("a.csv", b"prediction_id,entity,label\np,,1\n,,1\n", "line 3: a label is of a prediction_id or"),
        ("a.csv", b"prediction_id,entity,label\np,e,1\n", "line 2: a label is of a prediction_id or"),
        ("a.csv", b"entity,time,label\ne,2026-05-01T12:00:00,1\n", "line 2: time: Input should have timezone info"),
        (
            "a.csv",
            b"entity,time,label\ne,0001-01-01T00:00:00+14:00,1\n",
            "line 2: time: outside the years",
        ),
        ("a.csv", b"entity,time\ne,\n", "no column 'label'"),
        ("a.csv", b"prediction_id,label\np,1\nq,\n", "line 3: label: it is empty"),
        ("a.csv", b"prediction_id,label\n", "there are no labels in it"),
        ("a.jsonl", b"\n", "there are no labels in it"),
        ("a.jsonl", b'{"prediction_id": "p", "label": 1}\n{"label": 1}\n', "line 2: a label is of a"),
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
    assert "meguri: the broker at nats://127.0.0.1:1 did not take the labels" in ran.error

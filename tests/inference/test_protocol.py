import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st

from meguri_contracts.errors import Invalid, TooLarge
from meguri_contracts.events import Tensor
from meguri_inference import documents, tensors
from meguri_inference.protocol import Answer, Batch, Codec, Request
from tests.inference.signatures import PEOPLE, numbers

FEATURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
ROW = [5.1, 3.5, 1.4, 0.2]


@pytest.fixture(scope="module")
def codec(iris) -> Codec:
    return Codec("iris", 3, iris.deployed.signature)


@pytest.fixture(scope="module")
def narrow(forest) -> Codec:
    return Codec("forest", 3, forest.deployed.signature)


def body(data: Any, *, shape=(1, 4), datatype="FP64", name="x", **more: Any) -> bytes:
    return json.dumps({"inputs": [{"name": name, "shape": shape, "datatype": datatype, "data": data}], **more}).encode()


def answer_of(*outputs: np.ndarray) -> Answer:
    rows = len(outputs[0])
    return Answer(Batch(np.zeros((rows, 4)), list(outputs)), 0, rows)


def written(codec: Codec, answer: Answer, wanted: tuple[int, ...], client_id: str | None = None) -> bytes:
    request = Request(answer.batch.x, client_id, None, wanted)
    text, length = codec.encode(answer, request, prediction_id="p1", trace_id="t1")
    assert length is None
    return text


def encoded(codec: Codec, answer: Answer, wanted: tuple[int, ...], client_id: str | None = None) -> dict[str, Any]:
    return json.loads(written(codec, answer, wanted, client_id))


def refusal(codec: Codec, raw: bytes, kind: type[Exception] = Invalid) -> str:
    with pytest.raises(kind) as caught:
        codec.decode(raw, max_rows=100)
    return str(caught.value)


def test_flat_and_nested_data_say_the_same(codec):
    flat = codec.decode(body([1, 2, 3, 4, 5, 6, 7, 8], shape=(2, 4)), max_rows=2)
    nested = codec.decode(body([[1, 2, 3, 4], [5, 6, 7, 8]], shape=(2, 4)), max_rows=2)

    assert flat.x.tolist() == nested.x.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert flat.x.dtype == nested.x.dtype == np.float64


@pytest.mark.parametrize(
    ("datatype", "data"), [("FP32", ROW), ("FP64", ROW), ("INT64", [1, -2, 3, 4]), ("INT32", [1, 2, 3, -4])]
)
def test_every_accepted_datatype_arrives_in_the_type_of_the_model(codec, narrow, datatype, data):
    for reader, dtype in ((codec, np.float64), (narrow, np.float32)):
        x = reader.decode(body(data, datatype=datatype), max_rows=1).x
        assert x.dtype == dtype
        assert x.tolist() == [np.array(data, dtype).tolist()]


def test_truth_values_become_one_and_zero(narrow):
    assert narrow.decode(body([True, False, True, False], datatype="BOOL"), max_rows=1).x.tolist() == [[1, 0, 1, 0]]


@pytest.mark.parametrize(
    ("datatype", "value"), [("INT64", 2**24 + 1), ("INT64", -(2**24) - 1), ("FP32", 1e39), ("FP64", -1e39)]
)
def test_what_does_not_fit_into_the_type_of_the_model_is_refused(narrow, datatype, value):
    said = refusal(narrow, body([0, 0, value, 0], datatype=datatype))

    assert "row 0, feature 'petal_length'" in said
    assert "FP32 of shape [rows, 4]" in said


def test_an_integer_that_fp64_would_round_is_refused(codec):
    assert codec.decode(body([2**53, 0, 0, 0], datatype="INT64"), max_rows=1).x[0, 0] == 2**53
    assert "feature 'sepal_length'" in refusal(codec, body([2**53 + 1, 0, 0, 0], datatype="INT64"))
    assert "feature 'sepal_length'" in refusal(codec, body([2**31, 0, 0, 0], datatype="INT32"))


@pytest.mark.parametrize("bad", ["null", "NaN", "Infinity", "1e999", '"1"', "true", "[]", "{}"])
def test_a_value_that_is_no_finite_number_is_refused_by_the_name_of_the_input(codec, bad):
    said = refusal(codec, body([0, 0, 0, 7]).replace(b"7]", bad.encode() + b"]"))

    assert "'x'" in said
    assert "FP64 of shape [rows, 4]" in said


def test_a_bad_value_is_named_by_row_and_feature_flat_and_nested(codec):
    flat = body([0, 0, 0, 0, 0, None, 0, 0], shape=(2, 4))
    nested = body([[0, 0, 0, 0], [0, None, 0, 0]], shape=(2, 4))

    assert "got `null` in row 1, feature 'sepal_width'" in refusal(codec, flat)
    assert "got `null` in row 1, feature 'sepal_width'" in refusal(codec, nested)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (body(ROW, shape=(4,)), "shape [4]"),
        (body(ROW, shape=(2, 2)), "shape [2, 2]"),
        (body([], shape=(0, 4)), "shape [0, 4]"),
        (body(ROW, shape=(-1, 4)), "shape"),
        (body(ROW, shape=(2, 4)), "has 4 values"),
        (body([ROW, ROW[:3]], shape=(2, 4)), "does not fill"),
        (body([ROW], shape=(2, 4)), "does not fill"),
        (body([[ROW]], shape=(1, 4)), "got `array`"),
        (body(ROW, datatype="FP16"), "'FP16', accepted are FP32, FP64, INT64, INT32, BOOL"),
        (body(ROW, datatype="INT64"), "got `float` in row 0"),
        (body([1, 0, 1, 0], datatype="BOOL"), "Expected `bool`"),
        (body(ROW, name="y"), "input 'y' is not known"),
        (body(ROW, name="y" * 10_000), "is not known"),
        (body(ROW, shape=[1] * 10_000), "has shape"),
        (body(ROW, datatype="F" * 10_000), "has datatype"),
        (body(ROW, outputs=[{"name": "y" * 10_000}]), "is not known"),
        (b'{"inputs":[]}', "0 inputs"),
        (b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP64"}]}', "has no data"),
        (b"{}", "inputs"),
        (b"[]", "Expected `object`"),
        (b"", "the body is not a V2 inference request"),
        (b"\x1f\x8b gzip", "JSON is malformed"),
        (b'{"id":"\xff"}', "utf-8"),
        (b'{"deep":' + b"[" * 100_000, "recursion"),
        (b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP64","data":' + b"[" * 100_000, "recursion"),
        (body(ROW, outputs=[{"name": "logits"}]), "output 'logits' is not known; the model gives label, probabilities"),
        (body(ROW, parameters={"producer": "p" * 129}), "producer"),
        (body(ROW, id=7), "$.id"),
    ],
)
def test_a_request_that_breaks_a_rule_is_told_which(codec, raw, says):
    said = refusal(codec, raw)

    assert says in said
    assert len(said) < 400


def test_more_rows_than_the_limit_are_too_large(codec):
    assert "101 rows, at most 100" in refusal(codec, body(ROW * 101, shape=(101, 4)), TooLarge)


def test_id_producer_and_wanted_outputs_are_read(codec):
    asked = codec.decode(
        body(ROW, id="mine", parameters={"producer": "cam-7", "other": 1}, outputs=[{"name": "probabilities"}]),
        max_rows=1,
    )

    assert (asked.id, asked.producer, asked.wanted) == ("mine", "cam-7", (1,))


def test_wanted_outputs_keep_the_order_of_the_request_and_stand_once(codec):
    names = ("probabilities", "label", "probabilities")

    assert codec.decode(body(ROW, outputs=[{"name": name} for name in names]), max_rows=1).wanted == (1, 0)


def test_all_outputs_are_given_when_none_is_named(codec):
    assert codec.decode(body(ROW), max_rows=1).wanted == (0, 1)
    assert codec.decode(body(ROW, outputs=[]), max_rows=1).wanted == (0, 1)


def test_an_answer_carries_ids_version_shapes_and_flat_data(codec):
    given = answer_of(np.array([2, 0]), np.array([[0.0, 0.25, 0.75], [1.0, 0.0, 0.0]]))

    answer = encoded(codec, given, (0, 1), client_id='a "quoted" id')

    assert answer == {
        "model_name": "iris",
        "model_version": "3",
        "id": 'a "quoted" id',
        "parameters": {"prediction_id": "p1", "trace_id": "t1"},
        "outputs": [
            {"name": "label", "datatype": "INT64", "shape": [2], "data": [2, 0]},
            {"name": "probabilities", "datatype": "FP64", "shape": [2, 3], "data": [0.0, 0.25, 0.75, 1.0, 0.0, 0.0]},
        ],
    }


def test_without_an_id_of_the_client_the_prediction_id_stands_in_its_place(codec):
    answer = encoded(codec, answer_of(np.array([1]), np.zeros((1, 3))), (0,))

    assert answer["id"] == "p1"


def test_outputs_are_given_in_the_order_in_which_they_were_asked_for(codec):
    answer = encoded(codec, answer_of(np.array([1]), np.zeros((1, 3))), (1, 0))

    assert [output["name"] for output in answer["outputs"]] == ["probabilities", "label"]


def test_single_precision_is_written_in_its_shortest_form(narrow):
    given = answer_of(np.array([0]), np.array([[0.1, 0.2, 0.7]], np.float32))

    assert b'"data":[0.1,0.2,0.7]' in written(narrow, given, (1,))


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 4)])
@pytest.mark.parametrize("kind", ["numbers", "texts"])
def test_who_shares_a_batch_is_answered_as_if_it_were_his_alone(codec, flowers, kind, shape):
    codec = codec if kind == "numbers" else Codec("flowers", 1, flowers.deployed.signature)
    values = np.random.default_rng(0).normal(size=shape)
    labels = np.arange(5) if kind == "numbers" else np.array(["a", 'virg"ini],[ca', "b", "", "c,d"], object)
    shared = Batch(np.zeros((5, 4)), [labels, values])

    for start, rows in ((0, 1), (1, 3), (4, 1), (0, 5)):
        alone = answer_of(labels[start : start + rows], values[start : start + rows])
        together = Answer(shared, start, rows)
        assert written(codec, together, (0, 1)) == written(codec, alone, (0, 1))


def test_text_labels_are_written_as_text(flowers):
    codec = Codec("flowers", 1, flowers.deployed.signature)
    labels = np.array(["setosa", 'virg"ini],[ca'], object)
    outputs = [labels, np.zeros((2, 3))]

    answer = encoded(codec, answer_of(*outputs), (0,))

    assert answer["outputs"][0] == {"name": "label", "datatype": "BYTES", "shape": [2], "data": labels.tolist()}


@pytest.mark.parametrize(
    ("datatype", "labels"),
    [
        ("INT64", np.array([2**62, 0, -1])),
        ("BOOL", np.array([True, False, True])),
        ("BYTES", np.array(["a", "", "é"], object)),
    ],
)
@pytest.mark.parametrize("raw", [(), (0,), (1,), (0, 1)])
def test_raw_tensors_of_an_answer_are_read_by_tritonclient(datatype, labels, raw):
    outputs = (
        Tensor(name="label", datatype=datatype, shape=(-1,)),
        Tensor(name="probabilities", datatype="FP32", shape=(-1, 2)),
    )
    codec = Codec("m", 1, numbers("FP64", "a").model_copy(update={"outputs": outputs}))
    probabilities = np.array([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]], np.float32)
    answer = Answer(Batch(np.zeros((3, 1)), [labels, probabilities]), 1, 2)
    request = Request(np.zeros((2, 1)), "mine", None, (1, 0), None, raw)

    written, length = codec.encode(answer, request, prediction_id="p1", trace_id="t1")

    assert (length is None) == (not raw)
    result = triton.InferenceServerClient.parse_response_body(written, header_length=length)
    found = result.as_numpy("label").tolist()
    assert [label.decode() if isinstance(label, bytes) else label for label in found] == labels[1:].tolist()
    assert result.as_numpy("probabilities").tolist() == probabilities[1:].tolist()
    assert [output["name"] for output in result.get_response()["outputs"]] == ["probabilities", "label"]
    assert result.get_response()["id"] == "mine"


def test_metadata_names_what_goes_in_and_comes_out(iris):
    metadata = documents.model_metadata("iris", iris.deployed)

    assert json.loads(json.dumps(metadata)) == metadata | {
        "inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, 4], "parameters": {"features": list(FEATURES)}}],
        "outputs": [
            {"name": "label", "datatype": "INT64", "shape": [-1]},
            {"name": "probabilities", "datatype": "FP64", "shape": [-1, 3]},
        ],
    }
    assert metadata["versions"] == ["3"]
    assert documents.server_metadata()["name"] == "meguri"


def test_metadata_of_a_model_with_several_types_has_an_input_for_each_feature(iris):
    signature = PEOPLE.model_copy(update={"example": (41, 1.7, "Kyōto", True, 0.5)})
    metadata = documents.model_metadata("people", iris.deployed.model_copy(update={"signature": signature}))

    assert metadata["inputs"][2] == {"name": "city", "datatype": "BYTES", "shape": [-1, 1]}
    assert len(metadata["inputs"]) == 5
    assert metadata["parameters"] == {
        "engine": "onnx",
        "example": {"age": 41, "height": 1.7, "city": "Kyōto", "member": True, "score": 0.5},
    }


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([("age", "INT64", [1, 2]), ("member", "BOOL", [True])], "2 inputs were sent, 'height' is missing"),
        ([("age", "INT64", [1])] * 2, "input 'age' was sent more than once"),
        ([("shoe", "INT64", [1])], "input 'shoe' is not known"),
        ([("age", "FP64", [1.0])], "input 'age' has datatype 'FP64', accepted are INT64, INT32, BOOL"),
        ([("age", "INT64", [1, 2])], "input 'height' has 1 rows, 'age' has 2"),
        (
            [("city", "BYTES", [7])],
            "input 'city' has bad BYTES data: Expected `str`, got `int` in row 0, feature 'city'",
        ),
    ],
)
def test_an_input_that_is_wrong_among_several_is_named_with_what_was_expected(inputs, says):
    sent = {"age": ("INT64", [1]), "height": ("FP64", [1]), "city": ("BYTES", ["a"]), "member": ("BOOL", [True])}
    tensors = [{"name": name, "datatype": kind, "shape": [len(data)], "data": data} for name, kind, data in inputs]
    if "missing" not in says and "once" not in says:
        given = sent | {"score": ("FP32", [1])}
        known = [name for name, _, _ in inputs]
        tensors += [
            {"name": name, "datatype": kind, "shape": [1], "data": data}
            for name, (kind, data) in given.items()
            if name not in known
        ]

    said = refusal(Codec("people", 1, PEOPLE), json.dumps({"inputs": tensors}).encode())

    assert said.startswith(says)
    assert "; the model takes '" in said


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(rows=st.lists(st.tuples(finite, finite, finite, finite), min_size=1, max_size=5), nested=st.booleans())
def test_every_finite_row_survives_the_way_in_bit_for_bit(codec, rows, nested):
    data = [list(row) for row in rows] if nested else [value for row in rows for value in row]

    x = codec.decode(body(data, shape=(len(rows), 4)), max_rows=5).x

    assert x.tobytes() == np.array(rows).tobytes()


@given(data=st.lists(st.integers(), min_size=4, max_size=4))
def test_an_integer_arrives_exactly_or_not_at_all(narrow, data):
    try:
        x = narrow.decode(body(data, datatype="INT64"), max_rows=1).x
    except Invalid:
        assert any(abs(value) > 2**24 for value in data)
    else:
        assert [int(value) for value in x[0]] == data


def test_every_datatype_has_a_reader_in_both_precisions():
    counted = Counter(datatype for model in tensors.FLOATS for datatype in tensors.DECODERS[model])

    assert counted == dict.fromkeys(("FP32", "FP64", "INT64", "INT32", "BOOL"), 2)

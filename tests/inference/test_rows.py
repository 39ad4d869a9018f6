import csv
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meguri_contracts.errors import Invalid, TooLarge
from meguri_inference import rows
from meguri_inference.protocol import Answer, Batch, Codec
from tests.inference.signatures import PEOPLE, mixed, numbers

PAIR = numbers("FP64", "a", "b")
ANN = {"age": 41, "height": 1.7, "city": "Kyōto", "member": True, "score": 0.5}


def in_json(signature, **asked: Any):
    return rows.read_json(json.dumps(asked).encode(), signature, max_rows=3)


def in_csv(signature, text: str):
    return rows.read_csv(text.encode(), signature, max_rows=3)


def test_rows_and_columns_and_csv_say_the_same():
    ben = {"age": -(2**62), "height": 2, "city": "", "member": False, "score": -1}
    lines = "city,age,height,member,score\r\nKyōto,41,1.7,true,0.5\r\n\r\n,-4611686018427387904,2,False,-1\r\n"

    found = [
        in_json(PEOPLE, rows=[ANN, ben]),
        in_json(PEOPLE, columns={name: [ANN[name], ben[name]] for name in ANN}),
        in_csv(PEOPLE, lines),
        in_csv(PEOPLE, "\ufeff" + lines),
    ]

    assert [request.x.tolist() for request in found] == [[list(ANN.values()), [*ben.values()]]] * 4
    assert {request.x.dtype for request in found} == {np.dtype(object)}
    assert {request.wanted for request in found} == {(0, 1)}


def test_numbers_alone_make_one_array_of_the_models_type():
    assert in_json(numbers("FP32", "a", "b"), rows=[{"b": 2, "a": 0.1}]).x.dtype == np.float32
    assert in_json(PAIR, rows=[{"b": True, "a": 0.1}]).x.tolist() == [[0.1, 1.0]]
    assert in_csv(PAIR, "b,a\n1e-3,.5\n").x.tolist() == [[0.5, 0.001]]


def test_id_producer_and_entity_are_read():
    request = in_json(PAIR, rows=[{"a": 1, "b": 2}], id="mine", producer="till-2", entity="guest 7")

    assert (request.id, request.producer, request.entity) == ("mine", "till-2", "guest 7")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"age": 1.5}, "row 1, column 'age': 1.5 is not an integer"),
        ({"age": 2**63}, "row 1, column 'age': 9223372036854775808 is not an integer from"),
        ({"age": "41"}, "row 1, column 'age': '41' is not an integer"),
        ({"height": "tall"}, "row 1, column 'height': 'tall' is not a number"),
        ({"height": None}, "row 1, column 'height': None is not a number"),
        ({"height": 2**53 + 1}, "row 1, column 'height': 9007199254740993 is not an integer from"),
        ({"score": 1e39}, "row 1, column 'score': Expected a number from -3.4"),
        ({"score": 2**24 + 1}, "row 1, column 'score': 16777217"),
        ({"city": 7}, "row 1, column 'city': 7 is not a text"),
        ({"member": 1}, "row 1, column 'member': 1 is not true or false"),
        ({"height": [1.7]}, "row 1, column 'height': [1.7] is not a number"),
        ({"shoe": 44}, "row 1 has column 'shoe', which is not known"),
    ],
)
def test_a_wrong_value_is_refused_by_row_and_column(change, says):
    with pytest.raises(Invalid) as caught:
        in_json(PEOPLE, rows=[ANN, ANN | change])

    assert str(caught.value).startswith(says)
    assert "the model takes the columns age (an integer), height (a number), city (a text)" in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"rows": [{"a": 1}]}, "row 0 lacks column 'b'"),
        ({"columns": {"a": [1]}}, "column 'b' is missing"),
        ({"columns": {"a": [1], "b": [1], "c": [1]}}, "column 'c' is not known"),
        ({"columns": {"a": [1], "b": [1, 2]}}, "column 'b' has 2 rows, 'a' has 1"),
        ({"rows": []}, "there are no rows"),
        ({}, "neither rows nor columns"),
        ({"rows": [], "columns": {}}, "neither rows nor columns, or both"),
        ({"rows": [[1, 2]]}, "Expected `object`, got `array` - at `$.rows[0]`"),
        ({"rows": [{"a": 1, "b": 1}], "producer": "p" * 129}, "$.producer"),
    ],
)
def test_a_body_without_the_right_columns_is_refused(asked, says):
    with pytest.raises(Invalid, match=r"the model takes the columns a \(a number\), b \(a number\)$") as caught:
        in_json(PAIR, **asked)

    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "its first line must name the columns"),
        ("a,b\n", "there are no rows"),
        ("a,b\n1\n", "row 0 has 1 cells, the header has 2"),
        ("a,b,a\n1,2,3\n", "column 'a' stands in the header more than once"),
        ("a\n1\n", "column 'b' is missing"),
        ("a,c\n1,2\n", "column 'c' is not known"),
        ("a,b\n1,\n", "row 0, column 'b': '' is not a number"),
        ("a,b\n1,nan\n", "row 0, column 'b': 'nan' is not a number"),
        ("a,b\n1,1_000\n", "row 0, column 'b': '1_000' is not a number"),
        ("a,b\n1,1e999\n", "row 0, column 'b': Expected a finite number"),
        ('a,b\n1,"2\n', "not CSV"),
        ('a,b\n1,"2"3\n', "not CSV"),
        ("a,b\n1," + "9" * 200_000, "not CSV"),
    ],
)
def test_csv_that_is_not_what_it_should_be_is_refused(text, says):
    with pytest.raises(Invalid) as caught:
        in_csv(PAIR, text)

    assert says in str(caught.value)
    assert len(str(caught.value)) < 300


def test_csv_that_is_not_utf_8_is_refused():
    with pytest.raises(Invalid, match="not CSV in UTF-8"):
        rows.read_csv("a,b\n1,ü".encode("latin-1"), PAIR, max_rows=3)


def test_more_rows_than_the_limit_are_too_large():
    with pytest.raises(TooLarge, match="has 4 rows, at most 3"):
        in_json(PAIR, columns={"a": [1] * 4, "b": [1] * 4})


def test_an_answer_is_written_row_by_row_with_an_id_for_each():
    outputs = [np.array(["yes", 'n"o'], object), np.array([[0.1, 0.9], [0.8, 0.2]], np.float32)]
    answer = Answer(Batch(np.zeros((2, 2)), outputs), 0, 2)
    request = in_json(PAIR, rows=[{"a": 1, "b": 2}] * 2, id="mine")
    told = {"model": "m", "version": 3, "prediction_id": "p1", "trace_id": "t1"}

    as_json = json.loads(rows.write_json(answer, request, PAIR, **told))
    as_csv = list(csv.DictReader(rows.write_csv(answer, PAIR, prediction_id="p1").decode().splitlines()))

    assert as_json == told | {
        "id": "mine",
        "predictions": [
            {"prediction_id": "p1:0", "label": "yes", "probabilities": [0.1, 0.9]},
            {"prediction_id": "p1:1", "label": 'n"o', "probabilities": [0.8, 0.2]},
        ],
    }
    assert as_csv == [
        {"prediction_id": "p1:0", "label": "yes", "probability_0": "0.1", "probability_1": "0.9"},
        {"prediction_id": "p1:1", "label": 'n"o', "probability_0": "0.8", "probability_1": "0.2"},
    ]


@pytest.mark.parametrize(("label", "said"), [(np.array([7], np.longlong), 7), (np.array([True]), True)])
def test_labels_are_written_as_json_whatever_numpy_calls_their_type(label, said):
    answer = Answer(Batch(np.zeros((1, 2)), [label, np.array([[0.1, 0.9]], np.float32)]), 0, 1)
    told = {"model": "m", "version": 3, "prediction_id": "p1", "trace_id": "t1"}

    written = rows.write_json(answer, in_json(PAIR, rows=[{"a": 1, "b": 2}]), PAIR, **told)

    assert json.loads(written)["predictions"] == [{"prediction_id": "p1", "label": said, "probabilities": [0.1, 0.9]}]


values = {
    "FP64": st.floats(allow_nan=False, allow_infinity=False),
    "FP32": st.floats(allow_nan=False, allow_infinity=False, width=32),
    "INT64": st.integers(-(2**63), 2**63 - 1),
    "BOOL": st.booleans(),
    "BYTES": st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"])),
}


@given(data=st.data())
def test_what_v2_takes_rows_and_csv_take_and_understand_alike(data):
    kinds = data.draw(st.lists(st.sampled_from(list(values)), min_size=2, max_size=4))
    signature = mixed(**{f"f{at}": kind for at, kind in enumerate(kinds)})
    row = [data.draw(values[kind]) for kind in kinds]
    named = dict(zip(signature.features, row, strict=True))
    tensors = [
        {"name": tensor.name, "shape": [1, 1], "datatype": tensor.datatype, "data": [named[tensor.name]]}
        for tensor in signature.inputs
    ]
    lines = [signature.features, [str(value) for value in row]]
    quoted = "\n".join(",".join('"{}"'.format(cell.replace('"', '""')) for cell in line) for line in lines)

    v2 = Codec("m", 1, signature).decode(json.dumps({"inputs": tensors}).encode(), max_rows=3).x.tolist()

    assert v2 == [row]
    assert in_json(signature, rows=[named]).x.tolist() == v2
    assert in_csv(signature, quoted).x.tolist() == v2

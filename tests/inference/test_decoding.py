"""The fast decoder says what a slow one says, whatever it is sent: JSON, raw tensors and both, right, wrong and hostile."""

import json
import math
import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from meguri_contracts.errors import Invalid, TooLarge
from meguri_inference import large
from meguri_inference.protocol import Codec
from tests.inference import reference
from tests.inference.signatures import PEOPLE, numbers

MAX_ROWS = 4
SIGNATURES = {
    "FP64": numbers("FP64", "a", "b", "c"),
    "FP32": numbers("FP32", "a", "b", "c"),
    "one feature": numbers("FP64", "a"),
    "several types": PEOPLE,
}
CODECS = {name: Codec("m", 1, signature) for name, signature in SIGNATURES.items()}

ODD = [math.inf, -math.inf, math.nan, reference.FP32_MAX, 1e300, 2**24 + 1, 2**53 + 1, 10**18]
PLAIN: dict[str, st.SearchStrategy[Any]] = {
    "FP64": st.floats(-10, 10) | st.integers(-3, 3),
    "FP32": st.floats(-10, 10, width=32) | st.integers(-3, 3),
    "INT64": st.integers(-(2**24), 2**24),
    "INT32": st.integers(-(2**24), 2**24),
    "BOOL": st.booleans(),
    "BYTES": st.text(max_size=6),
    "FP16": st.just(1.0),
}
WILD = PLAIN | {
    "FP64": st.floats() | st.sampled_from(ODD),
    "FP32": st.floats(width=32) | st.sampled_from(ODD[:4]),
    "INT64": st.integers(-(2**63), 2**63 - 1) | st.sampled_from(ODD[5:]),
    "INT32": st.integers(-(2**31), 2**31 - 1),
}
hostile = st.sampled_from([None, True, "1", 1.5, 10**400, [], {}, [[[1]]], float("nan"), float("inf"), -0.0])


def raw_of(datatype: str, values: list[Any]) -> bytes:
    if datatype == "BYTES":
        texts = [value.encode("utf-8", "surrogatepass") for value in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    form = {"BOOL": "?", "FP16": "e"} | reference.FORMATS
    return struct.pack(f"<{len(values)}{form[datatype]}", *values)


@st.composite
def tensors(
    draw: st.DrawFn, name: str, model: str, rows: int, width: int, wild: bool
) -> tuple[dict[str, Any], bytes | None]:
    """A tensor that is right, unless it is `wild`, and its raw bytes if it is binary."""
    datatype = draw(st.sampled_from(list(PLAIN) if wild else reference.ACCEPTED[model]))
    values = draw(st.lists((WILD if wild else PLAIN)[datatype], min_size=rows * width, max_size=rows * width))
    shape = [rows, width] if width > 1 or draw(st.booleans()) else [rows]
    tensor: dict[str, Any] = {"name": name, "shape": shape, "datatype": datatype}
    way = draw(st.sampled_from(["flat", "nested", "raw"]))
    if way == "raw":
        raw = raw_of(datatype, values)
        return tensor | {"parameters": {"binary_data_size": len(raw)}}, raw
    if way == "nested":
        values = [values[at : at + width] for at in range(0, len(values), width)]
    return tensor | {"data": values}, None


@st.composite
def requests(draw: st.DrawFn, which: str) -> tuple[dict[str, Any], bytes, bool]:
    """A request's JSON, what stands behind it, and whether that is announced."""
    signature, rows = SIGNATURES[which], draw(st.integers(1, MAX_ROWS))
    wild = draw(st.sampled_from([False, False, True]))
    if not signature.inputs and draw(st.booleans()):
        sent = [draw(tensors("x", signature.input.datatype, rows, len(signature.features), wild))]
    else:
        types = {tensor.name: tensor.datatype for tensor in signature.inputs}
        order = draw(st.permutations(signature.features))
        sent = [draw(tensors(name, types.get(name, signature.input.datatype), rows, 1, wild)) for name in order]
    asked: dict[str, Any] = {"inputs": [tensor for tensor, _ in sent]}
    asked |= draw(
        st.fixed_dictionaries(
            {},
            optional={
                "id": st.text(max_size=3),
                "parameters": st.sampled_from([{"binary_data_output": True}, {"producer": "p" * 128}, None]),
                "outputs": st.sampled_from([[], [{"name": "label"}]]),
                "unknown": st.just([1, {"a": "b"}]),
            },
        )
    )
    tail = b"".join(raw for _, raw in sent if raw is not None)
    return asked, tail, any(raw is not None for _, raw in sent) or draw(st.booleans())


def spoilt(draw: st.DrawFn, asked: dict[str, Any], tail: bytes) -> tuple[dict[str, Any], bytes]:
    tensor = draw(st.sampled_from(asked["inputs"]))
    match draw(
        st.sampled_from(["value", "shape", "rows", "name", "field", "twice", "size", "tail", "both", "input", "rest"])
    ):
        case "value" if isinstance(tensor.get("data"), list):
            tensor["data"][draw(st.integers(0, len(tensor["data"]) - 1))] = draw(hostile)
        case "shape":
            tensor["shape"] = draw(st.lists(st.integers(-1, 5) | st.just(2**31) | st.just(10**30), max_size=4))
        case "rows":
            tensor["shape"] = [draw(st.sampled_from([0, MAX_ROWS + 1, 2**31 - 1])), *tensor["shape"][1:]]
        case "name":
            tensor["name"] = draw(st.sampled_from(["x", "a", "", "\u5de1", None]))
        case "field":
            tensor.pop(draw(st.sampled_from(list(tensor))))
        case "twice":
            asked["inputs"].append(tensor)
        case "size":
            tensor["parameters"] = {"binary_data_size": draw(st.integers(-1, 40) | hostile)}
        case "tail":
            at = draw(st.integers(0, len(tail)))
            tail = tail[:at] + draw(st.binary(max_size=4)) + tail[at + draw(st.integers(0, 4)) :]
        case "both":
            tensor["data"] = [1.0]
        case "rest":
            asked |= draw(
                st.sampled_from([{"id": 7}, {"parameters": {"entity": "e" * 129}}, {"outputs": [{"name": "nothing"}]}])
            )
        case "input":
            asked["inputs"].remove(tensor)
    return asked, tail


@st.composite
def bodies(draw: st.DrawFn, which: str) -> tuple[bytes, int | None]:
    asked, tail, announced = draw(requests(which))
    if draw(st.integers(0, 2)) == 0:
        asked, tail = spoilt(draw, asked, tail)
    text = json.dumps(asked, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(text)))
        middle = draw(st.binary(max_size=3) | st.sampled_from([b'"shape":[1,1],', b"[" * 2000, b"\xff", b"\\ud800"]))
        text = text[:at] + middle + text[at:]
    length = len(text) if announced else None
    if length is not None and draw(st.integers(0, 9)) == 0:
        length = draw(st.integers(0, len(text) + len(tail) + 3))
    return text + (tail if announced else b""), length


def compared(which: str, body: bytes, length: int | None) -> str:
    try:
        expected = reference.decode(SIGNATURES[which], body, length, MAX_ROWS)
    except reference.NotUtf8:
        with suppress(Invalid, TooLarge):
            CODECS[which].decode(body, max_rows=MAX_ROWS, header_length=length)
        return "refused"
    except reference.Refused:
        with pytest.raises((Invalid, TooLarge)) as caught:
            CODECS[which].decode(body, max_rows=MAX_ROWS, header_length=length)
        assert len(str(caught.value)) < 700
        return "refused"
    x = CODECS[which].decode(body, max_rows=MAX_ROWS, header_length=length).x
    assert x.tolist() == expected
    assert [[type(value) for value in row] for row in x.tolist()] == [[type(v) for v in row] for row in expected]
    return "taken"


@pytest.mark.parametrize("min_bytes", [large.MIN_BYTES, 0], ids=["usual", "as if large"])
@pytest.mark.parametrize("which", SIGNATURES)
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_is_sent_is_read_as_a_slow_decoder_reads_it(which, min_bytes, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large, "MIN_BYTES", min_bytes)
        compared(which, *data.draw(bodies(which)))


@settings(max_examples=300, deadline=None)
@given(body=st.binary(max_size=64), length=st.none() | st.integers(0, 70))
@example(body=b'{"inputs":' + b"[" * 100_000, length=None)
@example(body=b'{"inputs":[{"name":"x","shape":[2147483647,3],"datatype":"FP64","data":[]}]}', length=None)
def test_bytes_of_any_kind_are_read_as_a_slow_decoder_reads_them(body, length):
    for which in SIGNATURES:
        assert compared(which, body, length) == "refused"


def test_of_a_key_that_stands_twice_the_last_is_taken():
    body = b'{"inputs":[{"name":"x","shape":[9,9],"shape":[1,3],"datatype":"FP64","data":[0],"data":[1,2,3]}]}'

    for which in ("FP64", "FP32"):
        assert compared(which, body, None) == "taken"


@pytest.mark.parametrize("which", SIGNATURES)
def test_what_is_right_is_taken_in_each_way(which):
    signature = SIGNATURES[which]
    values: dict[str, list[Any]] = {
        "FP64": [0.1, -2.0],
        "FP32": [0.5, -2.0],
        "INT64": [2**53 + 1, -(2**63)],
        "BOOL": [True, False],
        "BYTES": ["Kyōto", ""],
    }
    types = {tensor.name: tensor.datatype for tensor in signature.inputs}
    tensors = [
        {"name": name, "shape": [2, 1], "datatype": types.get(name, signature.input.datatype)}
        for name in signature.features
    ]
    in_json = [tensor | {"data": values[tensor["datatype"]]} for tensor in tensors]
    raws = [raw_of(kind, values[kind]) for kind in (tensor["datatype"] for tensor in tensors)]
    in_binary = [
        tensor | {"parameters": {"binary_data_size": len(raw)}} for tensor, raw in zip(tensors, raws, strict=True)
    ]

    text, head = (json.dumps({"inputs": inputs}).encode() for inputs in (in_json, in_binary))
    assert compared(which, text, None) == "taken"
    assert compared(which, head + b"".join(raws), len(head)) == "taken"
    mixed = json.dumps({"inputs": in_json[:1] + in_binary[1:]}).encode()
    assert compared(which, mixed + b"".join(raws[1:]), len(mixed)) == "taken"


@pytest.mark.parametrize("which", ["FP64", "FP32"])
@pytest.mark.parametrize("datatype", ["FP64", "FP32"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_raw_value_that_is_no_finite_number_is_refused_by_row_and_feature(which, datatype, value):
    raw = raw_of(datatype, [1, 2, 3, 4, value, 6])
    tensor = {"name": "x", "shape": [2, 3], "datatype": datatype, "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor]}).encode()

    with pytest.raises(Invalid, match=r"input 'x' has bad FP.. data: Expected .*, got .* in row 1, feature 'b'"):
        CODECS[which].decode(head + raw, max_rows=MAX_ROWS, header_length=len(head))


@pytest.mark.parametrize(
    ("text", "is_read"),
    [
        ('{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP64","data":[1,-2.5,3e2]}]}', True),
        ('{"inputs":[{"data" : [1,2,3] ,"name":"x","shape":[1,3],"datatype":"FP64"}],"id":"7"}', True),
        ('{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP64","data":[[1,2,3]]}]}', False),
        ('{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP64","data":[1,2,"3"]}]}', False),
        ('{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP64","data":[1,null,3]}]}', False),
        ('{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP64","data":[1,2,3],"data":[4,5,6]}]}', False),
        ('{"data":[9],"inputs":[{"name":"x","shape":[1,3],"datatype":"FP64","d\\u0061ta":[1,2,3]}]}', False),
        ('{"data":[9],"inputs":[{"name":"x","shape":[1,3],"datatype":"FP64"}]}', True),
        ('{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP64","data":[1,2,3', False),
        ('{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP64","data":[1,2,3]}', True),
        ('{"id":"data","inputs":[{"name":"x","shape":[1,3],"datatype":"FP64","data":[1,2,3]}]}', False),
    ],
)
def test_of_a_large_body_only_a_plain_list_of_numbers_is_read_apart(monkeypatch, text, is_read):
    monkeypatch.setattr(large, "MIN_BYTES", 0)

    assert (large.cut_out(text.encode()) is not None) == is_read
    for which in SIGNATURES:
        compared(which, text.encode(), None)


def test_a_large_body_arrives_bit_for_bit():
    values = np.random.default_rng(0).normal(size=(1000, 3)) * 10.0 ** np.arange(-150, 150).repeat(10).reshape(1000, 3)
    tensor = {"name": "x", "shape": [1000, 3], "datatype": "FP64", "data": values.ravel().tolist()}

    assert (
        CODECS["FP64"].decode(json.dumps({"inputs": [tensor]}).encode(), max_rows=1000).x.tobytes() == values.tobytes()
    )

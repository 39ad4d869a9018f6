"""Open Inference Protocol V2 in JSON: what a client may ask of a model, and how the answer is written.

A request carries one tensor of shape [rows, features], flat or nested; floats are rounded to the model's precision, so
a champion may change from FP64 to FP32 without its clients noticing; integers must survive exactly or are refused.
"""

import re
from collections.abc import Sequence
from itertools import accumulate, permutations
from reprlib import repr as short
from typing import Annotated, Any, Final, Generic, Literal, NoReturn, TypeVar

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from meguri_contracts.errors import Invalid, TooLarge
from meguri_contracts.events import Deployed, Signature, Tensor
from meguri_inference import __version__

Array = NDArray[Any]
Outputs = list[Array]
"""What a model says about some rows: one array per output, in the order of the signature, rows first."""
Texts = Sequence[bytes]
"""The same as a client reads it: the values of each output in JSON, flat, without the brackets."""

Datatype = TypeVar("Datatype")
Data = TypeVar("Data")

MAX_PRODUCER = 128
"""Characters in the name of who sent a request."""
UNKNOWN_PRODUCER = "unknown"
FLOATS: Final[dict[str, type[np.floating[Any]]]] = {"FP32": np.float32, "FP64": np.float64}
"""Datatypes that the input of a served model can have."""


class BadBody(Invalid):
    def __init__(self, reason: str, expected: str) -> None:
        super().__init__(
            f"the body is not a V2 inference request in JSON, without binary tensors: {reason}; the model takes {expected}"
        )


class BadTensor(Invalid):
    def __init__(self, reason: str, expected: str) -> None:
        super().__init__(f"{reason}; the model takes {expected}")


class UnknownOutput(Invalid):
    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"output {short(name)} is not known; the model gives {', '.join(known)}")


class TooManyRows(TooLarge):
    def __init__(self, name: str, rows: int, limit: int) -> None:
        super().__init__(f"input {name!r} has {rows} rows, at most {limit} are accepted in one request; send several")


class _Input(msgspec.Struct, Generic[Datatype, Data], gc=False):
    name: str
    shape: list[Annotated[int, msgspec.Meta(ge=0, lt=2**31)]]
    datatype: Datatype
    data: Data


class _Output(msgspec.Struct, gc=False):
    name: str


class _Parameters(msgspec.Struct, gc=False):
    producer: Annotated[str, msgspec.Meta(max_length=MAX_PRODUCER)] | None = None
    entity: Annotated[str, msgspec.Meta(max_length=MAX_PRODUCER)] | None = None


class _Asked(msgspec.Struct, Generic[Datatype, Data], gc=False):
    inputs: list[_Input[Datatype, Data]]
    id: str | None = None
    parameters: _Parameters | None = None
    outputs: list[_Output] | None = None


class Request(msgspec.Struct, frozen=True, gc=False):
    """A request that holds. `x` has shape (rows, features) and the model's type; `wanted` are positions of outputs."""

    x: Array
    id: str | None
    producer: str | None
    entity: str | None
    wanted: tuple[int, ...]


class Batch(msgspec.Struct, frozen=True, gc=False):
    """Rows that were computed together, and what the model says about them."""

    x: Array
    outputs: Outputs


class Answer(msgspec.Struct, frozen=True, gc=False):
    """The answer to one request: its `rows` rows of `batch` from `start` on, and their outputs as text."""

    batch: Batch
    start: int
    rows: int
    texts: Texts

    @property
    def outputs(self) -> Outputs:
        return [values[self.start : self.start + self.rows] for values in self.batch.outputs]


class Codec:
    """Reads the requests and writes the answers of one model version."""

    def __init__(self, name: str, version: int, signature: Signature) -> None:
        self._input = signature.input.name
        self._features = signature.features
        self._width = len(signature.features)
        self._dtype = FLOATS[signature.input.datatype]
        self._decoders = _DECODERS[signature.input.datatype]
        self._outputs = {tensor.name: at for at, tensor in enumerate(signature.outputs)}
        self._all = tuple(self._outputs.values())
        self._usual = _USUAL[signature.input.datatype]
        self._expected = f"{self._input!r}: {signature.input.datatype} of shape [rows, {self._width}]"
        self._writers = [_whole_text if t.datatype == "BYTES" else _whole_number for t in signature.outputs]
        self._row_writers = [_row_texts if t.datatype == "BYTES" else _row_numbers for t in signature.outputs]
        self._templates = {
            wanted: _template(name, version, [signature.outputs[at] for at in wanted])
            for some in range(1, len(self._all) + 1)
            for wanted in permutations(self._all, some)
        }

    def decode(self, body: bytes, *, max_rows: int) -> Request:
        """Return what `body` asks for. Raises BadBody, BadTensor, UnknownOutput or TooManyRows."""
        try:
            asked: _Asked[str, Any] = self._usual.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # Nested, of another datatype, or wrong: the envelope first, then the data, to say what is wrong.
            try:
                asked = _ENVELOPE.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise BadBody(str(error), self._expected) from None
        if len(asked.inputs) != 1:
            raise BadTensor(f"{len(asked.inputs)} inputs were sent", f"exactly one, {self._expected}")
        tensor = asked.inputs[0]
        if tensor.name != self._input:
            raise BadTensor(f"input {short(tensor.name)} is not known", self._expected)
        shape = tensor.shape
        if len(shape) != 2 or shape[1] != self._width or shape[0] < 1:
            self._refuse(f"has shape {short(shape)}")
        if shape[0] > max_rows:
            raise TooManyRows(self._input, shape[0], max_rows)
        parameters = asked.parameters
        return Request(
            self._values(tensor, shape[0]),
            asked.id,
            parameters.producer if parameters else None,
            parameters.entity if parameters else None,
            self._wanted(asked.outputs) if asked.outputs else self._all,
        )

    def like(self, other: "Codec") -> bool:
        """Whether rows that the other has read can be computed as if this one had."""
        return self._features == other._features and self._dtype is other._dtype

    def same_features(self, other: "Codec") -> bool:
        """Whether both take the same features, if not in the same precision."""
        return self._features == other._features

    def cast(self, x: Array) -> Array:
        """Return rows that a codec of the same features has read, in this model's precision."""
        return x.astype(self._dtype, copy=False)

    def share_out(self, batch: Batch, counts: Sequence[int]) -> list[Answer]:
        """Give each of those who share `batch`, with so many rows one behind the other, the rows that are his."""
        if len(counts) == 1:
            return [Answer(batch, 0, counts[0], self.write(batch.outputs))]
        written = self.write_rows(batch.outputs)
        if len(counts) == len(batch.x):
            return [Answer(batch, at, 1, texts) for at, texts in enumerate(zip(*written, strict=True))]
        return [
            Answer(batch, end - rows, rows, [b",".join(texts[end - rows : end]) for texts in written])
            for rows, end in zip(counts, accumulate(counts), strict=True)
        ]

    def write(self, outputs: Outputs) -> Texts:
        """Return `outputs` as text."""
        return [write(values) for write, values in zip(self._writers, outputs, strict=True)]

    def write_rows(self, outputs: Outputs) -> list[Texts]:
        """Return for each output the text of every row: one call for many requests is cheaper than one for each."""
        return [write(values) for write, values in zip(self._row_writers, outputs, strict=True)]

    def encode(
        self,
        answer: Answer,
        wanted: tuple[int, ...],
        *,
        prediction_id: bytes,
        trace_id: bytes,
        client_id: str | None,
    ) -> bytes:
        """Return what is sent to the client: of `answer` those outputs that are `wanted`."""
        values: list[bytes | int] = [
            b'"%b"' % prediction_id if client_id is None else orjson.dumps(client_id),
            prediction_id,
            trace_id,
        ]
        for at in wanted:
            values += (answer.rows, answer.texts[at])
        return self._templates[wanted] % tuple(values)

    def _values(self, tensor: _Input[str, Any], rows: int) -> Array:
        data, nested = (tensor.data, False) if isinstance(tensor.data, list) else self._read(tensor)
        if nested:
            if len(data) != rows or any(len(row) != self._width for row in data):
                self._refuse(f"has nested data that does not fill its shape {tensor.shape}")
        elif len(data) != rows * self._width:
            self._refuse(f"has {len(data)} values, its shape {tensor.shape} needs {rows * self._width}")
        return np.array(data, self._dtype).reshape(rows, self._width)

    def _read(self, tensor: _Input[str, msgspec.Raw]) -> tuple[list[Any], bool]:
        """Return the data and whether it is nested."""
        decoders = self._decoders.get(tensor.datatype)
        if decoders is None:
            self._refuse(f"has datatype {short(tensor.datatype)}, accepted are {', '.join(self._decoders)}")
        nested = _NESTED.match(tensor.data) is not None
        try:
            return decoders[nested].decode(tensor.data), nested
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._refuse(f"has bad {tensor.datatype} data: {self._explain(str(error))}")

    def _wanted(self, outputs: "list[_Output]") -> tuple[int, ...]:
        if unknown := [output.name for output in outputs if output.name not in self._outputs]:
            raise UnknownOutput(unknown[0], tuple(self._outputs))
        return tuple(dict.fromkeys(self._outputs[output.name] for output in outputs))

    def _refuse(self, reason: str) -> NoReturn:
        raise BadTensor(f"input {self._input!r} {reason}", self._expected)

    def _explain(self, error: str) -> str:
        """Put row and feature in the place of msgspec's path: `$[5]` flat, `$[1][1]` nested."""
        at = _PATH.search(error)
        if at is None:
            return error
        row, column = (int(at[1]), int(at[2])) if at[2] else divmod(int(at[1]), self._width)
        if column >= self._width:
            return error
        return f"{error[: at.start()]} in row {row}, feature {self._features[column]!r}"


def server_metadata() -> dict[str, Any]:
    """Return the answer to `GET /v2`."""
    return {"name": "meguri", "version": __version__, "extensions": []}


def model_metadata(name: str, deployed: Deployed) -> dict[str, Any]:
    """Return the answer to `GET /v2/models/<name>`. The names of the features stand in the input's parameters."""
    signature = deployed.signature
    return {
        "name": name,
        "versions": [str(deployed.version)],
        "platform": "onnx_onnxv1",
        "inputs": [{**signature.input.model_dump(mode="json"), "parameters": {"features": list(signature.features)}}],
        "outputs": [tensor.model_dump(mode="json") for tensor in signature.outputs],
    }


_NESTED = re.compile(rb"\s*\[\s*\[")
_PATH = re.compile(r" - at `\$\[(\d+)\](?:\[(\d+)\])?`$")


def _both(kind: Any) -> tuple[msgspec.json.Decoder[Any], msgspec.json.Decoder[Any]]:
    """Decoders of flat and of nested data."""
    return msgspec.json.Decoder(list[kind]), msgspec.json.Decoder(list[list[kind]])


_FP32_MAX = float(np.finfo(np.float32).max)
_Single = Annotated[float, msgspec.Meta(ge=-_FP32_MAX, le=_FP32_MAX)]
_Int24 = Annotated[int, msgspec.Meta(ge=-(2**24), le=2**24)]
_Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]
_Int53 = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]

# What clients usually send, read in one go. By the model's datatype.
_USUAL: dict[str, msgspec.json.Decoder[Any]] = {
    "FP32": msgspec.json.Decoder(_Asked[Literal["FP32", "FP64"], list[_Single]]),
    "FP64": msgspec.json.Decoder(_Asked[Literal["FP64"], list[float]]),
}
# Everything else: the envelope, then the data as its datatype says.
_ENVELOPE = msgspec.json.Decoder(_Asked[str, msgspec.Raw])
# By the model's datatype, then the request's. The bounds see to it that no float becomes infinite and no integer is
# rounded (24 bits in FP32, 53 in FP64); msgspec checks them while it reads.
_DECODERS: dict[str, dict[str, tuple[msgspec.json.Decoder[Any], msgspec.json.Decoder[Any]]]] = {
    "FP32": {
        **dict.fromkeys(("FP32", "FP64"), _both(_Single)),
        **dict.fromkeys(("INT64", "INT32"), _both(_Int24)),
        "BOOL": _both(bool),
    },
    "FP64": {
        "FP32": _both(_Single),
        "FP64": _both(float),
        "INT64": _both(_Int53),
        "INT32": _both(_Int32),
        "BOOL": _both(bool),
    },
}


def _template(name: str, version: int, outputs: Sequence[Tensor]) -> bytes:
    """Return an answer with gaps: id in JSON, prediction id, trace id, then rows and values of each output."""

    def literal(value: str) -> bytes:
        return orjson.dumps(value).replace(b"%", b"%%")

    tensors = [
        b'{"name":%b,"datatype":%b,"shape":[%b],"data":[%%b]}'
        % (literal(t.name), literal(t.datatype), b",".join([b"%d", *(b"%d" % size for size in t.shape[1:])]))
        for t in outputs
    ]
    return (
        b'{"model_name":%b,"model_version":"%d","id":%%b,"parameters":{"prediction_id":"%%b","trace_id":"%%b"},'
        b'"outputs":[%b]}' % (literal(name), version, b",".join(tensors))
    )


def _whole_number(values: Array) -> bytes:
    return orjson.dumps(values.reshape(-1), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]


def _whole_text(values: Array) -> bytes:
    return b",".join(_row_texts(values))


def _row_numbers(values: Array) -> Texts:
    written = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)
    return written[1:-1].split(b",") if values.ndim == 1 else written[2:-2].split(b"],[")


def _row_texts(values: Array) -> Texts:
    return [orjson.dumps(text) for text in values.reshape(-1).tolist()]

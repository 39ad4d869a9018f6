"""Open Inference Protocol V2: what a client may ask of a model and what it is answered, in JSON and in binary.

A request carries one tensor of shape [rows, features], or one of shape [rows, 1] for each feature, named like it; a model
whose features are not all numbers takes the latter only. JSON may be flat or nested.
"""

from collections.abc import Sequence
from itertools import accumulate, permutations
from reprlib import repr as short
from typing import Any

import msgspec
import orjson

from meguri_contracts.errors import Invalid
from meguri_contracts.events import Signature
from meguri_inference import binary, large
from meguri_inference.envelope import ENVELOPE, USUAL, AnyInput, Asked, Output
from meguri_inference.reading import UNREADABLE, BadTensor, TensorReader
from meguri_inference.tensors import DTYPES, Array, beside
from meguri_inference.writing import Texts, row_numbers, row_texts, template, whole_numbers, whole_texts

Outputs = list[Array]
"""What a model says about some rows: one array per output, in the order of the signature, rows first."""
Positions = tuple[int, ...]
"""Some outputs, by their positions in the signature."""

UNKNOWN_PRODUCER = "unknown"


class BadBody(Invalid):
    def __init__(self, reason: str, expected: str) -> None:
        super().__init__(f"the body is not a V2 inference request: {reason}; the model takes {expected}")


class UnknownOutput(Invalid):
    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"output {short(name)} is not known; the model gives {', '.join(known)}")


class Request(msgspec.Struct, frozen=True, gc=False):
    """A request that holds. `x` has shape (rows, features); it may be read-only.

    It is of the model's type, or holds Python's objects if the features are not all numbers. The outputs are answered in the
    order `wanted`, those in `binary` as raw tensors.
    """

    x: Array
    id: str | None
    producer: str | None
    wanted: Positions
    entity: str | None = None
    binary: Positions = ()


class Batch(msgspec.Struct, frozen=True, gc=False):
    """Rows that were computed together, and what the model says about them."""

    x: Array
    outputs: Outputs
    written: dict[int, Texts] = msgspec.field(default_factory=dict)
    """Each row's text, by output, once somebody who shares the batch was answered in JSON."""


class Answer(msgspec.Struct, frozen=True, gc=False):
    """The answer to one request: its `rows` rows of `batch` from `start` on."""

    batch: Batch
    start: int
    rows: int

    @property
    def outputs(self) -> Outputs:
        return [self.output(at) for at in range(len(self.batch.outputs))]

    def output(self, at: int) -> Array:
        return self.batch.outputs[at][self.start : self.start + self.rows]


def share_out(batch: Batch, counts: Sequence[int]) -> list[Answer]:
    """Give each of those who share `batch`, with so many rows one behind the other, the rows that are his."""
    if len(counts) == len(batch.x):
        return [Answer(batch, at, 1) for at in range(len(counts))]
    return [Answer(batch, end - rows, rows) for rows, end in zip(counts, accumulate(counts), strict=True)]


class Codec:
    """Reads the requests and writes the answers of one model version."""

    def __init__(self, name: str, version: int, signature: Signature) -> None:
        self._name, self._version, self._signature = name, version, signature
        self._types = [tensor.datatype for tensor in signature.inputs or (signature.input,)]
        numbers = signature.input.datatype
        # None if the features are not all numbers.
        self._whole = None if signature.inputs else TensorReader(signature.input.name, numbers, signature.features)
        self._usual = ENVELOPE if signature.inputs else USUAL[numbers]
        types = {tensor.name: tensor.datatype for tensor in signature.inputs}
        self._features = [TensorReader(each, types.get(each, numbers), (each,)) for each in signature.features]
        self._outputs = {tensor.name: at for at, tensor in enumerate(signature.outputs)}
        self._all: Positions = tuple(self._outputs.values())
        texts = [tensor.datatype == "BYTES" for tensor in signature.outputs]
        self._writers = [whole_texts if text else whole_numbers for text in texts]
        self._row_writers = [row_texts if text else row_numbers for text in texts]
        self._templates = {
            wanted: template(name, version, [signature.outputs[at] for at in wanted])
            for some in range(1, len(self._all) + 1)
            for wanted in permutations(self._all, some)
        }
        self._binary_templates: dict[tuple[Positions, Positions], bytes] = {}

    def decode(self, body: bytes, *, max_rows: int, header_length: int | None = None) -> Request:
        """Return what `body` asks for; `header_length` is that of its JSON if raw tensors may follow.

        Raises BadBody, BadTensor, UnknownOutput, TooManyRows or BadLength.
        """
        raws: Sequence[memoryview | None] = ()
        if header_length is None:
            asked = self._read_json(body)
        else:
            asked = self._envelope(binary.split(body, header_length))
            raws = binary.parts(asked.inputs, body, header_length)
        inputs = asked.inputs
        if self._whole and len(inputs) == 1 and inputs[0].name == self._whole.name:
            x = self._whole.read(inputs[0], raws[0] if raws else None, max_rows)
        else:
            x = self._by_feature(inputs, raws or [None] * len(inputs), max_rows)
        parameters, wanted = asked.parameters, self._all
        raw: Positions = ()
        if asked.outputs or (parameters and parameters.binary_data_output):
            wanted, raw = self._wanted(asked.outputs or (), bool(parameters and parameters.binary_data_output))
        if parameters is None:
            return Request(x, asked.id, None, wanted, None, raw)
        return Request(x, asked.id, parameters.producer, wanted, parameters.entity, raw)

    def encode(
        self, answer: Answer, request: Request, *, prediction_id: str, trace_id: str
    ) -> tuple[bytes, int | None]:
        """Return what is sent to the client, and the length of its JSON if raw tensors follow it."""
        prediction = prediction_id.encode()
        values: list[bytes | int] = [
            b'"%b"' % prediction if request.id is None else orjson.dumps(request.id),
            prediction,
            trace_id.encode(),
        ]
        if request.binary:
            return self._encode_binary(answer, request, values)
        for at in request.wanted:
            values += (answer.rows, self._text(answer, at))
        return self._templates[request.wanted] % tuple(values), None

    def like(self, other: "Codec") -> bool:
        """Whether rows that the other has read can be computed as if this one had."""
        return self.same_features(other) and self._types == other._types

    def same_features(self, other: "Codec") -> bool:
        """Whether both take the same features, if not in the same precision."""
        return self._signature.features == other._signature.features and (self._whole is None) == (other._whole is None)

    def cast(self, x: Array) -> Array:
        """Return rows that a codec of the same features has read, in this model's precision."""
        return x if self._whole is None else x.astype(DTYPES[self._types[0]], copy=False)

    def _encode_binary(self, answer: Answer, request: Request, values: list[bytes | int]) -> tuple[bytes, int]:
        raws = []
        for at in request.wanted:
            if at in request.binary:
                raws.append(binary.write(answer.output(at), self._signature.outputs[at].datatype))
                values += (answer.rows, len(raws[-1]))
            else:
                values += (answer.rows, self._text(answer, at))
        head = self._binary_template(request.wanted, request.binary) % tuple(values)
        return b"".join((head, *raws)), len(head)

    def _binary_template(self, wanted: Positions, raw: Positions) -> bytes:
        found = self._binary_templates.get((wanted, raw))
        if found is None:
            outputs = self._signature.outputs
            names = [outputs[at].name for at in raw]
            found = template(self._name, self._version, [outputs[at] for at in wanted], names)
            self._binary_templates[wanted, raw] = found
        return found

    def _text(self, answer: Answer, at: int) -> bytes:
        """Return an output in JSON, flat, without the brackets."""
        batch = answer.batch
        if answer.rows == len(batch.x):
            return self._writers[at](batch.outputs[at])
        texts = batch.written.get(at)
        if texts is None:
            texts = batch.written[at] = self._row_writers[at](batch.outputs[at])
        return texts[answer.start] if answer.rows == 1 else b",".join(texts[answer.start : answer.start + answer.rows])

    def _read_json(self, body: bytes) -> Asked[Any]:
        try:
            asked: Asked[Any]
            if len(body) > large.MIN_BYTES and self._whole and (found := large.cut_out(body)):
                rest, values = found
                asked = self._usual.decode(rest)
                if len(asked.inputs) == 1:
                    asked.inputs[0].data = values
                    return asked
            asked = self._usual.decode(body)
        except UNREADABLE:
            # Nested, of another datatype, or wrong: the envelope first, then the data, to say what is wrong.
            return self._envelope(body)
        return asked

    def _envelope(self, text: bytes | memoryview) -> Asked[AnyInput]:
        try:
            asked: Asked[AnyInput] = ENVELOPE.decode(text)
        except UNREADABLE as error:
            raise BadBody(str(error), self._expected()) from None
        return asked

    def _by_feature(self, inputs: Sequence[AnyInput], raws: Sequence[memoryview | None], max_rows: int) -> Array:
        sent = {tensor.name: (tensor, raw) for tensor, raw in zip(inputs, raws, strict=True)}
        self._check_names([tensor.name for tensor in inputs])
        columns = [reader.read(*sent[reader.name], max_rows) for reader in self._features]
        for reader, column in zip(self._features, columns, strict=True):
            if len(column) != len(columns[0]):
                reader.refuse(f"has {len(column)} rows, {self._features[0].name!r} has {len(columns[0])}")
        return beside([column[:, 0] for column in columns], mixed=self._whole is None)

    def _check_names(self, names: Sequence[str]) -> None:
        known = {reader.name: reader for reader in self._features}
        if unknown := [name for name in names if name not in known]:
            raise BadTensor(f"input {short(unknown[0])} is not known", self._expected())
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise BadTensor(f"input {twice!r} was sent more than once", self._expected())
        if missing := [name for name in known if name not in names]:
            sent = f"{len(names)} inputs were sent" if names else "0 inputs were sent"
            raise BadTensor(f"{sent}, {short(missing[0])} is missing", self._expected())

    def _expected(self) -> str:
        readers = [self._whole] if self._whole else self._features
        more = len(readers) - 3
        return ", ".join(reader.expected for reader in readers[:3]) + (f" and {more} more inputs" if more > 0 else "")

    def _wanted(self, outputs: Sequence[Output], all_binary: bool) -> tuple[Positions, Positions]:
        """Return which outputs are wanted, and which of them as raw tensors."""
        if not outputs:
            return self._all, self._all
        if unknown := [output.name for output in outputs if output.name not in self._outputs]:
            raise UnknownOutput(unknown[0], tuple(self._outputs))
        raw: dict[int, bool] = {}
        for output in outputs:
            own = output.parameters.binary_data if output.parameters else None
            raw.setdefault(self._outputs[output.name], all_binary if own is None else own)
        return tuple(raw), tuple(at for at, is_raw in raw.items() if is_raw)

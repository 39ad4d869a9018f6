"""What stands in the JSON of a V2 request, as msgspec reads it: in one go what clients usually send, or step by step."""

from typing import Annotated, Any, Final, Generic, Literal, TypeVar

import msgspec

from meguri_inference.tensors import Single

MAX_NAME = 128
"""Characters in the name of who sent a request, and of whom it is about."""

Datatype = TypeVar("Datatype")
Number = TypeVar("Number")
Input = TypeVar("Input")

Shape = list[Annotated[int, msgspec.Meta(ge=0, lt=2**31)]]
Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME)]


class NotBinary(msgspec.Struct, gc=False):
    binary_data_size: None = None


class UsualInput(msgspec.Struct, Generic[Datatype, Number], gc=False):
    """A tensor whose data is a flat list of numbers; of a large one it was read before, into an array."""

    name: str
    shape: Shape
    datatype: Datatype
    data: list[Number]
    parameters: NotBinary | None = None


class InputParameters(msgspec.Struct, gc=False):
    binary_data_size: Annotated[int, msgspec.Meta(ge=0)] | None = None


class AnyInput(msgspec.Struct, gc=False):
    """A tensor as yet unread: its data stands here as text, or behind the JSON."""

    name: str
    shape: Shape
    datatype: str
    data: msgspec.Raw = msgspec.Raw(b"")
    parameters: InputParameters | None = None

    @property
    def binary_size(self) -> int | None:
        """Bytes that it takes behind the JSON."""
        return self.parameters.binary_data_size if self.parameters else None


class OutputParameters(msgspec.Struct, gc=False):
    binary_data: bool | None = None
    # Of extensions that are not spoken here: who asks for them would not understand the answer.
    classification: Literal[0] = 0
    shared_memory_region: None = None


class Output(msgspec.Struct, gc=False):
    name: str
    parameters: OutputParameters | None = None


class Parameters(msgspec.Struct, gc=False):
    producer: Name | None = None
    entity: Name | None = None
    binary_data_output: bool = False


class Asked(msgspec.Struct, Generic[Input], gc=False):
    inputs: list[Input]
    id: str | None = None
    parameters: Parameters | None = None
    outputs: list[Output] | None = None


ENVELOPE: Final = msgspec.json.Decoder(Asked[AnyInput])
USUAL: Final[dict[str, msgspec.json.Decoder[Any]]] = {
    "FP32": msgspec.json.Decoder(Asked[UsualInput[Literal["FP32", "FP64"], Single]]),
    "FP64": msgspec.json.Decoder(Asked[UsualInput[Literal["FP64"], float]]),
}
"""By the datatype of the model's only input."""

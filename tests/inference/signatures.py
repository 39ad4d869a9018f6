"""Signatures for tests of the protocol: numbers in one tensor, and features of several types in a tensor each."""

from meguri_contracts.events import Signature, Tensor

OUTPUTS = (
    Tensor(name="label", datatype="BYTES", shape=(-1,)),
    Tensor(name="probabilities", datatype="FP32", shape=(-1, 2)),
)


def numbers(datatype: str, *features: str) -> Signature:
    return Signature(
        features=features, input=Tensor(name="x", datatype=datatype, shape=(-1, len(features))), outputs=OUTPUTS
    )


def mixed(**datatypes: str) -> Signature:
    inputs = tuple(Tensor(name=name, datatype=datatype, shape=(-1, 1)) for name, datatype in datatypes.items())
    return Signature(features=tuple(datatypes), input=inputs[0], inputs=inputs, outputs=OUTPUTS)


PEOPLE = mixed(age="INT64", height="FP64", city="BYTES", member="BOOL", score="FP32")

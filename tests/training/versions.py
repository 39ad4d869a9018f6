"""Versions as plans name them."""

from meguri_contracts.events import Artifact, Deployed, Signature, Tensor


def deployed(run: str, version: int) -> Deployed:
    artifact = Artifact(uri="file:///a", digest="a", size=1)
    tensor = Tensor(name="x", datatype="FP64", shape=(-1, 1))
    signature = Signature(features=("x",), input=tensor, outputs=(tensor,))
    return Deployed(version=version, run=run, onnx=artifact, profile=artifact, signature=signature)

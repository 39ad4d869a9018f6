"""The control side of the Open Inference Protocol (V2), and predictions for people. V2's own take the lean path before it."""

import asyncio
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import Field

from meguri_chassis.service import Service
from meguri_contracts.names import NAME_PATTERN
from meguri_inference import documents, rows
from meguri_inference.answering import Answering, Reply, Told
from meguri_inference.compression import BodyTooLarge, inflate
from meguri_inference.heads import Headers, head_for, headers_of

Name = Annotated[str, Field(pattern=NAME_PATTERN)]


NOT_OURS = "models are not loaded or unloaded by clients: a version serves when the registry has rolled it out"


def routes(service: Service, answering: Answering) -> APIRouter:
    """Return the routes of inference, without the predictions of V2."""
    models = answering.models
    router = APIRouter(tags=["open inference protocol"])

    @router.get("/v2")
    def server_metadata() -> dict[str, Any]:
        """Name, version and extensions of the server."""
        return documents.server_metadata()

    @router.get("/v2/health/live")
    def live() -> dict[str, bool]:
        """The server answers."""
        return {"live": True}

    @router.get("/v2/health/ready")
    def ready() -> Response:
        """200 when the server follows the rollouts, 503 when not."""
        return Response(status_code=503 if service.not_ready() else 200)

    @router.get("/v2/models/{name}")
    def model_metadata(name: Name) -> dict[str, Any]:
        """Inputs and outputs of a model, with the names of its features."""
        return documents.model_metadata(name, models.get(name).champion.deployed)

    @router.get("/v2/models/{name}/versions/{version}")
    def version_metadata(name: Name, version: str) -> dict[str, Any]:
        """The same for the version that is served."""
        return documents.model_metadata(name, models.get(name).version(version).deployed)

    @router.get("/v2/models/{name}/ready")
    def model_ready(name: Name) -> dict[str, Any]:
        """200 when the model answers here, 404 when not."""
        return {"name": name, "ready": bool(models.get(name).champion)}

    @router.get("/v2/models/{name}/versions/{version}/ready")
    def version_ready(name: Name, version: str) -> dict[str, Any]:
        """The same for a version."""
        return {"name": name, "version": version, "ready": bool(models.get(name).version(version))}

    @router.post("/v2/models/{name}/infer", openapi_extra={"requestBody": _TENSORS})
    async def infer(name: Name, request: Request) -> Response:
        """Answer tensors, in JSON or binary. Here for `/docs`: requests are mostly answered before they come so far."""
        return await _infer(name, None, request)

    @router.post("/v2/models/{name}/versions/{version}/infer", openapi_extra={"requestBody": _TENSORS})
    async def infer_version(name: Name, version: str, request: Request) -> Response:
        """The same by one of the versions in the model's traffic plan."""
        return await _infer(name, version, request)

    async def _infer(name: str, version: str | None, request: Request) -> Response:
        body = await _body(request, answering.limits.max_body_bytes)
        reply = await answering.answer(head_for(name, request.headers.raw, version), body)
        return Response(reply.body, reply.status, dict(_as_text(headers_of(reply))))

    @router.get("/v2/models/{name}/config")
    def model_config(name: Name) -> dict[str, Any]:
        """The same as Triton says it, for its measuring tools."""
        return documents.model_config(name, models.get(name).champion.deployed)

    @router.get("/v2/models/{name}/versions/{version}/config")
    def version_config(name: Name, version: str) -> dict[str, Any]:
        """The same for the version that is served."""
        return documents.model_config(name, models.get(name).version(version).deployed)

    @router.post("/v2/repository/index")
    def repository_index() -> list[dict[str, Any]]:
        """Which version of which model this replica serves. A body is not needed."""
        seats = (seat for name in models.names for seat in models.get(name).seats)
        return documents.repository_index((seat.name, seat.version) for seat in seats)

    @router.post("/v2/repository/models/{name}/load", status_code=400)
    def load(name: Name) -> None:
        """Refused: the registry decides what is served."""
        raise HTTPException(400, NOT_OURS)

    @router.post("/v2/repository/models/{name}/unload", status_code=400)
    def unload(name: Name) -> None:
        """Refused: the registry decides what is served."""
        raise HTTPException(400, NOT_OURS)

    @router.post("/models/{name}/predict", tags=["inference"], openapi_extra={"requestBody": _ROWS})
    async def predict(name: Name, request: Request) -> Response:
        """Answer rows of named columns, in JSON or CSV; in CSV if `Accept` says so."""

        body = await _body(request, answering.limits.max_body_bytes)
        is_csv = request.headers.get("content-type", "").startswith("text/csv")
        read = partial(rows.read_csv if is_csv else rows.read_json, body, max_rows=answering.limits.max_rows)
        told = await answering.tell(head_for(name, request.headers.raw), read)
        if isinstance(told, Reply):
            return Response(told.body, told.status, dict(_as_text(headers_of(told))))
        return await asyncio.to_thread(_answer, told, "text/csv" in request.headers.get("accept", ""))

    @router.get("/models", tags=["inference"])
    def served() -> list[dict[str, Any]]:
        """Which versions of which models this replica serves, and as what."""
        return [
            {
                "model": seat.name,
                "version": seat.version,
                "role": seat.role,
                "loaded": seat.batcher is not None,
                "engine": seat.deployed.engine,
                "replica": service.settings.replica,
            }
            for name in models.names
            for seat in models.get(name).seats
        ]

    return router


_TENSORS = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["inputs"],
                "properties": {
                    "inputs": {"type": "array", "items": {"type": "object"}},
                    "id": {"type": "string"},
                    "parameters": {"type": "object"},
                    "outputs": {"type": "array", "items": {"type": "object"}},
                },
                "example": {
                    "inputs": [{"name": "input", "shape": [1, 2], "datatype": "FP64", "data": [0.1, 0.2]}],
                    "parameters": {"producer": "me", "entity": "customer-7"},
                },
            }
        }
    },
}
_ROWS = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "rows": {"type": "array", "items": {"type": "object"}},
                    "columns": {"type": "object", "additionalProperties": {"type": "array", "items": {}}},
                    "id": {"type": "string"},
                    "producer": {"type": "string", "maxLength": 128},
                    "entity": {"type": "string", "maxLength": 128},
                },
                "example": {"rows": [{"age": 41, "city": "Kyoto"}]},
            }
        },
        "text/csv": {"schema": {"type": "string", "example": "age,city\n41,Kyoto\n"}},
    },
}


async def _body(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise BodyTooLarge(limit)
    encoding = request.headers.get("content-encoding", "")
    return await asyncio.to_thread(inflate, bytes(body), encoding, limit) if encoding else bytes(body)


def _as_text(headers: Headers) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def _answer(said: Told, as_csv: bool) -> Response:
    model, id_ = said.model, said.prediction_id
    if not as_csv:
        body = rows.write_json(
            said.answer,
            said.request,
            model.signature,
            model=model.name,
            version=model.version,
            prediction_id=id_,
            trace_id=said.trace_id,
        )
        return Response(body, media_type="application/json")
    headers = {
        "Meguri-Model": model.name,
        "Meguri-Model-Version": str(model.version),
        "Meguri-Prediction-Id": id_,
        "Meguri-Trace-Id": said.trace_id,
    }
    return Response(rows.write_csv(said.answer, model.signature, prediction_id=id_), 200, headers, "text/csv")

"""The control side of the Open Inference Protocol (V2): health and metadata. Predictions take the lean path before it."""

from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import Field

from meguri_chassis.service import Service
from meguri_contracts.names import NAME_PATTERN
from meguri_inference import documents
from meguri_inference.models import Models

Name = Annotated[str, Field(pattern=NAME_PATTERN)]


def routes(service: Service, models: Models) -> APIRouter:
    """Return the routes of inference, without the predictions."""
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

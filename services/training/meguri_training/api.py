"""HTTP out: what each model waits for."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from sqlmodel import Session

from meguri_chassis.service import Service
from meguri_contracts.names import NAME_PATTERN
from meguri_training import runs, store

Name = Annotated[str, Field(pattern=NAME_PATTERN)]


def routes(service: Service) -> APIRouter:
    """Return the routes of training."""
    router = APIRouter(tags=["training"])
    database = service.database
    assert database is not None

    @router.get("/models")
    def list_models() -> list[dict[str, Any]]:
        """Every model with its running run, or what the next run waits for."""
        with database.read() as session:
            return [_state(session, model) for model in store.models(session)]

    @router.get("/models/{name}")
    def get_model(name: Name) -> dict[str, Any]:
        """One model: its running run, or what the next run waits for, and the triggers since the last run."""
        with database.read() as session:
            model = store.known_model(session, name)
            return _state(session, model) | {"triggers": [trigger.model_dump() for trigger in model.triggers]}

    return router


def _state(session: Session, model: runs.Model) -> dict[str, Any]:
    data = store.data(session, model)
    return {
        "model": model.name,
        "running": model.running,
        "waits_for": runs.why_not(model, data) or "nothing: a run is due",
        "new_rows": data.total_rows - model.rows if data else 0,
    }

"""HTTP out: what each model waits for, and what became of each dataset version."""

from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import Field
from sqlmodel import Session

from meguri_chassis.service import Service
from meguri_contracts.errors import NotFound
from meguri_contracts.names import NAME_PATTERN
from meguri_training import runs, store

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Version = Annotated[int, Path(ge=0, lt=2**63)]


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
            broken = model.broken.model_dump(mode="json") if model.broken else None
            triggers = [trigger.model_dump() for trigger in model.triggers]
            return _state(session, model) | {"triggers": triggers, "loop_broken": broken}

    @router.get("/datasets/{name}/versions/{version}")
    def get_version(name: Name, version: Version) -> list[dict[str, Any]]:
        """Each model on a dataset: the first run that learned from this version, or what such a run waits for."""
        with database.read() as session:
            newest = store.data_of(session, name)
            if version > newest.version:
                raise NotFound(f"dataset {name!r} has no version {version}; its newest is {newest.version}")
            return [_use(session, model, name, version) for model in store.models_on(session, name)]

    return router


def _state(session: Session, model: runs.Model) -> dict[str, Any]:
    data = store.data(session, model)
    return {
        "model": model.name,
        "running": model.running,
        "waits_for": runs.why_not(model, data) or "nothing: a run is due",
        "new_rows": data.total_rows - model.rows if data else 0,
    }


def _use(session: Session, model: runs.Model, dataset: str, version: int) -> dict[str, Any]:
    run = store.run_with(session, model.name, dataset, version)
    waits_for = None if run else runs.why_not(model, store.data(session, model)) or "nothing: a run is due"
    return {"model": model.name, "run": run, "waits_for": waits_for}

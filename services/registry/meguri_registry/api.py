"""HTTP in, HTTP out: what is known of models, versions, rollouts, runs and lineage; commands are in `commands`."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlmodel import Session

from meguri_chassis.service import Service
from meguri_chassis.store import utc
from meguri_contracts.errors import Invalid
from meguri_registry import batch_store, batches, commands, history, showing, store
from meguri_registry.commands import Name, Version
from meguri_registry.models import Model


def routes(service: Service) -> APIRouter:
    """Return the routes of the registry."""
    router = APIRouter()
    router.include_router(commands.routes(service))
    database = service.database
    assert database is not None

    @router.get("/models", tags=["models"])
    def list_models() -> list[dict[str, Any]]:
        """All models with their champion and newest version."""
        with database.read() as session:
            return [_summary(session, model) for model in store.models(session)]

    @router.get("/models/{name}", tags=["models"])
    def get_model(name: Name) -> dict[str, Any]:
        """A model: spec, champion, versions with verdicts and numbers, runs."""
        with database.read() as session:
            model = store.known_model(session, name)
            return _summary(session, model) | {
                "spec": model.spec.model_dump(mode="json") if model.spec else None,
                "versions": [_version(row) for row in store.versions(session, name)],
                "runs": [row.model_dump(mode="json") for row in store.runs(session, name)],
            }

    @router.get("/models/{name}/champion", tags=["models"])
    def champion(name: Name, at: Annotated[datetime | None, Query()] = None) -> dict[str, Any]:
        """Who is champion, or was at a time (ISO 8601; UTC when no zone is given)."""
        with database.read() as session:
            store.known_model(session, name)
            return _rollout(store.champion_at(session, name, utc(at) if at else datetime.now(UTC)))

    @router.get("/models/{name}/rollouts", tags=["models"])
    def list_rollouts(name: Name) -> list[dict[str, Any]]:
        """Every change of the traffic plan, newest first, with roles, reason and actor."""
        with database.read() as session:
            store.known_model(session, name)
            return [_rollout(row) for row in store.rollouts(session, name)]

    @router.get("/models/{name}/rollout", tags=["models"])
    def rollout(name: Name) -> dict[str, Any]:
        """The traffic plan in force: what was observed of each version, and what comes next."""
        with database.read() as session:
            return showing.rollout(store.known_model(session, name))

    @router.get("/models/{name}/versions/{version}", tags=["models"])
    def get_version(name: Name, version: Version) -> dict[str, Any]:
        """A version: metrics, verdict with its numbers, artifacts, signature, environment."""
        with database.read() as session:
            row = store.version(session, name, version)
            return _version(row) | {"trained": row.trained}

    @router.get("/models/{name}/versions/{version}/lineage", tags=["lineage"])
    def lineage(name: Name, version: Version) -> dict[str, Any]:
        """What a version was made from: run, triggers, dataset version, arrivals and their producers."""
        with database.read() as session:
            row = store.version(session, name, version)
            run = session.get(store.RunRow, row.run)
            parts = store.contributions(session, row.trained["dataset"], row.trained["dataset_version"])
            return {
                "model": name,
                "version": version,
                "run": run.model_dump(mode="json") if run else None,
                "dataset": row.trained["dataset"],
                "dataset_version": row.trained["dataset_version"],
                "dataset_digest": row.trained["dataset_digest"],
                "arrivals": [part.model_dump(mode="json") for part in parts],
            }

    @router.get("/lineage/events/{event:path}", tags=["lineage"])
    def used_in(event: str) -> dict[str, Any]:
        """What came of an arrival: the dataset versions that hold it and the model versions trained on them."""
        with database.read() as session:
            return {
                "event": event,
                "datasets": [
                    part.model_dump(mode="json") | {"used_in": [_version(row) for row in rows]}
                    for part, rows in store.used_in(session, event)
                ],
            }

    @router.get("/batches", tags=["batches"])
    def list_batches(
        model: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> list[dict[str, Any]]:
        """The latest batches, newest first; of all models or of one."""
        with database.read() as session:
            return [batches.summary(row) for row in batch_store.batches(session, model, limit)]

    @router.get("/batches/{batch}", tags=["batches"])
    def get_batch(batch: Name, model: str | None = None) -> dict[str, Any]:
        """A batch: status, version, run, digests of input and predictions, and the parts that are done."""
        with database.read() as session:
            return batches.detail(session, batch_store.batch(session, batch, model))

    @router.get("/at", tags=["models"])
    def known_at(time: Annotated[datetime, Query()], model: Annotated[str | None, Query()] = None) -> dict[str, Any]:
        """What was known at a time (ISO 8601; UTC when no zone is given), of all models or of one."""
        time = _in_utc(time)
        with database.read() as session:
            known = history.fold(store.said_until(session, history.KINDS, time, model))
        return {"time": time.isoformat(), "models": [_known(known[name]) for name in sorted(known)]}

    return router


def _summary(session: Session, model: Model) -> dict[str, Any]:
    newest = next(iter(store.versions(session, model.name)), None)
    return {
        "model": model.name,
        "spec_version": model.spec_version,
        "champion": model.champion.version if model.champion else None,
        "since": since.isoformat() if (since := store.champion_since(session, model.name)) else None,
        "plan": showing.planned(model.plan) if model.plan else [],
        "newest": _version(newest) if newest else None,
    }


def _in_utc(time: datetime) -> datetime:
    try:
        return utc(time).astimezone(UTC)
    except OverflowError as error:
        raise Invalid(f"time: {time.isoformat()} is in no year from 1 to 9999 of UTC") from error


def _known(known: history.Known) -> dict[str, Any]:
    model = known.model
    return {
        "model": model.name,
        "spec_version": model.spec_version,
        "champion": model.champion.version if model.champion else None,
        "plan": showing.planned(model.plan) if model.plan else [],
        "past": list(model.past),
        "versions": [
            {"version": version, "run": run, "verdict": known.verdicts.get(version, store.NONE_YET)}
            for run, version in sorted(model.runs.items(), key=lambda item: item[1])
        ],
    }


def _version(row: store.VersionRow) -> dict[str, Any]:
    trained = row.trained
    return {
        "model": row.model,
        "version": row.version,
        "run": row.run,
        "verdict": row.verdict,
        "reason": row.reason,
        "judged": row.judged,
        "metrics": trained["candidate"]["metrics"],
        "compared_with": trained["champion"],
        "dataset": trained["dataset"],
        "dataset_version": trained["dataset_version"],
        "train_rows": trained["train_rows"],
        "holdout_rows": trained["holdout_rows"],
        "parity": trained["parity"],
        "seconds": trained["seconds"],
        "fit_seconds": trained["fit_seconds"],
        "time": utc(row.time).isoformat(),
    }


def _rollout(row: store.RolloutRow) -> dict[str, Any]:
    roles = row.roles or [{"version": row.version, "role": "champion", "share": 1.0}]
    return row.model_dump(mode="json") | {"roles": roles, "time": utc(row.time).isoformat()}

"""HTTP in, HTTP out: specs and commands of people, and what is known of models, versions, runs and lineage."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import uuid4

import yaml
from fastapi import APIRouter, Body, Header, Query, Request
from pydantic import BaseModel, Field, ValidationError
from sqlmodel import Session

from meguri_chassis.log import explain
from meguri_chassis.projection import recorded
from meguri_chassis.service import Service
from meguri_chassis.store import utc
from meguri_contracts.errors import Invalid
from meguri_contracts.events import Event, RolloutChanged, TrainingRequested
from meguri_contracts.names import NAME_PATTERN, derived_id
from meguri_contracts.spec import ModelSpec
from meguri_registry import history, promotion, store

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Version = Annotated[int, Field(ge=1, le=2**31 - 1)]
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=128)]
Actor = Annotated[str, Header(alias="Meguri-Actor", max_length=128)]


class Said(BaseModel):
    """What a command appended to the log; empty when all was so already."""

    events: list[dict[str, Any]]


class Promote(BaseModel):
    version: Version
    reason: str = "promoted by hand"


class Because(BaseModel):
    reason: str = Field(default="asked for by hand", max_length=1000)


def routes(service: Service) -> APIRouter:
    """Return the routes of the registry."""
    router = APIRouter()
    database, decider = service.database, service.decider
    assert database is not None
    assert decider is not None

    async def carry_out(decide: Callable[[Session], Sequence[Event]], key: str | None) -> Said:
        command = key or str(uuid4())
        events = await decider.carry_out(decide, cause=command, journey=command)
        await decider.settled()
        return Said(events=[{"type": event.type, **event.model_dump(mode="json")} for event in events])

    @router.post("/specs", tags=["specs"])
    async def apply_spec(request: Request, key: Key = None, actor: Actor = "unknown") -> Said:
        """Apply a model spec, YAML or JSON. The same spec again changes nothing."""
        spec = _spec(await request.body())
        return await carry_out(
            lambda session: promotion.apply_spec(
                store.model(session, spec.model), spec, actor, store.datasets_of_others(session, spec.model)
            ),
            key,
        )

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
        """Every change of the champion, newest first, with reason and actor."""
        with database.read() as session:
            store.known_model(session, name)
            return [_rollout(row) for row in store.rollouts(session, name)]

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

    @router.get("/at", tags=["models"])
    def known_at(time: Annotated[datetime, Query()], model: Annotated[str | None, Query()] = None) -> dict[str, Any]:
        """What was known at a time (ISO 8601; UTC when no zone is given), of all models or of one."""
        time = _in_utc(time)
        with database.read() as session:
            known = history.fold(store.events_until(session, history.KINDS, time, model))
        return {"time": time.isoformat(), "models": [_known(known[name]) for name in sorted(known)]}

    @router.post("/models/{name}/promote", tags=["commands"])
    async def promote(name: Name, body: Promote, key: Key = None, actor: Actor = "unknown") -> Said:
        """Make a version champion by hand; also the answer to approval-requested."""
        return await carry_out(
            lambda session: promotion.promote(
                store.known_model(session, name), store.deployable(session, name, body.version), actor, body.reason
            ),
            key,
        )

    @router.post("/models/{name}/rollback", tags=["commands"])
    async def rollback(
        name: Name, body: Annotated[Because, Body()] = Because(), key: Key = None, actor: Actor = "unknown"
    ) -> Said:
        """Go back to the champion before the present one."""
        return await carry_out(lambda session: _back(session, name, key, actor, f"rollback: {body.reason}"), key)

    @router.post("/models/{name}/train", tags=["commands"], status_code=202)
    async def train(
        name: Name, body: Annotated[Because, Body()] = Because(), key: Key = None, actor: Actor = "unknown"
    ) -> Said:
        """Ask for a run now, whatever the triggers say."""

        def request(session: Session) -> list[Event]:
            store.known_model(session, name)
            return [TrainingRequested(model=name, reason=body.reason, actor=actor)]

        return await carry_out(request, key)

    return router


def _back(session: Session, name: str, key: str | None, actor: str, reason: str) -> Sequence[Event]:
    model = store.known_model(session, name)
    # Sent again after it was done, there may be no champion left to go back to.
    if key and recorded(session, derived_id(key, RolloutChanged.type, name, "")):
        return []
    return promotion.promote(model, store.before(session, name), actor, reason)


def _spec(text: bytes) -> ModelSpec:
    try:
        data = json.loads(text) if text.lstrip().startswith(b"{") else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise Invalid(f"the spec is neither YAML nor JSON: {error}") from error
    try:
        return ModelSpec.model_validate(data)
    except ValidationError as error:
        raise Invalid(f"the spec breaks a rule: {explain(error)}") from error


def _summary(session: Session, model: promotion.Model) -> dict[str, Any]:
    rollouts = store.rollouts(session, model.name)
    newest = next(iter(store.versions(session, model.name)), None)
    return {
        "model": model.name,
        "spec_version": model.spec_version,
        "champion": model.champion.version if model.champion else None,
        "since": utc(rollouts[0].time).isoformat() if rollouts else None,
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
        "past": list(model.past),
        "versions": [
            {"version": version, "run": run, "verdict": known.verdicts.get(version, "none yet")}
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
    return row.model_dump(mode="json") | {"time": utc(row.time).isoformat()}

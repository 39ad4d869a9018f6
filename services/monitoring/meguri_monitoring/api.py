"""HTTP out: windows, predictions, shadows and quality."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, Any

import polars as pl
from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import AfterValidator, Field
from sqlmodel import Session

from meguri_chassis.service import Service
from meguri_contracts.errors import NotFound
from meguri_contracts.names import NAME_PATTERN
from meguri_monitoring import store
from meguri_monitoring.episodes import api as episode_api
from meguri_monitoring.notices import store as notice_store
from meguri_monitoring.predictions import predictions, recorded, shadows, tables
from meguri_monitoring.predictions.predictions import VERSIONS
from meguri_monitoring.quality import showing
from meguri_monitoring.quality.joining import Limits
from meguri_monitoring.quality.scoring import Scorer
from meguri_monitoring.windows import store as window_store

APART = timedelta(hours=1)
"""Most time between an answer and what a shadow would have said in its place."""
ARROW = "application/vnd.apache.arrow.stream"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Time = Annotated[datetime, AfterValidator(predictions.within_times)]
Version = Annotated[int, Field(ge=VERSIONS[0], le=VERSIONS[1])]


def routes(service: Service, scorer: Scorer) -> APIRouter:
    """Return the routes of monitoring."""
    router = APIRouter(tags=["monitoring"])
    router.include_router(episode_api.routes(service, notice_store.not_told))
    database = service.database
    assert database is not None
    reading = asyncio.Semaphore(1)

    @router.get("/models/{name}/windows")
    def list_windows(name: Name, limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> list[dict[str, Any]]:
        """The latest judged windows of a model with what moved in them, newest first."""
        with database.read() as session:
            return [_judged(row) for row in window_store.judged_windows(session, name, limit)]

    @router.get("/predictions/{prediction_id}")
    async def get_prediction(prediction_id: str, model: Name | None = None) -> dict[str, Any]:
        """A kept prediction: when, by which version, for which producer, in which trace, on what, and the answer.

        `shadows` are the answers that shadows would have given in its place.
        """
        versions = await database.ask(lambda session: store.versions(session, model))
        for row in versions:
            uri = tables.table_uri(service.settings.data_url, row.model, row.version)
            if found := await asyncio.to_thread(tables.find, uri, prediction_id):
                return found | {"shadows": await asyncio.to_thread(_shadows, found, versions)}
        raise NotFound(f"no prediction {prediction_id!r} is kept; one is a moment after it was made")

    @router.get("/models/{name}/shadows/{version}")
    async def compare_shadow(
        name: Name,
        version: Version,
        since: Time | None = None,
        worst: Annotated[int, Query(ge=0, le=1000)] = 10,
    ) -> dict[str, Any]:
        """How far the answers of a shadow are from those that were given in their place, since a time; the worst pairs."""
        versions = await database.ask(lambda session: store.versions(session, name))
        return await asyncio.to_thread(_disagreement, versions, name, version, since, worst)

    @router.get("/models/{name}/quality")
    async def get_quality(name: Name, since: Time | None = None, until: Time | None = None) -> dict[str, Any]:
        """How good the answers are by their labels: how many have one, mean score, metrics, calibration, told apart by slices.

        Of the answering versions since they are these; or of all versions that answered `since` a time or `until` one, both
        included. A score is 1 or 0 for a right or a wrong class, or minus the absolute error of a regression.
        """
        plan = await database.ask(partial(_plan, name))
        return await asyncio.to_thread(_quality, plan, since, until, await scorer.limits(name))

    @router.get("/models/{name}/recorded", response_class=StreamingResponse)
    async def get_recorded(
        name: Name, last: Annotated[int, Query(ge=1, le=recorded.MAX_ROWS)] = 10_000
    ) -> StreamingResponse:
        """The latest recorded requests of a model with the answers that were given, by time and id, as an Arrow IPC stream."""
        versions = await database.ask(lambda session: store.versions(session, name))
        # One at a time: each is held in memory.
        async with reading:
            rows = await asyncio.to_thread(_recorded, versions, name, last)
        return StreamingResponse(recorded.arrow_stream(rows), media_type=ARROW)

    def _scan(model: str, version: int, *, shadow: bool = False) -> pl.LazyFrame | None:
        return tables.scan(tables.table_uri(service.settings.data_url, model, version), shadow=shadow)

    def _shadows(given: dict[str, Any], versions: Sequence[store.VersionRow]) -> list[dict[str, Any]]:
        uris = [
            tables.table_uri(service.settings.data_url, row.model, row.version)
            for row in versions
            if row.shadow and row.model == given["model"]
        ]
        found = (tables.find(uri, given["prediction_id"], shadow=True) for uri in uris)
        return [one for one in found if one]

    def _disagreement(
        versions: Sequence[store.VersionRow], model: str, version: int, since: datetime | None, worst: int
    ) -> dict[str, Any]:
        asked = _scan(model, version, shadow=True)
        given = [rows for row in versions if (rows := _scan(model, row.version)) is not None]
        if asked is None or not given:
            raise NotFound(f"no predictions of {model} version {version} are kept")
        if since is not None:
            asked = asked.filter(pl.col("time") >= since)
            given = [rows.filter(pl.col("time") >= since - APART) for rows in given]
        return {"model": model, "version": version} | shadows.disagreement(asked, given, worst)

    def _quality(plan: store.PlanRow, since: datetime | None, until: datetime | None, limits: Limits) -> dict[str, Any]:
        def answers(version: int, shadow: bool) -> pl.LazyFrame | None:
            return _scan(plan.model, version, shadow=shadow)

        with database.read() as session:
            return showing.of_plan(session, plan, answers, limits, since, until)

    def _recorded(versions: Sequence[store.VersionRow], model: str, last: int) -> pl.DataFrame:
        given = [rows for row in versions if (rows := _scan(model, row.version)) is not None]
        if not given:
            raise NotFound(f"no predictions of {model} are kept")
        return recorded.latest(given, last)

    return router


def _plan(name: str, session: Session) -> store.PlanRow:
    """Return who answers the requests of a model. Raises NotFound."""
    plan = store.plan(session, name)
    if plan is None:
        store.require_known(session, name)
        raise NotFound(f"model {name!r} has no champion yet")
    return plan


def _judged(row: window_store.WindowRow) -> dict[str, Any]:
    """A judged window, what moved among the inputs and who moved it first."""
    judged = row.verdict
    culprit = judged.culprits.get("drift")
    return {
        "window_id": row.id,
        "drifted": [
            {"feature": one.subject, "ks": one.ks, "wasserstein": one.wasserstein, "p_value": one.p_value}
            for one in judged.moved("drift")
        ],
        "producer": culprit.producer if culprit else "",
        "share": culprit.share if culprit else 0.0,
        "samples": culprit.samples if culprit else (),
        "why": judged.why,
        **(row.judged or {}),
        "late": row.late,
        "decided": row.decided,
    }

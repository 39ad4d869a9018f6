"""HTTP in, HTTP out: what evaluators made of the predictions, and having that made again."""

from datetime import datetime
from typing import Annotated, Any

import polars as pl
from fastapi import APIRouter, Header, Query, Response
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse, StreamingResponse
from polars import selectors
from pydantic import AfterValidator, Field

from meguri_chassis.service import Service
from meguri_chassis.store import Position
from meguri_contracts.errors import NotFound
from meguri_contracts.names import NAME_PATTERN
from meguri_monitoring.evaluators import measure_tables
from meguri_monitoring.evaluators import store as measure_store
from meguri_monitoring.evaluators.evaluating import Evaluators
from meguri_monitoring.predictions import recorded, tables
from meguri_monitoring.predictions.predictions import within_times

ARROW = "application/vnd.apache.arrow.stream"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Time = Annotated[datetime, AfterValidator(within_times)]
Actor = Annotated[str, Header(alias="Meguri-Actor", max_length=128)]


def routes(service: Service, evaluators: Evaluators) -> APIRouter:
    """Return the routes of evaluators."""
    router = APIRouter(tags=["evaluators"])
    database = service.database
    assert database is not None

    @router.get("/models/{name}/evaluators/{evaluator}")
    def get_evaluator(name: Name, evaluator: Name) -> dict[str, Any]:
        """How far an evaluator has come, its latest rows, and the latest windows of its numbers, both newest first."""
        rows = _rows(name, evaluator)
        with database.read() as session:
            position = session.get(Position, measure_store.position(name, evaluator))
            watched = measure_store.watched(session, name, evaluator)
            windows = [row.judged for row in measure_store.windows(session, name, evaluator, 20)]
        return {
            "model": name,
            "evaluator": evaluator,
            "sequence": position.sequence if position else 0,
            "rows": 0 if rows is None else tables.count(rows),
            "baseline_rows": len(watched.baseline),
            "last": [] if rows is None else _plain(measure_tables.latest(rows, 10))[::-1],
            "windows": windows,
        }

    @router.get("/models/{name}/evaluators/{evaluator}/rows")
    def get_rows(
        name: Name,
        evaluator: Name,
        last: Annotated[int, Query(ge=1, le=recorded.MAX_ROWS)] = 1000,
        accept: Annotated[str, Header()] = "",
    ) -> Response:
        """The latest rows of an evaluator by time and key, as JSON, or as an Arrow IPC stream for who accepts that."""
        rows = _rows(name, evaluator)
        if rows is None:
            raise NotFound(f"evaluator {evaluator!r} has no rows about {name!r}")
        found = measure_tables.latest(rows, last)
        if ARROW in accept:
            return StreamingResponse(recorded.arrow_stream(found), media_type=ARROW)
        return JSONResponse(jsonable_encoder(_plain(found)))

    @router.post("/models/{name}/evaluators/{evaluator}/replay")
    async def replay(
        name: Name, evaluator: Name, since: Time | None = None, actor: Actor = "unknown"
    ) -> dict[str, Any]:
        """Evaluate the predictions that are kept again, and add the rows that the table does not have."""
        refilled = await evaluators.refill(name, evaluator, since, actor)
        return refilled.model_dump()

    def _rows(model: str, evaluator: str) -> pl.LazyFrame | None:
        return measure_tables.scan(measure_tables.table_uri(service.settings.data_url, model, evaluator))

    return router


def _plain(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows without numbers that JSON does not have."""
    numbers = selectors.float()
    return rows.with_columns(pl.when(numbers.is_finite()).then(numbers)).to_dicts()

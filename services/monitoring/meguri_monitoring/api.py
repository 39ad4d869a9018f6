"""HTTP out: episodes, windows, predictions."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field

from meguri_chassis.service import Service
from meguri_chassis.store import utc
from meguri_contracts.errors import NotFound
from meguri_contracts.names import NAME_PATTERN
from meguri_monitoring import predictions, store

Name = Annotated[str, Field(pattern=NAME_PATTERN)]


def routes(service: Service) -> APIRouter:
    """Return the routes of monitoring."""
    router = APIRouter(tags=["monitoring"])
    database = service.database
    assert database is not None

    @router.get("/episodes")
    def list_episodes(model: Name | None = None, open: bool = False) -> list[dict[str, Any]]:
        """Episodes of drift, newest first: when they began and ended, feature, producer, numbers."""
        with database.read() as session:
            return [_episode(row) for row in store.episodes(session, model, open)]

    @router.get("/episodes/{episode}")
    def get_episode(episode: str) -> dict[str, Any]:
        """One episode."""
        with database.read() as session:
            return _episode(store.episode(session, episode))

    @router.get("/models/{name}/windows")
    def list_windows(name: Name, limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> list[dict[str, Any]]:
        """The latest judged windows of a model with what moved in them, newest first."""
        with database.read() as session:
            return [row.judged | {"window_id": row.id} for row in store.judged_windows(session, name, limit)]

    @router.get("/predictions/{prediction_id}")
    async def get_prediction(prediction_id: str, model: Name | None = None) -> dict[str, Any]:
        """A kept prediction: when, by which version, for which producer, in which trace, on what, and the answer."""
        with database.read() as session:
            versions = store.versions(session, model)
        for row in versions:
            uri = predictions.table_uri(service.settings.data_url, row.model, row.version)
            if found := await asyncio.to_thread(predictions.find, uri, prediction_id):
                return found
        raise NotFound(f"no prediction {prediction_id!r} is kept; one is a moment after it was made")

    return router


def _episode(row: store.EpisodeRow) -> dict[str, Any]:
    return row.detected | {
        "opened": utc(row.opened).isoformat(),
        "resolved": utc(row.resolved).isoformat() if row.resolved else None,
        "reason": row.reason,
    }

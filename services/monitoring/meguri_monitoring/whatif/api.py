"""HTTP out: what would have become of an episode."""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from meguri_chassis.service import Service
from meguri_contracts.errors import NotFound
from meguri_monitoring.predictions.predictions import VERSIONS
from meguri_monitoring.whatif import whatif
from meguri_monitoring.windows.references import References


def routes(service: Service, references: References) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["episodes"])
    database = service.database
    assert database is not None
    computing = asyncio.Semaphore(1)

    @router.get("/episodes/{episode}/whatif")
    async def what_if(
        episode: str,
        threshold: Annotated[float | None, Query(gt=0)] = None,
        p_value: Annotated[float | None, Query(gt=0, lt=1)] = None,
        windows: Annotated[int | None, Query(ge=1)] = None,
        window_rows: Annotated[int | None, Query(ge=50)] = None,
        min_rows: Annotated[int | None, Query(ge=20)] = None,
        rule: Literal["meguri", "evidently"] | None = None,
        version: Annotated[int | None, Query(ge=VERSIONS[0], le=VERSIONS[1])] = None,
    ) -> dict[str, Any]:
        """What would have become of an episode under another rule, or held against the reference of another `version`.

        Recomputed from the predictions that are kept, with the rule of today where nothing else is asked for; changes nothing.
        """
        asked = {"threshold": threshold, "p_value": p_value, "windows": windows, "rule": rule}
        asked |= {"window_rows": window_rows, "min_rows": min_rows}
        past = await database.ask(lambda session: whatif.past(session, episode))
        against = version or past.episode.version
        reference = await references.of(past.episode.model, against)
        if reference is None:
            name = past.episode.model
            raise NotFound(f"version {against} of {name} has no reference profile: see `meguri models {name}`")
        # One at a time: it takes a processor for a while.
        async with computing:
            return await asyncio.to_thread(whatif.recompute, past, service.settings.data_url, reference, against, asked)

    return router

"""HTTP out: what would have become of an episode."""

import asyncio
from contextlib import suppress
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request

from meguri_chassis.profiles import Profile
from meguri_chassis.service import Service
from meguri_contracts.errors import Busy, NotFound
from meguri_monitoring.predictions.predictions import VERSIONS
from meguri_monitoring.profiles.references import References
from meguri_monitoring.whatif import store as whatif_store
from meguri_monitoring.whatif import whatif
from meguri_monitoring.whatif.pace import Pace
from meguri_monitoring.whatif.whatif import Question

WAITING = 4
"""Questions that may wait for their turn, beside the one that is computed."""


def routes(service: Service, references: References) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["episodes"])
    database = service.database
    assert database is not None
    # One at a time: it takes a processor for a while, and counting goes on beside it.
    turn = asyncio.Lock()
    asking: set[Pace] = set()

    @router.get("/episodes/{episode}/whatif")
    async def what_if(
        request: Request,
        episode: str,
        threshold: Annotated[float | None, Query(gt=0, allow_inf_nan=False)] = None,
        p_value: Annotated[float | None, Query(gt=0, lt=1)] = None,
        windows: Annotated[int | None, Query(ge=1, le=100)] = None,
        window_rows: Annotated[int | None, Query(ge=20, le=1_000_000)] = None,
        min_rows: Annotated[int | None, Query(ge=20)] = None,
        rule: Literal["meguri", "evidently"] | None = None,
        delta: Annotated[float | None, Query(gt=0, lt=1)] = None,
        min_labels: Annotated[int | None, Query(ge=20)] = None,
        baseline_rows: Annotated[int | None, Query(ge=20)] = None,
        version: Annotated[int | None, Query(ge=VERSIONS[0], le=VERSIONS[1])] = None,
    ) -> dict[str, Any]:
        """What would have become of an episode under another rule, or with another `version` of its model.

        Recomputed from what is kept, with the rule that was in force when it began where nothing else is asked for; changes
        nothing. Which of these may be asked depends on what the episode is about. 429 when too many ask at once.
        """
        asked = {
            "threshold": threshold,
            "p_value": p_value,
            "windows": windows,
            "window_rows": window_rows,
            "min_rows": min_rows,
            "rule": rule,
            "delta": delta,
            "min_labels": min_labels,
            "baseline_rows": baseline_rows,
            "version": version,
        }
        question = whatif.question(await database.ask(lambda session: whatif_store.past(session, episode)), asked)
        reference = await reference_of(question) if question.needs_reference else None
        if len(asking) > WAITING:
            raise Busy("several questions of what if are being computed: ask again in a moment", seconds=5)
        pace = Pace()
        asking.add(pace)
        leaving = asyncio.create_task(_leave(request, pace))
        try:
            async with turn:
                pace.begin()
                return await asyncio.to_thread(
                    whatif.recompute, database, service.settings.data_url, question, reference, pace.rest
                )
        finally:
            asking.discard(pace)
            leaving.cancel()
            with suppress(asyncio.CancelledError):
                await leaving

    async def reference_of(question: Question) -> Profile:
        """The reference of the version that is asked about, also of one that never served."""
        model, version = question.past.row.model, question.version
        found = await references.of(model, version)
        if found is None:
            candidate = await database.ask(lambda session: whatif_store.reference_of_candidate(session, model, version))
            found = await references.read(candidate) if candidate else None
        if found is None:
            raise NotFound(
                f"--model: version {version} of {model} has no reference profile: see `meguri models {model}`"
            )
        return found

    return router


async def _leave(request: Request, pace: Pace) -> None:
    """Have the computation end when the client hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    pace.leave()

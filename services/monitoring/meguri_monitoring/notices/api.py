"""HTTP in, HTTP out: whether somebody could be told by a URL."""

import os
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from meguri_monitoring.notices import sending

MOST, LONGEST = 1000, 10_000
"""URLs that are looked at at once, and letters of each."""


class Urls(BaseModel):
    """As they stand in a spec, in `notify.urls`."""

    urls: list[Annotated[str, Field(max_length=LONGEST)]] = Field(max_length=MOST)


def routes() -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["notices"])

    @router.post("/notify/check")
    def check(body: Urls) -> list[dict[str, Any]]:
        """What each URL is called, and why nothing could be sent to it; empty if it can be tried. Nothing is sent."""
        return [
            {"target": one.name, "trouble": sending.unusable(one.url, os.environ)} for one in sending.targets(body.urls)
        ]

    return router

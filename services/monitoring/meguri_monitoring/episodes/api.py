"""HTTP in, HTTP out: episodes, what happened in them, what they rest on; and that somebody has seen one."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Body, Header
from pydantic import BaseModel, Field
from sqlmodel import Session, SQLModel

from meguri_chassis.projection import recorded_of
from meguri_chassis.service import Service
from meguri_chassis.store import utc
from meguri_contracts.events import EpisodeAcknowledged, Event
from meguri_contracts.names import NAME_PATTERN, derived_id
from meguri_contracts.spec import EpisodeKind
from meguri_monitoring import store
from meguri_monitoring.episodes import episodes
from meguri_monitoring.episodes import store as episode_store

NOT_TOLD = {"moment", "target", "error"}
"""What is shown of a message that was given up."""
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=128)]
Actor = Annotated[str, Header(alias="Meguri-Actor", max_length=128)]
NotTold = Callable[[Session, Sequence[str]], Mapping[str, Sequence[SQLModel]]]
"""Returns by episode the messages about it that were given up."""


class Note(BaseModel):
    """What a person has to say of an episode."""

    note: str = Field(default="", max_length=1000)


def routes(service: Service, not_told: NotTold) -> APIRouter:
    """Return the routes of episodes."""
    router = APIRouter(tags=["episodes"])
    database, decider = service.database, service.decider
    assert database is not None
    assert decider is not None
    shown = partial(_episodes, not_told=not_told)

    @router.get("/episodes")
    def list_episodes(
        model: Name | None = None, open: bool = False, about: EpisodeKind | None = None
    ) -> list[dict[str, Any]]:
        """Episodes, newest first: what they are about, when they began and ended, who did it, numbers, what followed."""
        with database.read() as session:
            if model is not None:
                store.require_known(session, model)
            return shown(session, episode_store.found(session, model, open, about))

    @router.get("/episodes/{episode}")
    def get_episode(episode: str) -> dict[str, Any]:
        """One episode, with all that happened in it and what its windows looked like."""
        with database.read() as session:
            row = episode_store.episode(session, episode)
            windows = episode_store.evidence(session, episode)
            return shown(session, [row])[0] | {
                "timeline": [_line(line) for line in episode_store.lines(session, episode)],
                "evidence": [one.judged | {"evidence": one.evidence} for one in windows],
            }

    @router.post("/episodes/{episode}/acknowledge")
    async def acknowledge(
        episode: str, body: Annotated[Note, Body()] = Note(), key: Key = None, actor: Actor = "unknown"
    ) -> dict[str, Any]:
        """Say that somebody has seen an open episode; a second time changes nothing."""

        def decide(session: Session) -> Sequence[Event]:
            row = episode_store.episode(session, episode)
            # Sent again after it was done, the episode may have ended.
            if key and recorded_of(session, [derived_id(key, EpisodeAcknowledged.type, row.model, row.episode)]):
                return []
            return episodes.acknowledge(store.state(session, row.model), row.episode, actor, body.note)

        command = key or str(uuid4())
        await decider.carry_out(decide, cause=command, journey=command)
        await decider.settled()
        return await database.ask(lambda session: shown(session, [episode_store.episode(session, episode)])[0])

    return router


def _episodes(session: Session, rows: Sequence[episode_store.EpisodeRow], not_told: NotTold) -> list[dict[str, Any]]:
    """Episodes, with whom nobody could tell of them."""
    failed = not_told(session, [row.episode for row in rows])
    return [
        _episode(row) | {"not_told": [one.model_dump(include=NOT_TOLD) for one in failed.get(row.episode, ())]}
        for row in rows
    ]


def _episode(row: episode_store.EpisodeRow) -> dict[str, Any]:
    """What began it, as its event says, and what became of it. `feature` and `distance` are of every kind for older clients."""
    return (
        {"distance": row.score}
        | row.detected
        | {
            "about": row.about,
            "subject": row.subject,
            "feature": row.subject,
            "action": row.action,
            "state": row.status,
            "score": row.score,
            "event": row.event,
            "run": row.run or None,
            "opened": utc(row.opened).isoformat(),
            "acknowledged": utc(row.acknowledged).isoformat() if row.acknowledged else None,
            "actor": row.actor,
            "note": row.note,
            "resolved": utc(row.resolved).isoformat() if row.resolved else None,
            "reason": row.reason,
        }
    )


def _line(line: episode_store.TimelineRow) -> dict[str, Any]:
    return line.model_dump(exclude={"episode", "time"}) | {"time": utc(line.time).isoformat()}

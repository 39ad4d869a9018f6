"""Decisions on the state of the tables, appended only if nothing newer was said about their key; else decided again."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlmodel import Session

from meguri_chassis.log import EventLog, MovedOn
from meguri_chassis.projection import Projection, head, recorded, recorded_of
from meguri_chassis.store import Database
from meguri_contracts.events import Event
from meguri_contracts.names import derived_id

Decide = Callable[[Session], Sequence[Event]]

TRIES = 50
"""How often a decision may be overtaken by others before it is left for later."""


@dataclass(frozen=True)
class _Decided:
    event: Event
    id: str
    head: int
    """Last sequence of the event's key in the state that was decided on."""
    causes: Sequence[Mapping[str, str]]
    """Trace contexts of the events that led to this one, beside the one in hand."""


class Decider:
    """Carries out decisions of one service."""

    def __init__(self, log: EventLog, database: Database, projection: Projection) -> None:
        self._log = log
        self._database = database
        self._projection = projection
        self._said = 0

    async def carry_out(
        self, decide: Decide, *, cause: str, journey: str, after: int = 0, hops: int = -1
    ) -> list[Event]:
        """Append what `decide` says about the state at sequence `after` or later, and return it.

        `hops` are those of the cause; a command from outside is none.

        Ids follow from `cause`: the same cause carried out twice has its effect once. Raises what `decide` raises, and
        MovedOn when others were faster TRIES times.
        """
        for _ in range(TRIES):
            await self._projection.reached(max(after, self._said))
            decided = await asyncio.to_thread(self._decide, decide, cause)
            try:
                await self._append(decided, cause, journey, hops)
            except MovedOn:
                after = await self._log.last_sequence()
            else:
                return [one.event for one in decided]
        raise MovedOn(f"{TRIES} decisions in a row were overtaken by other events")

    async def settled(self) -> None:
        """Wait until the tables contain all that was said here: read your writes."""
        await self._projection.reached(self._said)

    def _decide(self, decide: Decide, cause: str) -> list[_Decided]:
        with self._database.read() as session:
            said = {derived_id(cause, event.type, event.key, event.identity): event for event in decide(session)}
            done = recorded_of(session, list(said))
            heads = {event.key: head(session, event.key) for event in said.values()}
            return [
                _Decided(event, id_, heads[event.key], _contexts(session, event))
                for id_, event in said.items()
                if id_ not in done
            ]

    async def _append(self, decided: Sequence[_Decided], cause: str, journey: str, hops: int) -> None:
        heads: dict[str, int] = {}
        for one in decided:
            heads[one.event.key] = await self._log.append(
                one.event,
                id=one.id,
                cause=cause,
                journey=journey,
                hops=one.event.hops(hops),
                causes=one.causes,
                expected=heads.get(one.event.key, one.head),
            )
            self._said = max(self._said, heads[one.event.key])


def _contexts(session: Session, event: Event) -> list[Mapping[str, str]]:
    entries = [recorded(session, cause) for cause in event.causes]
    return [json.loads(entry.headers) for entry in entries if entry]

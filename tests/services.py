"""Services in the test's own process, and a wire to the broker beside them."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar
from uuid import uuid4

import httpx
import nats
from nats.js import JetStreamContext
from nats.js.api import RawStreamMsg
from nats.js.errors import NotFoundError

from meguri_chassis.log import EventLog, Message
from meguri_chassis.service import Service
from meguri_contracts.events import Event, SpecApplied
from meguri_contracts.spec import ModelSpec
from meguri_contracts.topology import DEAD, DEAD_PREFIX, LOG, subject
from tests.conftest import Broker, until

E = TypeVar("E", bound=Event)


def name(what: str) -> str:
    """A name that no other test uses: the log of the broker is everybody's."""
    return f"{what}-{uuid4().hex[:12]}"


@asynccontextmanager
async def running(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """Run a service until the block is left; yields a client of its HTTP side. Ready when the block begins."""
    failure: BaseException | None = None
    async with service.app.router.lifespan_context(service.app):
        try:
            await until(lambda: not service.not_ready(), f"readiness of {service.name}")
            transport = httpx.ASGITransport(service._front)
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                yield client
        except BaseException as error:  # noqa: BLE001 - raised again below
            # A service that is left by an exception takes its process along: first the service, then the test.
            failure = error
    if failure:
        raise failure


@dataclass(frozen=True)
class Wire:
    """The test's own connection to the broker: says events as others would, and hears what services said."""

    js: JetStreamContext

    async def say(
        self,
        event: Event,
        *,
        id: str | None = None,
        source: str = "test",
        journey: str = "",
        cause: str | None = None,
        hops: int = 0,
    ) -> int:
        """Append an event as the services do; returns its stream sequence."""
        id_ = id or uuid4().hex
        log = EventLog(lambda: self.js, source)
        return await log.append(event, id=id_, cause=cause or id_, journey=journey or id_, hops=hops)

    async def apply(self, spec: ModelSpec, version: int = 1) -> int:
        """Say that a spec was applied, as the registry would."""
        digest = f"{version:064x}"
        return await self.say(SpecApplied(model=spec.model, spec=spec, version=version, digest=digest, actor="test"))

    async def publish(self, kind: str, key: str, body: bytes, headers: Mapping[str, str] | None = None) -> int:
        """Publish any bytes as an event; returns their stream sequence."""
        ack = await self.js.publish(subject(kind, key), body, stream=LOG, headers=dict(headers) if headers else None)
        return int(ack.seq)

    async def heard(self, kind: type[Event], key: str) -> list[Message]:
        """Every message of a kind and key that the log holds, in its order."""
        found = await self.stored(LOG, subject(kind.kind(), key))
        return [Message.of(msg.subject, msg.headers or {}, msg.data, msg.seq, msg.time) for msg in found]

    async def said(self, kind: type[E], key: str) -> list[E]:
        """Every event of a kind and key that the log holds, in its order."""
        return [message.event for message in await self.heard(kind, key)]  # type: ignore[misc]

    async def parked(self, consumer: str) -> list[dict[str, str]]:
        """The headers of the dead letters of a consumer."""
        found = await self.stored(DEAD, f"{DEAD_PREFIX}.{consumer}.>")
        return [msg.headers or {} for msg in found]

    async def stored(self, stream: str, subject: str) -> list[RawStreamMsg]:
        """Every message of a subject that a stream holds, in its order."""
        found: list[RawStreamMsg] = []
        try:
            while True:
                after = found[-1].seq + 1 if found else 1
                found.append(await self.js.get_msg(stream, after, subject=subject, next=True))
        except NotFoundError:
            return found


@asynccontextmanager
async def wire(broker: Broker) -> AsyncIterator[Wire]:
    client = await nats.connect(broker.url)
    try:
        yield Wire(client.jetstream(timeout=30))
    finally:
        await client.close()

"""A service put together: broker, database, projection, handlers, HTTP, health; started, watched and stopped in order.

The HTTP side answers from the first moment on; everything that needs the broker waits for it, and readiness says for what.
"""

import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from faststream.nats import NatsBroker
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import APIError, NotFoundError
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException

from meguri_chassis import recovery, telemetry
from meguri_chassis.bus import Bus, Hearing
from meguri_chassis.dead_letters import DeadLetters
from meguri_chassis.deciding import Decider
from meguri_chassis.log import EventLog
from meguri_chassis.projection import Projection, parked
from meguri_chassis.reader import Reader
from meguri_chassis.settings import ServiceSettings
from meguri_chassis.store import Database
from meguri_contracts.errors import Busy, Conflict, Invalid, Malformed, MeguriError, NotFound, PermanentError, TooLarge
from meguri_contracts.topology import LOG, STREAMS

logger = logging.getLogger(__name__)

WAIT = 1.0
"""Seconds between tries while something that was never there is waited for."""

STARTUP_FAILURE = 3
"""Exit code of a service whose HTTP side could not start, as of uvicorn's own."""

CANCEL_EVERY = 0.25
"""Seconds between tries to cancel a task."""

AFTER = "Answer from tables that contain the log up to this sequence: for whoever has seen an event there."

STATUS: dict[type[MeguriError], int] = {
    NotFound: 404,
    Conflict: 409,
    TooLarge: 413,
    Malformed: 400,
    PermanentError: 422,
    Busy: 429,
}


class Service:
    """One meguri service.

    >>> service = Service(Settings(), title="Registry", database=database, projection=projection)
    >>> service.hear(Hearing(REGISTRY_JUDGE, [handlers.judge]))
    >>> service.include(api.routes(service))
    >>> service.serve()
    """

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        description: str,
        database: Database | None = None,
        projection: Projection | None = None,
    ) -> None:
        self.settings = settings
        self.name = settings.service
        self.database = database
        self.projection = projection
        self.log = EventLog(self.jetstream, f"meguri/{settings.service}")
        self.dead_letters = DeadLetters(self.jetstream, self.log)
        self.decider = Decider(self.log, database, projection) if database and projection else None
        self.app = FastAPI(
            title=f"meguri {settings.service}",
            description=description,
            version="0.1.0",
            lifespan=self._lifespan,
            dependencies=[Depends(self._caught_up)],
        )
        self._hearings: list[Hearing] = []
        self._readers: list[Reader] = []
        self._during: list[Callable[[], Any]] = []
        self._last_words: list[Callable[[], Any]] = []
        self._front: Any = self.app
        self._protocol: Any = "auto"
        self._shared_port = False
        self.metrics = Metrics()
        self._at_start: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._client: Client | None = None
        self._bus: Bus | None = None
        self._waiting_for: str | None = "the start"
        self._connected = False
        self._stopping = False
        self.reasons: list[Callable[[], str | None]] = []
        """Further reasons not to be ready; each returns words for an operator, or None."""
        self.warnings: list[Callable[[], str | None]] = []
        """What an operator should look at although the replica works; likewise."""
        if database and projection:
            self.log.closed = lambda: projection.lost
            self.app.include_router(recovery.routes(self.name, self.log, database, projection, self.jetstream))
        _add_health(self)
        _add_error_answers(self.app)

    # --- composition

    def hear(self, hearing: Hearing) -> None:
        """Have a durable consumer of the log handled."""
        self._hearings.append(hearing)

    def during(self, resource: Callable[[], Any]) -> None:
        """Keep an async context manager open from before the first message until after the last one."""
        self._during.append(resource)

    def before_goodbye(self, last_words: Callable[[], Any]) -> None:
        """Leave an async context manager while the broker is still there, so that it can say what it holds."""
        self._last_words.append(last_words)

    def stands_before(self, app: Any) -> None:
        """Put an ASGI callable before the FastAPI application; it passes on what it does not answer."""
        self._front = app

    def speaks(self, protocol: type[asyncio.Protocol], *, shared_port: bool) -> None:
        """Have HTTP connections handled by `protocol`; whether other processes listen on the port too."""
        self._protocol = protocol
        self._shared_port = shared_port

    def measures(self, collector: Collector) -> None:
        """Have further metrics of this service collected."""
        self.metrics.collectors.append(collector)

    def follow(self, reader: Reader, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a task that reads a stream, once the broker is there, for as long as the service lives."""
        self._readers.append(reader)
        self._at_start.append(run)

    def once_connected(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a task once the broker is there."""
        self._at_start.append(run)

    def follow_advisories(self) -> None:
        """Park what the broker itself gives up on, for all services; one of them must."""
        self._at_start.append(self.dead_letters.follow_advisories)

    def client(self) -> Client:
        """The connection to the broker. Raises NatsError before the broker was reached."""
        if self._client is None:
            raise NatsError("the broker was not reached yet")
        return self._client

    def jetstream(self) -> JetStreamContext:
        """The broker's JetStream. Raises NatsError before the broker was reached."""
        return self.client().jetstream()

    def reader(
        self, stream: str, subjects: Sequence[str], name: str, *, before: Callable[[], Awaitable[None]] | None = None
    ) -> Reader:
        return Reader(self.jetstream, stream, subjects, name, before=before)

    def serve(self) -> None:
        """Serve HTTP and events until SIGTERM."""
        config = uvicorn.Config(
            self._front,
            host=self.settings.host,
            port=self.settings.port,
            loop="uvloop",
            http=self._protocol,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=int(self.settings.graceful_timeout),
        )
        sockets = [_shared(self.settings.host, self.settings.port)] if self._shared_port else None
        server = uvicorn.Server(config)
        with suppress(KeyboardInterrupt):  # it has stopped in order before
            server.run(sockets)
        if not server.started:
            sys.exit(STARTUP_FAILURE)

    # --- life

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        settings = self.settings
        provider = telemetry.set_up(settings.service, settings.replica, settings.var, settings.log_level)
        async with AsyncExitStack() as stack:
            stack.callback(provider.shutdown)
            if self.database:
                await asyncio.to_thread(self.database.migrate)
                stack.callback(self.database.close)
            for resource in self._during:
                await stack.enter_async_context(resource())
            broker = self._broker()
            stack.push_async_callback(self._stop, broker)
            for resource in self._last_words:
                await stack.enter_async_context(resource())
            self._spawn(self._start(broker))
            try:
                yield
            finally:
                self._stopping = True

    async def _caught_up(
        self, after: Annotated[int | None, Header(alias="Meguri-After", ge=0, description=AFTER)] = None
    ) -> None:
        if after is None or not self.projection or after <= self.projection.position:
            return
        if after > (last := await self.log.last_sequence()):
            raise Invalid(f"Meguri-After: no event has the sequence {after} yet, the log ends at {last}")
        await self.projection.reached(after)

    async def _start(self, broker: NatsBroker) -> None:
        self._client = await self._until("the broker", broker.connect)
        self._connected = True
        await self._until("provisioning", self._verify)
        if self.projection:
            self._spawn(self.projection.run(self.jetstream))
        for run in self._at_start:
            self._spawn(run())
        self._bus = Bus(
            self._hearings,
            dead_letters=self.dead_letters,
            decider=self.decider,
            continue_trace_max_age=self.settings.continue_trace_max_age,
        )
        self._bus.subscribe(broker)
        await self._until("its consumers", broker.start)
        self._waiting_for = None
        logger.info("ready on port %d", self.settings.port)

    async def _until(self, what: str, step: Callable[[], Awaitable[Any]]) -> Any:
        """Try a step until it succeeds; meanwhile readiness says what it is waited for."""
        # Said at once: a client that never gives up does not raise either.
        self._waiting_for = f"{what} at {self.settings.nats_url}"
        while True:
            try:
                return await step()
            except (NatsError, APIError, OSError, TimeoutError, LookupError) as error:
                self._waiting_for = f"{what} at {self.settings.nats_url}: {error or type(error).__name__}"
                logger.warning("waiting for %s", self._waiting_for)
                await asyncio.sleep(WAIT)

    async def _verify(self) -> None:
        """Check that streams and consumers are there as the topology says. Raises LookupError that says what is not."""
        js = self.jetstream()
        for stream in STREAMS:
            try:
                await js.stream_info(stream.name)
            except NotFoundError as error:
                lost = "; if it was lost, `meguri restore-log`" if stream.name == LOG else ""
                raise LookupError(f"stream {stream.name} is missing: run `meguri provision`{lost}") from error
        for hearing in self._hearings:
            consumer = hearing.consumer
            try:
                config = (await js.consumer_info(LOG, consumer.name)).config
            except NotFoundError as error:
                raise LookupError(f"consumer {consumer.name} is missing: run `meguri provision`") from error
            have = set(config.filter_subjects or [config.filter_subject])
            if have != set(consumer.subjects) or config.ack_wait != consumer.ack_wait:
                raise LookupError(f"consumer {consumer.name} is of another version: run `meguri provision`")

    async def _stop(self, broker: NatsBroker) -> None:
        """Let handlers finish what they have in hand, then stop reading, then close the connection."""
        if self._bus:
            await self._bus.stop(broker, patience=self.settings.graceful_timeout)
        await _ended(self._tasks)
        try:
            await broker.stop()
        except NatsError as error:
            logger.warning("the broker was away at the end: %r", error)

    def _broker(self) -> NatsBroker:
        return NatsBroker(
            self.settings.nats_url.split(","),
            name=self.settings.replica,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.25,
            ping_interval=10,
            max_outstanding_pings=2,
            connect_timeout=5,
            graceful_timeout=self.settings.graceful_timeout,
            logger=None,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnect,
            reconnected_cb=self._on_reconnect,
            closed_cb=self._on_closed,
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(_die_with_it)
        self._tasks.append(task)

    async def _on_error(self, error: Exception) -> None:
        logger.warning("broker: %r", error)

    async def _on_disconnect(self) -> None:
        self._connected = False

    async def _on_reconnect(self) -> None:
        self._connected = True
        if self.projection:
            self.projection.again()
        for reader in self._readers:
            reader.again()

    async def _on_closed(self) -> None:
        # The client never opens again and its pull loops would spin; the process manager brings us back.
        if not self._stopping:
            logger.critical("the broker's client closed for good")
            os._exit(1)

    def not_ready(self) -> list[str]:
        """Why this replica should get no traffic; empty when it should."""
        trouble = self.projection.trouble if self.projection else None
        waiting = f"waiting for {self._waiting_for}" if self._waiting_for else None
        lost = None if self._connected else f"no connection to the broker at {self.settings.nats_url}"
        stopping = "the service is stopping" if self._stopping else None
        return [reason for reason in (lost, waiting, stopping, trouble, *(ask() for ask in self.reasons)) if reason]

    def what_to_look_at(self) -> list[str]:
        """What an operator should look at although this replica works."""
        full = [self.log.full] if self.log.full else []
        return [
            *full,
            *self._parked(),
            *self._left_alone(),
            *(found for ask in self.warnings if (found := _asked(ask))),
        ]

    def _left_alone(self) -> list[str]:
        left = len(self.projection.left_alone) if self.projection else 0
        after = f"after the upgrade `meguri replay {self.name}` applies them"
        return [f"{left} events of newer versions were left alone: {after}"] if left else []

    def _parked(self) -> list[str]:
        if self.database is None or self._waiting_for == "the start":
            return []
        try:
            with self.database.read() as session:
                letters = parked(session, self.name)
        except MeguriError as error:
            return [str(error)]
        telemetry.DEAD_LETTERS.set(len(letters))
        return [f"{len(letters)} parked since {letters[0].time:%Y-%m-%d %H:%M}: see `meguri dead`"] if letters else []


def _asked(ask: Callable[[], str | None]) -> str | None:
    """What there is to look at, or why that cannot be said now."""
    try:
        return ask()
    except MeguriError as error:
        return str(error)


def _shared(host: str, port: int) -> socket.socket:
    """Return a socket that other processes of the same user may listen on too: the kernel shares out the connections."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listening.bind((host, port))
    return listening


async def _ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended: Python 3.11 loses a cancellation that comes together with an awaited answer."""
    running = {task for task in tasks if not task.done()}
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=CANCEL_EVERY)


def _die_with_it(task: asyncio.Task[None]) -> None:
    """A task that must run for ever has failed: say why and end the process, so that it is started again."""
    if not task.cancelled() and (error := task.exception()):
        logger.critical("a task of the service failed", exc_info=error)
        sys.stderr.flush()
        os._exit(1)


class Metrics(CollectorRegistry):
    """The process's metrics, and those of one service in it."""

    def __init__(self) -> None:
        super().__init__()
        self.collectors: list[Collector] = [REGISTRY]

    def collect(self) -> Iterator[Metric]:
        for collector in self.collectors:
            yield from collector.collect()


def _add_health(service: Service) -> None:
    @service.app.get("/health/live", tags=["health"])
    async def live() -> dict[str, bool]:
        """The event loop turns; says nothing about anyone else."""
        return {"live": True}

    @service.app.get("/health/ready", tags=["health"])
    async def ready() -> Response:
        """200 when this replica can work, 503 with the reasons when not; warnings are of what it works without."""
        reasons, warnings = service.not_ready(), await asyncio.to_thread(service.what_to_look_at)
        return JSONResponse({"ready": not reasons, "reasons": reasons, "warnings": warnings}, 503 if reasons else 200)

    @service.app.get("/metrics", tags=["health"])
    def metrics(accept: Annotated[str, Header()] = "") -> Response:
        """Prometheus metrics; with exemplars, traces to look at, where OpenMetrics is asked for."""
        encode, content_type = choose_encoder(accept)
        return Response(encode(service.metrics), media_type=content_type)

    FastAPIInstrumentor.instrument_app(service.app, excluded_urls="health,metrics", exclude_spans=["send", "receive"])


class _InAscii(JSONResponse):
    """Can say any text back, also half a surrogate pair."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode()


def _add_error_answers(app: FastAPI) -> None:
    @app.exception_handler(MeguriError)
    async def on_error(_: Request, error: MeguriError) -> JSONResponse:
        status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 503)
        seconds = error.seconds if isinstance(error, Busy) else 1
        headers = {"Retry-After": str(seconds)} if status in (429, 503) else None
        return _InAscii({"error": str(error)}, status, headers)

    @app.exception_handler(NatsError)
    async def on_broker_error(_: Request, error: NatsError) -> JSONResponse:
        return JSONResponse({"error": f"the broker does not answer: {error}"}, 503, {"Retry-After": "1"})

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        said = [f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()]
        # Not what was sent: that may be nothing that JSON can say.
        detail = [{what: e[what] for what in ("type", "loc", "msg")} for e in error.errors()]
        return _InAscii({"error": "; ".join(said), "detail": detail}, 422)

    # Starlette's is the base of FastAPI's, and what an unknown path or method raises.
    @app.exception_handler(HTTPException)
    async def on_http_error(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

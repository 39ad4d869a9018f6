"""When everything is worked off: all replicas up, all tables at the end of the log, nothing left in any consumer."""

import asyncio
import time
from dataclasses import dataclass

import httpx
from nats.aio.client import Client
from nats.errors import Error as NatsError

from infra.local.processes import SERVICES
from meguri_contracts.topology import CONSUMERS, LOG, PREDICTIONS
from tests.system.chaos.system import WITH_TABLES, System, ask

CALM = 2.0
"""Seconds in which nothing may happen."""
STUCK = 30.0
"""Seconds after which a projection that stands still will not move any more: it tries again at least every ten."""


@dataclass(frozen=True)
class Quiet:
    """How long it took until all was quiet, and what was in the way if it never was."""

    seconds: float
    lag: int
    """Messages that consumers still have to handle."""
    in_the_way: str = ""

    @property
    def reached(self) -> bool:
        return not self.in_the_way


@dataclass(frozen=True)
class _Look:
    ends: tuple[int, int]
    """Last sequences of the log and of the predictions."""
    lag: int
    in_the_way: tuple[str, ...]
    troubles: tuple[str, ...]
    """What keeps projections from moving."""


async def until_quiet(system: System, client: Client, http: httpx.AsyncClient, patience: float) -> Quiet:
    """Wait for quiet; give up after `patience` seconds, or when a projection is stuck."""
    began = moving = calm_since = time.monotonic()
    before: _Look | None = None
    while True:
        look = await _look(system, client, http)
        now = time.monotonic()
        if look.in_the_way or before is None or look.ends != before.ends:
            calm_since = now
        elif now - calm_since >= CALM:
            return Quiet(now - began - CALM, look.lag)
        moving = moving if look.troubles else now
        if now - began > patience or now - moving > STUCK:
            return Quiet(now - began, look.lag, "; ".join(look.in_the_way) or "the log goes on growing")
        before = look
        await asyncio.sleep(0.5)


async def _look(system: System, client: Client, http: httpx.AsyncClient) -> _Look:
    try:
        js = client.jetstream(timeout=5)
        ends = ((await js.stream_info(LOG)).state.last_seq, (await js.stream_info(PREDICTIONS)).state.last_seq)
        left = {}
        for consumer in CONSUMERS:
            info = await js.consumer_info(consumer.stream, consumer.name)
            left[consumer.name] = (info.num_pending or 0) + (info.num_ack_pending or 0)
    except (NatsError, TimeoutError) as error:
        return _Look((0, 0), 0, (f"the broker: {error!r}",), ())
    found = await asyncio.gather(
        *(_replica(http, service, url) for service in SERVICES for url in system.urls(service))
    )
    lags = [f"{name} has {lag} to do" for name, lag in left.items() if lag]
    if (counted := await asyncio.to_thread(system.counted)) < ends[1]:
        lags.append(f"predictions are counted up to {counted} of {ends[1]}")
    in_the_way, troubles = [reason for reason, _ in found if reason], [trouble for _, trouble in found if trouble]
    return _Look(ends, sum(left.values()), (*lags, *in_the_way), tuple(troubles))


async def _replica(http: httpx.AsyncClient, service: str, url: str) -> tuple[str, str]:
    """What is in the way of a replica's being quiet, and what keeps its projection from moving; empty if nothing."""
    try:
        ready = (await http.get(f"{url}/health/ready")).json()
        if not ready["ready"]:
            stuck = next((reason for reason in ready["reasons"] if "cannot apply" in reason), "")
            reasons = [reason.partition("\n")[0] for reason in ready["reasons"]]
            return f"{service} is not ready: {', '.join(reasons)}", stuck
        if service in WITH_TABLES:
            log = await ask(http, f"{url}/log")
            if log["position"] < log["last"]:
                return f"{service} stands at {log['position']} of {log['last']}", ""
    except (httpx.HTTPError, ValueError) as error:
        return f"{service} does not answer at {url}: {error!r}", ""
    return "", ""

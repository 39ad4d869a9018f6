"""One run: load and havoc, then quiet, then every check."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import nats
from nats.aio.client import Client

from meguri.client import Meguri, broker
from tests.system.chaos import checks, havoc, leaks, recovery, specs
from tests.system.chaos.checks import Finding
from tests.system.chaos.predictions import Asked, Shop
from tests.system.chaos.publishers import Ledger, publishers
from tests.system.chaos.quiet import Quiet, until_quiet
from tests.system.chaos.seen import Seen
from tests.system.chaos.system import System

RUNS = 8
"""Runs of each model that the load is enough for."""
BURST_SECONDS = 5.0
ACCEPTED_WITHIN = 300.0
"""Seconds after the load in which the last event must have been accepted."""


@dataclass(frozen=True)
class Plan:
    """What a run is made of."""

    seed: int
    seconds: float
    """Of load under havoc."""
    rate: float
    """Events a second of all publishers together."""
    database: str
    patience: float
    """Seconds to wait for quiet."""
    quick: bool
    """Without the second burst that shows leaks."""
    mutant: str | None = None

    @property
    def retrain_rows(self) -> int:
        return max(50, round(self.seconds * self.rate * specs.ROWS / len(specs.DATASETS) / RUNS))


@dataclass
class Outcome:
    """What came of a run."""

    findings: list[Finding] = field(default_factory=list)
    blows: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


def play(plan: Plan, folder: Path, say: Callable[[str], None]) -> Outcome:
    """Do a run in an empty folder."""
    launch = f"-m tests.system.chaos.mutants {plan.mutant} {{}}" if plan.mutant else "-m meguri_{}"
    with System(folder, plan.database, launch.format) as system:
        return asyncio.run(_Run(plan, system, say).play())


class _Run:
    def __init__(self, plan: Plan, system: System, say: Callable[[str], None]) -> None:
        self._plan, self._system, self._say = plan, system, say
        self._ledger, self._asked, self._outcome = Ledger(), Asked(), Outcome()
        self._drifted = False

    async def play(self) -> Outcome:
        async with AsyncExitStack() as stack:
            self._client = await _connected()
            stack.push_async_callback(self._client.close)
            self._http = await stack.enter_async_context(httpx.AsyncClient(timeout=10))
            await asyncio.to_thread(self._apply_specs)
            await self._storm()
            quiet = await self._quiet("the storm")
            # What is broken on purpose shows in the log, or never gets here.
            if quiet.reached and not self._plan.mutant:
                await self._leaks()
                # Last, so that the tables are made again while episodes go on.
                await self._drift()
                await self._recovery()
            seen = await Seen.after(self._client, self._system.var / "data")
            self._judge(seen)
        return self._outcome

    def _apply_specs(self) -> None:
        with Meguri(actor="chaos") as meguri:
            for model in specs.DATASET_OF:
                meguri.apply(specs.spec(model, self._plan.retrain_rows))

    async def _storm(self) -> None:
        seed, seconds = f"{self._plan.seed}", self._plan.seconds
        blows = havoc.plan(seed, seconds, self._system.names)
        self._say(f"{seconds:.0f} s of load at {self._plan.rate:.0f} events/s, {len(blows)} blows")
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            wreaking = group.create_task(havoc.wreak(self._system, blows))
            group.create_task(self._load(f"{seed}-storm", seconds))
        self._outcome.blows = wreaking.result()
        after = time.monotonic() - began - seconds
        self._outcome.figures["last accepted, seconds after the load"] = round(after, 1)

    async def _load(self, seed: str, seconds: float) -> None:
        """Publish and ask for predictions for so many seconds; return when everything was accepted."""
        four = publishers(self._client, self._http, self._system.urls("ingest"), self._ledger)
        rate = self._plan.rate / len(four)
        shop = Shop(self._http, self._system.urls("inference"), self._asked)
        try:
            async with asyncio.timeout(seconds + ACCEPTED_WITHIN), asyncio.TaskGroup() as group:
                for publisher in four:
                    group.create_task(publisher.publish(seed, rate, seconds))
                group.create_task(shop.ask_steadily(seed, seconds))
        except TimeoutError:
            found = f"not {ACCEPTED_WITHIN:.0f} s after the load"
            self._outcome.findings.append(Finding("everything is accepted in the end", False, found))

    async def _quiet(self, after: str) -> Quiet:
        quiet = await until_quiet(self._system, self._client, self._http, self._plan.patience)
        found = f"after {quiet.seconds:.1f} s" if quiet.reached else f"not: {quiet.in_the_way}"
        self._say(f"quiet after {after} {found}")
        self._outcome.findings.append(Finding(f"quiet after {after}", quiet.reached, found))
        self._outcome.findings.append(Finding(f"consumer lag after {after}", quiet.lag == 0, f"{quiet.lag}"))
        return quiet

    async def _drift(self) -> None:
        """Have every model see drift come, go and come again, and kill who watches it in the middle."""
        shop, seed = Shop(self._http, self._system.urls("inference"), self._asked), f"{self._plan.seed}-drift"
        async with asyncio.TaskGroup() as group:
            group.create_task(shop.ask_all(f"{seed} comes", moved=True))
            group.create_task(self._kill("monitoring"))
        await self._quiet("drift")
        await shop.ask_all(f"{seed} goes", moved=False)
        await shop.ask_all(f"{seed} comes again", moved=True)
        await self._quiet("more drift")
        self._drifted = True

    async def _kill(self, service: str) -> None:
        for name, pid in (await asyncio.to_thread(self._system.pids)).items():
            if name.startswith(service):
                os.kill(pid, signal.SIGKILL)

    async def _leaks(self) -> None:
        """Do the same work twice: the first time fills what processes keep, the second must add nothing."""
        await self._load(f"{self._plan.seed}-first", BURST_SECONDS)
        await self._quiet("a burst")
        if self._plan.quick:
            return
        before = await asyncio.to_thread(leaks.footprints, self._system)
        await self._load(f"{self._plan.seed}-second", BURST_SECONDS)
        await self._quiet("another burst")
        after = await asyncio.to_thread(leaks.footprints, self._system)
        self._outcome.findings += leaks.of_leaks(before, after)
        self._outcome.figures["processes"] = {name: vars(one) for name, one in after.items()}

    async def _recovery(self) -> None:
        self._outcome.findings += await recovery.replay_all(self._system, self._http)
        for service in recovery.WIPED:
            self._say(f"wiping the database of {service}")
            self._outcome.findings.append(
                await recovery.wipe_and_replay(self._system, self._client, self._http, service, self._plan.patience)
            )

    def _judge(self, seen: Seen) -> None:
        findings = [checks.of_arrivals(seen, self._ledger), checks.of_tables(seen, self._ledger)]
        findings += [check(seen) for check in checks.OF_THE_LOG]
        findings += [checks.of_drift(seen)] if self._drifted else []
        self._outcome.findings = [finding for part in findings for finding in part] + self._outcome.findings
        self._outcome.figures |= {
            "events in the log": len(seen.messages),
            "tries of the publishers": self._ledger.tries,
            "predictions answered": len(self._asked.ids),
            "predictions unanswered": self._asked.unanswered,
            "predictions answered, not published": len(
                self._asked.ids - {id_.partition(":")[0] for id_ in seen.predicted}
            ),
            "full disk": self._system.disk.missing or "played",
        }


async def _connected() -> Client:
    async def again(_: Exception) -> None:
        """The client connects again by itself."""

    return await nats.connect(broker(), max_reconnect_attempts=-1, reconnect_time_wait=0.2, error_cb=again)

"""What is done to the processes, and when: planned from a seed, so that it can be done again."""

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random

from tests.system.chaos.system import FIT, System

BROKER = "nats"
LONG = 5.0
"""Seconds that a pause and a full disk last, but no more than a quarter of the whole."""
KILL, PAUSE, FULL_DISK = "kill -9", "pause", "full disk"


@dataclass(frozen=True)
class Blow:
    """One thing that is done. `victims` are processes by name: it meets the first one that is up."""

    at: float
    """Seconds after the start."""
    what: str
    victims: tuple[str, ...] = ()
    seconds: float = 0


def plan(seed: str, seconds: float, services: Sequence[str]) -> list[Blow]:
    """Return what is done: every second a kill; and once each, the broker killed, it and a service paused, the disk full."""
    random = Random(f"{seed} havoc")
    victims = _dealt(random, [*services, FIT], int(seconds))
    blows = [Blow(at, KILL, tuple(names)) for at, names in enumerate(victims, 1) if at < seconds]
    long = min(LONG, seconds / 4)

    def about(share: float) -> float:
        return round(seconds * (share + random.uniform(-0.05, 0.05)), 1)

    blows += [
        Blow(about(0.15), KILL, (BROKER,)),
        Blow(about(0.35), PAUSE, (BROKER,), long),
        Blow(about(0.55), PAUSE, tuple(random.sample(list(services), len(services))), long),
        Blow(about(0.7), FULL_DISK, (), long),
    ]
    return sorted(blows, key=lambda blow: blow.at)


def _dealt(random: Random, names: list[str], count: int) -> list[list[str]]:
    """For each blow the names in the order in which they are tried; each name has its turn before one has its second."""
    deck: list[str] = []
    dealt = []
    for _ in range(count):
        deck = deck or random.sample(names, len(names))
        first = deck.pop()
        dealt.append([first, *random.sample([name for name in names if name != first], len(names) - 1)])
    return dealt


async def wreak(system: System, blows: Sequence[Blow]) -> list[str]:
    """Do it all; return what was done, in words, with the second."""
    async with asyncio.TaskGroup() as group:
        striking = [group.create_task(_strike(system, blow)) for blow in blows]
    return [done.result() for done in striking]


async def _strike(system: System, blow: Blow) -> str:
    await asyncio.sleep(blow.at)
    if blow.what == FULL_DISK:
        return f"{blow.at:5.1f} {await _fill_disk(system, blow.seconds)}"
    for name in blow.victims:
        if pid := await asyncio.to_thread(system.pid, name):
            await _hit(pid, blow)
            return f"{blow.at:5.1f} {blow.what} {name} ({pid})"
    return f"{blow.at:5.1f} {blow.what}: nobody was up"


async def _hit(pid: int, blow: Blow) -> None:
    # It may have been killed a moment ago by another blow.
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP if blow.what == PAUSE else signal.SIGKILL)
    if blow.what == PAUSE:
        try:
            await asyncio.sleep(blow.seconds)
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def _fill_disk(system: System, seconds: float) -> str:
    if system.disk.missing:
        return f"{FULL_DISK}: skipped, {system.disk.missing}"
    await asyncio.to_thread(system.disk.fill)
    try:
        await asyncio.sleep(seconds)
    finally:
        system.disk.free()
    return f"{FULL_DISK} for {seconds:.0f} s"

"""Tables made again: by a replay beside the old ones, and after the database was wiped. The digests must be the same."""

import asyncio
import json
from typing import Any

import httpx
from nats.aio.client import Client

from tests.system.chaos.checks import Finding
from tests.system.chaos.quiet import until_quiet
from tests.system.chaos.system import WITH_TABLES, System, ask

WIPED = ("registry", "ingest", "monitoring")


async def replay_all(system: System, http: httpx.AsyncClient) -> list[Finding]:
    """Have every service make its tables again from the log, and compare."""
    return [await _replayed(system, http, service) for service in WITH_TABLES]


async def wipe_and_replay(
    system: System, client: Client, http: httpx.AsyncClient, service: str, patience: float
) -> Finding:
    """Delete a service's database, have it come back, and compare with what it was at the same place of the log."""
    check, url = f"{service} wiped: same digest", system.urls(service)[0]
    before = await ask(http, f"{url}/log/digest")
    await asyncio.to_thread(system.wipe, service)
    quiet = await until_quiet(system, client, http, patience)
    if not quiet.reached:
        return Finding(check, False, f"not quiet after {quiet.seconds:.0f} s: {quiet.in_the_way}")
    after = await _replay(http, url, until=before["position"])
    differ = [name for name, digest in after["tables"].items() if before["tables"].get(name) != digest]
    now = await ask(http, f"{url}/log/digest")
    said = now["position"] - before["position"]
    holds = not differ and not said and now["digest"] == before["digest"]
    short = f"{before['digest'][:12]} before, {now['digest'][:12]} after, {quiet.seconds:.1f} s"
    differing = f": {', '.join(differ)} differ" if differ else ""
    return Finding(check, holds, short + differing + (f"; {said} events were said again" if said else ""))


async def _replayed(system: System, http: httpx.AsyncClient, service: str) -> Finding:
    done = await _replay(http, system.urls(service)[0])
    differ = f": {', '.join(done['differ'])} differ" if done["differ"] else ""
    return Finding(
        f"{service} replayed: same digest", not done["differ"], f"{done['after'][:12]} at {done['until']}{differ}"
    )


async def _replay(http: httpx.AsyncClient, url: str, **until: int) -> dict[str, Any]:
    answer = await http.post(f"{url}/log/replay", params={"keep": "false", **until}, timeout=300)
    answer.raise_for_status()
    done: dict[str, Any] = json.loads(answer.text.splitlines()[-1])
    return done

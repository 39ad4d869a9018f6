"""Four good upstreams: each sends an event again, with the same id, until it is accepted. What they send follows from a seed.

They also send what a bad one would: the same event twice, at once or later, and what nobody can read.
"""

import asyncio
import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any, Protocol

import httpx
from nats.aio.client import Client
from nats.errors import Error as NatsError

from meguri_contracts.events import DataArrived
from meguri_contracts.topology import LOG, subject
from tests.system.chaos import specs

DUPLICATES = 0.1
"""Share of the events that are sent twice on purpose."""
POISON = 0.02
"""Share of the events that nobody can read."""
AGAIN = 0.2
"""Seconds before an event that was not accepted is sent again."""
PATIENCE = 3.0
"""Seconds to wait for the word that an event is on disk."""
LATER = (429, 503)
"""Answers after which an event is sent again."""
IN_HAND = 16
"""Events, or batches of them, that a publisher waits for at a time; the others wait their turn."""
NO_NAME = "Not.A.Name"
BAD_BODIES = {
    "broken JSON": b'{"records": [',
    "an array": b"[1, 2]",
    "a wrong type": b'{"records": "all of them"}',
}


@dataclass(frozen=True)
class Arrival:
    """One event as an upstream has it in hand."""

    event: str
    producer: str
    dataset: str
    rows: tuple[int, ...]
    """Numbers of its rows; none of what nobody can read."""
    body: bytes

    @property
    def is_poison(self) -> bool:
        return not self.rows


@dataclass
class Ledger:
    """What the upstreams know: what was accepted, by event id."""

    valid: dict[str, Arrival] = field(default_factory=dict)
    poison: dict[str, Arrival] = field(default_factory=dict)
    duplicates: int = 0
    """Events that were accepted a second time."""
    refused: int = 0
    """Events that HTTP refused at once, as it should."""
    tries: int = 0
    odd: list[str] = field(default_factory=list)
    """Answers that no upstream should get."""

    def accepted(self, arrivals: Sequence[Arrival]) -> None:
        for arrival in arrivals:
            kept = self.poison if arrival.is_poison else self.valid
            self.duplicates += arrival.event in kept
            kept[arrival.event] = arrival


class Way(Protocol):
    """How arrivals get to meguri."""

    @abstractmethod
    async def try_once(self, arrivals: Sequence[Arrival], *, same_message: bool) -> bool:
        """Return whether they were accepted. Without `same_message` the broker cannot tell that they were sent before."""

    @abstractmethod
    async def send_poison(self, arrival: Arrival, ledger: Ledger) -> None:
        """Send what nobody can read."""


class OverNats:
    """CloudEvents on the log itself, in binary or structured mode."""

    def __init__(self, client: Client, *, structured: bool) -> None:
        self._js = client.jetstream()
        self._structured = structured

    async def try_once(self, arrivals: Sequence[Arrival], *, same_message: bool) -> bool:
        [arrival] = arrivals
        headers, body = {}, arrival.body
        if self._structured and not arrival.is_poison:
            body = json.dumps(_structured(arrival)).encode()
        else:
            headers = _binary(arrival)
        if same_message:
            headers["Nats-Msg-Id"] = arrival.event
        try:
            await self._js.publish(
                subject(DataArrived.kind(), arrival.dataset), body, timeout=PATIENCE, stream=LOG, headers=headers
            )
        except (NatsError, TimeoutError, OSError):
            return False
        return True

    async def send_poison(self, arrival: Arrival, ledger: Ledger) -> None:
        await _until_accepted(self, [arrival], ledger, same_message=True)


class OverHttp:
    """CloudEvents posted to ingest, one in binary mode or several as a batch; to another replica when one does not answer."""

    def __init__(self, client: httpx.AsyncClient, urls: Sequence[str], odd: list[str]) -> None:
        self._client, self._urls, self._odd = client, urls, odd
        self._turn = count()

    async def try_once(self, arrivals: Sequence[Arrival], *, same_message: bool) -> bool:
        if len(arrivals) == 1:
            headers, body = _binary(arrivals[0]) | {"ce-subject": arrivals[0].dataset}, arrivals[0].body
        else:
            headers = {"content-type": "application/cloudevents-batch+json"}
            body = json.dumps([_structured(arrival) for arrival in arrivals]).encode()
        answer = await self._post(headers, body)
        if answer is None or answer.status_code in LATER:
            return False
        if answer.status_code != 202:
            self._odd.append(f"{answer.status_code} for {arrivals[0].event}: {answer.text[:200]}")
        return answer.status_code == 202

    async def send_poison(self, arrival: Arrival, ledger: Ledger) -> None:
        answer = await self._answer(_binary(arrival) | {"ce-subject": arrival.dataset}, arrival.body)
        if 400 <= answer.status_code < 500:
            ledger.refused += 1
        else:
            self._odd.append(f"{answer.status_code} for what nobody can read: {answer.text[:200]}")

    async def _answer(self, headers: dict[str, str], body: bytes) -> httpx.Response:
        """Post until there is an answer that says more than to try again."""
        while True:
            answer = await self._post(headers, body)
            if answer is not None and answer.status_code not in LATER:
                return answer
            await asyncio.sleep(AGAIN)

    async def _post(self, headers: dict[str, str], body: bytes) -> httpx.Response | None:
        url = self._urls[next(self._turn) % len(self._urls)]
        try:
            return await self._client.post(f"{url}/events", headers=headers, content=body)
        except httpx.HTTPError:
            return None


@dataclass(frozen=True)
class Publisher:
    """One upstream. `together` arrivals are sent at a time."""

    number: int
    way: Way
    together: int
    ledger: Ledger

    async def publish(self, seed: str, rate: float, seconds: float) -> None:
        """Send at a steady rate, arrivals per second, whatever becomes of those before; return when all were accepted."""
        random, loop = Random(f"{seed} publisher {self.number}"), asyncio.get_running_loop()
        turn = asyncio.Semaphore(IN_HAND)
        began = loop.time()
        async with asyncio.TaskGroup() as sending:
            for first in range(0, round(rate * seconds), self.together):
                await asyncio.sleep(began + first / rate - loop.time())
                sending.create_task(self._send(random, f"{seed}-{self.number}", first, turn))

    async def _send(self, random: Random, prefix: str, first: int, turn: asyncio.Semaphore) -> None:
        # All chance is taken before the first await, so that it does not depend on who answers when.
        poison = [random.random() < POISON for _ in range(self.together)]
        arrivals = [self._arrival(random, prefix, first + at, bad) for at, bad in enumerate(poison)]
        twice, later, same_message = random.random() < DUPLICATES, random.choice((0, 0, 0.5, 2)), random.random() < 0.5
        good = [arrival for arrival in arrivals if not arrival.is_poison]
        async with turn, asyncio.TaskGroup() as sending:
            for arrival in arrivals:
                if arrival.is_poison:
                    sending.create_task(self.way.send_poison(arrival, self.ledger))
            if good:
                sending.create_task(_until_accepted(self.way, good, self.ledger, same_message=True))
            if good and twice:
                sending.create_task(self._send_again(good, later, same_message=same_message))

    async def _send_again(self, arrivals: Sequence[Arrival], later: float, *, same_message: bool) -> None:
        await asyncio.sleep(later)
        await _until_accepted(self.way, arrivals, self.ledger, same_message=same_message)

    def _arrival(self, random: Random, prefix: str, number: int, poison: bool) -> Arrival:
        event, dataset = f"{prefix}-{number}", random.choice(specs.DATASETS)
        producer = f"upstream-{self.number}"
        if poison:
            what = random.choice([*BAD_BODIES, NO_NAME])
            body = BAD_BODIES.get(what, b'{"records": []}')
            return Arrival(event, producer, NO_NAME if what == NO_NAME else dataset, (), body)
        rows = tuple(range(self._row(prefix, number), self._row(prefix, number) + specs.ROWS))
        body = json.dumps({"records": [specs.row(random, row) for row in rows]}).encode()
        return Arrival(event, producer, dataset, rows, body)

    def _row(self, prefix: str, number: int) -> int:
        return (abs(Random(prefix).getrandbits(32)) << 20) + number * specs.ROWS


def publishers(client: Client, http: httpx.AsyncClient, ingest: Sequence[str], ledger: Ledger) -> list[Publisher]:
    """Return the four: binary and structured over NATS, single and in batches over HTTP."""
    ways: list[tuple[Way, int]] = [
        (OverNats(client, structured=False), 1),
        (OverNats(client, structured=True), 1),
        (OverHttp(http, ingest, ledger.odd), 1),
        (OverHttp(http, ingest, ledger.odd), 5),
    ]
    return [Publisher(number, way, together, ledger) for number, (way, together) in enumerate(ways, 1)]


async def _until_accepted(way: Way, arrivals: Sequence[Arrival], ledger: Ledger, *, same_message: bool) -> None:
    while True:
        ledger.tries += 1
        if await way.try_once(arrivals, same_message=same_message):
            ledger.accepted(arrivals)
            return
        await asyncio.sleep(AGAIN)


def _binary(arrival: Arrival) -> dict[str, str]:
    return {
        "ce-specversion": "1.0",
        "ce-id": arrival.event,
        "ce-source": arrival.producer,
        "ce-type": DataArrived.type,
    }


def _structured(arrival: Arrival) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": arrival.event,
        "source": arrival.producer,
        "type": DataArrived.type,
        "subject": arrival.dataset,
        "data": json.loads(arrival.body),
    }

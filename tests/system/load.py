"""Requests at a steady rate to several replicas, and what was answered when: raw HTTP, so that the client is not the limit."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answered:
    """One answer. Times are seconds since 1970; `error` says why there is none."""

    port: int
    sent: float
    received: float
    status: int
    version: int
    prediction: str
    error: str = ""


class Load:
    """Asks a model for one row after the other at `rate` requests a second, each replica in turn, until it is stopped."""

    def __init__(self, model: str, ports: Sequence[int], rows: Sequence[Sequence[float]], *, rate: float) -> None:
        self.answers: list[Answered] = []
        self._requests = [_request(model, row) for row in rows]
        self._ports = ports
        self._rate = rate
        self._going = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Load":
        self._going.set()
        per_replica = 4
        interval = len(self._ports) * per_replica / self._rate
        self._tasks = [
            asyncio.create_task(self._ask(port, interval, nth)) for port in self._ports for nth in range(per_replica)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def pause(self) -> None:
        self._going.clear()

    def go_on(self) -> None:
        self._going.set()

    def failed(self) -> list[Answered]:
        return [answer for answer in self.answers if answer.status != 200]

    async def _ask(self, port: int, interval: float, nth: int) -> None:
        due, number = time.monotonic() + interval * nth / 8, nth
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while True:
                await self._going.wait()
                await asyncio.sleep(max(due - time.monotonic(), 0))
                due = max(due + interval, time.monotonic())
                sent = time.time()
                try:
                    writer.write(self._requests[number % len(self._requests)])
                    status, body = await _answer(reader)
                except (OSError, EOFError) as error:
                    self.answers.append(Answered(port, sent, time.time(), 0, 0, "", repr(error)))
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                else:
                    self.answers.append(_answered(port, sent, status, body))
                number += 1
        finally:
            writer.close()


def _request(model: str, row: Sequence[float]) -> bytes:
    tensor = {"name": "input", "shape": [1, len(row)], "datatype": "FP64", "data": list(row)}
    body = json.dumps({"inputs": [tensor], "parameters": {"producer": "load"}}).encode()
    return b"POST /v2/models/%b/infer HTTP/1.1\r\nHost: meguri\r\nContent-Length: %d\r\n\r\n%b" % (
        model.encode(),
        len(body),
        body,
    )


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
    return int(head.split(b" ", 2)[1]), json.loads(await reader.readexactly(length))


def _answered(port: int, sent: float, status: int, body: dict[str, Any]) -> Answered:
    now = time.time()
    if status != 200:
        return Answered(port, sent, now, status, 0, "", str(body))
    return Answered(port, sent, now, status, int(body["model_version"]), body["parameters"]["prediction_id"])

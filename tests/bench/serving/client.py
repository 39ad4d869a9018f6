"""A client that sends the same request over and over, for machines without wrk and for loads at a steady rate.

    python -m tests.bench.serving.client PORT FILE CONNECTIONS SECONDS RATE

FILE holds the whole request as bytes. RATE 0 sends again as soon as a connection has its answer; otherwise so many requests
fall due per second, and an answer's time counts from then, whether a connection was free or not. Prints JSON.
"""

import json
import re
import select
import socket
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

PATIENCE = 5.0
"""Seconds after the end for answers that are still owed; those that do not come are failures."""
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Load:
    """What a client saw. Times in seconds.

    `requests` were answered within `seconds`, `sent` are those that the server had to do with, answered or not; `busy` is the
    share of a core that the client itself took.
    """

    requests: int
    sent: int
    seconds: float
    failed: int
    p50: float
    p99: float
    busy: float


class _Connection:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.began = 0.0
        self.received = b""

    def ended(self) -> bool | None:
        """Read what came; return whether the answer is 200, or None while it is not all there. Raises OSError."""
        data = self.socket.recv(1 << 20)
        if not data:
            raise ConnectionResetError
        received = self.received = self.received + data if self.received else data
        head = received.find(b"\r\n\r\n")
        if head < 0:
            return None
        length = _LENGTH.search(received, 0, head)
        if length is None:
            raise ConnectionResetError
        if len(received) < head + 4 + int(length[1]):
            return None
        self.received = b""
        return received.startswith(b"HTTP/1.1 200")


class Client:
    """Keeps `connections` open to a port and sends `request` on each."""

    def __init__(self, port: int, request: bytes, connections: int) -> None:
        self._port = port
        self._request = request
        self._poll = select.epoll()
        self._open: dict[int, _Connection] = {}
        self._idle: deque[_Connection] = deque()
        self._times: list[float] = []
        self._failed = 0
        for _ in range(connections):
            self._connect()

    def run(self, seconds: float, rate: float) -> Load:
        began, cpu = time.perf_counter(), time.process_time()
        end = began + seconds
        due = began
        while (now := time.perf_counter()) < end:
            while self._idle and (not rate or due <= now):
                self._send(due if rate else now)
                due += 1 / rate if rate else 0
            self._receive((due if rate and self._idle else end) - now)
        in_time = len(self._times)
        took, busy = now - began, (time.process_time() - cpu) / (now - began)
        while len(self._idle) < len(self._open) and time.perf_counter() < end + PATIENCE:
            self._receive(0.1)
        owed = len(self._open) - len(self._idle)
        times = sorted(self._times) or [0.0]
        p50, p99 = (times[int(share * (len(times) - 1))] for share in (0.5, 0.99))
        return Load(in_time, len(self._times) + owed, took, self._failed + owed, p50, p99, busy)

    def _connect(self) -> None:
        connection = _Connection(self._port)
        self._open[connection.socket.fileno()] = connection
        self._poll.register(connection.socket, select.EPOLLIN)
        self._idle.append(connection)

    def _send(self, began: float) -> None:
        connection = self._idle.popleft()
        connection.began = began
        connection.socket.sendall(self._request)

    def _receive(self, patience: float) -> None:
        for file, _ in self._poll.poll(max(patience, 0)):
            connection = self._open[file]
            try:
                well = connection.ended()
            except OSError:
                self._failed += 1
                self._poll.unregister(file)
                connection.socket.close()
                del self._open[file]
                self._connect()
                continue
            if well is None:
                continue
            self._times.append(time.perf_counter() - connection.began)
            self._failed += not well
            self._idle.append(connection)


if __name__ == "__main__":
    port, file, connections, seconds, rate = sys.argv[1:]
    client = Client(int(port), Path(file).read_bytes(), int(connections))
    print(json.dumps(asdict(client.run(float(seconds), float(rate)))))

"""Puts a load on a server from another core, with wrk where it is installed and with our own client where not."""

import json
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infra.local.processes import ROOT
from tests.bench.serving.client import Load
from tests.bench.serving.servers import CLIENT, Server, on_core

WARM_UP = 1
"""Seconds of load before each measurement."""
LIMIT = 0.95
"""Share of a core from which on the client, not the server, is what is measured."""

_SCRIPT = """
wrk.method = {method}
local file = io.open({body}, "rb")
wrk.body = file:read("*a")
file:close()
{headers}
function done(summary, latency, requests)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  print(string.format('{{"requests": %d, "seconds": %.6f, "failed": %d, "p50": %.6f, "p99": %.6f}}', summary.requests,
    summary.duration / 1e6, failed, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6))
end
"""


@dataclass(frozen=True)
class Request:
    """A request as it goes over the wire."""

    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def method(self) -> str:
        return "POST" if self.body else "GET"

    def to_bytes(self) -> bytes:
        headers = {
            "Host": "127.0.0.1",
            **self.headers,
            **({"Content-Length": str(len(self.body))} if self.body else {}),
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"{self.method} {self.path} HTTP/1.1\r\n{head}\r\n".encode() + self.body


@dataclass(frozen=True)
class Cell:
    """One measurement: what the client saw, and the server's processor time per request until it had nothing left to do."""

    load: Load
    cpu: float

    @property
    def rate(self) -> float:
        """Right answers per second."""
        return (self.load.requests - self.load.failed) / self.load.seconds

    @property
    def client_was_the_limit(self) -> bool:
        return self.load.busy >= LIMIT


def measure(server: Server, request: Request, connections: int, seconds: int) -> Cell:
    """Warm up, then measure for `seconds`."""
    fire(server.port, request, connections, WARM_UP)
    server.rest()
    before = server.cpu()
    load = fire(server.port, request, connections, seconds)
    server.rest()
    return Cell(load, (server.cpu() - before) / max(load.sent, 1))


def fire(port: int, request: Request, connections: int, seconds: int) -> Load:
    """Send as fast as answers come."""
    return (_wrk if shutil.which("wrk") else steady)(port, request, connections, seconds)


def steady(port: int, request: Request, connections: int, seconds: int, rate: float = 0) -> Load:
    """Send `rate` requests per second, or as fast as answers come if it is 0, with our own client."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(request.to_bytes())
        file.flush()
        arguments = [port, file.name, connections, seconds, rate]
        command = [sys.executable, "-m", "tests.bench.serving.client", *map(str, arguments)]
        return Load(**json.loads(_run(command)))


def _wrk(port: int, request: Request, connections: int, seconds: int) -> Load:
    with tempfile.TemporaryDirectory() as folder:
        body, script = Path(folder, "body"), Path(folder, "script.lua")
        body.write_bytes(request.body)
        headers = "\n".join(f"wrk.headers[{json.dumps(k)}] = {json.dumps(v)}" for k, v in request.headers.items())
        method = json.dumps(request.method)
        script.write_text(_SCRIPT.format(method=method, body=json.dumps(str(body)), headers=headers))
        url = f"http://127.0.0.1:{port}{request.path}"
        before = _children()
        answer = _run(["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script), url])
        seen = json.loads(answer.splitlines()[-1])
        # What is on its way at the end is worked on, and not counted by wrk.
        sent = seen["requests"] + connections
        return Load(**seen, sent=sent, busy=(_children() - before) / seen["seconds"])


def _run(command: list[str]) -> str:
    with on_core(CLIENT):
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

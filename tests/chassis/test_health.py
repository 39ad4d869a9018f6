"""The health check of the images, as the engine runs it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from tests.conftest import free_port


@pytest.fixture
def answering() -> Iterator[Callable[[int, str], int]]:
    """Start a server that answers with a status and a body; return its port."""
    servers: list[HTTPServer] = []

    def start(status: int, body: str) -> int:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status if self.path == "/health/ready" else 404)
                self.end_headers()
                self.wfile.write(body.encode())

        servers.append(HTTPServer(("127.0.0.1", 0), Answer))
        Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return servers[-1].server_port

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def check(port: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "meguri_chassis.health"]
    return subprocess.run(
        command, env=os.environ | {"MEGURI_PORT": str(port)}, capture_output=True, text=True, check=False
    )


def test_a_service_that_is_ready_is_healthy(answering: Callable[[int, str], int]):
    assert check(answering(200, '{"ready": true}')).returncode == 0


def test_a_service_that_is_not_ready_is_not_healthy_and_the_reasons_are_passed_on(
    answering: Callable[[int, str], int],
):
    checked = check(answering(503, '{"ready": false, "reasons": ["no connection to the broker"]}'))

    assert checked.returncode == 1
    assert "no connection to the broker" in checked.stderr


def test_a_service_that_does_not_answer_is_not_healthy():
    port = free_port()

    checked = check(port)

    assert checked.returncode == 1
    assert f"http://127.0.0.1:{port}/health/ready" in checked.stderr


def test_the_check_loads_nothing_of_the_service():
    loaded = "import sys, meguri_chassis.health; print({'pydantic', 'fastapi', 'meguri_contracts'} & set(sys.modules))"

    assert subprocess.check_output([sys.executable, "-c", loaded], text=True).strip() == "set()"

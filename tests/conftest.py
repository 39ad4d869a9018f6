"""What tests share: a real broker, real databases, and waiting on conditions."""

import asyncio
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.postgres import HAS_POSTGRES, running_postgres
from tests.scheduling import Sharing

ROOT = Path(__file__).parent.parent
NATS_SERVER = os.environ.get("MEGURI_NATS_SERVER") or str(ROOT / ".tools/nats/embedded_nats/bin/nats-server")
PATIENCE = 100.0
"""Seconds after which a condition that did not come true fails its test: far more than it takes on a machine that is busy."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: a third of the time tests wait. Too many, and what should be prompt is not."""
    return min(4, 1 + (os.cpu_count() or 1))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Sharing:
    return Sharing(config, log)


class SayingAtOnce:
    """Says what fails when it does: a run that is cut short never comes to its summary."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._terminal.write_line(f"\n{report.when} of {report.nodeid} failed")
            self._terminal.write_line(report.longreprtext)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CI") and (terminal := config.pluginmanager.getplugin("terminalreporter")):
        config.pluginmanager.register(SayingAtOnce(terminal))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole systems first: what takes longest must not be what everybody waits for in the end."""
    items.sort(key=lambda item: "system" not in item.path.parts)


def free_port(*further: int) -> int:
    """A port that is free, and those so much `further` on; below those that the kernel gives to whoever connects."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        if all(_is_free(port + one) for one in (0, *further)):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


async def until(
    condition: Callable[[], Any | Awaitable[Any]], what: str = "the condition", *, within: float = PATIENCE
) -> Any:
    """Return the first true result of `condition`; fail when there is none within so many seconds."""
    began = time.monotonic()
    while True:
        result = condition()
        if isinstance(result, Awaitable):
            result = await result
        if result:
            return result
        waited = time.monotonic() - began
        assert waited < within, f"{what} did not come true within {within} s"
        # What takes long is asked for less often: the asking itself takes what is waited for its processor.
        await asyncio.sleep(min(max(0.01, waited / 20), 0.1))


class Broker:
    """A nats-server on a free port, with the configuration that `make run` uses."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.monitor = folder, free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        env = os.environ | {
            "MEGURI_NATS_NAME": "test",
            "MEGURI_NATS_LISTEN": f"127.0.0.1:{self.port}",
            "MEGURI_NATS_MONITOR": f"127.0.0.1:{self.monitor}",
            "MEGURI_NATS_STORE": str(self.folder),
        }
        with (self.folder / "broker.log").open("ab") as log:
            command = [NATS_SERVER, "-c", str(ROOT / "infra/nats.conf")]
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        end = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 0.2).close()
            except OSError:
                assert self.process.poll() is None, (self.folder / "broker.log").read_text()
                assert time.monotonic() < end, "the broker did not start"
                time.sleep(0.01)
            else:
                return

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of its own, of a size such as `1m`, at `folder`. Skips where none can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="session")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a broker has on its disk after it was provisioned: others begin with a copy, because each stream is synced."""
    from meguri.provisioning import provision  # noqa: PLC0415

    broker = Broker(tmp_path_factory.mktemp("provisioned"))
    broker.start()
    asyncio.run(provision(broker.url))
    broker.stop()
    return broker.folder


@pytest.fixture
def broker(provisioned: Path, tmp_path: Path) -> Iterator[Broker]:
    """A broker of the test's own, provisioned: a service would read the events of all tests before on one that they share."""
    folder = tmp_path / "nats"
    shutil.copytree(provisioned, folder)
    broker = Broker(folder)
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a PostgreSQL of our own, without a database name. Skips where its binaries are missing."""
    if not HAS_POSTGRES:
        pytest.skip("PostgreSQL's binaries are missing: apt-get install postgresql")
    with running_postgres(tmp_path_factory.mktemp("postgres"), free_port()) as address:
        yield address


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh, empty database; each test that asks for it runs once on each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/test.db"
    import psycopg  # noqa: PLC0415

    server = request.getfixturevalue("postgres")
    name = f"test_{os.urandom(6).hex()}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{server}/{name}"

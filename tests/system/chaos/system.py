"""A whole meguri to be mistreated: two replicas of each service, databases, folder and ports of its own."""

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self
from xmlrpc.client import ServerProxy

import httpx
import psutil
import psycopg
import sqlalchemy
from supervisor.xmlrpc import SupervisorTransport

from infra.local.processes import REPLICA_STEP, SERVICES, Laptop
from infra.local.run import wait_until_ready
from meguri.client import broker
from meguri.provisioning import provision
from meguri_contracts.topology import PORTS
from tests.postgres import running_postgres

REPLICAS = 2
WITH_TABLES = ("ingest", "training", "registry", "monitoring")
DISK_BYTES = 512 * 1024 * 1024
"""Size of the disk that is filled up. Taken from memory, as far as it is used."""
FIRST_PORT, LAST_PORT = 15000, 30000
"""Below those that the kernel gives to outgoing connections: they would take the port of a service that is just down."""
FIT = "training's fit"
"""Stands for the processes in which the replicas of training fit."""


class System:
    """Everything that runs, from `with` to its end. `database` is sqlite or postgresql."""

    def __init__(self, folder: Path, database: str, launch: Callable[[str], str] = "-m meguri_{}".format) -> None:
        self.folder, self.var = folder, folder / "var"
        self.names = [_name(service, replica) for service in SERVICES for replica in range(REPLICAS)]
        self._database, self._launch = database, launch
        self._server = ""
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        port = _set_environment()
        self.var.mkdir()
        with ExitStack() as stack:
            if self._database == "postgresql":
                (self.folder / "postgres").mkdir()
                self._server = stack.enter_context(running_postgres(self.folder / "postgres", port))
                for service in WITH_TABLES:
                    os.environ[f"MEGURI_{service.upper()}_DATABASE_URL"] = f"{self._server}/{service}"
                    self._execute(f"CREATE DATABASE {service}")
            self.disk = stack.enter_context(Disk(self.var / "data"))
            laptop = stack.enter_context(Laptop(self.var, self._launch))
            asyncio.run(provision(broker()))
            wait_until_ready(laptop)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def urls(self, service: str) -> list[str]:
        """Where the replicas of a service answer."""
        first = int(os.environ[f"MEGURI_{service.upper()}_PORT"])
        return [f"http://127.0.0.1:{first + REPLICA_STEP * replica}" for replica in range(REPLICAS)]

    def pids(self) -> dict[str, int]:
        """The process ids of what supervisor keeps up and what runs at the moment."""
        found = self._supervisor().getAllProcessInfo()
        return {process["name"]: process["pid"] for process in found if process["pid"]}

    def pid(self, name: str) -> int:
        """The process id of a process or of a fit, 0 when there is none at the moment."""
        pids = self.pids()
        if name != FIT:
            return pids.get(name, 0)
        fits = [fit for replica, pid in pids.items() if replica.startswith("training") for fit in _fits(pid)]
        return fits[0] if fits else 0

    def wipe(self, service: str) -> None:
        """Stop a service, delete its database, start it again."""
        replicas = [_name(service, replica) for replica in range(REPLICAS)]
        for name in replicas:
            self._supervisor().stopProcess(name)
        if self._server:
            self._execute(f"DROP DATABASE {service} WITH (FORCE)")
            self._execute(f"CREATE DATABASE {service}")
        else:
            for file in self.var.glob(f"{service}.db*"):
                file.unlink()
        for name in replicas:
            self._supervisor().startProcess(name, False)

    def counted(self) -> int:
        """Up to which message of their stream monitoring has counted the predictions; it has no route that says so."""
        server = self._server.replace("postgresql:", "postgresql+psycopg:")
        engine = sqlalchemy.create_engine(f"{server}/monitoring" if server else f"sqlite:///{self.var}/monitoring.db")
        query = sqlalchemy.text("SELECT sequence FROM log_position WHERE projection = 'predictions'")
        try:
            with engine.connect() as connection:
                return connection.execute(query).scalar() or 0
        except sqlalchemy.exc.DBAPIError:
            return 0  # wiped a moment ago
        finally:
            engine.dispose()

    def _supervisor(self) -> Any:
        transport = SupervisorTransport(serverurl=f"unix://{self.var}/supervisor.sock")
        return ServerProxy("http://127.0.0.1", transport=transport).supervisor

    def _execute(self, statement: str) -> None:
        with psycopg.connect(f"{self._server}/postgres", autocommit=True) as connection:
            connection.execute(statement.encode())


class Disk:
    """A small disk of its own below the tables, so that it can be filled up. `missing` says why there is none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ballast = folder / "ballast"
        self.missing = ""

    def __enter__(self) -> Self:
        self._folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(self._folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            self.missing = (done.stderr.strip().splitlines() or ["mount failed"])[-1]
        return self

    def __exit__(self, *error: object) -> None:
        if not self.missing:
            subprocess.run(["umount", "-l", str(self._folder)], check=True)

    def fill(self) -> None:
        """Leave no byte free."""
        with self._ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1024 * 1024))
            except OSError:
                return

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)


async def ask(client: httpx.AsyncClient, url: str) -> Any:
    """GET an answer of a service, as JSON."""
    answer = await client.get(url)
    answer.raise_for_status()
    return answer.json()


def _name(service: str, replica: int) -> str:
    return service if replica == 0 else f"{service}-{replica + 1}"


def _fits(pid: int) -> list[int]:
    try:
        children = psutil.Process(pid).children()
        return [child.pid for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.NoSuchProcess:
        return []


def _set_environment() -> int:
    """Point everything to free ports and nothing else; returns one more free port."""
    for name in [name for name in os.environ if name.startswith(("MEGURI_", "OTEL_"))]:
        if name != "MEGURI_NATS_SERVER":
            del os.environ[name]
    starts = _free_blocks(len(PORTS) + 1)
    for service, start in zip(PORTS, starts, strict=False):
        os.environ[f"MEGURI_{service.upper()}_PORT"] = str(start)
        os.environ[f"MEGURI_{service.upper()}_REPLICAS"] = str(REPLICAS)
    last = starts[-1]
    os.environ["MEGURI_NATS_PORT"], os.environ["MEGURI_NATS_MONITOR_PORT"] = str(last), str(last + 1)
    return last + 2


def _free_blocks(count: int) -> list[int]:
    """Return first ports of blocks that are free, each large enough for all replicas of a service."""
    size = REPLICA_STEP * REPLICAS
    blocks = range(FIRST_PORT + os.getpid() % 100 * size, LAST_PORT, size)
    free = [start for start in blocks if all(_is_free(port) for port in range(start, start + size))]
    return free[:count]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def remove(folder: Path) -> None:
    """Remove what a run left behind."""
    shutil.rmtree(folder, ignore_errors=True)

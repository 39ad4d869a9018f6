"""The processes of a laptop, kept up by supervisor: broker, services, replicas by number, each with its log under var/log.

`MEGURI_<SERVICE>_PORT` moves a port, `MEGURI_<SERVICE>_REPLICAS` sets the number of replicas (their ports follow in
steps of ten), `MEGURI_INFERENCE_PROCESSES` the number of processes that answer predictions on each of inference's ports,
`MEGURI_NATS_URL` names a broker of one's own instead of the one that is started here.
"""

import configparser
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from meguri_contracts.topology import PORTS

ROOT = Path(__file__).parents[2]
NATS = ROOT / ".tools/nats/embedded_nats/bin/nats-server"
SERVICES = tuple(service for service in PORTS if service != "console")
NEEDED_BYTES = 512 * 1024 * 1024
"""Free disk below which nothing is started."""
REPLICA_STEP = 10
METRICS_STEP = 1000
"""From the port that processes share to the first of those where each gives its own metrics."""
NOT_IN_PATHS = ("%", '"', "?", "#", " ;", ",", "[", "]", "\\", "\n", "\r")
"""What supervisor, SQLite's addresses, lists of roots or Delta tables take for something else."""
STOP_PATIENCE = 40
"""Seconds in which everything must have stopped."""


class CannotStart(Exception):
    """Something is in the way; the message says what, and what to do."""


@dataclass(frozen=True)
class Process:
    """One process of the laptop. `port` 0 listens on none."""

    name: str
    command: tuple[str, ...]
    port: int
    port_setting: str
    environment: Mapping[str, str]
    folder: Path = ROOT
    """Where it is started."""


class Laptop:
    """All processes below one supervisor, from `with` to its end. `launch` gives Python's arguments for a service."""

    def __init__(self, var: Path, launch: Callable[[str], str] = "-m meguri_{}".format) -> None:
        self.var = var
        self._launch = launch
        self.own_broker = "MEGURI_NATS_URL" not in os.environ
        self._supervisor: subprocess.Popen[bytes] | None = None
        if self.own_broker:
            os.environ["MEGURI_NATS_URL"] = f"nats://127.0.0.1:{_port('NATS', 4222)}"
        os.environ["MEGURI_VAR"] = str(var)

    def __enter__(self) -> Self:
        processes = list(self._processes())
        _require_folder(self.var)
        _require_free(processes)
        config = self.var / "supervisord.conf"
        with config.open("w", encoding="utf-8") as file:
            self._config(processes).write(file)
        (self.var / "log").mkdir(exist_ok=True)
        (self.var / "incoming").mkdir(exist_ok=True)
        command = [sys.executable, "-m", "supervisor.supervisord", "--nodaemon", "--silent", "-c", str(config)]
        # A session of its own: Ctrl-C reaches this process, which then stops the others in order.
        self._supervisor = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdin=subprocess.DEVNULL)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._supervisor is not None
        self._supervisor.send_signal(signal.SIGTERM)
        try:
            self._supervisor.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            _kill_all(self._supervisor.pid)
            self._supervisor.wait()

    def alive(self) -> bool:
        return self._supervisor is not None and self._supervisor.poll() is None

    def pid(self, name: str) -> int:
        """Return the process id of a process by its name, 0 when it does not run at the moment."""
        answer = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(self.var / "supervisord.conf"), "pid", name],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        return int(answer.stdout.strip()) if answer.stdout.strip().isdigit() else 0

    def _processes(self) -> Iterator[Process]:
        if self.own_broker:
            port, monitor = _port("NATS", 4222), _port("NATS_MONITOR", 8222)
            broker = {
                "MEGURI_NATS_NAME": "laptop",
                "MEGURI_NATS_LISTEN": f"127.0.0.1:{port}",
                "MEGURI_NATS_MONITOR": f"127.0.0.1:{monitor}",
                # From where it is started: its configuration takes no path with a space out of the environment.
                "MEGURI_NATS_STORE": "nats",
            }
            command = (str(NATS), "-c", str(ROOT / "infra/nats.conf"))
            yield Process("nats", command, port, "MEGURI_NATS_PORT", broker, self.var.absolute())
        for service in SERVICES:
            setting = f"MEGURI_{service.upper()}_PORT"
            for replica in range(int(os.environ.get(f"MEGURI_{service.upper()}_REPLICAS", "1"))):
                port = _port(service.upper(), PORTS[service]) + REPLICA_STEP * replica
                name = service if replica == 0 else f"{service}-{replica + 1}"
                command = (sys.executable, *self._launch(service).split())
                for nth, environment in enumerate(_processes_of(service, port)):
                    own = f"{name}-p{nth + 1}" if nth else name
                    yield Process(own, command, port, setting, {setting: str(port), **environment})

    def _config(self, processes: list[Process]) -> configparser.RawConfigParser:
        config = configparser.RawConfigParser()
        socket_ = self.var / "supervisor.sock"
        config["supervisord"] = {
            "logfile": str(self.var / "log/supervisor.log"),
            "pidfile": str(self.var / "supervisor.pid"),
        }
        config["unix_http_server"] = {"file": str(socket_)}
        config["supervisorctl"] = {"serverurl": f"unix://{socket_}"}
        config["rpcinterface:supervisor"] = {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
        }
        for process in processes:
            environment = {"MEGURI_VAR": str(self.var), **process.environment}
            config[f"program:{process.name}"] = {
                "command": shlex.join(process.command),
                "directory": str(process.folder),
                "environment": ",".join(f'{name}="{value}"' for name, value in environment.items()),
                # Stopped together, the broker last, so that all can say what they have in hand.
                "priority": "1" if process.name == "nats" else "2",
                "autorestart": "true",
                "startsecs": "1",
                "startretries": "1000000",
                "stopwaitsecs": "30",
                "killasgroup": "true",
                "redirect_stderr": "true",
                "stdout_logfile": str(self.var / f"log/{process.name}.log"),
                "stdout_logfile_maxbytes": "20MB",
                "stdout_logfile_backups": "1",
            }
        return config


def _kill_all(pid: int) -> None:
    """Kill a process and all that it has started, in groups of their own or not."""
    above = psutil.Process(pid)
    for process in (*above.children(recursive=True), above):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _processes_of(service: str, port: int) -> list[dict[str, str]]:
    """Return what the environment of each process on one port has beside the port."""
    count = int(os.environ.get(f"MEGURI_{service.upper()}_PROCESSES", "1"))
    if service != "inference" or count == 1:
        return [{}]
    shared = "MEGURI_INFERENCE_SHARED_PORT"
    return [{shared: "true", "MEGURI_INFERENCE_METRICS_PORT": str(port + METRICS_STEP + nth)} for nth in range(count)]


def _port(name: str, default: int) -> int:
    return int(os.environ.get(f"MEGURI_{name}_PORT", default))


def _require_free(processes: list[Process]) -> None:
    for process in {process.port: process for process in reversed(processes)}.values():
        with closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", process.port))
            except OSError as error:
                raise CannotStart(
                    f"port {process.port} for {process.name} is taken: "
                    f"stop what uses it, or choose another with {process.port_setting}"
                ) from error


def _require_folder(var: Path) -> None:
    for folder, remedy in ((ROOT, "move meguri"), (var.absolute(), "name another with MEGURI_VAR")):
        if strange := [sign for sign in NOT_IN_PATHS if sign in str(folder)]:
            raise CannotStart(f"the name of a folder may have no {strange[0]!r}, as in {folder}: {remedy}")
    try:
        var.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStart(f"the folder {var} cannot be made: {error.strerror}") from error
    free = shutil.disk_usage(var).free
    if free < NEEDED_BYTES:
        raise CannotStart(
            f"{free // 2**20} MiB are free below {var}, {NEEDED_BYTES // 2**20} are needed: "
            "make room, or name another folder with MEGURI_VAR"
        )

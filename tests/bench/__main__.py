"""`make bench`: starts the laptop's processes on free ports and prints the first rows of what must be reached.

    P6   data-arrived published -> first answer by the new champion, minus the fit itself (p95 of 20)
    P7   lifecycle events through a whole service, against one-at-a-time publishes on the same broker
    P13  training by two replicas against one
    P14  idle: messages and processor time
    P15  memory of all processes at idle, and the time to ready

Figures of this kind hold only side by side in one run; nothing is asserted.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from meguri_contracts.topology import PORTS
from tests.conftest import free_port


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=["P15", "P6", "P7", "P13", "P14"], help="which rows to measure")
    chosen = parser.parse_args().rows
    for service in PORTS:
        os.environ[f"MEGURI_{service.upper()}_PORT"] = str(free_port())
    os.environ["MEGURI_NATS_PORT"], os.environ["MEGURI_NATS_MONITOR_PORT"] = str(free_port()), str(free_port())
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), chosen)


def measure(folder: Path, chosen: list[str]) -> None:
    # The addresses are read from the environment, so these come after it is set.
    from infra.local.processes import Laptop  # noqa: PLC0415
    from infra.local.run import wait_until_ready  # noqa: PLC0415
    from meguri.client import broker  # noqa: PLC0415
    from meguri.provisioning import provision  # noqa: PLC0415
    from tests.bench import measures, replicas  # noqa: PLC0415

    began = time.monotonic()
    with Laptop(folder) as laptop:
        asyncio.run(provision(broker()))
        wait_until_ready(laptop)
        ready = time.monotonic() - began
        rows: dict[str, Callable[[], str]] = {
            "P6": measures.data_to_serving,
            "P7": measures.events_through_a_service,
            "P13": replicas.training_throughput,
            "P14": lambda: measures.idle(laptop),
            "P15": lambda: measures.memory(laptop, ready),
        }
        for row in chosen:
            print(f"{row:4} {rows[row]()}", flush=True)


def spread(values: list[float], unit: str) -> str:
    """Return median, range and count in words."""
    return (
        f"median {statistics.median(values):.3g} {unit} ({min(values):.3g} to {max(values):.3g}, {len(values)} values)"
    )


if __name__ == "__main__":
    main()

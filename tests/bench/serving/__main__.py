"""`make bench-serving`: serving side by side with what one would use without us; ARGS="--quick P1 P2" chooses.

    table  every size of request, encoding and number of connections
    P1     one row a request, 64 connections, against a FastAPI and scikit-learn server written by hand
    P2     the same against the bare ASGI server that ours runs on
    P3     p99 at 16 connections
    P4     256 rows in binary tensors, against ONNX Runtime alone
    P5     20 promotions under a steady load
    P8     the prediction log: what it takes from P1, and how fast rows get to monitoring's sketches and tables

Ours is one process on one core with everything on: validation, ids, prediction log, metrics, traces. The broker and the
client (wrk, if it is installed) have the other core, if there is one. Both sides are measured in turn, right after each
other; "us" is the processor time of the server's processes per request until it had nothing left to do, the figure that
other work on the machine changes least. On a machine with other work,
`nice -n -10 make bench-serving` as root helps. Nothing is asserted.
"""

import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.bench import rows
from tests.bench.serving import figures, kept, promotions, table
from tests.bench.serving.servers import CLIENT, SERVER
from tests.bench.serving.setting import Setting

SECONDS = 2
ROWS: dict[str, tuple[Callable[[Setting], Iterator[str]], ...]] = {
    "table": (table.everything,),
    "P1": (figures.throughput,),
    "P2": (figures.against_hello,),
    "P3": (figures.tail,),
    "P4": (figures.large,),
    "P5": (promotions.under_load,),
    "P8": (kept.cost, kept.flow),
}


def setting(folder: Path, stack: ExitStack, asked: Namespace) -> Setting:
    client = "wrk" if shutil.which("wrk") else "our own client (install wrk for a faster one)"
    seconds = 1 if asked.quick else SECONDS
    print(f"server on core {SERVER}, {client} on core {CLIENT}, {seconds} s each")
    return Setting(folder, stack, asked.pairs, seconds)


if __name__ == "__main__":
    rows.main(__doc__, setting, ROWS)
